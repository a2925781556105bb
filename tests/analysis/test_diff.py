"""Differences between models, module by module, against planted faults."""
import copy
import math

import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.analysis.diff import (
    Energy,
    compare_models,
    first_parted,
    largest,
)
from gdrq_mm.analysis.diff_onnx import compare_onnx, compare_qonnx, is_qonnx
from gdrq_mm.analysis.tables import diff_table
from gdrq_mm.deploy import export_onnx, to_integer
from gdrq_mm.merge import merge
from gdrq_mm.training import calibrate

W4A4 = dict(weight=dict(bits=4), activation=dict(bits=4))


class Net(nn.Module):

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3)
        self.bn = nn.BatchNorm2d(8)
        self.conv = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(self.conv(x))
        return self.head(x.mean((2, 3)))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def x():
    return torch.rand(2, 3, 8, 8)


def compare(first, second, x):
    found = compare_models(first, second, [lambda model: model(x)])
    return found, {each.name: each for each in found}


def test_equal_models_part_nowhere(net, x):
    found, _ = compare(net, copy.deepcopy(net), x)
    assert [each.name for each in found] == ['stem', 'bn', 'conv', 'head']
    assert all(each.own.decibels == each.whole.decibels == math.inf
               for each in found)
    assert first_parted(found) is None


@pytest.mark.parametrize('fault, name', [
    (lambda model: model.conv.weight.data.mul_(1.1), 'conv'),
    (lambda model: model.bn.running_var.mul_(1.1), 'bn'),
    (lambda model: model.head.bias.data.add_(.1), 'head')])
def test_a_planted_fault_is_found(fault, name, net, x):
    faulty = copy.deepcopy(net)
    with torch.no_grad():
        fault(faulty)
    found, by_name = compare(net, faulty, x)
    assert first_parted(found).name == largest(found).name == name
    order = list(by_name)
    for each in found:
        assert (each.own.noise > 0) == (each.name == name)
        # What comes later differs through its input alone.
        assert (each.whole.noise > 0) == (
            order.index(each.name) >= order.index(name))


def test_the_ratio_is_that_of_the_definition(net, x):
    quantized = copy.deepcopy(net)
    quantize_(quantized, W4A4)
    calibrate(quantized, [lambda: quantized(x)])
    found, by_name = compare(net, quantized, x)
    with torch.no_grad():
        ours, theirs = net.stem(x).double(), quantized.stem(x).double()
    expected = 10 * torch.log10(ours.square().sum()
                                / (ours - theirs).square().sum())
    assert by_name['stem'].own.decibels == pytest.approx(float(expected))
    assert by_name['bn'].own.decibels == math.inf  # it is not quantized
    assert by_name['bn'].whole.decibels < math.inf
    assert not [each for each in found if 'quantizer' in each.name]


@pytest.mark.parametrize('bad', [math.nan, math.inf])
@pytest.mark.parametrize('other_way', [False, True])
def test_outputs_that_are_not_finite_part_most(bad, other_way, net, x):
    broken = copy.deepcopy(net)
    broken.conv.weight.data[0, 0, 0, 0] = bad
    found, by_name = compare(*((broken, net) if other_way else
                               (net, broken)), x)
    assert by_name['conv'].own.decibels == -math.inf
    assert by_name['bn'].own.decibels == math.inf
    assert first_parted(found).name == largest(found).name == 'conv'
    assert 'they part first at conv (-inf dB)' in diff_table(found)


def test_equal_values_part_nowhere_be_they_zero_or_infinite():
    energy = Energy()
    assert math.isnan(energy.decibels)  # nothing was compared
    energy.add(torch.zeros(2), torch.zeros(2))
    assert energy.decibels == math.inf
    energy.add(torch.tensor([1., -math.inf]), torch.tensor([1., -math.inf]))
    assert energy.decibels == math.inf and energy.signal == 1
    energy.add(torch.ones(1), torch.full((1, ), .9))
    assert energy.decibels == pytest.approx(10 * math.log10(2 / .01),
                                            rel=1e-5)


@pytest.mark.parametrize('inplace', [False, True])
def test_quantized_relus_and_outputs_are_compared_as_well(inplace, recwarn):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(inplace=inplace),
                          nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8)).eval()
    quantized, x = copy.deepcopy(plain), torch.randn(2, 3, 8, 8)
    quantize_(quantized, dict(
        weight=dict(bits=8), activation=dict(bits=2, site='relu'),
        residual=dict(outputs=['3'])))
    calibrate(quantized, [lambda: quantized(x)])
    with torch.no_grad():
        expected = plain[:2](x.clone())
        noise = (quantized[1](plain[0](x)) - expected).square().sum()
    found, by_name = compare(plain, quantized, x)
    assert list(by_name) == ['0', '1', '2', '3']
    assert by_name['1'].own.noise == pytest.approx(float(noise))
    assert by_name['1'].own.signal == pytest.approx(
        float(expected.square().sum()))
    assert by_name['2'].own.decibels > 30  # its weight alone
    assert by_name['3'].own.noise > 0  # its output
    found, by_name = compare(quantized, copy.deepcopy(quantized), x)
    assert list(by_name) == ['0', '1', '2', '3.output_quantizer', '3']
    assert first_parted(found) is None
    assert not recwarn


class Attends(nn.Module):

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(self.attention(x, x, x)[0])


def test_modules_that_return_tuples_are_compared_by_the_first():
    torch.manual_seed(0)
    model = Attends().eval()
    faulty = copy.deepcopy(model)
    faulty.attention.in_proj_weight.data.mul_(1.1)
    found, by_name = compare(model, faulty, torch.randn(2, 6, 8))
    assert first_parted(found).name == 'attention'
    assert by_name['attention'].whole.noise > 0
    assert by_name['head'].own.decibels == math.inf


def test_models_of_other_configs_are_refused(net, x):
    with pytest.raises(ValueError, match='has no module stem: both must'):
        compare(net, nn.Sequential(), x)


def test_a_fault_in_an_onnx_file_is_found_by_name(net, x, tmp_path):
    quantize_(net, W4A4)
    calibrate(net, [lambda: net(x)])
    model = to_integer(merge(net, x), x)
    path = tmp_path / 'model.onnx'
    export_onnx(model, x, path)
    found = compare_onnx(model, path, [(x, )])
    assert [each.name for each in found] == ['stem', 'conv', 'head']
    assert first_parted(found) is None
    proto = onnx.load(str(path))
    node = next(each for each in proto.graph.node if each.name == 'conv')
    producers = {name: each for each in proto.graph.node
                 for name in each.output}
    weight = next(each for each in proto.graph.initializer if each.name
                  == producers[node.input[1]].input[0])
    codes = numpy_helper.to_array(weight).copy()
    codes[0] = -codes[0]
    weight.CopyFrom(numpy_helper.from_array(codes, weight.name))
    onnx.save(proto, str(path))
    found = compare_onnx(model, path, [(x, )])
    assert first_parted(found).name == 'conv'
    assert [each.own.noise > 0 for each in found] == [False, True, False]
    assert found[2].whole.noise > 0
    with pytest.raises(ValueError, match='has no quantized layer stem'):
        onnx.save(onnx.helper.make_model(onnx.helper.make_graph(
            [], 'empty', [], [])), str(path))
        compare_onnx(model, path, [(x, )])


class Twice(nn.Module):
    """A layer of float values that the same layer reads."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.second(self.second(self.first(x).relu()))


@pytest.mark.parametrize('form', ['qdq', 'tensorrt'])
def test_a_layer_of_float_values_that_become_codes_has_no_fault(
        form, tmp_path):
    torch.manual_seed(0)
    model, x = Twice(), torch.randn(64, 8)
    quantize_(model, W4A4)
    calibrate(model, [lambda: model(x)])
    integer = to_integer(merge(model.eval(), x), x, container={
        'qdq': 'uint8', 'tensorrt': 'int8'}[form])
    path = tmp_path / 'model.onnx'
    export_onnx(integer, x, path, form)
    found = compare_onnx(integer, path, [(x, )])
    assert len(found) == 3 and first_parted(found) is None


def test_a_fault_in_a_qonnx_file_is_found_by_name(net, x, tmp_path):
    quantize_(net, W4A4)
    calibrate(net, [lambda: net(x)])
    model = merge(net, x)
    path = tmp_path / 'model.onnx'
    export_onnx(model, x, path, format='qonnx')
    assert is_qonnx(path)
    found = compare_qonnx(model, path, [(x, )])
    assert [each.name for each in found] == ['stem', 'conv', 'head']
    assert first_parted(found) is None
    proto = onnx.load(str(path))
    producers = {name: each for each in proto.graph.node
                 for name in each.output}
    node = next(each for each in proto.graph.node if each.name == 'conv')
    weight = next(each for each in proto.graph.initializer if each.name
                  == producers[node.input[1]].input[0])
    values = numpy_helper.to_array(weight).copy()
    values[0] = -values[0]
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    onnx.save(proto, str(path))
    found = compare_qonnx(model, path, [(x, )])
    assert first_parted(found).name == largest(found).name == 'conv'
    assert found[2].whole.noise > 0
    other = quantize_other(x)
    with pytest.raises(ValueError, match='was not exported from this check'):
        compare_qonnx(other, path, [(x, )])


def quantize_other(x):
    torch.manual_seed(1)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()).eval()
    quantize_(model, W4A4)
    calibrate(model, [lambda: model(x)])
    return merge(model, x)
