"""Training on a device that has no float64, as GPUs of Apple."""
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

import gdrq_mm
from gdrq_mm import functional
from gdrq_mm.analysis.layer_figures import find_trouble, measure_layers
from gdrq_mm.training import get_state

# In place of 'mps', which PyTorch has on its own machines only.
DEVICE = torch.device('meta')


class There(torch.Tensor):
    """A tensor of the device; its values are on the CPU."""
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), dtype=inner.dtype,
            storage_offset=inner.storage_offset(), device=DEVICE)

    def __init__(self, inner):
        self.inner = inner

    def tolist(self):
        return self.inner.tolist()

    def new_tensor(self, data, dtype=None):
        return torch.tensor(data, dtype=dtype or self.dtype).to(DEVICE)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Device(TorchDispatchMode):
    """Functions of no tensor, which make one on a device, as well."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args, kwargs):
    ours, others = {}, []

    def unwrap(x):
        if isinstance(x, There):
            ours[id(x.inner)] = x
            return x.inner
        if isinstance(x, torch.Tensor) and x.dim():
            others.append(x)
        return x

    args, kwargs = tree_map(unwrap, (args, kwargs))
    moves = func.overloadpacket in (torch.ops.aten.copy_,
                                    torch.ops.aten._to_copy)
    if ours and others and not moves:
        raise RuntimeError(f'{func}: tensors of two devices')
    device = kwargs.get('device')
    if device == DEVICE:
        kwargs['device'] = torch.device('cpu')
    is_there = bool(ours) if device is None else device == DEVICE

    def wrap(x):
        if not isinstance(x, torch.Tensor):
            return x
        if id(x) in ours:
            return ours[id(x)]
        if not is_there or any(x is each for each in others):
            return x
        if x.dtype is torch.float64:
            raise TypeError(f'{func}: the device has no float64')
        return There(x)

    return tree_map(wrap, func(*args, **kwargs))


@pytest.fixture
def device(monkeypatch):
    assert functional.WITHOUT_FLOAT64 == ('mps', )
    monkeypatch.setattr(functional, 'WITHOUT_FLOAT64', (DEVICE.type, ))
    monkeypatch.setattr(torch, 'is_autocast_enabled', lambda *_: False)
    for name in ('tensor', 'as_tensor'):
        make = getattr(torch, name)

        def made(*args, make=make, device=None, **kwargs):
            found = make(*args, **kwargs)
            return found if device is None else found.to(device)

        monkeypatch.setattr(torch, name, made)


def move_(model):
    for module in model.modules():
        for name, value in module._parameters.items():
            if value is not None:
                module._parameters[name] = nn.Parameter(There(value.detach()))
        for name, value in module._buffers.items():
            if value is not None:
                module._buffers[name] = There(value)


def network():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 8, 3),
        nn.ReLU(), nn.Flatten(), nn.Linear(128, 4))


def train(model, x, steps=12):
    optimizer = torch.optim.SGD(model.parameters(), lr=.01, foreach=False)
    for _ in range(steps):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return model.eval()(x)


@pytest.mark.parametrize('config', [
    dict(weight=dict(bits=2), activation=dict(bits=4)),
    dict(weight=dict(bits=2), activation=dict(bits=4, site='relu')),
    dict(weight=dict(bits=3, clip='search', group_size=3),
         activation=dict(bits=4, threshold='nonzero')),
    dict(weight=dict(bits=4, clip='learned'),
         activation=dict(bits=4, threshold='learned')),
    dict(weight=dict(bits=1), activation=dict(bits=4, asymmetric=True)),
] + [dict(weight=dict(type=name, bits=4), activation=dict(type=name, bits=4))
     for name in ('LSQ', 'LSQPlus', 'PACT', 'DoReFa', 'DirectQuantization')],
    ids=str)
def test_training_there_equals_that_on_the_cpu(device, config):
    outputs, figures = [], []
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    for is_there in (False, True):
        torch.manual_seed(0)
        model = network()
        gdrq_mm.quantize_(model, config)
        with Device():
            if is_there:
                move_(model)
            there = There(x) if is_there else x
            output = train(model, there)
            outputs.append(output.inner if is_there else output)
            found = measure_layers(model, [lambda: model(there)])
            find_trouble(found.values())
            figures.append({
                f'{name}.{part}.{key}': float(value)
                for name, layer in get_state(model).layers.items()
                for part, quantizer in layer.quantizers()
                for key, value in quantizer.scalars(
                    layer.weight if 'weight' in part else None).items()})
    torch.testing.assert_close(*outputs, rtol=1e-4, atol=1e-5)
    assert figures[0] == pytest.approx(figures[1], rel=1e-4)
    assert figures[0]
