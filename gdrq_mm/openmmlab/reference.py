"""What a float model gives on every batch, to compare others with."""
from contextlib import ExitStack
from typing import Dict, List, Optional, Tuple

import torch
from torch import nn

from ..analysis.distance import (
    Noise,
    OutputProbe,
    mean_noise,
    noise_energy,
)
from ..analysis.ends import first_and_last
from ..analysis.replay import Replay, repeat_always, watch_calls
from ..plan import LayerPlan
from .bench import Bench
from .proposals import Proposals


class Reference:
    """Outputs, proposals and calls of a model.

    Args:
        bench (Bench): The data.
        model (nn.Module): In eval mode; a quantized one with its quantizers
            switched off.
        plans (list[LayerPlan]): Plans of its layers.
    """

    @torch.no_grad()
    def __init__(self, bench: Bench, model: nn.Module,
                 plans: List[LayerPlan]) -> None:
        self.bench = bench
        forwards = bench.forwards(model)
        self.outputs = first_and_last(model, plans, forwards[0]).last
        # Outputs that are compared must be computed, not replayed.
        self.calls = repeat_always(watch_calls(model, forwards[0]),
                                   self.outputs)
        self.batches: List[tuple] = []
        probe = OutputProbe(model, self.outputs)
        proposals = Proposals(model, probe)
        try:
            for forward in forwards:
                with proposals.kept() as rois:
                    forward()
                self.batches.append((probe.take(), rois))
        finally:
            probe.remove()

    def begins(self) -> Dict[str, int]:
        """When the first call of each module begins."""
        begins: Dict[str, int] = {}
        for call in self.calls:
            begins[call.name] = min(begins.get(call.name, call.begin),
                                    call.begin)
        return begins

    @torch.no_grad()
    def compare(self, model: nn.Module, replay: Optional[Replay] = None
                ) -> Tuple[Dict[str, float], Noise]:
        """Metrics of another model, and the noise of its outputs.

        Args:
            model (nn.Module): In eval mode.
            replay (Replay, optional): What need not be computed again.
        """
        probe = OutputProbe(model, self.outputs)
        proposals, ratios = Proposals(model, probe), []

        def around(index):
            expected, rois = self.batches[index]
            stack = ExitStack()
            # Last of all: heads that saw nothing are heard at the end.
            stack.callback(lambda: ratios.append(
                noise_energy(expected, probe.take())))
            if replay is not None:
                stack.enter_context(replay.on(index))
            stack.enter_context(proposals.given(rois))
            return stack

        try:
            metrics = self.bench.evaluate(model, around)
        finally:
            probe.remove()
        return metrics, mean_noise(ratios)
