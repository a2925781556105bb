"""Graphs for batches and sizes of images other than the example's."""
from typing import Any, Iterable, Iterator, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

DYNAMIC = dict(batch=(0, ), size=(2, 3))  # by name, the axes of images

ENLARGED = (1013, 1277)  # by no power of two, and each side by another


def check_dynamic(dynamic: Sequence[str], example: Tuple[Any, ...]) -> None:
    """Raise where names or inputs are not what can vary.

    Args:
        dynamic (sequence of str): 'batch', 'size' or both.
        example (tuple): What the model is called with.

    Raises:
        ValueError: Names the value.
    """
    if isinstance(dynamic, str):
        raise ValueError(f'dynamic is {dynamic!r}, allowed: a list of '
                         f'{", ".join(DYNAMIC)}')
    for name in dynamic:
        if name not in DYNAMIC:
            raise ValueError(f'dynamic has {name!r}, allowed: '
                             f'{", ".join(DYNAMIC)}')
    if dynamic and not all(isinstance(each, Tensor) and each.dim() == 4
                           for each in example):
        raise ValueError('dynamic takes models of images, whose inputs are '
                         'all tensors of shape (N, C, H, W)')


def dynamic_shapes(dynamic: Sequence[str], model: nn.Module,
                   traced: Tuple[Any, ...]) -> Any:
    """What ``torch.export`` is told of the shapes of inputs.

    Args:
        dynamic (sequence of str): 'batch', 'size' or both; or nothing.
        model (nn.Module): Whose ``forward`` may take ``*images``.
        traced (tuple): From :func:`traced_example`.
    """
    if not dynamic:
        return None
    axes = [axis for name in dynamic for axis in DYNAMIC[name]]
    shapes = torch.export.ShapesCollection()
    for each in traced:
        shapes[each] = {axis: torch.export.Dim.DYNAMIC for axis in axes}
    return shapes.dynamic_shapes(model, traced)


def traced_example(dynamic: Sequence[str], example: Tuple[Any, ...]
                   ) -> Tuple[Any, ...]:
    """An example to capture with; its values are not looked at.

    torch takes one tensor that is given twice for one input, lengths of 1 for
    fixed and equal lengths for the same: more than one image, and so large
    that no level of a pyramid has one row.
    """
    if not dynamic:
        return tree_map(lambda value: value.clone() if isinstance(
            value, Tensor) else value, example)
    more = ('batch' in dynamic, 0, *[
        side if 'size' in dynamic else 0 for side in ENLARGED])
    return tuple(each.new_zeros([
        length + extra for length, extra in zip(each.shape, more)])
        for each in example)


def other_examples(dynamic: Sequence[str], example: Tuple[Any, ...]
                   ) -> Iterator[Tuple[Any, ...]]:
    """Examples of other batches and sizes, to check a file with: higher and
    narrower, then lower and wider."""
    for copies, factors in ((2, (1.25, .75)), (3, (.75, 1.25))) if dynamic \
            else ():
        changed = example
        if 'size' in dynamic:
            changed = tuple(F.interpolate(
                each.float(), [int(side * factor) + 1 for side, factor in zip(
                    each.shape[2:], factors)], mode='nearest').to(each.dtype)
                for each in changed)
        if 'batch' in dynamic:
            # Not the same image again: each is turned once more.
            changed = tuple(torch.cat([each.roll(7 * number, 3)
                                       for number in range(copies)])
                            for each in changed)
        yield changed


def checked_examples(dynamic: Sequence[str], example: Tuple[Any, ...]
                     ) -> Iterator[Tuple[Any, ...]]:
    """What a graph is compared with its model on: the example, whose lengths
    were not those of the capture; one image of it, on its side (another
    parity than the other sizes have, where they are even); and
    :func:`other_examples`.
    """
    if not dynamic:
        return
    yield example
    one = tuple(each[:1] if 'batch' in dynamic else each for each in example)
    yield tuple(each.transpose(2, 3).contiguous() for each in one) \
        if 'size' in dynamic else one
    yield from other_examples(dynamic, example)


def check_least(program: torch.export.ExportedProgram,
                example: Tuple[Any, ...]) -> None:
    """Raise where a graph with a dynamic size is for larger images only.

    torch takes lengths of 1 for fixed: no level of a pyramid may have one
    row.

    Args:
        program (ExportedProgram): The graph, of a dynamic size.
        example (tuple): What it is called with, beside what it is checked
            with (:func:`other_examples`).

    Raises:
        RuntimeError: Names the sides of the images and the least ones.
    """
    ranges = program.range_constraints
    inputs = [node.meta['val'].shape for node in program.graph.nodes
              if node.name in program.graph_signature.user_inputs]
    for lengths, *images in zip(inputs, example, *other_examples(
            ['size'], example)):
        for axis in DYNAMIC['size']:
            symbol = getattr(lengths[axis], 'node', None)
            if symbol is None or symbol.expr not in ranges:
                continue
            least = int(ranges[symbol.expr].lower)
            smallest = min(each.shape[axis] for each in images)
            if smallest < least:
                raise RuntimeError(
                    'with dynamic size the model takes images of at least '
                    f'{least} pixels a side (else a level of its pyramid has '
                    f'one row), and is checked at {smallest}, .75 of the '
                    'example; export with larger images (--shape), or '
                    'with a fixed size')


@torch.no_grad()
def check_others(graph: nn.Module, model: nn.Module,
                 examples: Iterable[Tuple[Any, ...]]) -> None:
    """Raise where a graph gives other outputs than its model.

    What a model computes with Python's numbers (``int(length * 2.)``) has in
    a graph the value that it had in the capture.

    Args:
        graph (nn.Module): From ``torch.export``.
        model (nn.Module): What was captured.
        examples (iterable of tuple): From :func:`other_examples`.

    Raises:
        RuntimeError: Names the shape of the images and what differs.
    """
    for example in examples:
        shape = ' x '.join(map(str, example[0].shape))
        failed = f'with dynamic batch or size, for images of {shape} '
        remedy = ('; something computes with a batch or size of its own: '
                  'export with a fixed one')
        expected = tree_leaves(model(*example))
        try:
            found = tree_leaves(graph(*example))
        except Exception as error:  # whatever its operators raise
            raise RuntimeError(
                f'{failed}the graph fails ({error}){remedy}') from error
        for number, (ours, theirs) in enumerate(zip(found, expected)):
            if ours.shape != theirs.shape or _differs(ours, theirs):
                raise RuntimeError(
                    f'{failed}output {number} of the graph is not that of the '
                    f'model{remedy}')


def _differs(ours: Tensor, theirs: Tensor) -> bool:
    """Whether more than some values are others; one that rounding changes
    may have become another code."""
    if not theirs.numel():
        return False
    if ours.dtype.is_floating_point:
        size = theirs.abs().amax().clamp(max=torch.finfo(theirs.dtype).max)
        same = torch.isclose(ours, theirs, rtol=1e-3, atol=float(1e-4 * size),
                             equal_nan=True)
    else:
        same = ours == theirs
    return bool(same.float().mean() < .999)
