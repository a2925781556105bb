"""What a quantized model must do as its float model does, check by check.

Every check raises :class:`Failure` with one sentence, or returns.
"""
import copy
import io
import math
import os
import sysconfig
from typing import Callable, Dict, List, Optional, Set

import numpy as np
import torch
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from gdrq_mm import quantize_
from gdrq_mm.deploy import pack
from gdrq_mm.plan import count_macs
from gdrq_mm.training import get_state

from .batches import as_video

BITS = 4
PACKAGES = sysconfig.get_path('purelib') + os.sep
QUANTIZATION = dict(weight=dict(bits=BITS, group_size=4),
                    activation=dict(bits=BITS))


class Failure(Exception):
    """A check that did not hold, in one sentence."""


def seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)


class Training:
    """Two steps through the package's own ``train_step``.

    Attributes:
        losses (list[float]): Losses of each step.
        gradients (dict[str, Tensor]): Gradients of the first step.
        learning (set[str]): Parameters that got a gradient in the last one.
        entries (set[str]): Names in the state dict afterwards.
    """

    def __init__(self, model: nn.Module, batch: Callable, steps: int = 2
                 ) -> None:
        self.losses: List[float] = []
        self.gradients: Dict[str, Tensor] = {}
        self.learning: Set[str] = set()
        names = {parameter: name
                 for name, parameter in model.named_parameters()}
        optimizer = torch.optim.SGD(
            [each for each in model.parameters() if each.requires_grad],
            lr=1e-3, momentum=.9)

        def note(*_):
            found = {names[each]: each.grad for each in names
                     if each.grad is not None}
            self.learning = set(found)
            if not self.gradients:
                self.gradients = {name: gradient.clone()
                                  for name, gradient in found.items()}

        optimizer.register_step_pre_hook(note)
        wrapper = OptimWrapper(optimizer, clip_grad=dict(max_norm=1.))
        model.train()
        for step in range(steps):
            # What a runner tells those that warm up.
            hub = MessageHub.get_current_instance()
            hub.update_info_dict(dict(epoch=0, iter=step))
            torch.manual_seed(step)
            np.random.seed(step)
            losses = model.train_step(batch(), wrapper)
            total = losses.get('loss')
            if total is None:
                total = sum(value.sum() for key, value in losses.items()
                            if 'loss' in key)
            self.losses.append(float(total))
        self.entries = set(model.state_dict())  # names: no tensor is kept
        for value in self.losses:
            if not math.isfinite(value):
                raise Failure(f'the loss is {value}')


def tensors_of(value) -> List[Tensor]:
    """All float and integer tensors in what a model returns."""
    if isinstance(value, Tensor):
        return [value.detach().clone()]
    if isinstance(value, np.ndarray) and value.dtype != object:
        return [torch.from_numpy(value.copy())]
    if isinstance(value, dict):
        return [each for key in value for each in tensors_of(value[key])]
    if isinstance(value, (list, tuple)):
        return [each for item in value for each in tensors_of(item)]
    if hasattr(value, 'all_keys') or hasattr(value, 'keys'):
        keys = value.keys()
        return [each for key in sorted(keys)
                for each in tensors_of(value.get(key))]
    if hasattr(value, 'tensor'):  # boxes
        return tensors_of(value.tensor)
    return []


def predict(model: nn.Module, batch: Callable) -> List[Tensor]:
    """What the model predicts, and its raw outputs before any threshold.

    Raises:
        Failure: It gives neither.
    """
    found, failures = [], []
    model.eval()
    for forward in (_test_step, _raw_forward):
        seed()
        try:
            with torch.no_grad():
                found += tensors_of(forward(model, batch()))
        except Exception as error:  # whatever a model of another task raises
            failures.append(error)
    found = [each for each in found if each.numel()]
    if not found:
        error = failures[0] if failures else None
        raise Failure('it predicts nothing: ' + sentence(error)
                      if error else 'it predicts nothing')
    return found


def _test_step(model: nn.Module, batch: dict):
    samples = batch.get('data_samples')
    if isinstance(samples, dict) or isinstance(batch['inputs'], dict) and \
            'sup' in batch['inputs']:
        batch = {key: value['sup'] for key, value in batch.items()}
    elif hasattr(model, 'tracker') and hasattr(samples[0], 'gt_instances'):
        batch = as_video(batch)
    return model.test_step(batch)


def _raw_forward(model: nn.Module, batch: dict):
    if isinstance(batch['inputs'], dict) and 'sup' in batch['inputs']:
        batch = {key: value['sup'] for key, value in batch.items()}
    data = model.data_preprocessor(batch, False)
    return model(**data, mode='tensor')


def sentence(error: Exception) -> str:
    """One line of an error, its type included, the same on every machine:
    packages are named without the folder that they are installed in."""
    lines = str(error).strip().splitlines() or ['']
    text = next((line.strip() for line in reversed(lines) if line.strip()),
                '') if 'class `' in lines[0] else lines[0]
    text = ' '.join(text.replace(PACKAGES, '').split())
    return f'{type(error).__name__}: {text}'[:240]


def compare(ours: List[Tensor], theirs: List[Tensor], what: str) -> None:
    """Bit for bit.

    Raises:
        Failure: They differ.
    """
    if [each.shape for each in ours] != [each.shape for each in theirs]:
        raise Failure(f'{what} has outputs of other shapes')
    differing = sum(int((~torch.isclose(
        a, b, rtol=0, atol=0, equal_nan=True)).sum())
        for a, b in zip(ours, theirs))
    if differing:
        total = sum(each.numel() for each in ours)
        raise Failure(f'{what} gives other outputs: {differing} of {total} '
                      'values differ')


def check_float_mode(plain: nn.Module, training: Optional[Training],
                     batch: Callable) -> None:
    """Converted but not rounding yet: outputs of the float model and, where
    it trains, loss and gradients of its first step."""
    converted = copy.deepcopy(plain)
    quantize_(converted, QUANTIZATION)
    state = get_state(converted)
    if state is None:
        raise Failure('no layer can be quantized')
    state.set_phase('reshape')
    compare(predict(converted, batch), predict(plain, batch), 'float mode')
    if training is None:
        return
    ours = Training(converted, batch, steps=1)
    if ours.losses[0] != training.losses[0]:
        raise Failure(f'float mode has another loss: {ours.losses[0]} '
                      f'instead of {training.losses[0]}')
    for name, gradient in training.gradients.items():
        found = ours.gradients.get(name)
        if found is None or not torch.equal(found, gradient):
            raise Failure(f'float mode has another gradient of {name}')


def check_gradients(quantized: Training, plain: Training) -> None:
    """The same parameters learn as in float."""
    expected, found = plain.learning, quantized.learning
    missing = sorted(expected - found)
    if missing:
        raise Failure(f'{len(missing)} parameters get no gradient that get '
                      f'one in float, {missing[0]} for one')
    added = sorted(found - expected)
    if added:
        raise Failure(f'{len(added)} parameters get a gradient that get none '
                      f'in float, {added[0]} for one')


def check_twice(model: nn.Module, batch: Callable) -> List[Tensor]:
    expected = predict(model, batch)
    compare(predict(model, batch), expected, 'a second prediction')
    return expected


def float_gap(model: nn.Module, training: Optional[Training]) -> List[str]:
    """Entries that a float model, built anew, does not load of its own state.

    Some models leave tables out that they compute anew; in others training
    gives a module another name.

    Args:
        model (nn.Module): The float model.
        training (Training, optional): That of another, built like it.

    Returns:
        list[str]: Names of entries that are missing or unknown, sorted.
    """
    state = model.state_dict()
    if training is not None:
        state = {name: state.get(name, torch.empty(0))
                 for name in training.entries}
    return _not_loaded(model, state, strict=False)


def _not_loaded(model: nn.Module, state: dict, strict: bool) -> List[str]:
    found = model.load_state_dict(state, strict=strict)
    return sorted({*found.missing_keys, *found.unexpected_keys})


def differing_entries(lost: List[str], gap: List[str]) -> List[str]:
    """Entries that only a quantized model, or only its float model, does not
    load. Of a layer that the float model does not load, all entries may be
    missing: it has those of its quantizers, or codes for its weight."""
    layers = tuple(name[:-len('weight')] for name in gap
                   if name.endswith('.weight'))
    return sorted(name for name in set(lost) ^ set(gap)
                  if not name.startswith(layers))


def check_reload(model: nn.Module, build: Callable, batch: Callable,
                 expected: List[Tensor], gap: List[str], packed: bool
                 ) -> None:
    """Saved, built anew, loaded: outputs are equal bit for bit, and all
    entries are loaded but those that the float model does not load, either
    (``gap``)."""
    file = io.BytesIO()
    torch.save(pack(model) if packed else model.state_dict(), file)
    file.seek(0)
    copied = build()
    quantize_(copied, QUANTIZATION)
    lost = _not_loaded(copied, torch.load(file, weights_only=True),
                       strict=not gap)
    other = differing_entries(lost, gap)
    if other:
        raise Failure(f'{len(other)} entries are not loaded as in float, '
                      f'{other[0]} for one')
    compare(predict(copied, batch), expected,
            'the packed model' if packed else 'the reloaded model')


def measure(model: nn.Module, batch: Callable) -> dict:
    """MACs of a prediction that see low-bit operands."""
    failure: Optional[Exception] = None
    for forward in (_test_step, _raw_forward):
        seed()
        data = batch()  # what is made inside would count as constants
        try:
            count = count_macs(model, lambda: forward(model, data), BITS)
        except Exception as error:
            failure = error
            continue
        if count.parametric:
            total = count.parametric
            rest = sorted(count.float_parameters().items(),
                          key=lambda item: -item[1])
            return dict(
                parametric=total, low_bit=count.low_bit,
                between_activations=count.between_activations,
                float=[[name, macs] for name, macs in rest[:20]])
    raise Failure('no MACs seen' if failure is None else sentence(failure))
