"""Compare the operators between quantized layers, and behind the last one.

Values next to a rounding boundary, or next to each other where they are
sorted, may come out otherwise in a file than in PyTorch, and all that follows
then differs. So each layer, and each choice among boxes or scores, gives what
it gave in the file: all else must be equal.
"""
import math
import warnings
from typing import Any, Dict, Mapping, NamedTuple, Sequence, Set

import numpy as np
import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.utils._pytree import tree_flatten

from ..integer.moves import target_of
from ..merge.ops import OPS
from . import detection_ops  # noqa: F401, defines OPS.nms, OPS.top

TOLERANCE = 1e-3  # of a value, relative to the greatest of its tensor
SHARE = 1e-2  # of the values of a tensor that may be off
FEW = 4  # and so many of the codes of small ones
_aten = torch.ops.aten
# By operator, the place of the scores that it chooses by.
CHOICES = {OPS.nms.default: 1, OPS.top.default: 0}
# Equal values may come in another order: whole rows differ then.
SORTS = {_aten.topk.default, _aten.sort.default, _aten.sort.stable,
         _aten.argsort.default}


class LayerCall(NamedTuple):
    """A call of a quantized layer in a file.

    Args:
        name (str): Its name in the file.
        node (Node): The call in the graph of the model.
        read (Tensor): The codes that the file's layer read.
        expected (Tensor): What the model's layer gives for these.
        found (Tensor): What the file's layer gave.
    """
    name: str
    node: Node
    read: Tensor
    expected: Tensor
    found: Tensor


class _OnResults(Interpreter):
    """A model on what the layers and choices of a file gave.

    Args:
        module (GraphModule): The model's graph.
        calls (sequence[LayerCall]): All calls of layers.
        values (mapping[str, ndarray]): Other values of the file, by name.

    Attributes:
        off (dict[str, float]): By what is off, the share of its values.
        doubtful (set[str]): What of it may be a matter of order.
        sorted (bool): Whether equal values may have changed places.
    """

    def __init__(self, module: GraphModule, calls: Sequence[LayerCall],
                 values: Mapping[str, np.ndarray]) -> None:
        super().__init__(module)
        self.calls = {each.node: each for each in calls}
        self.chosen = {node: torch.from_numpy(values[name]) for name, node
                       in choices(module).items() if name in values}
        self.off: Dict[str, float] = {}
        self.doubtful: Set[str] = set()
        self.sorted = any(
            target_of(node) in SORTS or target_of(node) in CHOICES
            and node not in self.chosen for node in module.graph.nodes)

    def run_node(self, node: Node) -> Any:
        if node in self.calls:
            call, (codes, *_) = self.calls[node], self.arguments(node)
            self.compare(f'the codes that {call.name} reads', codes,
                         call.read.view(codes.shape), FEW)
            # Linear layers of files read rows.
            return call.found if call.found.dim() == codes.dim() else \
                call.found.reshape(*codes.shape[:-1], -1)
        value = super().run_node(node)
        if node not in self.chosen:
            return value
        name = f'the scores that {node.name} chooses'
        scores = self.arguments(node)[CHOICES[target_of(node)]]
        self.compare(name, *(
            torch.where(each < 0, 0., scores.gather(1, each.clamp(0)))
            for each in (value, self.chosen[node])))
        if target_of(node) is OPS.nms.default:
            # Of two that score the same, the first one suppresses others.
            self.doubtful.add(name)
        return self.chosen[node]

    def arguments(self, node: Node) -> tuple:
        """What a node reads."""
        return self.fetch_args_kwargs_from_env(node)[0]

    def compare(self, name: str, ours: Tensor, theirs: Tensor, few: int = 0
                ) -> None:
        """Take note of tensors that are not equal but for ``few`` values, or
        a share of those that are there: neither zero nor a label below 0."""
        allowed, there = 0., (ours >= 0) | (theirs >= 0)
        if ours.is_floating_point() and ours.numel():
            allowed = TOLERANCE * float(
                ours.abs().nan_to_num(0., 0.).max())
            there = (ours.abs() > allowed) | (theirs.abs() > allowed)
        ours, theirs = ours.double(), theirs.double()
        off = ~torch.isclose(theirs, ours, rtol=0, atol=allowed,
                             equal_nan=True)
        if off.sum() > max(few, SHARE * float(there.sum())):
            self.off[name] = float(off.sum() / there.sum().clamp(1))
        if (theirs.isnan() & ~ours.isnan()).any():
            self.off[name] = float('nan')


def choices(module: GraphModule) -> Dict[str, Node]:
    """Choices among boxes or scores, by the names that torch's exporter gives
    to their results."""
    found: Dict[str, Node] = {}
    for target in CHOICES:
        name = target._schema.name.rpartition('::')[2]
        nodes = [node for node in module.graph.nodes
                 if target_of(node) is target]
        found.update((f'{name}_{number}' if number else name, node)
                     for number, node in enumerate(nodes))
    return found


def check_between(module: GraphModule, example: tuple,
                  calls: Sequence[LayerCall],
                  values: Mapping[str, np.ndarray], outputs: Sequence[str]
                  ) -> None:
    """All operators that are no quantized layer must give the same.

    Args:
        module (GraphModule): The graph that the file was made of.
        example (tuple): What both were run on.
        calls (sequence[LayerCall]): All calls of layers in the file.
        values (mapping[str, ndarray]): Values of the file by name: outputs,
            and results of :func:`choices`.
        outputs (sequence[str]): Names of the outputs.

    Raises:
        RuntimeError: They do not. It is a warning where this may be a matter
            of the order of equal values.
    """
    given = _OnResults(module, calls, values)
    results = tree_flatten(given.run(*example))[0]
    for name, ours in zip(outputs, results):
        given.compare(name, ours, torch.from_numpy(values[name]))
    if not given.off:
        return
    off = ', '.join(f'{share:.1%} of {name}'
                    for name, share in given.off.items())
    text = (f'an operator between quantized layers, or behind the last one, '
            f'computes something else: given what the layers gave, {off} '
            'differ from those of the model')
    doubtful = given.sorted or given.off.keys() <= given.doubtful
    if not doubtful or any(map(math.isnan, given.off.values())):
        raise RuntimeError(
            f'{text}; nothing was written. Compute it otherwise, or, where '
            'it is post-processing, leave it out (--raw, or '
            'make_deployable(..., raw=True))')
    warnings.warn(f'{text}, unless equal values were sorted in another order; '
                  'compare the metric (gdrq export --eval) before you use '
                  'the file')


def difference(expected, results: Sequence[np.ndarray]) -> float:
    """Greatest difference of outputs, relative to their greatest values; of
    integers the share that differs."""
    found, expected = [0.], tree_flatten(expected)[0]
    if len(expected) != len(results):
        raise ValueError(
            f'the file has {len(results)} outputs, the model '
            f'{len(expected)}; return tensors alone, each of them once')
    for ours, theirs in zip(expected, results):
        theirs = torch.from_numpy(theirs)
        if not ours.is_floating_point():  # labels: the share that differs
            found.append(float((ours != theirs).float().mean()))
        elif ours.numel():
            ours, theirs = ours.double(), theirs.double()
            found.append(float(
                (ours - theirs).abs().max() / ours.abs().max().clamp(1e-30)))
    # Python's max() loses a NaN.
    return float(torch.tensor(found, dtype=torch.float64).max())
