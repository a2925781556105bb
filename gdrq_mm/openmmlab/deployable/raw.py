"""Tensors in, tensors out: what heads give before post-processing."""
import inspect
from typing import Any, List, Tuple

from torch import Tensor, nn

from .boxes import method_of
from .whole import DeployableWhole

# The head of a model, by the names that the packages have for it.
HEADS = ('bbox_head', 'mask_head', 'panoptic_head')
FIRST_STAGE = 'rpn_head'


class DeployableRaw(DeployableWhole):
    """What the package's own ``mode='tensor'`` gives, by name.

    Names are those of the arguments of mmdet's ``predict_by_feat`` with the
    number of the level, ``cls_scores.0``, or 'logits' and, of several
    outputs, ``logits.0``, ``logits.task``. Of two-stage detectors it is the
    first stage.

    Args:
        model (nn.Module): A model of mmdet, mmseg or mmpretrain.

    Raises:
        ValueError: Its data preprocessor is not known.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        head = next((
            name for name in (*HEADS, FIRST_STAGE)
            if isinstance(getattr(model, name, None), nn.Module)), None)
        self.first_stage = head == FIRST_STAGE
        # mmdet's transformers and mask heads; where they are not read, graphs
        # need no fixed number of images.
        self.reads_samples = self.prepare.scope == 'mmdet' and method_of(
            model, '_forward') != 'SingleStageDetector'
        by_feat = getattr(getattr(model, head or '', None),
                          'predict_by_feat', None)
        self.arguments = list(inspect.signature(by_feat).parameters) \
            if by_feat is not None else []

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        return tuple(value for _, value in self.named(images))

    def named(self, images: Tensor) -> List[Tuple[str, Tensor]]:
        """Outputs with their names."""
        inputs = self.prepare(images)
        if self.first_stage:
            outputs = self.rpn_head(self.model.extract_feat(inputs))
        else:
            samples = self.samples(len(images), tuple(images.shape[2:])) \
                if self.reads_samples else None
            outputs = self.model.forward(inputs, samples, mode='tensor')
        if isinstance(outputs, (tuple, list)) and len(outputs) <= len(
                self.arguments):
            return _flat(dict(zip(self.arguments, outputs)))
        return _flat(dict(logits=outputs))

    def names_for(self, images: Tensor) -> Tuple[str, ...]:
        """Names of the outputs for such images."""
        return tuple(name for name, _ in self.named(images))


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
