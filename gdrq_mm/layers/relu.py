"""ReLU whose output is quantized: the activation site of the paper.

Paper: "Low-bit Quantization Needs Good Distribution" (Yu et al.), Section 4.3
("we also add the Distribution Reshaping in ReLU layers").
"""
import ast
import inspect
import textwrap
from typing import Iterator, List, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..kernels import Grid
from .fused import refuse_second_derivative


def is_on_grid(x: Tensor) -> bool:
    """Whether ``x`` is the unchanged output of a :class:`QuantReLU`."""
    version = getattr(x, '_on_grid_version', None)
    return version is not None and version == x._version


class _QuantizeReLU(torch.autograd.Function):
    """ReLU and quantizer in one pass; saves a byte a value."""

    @staticmethod
    def forward(ctx, x, grid: Grid, inplace):
        out, inside = kernels.quantize_relu(x, grid.clip, grid.bits,
                                            grid.seen, inplace)
        if inplace:
            ctx.mark_dirty(x)
        ctx.save_for_backward(inside)
        return out

    @staticmethod
    def backward(ctx, grad):
        refuse_second_derivative()
        inside, = ctx.saved_tensors
        return torch.where(inside, grad, 0.), None, None


class QuantReLU(nn.ReLU):
    """ReLU followed by an activation quantizer, one a call site.

    One module often serves several places: each ResNet block calls its only
    ReLU two or three times. Calls are told apart by their order within one
    forward of the parent module; calls in a loop, as in heads that go over
    pyramid levels, begin again with the first place. (Where activation
    checkpointing repeats only a part of the parent, the parent must run once
    between two backwards.)
    """

    def start_quantizing(self, state: nn.Module,
                         quantizers: List[nn.Module],
                         parent: nn.Module) -> None:
        """Take the quantizers of a freshly converted ReLU, one a site."""
        self.site_quantizers = nn.ModuleList(quantizers)
        self._shared = (state, )
        self._next_site = 0
        # After the forward as well: activation checkpointing repeats parts
        # of it later, without the parent.
        parent.register_forward_pre_hook(self._restart)
        parent.register_forward_hook(self._restart)

    def _restart(self, *_) -> None:
        self._next_site = 0

    @property
    def state(self) -> nn.Module:
        """The :class:`QuantizationState` of the model."""
        return self._shared[0]

    def quantizers(self) -> Iterator[Tuple[str, nn.Module]]:
        """All quantizers in it, by their name."""
        return self.activation_quantizers()

    def activation_quantizers(self) -> Iterator[Tuple[str, nn.Module]]:
        for index, quantizer in enumerate(self.site_quantizers):
            yield f'site_quantizers.{index}', quantizer

    def quantizer_state(self) -> dict:
        """State-dict entries that the float layer does not have."""
        return dict(self.state_dict())

    def forget(self) -> None:
        """Buffers were written from outside: look at them anew."""
        for quantizer in self.site_quantizers:
            quantizer.forget()

    def forward(self, x: Tensor) -> Tensor:
        site = self._next_site % len(self.site_quantizers)
        self._next_site += 1
        quantizer, state = self.site_quantizers[site], self.state
        if state.is_plain or state.collect_clipped or not (
                quantizer.fused and quantizer.settled):
            x = state.activation(quantizer, F.relu(x))
        else:
            x = _QuantizeReLU.apply(
                x, state.activation_and_grid(quantizer, x)[1], self.inplace)
        if not x.is_inference():  # those do not count their changes
            x._on_grid_version = x._version
        return x


def count_call_sites(parent: nn.Module, name: str) -> int:
    """How often the methods of ``parent`` write ``self.<name>(...)``.

    Returns:
        int: At least 1, also where there is no source to look at.
    """
    methods = {}
    for cls in reversed(type(parent).__mro__):
        if cls is object or cls is nn.Module:
            continue
        methods.update({key: value for key, value in vars(cls).items()
                        if inspect.isfunction(value)})
    sites = 0
    for key, method in methods.items():
        if key == '__init__':
            continue
        try:
            tree = ast.parse(textwrap.dedent(inspect.getsource(method)))
        except (OSError, TypeError, SyntaxError):
            continue
        sites += sum(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == name
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == 'self' for node in ast.walk(tree))
    return max(sites, 1)
