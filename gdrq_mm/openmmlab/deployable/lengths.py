"""Lengths that a model keeps in tensors, as numbers while it is captured.

Attention on sampled points (Deformable DETR, DINO, Mask2Former) splits its
input by the sizes of levels, which mmdet reads with ``torch._shape_as_tensor``
and computes with. A capture knows no values of tensors; these it can know.
"""
import contextlib
from typing import Any, ContextManager, Iterator

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map

from ...modes import is_compiling


def known_lengths() -> ContextManager:
    """In a capture, what is computed from lengths alone has its values."""
    return _KnownLengths() if is_compiling() else contextlib.nullcontext()


class _Known(Tensor):
    """A tensor with values, beside the capture."""


class _KnownLengths(TorchFunctionMode):
    """Computes with lengths outside of the graph; what meets a tensor of the
    graph goes into that as a constant."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        tensors = [each for each in tree_leaves((args, kwargs))
                   if isinstance(each, Tensor)]
        if func is torch._shape_as_tensor:
            shape = tuple(args[0].shape)
            with _beside_the_capture():
                return torch.tensor(shape).as_subclass(_Known)
        known = [isinstance(each, _Known) for each in tensors]
        if not any(known):
            return func(*args, **kwargs)
        if not all(known):
            args, kwargs = tree_map(_constant, (args, kwargs))
            return func(*args, **kwargs)
        with _beside_the_capture():
            args, kwargs = tree_map(_plain, (args, kwargs))
            return tree_map(lambda value: value.as_subclass(_Known)
                            if isinstance(value, Tensor) else value,
                            func(*args, **kwargs))


@contextlib.contextmanager
def _beside_the_capture() -> Iterator[None]:
    with torch._C._DisableTorchDispatch(), torch._C.DisableTorchFunction():
        yield


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, _Known) else value


def _constant(value: Any) -> Any:
    """A known tensor in the graph."""
    if not isinstance(value, _Known):
        return value
    with _beside_the_capture():
        values, dtype = value.tolist(), value.dtype
    return torch.tensor(values, dtype=dtype)
