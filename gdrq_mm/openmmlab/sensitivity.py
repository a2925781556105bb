"""Sensitivity of a config's layers, by the metric of its task."""
import math
import sys
from typing import Callable, Dict, Iterable, List, Optional, Tuple

import torch
from mmengine.utils import ProgressBar
from torch import nn

from ..analysis.measurements import Measurements
from ..analysis.replay import Replay
from ..analysis.sensitivity import (
    PARTS,
    WAYS,
    Figures,
    Setting,
    all_settings,
    float_in,
    float_parts,
    group_layers,
    shared_weights,
)
from ..config import QuantConfig
from ..convert import quantize_
from ..errors import did_you_mean
from ..plan import LayerPlan, make_plan
from ..training import get_state
from .bench import Bench, base_quantization
from .reference import Reference


class Sensitivity:
    """Measure settings of a bench's model, one after the other.

    Args:
        bench (Bench): The model and the data.
        measurements (Measurements): What was measured before, and is kept.
    """

    def __init__(self, bench: Bench, measurements: Measurements) -> None:
        self.bench, self.measurements = bench, measurements
        if bench.is_trained:
            bench.need_latent_weights()
            self._trained = self.example = bench.model
        else:
            self._trained = None
            self.example = bench.model  # converted, to look at
            quantize_(self.example, self._base_quantization(8))
        self.plans = get_state(self.example).plans
        self.layers = [plan.name for plan in self.plans
                       if plan.quantized and plan.parameter is not None]
        # ReLUs and outputs of a trained model, which are no part of a layer.
        self.others = [plan.name for plan in self.plans
                       if plan.quantized and plan.parameter is None]
        self._model: Optional[nn.Module] = None
        self._made: tuple = ()
        self._reference: Optional[Reference] = None
        self._replay: Optional[Replay] = None

    # -- what can be asked ---------------------------------------------------

    def bits_of(self, bits: Optional[Iterable[int]]) -> List[int]:
        """The bits to measure: asked ones, or 0 for those of a training.

        Raises:
            ValueError: They cannot be chosen, or are not 2 to 8.
        """
        if self._trained is not None:
            if bits:
                raise ValueError(
                    f'{self.bench.checkpoint} is trained at its bits; '
                    'without --bits these are measured, and other bits from '
                    'the checkpoint of a float model')
            return [0]
        bits = list(bits or (2, 4))
        for each in bits:
            if not 2 <= each <= 8:
                raise ValueError(f'--bits has {each}, allowed: 2 to 8')
        return bits

    def groups(self, by: str = 'layer', only: Iterable[str] = ()
               ) -> Dict[str, List[str]]:
        """Groups of layers in the order of their calls.

        Args:
            by (str): 'layer' or 'stage'.
            only (iterable of str): Names of groups; of none, all.

        Raises:
            ValueError: A name matches no group.
        """
        groups = group_layers(self.layers, by)
        if by == 'layer':  # one weight has one number of bits
            groups = {name: members for name, members in shared_weights(
                self.plans).items() if members[0] in self.layers}
        only = list(only)
        for name in only:
            if name not in groups:
                raise ValueError(f'{name!r} is no quantized {by}; '
                                 f'{did_you_mean(name, list(groups))}')
        return {name: members for name, members in groups.items()
                if not only or name in only}

    # -- measuring -----------------------------------------------------------

    def run(self, bits: Optional[Iterable[int]] = None, by: str = 'layer',
            sides: Iterable[str] = ('both', ), ways: Iterable[str] = WAYS,
            only: Iterable[str] = ()) -> Dict[Setting, Figures]:
        """Measure what is not measured yet; progress goes to stderr."""
        _check_asked(self.bench, self.plans, sides, ways)
        groups = self.groups(by, only)
        bits = self.bits_of(bits)
        settings = list(all_settings(groups, sides, bits, ways, by))
        if 'rest' in ways:  # all but none
            settings += [Setting('', 'both', each, 'rest') for each in bits]
        left = [setting for setting in settings
                if self.measurements.get(setting.key) is None]
        self.baseline()
        if left:
            order = self._order(left, groups)
            bar = ProgressBar(len(order), file=sys.stderr)
            for setting in order:
                figures = self._measure(
                    setting, groups.get(setting.group, ()))
                self.measurements.put(setting.key, vars(figures))
                bar.update()
            print(file=sys.stderr)
        return {setting: Figures(**self.measurements.get(setting.key))
                for setting in settings}

    def _order(self, settings: List[Setting], groups: Dict[str, List[str]]
               ) -> List[Setting]:
        """Layers that run later later: their prefix only grows."""
        begins = self.reference.begins()
        rank = {'': -1}
        rank.update({name: min((begins[layer] for layer in members
                           if layer in begins), default=2**62)
                for name, members in groups.items()})
        return sorted(settings, key=lambda setting: (
            setting.way, setting.bits, rank[setting.group]))

    def baseline(self) -> Dict[str, float]:
        """All metrics of the model in float."""
        kept = self.measurements.get('float')
        if kept is None:
            model = self._trained or self.bench.model
            with float_parts(model, self._all_float(model)):
                kept = self.bench.evaluate(model)
            self.measurements.put('float', kept)
        return kept

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return self.bench.metric_of(self.baseline())

    def evaluated(self, key: str, make: Callable[[], nn.Module]) -> Figures:
        """Figures of a whole model, kept by a key of its own.

        Args:
            key (str): Under which they are kept.
            make (callable): Builds the model, in eval mode.
        """
        kept = self.measurements.get(key)
        if kept is None:
            kept = vars(self._figures(make()))
            self.measurements.put(key, kept)
        return Figures(**kept)

    @staticmethod
    def _all_float(model: nn.Module) -> Dict[str, tuple]:
        state = get_state(model)
        return dict.fromkeys(state.layers, PARTS['both']) if state else {}

    def _base_quantization(self, bits: int) -> dict:
        return base_quantization(self.bench.cfg, bits, self.bench.model)

    @property
    def reference(self) -> Reference:
        """The float model."""
        if self._reference is None:
            model = self._trained or self.bench.model
            with float_parts(model, self._all_float(model)):
                self._reference = Reference(
                    self.bench, model, self.plans if self._trained else
                    make_plan(model, QuantConfig()))
        return self._reference

    def _prepare(self, setting: Setting) -> nn.Module:
        """The model of a setting, all of it quantized."""
        if self._trained is not None:
            made = 'trained', setting.way
        else:
            made = setting.bits, setting.way
        if self._made != made:
            self._model = self._trained if self._trained is not None else \
                self.bench.quantized(
                    self._base_quantization(setting.bits),
                    # A model that is quantized as a whole is off without.
                    recalibrate=setting.way == 'rest')
            self._replay = Replay(self._model, self.reference.calls,
                                  self.bench.forwards(self._model))
            self._made = made
        return self._model

    def _base(self, setting: Setting) -> Dict[str, tuple]:
        """What is float before the group of a setting."""
        return {name: PARTS['both'] for name in self.layers + self.others} \
            if setting.way == 'alone' else {}

    @torch.no_grad()
    def _measure(self, setting: Setting, members: Iterable[str]) -> Figures:
        model = self._prepare(setting)
        # What is tied to ReLUs would be lost with a copy of their output.
        replay = None if self.others else self._replay
        if replay is not None:
            with float_parts(model, self._base(setting)):
                replay.advance(members)
        with float_parts(model, float_in(setting, members,
                                         self.layers + self.others)):
            return self._figures(model, replay)

    def _figures(self, model: nn.Module, replay: Optional[Replay] = None
                 ) -> Figures:
        metrics, noise = self.reference.compare(model, replay)
        # COCO's evaluator gives nothing where a detector finds nothing.
        return Figures(metrics.get(self.metric, math.nan), noise.mean,
                       noise.error)


def _check_asked(bench: Bench, plans: List[LayerPlan], sides: Iterable[str],
                 ways: Iterable[str]) -> None:
    for name, values, allowed in (('side', sides, tuple(PARTS)),
                                  ('way', ways, WAYS)):
        for value in values:
            if value not in allowed:
                raise ValueError(f'{name} is {value!r}, allowed: '
                                 f'{", ".join(allowed)}')
    relus = [plan.name for plan in plans if plan.quantized
             and plan.parameter is None and not plan.child]
    for side in sides if relus else ():
        if side != 'weight':  # what they have rounded is no layer's own
            raise ValueError(
                f'--sides has {side!r}, but in {bench.checkpoint} ReLUs '
                f'({relus[0]}) round what layers read, which cannot be '
                'switched on for one layer: give --sides weight, or the '
                'checkpoint of the float model')


def measure_sensitivity(config: str, checkpoint: str, json_path: str,
                        bits: Optional[Iterable[int]] = None,
                        by: str = 'layer', batches: int = 8,
                        sides: Iterable[str] = ('both', ),
                        ways: Iterable[str] = WAYS,
                        only: Iterable[str] = (),
                        cfg_options: Optional[dict] = None
                        ) -> Tuple['Sensitivity', Dict[Setting, Figures]]:
    """See :meth:`Sensitivity.run`; measures and keeps the figures.

    Returns:
        tuple[Sensitivity, dict[Setting, Figures]]: What measured, and what.
    """
    bench = Bench(config, checkpoint, batches, cfg_options=cfg_options)
    sensitivity = Sensitivity(bench, Measurements(json_path, bench.inputs()))
    return sensitivity, sensitivity.run(bits, by, sides, ways, only)
