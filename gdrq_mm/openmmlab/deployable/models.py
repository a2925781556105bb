"""Tensors in, tensors out: classifiers and segmentors."""
from typing import List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .boxes import check_methods, method_of
from .deformable import deformable_kernels
from .layer_forms import layer_forms

# Known data preprocessors, and their packages.
_KNOWN = dict(DetDataPreprocessor='mmdet', SegDataPreProcessor='mmseg',
              ClsDataPreprocessor='mmpretrain',
              BoxInstDataPreprocessor='mmdet')  # another in training only
# How they say that channels are reversed: mmengine's own, mmseg, mmpretrain;
# and how their configs do.
_REVERSED = '_channel_conversion', 'channel_conversion', 'to_rgb'
_REVERSES = 'bgr_to_rgb', 'rgb_to_bgr', 'to_rgb'


def reverses_channels(preprocessor: dict) -> bool:
    """Whether a data preprocessor reverses the channels of images.

    Args:
        preprocessor (dict): Its config. Where it has means of other than
            three channels, the packages leave their order alone.
    """
    return len(preprocessor.get('mean') or range(3)) == 3 and any(
        preprocessor.get(name) for name in _REVERSES)


class Prepare(nn.Module):
    """Normalization and padding of a data preprocessor, part of the model.

    Args:
        preprocessor (nn.Module): Preprocessor of mmdet, mmseg or mmpretrain.

    Raises:
        ValueError: It changes images in a way that is not known.
    """

    def __init__(self, preprocessor: nn.Module) -> None:
        super().__init__()
        kind = method_of(preprocessor, 'forward')
        flags = [getattr(preprocessor, name) for name in _REVERSED
                 if hasattr(preprocessor, name)]
        if kind not in _KNOWN or not flags:
            raise ValueError(
                f'data_preprocessor is a {type(preprocessor).__name__}, whose '
                f'forward or order of channels is not known '
                f'({", ".join(_KNOWN)} are); wrap the model in a module that '
                'takes and gives tensors and call gdrq_mm.deploy.export_onnx')
        self.scope = _KNOWN[kind]
        self.reversed = any(flags)
        self.enabled = bool(preprocessor._enable_normalize)
        if self.enabled:
            for name in ('mean', 'std'):
                self.register_buffer(
                    name, getattr(preprocessor, name).view(1, -1, 1, 1))
        self.divisor, self.value = 1, 0.
        if self.scope != 'mmseg':
            self.divisor = preprocessor.pad_size_divisor
            self.value = float(preprocessor.pad_value)
        elif preprocessor.test_cfg:
            if preprocessor.test_cfg.get('size'):
                raise ValueError(
                    'data_preprocessor.test_cfg.size cannot be exported; pad '
                    'in the pipeline, or use size_divisor')
            self.divisor = preprocessor.test_cfg.get('size_divisor') or 1
            self.value = float(preprocessor.pad_val)

    def padded(self, length: int) -> int:
        """The length of a side after padding."""
        return (length + self.divisor - 1) // self.divisor * self.divisor

    def leave_out(self) -> None:
        """Take images from now on as this module gives them."""
        self.reversed = self.enabled = False
        self.divisor = 1

    def forward(self, images: Tensor) -> Tensor:
        images = images.float()
        if self.reversed and images.shape[1] == 3:
            images = images.flip(1)
        if self.enabled:
            images = (images - self.mean) / self.std
        if self.divisor == 1:
            return images
        height, width = images.shape[2:]
        return F.pad(images, (0, self.padded(width) - width,
                              0, self.padded(height) - height),
                     value=self.value)


class Deployable(nn.Module):
    """Base: normalization and padding inside, input ``images``.

    Images are float32 or uint8 of shape ``(N, 3, H, W)``, 0 to 255, with the
    channels as the dataset's pipeline gives them (BGR for OpenMMLab's own).
    Parts keep their names, so that layers have those of the original model.
    """
    input_names = ('images', )
    output_names: Tuple[str, ...] = ()

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.prepare = Prepare(model.data_preprocessor)
        self.backbone = model.backbone
        self.neck = model.neck if getattr(model, 'with_neck', False) else \
            nn.Identity()

    def __call__(self, *args, **kwargs):
        with deformable_kernels(), layer_forms():
            return super().__call__(*args, **kwargs)

    def padded_size(self, size: Tuple[int, int]) -> Tuple[int, int]:
        """Height and width of what the network sees."""
        return tuple(map(self.prepare.padded, size))

    def features(self, images: Tensor):
        return self.neck(self.backbone(self.prepare(images)))


class DeployableClassifier(Deployable):
    """An mmpretrain ``ImageClassifier``: images -> scores ``(N, classes)``.

    Raises:
        ValueError: A head whose scores are not known to be a softmax or (of
            several labels) a sigmoid.
    """
    output_names = ('scores', )

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        check_methods('model', model, {'ImageClassifier'},
                      ('predict', 'extract_feat'))
        self.head = model.head
        kinds = {method_of(model.head, name)
                 for name in ('predict', '_get_predictions')}
        if kinds not in ({'ClsHead'}, {'MultiLabelClsHead'}):
            raise ValueError(
                f'head is a {type(model.head).__name__}, whose predictions '
                'are not known to be a softmax or sigmoid; export what comes '
                'before them with --raw (make_deployable(..., raw=True))')
        self.several_labels = kinds == {'MultiLabelClsHead'}

    def forward(self, images: Tensor) -> Tensor:
        logits = self.head(self.features(images))
        return logits.sigmoid() if self.several_labels else \
            F.softmax(logits, dim=1)


class DeployableSegmentor(Deployable):
    """An mmseg ``EncoderDecoder`` (whole images): images -> classes
    ``(N, H, W)``, int64.

    Raises:
        ValueError: The model slides a window, or computes its predictions
            in a way that is not known.
    """
    output_names = ('classes', )

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        check_methods(
            'model', model,
            {'BaseSegmentor', 'EncoderDecoder', 'CascadeEncoderDecoder'},
            ('predict', 'extract_feat', 'inference', 'whole_inference',
             'encode_decode', 'postprocess_result'))
        self.decode_head = model.decode_head
        *_, last = self.heads()
        check_methods('decode_head', last,
                      {'BaseDecodeHead', 'BaseCascadeDecodeHead'},
                      ('predict', 'predict_by_feat'))
        if model.test_cfg.get('mode', 'whole') != 'whole':
            raise ValueError(
                f'test_cfg.mode is {model.test_cfg.mode!r}, which has no '
                "fixed graph; export with test_cfg.mode='whole'")

    def heads(self) -> List[nn.Module]:
        """The only head, or those of a cascade."""
        return list(self.decode_head) if isinstance(
            self.decode_head, nn.ModuleList) else [self.decode_head]

    def forward(self, images: Tensor) -> Tensor:
        size, features = images.shape[2:], self.features(images)
        logits = None
        for head in self.heads():
            logits = head(features) if logits is None else head(
                features, logits)
        logits = F.interpolate(logits, self.padded_size(size), mode='bilinear',
                               align_corners=head.align_corners)
        logits = logits[..., :size[0], :size[1]]
        if logits.shape[1] == 1:  # one class and a threshold
            return (logits.sigmoid() > head.threshold)[:, 0].long()
        return torch.argmax(logits, dim=1)


def make_deployable(model: nn.Module, *, raw: bool = False) -> Deployable:
    """The deployable form of a model; shares its layers.

    Args:
        model (nn.Module): A classifier of mmpretrain, a segmentor of mmseg,
            a detector of mmdet (dense, in two stages or more, with queries).
        raw (bool): What the heads give, before any post-processing; of every
            model with a backbone and one head. Defaults to False.

    Raises:
        ValueError: Another kind of model, or a part that is not supported,
            by name.
    """
    from .raw import DeployableRaw
    if not hasattr(model, 'data_preprocessor'):
        raise ValueError(
            f'{type(model).__name__} cannot be exported as a model of '
            'OpenMMLab, it has no data_preprocessor: give a module that takes '
            'and gives tensors to gdrq_mm.deploy.export_onnx')
    if raw:
        return DeployableRaw(model)
    try:
        return _with_post_processing(model)
    except ValueError as error:
        try:
            DeployableRaw(model)
        except ValueError as refused:
            # The first error may name --raw, which is no way out.
            raise refused from error
        raise


def _with_post_processing(model: nn.Module) -> Deployable:
    kinds = {cls.__name__ for cls in type(model).__mro__}
    if 'ImageClassifier' in kinds:
        return DeployableClassifier(model)
    if 'EncoderDecoder' in kinds:
        return DeployableSegmentor(model)
    if 'DetectionTransformer' in kinds:
        from .queries import DeployableQueryDetector
        return DeployableQueryDetector(model)
    if 'TwoStageDetector' in kinds:
        if method_of(getattr(model, 'rpn_head', None),
                     'predict') == 'EmbeddingRPNHead':
            from .regions import DeployableLearnedRegions
            return DeployableLearnedRegions(model)
        from .two_stage import DeployableTwoStage
        return DeployableTwoStage(model)
    if 'SingleStageDetector' in kinds:
        from .dense import DeployableDenseDetector
        return DeployableDenseDetector(model)
    raise ValueError(
        f'{type(model).__name__} cannot be exported with its post-processing '
        'yet; there are ImageClassifier (mmpretrain), EncoderDecoder (mmseg), '
        'SingleStageDetector, TwoStageDetector and DetectionTransformer '
        '(mmdet); export what comes before it with --raw '
        '(make_deployable(..., raw=True))')
