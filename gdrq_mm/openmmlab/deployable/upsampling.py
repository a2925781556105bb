"""mmseg's upsampling layers, for graphs of any size.

``Upsample`` of mmseg computes its size with ``int(length * 2.)``, which is a
number in a capture: that of the example, whatever the size of images is.
"""
import contextlib
from typing import ContextManager, Iterator

import torch
from torch import Tensor, nn

from ...modes import is_compiling


def _forward(self: nn.Module, x: Tensor) -> Tensor:
    size = self.size
    if not size:
        factors = self.scale_factor if isinstance(
            self.scale_factor, tuple) else (self.scale_factor, ) * 2
        size = [length * int(factor) if factor == int(factor) else
                torch.sym_int(length * factor)
                for length, factor in zip(x.shape[-2:], factors)]
    return nn.functional.interpolate(x, size, None, self.mode,
                                     self.align_corners)


def upsampling_of_any_size() -> ContextManager:
    """In a capture, sizes that mmseg computes follow those of images."""
    return _replaced() if is_compiling() else contextlib.nullcontext()


@contextlib.contextmanager
def _replaced() -> Iterator[None]:
    try:
        from mmseg.models.utils import Upsample
    except ImportError:  # mmseg is not installed
        yield
        return
    before = Upsample.forward
    Upsample.forward = _forward
    try:
        yield
    finally:
        Upsample.forward = before
