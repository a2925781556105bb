"""Quantizer of what a module returns, whatever reads it.

Layers quantize their inputs; a sum of two branches reads none of those. In
integers such tensors have 8 bits, and training sees that with this quantizer.
"""
from typing import Any, Iterator, Tuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from ..kernels import Grid
from .fused import refuse_second_derivative

# The child of a module whose output is quantized.
OUTPUT_QUANTIZER = 'output_quantizer'
# Sums and what goes into them have few large values, which a branch of the
# network carries on; 8 bits have the room for them (docs/deploy.md).
HEADROOM = 3.


class _Round(torch.autograd.Function):
    """Put a tensor on a grid; straight-through gradient inside its range."""

    @staticmethod
    def forward(ctx, x, grid: Grid):
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(x)
            # The threshold may move before the backward pass.
            ctx.grid = grid._replace(clip=grid.clip.clone(), seen=None)
        return grid.quantize(x)

    @staticmethod
    def backward(ctx, grad):
        refuse_second_derivative()
        x, = ctx.saved_tensors
        # A copy: a sum hands the same gradient to both of its branches.
        return ctx.grid.gradient(grad.clone(), x), None


class OutputQuantizer(nn.Module):
    """An activation quantizer for the output of a module.

    Args:
        state (QuantizationState): State of the model.
        quantizer (nn.Module): The activation quantizer.
    """

    def __init__(self, state: nn.Module, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer
        self._shared = (state, )  # in a tuple: it is no submodule
        self.called = False  # code may call a module's forward past its hooks

    @property
    def state(self) -> nn.Module:
        """The :class:`QuantizationState` of the model."""
        return self._shared[0]

    def quantizers(self) -> Iterator[Tuple[str, nn.Module]]:
        """All quantizers in it, by their name."""
        return self.activation_quantizers()

    def activation_quantizers(self) -> Iterator[Tuple[str, nn.Module]]:
        yield 'quantizer', self.quantizer

    def quantizer_state(self) -> dict:
        """State-dict entries that the float model does not have."""
        return dict(self.state_dict())

    def forget(self) -> None:
        """Buffers were written from outside: look at them again."""
        self.quantizer.forget()

    def forward(self, x: Tensor) -> Tensor:
        if not self.called:
            self.called = True
        return quantize_activation(self.state, self.quantizer, x)


def quantize_activation(state: nn.Module, quantizer: nn.Module, x: Tensor
                        ) -> Tensor:
    """Observe an activation that no layer reads, and put it on its grid.

    Args:
        state (QuantizationState): State of the model.
        quantizer (nn.Module): The activation quantizer.
        x (Tensor): The activation.
    """
    if state.is_plain:
        return state.activation(quantizer, x)
    x, grid = state.activation_and_grid(quantizer, x)
    return x if grid is None else _Round.apply(x, grid)


def attach_output(module: nn.Module, quantizer: OutputQuantizer) -> None:
    """Let ``quantizer`` change what ``module`` returns from now on."""
    module.add_module(OUTPUT_QUANTIZER, quantizer)  # _hook_owner does the rest


def _hook_owner(module: nn.Module, name: str, child: Any) -> None:
    """Whatever module gets an output quantizer as its child is hooked.

    Code that puts another normalization in the place of one (mmengine does,
    for SyncBN) hands children on, but no hooks.
    """
    if name == OUTPUT_QUANTIZER and isinstance(child, OutputQuantizer) and \
            _quantize_output not in module._forward_hooks.values():
        module.register_forward_hook(_quantize_output)


register_module_module_registration_hook(_hook_owner)


def _quantize_output(module: nn.Module, args: tuple, output: Any) -> Tensor:
    if not isinstance(output, Tensor):
        raise TypeError(
            f'a {type(module).__name__} returns a {type(output).__name__}; '
            'residual.outputs takes modules that return one tensor')
    return module.output_quantizer(output)
