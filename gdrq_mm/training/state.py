"""What the quantized layers of one model share."""
import json
import uuid
import warnings
import weakref
from typing import Dict, Iterable, List, Optional, Tuple

import torch
from torch import Tensor, nn

from ..config import QuantConfig
from ..modes import is_compiling
from ..plan import LayerPlan
from .copies import Copied
from .frozen import keep_learning
from .learned import keep_in_graph
from .optimizer_hooks import keep_optimizer_hooks
from .step import watch

PHASES = ('reshape', 'quantize')


class QuantizationState(nn.Module):
    """Phase and schemes of a quantized model, and what its layers ask.

    :func:`gdrq_mm.quantize_` adds one to the model it converts. Its buffers
    write the scheme of every layer into the checkpoint; training steps are
    the work of :mod:`.step`.

    Args:
        config (QuantConfig): What the model was converted with.
        plans (list[LayerPlan]): What was decided for every layer.
        parameters (iterable of Parameter): All of the model: a step of an
            optimizer that holds one of them is a step of this model.
    """

    def __init__(self, config: QuantConfig, plans: List[LayerPlan],
                 parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.config = config
        self.plans = plans
        self.parameters_ = list(parameters)
        self.layers: Dict[str, nn.Module] = {}
        # See learned_in_freezing_backbones.
        self.learned: List[Tuple[nn.Module, List[nn.Parameter]]] = []
        self.activation_quantizers: Dict[str, nn.Module] = {}
        self._first_inputs: list = []  # (layer, weak tensor, its version)
        self.checked_optimizers = weakref.WeakSet()  # see .step
        self.has_stepped = False  # an optimizer stepped the model
        self.family = uuid.uuid4().hex  # copies have it as well, see .copies
        self.copied = Copied()
        self.calibrating = self.collect_clipped = self._warned = False
        self.clipped: List[Tensor] = []
        self.register_buffer('phase_index', torch.tensor(1))
        schemes = {plan.name: plan.scheme() for plan in plans
                   if plan.quantized}
        self._schemes = json.dumps(schemes, sort_keys=True).encode()
        self.register_buffer('schemes', torch.ByteTensor([*self._schemes]))
        self.register_state_dict_pre_hook(_restore_schemes)
        self._phase = 'quantize'
        watch(self)

    def __getstate__(self):
        state = self.__dict__.copy()  # weak references cannot be copied
        del state['_first_inputs'], state['checked_optimizers']
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        self.__dict__.setdefault('learned', [])  # not in older pickles
        self._first_inputs = []
        self.checked_optimizers = weakref.WeakSet()
        self.has_stepped = False
        self.copied = Copied()
        watch(self)  # a copied or unpickled model trains, too

    def train(self, mode: bool = True) -> 'QuantizationState':
        super().train(mode)
        if mode:
            keep_learning(self)
        return self

    def forward(self, x):
        """Identity: the state may sit in an ``nn.Sequential``."""
        return x

    def add(self, name: str, layer: nn.Module) -> None:
        """Take in a converted layer and its activation quantizers."""
        self.layers[name] = layer
        for part, quantizer in layer.activation_quantizers():
            self.activation_quantizers[f'{name}.{part}'] = quantizer

    @property
    def phase(self) -> str:
        """In 'reshape' weights are clipped, in 'quantize' also rounded."""
        return self._phase

    def set_phase(self, phase: str) -> None:
        if phase not in PHASES:
            raise ValueError(f'phase is {phase!r}, allowed: {PHASES}')
        if phase != self._phase:
            for layer in self.layers.values():
                _restart(layer, phase)
        self._phase = phase
        self.phase_index.fill_(PHASES.index(phase))

    def enter_loaded_phase(self, index: Optional[int]) -> None:
        """The phase of a checkpoint, None: of a float one; buffers follow."""
        self.copied = Copied()  # no average has moved it
        phase = self._phase if index is None else PHASES[index]
        if phase == 'reshape' != self._phase:
            _warn_of_reshape()
        self._phase = phase

    @property
    def is_plain(self) -> bool:
        """Whether layers compute step by step, with autograd of every step:
        for compilers and tracers, and where nothing is rounded."""
        return (self._phase != 'quantize' or is_compiling()
                or torch.jit.is_tracing())

    @property
    def observing(self) -> bool:
        """Whether statistics of this forward count.

        The training flag is that of the converted model as a whole: frozen
        stages, which stay in eval mode, need thresholds as well. A forward
        that autograd repeats (activation checkpointing) does not count.
        """
        return ((self.training or self.calibrating)
                and torch._C._current_graph_task_id() == -1)

    def first_call(self, layer: nn.Module, x: Tensor) -> None:
        """Note that ``layer`` runs, and which others read the same ``x``."""
        layer.called = True
        if not self._first_inputs:
            keep_optimizer_hooks()  # something may have been compiled by now
        version = 0 if x.is_inference() else x._version
        for other, reference, its_version in self._first_inputs:
            if reference() is x and version == its_version:
                layer.same_input.append(self.name_of(other))
                other.same_input.append(self.name_of(layer))
        self._first_inputs.append((layer, weakref.ref(x), version))

    def begin_step(self) -> None:
        """Another step begins: tensors of the last one are no longer read."""
        self.has_stepped = True
        self._first_inputs.clear()

    def name_of(self, layer: nn.Module) -> str:
        """Name of a converted layer in the model."""
        return next((name for name, other in self.layers.items()
                     if other is layer), f'a {type(layer).__name__}')

    def activation(self, quantizer: nn.Module, x: Tensor) -> Tensor:
        """Observe and quantize one activation."""
        self._warn_if_unset(quantizer)
        if self.observing:
            quantizer.observe(x)
            self._collect_clipped(quantizer, x)
        return self._quantized(quantizer, x)

    def _quantized(self, quantizer: nn.Module, x: Tensor) -> Tensor:
        result = quantizer(x, rounding=self._phase == 'quantize')
        return keep_in_graph(x, quantizer) \
            if result is x and self.training else result

    def activation_and_grid(self, quantizer: nn.Module, x: Tensor):
        """One activation, and the grid that it still has to be put on.

        Returns:
            tuple[Tensor, Grid or None]: Grid is None for an activation that
            is quantized already, or that passes unchanged.
        """
        if not quantizer.fused:
            return self.activation(quantizer, x), None
        self._warn_if_unset(quantizer)
        seen = None
        if self.observing:
            seen = quantizer.observe_later(x)
            self._collect_clipped(quantizer, x)
        return x, quantizer.grid(seen)

    def _collect_clipped(self, quantizer: nn.Module, x: Tensor) -> None:
        if self.collect_clipped and quantizer.initialized:
            self.clipped.append(quantizer.clipped_fraction(x))

    def _warn_if_unset(self, quantizer: nn.Module) -> None:
        if not (self.training or self.calibrating or self._warned
                or quantizer.initialized):
            self._warned = True
            _warn_of_unset()

    def weight(self, quantizer: nn.Module, weight: Tensor) -> Tensor:
        """Quantize one weight."""
        if self.training and self._phase == 'quantize':
            quantizer.start_step(weight)
        return self._quantized(quantizer, weight)

    def weight_and_grid(self, layer: nn.Module):
        """The weight of a layer and the grid it still has to be put on.

        Quantized in every forward, in evaluation too: whatever wrote to the
        weight since (an ``EMAHook``, ``weight.data``) counts.

        Returns:
            tuple[Tensor, Grid or None]: Grid is None for a weight that is
            quantized already.
        """
        weight, quantizer = layer.latent_weight, layer.weight_quantizer
        if self.training:
            quantizer.start_step(weight)
        if not quantizer.fused:
            return quantizer(weight), None
        grid = quantizer.grid(weight)
        if self.training or torch.is_grad_enabled():
            return weight, grid
        return grid.quantize(weight), None


def uncalled_layers(state: QuantizationState) -> List[str]:
    """Layers with a quantized weight whose forward never ran."""
    return [name for name, layer in state.layers.items()
            if getattr(layer, 'weight_quantizer', None) is not None
            and not layer.called]


def uncalled_outputs(state: QuantizationState) -> List[str]:
    """Modules whose quantized output was never seen."""
    return [plan.module_name for plan in state.plans
            if plan.output and not state.layers[plan.name].called]


def get_state(model: nn.Module) -> Optional[QuantizationState]:
    """The state of a quantized model, None for a float one."""
    return next((child for child in model.children()
                 if isinstance(child, QuantizationState)), None)


def quantizer_entries(state: Optional[QuantizationState]) -> List[Tensor]:
    """Parameters and buffers of all quantizers of a model, none of a float
    one (None)."""
    return [] if state is None else [
        entry for layer in state.layers.values()
        for _, quantizer in layer.quantizers()
        for entry in (*quantizer.parameters(), *quantizer.buffers())]


def _restart(layer: nn.Module, phase: str) -> None:
    """Let a layer begin a phase."""
    if phase == 'quantize':
        for _, quantizer in layer.activation_quantizers():
            quantizer.restart()
    quantizer = getattr(layer, 'weight_quantizer', None)
    if quantizer is not None:
        weight = layer.latent_weight
        quantizer.restart(weight.requires_grad)
        if phase == 'quantize' and not weight.requires_grad:
            # Averages (momentum encoders) go on from this, not from zero.
            quantizer.start_step(weight)


def _warn_of_unset() -> None:
    warnings.warn('an activation threshold is not set yet, so this activation '
                  'stays float: load a trained quantized checkpoint, train, '
                  'or call gdrq_mm.calibrate')


def _warn_of_reshape() -> None:
    warnings.warn(
        "the checkpoint was saved in the 'reshape' phase: this model computes "
        'in float until GDRQHook begins to round, or you call '
        "gdrq_mm.training.get_state(model).set_phase('quantize')")


def _restore_schemes(state: QuantizationState, prefix: str, keep_vars: bool
                     ) -> None:
    """Before they are saved: hooks that average all buffers over ranks
    (mmengine's SyncBuffersHook) average bytes as well, which wrap around."""
    state.schemes.copy_(torch.tensor([*state._schemes]))
