"""ReLU whose output is quantized: the activation site of the paper.

Paper: "Low-bit Quantization Needs Good Distribution" (Yu et al.), Section 4.3
("we also add the Distribution Reshaping in ReLU layers").
"""
import ast
import inspect
import sys
import textwrap
import threading
import warnings
from typing import Any, Dict, Iterator, List, Set, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..kernels import Grid
from ..modes import is_compiling
from .fused import refuse_second_derivative

_IN_BACKWARD = -1  # in place of a thread
_CALL = nn.Module._call_impl.__code__


def is_on_grid(x: Tensor) -> bool:
    """Whether ``x`` is the unchanged output of a :class:`QuantReLU`."""
    version = getattr(x, '_on_grid_version', None)
    return version is not None and version == x._version


class _QuantizeReLU(torch.autograd.Function):
    """ReLU and quantizer in one pass; saves a byte per value."""

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
    """ReLU followed by an activation quantizer, one per call site.

    One module often serves several places: each ResNet block calls its only
    ReLU two or three times. Calls are told apart by their order within one
    forward of the parent module; calls in a loop, as in heads that go over
    pyramid levels, begin again with the first place. (Where activation
    checkpointing repeats only a part of the parent, the parent must run once
    between two backwards.)
    """
    # What conversion sets; see :func:`.registry.added_names`.
    site_quantizers: nn.ModuleList
    most_calls: int
    _shared: Tuple[nn.Module, nn.Module]
    _calls: Dict[int, int]
    places: Set[tuple]

    def start_quantizing(self, state: nn.Module,
                         quantizers: List[nn.Module],
                         parent: nn.Module) -> None:
        """Take the quantizers of a freshly converted ReLU, one a site."""
        self.site_quantizers = nn.ModuleList(quantizers)
        self._shared = (state, parent)
        self._calls = {}  # thread -> calls in the running forward
        self.places = set()  # where training calls it, before the first step
        self.most_calls = 0  # in one forward of the parent
        # After the forward as well: activation checkpointing repeats parts
        # of it later, without the parent.
        parent.register_forward_pre_hook(self._restart)
        parent.register_forward_hook(self._restart)

    def _restart(self, *_) -> None:
        for thread in (self._thread(), _IN_BACKWARD):
            self.most_calls = max(self.most_calls,
                                  self._calls.pop(thread, 0))

    @staticmethod
    def _thread() -> int:
        """Whose calls are counted: several threads may use one model, and a
        backward pass, which repeats parts of it, has threads of its own."""
        if is_compiling():
            return 0
        return _IN_BACKWARD if torch._C._current_graph_task_id() != -1 \
            else threading.get_ident()

    def _note_place(self) -> None:
        """Where the parent's forward calls: the way from it to here, which is
        the same for all calls of a loop. Or which other module calls, where
        several have this very ReLU."""
        way, frame, other = [], sys._getframe(2), None
        while frame is not None:
            code = frame.f_code
            caller = frame.f_locals['self'] if code is _CALL else self
            if caller is self._shared[1]:
                self.places.add(tuple(way))
                return
            if other is None and caller is not self:
                other = (id(caller), *way)
            way.append((code.co_filename, code.co_firstlineno, frame.f_lasti))
            frame = frame.f_back
        if other is not None:
            self.places.add(other)

    def count_call(self) -> int:
        """Which call of the running forward this is, from 0 on."""
        thread = self._thread()
        number = self._calls.get(thread, 0)
        self._calls[thread] = number + 1
        return number

    @property
    def last_quantizer(self) -> nn.Module:
        """That of the last call."""
        calls = self._calls.get(self._thread(), 0)
        return self.site_quantizers[(calls - 1) % len(self.site_quantizers)]

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
        """Buffers were written from outside: look at them again."""
        for quantizer in self.site_quantizers:
            quantizer.forget()

    def forward(self, input: Tensor) -> Tensor:
        self.count_call()
        x, quantizer, state = input, self.last_quantizer, self.state
        if state.training and not (state.has_stepped or is_compiling()):
            self._note_place()
        if state.is_plain or state.collect_clipped or not (
                quantizer.fused and quantizer.settled):
            quantized = state.activation(quantizer, F.relu(x))
            # In place or not: code may go on with the input.
            x = x.copy_(quantized) if self.inplace else quantized
        else:
            x = _QuantizeReLU.apply(
                x, state.activation_and_grid(quantizer, x)[1], self.inplace)
        if x.is_inference():  # it would not count its changes
            with torch.inference_mode(False):
                x = x.clone()
        x._on_grid_version = x._version
        return x


def warn_of_shared_places(layers: Dict[str, nn.Module]) -> None:
    """Warn of ReLUs whose calls at different places share a threshold.

    Args:
        layers (dict[str, nn.Module]): Converted layers of a model whose first
            forwards in training are over, by name.
    """
    found = [f'{name} ({len(layer.places)} places, '
             f'{len(layer.site_quantizers)} thresholds)'
             for name, layer in layers.items() if isinstance(layer, QuantReLU)
             and len(layer.places) > len(layer.site_quantizers)]
    if found:
        warnings.warn(
            'ReLUs that a forward calls at more places than they have '
            f'thresholds: {", ".join(found)}; what one place sees moves the '
            'threshold of another. Only the source of the module that owns a '
            'ReLU is read, for calls written self.NAME(...) in methods that '
            'no subclass replaces: write them so, or give each place a ReLU '
            'of its own, before the model is converted')


def count_call_sites(parent: nn.Module, name: str) -> int:
    """How often the methods of ``parent`` write ``self.<name>(...)``.

    By whatever name they call ``self``. Calls by another name of the module
    are not seen, nor those of methods that a subclass replaces and calls;
    the first step of a training warns of them
    (:func:`warn_of_shared_places`).

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
            tree: Any = ast.parse(
                textwrap.dedent(inspect.getsource(method)))
        except (OSError, TypeError, SyntaxError):
            continue
        # The source of a lambda is the statement that it stands in.
        if not isinstance(tree.body[0], (ast.FunctionDef,
                                         ast.AsyncFunctionDef)):
            continue
        arguments = tree.body[0].args
        first = (arguments.posonlyargs + arguments.args)[:1]
        sites += sum(
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr == name
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id in [each.arg for each in first]
            for node in ast.walk(tree))
    return max(sites, 1)
