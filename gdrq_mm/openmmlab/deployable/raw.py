"""Tensors in, tensors out: what heads give before post-processing."""
import inspect
import itertools
from typing import Any, List, Optional, Sequence, Tuple

from torch import Tensor, nn

from .boxes import method_of
from .lengths import known_lengths
from .whole import DeployableWhole

# The head of a model, by the names that the packages have for it.
HEADS = ('bbox_head', 'mask_head', 'panoptic_head')
FIRST_STAGE = 'rpn_head'
# Class whose forward a mask head has -> its part that reads the image alone,
# and whether of the first level only; the rest makes masks of boxes.
PROTOTYPES = dict(YOLACTProtonet=('protonet', True),
                  CondInstMaskHead=('mask_feature_head', False))


class DeployableRaw(DeployableWhole):
    """What the package's own ``mode='tensor'`` gives, by name.

    Names are those of the arguments of mmdet's ``predict_by_feat`` with the
    number of the level, ``cls_scores.0``, where the head hands its outputs to
    it; else 'logits' (of several tasks ``logits.task``) or, of several
    outputs, their numbers, ``outputs.0``. Of two-stage detectors it is the
    first stage.

    Where ``mode='tensor'`` takes more than images, it is what comes before
    that: with masks of boxes the outputs for boxes, and ``prototypes``; of a
    detector that is given its regions ``features.0``, ..., by level; of a
    segmentor that refines points the ``logits`` that it refines.

    Args:
        model (nn.Module): A model of mmdet, mmseg or mmpretrain.

    Raises:
        ValueError: Its data preprocessor is not known, or no part of it takes
            images alone, by name.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        name = next((
            name for name in (*HEADS, FIRST_STAGE)
            if isinstance(getattr(model, name, None), nn.Module)), None)
        head = getattr(model, name or '', None)
        _check_parts(model, head)
        self.masks_boxes = _takes_annotations(model)
        self.needs_regions = head is None and getattr(
            model, 'roi_head', None) is not None
        self.refines_points = _refines_points(model)
        self.first_stage = name == FIRST_STAGE
        # mmseg's forward tells its heads nothing.
        self.tells_head = _takes_samples(getattr(model, 'decode_head', None))
        # mmdet's transformers and mask heads; where they are not read, graphs
        # need no fixed number of images.
        self.reads_samples = self.tells_head or (
            self.prepare.scope == 'mmdet'
            and method_of(model, '_forward') != 'SingleStageDetector')
        self.arguments = _arguments(head)

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        return tuple(value for _, value in self.named(images))

    def named(self, images: Tensor) -> List[Tuple[str, Tensor]]:
        """Outputs with their names."""
        if self.masks_boxes:
            features = self.features(images)
            part, first = PROTOTYPES[method_of(self.mask_head, 'forward')]
            prototypes = getattr(self.mask_head, part)(
                features[0] if first else features)
            return [*self.with_names(self.bbox_head(features)),
                    ('prototypes', prototypes)]
        if self.needs_regions:
            return _flat(dict(features=self.features(images)))
        return self.with_names(self.outputs(images))

    def with_names(self, outputs: Any) -> List[Tuple[str, Tensor]]:
        """Outputs with the names that the head has for them."""
        if not isinstance(outputs, (tuple, list)):
            return _flat(dict(logits=outputs))
        least = sum(each.default is each.empty for each in self.arguments)
        inner = outputs[0] if len(outputs) == 1 else outputs
        for found in (outputs, inner):
            if isinstance(found, (tuple, list)) and self.arguments and (
                    least <= len(found) <= len(self.arguments)):
                return _flat({argument.name: value for argument, value in zip(
                    self.arguments, found)})
        return _flat(dict(outputs=inner))

    def outputs(self, images: Tensor) -> Any:
        """Outputs as the package nests them."""
        inputs = self.prepared(images)
        if self.first_stage:
            return self.rpn_head(self.model.extract_feat(inputs))
        if self.refines_points:
            return _coarse(self.decode_head, self.model.extract_feat(inputs))
        samples = self.samples(len(images), tuple(images.shape[2:])) \
            if self.reads_samples else None
        with known_lengths():
            if self.tells_head:
                return self.decode_head(self.model.extract_feat(inputs),
                                        samples)
            return self.model.forward(inputs, samples, mode='tensor')

    def names_for(self, images: Tensor) -> Tuple[str, ...]:
        """Names of the outputs for such images."""
        return tuple(name for name, _ in self.named(images))


def _check_parts(model: nn.Module, head: Optional[nn.Module]) -> None:
    """Raise where no part takes images alone.

    Raises:
        ValueError: Names the part and its function.
    """
    if head is not None and type(head).forward is nn.Module.forward:
        name, part = FIRST_STAGE, head
        reason = ('forward is not defined (where all parts are known, its '
                  'boxes are exported without --raw)')
    elif _takes_annotations(model) and \
            method_of(model.mask_head, 'forward') not in PROTOTYPES:
        name, part = 'mask_head', model.mask_head
        reason = f'forward is not known ({", ".join(PROTOTYPES)} are)'
    else:
        return
    raise ValueError(
        f'{name} is a {type(part).__name__}, whose {reason}, so that it has '
        'no raw outputs of images alone; wrap the parts that you need in a '
        'module that takes and gives tensors and call '
        'gdrq_mm.deploy.export_onnx')


def _takes_annotations(model: nn.Module) -> bool:
    """Whether ``_forward`` takes the boxes of annotations for masks."""
    return method_of(model, '_forward') == 'SingleStageInstanceSegmentor' \
        and model.with_bbox


def _refines_points(model: nn.Module) -> bool:
    """Whether the last of some heads of mmseg takes features of points."""
    heads = getattr(model, 'decode_head', None)
    return isinstance(heads, nn.ModuleList) and \
        method_of(heads[-1], 'forward') == 'PointHead'


def _coarse(heads: nn.ModuleList, features: Sequence[Tensor]) -> Tensor:
    """Logits of a cascade of heads without the last one."""
    first, *others = heads[:-1]
    logits = first(features)
    for head in others:
        logits = head(features, logits)
    return logits


def _takes_samples(head: Optional[nn.Module]) -> bool:
    """Whether a head of mmseg is to be told of the images."""
    return head is not None and 'batch_data_samples' in inspect.signature(
        type(head).forward).parameters  # on the object, it may be wrapped


def _arguments(head: Optional[nn.Module]) -> List[inspect.Parameter]:
    """Arguments of ``predict_by_feat`` that are outputs of the head.

    None where it is not known that they are: mmdet's ``predict`` of some
    heads, such as of masks, does not call a method that they inherit.
    """
    predict = inspect.unwrap(getattr(type(head), 'predict', _arguments))
    if not predict.__module__.startswith('mmdet.') or \
            'predict_by_feat' not in predict.__code__.co_names:
        return []
    found = inspect.signature(head.predict_by_feat).parameters
    return list(itertools.takewhile(
        lambda each: each.name != 'batch_img_metas', found.values()))


def _flat(value: Any, name: str = '') -> List[Tuple[str, Tensor]]:
    """Tensors in nested outputs, with dotted names."""
    if isinstance(value, Tensor):
        return [(name, value)]
    if isinstance(value, dict):
        parts = value.items()
    elif isinstance(value, (tuple, list)):
        parts = enumerate(value)
    else:
        return []
    return [found for key, part in parts
            for found in _flat(part, f'{name}.{key}'.strip('.'))]
