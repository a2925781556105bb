"""What distillation compares, and how far apart two outputs are."""
from dataclasses import dataclass
from typing import Any, Dict, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..config.schemes import build
from ..errors import check
from ..quantizers import is_number

KINDS = ('softmax', 'sigmoid', 'l2')


@dataclass(frozen=True)
class DistillConfig:
    """How the float model teaches the quantized one.

    Args:
        weight (float): Factor of the distillation losses, which are added
            to those of the model. Defaults to 1.
        temperature (float): By which class scores are divided before they
            are compared; the losses are multiplied by its square. Defaults
            to 2.
        teacher (str): Checkpoint of the float model. Defaults to None: the
            one that the training starts with (``load_from``).
        outputs (dict): What to compare: name of a module, or a pattern whose
            ``*`` stands for one part of a dotted name, -> ``'softmax'``
            (class scores of which one is right), ``'sigmoid'`` (each class
            by itself) or ``'l2'`` (boxes, features). Defaults to None: the
            outputs of the model's heads.

    Raises:
        ValueError: A value that is not allowed.
    """
    weight: float = 1.
    temperature: float = 2.
    teacher: Optional[str] = None
    outputs: Optional[Dict[str, str]] = None

    def __post_init__(self) -> None:
        for name in ('weight', 'temperature'):
            value = getattr(self, name)
            check(is_number(value) and 0 < value < float('inf'),
                  f'distill.{name}', value, 'a number > 0')
        check(self.teacher is None or isinstance(self.teacher, str),
              'distill.teacher', self.teacher, 'the path of a checkpoint')
        check(self.outputs is None or (
            isinstance(self.outputs, dict) and len(self.outputs) > 0),
            'distill.outputs', self.outputs,
            "a dict such as {'head.fc': 'softmax'}")
        for name, kind in (self.outputs or {}).items():
            check(kind in KINDS, f'distill.outputs[{name!r}]', kind,
                  ', '.join(map(repr, KINDS)))

    @classmethod
    def from_dict(cls, values: Any) -> 'DistillConfig':
        """Build it from a dict.

        Raises:
            ValueError: An unknown field or a value that is not allowed.
        """
        check(isinstance(values, dict), 'distill', values,
              'a dict such as dict(weight=1., temperature=2.)')
        return build(cls, values, 'distill')


@dataclass(frozen=True)
class Output:
    """Modules of one kind of output, whose losses are one entry of the log.

    Args:
        label (str): Name of that entry, after ``loss_distill_``.
        modules (tuple[str]): Names of the modules.
        kind (str): One of ``KINDS``.
        weight (float): Times ``weight`` of :class:`DistillConfig`. Defaults
            to 1.
        classes (int, optional): Number of classes of ``'softmax'`` where
            several anchors share the channels. Defaults to None: all channels
            are classes.
    """
    label: str
    modules: Tuple[str, ...]
    kind: str
    weight: float = 1.
    classes: Optional[int] = None


@dataclass(frozen=True)
class Branch:
    """A part of a model that works on what the model proposes.

    Args:
        features (str): Module whose output the branch reads: the first of
            the inputs of its first module, or as many as that one takes.
        modules (tuple[str]): Modules that are called one after the other.
            What else the first one gets, boxes for example, the teacher gets
            from the student.
    """
    features: str
    modules: Tuple[str, ...]

    def holds(self, name: str) -> bool:
        """Whether a module is part of it."""
        return any(f'{name}.'.startswith(f'{module}.')
                   for module in self.modules)


def divergence(kind: str, student: Sequence[Tensor],
               teacher: Sequence[Tensor], temperature: float,
               dim: int = 1, classes: Optional[int] = None) -> Tensor:
    """How far outputs of the student are from those of the teacher.

    With softmax or sigmoid, the Kullback-Leibler divergence of the student's
    probabilities from the teacher's at a temperature, times its square, as
    gradients are smaller by that. Computed in float32 or better, over all
    tensors at once.

    Args:
        kind (str): ``'softmax'``: mean over all places (images, pixels,
            boxes); ``'sigmoid'``: sum over the sum of the teacher's
            probabilities at temperature 1 (and at least 1), because few
            of thousands of anchors hold anything; ``'l2'``: mean squared
            error.
        student (sequence[Tensor]): Logits or values, of any shapes.
        teacher (sequence[Tensor]): As many, with the same shapes.
        temperature (float): What classes are divided by; ``'l2'`` ignores
            it.
        dim (int): Classes of ``'softmax'``, as many in all tensors. Defaults
            to 1.
        classes (int, optional): How many of them are those of one anchor.
            Defaults to None: all.

    Returns:
        Tensor: Scalar; 0 where there are no elements.
    """
    def joined(tensors: Sequence[Tensor]) -> Tensor:
        dtype = torch.promote_types(tensors[0].dtype, torch.float32)
        return torch.cat([
            each.to(dtype).movedim(dim, -1).reshape(
                -1, classes or each.shape[dim])
            if kind == 'softmax' else each.to(dtype).flatten()
            for each in tensors])

    ours, theirs = joined(student), joined(teacher)
    if not ours.numel():
        return ours.sum()
    if kind == 'l2':
        return F.mse_loss(ours, theirs)
    q, p = ours / temperature, theirs / temperature
    if kind == 'softmax':
        found = F.kl_div(F.log_softmax(q, -1), F.log_softmax(p, -1),
                         reduction='none', log_target=True).sum(-1).mean()
    else:
        each = p.sigmoid() * (F.logsigmoid(p) - F.logsigmoid(q)) \
            + (-p).sigmoid() * (F.logsigmoid(-p) - F.logsigmoid(-q))
        found = each.sum() / theirs.sigmoid().sum().clamp(min=1)
    return found * temperature**2
