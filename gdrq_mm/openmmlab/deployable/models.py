"""Tensors in, tensors out: classifiers and segmentors."""
from typing import Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# How data preprocessors call "the channels are reversed".
_REVERSED = dict(mmdet='_channel_conversion', mmseg='channel_conversion',
                 mmpretrain='to_rgb')


class Normalize(nn.Module):
    """The normalization of a data preprocessor, as part of the model.

    Args:
        preprocessor (nn.Module): Of mmdet, mmseg or mmpretrain.
        scope (str): Which of them.
    """

    def __init__(self, preprocessor: nn.Module, scope: str) -> None:
        super().__init__()
        self.reversed = bool(getattr(preprocessor, _REVERSED[scope]))
        self.enabled = bool(preprocessor._enable_normalize)
        if self.enabled:
            for name in ('mean', 'std'):
                self.register_buffer(
                    name, getattr(preprocessor, name).view(1, -1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        if self.reversed:
            images = images.flip(1)
        return (images - self.mean) / self.std if self.enabled else images


class Deployable(nn.Module):
    """Base: normalization inside, input ``images``.

    Images are float32 of shape ``(N, 3, H, W)``, 0 to 255, with the channels
    as the dataset's pipeline gives them (BGR for OpenMMLab's own). Parts keep
    their names, so that layers have those of the original model.
    """
    input_names = ('images', )
    output_names: Tuple[str, ...] = ()

    def __init__(self, model: nn.Module, scope: str) -> None:
        super().__init__()
        self.normalize = Normalize(model.data_preprocessor, scope)
        self.backbone = model.backbone
        self.neck = model.neck if getattr(model, 'with_neck', False) else \
            nn.Identity()

    def features(self, images: Tensor):
        return self.neck(self.backbone(self.normalize(images)))


class DeployableClassifier(Deployable):
    """An mmpretrain ``ImageClassifier``: images -> scores ``(N, classes)``."""
    output_names = ('scores', )

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, 'mmpretrain')
        self.head = model.head

    def forward(self, images: Tensor) -> Tensor:
        return F.softmax(self.head(self.features(images)), dim=1)


class DeployableSegmentor(Deployable):
    """An mmseg ``EncoderDecoder`` (whole images): images -> classes
    ``(N, H, W)``, int64.

    Raises:
        ValueError: The model slides a window or has sigmoid outputs.
    """
    output_names = ('classes', )

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model, 'mmseg')
        if model.test_cfg.get('mode', 'whole') != 'whole':
            raise ValueError(
                f'test_cfg.mode is {model.test_cfg.mode!r}, which has no '
                "fixed graph; export with test_cfg.mode='whole'")
        if model.decode_head.out_channels == 1:
            raise ValueError('binary segmentation by a threshold '
                             '(decode_head.out_channels=1) cannot be exported '
                             'yet; use out_channels=2')
        self.decode_head = model.decode_head

    def forward(self, images: Tensor) -> Tensor:
        logits = F.interpolate(
            self.decode_head(self.features(images)), images.shape[2:],
            mode='bilinear', align_corners=self.decode_head.align_corners)
        return torch.argmax(logits, dim=1)


def make_deployable(model: nn.Module, image_shape: Tuple[int, int]
                    ) -> Deployable:
    """The deployable form of a model; shares its layers.

    Args:
        model (nn.Module): A classifier of mmpretrain, a segmentor of mmseg or
            a Faster R-CNN of mmdet.
        image_shape (tuple[int, int]): Height and width of images.

    Raises:
        ValueError: Another kind of model, or a part that is not supported,
            by name.
    """
    kinds = {cls.__name__ for cls in type(model).__mro__}
    if 'ImageClassifier' in kinds:
        return DeployableClassifier(model)
    if 'EncoderDecoder' in kinds:
        return DeployableSegmentor(model)
    if 'TwoStageDetector' in kinds:
        from .detector import DeployableDetector
        return DeployableDetector(model, image_shape)
    raise ValueError(
        f'{type(model).__name__} cannot be exported yet; there are '
        'ImageClassifier (mmpretrain), EncoderDecoder (mmseg) and FasterRCNN '
        '(mmdet)')
