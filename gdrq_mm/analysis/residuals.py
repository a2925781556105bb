"""Outputs that integer kernels round to 8 bits, read off a real forward.

Which tensors have more than one reader, or none that quantizes them, does
not follow from names: it is seen in the graph that the export captures.
"""
import glob
import itertools
import re
from collections import Counter
from typing import Dict, Iterator, List, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node

from ..config.patterns import match_output
from ..errors import did_you_mean
from ..integer.graph import LAYERS, capture, layer_of, target_of
from ..integer.integer import find_sites
from ..merge import merge, merged_layers


class Residuals(NamedTuple):
    """Where an integer model adds 8-bit rounding.

    Args:
        outputs (list[str]): Modules that return such a tensor.
        others (list[str]): Modules inside which there are tensors of that
            kind that no module returns; one entry per tensor.
    """
    outputs: List[str]
    others: List[str]


@torch.no_grad()
def residual_outputs(model: nn.Module, *example: Tensor) -> Residuals:
    """Find the outputs to quantize in training (``residual.outputs``).

    Args:
        model (nn.Module): A quantized model with thresholds; tensors in and
            out.
        *example (Tensor): What it is called with.

    Raises:
        ValueError: The model cannot be merged, see
            :func:`gdrq_mm.deploy.merge`.
    """
    merged = merge(model, *example)
    graph = capture(merged, example)
    calls = _count_calls(merged, example)
    layers = merged_layers(merged)
    outputs, sums = find_sites(graph)
    sites = [(node, list(_returned_by(node))) for node in sums]
    for node, act, grid in outputs:
        if grid is None and LAYERS[target_of(node)] == 'conv2d':
            layer = layer_of(node)
            behind = [] if act is node else list(_returned_by(act))
            sites.append((node, [*behind, layers[layer].norm or layer]))
    # A module that is called elsewhere too, as the one ReLU of a block, would
    # round there as well.
    times = Counter(itertools.chain(*(names for _, names in sites)))
    found, others = set(), []
    for node, names in sites:
        name = next((name for name in names if times[name] == calls[name]),
                    None)
        if name is None:
            others.append(_modules_of(node)[-1] or 'the model itself')
        else:
            found.add(name)
    return Residuals([name for name, _ in merged.named_modules()
                      if name in found], others)


def _count_calls(model: nn.Module, example: tuple) -> Dict[str, int]:
    """How often modules return one tensor; without containers."""
    calls, handles = Counter(), []

    def watch(name):
        def hook(module, args, output):
            calls[name] += isinstance(output, Tensor)
        return hook

    for name, module in model.named_modules():
        if name and not isinstance(module, nn.Sequential):
            handles.append(module.register_forward_hook(watch(name)))
    try:
        model(*example)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def _modules_of(node: Node) -> List[str]:
    """Names of the modules whose forward computes a node, outermost first."""
    stack = node.meta.get('nn_module_stack') or {}
    return [name for name, _ in stack.values()]


def _returned_by(node: Node) -> Iterator[str]:
    """Modules that compute a node and do not read it, innermost first."""
    for name in reversed(_modules_of(node)):
        if name and not any(name in _modules_of(user)
                            for user in node.users):
            yield name


def shortest_patterns(names: List[str], model: nn.Module) -> List[str]:
    """Patterns that match these modules of a model and no others.

    Numbers become ``*`` where that says the same with fewer patterns.

    Raises:
        ValueError: The model has no module of that name.

    Examples:
        >>> model = nn.ModuleDict(dict(a1=nn.ReLU(), a2=nn.ReLU()))
        >>> shortest_patterns(['a1', 'a2'], model)
        ['a*']
    """
    modules = {name: module for name, module in model.named_modules(
        remove_duplicate=False) if name}
    for name in names:
        if name not in modules:
            raise ValueError(f'the model has no module {name!r}; '
                             f'{did_you_mean(name, list(modules))}')
    wanted = {modules[name] for name in names}
    left, patterns = list(names), []
    while left:
        parts = [sorted({part, re.sub(r'\d+$', '*', part)})
                 for part in map(glob.escape, left[0].split('.'))]
        # All of them match left[0], so that it is done with.
        matches = {
            pattern: [name for name in modules if match_output(name, pattern)]
            for pattern in map('.'.join, itertools.product(*parts))}
        allowed = [pattern for pattern, matched in matches.items()
                   if {modules[name] for name in matched} <= wanted]
        # The most names that are left; of those the fewest asterisks.
        best = max(allowed, key=lambda pattern: (
            len(set(matches[pattern]) & set(left)), -pattern.count('*')))
        patterns.append(best)
        left = [name for name in left if name not in matches[best]]
    return patterns
