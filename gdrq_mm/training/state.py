"""What the quantized layers of one model share, and its training step."""
import json
import warnings
import weakref
from typing import Dict, Iterable, List, Optional

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from ..config import QuantConfig
from ..functional import quantized_loss
from ..kernels.optimizer_hooks import keep_optimizer_hooks
from ..plan import LayerPlan

PHASES = ('reshape', 'quantize')

_LIVE = weakref.WeakSet()  # every QuantizationState there is


class QuantizationState(nn.Module):
    """Phase, scheme and training step of a quantized model.

    :func:`gdrq_mm.quantize_` adds one to the model it converts. After every
    step of a ``torch.optim`` optimizer that holds parameters of the model, it
    projects the weights onto their thresholds and moves those of activations:
    plain training loops need no further call, skipped steps (gradient
    accumulation, AMP overflow) change nothing.

    It also writes the scheme of every layer into the checkpoint, and refuses
    one that was trained with another.

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
        self._activation_quantizers: Dict[str, nn.Module] = {}
        self._constants: Optional[Tensor] = None
        self._first_inputs: list = []  # (layer, weak tensor, its version)
        self._kept = weakref.WeakKeyDictionary()  # layer -> quantized weight
        self.calibrating = False
        self._warned = False
        self.collect_clipped = False
        self.clipped: List[Tensor] = []
        self.register_buffer('phase_index', torch.tensor(1))
        schemes = {plan.name: plan.scheme() for plan in plans
                   if plan.quantized}
        text = json.dumps(schemes, sort_keys=True).encode()
        self.register_buffer(
            'schemes', torch.tensor(list(text), dtype=torch.uint8))
        self._phase = 'quantize'
        _LIVE.add(self)

    def __getstate__(self):
        state = self.__dict__.copy()  # weak references cannot be copied
        del state['_first_inputs'], state['_kept']
        return state

    def __setstate__(self, state):
        super().__setstate__(state)
        self._first_inputs = []
        self._kept = weakref.WeakKeyDictionary()
        _LIVE.add(self)  # a copied or unpickled model trains, too

    def forward(self, x):
        """Identity: the state may sit in an ``nn.Sequential``."""
        return x

    def add(self, name: str, layer: nn.Module) -> None:
        """Take in a converted layer and its activation quantizers."""
        self.layers[name] = layer
        for part, quantizer in layer.activation_quantizers():
            self._activation_quantizers[f'{name}.{part}'] = quantizer

    # -- what the layers ask -------------------------------------------------

    @property
    def phase(self) -> str:
        """'reshape': float weights are clipped; 'quantize': and rounded."""
        return self._phase

    def set_phase(self, phase: str) -> None:
        if phase not in PHASES:
            raise ValueError(f'phase is {phase!r}, allowed: {PHASES}')
        if phase != self._phase:
            for layer in self.layers.values():
                quantizer = getattr(layer, 'weight_quantizer', None)
                if quantizer is not None:
                    quantizer.restart()
        self._phase = phase
        self.phase_index.fill_(PHASES.index(phase))

    def enter_loaded_phase(self, index: int) -> None:
        """The phase that a checkpoint was saved in; its buffers follow."""
        self._phase = PHASES[index]

    @property
    def is_plain(self) -> bool:
        """Whether layers compute step by step, with autograd of every step:
        for compilers and tracers, and where nothing is rounded."""
        return (self._phase != 'quantize' or _is_compiling()
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
                layer.same_input.append(self._name_of(other))
                other.same_input.append(self._name_of(layer))
        self._first_inputs.append((layer, weakref.ref(x), version))

    def _name_of(self, layer: nn.Module) -> str:
        return next(name for name, other in self.layers.items()
                    if other is layer)

    def activation(self, quantizer: nn.Module, x: Tensor) -> Tensor:
        """Observe and quantize one activation."""
        self._warn_if_unset(quantizer, x)
        if self.observing:
            quantizer.observe(x)
            self._collect_clipped(quantizer, x)
        return quantizer(x, rounding=self._phase == 'quantize')

    def activation_grid(self, quantizer: nn.Module, x: Tensor):
        """Grid of one activation, statistics included; None: leave it."""
        self._warn_if_unset(quantizer, x)
        seen = None
        if self.observing:
            seen = quantizer.observe_later(x)
            self._collect_clipped(quantizer, x)
        return quantizer.grid(seen)

    def _collect_clipped(self, quantizer: nn.Module, x: Tensor) -> None:
        if self.collect_clipped and quantizer.initialized:
            self.clipped.append(quantizer.clipped_fraction(x))

    def _warn_if_unset(self, quantizer: nn.Module, x: Tensor) -> None:
        if not (self.training or self.calibrating or self._warned
                or quantizer.initialized or x.is_inference()):
            self._warned = True
            warnings.warn('an activation threshold is not set yet, so this '
                          'activation stays float: load a trained quantized '
                          'checkpoint, train, or call gdrq_mm.calibrate')

    def weight(self, quantizer: nn.Module, weight: Tensor) -> Tensor:
        """Quantize one weight."""
        rounding = self._phase == 'quantize'
        if self.training and rounding:
            quantizer.set_clip(weight)
        return quantizer(weight, rounding)

    def weight_and_grid(self, layer: nn.Module):
        """The weight of a layer and the grid it still has to be put on.

        Evaluation quantizes each weight once: until the model changes mode,
        a checkpoint is loaded or the weight changes. (Autograd does not count
        writes to ``weight.data``; call ``model.eval()`` after those.)

        Returns:
            tuple[Tensor, Grid or None]: Grid is None for a weight that is
            quantized already.
        """
        weight, quantizer = layer.weight, layer.weight_quantizer
        if self.training:
            quantizer.set_clip(weight)
        grid = quantizer.grid(weight)
        if self.training or torch.is_grad_enabled() or weight.is_inference():
            return weight, grid
        mark = (weight.data_ptr(), weight._version, weight.dtype,
                quantizer.clip._version)
        kept = self._kept.get(layer)
        if kept is None or kept[0] != mark:
            self._kept[layer] = kept = mark, grid.quantize(weight)
        return kept[1], None

    def train(self, mode: bool = True):
        """Forget the weights that were kept for evaluation."""
        self._kept.clear()
        return super().train(mode)

    def uncalled_layers(self) -> List[str]:
        """Layers with a quantized weight whose forward never ran."""
        return [name for name, layer in self.layers.items()
                if getattr(layer, 'weight_quantizer', None) is not None
                and not layer.called]

    def uncalled_outputs(self) -> List[str]:
        """Modules whose quantized output was never seen."""
        return [plan.name.rpartition('.')[0] for plan in self.plans
                if plan.output and not self.layers[plan.name].called]

    # -- the training step ---------------------------------------------------

    @torch.no_grad()
    def step_(self, weights: Optional[Iterable[int]] = None) -> None:
        """Project weights and move activation thresholds, once a step.

        Args:
            weights (set[int], optional): ``id`` of the weights that were
                stepped. Defaults to None: all that require a gradient.
        """
        done = {}
        self._first_inputs.clear()
        for layer in self.layers.values():
            weight = getattr(layer, 'weight', None)
            quantizer = getattr(layer, 'weight_quantizer', None)
            if quantizer is None or not weight.requires_grad \
                    or not layer.called:
                continue
            if weights is not None and id(weight) not in weights:
                continue
            if id(weight) in done:  # two layers share this weight
                quantizer.clip.copy_(done[id(weight)].clip)
                quantizer.has_stepped(weight)
            else:
                quantizer.project(weight)
                done[id(weight)] = quantizer
        self.update_thresholds_()

    @torch.no_grad()
    def update_thresholds_(self) -> None:
        """Move every ``T_a`` towards ``k * mean|A|`` (Eq. 10, descending).

        All layers at once, with one all-reduce where training is distributed:
        thresholds are equal on all ranks, those of the joint batch.
        """
        quantizers = list(self._activation_quantizers.values())
        if not quantizers:
            return
        seen = torch.stack([q.seen for q in quantizers])
        if dist.is_available() and dist.is_initialized() \
                and dist.get_world_size() > 1:
            dist.all_reduce(seen)
        if self._constants is None or self._constants.device != seen.device:
            self._constants = seen.new_tensor(
                [[q.k_of(False), q.k_of(True), q.lr, q.SIGN_UPDATES]
                 for q in quantizers]).T
        k_unsigned, k_signed, lr, sign_updates = self._constants
        clip = torch.stack([q.clip for q in quantizers])
        signed = torch.stack([q.signed for q in quantizers])
        updates = torch.stack([q.num_updates for q in quantizers])

        total, count, negative = seen.T
        mean = total / count
        valid = (count > 0) & torch.isfinite(mean)
        now_signed = signed | (valid & (negative < 0)
                               & (updates < sign_updates))
        # A sign that is seen late changes k: carry the threshold over.
        clip = torch.where(now_signed & ~signed, clip * k_signed / k_unsigned,
                           clip)
        # The first updates average all that was seen (the first one sets the
        # threshold), later ones descend with lr.
        step = torch.maximum(lr, 1 / (updates + 1))
        target = torch.where(now_signed, k_signed, k_unsigned) * mean
        clip = torch.where(valid, clip - step * (clip - target), clip)
        updates = updates + valid

        for name, values in dict(clip=clip, signed=now_signed,
                                 num_updates=updates).items():
            torch._foreach_copy_([getattr(q, name) for q in quantizers],
                                 list(values.unbind()))
        torch._foreach_zero_([q.seen for q in quantizers])

    # -- what the log shows --------------------------------------------------

    def any_threshold(self) -> bool:
        """Whether some activation threshold is set (or none is needed)."""
        quantizers = self._activation_quantizers.values()
        return not quantizers or any(q.initialized for q in quantizers)

    @torch.no_grad()
    def metrics(self) -> Dict[str, float]:
        """Figures of the model as it stands; reads from the device.

        Returns:
            dict[str, float]: Means over layers: quantized loss (Eq. 3) and
            clip value of weights, threshold and clipped fraction of
            activations; the phase, 0 'reshape' or 1 'quantize'.
        """
        losses, clips = [], []
        for layer in self.layers.values():
            quantizer = getattr(layer, 'weight_quantizer', None)
            if quantizer is not None:
                losses.append(
                    quantized_loss(layer.weight, quantizer(layer.weight)))
                clips.append(quantizer.current_clip(layer.weight).mean())
        thresholds = [q.clip for q in self._activation_quantizers.values()
                      if q.initialized]
        means = dict(gdrq_ql=losses, gdrq_weight_clip=clips,
                     gdrq_act_clip=thresholds, gdrq_clipped=self.clipped)
        metrics = {name: float(torch.stack(values).mean())
                   for name, values in means.items() if values}
        self.clipped = []
        metrics['gdrq_phase'] = float(PHASES.index(self._phase))
        return metrics


def _is_compiling() -> bool:
    if hasattr(torch.compiler, 'is_compiling'):  # torch >= 2.3
        return torch.compiler.is_compiling()
    return torch._dynamo.is_compiling()


def _after_optimizer_step(optimizer, args, kwargs) -> None:
    states = [state for state in list(_LIVE) if state.training]
    # Fused optimizers skip an overflown AMP step themselves, on the device.
    found_inf = getattr(optimizer, 'found_inf', None)
    if not states or (found_inf is not None and bool(found_inf)):
        return
    weights = {id(parameter) for group in optimizer.param_groups
               for parameter in group['params']}
    for state in states:
        if any(id(parameter) in weights for parameter in state.parameters_):
            state.step_(weights)


register_optimizer_step_post_hook(_after_optimizer_step)


def get_state(model: nn.Module) -> Optional[QuantizationState]:
    """The state of a quantized model, None for a float one."""
    return next((child for child in model.children()
                 if isinstance(child, QuantizationState)), None)
