import json
import math

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx, to_integer
from gdrq_mm.export import onnx_check, qonnx_check
from gdrq_mm.export.between_check import difference
from gdrq_mm.export.codes import pack_codes
from gdrq_mm.merge import merge


class Net(nn.Module):
    """A shared convolution, a residual sum, 8-bit ends."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.pool, self.relu = nn.MaxPool2d(2), nn.ReLU()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)
        nn.init.normal_(self.norm.weight)
        nn.init.normal_(self.norm.bias)

    def forward(self, x):
        x = self.pool(self.relu(self.norm(self.stem(x))))
        x = self.relu(self.conv(x) + x)
        x = self.relu(self.conv(x) + x)
        return self.head(x.mean((2, 3)))


def quantized(bits, end_bits=8, **options):
    torch.manual_seed(bits)
    model, x = Net(), torch.randn(1, 3, 14, 14)
    ends = dict(weight=dict(bits=end_bits), activation=dict(bits=end_bits))
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=bits, **options),
        activation=dict(bits=max(bits, 2)),
        rules=[dict(match=name, **ends) for name in ('stem', 'head')]))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    return model.eval(), x


@pytest.mark.parametrize('bits, weights, options', [
    (1, 'int2', {}), (2, 'int2', {}), (4, 'int4', {}), (8, 'int8', {}),
    (2, 'int2', dict(levels='even')), (3, 'int4', dict(levels='even')),
    (2, 'int2', dict(type='LSQ')), (4, 'int4', dict(type='LSQ'))])
def test_onnx_runtime_runs_integers_and_equals_the_integer_model(
        bits, weights, options, tmp_path):
    model, x = quantized(bits, **options)
    integer = to_integer(merge(model, x), x)
    report = export_onnx(integer, x, tmp_path / 'model.onnx',
                         weights=weights, metadata=dict(classes='["cat"]'))
    told = {each.key: each.value for each in onnx.load(str(
        tmp_path / 'model.onnx')).metadata_props}
    assert told['classes'] == '["cat"]'
    assert json.loads(told['weight_bits'])['conv'] == bits
    assert list(report.kernels.values()) == ['QLinearConv'] * 3 + ['QGemm']
    assert list(report.kernels) == ['stem', 'conv', 'conv#2', 'head']
    assert all(equal == total for equal, total in report.codes.values())
    other = torch.randn(1, 3, 14, 14)
    result, = onnx_check.run(
        onnx_check.session(tmp_path / 'model.onnx'), [other])
    torch.testing.assert_close(torch.from_numpy(result), integer(other),
                               rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize('bits, options', [
    *((bits, {}) for bits in (2, 3, 4, 8)), (2, dict(levels='even')),
    (3, dict(levels='even')), (4, dict(type='LSQ'))])
def test_qonnx_executor_equals_the_quantized_model(bits, options, tmp_path):
    model, x = quantized(bits, end_bits=bits, **options)
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, x, path, 'qonnx', output_names=['logits'])
    result = torch.from_numpy(qonnx_check.run_qonnx(path, [x])['logits'])
    expected = model(x)
    assert (result - expected).abs().max() <= 1e-5 * expected.abs().max()
    assert max(report.layers.values()) <= 1e-5
    nodes = onnx.load(str(path)).graph.node
    quants = [node for node in nodes if node.op_type == 'Quant']
    assert len(quants) == report.quant_nodes == 7  # 3 weights, 4 inputs
    producers = {name for node in nodes for name in node.output}
    for quant in quants:
        attributes = {each.name: onnx.helper.get_attribute_value(each)
                      for each in quant.attribute}
        weight = quant.input[0] not in producers and quant.input[0] != 'x'
        if weight:
            assert attributes['signed'] == attributes['narrow'] == 1
        assert attributes['rounding_mode'] == b'ROUND'


def test_small_containers_make_small_files(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(64, 256, 3)), torch.rand(1, 64, 4, 4)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=2),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    integer = to_integer(merge(model, x), x)
    sizes = [export_onnx(integer, x, tmp_path / weights, weights=weights).size
             for weights in ('int8', 'int4', 'int2')]
    size = 4 * model[0].weight.numel()
    assert sizes[0] < size / 3.7 and sizes[1] < size / 7 \
        and sizes[2] < size / 13


@settings(max_examples=50, deadline=None, derandomize=True)
@given(data=st.data(), bits=st.integers(2, 8),
       shape=st.sampled_from([(1, ), (7, 5), (3, 2, 3, 3), (4, 5)]))
def test_packed_codes_are_what_their_bytes_stand_for(data, bits, shape):
    top = 2**(bits - 1) - 1
    codes = np.array(data.draw(st.lists(
        st.integers(-top, top), min_size=math.prod(shape),
        max_size=math.prod(shape))), np.int8).reshape(shape)
    packed, table = pack_codes(codes, bits)
    digits = {2: 5, 3: 2, 4: 2}.get(bits, 1)
    assert packed.dtype == np.uint8 and table.dtype == np.int8
    assert table.shape == ((2 * top + 1)**digits, digits)
    assert packed.size == -(-codes.size // digits)
    assert np.array_equal(table[packed].ravel()[:codes.size], codes.ravel())


def test_odd_codes_have_a_base_of_their_own():
    codes = np.array([3, -3, 1, -1, 3], np.int8)
    packed, table = pack_codes(codes, bits=2)
    assert len(packed) == 2 and table.shape == (256, 4)
    assert np.array_equal(table[packed].ravel()[:5], codes)
    codes[1] = 0  # a channel that normalization has switched off
    packed, table = pack_codes(codes, bits=2)
    assert np.array_equal(table[packed].ravel()[:5], codes)


def test_zeros_of_one_bit_are_packed():
    """As of a layer whose normalization weighs nothing."""
    packed, table = pack_codes(np.zeros(9, np.int8), bits=1)
    assert not table[packed].any()


def test_a_model_that_is_one_layer_is_packed(tmp_path):
    torch.manual_seed(0)
    model, x = nn.Linear(128, 128), torch.randn(2, 128)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    integer = to_integer(merge(model.eval(), x), x)
    whole, packed = (export_onnx(integer, x, tmp_path / weights,
                                 weights=weights).size
                     for weights in ('int8', 'int4'))
    assert whole - packed > .4 * model.weight.numel()
    result, = onnx_check.run(onnx_check.session(tmp_path / 'int4'), [x])
    torch.testing.assert_close(torch.from_numpy(result), integer(x),
                               rtol=1e-6, atol=1e-6)


class ComputedKernel(nn.Module):
    """A convolution whose kernel is the output of a layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.kernel = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        kernel = self.kernel(nn.functional.adaptive_avg_pool2d(x, 3))
        x = nn.functional.conv2d(x, kernel.reshape(8, 1, 3, 3), groups=8)
        return self.head(x.relu())


@pytest.mark.parametrize('format', ['qdq', 'tensorrt'])
def test_a_computed_kernel_is_no_weight_of_a_layer(format, tmp_path):
    torch.manual_seed(0)
    model, x = ComputedKernel(), torch.randn(1, 3, 10, 10)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged = merge(model.eval(), x)
    report = export_onnx(merged, x, tmp_path / 'model.onnx', format)
    assert len(report.codes) == 3
    assert all(equal == total for equal, total in report.codes.values())


def test_examples_of_a_calibration_have_the_shape_of_the_graph(tmp_path):
    model, x = quantized(4)
    merged = merge(model, x)
    with pytest.raises(ValueError, match=(
            r'calibration has the shapes \[\(2, 3, 14, 14\)\], that of the '
            r'graph \[\(1, 3, 14, 14\)\]')):
        to_integer(merged, x, [x.repeat(2, 1, 1, 1)])
    integer = to_integer(merged, x, [x])
    with pytest.raises(ValueError, match='calibration does nothing to an'):
        export_onnx(integer, x, tmp_path / 'new', calibration=[x])
    assert not (tmp_path / 'new').exists()


def test_channels_of_different_factors_are_unpacked_exactly(tmp_path):
    """A channel whose bias fills int32 leaves no room for a factor."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), \
        torch.rand(1, 3, 9, 9)
    model[1].weight.data = torch.tensor([1., 1e-7, 1e-6, -1.])
    model[1].bias.data = torch.tensor([0., 1., -3., 1.])
    gdrq_mm.quantize_(model, dict(weight=dict(bits=2),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    integer = to_integer(merge(model.eval(), x), x)
    assert len(set(integer.weights['0'].factor.tolist())) > 1
    report = export_onnx(integer, x, tmp_path / 'model.onnx', weights='int2')
    (equal, total), = report.codes.values()
    assert equal == total


class Equal(nn.Module):
    """Two layers with the same weights, one of them under two names."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.b.load_state_dict(self.a.state_dict())
        self.head = nn.Conv2d(4, 4, 1)
        self.again = self.b

    def forward(self, x):
        return self.head(self.again(self.a(x).relu()).relu())


class Twins(nn.Module):
    """Two layers of equal weights that read the same, in two depths."""

    def __init__(self):
        super().__init__()
        self.a, self.c, self.head = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.b, self.d = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.b.load_state_dict(self.a.state_dict())
        self.d.load_state_dict(self.c.state_dict())

    def forward(self, x):
        left, right = self.c(self.a(x).relu()), self.d(self.b(x).relu())
        return self.head(left.relu() + 2 * right.relu())


class Attention(nn.Module):
    """A product of two activations."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = (nn.Conv2d(4, 4, 1) for _ in range(3))

    def forward(self, x):
        return self.head(torch.matmul(self.a(x), self.b(x)))


def calibrated(model, **quantization):
    torch.manual_seed(0)
    x = torch.randn(1, 4, 8, 8)
    gdrq_mm.quantize_(model, dict(dict(
        weight=dict(bits=2), activation=dict(bits=4)), **quantization))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    return model.eval(), x


@pytest.mark.parametrize('format, weights', [
    ('qdq', 'int8'), ('qdq', 'int2'), ('qonnx', 'int8')])
def test_layers_of_equal_weights_and_of_two_names_keep_their_names(
        format, weights, tmp_path):
    model, x = calibrated(Equal())
    path = tmp_path / 'model.onnx'
    report = export_onnx(model, x, path, format, weights=weights)
    assert list(report.codes or report.layers) == ['a', 'b', 'head']
    proto = onnx.load(str(path)).graph
    assert [node.name for node in proto.node if node.op_type == 'Conv'] == [
        'a', 'b', 'head']
    read = {name for node in proto.node for name in node.input}
    assert {each.name for each in proto.initializer} <= read


@pytest.mark.parametrize('format', ['qdq', 'qonnx'])
def test_what_twins_compute_is_computed_once(format, tmp_path):
    model, x = calibrated(Twins())
    report = export_onnx(model, x, tmp_path / 'model.onnx', format)
    assert list(report.codes or report.layers) == ['a', 'c', 'head']
    assert report.difference < 1e-5


@pytest.mark.parametrize('outputs', [[], ['a', 'b']])
def test_products_of_two_activations_are_no_layers(outputs, tmp_path):
    model, x = calibrated(Attention(), residual=dict(outputs=outputs))
    report = export_onnx(model, x, tmp_path / 'model.onnx', 'qonnx')
    assert list(report.layers) == ['a', 'b', 'head']
    assert report.difference < 1e-5


def test_nothing_is_written_where_a_layer_runs_in_float(tmp_path,
                                                        monkeypatch):
    model, x = quantized(4)
    monkeypatch.setattr(onnx_check, 'INTEGER_KERNELS', ('QLinearConv', ))
    with pytest.raises(RuntimeError, match='1 of 4 .*in float.*skip=True'
                       '(.|\n)*head'):
        export_onnx(model, x, tmp_path / 'model.onnx')
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_where_codes_differ(tmp_path, monkeypatch):
    model, x = quantized(4)
    integer = to_integer(merge(model, x), x)

    def broken(proto, path):
        for each in proto.graph.initializer:
            if each.name == 'conv.bias':
                bias = onnx.numpy_helper.to_array(each) + 500
                each.CopyFrom(onnx.numpy_helper.from_array(bias, each.name))
        onnx.save(proto, str(path))

    monkeypatch.setattr('gdrq_mm.export.onnx_file.write', broken)
    with pytest.raises(RuntimeError, match='the worst layer is conv .*'
                       'skip=True'):
        export_onnx(integer, x, tmp_path / 'model.onnx')
    assert not list(tmp_path.iterdir())


def test_calls_that_a_file_has_not_are_named(tmp_path, monkeypatch):
    model, x = quantized(4)

    def some(path):
        return dict(list(kernels(path).items())[:-1])

    kernels = onnx_check.kernels
    monkeypatch.setattr(onnx_check, 'kernels', some)
    with pytest.raises(RuntimeError, match='has 3 calls of quantized layers, '
                       'the model 4: head; .*skip=True'):
        export_onnx(model, x, tmp_path / 'model.onnx')
    assert not list(tmp_path.iterdir())


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        return self.conv(x).sigmoid()


@pytest.mark.parametrize('format', ['qdq', 'qonnx'])
def test_an_operator_between_layers_that_computes_something_else_is_refused(
        format, tmp_path, monkeypatch):
    model, x = calibrated(Gate())
    export_onnx(model, x, tmp_path / 'right.onnx', format)

    def broken(proto, path):
        for node in proto.graph.node:
            if node.op_type == 'Sigmoid':
                node.op_type = 'Tanh'
        onnx.save(proto, str(path))

    monkeypatch.setattr('gdrq_mm.export.onnx_file.write', broken)
    with pytest.raises(RuntimeError, match='given what the layers gave, .*% '
                       'of .* differ .*nothing was written.*--raw'):
        export_onnx(model, x, tmp_path / 'wrong.onnx', format)
    assert not (tmp_path / 'wrong.onnx').exists()


def test_wrong_values_are_refused_before_any_work(tmp_path):
    model, x = nn.Conv2d(3, 4, 3), torch.rand(1, 3, 8, 8)
    (tmp_path / 'there').write_text('mine')
    with pytest.raises(FileExistsError, match='exists'):
        export_onnx(model, x, tmp_path / 'there')
    assert (tmp_path / 'there').read_text() == 'mine'
    for message, options in [
            ('allowed: .*qonnx', dict(format='tflite')),
            ('allowed: int8, int4', dict(weights='int3')),
            ('container of qdq', dict(format='qonnx', weights='int4')),
            ('no layer .* has quantized weights', dict())]:
        with pytest.raises(ValueError, match=message):
            export_onnx(model, x, tmp_path / 'new', **options)
    model, x = quantized(4)
    integer = to_integer(merge(model, x), x)
    with pytest.raises(ValueError, match='int2.* the smallest have 4'):
        export_onnx(integer, x, tmp_path / 'new', weights='int2')
    with pytest.raises(ValueError, match='not made of an '
                       'integer model: give the merged one'):
        export_onnx(integer, x, tmp_path / 'new', 'qonnx')


def test_files_say_nothing_about_the_machine(tmp_path):
    model, x = quantized(4)
    export_onnx(model, x, tmp_path / 'model.onnx')
    text = (tmp_path / 'model.onnx').read_bytes()
    assert b'.py' not in text and b'stack_trace' not in text


@pytest.mark.parametrize('first', [0., 1.])
def test_a_nan_is_a_difference(first):
    ours = torch.tensor([first, 1.]), torch.tensor([2.])
    theirs = [np.array([first, np.nan], np.float32), np.ones(1, np.float32)]
    assert math.isnan(difference(ours, theirs))
    assert difference(ours, [each.numpy() for each in ours]) == 0


def test_a_missing_output_is_no_agreement():
    x = torch.ones(2)
    with pytest.raises(ValueError, match='the file has 1 outputs, the model '
                       '2'):
        difference((x, x), [x.numpy()])
