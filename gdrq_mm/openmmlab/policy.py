"""A mixed-precision policy for a config, from measured sensitivities."""
import copy
import hashlib
import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Dict, Iterable, List, Optional

from mmengine.config import Config
from mmengine.runner import Runner

from ..analysis.measurements import Measurements
from ..analysis.policy import (
    FLOAT,
    Bits,
    Layer,
    make_rules,
    predict_metric,
    predicted_noise,
    propose,
    relative_cost,
)
from ..analysis.sensitivity import Figures, shared_weights
from ..config import QuantConfig
from ..plan import make_plan, trace_layers
from ..plan.sizes import packed_bytes
from .bench import Bench
from .evaluating import scalars
from .metrics import rule_of, with_test
from .publish import quantization_of
from .sensitivity import Sensitivity

WEIGHT_BITS = (2, 3, 4, 8)


@dataclass
class Policy:
    """A choice of bits, and what is known of it.

    Args:
        name (str): 'proposed', or 'config': what the config says itself.
        choice (dict[str, Bits]): By the first name of a layer.
        size (float): Size of the weights, relative to float32.
        bops (float): Bit operations, relative to 32 by 32.
        noise (float): Predicted: the sum over layers.
        metric (float): Predicted from that.
        calibrated (Figures, optional): Measured without training.
        trained (float, optional): Metric after a training.
    """
    name: str
    choice: Dict[str, Bits]
    size: float
    bops: float
    noise: float
    metric: float
    calibrated: Optional[Figures] = None
    trained: Optional[float] = None


@dataclass
class Proposal:
    """A policy beside that of the config.

    Args:
        policies (list[Policy]): The proposed one first.
        rules (list[dict]): Rules of the proposed policy, for the config.
        quantization (dict): The config's, with these rules.
        metric_name (str): Name of the metric.
        float_metric (float): Metric of the float model.
        layers (list[Layer]): What has bits to choose.
    """
    policies: List[Policy]
    rules: List[dict]
    quantization: dict
    metric_name: str
    float_metric: float
    layers: List[Layer] = field(default_factory=list)


class Policies:
    """Propose policies for a float checkpoint.

    Args:
        bench (Bench): With the config of a quantized model.
        measurements (Measurements): Measurements of its sensitivity.

    Raises:
        ValueError: The checkpoint is quantized, or the config quantizes
            nothing.
    """

    def __init__(self, bench: Bench, measurements: Measurements) -> None:
        self.config = quantization_of(bench.cfg)
        if bench.is_trained:
            raise ValueError(
                f'{bench.checkpoint} is quantized already; a policy is '
                'proposed from the checkpoint of a float model')
        self.bench, self.measurements = bench, measurements
        self.sensitivity = Sensitivity(bench, measurements)

    def _layers(self, bits: Iterable[int], inputs: Optional[Iterable[int]],
                own: Dict[str, Bits]) -> List[Layer]:
        """All layers with their costs and measured noises.

        Args:
            bits (iterable of int): What weights may have.
            inputs (iterable of int, optional): What inputs may have; None:
                each those it has.
            own (dict[str, Bits]): What the config gives each layer.
        """
        plans, ways = self.sensitivity.plans, ('alone', )
        figures = self.sensitivity.run(
            sorted({*bits, *(each.weight for each in own.values())}),
            sides=('weight', ), ways=ways)
        for number in sorted({*(inputs or ()), *(
                each.activation for each in own.values())}):
            names = [name for name in self.sensitivity.groups()
                     if inputs or own[name].activation == number]
            if names:  # of none it would be all
                figures.update(self.sensitivity.run(
                    [number], sides=('activation', ), ways=ways, only=names))
        self._figures = figures
        model = self.sensitivity.example
        traces = trace_layers(model, plans, self.bench.forwards(model)[0])
        by_name = {plan.name: plan for plan in plans}

        def noises(name, side):
            return {setting.bits: each.noise
                    for setting, each in figures.items()
                    if (setting.group, setting.side) == (name, side)}

        layers = []
        for name, members in shared_weights(plans).items():
            quantized = (plan := by_name[name]).weight is not None
            layers.append(Layer(
                members, plan.parameter.numel(),
                {number: packed_bytes(plan.parameter.shape, replace(
                    plan.weight, bits=number)) for number in {
                        *bits, own[name].weight}} if quantized else {},
                sum(traces[member].macs for member in members),
                noises(name, 'weight') if quantized else {},
                noises(name, 'activation') if quantized else {},
                own[name].activation if quantized else FLOAT,
                fixed=not quantized,
                # Its noise of nothing is no reason for few bits.
                kept=own[name] if quantized and not any(
                    traces[member].calls for member in members) else None))
        return layers

    def propose(self, budgets: Optional[Dict[str, float]] = None,
                bits: Iterable[int] = WEIGHT_BITS) -> Proposal:
        """The policy of least noise.

        Args:
            budgets (dict[str, float], optional): See
                :func:`gdrq_mm.analysis.policy.propose`. Defaults to the size
                of the config's own policy.
            bits (iterable of int): What layers may have. Inputs keep the bits
                that the config gives each layer unless bit operations have a
                budget, since the size says nothing of them.
        """
        bits = sorted(set(bits))
        own = self._own_bits()
        inputs = bits if 'bops' in (budgets or ()) else None
        layers = self._layers(bits, inputs, own)
        own = {layer.names[0]: own[layer.names[0]] for layer in layers
               if not layer.fixed}
        budgets = budgets or dict(size=relative_cost(layers, 'size', own))
        choice = propose(layers, budgets, bits, inputs)
        points = [(0., self._float_metric)] + [
            (each.noise, each.metric) for each in self._figures.values()]
        rule = rule_of(self.sensitivity.metric, self.bench.cfg)
        policies = [Policy(
            name, bits_of, relative_cost(layers, 'size', bits_of),
            relative_cost(layers, 'bops', bits_of),
            predicted_noise(layers, bits_of),
            predict_metric(predicted_noise(layers, bits_of), points, rule))
            for name, bits_of in (('proposed', choice), ('config', own))]
        rules = make_rules(layers, choice, self.config, make_plan(
            self.bench.model, QuantConfig.from_dict(self.config)))
        return Proposal(policies, rules, dict(self.config, rules=rules),
                        self.sensitivity.metric, self._float_metric, layers)

    @property
    def _float_metric(self) -> float:
        return self.sensitivity.baseline()[self.sensitivity.metric]

    def _own_bits(self) -> Dict[str, Bits]:
        parsed = QuantConfig.from_dict(self.config)
        found = {}
        for name in self.sensitivity.layers:
            weight, activation = parsed.schemes(name)
            if weight.bits is None or activation.bits is None:
                raise ValueError(
                    f'the config leaves the weights or the inputs of {name} '
                    'float; policies choose both: give both bits, or skip '
                    'the layer')
            if weight.bits == 1:
                raise ValueError(
                    f'the config gives the weights of {name} 1 bit; policies '
                    'are of 2 to 8: give it 2, or skip the layer')
            found[name] = Bits(weight.bits, activation.bits)
        return found

    def calibrate(self, proposal: Proposal) -> None:
        """Measure both policies without training."""
        for policy, config in zip(proposal.policies, (
                proposal.quantization, self.config)):
            key = f'calibrated {sorted(policy.choice.items())}'
            policy.calibrated = self.sensitivity.evaluated(
                key, lambda config=config: self.bench.quantized(
                    config, recalibrate=True))

    def train(self, proposal: Proposal, folder: str) -> None:
        """Train both policies with the config's schedule, from the float
        checkpoint, and test them; an interrupted training goes on.

        Args:
            proposal (Proposal): Gets the metrics.
            folder (str): Work dirs of the two trainings go there.

        Raises:
            ValueError: One of them is of another training.
        """
        tested = with_test(copy.deepcopy(self.bench.cfg))
        checkpoint = self.bench.inputs()['checkpoint']
        for policy, config in zip(proposal.policies, (
                proposal.quantization, self.config)):
            cfg = with_quantization(tested, config)
            text = json.dumps(cfg.to_dict(), sort_keys=True, default=str)
            inputs = hashlib.sha256(
                f'{checkpoint} {text}'.encode()).hexdigest()[:16]
            key = f'trained in {folder} from {inputs}'
            kept = self.measurements.get(key)
            if kept is None:
                kept = self._train(cfg, inputs, Path(folder) / policy.name)
                self.measurements.put(key, kept)
            policy.trained = kept[self.bench.metric_of(kept)] if kept \
                else math.nan  # a detector that finds nothing

    def _train(self, cfg: Config, inputs: str, folder: Path
               ) -> Dict[str, float]:
        cfg.work_dir = str(folder)
        cfg.load_from = self.bench.checkpoint
        known = folder / 'inputs.txt'
        if (folder / 'last_checkpoint').exists():
            if not known.exists() or known.read_bytes() != inputs.encode():
                raise ValueError(
                    f'{folder} has a training of another config, policy or '
                    'checkpoint; give another folder to train in, or remove '
                    'it')
            cfg.load_from, cfg.resume = None, True
        folder.mkdir(parents=True, exist_ok=True)
        known.write_bytes(inputs.encode())
        cfg.experiment_name = f'policy_{folder.name}'
        runner = Runner.from_cfg(cfg)
        runner.train()
        return scalars(runner.test())


def with_quantization(cfg: Config, quantization: dict) -> Config:
    """The same config with another quantization, where it has its own."""
    cfg = copy.deepcopy(cfg)
    if cfg.model.get('quantization') is not None:
        cfg.model.quantization = quantization
        return cfg
    for hook in cfg.custom_hooks:
        if hook.get('quantization'):
            hook.quantization = quantization
    return cfg


def propose_policy(config: str, checkpoint: str, json_path: str,
                   budgets: Optional[Dict[str, float]] = None,
                   bits: Iterable[int] = WEIGHT_BITS, batches: int = 8,
                   calibrated: bool = False, train: Optional[str] = None,
                   cfg_options: Optional[dict] = None) -> Proposal:
    """See :class:`Policies`; measures what is needed and keeps it.

    Args:
        config (str): Config of the quantized model.
        checkpoint (str): Checkpoint of the float model.
        json_path (str): Where figures are kept.
        budgets (dict[str, float], optional): See :meth:`Policies.propose`.
        bits (iterable of int): Bit widths to choose from.
        batches (int): Number of batches of the validation data. Defaults to 8.
        calibrated (bool): Measure the policies without training.
        train (str, optional): Train both in this folder.
        cfg_options (dict, optional): Changes of the config.
    """
    bench = Bench(config, checkpoint, batches, cfg_options=cfg_options)
    policies = Policies(bench, Measurements(json_path, bench.inputs()))
    proposal = policies.propose(budgets, bits)
    if calibrated:
        policies.calibrate(proposal)
    if train:
        policies.train(proposal, train)
    return proposal

