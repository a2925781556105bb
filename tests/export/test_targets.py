"""The same model in OpenVINO, and in the form for TensorRT."""
import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, max_pool2d

import gdrq_mm
from gdrq_mm.deploy import export_onnx, to_integer
from gdrq_mm.export import onnx_check, openvino_check
from gdrq_mm.export.speed import speed_against_float
from gdrq_mm.integer.ranges import widen_grids
from gdrq_mm.merge import merge


class Net(nn.Module):
    """Residual, with a ReLU6, a padding, a depthwise layer, a head."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.relu, self.relu6 = nn.ReLU(), nn.ReLU6()
        self.deep = nn.Conv2d(8, 8, 3, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu6(self.norm(self.stem(x)))
        x = nn.functional.pad(x, (1, 1, 1, 1))
        x = self.relu(self.point(x) + self.deep(nn.functional.pad(
            x, (1, 1, 1, 1))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope='module')
def merged():
    torch.manual_seed(0)
    model, x = Net(), torch.randn(1, 3, 14, 14)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4),
        rules=[dict(match='stem', activation=dict(bits=8))]))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    return merge(model.eval(), x), x


def export_w4a4(model, x, folder, **options):
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    path = folder / 'model.onnx'
    export_onnx(merge(model.eval(), x), x, path, **options)
    return path


class Residual(nn.Module):
    """A block whose last layer OpenVINO joins with the sum."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Conv2d(3 if not place else 16, 16, 3, padding=1)
            for place in range(4))

    def forward(self, x):
        first, second, third, last = self.layers
        x = first(x).relu()
        x = (third(second(x).relu()) + x).relu()
        return last(x).mean((2, 3))


@torch.no_grad()
def test_openvino_rounds_what_it_adds_as_well(tmp_path):
    pytest.importorskip('openvino', reason='pip install openvino')
    torch.manual_seed(0)
    model, x = Residual(), torch.randn(1, 3, 8, 8)
    path = export_w4a4(model, x, tmp_path)
    for _ in range(4):
        figures = openvino_check.check_openvino(path, [torch.randn_like(x)])
        assert figures['difference'] < 1e-5


class Tokens(nn.Module):
    """Channels come last in memory where they are averaged, as in Swin."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.LayerNorm(8)
        self.pool, self.head = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x):
        x = self.norm(self.conv(x).permute(0, 2, 3, 1))
        return self.head(self.pool(x.permute(0, 3, 1, 2)).flatten(1))


@torch.no_grad()
def test_openvino_averages_any_batch_of_pixels(tmp_path):
    pytest.importorskip('openvino', reason='pip install openvino')
    torch.manual_seed(0)
    model, x = Tokens(), torch.randn(2, 3, 8, 8)
    path = export_w4a4(model, x, tmp_path, dynamic=['batch'])
    assert 'Gather' not in {
        node.op_type for node in onnx.load(str(path)).graph.node}
    for batch in (1, 2, 3):
        figures = openvino_check.check_openvino(
            path, [torch.randn(batch, 3, 8, 8)])
        assert figures['difference'] < 1e-5


class Averages(nn.Module):
    """Of codes; where the average is read as float values, or as codes."""

    def __init__(self, read):
        super().__init__()
        self.first, self.second, self.last = (
            nn.Conv2d(*size, 3, padding=1) for size in (
                (3, 8), (3, 8), (8, 4)))
        self.read = read

    def forward(self, x):
        return self.last(self.read(self.first(x).relu(),
                                   self.second(x).relu()))


@torch.no_grad()
@pytest.mark.parametrize('read', [
    lambda a, b: avg_pool2d(a, 2) + avg_pool2d(b, 2),
    lambda a, b: avg_pool2d(a, 3, 1, 1) + b,
    lambda a, b: avg_pool2d(a, 2) + max_pool2d(b, 2),
    lambda a, b: avg_pool2d(a, 2)])
def test_openvino_rounds_no_average_that_is_added(read, tmp_path):
    pytest.importorskip('openvino', reason='pip install openvino')
    torch.manual_seed(0)
    model, x = Averages(read), torch.randn(1, 3, 16, 16)
    path = export_w4a4(model, x, tmp_path)
    for _ in range(3):
        figures = openvino_check.check_openvino(path, [torch.randn_like(x)])
        assert figures['difference'] < 1e-5


@torch.no_grad()
def test_openvino_runs_the_same_file_on_integers(merged, tmp_path):
    pytest.importorskip('openvino', reason='pip install openvino')
    merged, x = merged
    path = tmp_path / 'model.onnx'
    export_onnx(merged, x, path)
    figures = openvino_check.check_openvino(path, [x])
    assert figures['layers'] == 4 and figures['integer_layers'] >= 2
    assert figures['difference'] < 1e-5
    times = speed_against_float(merged, path, x, rounds=1,
                                open_file=openvino_check.open_openvino)
    assert times['time_ratio'] == pytest.approx(
        times['ms'] / times['float_ms'])


def test_metrics_that_differ_are_named():
    apart = openvino_check.metrics_apart
    ours, theirs = dict(top1=88.3, top5=97., agreement=9.), dict(
        top1=88., top5=97.1, agreement=100.)
    assert apart(ours, [theirs], percent=True) == pytest.approx(dict(top1=.3))
    assert not apart(dict(mAP=.351), [dict(mAP=.35)], percent=False)
    assert apart(dict(mAP=.353), [dict(mAP=.35)], percent=False)
    nan = float('nan')  # of a class that is not there, or of a fault
    assert not apart(dict(mAP=.35, small=nan), [dict(mAP=.35, small=nan)],
                     percent=False)
    for ours, *theirs in ((nan, .35), (.35, nan), (.35, .35, nan)):
        assert apart(dict(mAP=ours), [dict(mAP=each) for each in theirs],
                     percent=False).keys() == {'mAP'}


def test_a_metric_may_lie_between_those_of_another_runtime():
    def apart(ours, *theirs):
        return openvino_check.metrics_apart(
            dict(mAP=ours), [dict(mAP=each) for each in theirs], True)

    assert not apart(63.1, 61.6, 63.9)
    assert not apart(61.45, 63.9, 61.6)
    assert apart(61.3, 61.6, 63.9) == pytest.approx(dict(mAP=-.3))
    assert apart(64.2, 63.9, 61.6) == pytest.approx(dict(mAP=.3))


def test_a_file_that_openvino_does_not_open_is_one_sentence(tmp_path):
    pytest.importorskip('openvino', reason='pip install openvino')
    path = tmp_path / 'no.onnx'
    path.write_bytes(b'no model')
    with pytest.raises(RuntimeError, match='OpenVINO .* does not open .*no.on'
                       'nx: .*runs in ONNX Runtime'):
        openvino_check.open_openvino(path)


@torch.no_grad()
def test_tensorrt_form_is_int8_without_zero_points(merged, tmp_path):
    merged, x = merged
    path = tmp_path / 'model.onnx'
    report = export_onnx(merged, x, path, 'tensorrt')
    assert list(report.codes) == ['stem', 'point', 'deep', 'head']
    assert all(total - equal <= 1 for equal, total in report.codes.values())
    proto = onnx.load(str(path)).graph
    values = {each.name: onnx.numpy_helper.to_array(each)
              for each in proto.initializer}
    producers = {name: node for node in proto.node for name in node.output}
    for node in proto.node:
        if node.op_type in ('QuantizeLinear', 'DequantizeLinear'):
            assert values[node.input[2]].dtype == np.int8
            assert not values[node.input[2]].any()
        if node.op_type == 'Clip':  # of float values
            assert producers[node.input[0]].op_type != 'QuantizeLinear'
        if node.op_type in ('Conv', 'Gemm'):
            assert values[node.input[2]].dtype == np.float32


@torch.no_grad()
def test_int8_activations_are_clipped_where_the_trained_ones_were(merged):
    merged, x = merged
    wide, trained = widen_grids(merged), merged.point.grid
    assert (wide.point.grid.low, wide.point.grid.high) == (0, 127)
    assert wide.point.grid.scale * 127 == pytest.approx(
        trained.scale * trained.high)
    assert (wide.stem.grid.low, wide.stem.grid.high) == (-128, 127)
    assert merged.point.grid is trained  # left alone
    expected, result = merged(x), to_integer(merged, x, container='int8')(x)
    assert (result - expected).abs().max() < .2 * expected.abs().max()


@torch.no_grad()
def test_files_of_another_container_are_refused(merged, tmp_path):
    merged, x = merged
    with pytest.raises(ValueError, match="container='int8'"):
        export_onnx(to_integer(merged, x), x, tmp_path / 'new', 'tensorrt')
    with pytest.raises(ValueError, match='tensorrt files have none'):
        export_onnx(merged, x, tmp_path / 'new', 'tensorrt', weights='int4')
    with pytest.raises(ValueError, match="container is 'int4'"):
        to_integer(merged, x, container='int4')


@torch.no_grad()
def test_nothing_is_written_for_tensorrt_with_a_zero_point(
        merged, tmp_path, monkeypatch):
    merged, x = merged

    def shifted(proto, path):
        for each in proto.graph.initializer:
            if each.data_type == onnx.TensorProto.INT8 and not each.dims:
                each.CopyFrom(onnx.numpy_helper.from_array(
                    np.array(3, np.int8), each.name))
        onnx.save(proto, str(path))

    monkeypatch.setattr('gdrq_mm.export.onnx_file.write', shifted)
    with pytest.raises(RuntimeError, match='has a zero point'):
        export_onnx(merged, x, tmp_path / 'model.onnx', 'tensorrt')
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_onnx_runtime_computes_what_the_tensorrt_file_says(merged, tmp_path):
    merged, x = merged
    integer, path = to_integer(merged, x, container='int8'), \
        tmp_path / 'model.onnx'
    export_onnx(integer, x, path, 'tensorrt')
    other = torch.randn(1, 3, 14, 14)
    result, = onnx_check.run(onnx_check.session(path, optimise=False),
                             [other])
    expected = integer(other)
    assert (torch.from_numpy(result) - expected).abs().max() \
        < .02 * expected.abs().max()


@pytest.mark.parametrize('act', [nn.ReLU(), nn.Hardtanh()])
def test_float_values_before_a_clamp_are_not_taken_for_codes(act, tmp_path):
    """A clamp and a quantizer with a zero point behind a linear layer."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(6, 16), act, nn.Linear(16, 5)), \
        torch.randn(4, 6)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4), activation=dict(
        bits=8, asymmetric=True)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    report = export_onnx(model.eval(), x, tmp_path / 'model.onnx', 'tensorrt')
    assert report.equal_codes() == (4 * 21, 4 * 21)
