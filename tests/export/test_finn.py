"""Files for FINN: transformations leave the outputs, or nothing is written."""
import sys
from importlib.util import find_spec

import onnx
import pytest
import torch
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx


class Net(nn.Module):
    """Two convolutions, a head; the first one's ReLU is read again, or not."""

    def __init__(self, residual=False, groups=1):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), \
            nn.BatchNorm2d(8)
        self.relu, self.residual = nn.ReLU(), residual
        self.conv = nn.Conv2d(8, 8, 3, padding=1, groups=groups)
        self.last, self.head = nn.ReLU(), nn.Linear(8 * 4, 5)

    def forward(self, x):
        x = self.relu(self.norm(self.stem(x)))
        x = self.last(self.conv(x) + x if self.residual else self.conv(x))
        return self.head(nn.functional.max_pool2d(x, 2).flatten(1))


def quantized(model, site='input', outputs=()):
    torch.manual_seed(0)
    x = torch.rand(1, 3, 4, 4)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4, site=site),
        residual=dict(outputs=list(outputs))))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    return model.eval(), x


CASES = dict(plain=(dict(), dict()), depthwise=(dict(groups=8), dict()),
             residual=(dict(residual=True), dict(site='relu')),
             outputs=(dict(residual=True), dict(outputs=['relu', 'conv'])))
OF_QONNX = ['channels last', 'LowerConvsToMatMul']
OF_FINN = ['ConvertQONNXtoFINN', 'Streamline', 'Streamline of matrix products']


@torch.no_grad()
@pytest.mark.parametrize('name', CASES)
def test_outputs_stand_the_transformations(name, tmp_path):
    options, quantization = CASES[name]
    model, x = quantized(Net(**options), **quantization)
    report = export_onnx(model, x, tmp_path / 'model.onnx', 'finn')
    assert list(report.steps) == (
        OF_QONNX + OF_FINN if find_spec('finn') else OF_QONNX)
    assert max(report.steps.values()) < 1e-5
    macs = 16 * 9 * 8 * (3 + (1 if name == 'depthwise' else 8)) + 32 * 5
    assert report.cost['total_macs'] == macs
    assert report.cost['total_bops'] == 16 * macs
    shapes = [attribute.ints for node in onnx.load(str(report.path)).graph.node
              for attribute in node.attribute
              if attribute.name == 'kernel_shape' and node.op_type == 'Conv']
    assert shapes == [[3, 3], [3, 3]]
    assert f'total_macs: {macs}' in str(report)


@torch.no_grad()
def test_without_finn_the_report_lists_the_steps_of_qonnx(tmp_path,
                                                          monkeypatch):
    monkeypatch.setitem(sys.modules, 'finn.transformation.streamline', None)
    model, x = quantized(Net())
    report = export_onnx(model, x, tmp_path / 'model.onnx', 'finn')
    assert list(report.steps) == OF_QONNX


@torch.no_grad()
def test_a_relu_that_others_read_is_refused_with_the_setting(tmp_path):
    model, x = quantized(Net(residual=True))
    with pytest.raises(RuntimeError, match="ReLU before conv is read by Add "
                                           "(.|\n)*site='relu'"):
        export_onnx(model, x, tmp_path / 'model.onnx', 'finn')
    assert not list(tmp_path.iterdir())


@torch.no_grad()
@pytest.mark.parametrize('config', [
    dict(activation=dict(bits=4, asymmetric=True)),
    dict(activation=dict(bits=4, asymmetric=False),
         residual=dict(outputs=['1']),
         rules=[dict(match='2', activation=dict(bits=None))])])
def test_an_input_with_a_zero_point_is_refused(tmp_path, config):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 1))
    x = 9 * torch.rand(1, 3, 6, 6)  # negatives small beside the rest
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4), **config))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    with pytest.raises(RuntimeError, match='the input of .* has a zero point, '
                       'which FINN does not read; train with '
                       r'asymmetric=False \(of activation, and of residual '):
        export_onnx(model.eval(), x, tmp_path / 'model.onnx', 'finn')
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_a_step_that_changes_outputs_is_refused(tmp_path, monkeypatch):
    from gdrq_mm.export import finn_check

    def changed(model):
        weight = model.graph.initializer[0].name
        model.set_initializer(weight, 2 * model.get_initializer(weight))
        return model

    monkeypatch.setattr(finn_check, '_qonnx_steps',
                        lambda: [('doubled', changed)])
    model, x = quantized(Net())
    with pytest.raises(RuntimeError, match='outputs change: doubled by .*'
                       "activation=dict.site='relu'.*format='qonnx'"):
        export_onnx(model, x, tmp_path / 'model.onnx', 'finn')
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_a_step_that_stops_is_refused_with_a_setting(tmp_path, monkeypatch):
    from gdrq_mm.export import finn_check

    def stops(model):
        raise AssertionError('a node that it does not know')

    monkeypatch.setattr(finn_check, '_qonnx_steps',
                        lambda: [('lowered', stops)])
    model, x = quantized(Net())
    with pytest.raises(RuntimeError, match='lowered stops at this model .a '
                       "node.*activation=dict.site='relu'.*format='qonnx'"):
        export_onnx(model, x, tmp_path / 'model.onnx', 'finn')
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_a_nan_in_any_output_is_refused(tmp_path, monkeypatch):
    from gdrq_mm.export import finn_check

    class Two(Net):

        def forward(self, x):
            x = super().forward(x)
            return x, x + 1

    differences = iter((0., float('nan')))
    monkeypatch.setattr(finn_check, '_qonnx_steps',
                        lambda: [('broken', lambda model: model)])
    monkeypatch.setattr(finn_check, '_finn_steps', lambda: [])
    monkeypatch.setattr(finn_check, '_difference',
                        lambda ours, theirs: next(differences))
    model, x = quantized(Two())
    with pytest.raises(RuntimeError, match='outputs change: broken by nan'):
        export_onnx(model, x, tmp_path / 'model.onnx', 'finn')
    assert not list(tmp_path.iterdir())


class Twice(nn.Module):

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()

    def forward(self, x):
        return self.conv(self.relu(self.conv(x)))


@torch.no_grad()
@pytest.mark.parametrize('model, shape, why', [
    (nn.Sequential(nn.Conv2d(8, 8, 3, groups=4), nn.ReLU()), (8, 6, 6),
     r'0 .with 0.weight., which is a convolution of 4 groups with 2 channels'),
    (nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU()), (4, 6),
     r'.with 0\..*weight., which is a convolution over 1 dimensions'),
    (Twice(), (4, 6, 6), r'conv .with conv.weight., which is called 2 times')])
def test_what_no_setting_helps_is_told_without_one(model, shape, why,
                                                   tmp_path):
    x = torch.rand(1, *shape)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    with pytest.raises(RuntimeError, match=why) as error:
        export_onnx(model.eval(), x, tmp_path / 'model.onnx', 'finn')
    assert 'site=' not in str(error.value)
    assert not list(tmp_path.iterdir())
