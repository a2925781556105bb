"""Tensors in, tensors out: what heads give before post-processing."""
import inspect
from typing import Any, List, Tuple

from torch import Tensor, nn

from ..scopes import SAMPLES
from .models import Deployable

# The head of a model, by the names that the packages have for it.
HEADS = ('bbox_head', 'mask_head', 'panoptic_head', 'decode_head', 'head')
FIRST_STAGE = 'rpn_head'


class DeployableRaw(Deployable):
    """The outputs of a head before post-processing, by name.

    Names are those of the arguments of mmdet's ``predict_by_feat`` with the
    number of the level, ``cls_scores.0``, or 'logits' and, of several
    outputs, ``logits.0``. Of two-stage detectors it is the first stage.

    Args:
        model (nn.Module): With a backbone and a head.

    Raises:
        ValueError: The model has no head that is called with features alone.
    """

    def __init__(self, model: nn.Module) -> None:
        scope = type(model).__module__.partition('.')[0]
        super().__init__(model, scope if scope in SAMPLES else _scope(model))
        self.head_name = next((
            name for name in (*HEADS, FIRST_STAGE)
            if isinstance(getattr(model, name, None), nn.Module)), None)
        if self.head_name is None or isinstance(
                getattr(model, self.head_name), nn.ModuleList):
            raise ValueError(
                f'{type(model).__name__} has no single head that is called '
                f'with features ({", ".join((*HEADS, FIRST_STAGE))}); wrap '
                'the model in a module that takes and gives tensors and call '
                'gdrq_mm.deploy.export_onnx')
        self.add_module(self.head_name, getattr(model, self.head_name))
        by_feat = getattr(
            getattr(model, self.head_name), 'predict_by_feat', None)
        self.arguments = list(inspect.signature(by_feat).parameters) \
            if by_feat is not None and hasattr(model, 'bbox_head') or \
            self.head_name == FIRST_STAGE else []

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        return tuple(value for _, value in self.named(images))

    def named(self, images: Tensor) -> List[Tuple[str, Tensor]]:
        """Outputs with their names."""
        outputs = getattr(self, self.head_name)(self.features(images))
        if isinstance(outputs, (tuple, list)) and len(outputs) <= len(
                self.arguments):
            return _flat(dict(zip(self.arguments, outputs)))
        return _flat(dict(logits=outputs))

    def names_for(self, images: Tensor) -> Tuple[str, ...]:
        """Names of the outputs for such images."""
        return tuple(name for name, _ in self.named(images))


def _scope(model: nn.Module) -> str:
    """The package of a user's own model: that of its preprocessor."""
    return type(model.data_preprocessor).__module__.partition('.')[0]


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
