"""Where two models of one architecture part, module by module."""
import math
import warnings
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, List, Optional

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..functional import to_float64
from ..layers import OutputQuantizer, QuantReLU
from ..plan.trace import first_tensor
from ..quantizers import Quantizer

PARTED = 60.  # decibels; float32 of another order of sums has over 100


@dataclass
class Energy:
    """Energies of signals and of their differences.

    Args:
        signal (float): That of what is expected, where it is finite.
        noise (float): That of the difference; not finite where a value is not,
            unless both are the same infinity.
        values (int): How many were compared.
    """
    signal: float = 0.
    noise: float = 0.
    values: int = 0

    def add(self, expected: Tensor, found: Tensor) -> None:
        expected, found = to_float64(expected), to_float64(found)
        difference = (expected - found).where(expected != found, 0.)
        self.signal += float(expected[expected.isfinite()].square().sum())
        self.noise += float(difference.square().sum())
        self.values += found.numel()

    @property
    def decibels(self) -> float:
        """Signal-to-quantization-noise ratio; infinite where all is equal,
        minus infinity where only one is finite or either is no number, NaN
        where nothing was compared."""
        if not self.values:
            return math.nan
        if not math.isfinite(self.noise):
            return -math.inf
        if self.noise == 0:
            return math.inf
        return 10 * math.log10(max(self.signal, 1e-300) / self.noise)


@dataclass
class Difference:
    """How one module, or one layer of an ONNX file, differs.

    Args:
        name (str): The module.
        whole (Energy): Energy of its outputs, with the inputs that each model
            has: what has come up to here.
        own (Energy): Energy of its outputs with the inputs of the first model:
            what this module adds.
    """
    name: str
    whole: Energy = field(default_factory=Energy)
    own: Energy = field(default_factory=Energy)


def first_parted(differences: List[Difference], below: float = PARTED
                 ) -> Optional[Difference]:
    """The first module that itself differs by more than a threshold.

    Args:
        differences (list[Difference]): In the order of their calls.
        below (float): Signal-to-noise ratio in decibels. Defaults to 60.
    """
    return next((each for each in differences
                 if each.own.decibels < below), None)


def largest(differences: List[Difference]) -> Optional[Difference]:
    """The module that adds the most noise."""
    found = [each for each in differences
             if not math.isnan(each.own.decibels)]
    return min(found, key=lambda each: each.own.decibels, default=None)


@torch.no_grad()
def compare_models(first: nn.Module, second: nn.Module,
                   forwards: List[Callable]) -> List[Difference]:
    """Compare the outputs of all modules that own parameters or buffers, and
    of quantized ReLUs and outputs.

    Args:
        first (nn.Module): In eval mode; what the other one is compared with.
        second (nn.Module): A model of the same architecture, in eval mode.
        forwards (list[callable]): Each runs the model that it is given on
            one batch.

    Returns:
        list[Difference]: In the order of calls. Outputs whose shapes differ,
        as those of detectors' heads on other proposals, are compared with
        equal inputs only.

    Raises:
        ValueError: The second model lacks a module of the first.
    """
    others = dict(second.named_modules())
    modules = {name: module for name, module in first.named_modules()
               if name and (_computes(name, module, first) or isinstance(
                   others.get(name), (QuantReLU, OutputQuantizer)))}
    missing = [name for name in modules if name not in others]
    if missing:
        raise ValueError(
            f'the second model has no module {missing[0]}: both must be of '
            'one config')
    found: Dict[str, Difference] = {}
    for forward in forwards:
        outputs = _run_first(first, modules, others, forward, found)
        _run_second(second, {name: others[name] for name in modules},
                    forward, outputs, found)
    return list(found.values())


def _computes(name: str, module: nn.Module, model: nn.Module) -> bool:
    """Layers and norms, without the quantizers inside of them."""
    parent = model.get_submodule(name.rpartition('.')[0])
    return 'quantiz' not in name.rpartition('.')[2] and \
        not isinstance(module, Quantizer) and \
        'quantiz' not in type(parent).__name__.lower() and any(
            True for values in (module._parameters, module._buffers)
            for value in values.values() if value is not None) and \
        'preprocessor' not in name


def _run_first(model, modules, others, forward, found) -> Dict[str, list]:
    outputs: Dict[str, list] = {}

    def hook(name):
        def compare(module, args, kwargs, output):
            value = first_tensor(output)  # attention returns its map, too
            if value is not None:
                outputs.setdefault(name, []).append(value.clone())
                own = _call_alone(others[name], args, kwargs)
                found.setdefault(name, Difference(name)).own.add(value, own)
        return compare

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(
                hook(name), with_kwargs=True).remove)
        forward(model)
    return outputs


def _call_alone(module: nn.Module, args: tuple, kwargs: dict) -> Tensor:
    """What a module of the second model gives for inputs of the first."""
    if getattr(module, 'inplace', False):  # the first model goes on with them
        args = tree_map(_cloned, args)
    with warnings.catch_warnings():
        # Of layers behind a quantized ReLU, which set none for their input.
        warnings.filterwarnings('ignore', 'an activation threshold is not set')
        return first_tensor(module(*args, **kwargs))


def _cloned(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _run_second(model, modules, forward, outputs, found) -> None:
    left = {name: iter(values) for name, values in outputs.items()}

    def hook(name):
        def compare(module, args, output):
            value = first_tensor(output)
            if value is None:
                return
            expected = next(left.get(name, iter(())), None)
            if expected is not None and value.shape == expected.shape:
                found[name].whole.add(expected, value)
        return compare

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_hook(hook(name)).remove)
        forward(model)
