"""Outputs that integer kernels round, by what reads what."""
import pytest
import torch
from torch import nn

import gdrq_mm
from gdrq_mm.analysis import residual_outputs, shortest_patterns
from gdrq_mm.deploy import to_integer
from gdrq_mm.merge import merge

QUANTIZATION = dict(weight=dict(bits=4), activation=dict(bits=4))


class Block(nn.Module):
    """One ReLU serves two places; the sum is functional."""

    def __init__(self, downsample=False):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.first, self.norm1 = nn.Conv2d(4, 4, 3, padding=1), \
            nn.BatchNorm2d(4)
        self.second, self.norm2 = nn.Conv2d(4, 4, 3, padding=1), \
            nn.BatchNorm2d(4)
        self.downsample = nn.Sequential(
            nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)) if downsample else None

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.norm1(self.first(x)))
        y = self.norm2(self.second(y))
        y += identity
        return self.relu(y)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.pool = nn.MaxPool2d(2)
        self.layer1 = nn.Sequential(Block(), Block())
        self.layer2 = nn.Sequential(Block(True), Block())
        self.lateral = nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x):
        x = self.layer1(self.pool(self.act(self.stem(x))))
        y = self.lateral(x) + self.layer2(x)
        return self.head(y)


def calibrated(model, x, **quantization):
    gdrq_mm.quantize_(model, dict(QUANTIZATION, **quantization))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    return model.eval()


def test_outputs_are_those_that_the_integer_model_rounds():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 14, 14)
    found = residual_outputs(calibrated(Net(), x), x)
    assert set(found.outputs) == {
        'act',                       # read by a layer and, pooled, by a sum
        'layer1.0',                  # the sum, behind its ReLU
        'layer1.0.norm2', 'layer1.1.norm2',       # into the sum
        # layer1.1 is not: three layers read it, by equal quantizers
        'layer2.0', 'layer2.0.norm2', 'layer2.0.downsample.1',
        'layer2.1', 'layer2.1.norm2',
        'lateral', 'head'}
    # The last sum has one reader, which quantizes it.
    assert found.others == []


def test_trained_with_them_nothing_is_left_to_round():
    torch.manual_seed(0)
    x = torch.randn(1, 3, 14, 14)
    found = residual_outputs(calibrated(Net(), x), x)
    patterns = shortest_patterns(found.outputs, Net())
    assert len(patterns) < len(found.outputs)
    model = calibrated(Net(), x, residual=dict(outputs=patterns))
    assert residual_outputs(model, x) == ([], [])
    integer = to_integer(merge(model, x), x)
    assert not integer.sums
    assert not any(call.added for call in integer.calls)


def test_sums_that_no_module_returns_are_told():
    class Pyramid(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.outer = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            total = self.a(x) + self.b(x)
            return self.outer(total).relu(), total.sigmoid()

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.neck = Pyramid()

        def forward(self, x):
            return self.neck(x)

    x = torch.randn(1, 3, 8, 8)
    found = residual_outputs(calibrated(Whole(), x), x)
    assert found.outputs == ['neck.a', 'neck.b', 'neck.outer']
    assert found.others == ['neck']


def test_sums_of_the_model_itself_are_told():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.a(x) + self.b(x)

    x = torch.randn(1, 3, 8, 8)
    found = residual_outputs(calibrated(Sum(), x), x)
    assert found == (['a', 'b'], ['the model itself'])


def test_modules_of_two_names_go_by_the_first():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()
            self.norm, self.out = nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1)
            self.b, self.act, self.bn = self.a, self.relu, self.norm

        def forward(self, x):
            y = self.act(self.bn(self.b(x)))
            return self.out(y).sigmoid() * y

    x = torch.randn(1, 3, 8, 8)
    assert residual_outputs(calibrated(Twice(), x), x) == (
        ['relu', 'out'], [])


def test_quantizers_move_in_front_of_pooling():
    """The convolution then gives the few bits itself."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2),
        nn.Upsample(scale_factor=2), nn.Conv2d(4, 4, 3))
    x = torch.randn(1, 3, 12, 12)
    model = calibrated(model, x)
    merged = merge(model, x)
    assert residual_outputs(model, x).outputs == ['4']
    call = to_integer(merged, x).calls[0]
    assert not call.added and call.grid == merged[4].grid


def test_patterns_match_these_modules_and_no_others():
    model = nn.ModuleDict({f'layer{i}': nn.ModuleList([
        nn.ModuleDict(dict(bn1=nn.ReLU(), bn2=nn.ReLU()))
        for _ in range(2)]) for i in (1, 2)})
    names = [f'layer{i}.{j}.bn2' for i in (1, 2) for j in (0, 1)]
    assert shortest_patterns(names, model) == ['layer*.*.bn2']
    assert shortest_patterns(names[:2], model) == ['layer1.*.bn2']
    assert shortest_patterns([*names, 'layer2.1'], model) == [
        'layer*.*.bn2', 'layer2.1']


def test_patterns_of_names_that_patterns_would_read_are_literal():
    model = nn.ModuleDict({'a[1]': nn.ReLU(), 'a1': nn.ReLU(),
                           'b*': nn.ReLU(), 'bc': nn.ReLU()})
    assert shortest_patterns(['a[1]', 'b*'], model) == ['a[[]1]', 'b[*]']


def test_patterns_match_no_other_name_of_a_module():
    model = nn.ModuleDict(dict(a1=nn.ReLU(), a2=nn.ReLU(), b=nn.ReLU()))
    model['a3'] = model['b']
    assert shortest_patterns(['a1', 'a2'], model) == ['a1', 'a2']
    assert shortest_patterns(['a1', 'a2', 'a3'], model) == ['a*']


def test_names_that_are_no_modules_are_refused():
    model = nn.ModuleDict(dict(conv=nn.ReLU()))
    for name in ('cnov', '', 'con*'):
        with pytest.raises(ValueError, match='no module'):
            shortest_patterns([name], model)
