"""Layers of the packages in forms that graphs hold.

``Upsample`` of mmseg computes its size with ``int(length * 2.)``, which is a
number in a capture: that of the example, whatever the size of images is.
``CornerPool`` of mmcv takes the greatest value so far, for which ONNX has no
operator; a maximum over a window that reaches to the end is the same.
"""
import contextlib
import importlib
from typing import ContextManager, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...modes import is_compiling


def _upsample(self: nn.Module, x: Tensor) -> Tensor:
    size = self.size
    if not size:
        factor = self.scale_factor
        size = [length * int(factor) if factor == int(factor) else
                torch.sym_int(length * factor) for length in x.shape[-2:]]
    return F.interpolate(x, size, None, self.mode, self.align_corners)


def _corner_pool(self: nn.Module, x: Tensor) -> Tensor:
    axis, from_the_end = self.cummax_dim_flip[self.mode]
    length = x.shape[axis]
    before, after = (0, length - 1) if from_the_end else (length - 1, 0)
    least = torch.finfo(x.dtype).min
    if axis == 2:
        return F.max_pool2d(F.pad(x, (0, 0, before, after), value=least),
                            (length, 1), 1)
    return F.max_pool2d(F.pad(x, (before, after), value=least),
                        (1, length), 1)


# Module, class -> its forward in a capture.
FORMS = {('mmseg.models.utils.wrappers', 'Upsample'): _upsample,
         ('mmcv.ops.corner_pool', 'CornerPool'): _corner_pool}


def layer_forms() -> ContextManager:
    """In a capture, such layers compute the same in their other form."""
    return _replaced() if is_compiling() else contextlib.nullcontext()


@contextlib.contextmanager
def _replaced() -> Iterator[None]:
    before = {}
    for (module, name), forward in FORMS.items():
        try:
            kind = getattr(importlib.import_module(module), name)
        except ImportError:  # that package is not installed, or mmcv-lite
            continue
        before[kind] = kind.forward
        kind.forward = forward
    try:
        yield
    finally:
        for kind, forward in before.items():
            kind.forward = forward
