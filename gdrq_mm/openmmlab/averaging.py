"""Models that ``EMAHook`` averages."""
from typing import Iterator

from mmengine.hooks import Hook
from torch import nn

from ..training import PHASES, get_state


def averaging_hooks(runner) -> Iterator[Hook]:
    """Hooks of a run that hold an averaged copy of its model."""
    return (hook for hook in runner.hooks
            if getattr(hook, 'ema_model', None) is not None)


def sync_averaged_models(runner, model: nn.Module) -> None:
    """Give averaged models the phase and the signs of the model.

    Where ``EMAHook`` averages buffers, it leaves those that hold no floats as
    it first copied them.

    Args:
        runner (Runner): With the hooks.
        model (nn.Module): The quantized model.
    """
    state = get_state(model)
    for hook in averaging_hooks(runner):
        averaged = get_state(hook.ema_model.module)
        for ours, theirs in [(state, averaged), *(
                (state.layers[name], layer)
                for name, layer in averaged.layers.items())]:
            source = dict(ours.named_buffers())
            for name, buffer in theirs.named_buffers():
                if not buffer.is_floating_point():
                    buffer.copy_(source[name])
        averaged.enter_loaded_phase(PHASES.index(state.phase))
