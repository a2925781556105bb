"""What quantized layers share: how they are called."""
import copy
import inspect
import pickle

import pytest
import torch
from mmcv.cnn.bricks import conv_ws, wrappers
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from mmcv.ops import DeformConv2d
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx, merge
from gdrq_mm.export.speed import float_form
from gdrq_mm.merge import merge_errors
from gdrq_mm.plan import make_plan, trace_layers

W4A4 = dict(weight=dict(bits=4), activation=dict(bits=4))
LAYERS = [
    (nn.Linear(4, 8), (2, 4)), (wrappers.Linear(4, 8), (2, 4)),
    (nn.Conv2d(4, 8, 3), (2, 4, 5, 5)), (wrappers.Conv2d(4, 8, 3),
                                         (2, 4, 5, 5)),
    (nn.Conv1d(4, 8, 3), (2, 4, 9)), (nn.Conv3d(4, 8, 2), (2, 4, 3, 3, 3)),
    (nn.ConvTranspose2d(4, 8, 2), (2, 4, 5, 5)),
    (wrappers.ConvTranspose2d(4, 8, 2), (2, 4, 5, 5)),
    (conv_ws.ConvWS2d(4, 8, 3), (2, 4, 6, 6)),
    (Conv2dAdaptivePadding(4, 8, 3, stride=2), (2, 4, 9, 9)),
]
IDS = [f'{type(layer).__module__.partition(".")[0]}-{type(layer).__name__}'
       for layer, _ in LAYERS]


class Named(nn.Module):
    """Calls its layer and a normalization by the names of their inputs."""

    def __init__(self, layer, norm=None):
        super().__init__()
        self.layer, self.norm, self.relu = layer, norm, nn.ReLU()
        self.name, *_ = inspect.signature(layer.forward).parameters

    def forward(self, x):
        x = self.layer(**{self.name: x})
        x = x if self.norm is None else self.norm(input=x)
        return self.relu(input=x)


def calibrated(model, x, **options):
    gdrq_mm.quantize_(model, dict(W4A4, **options))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize('layer, shape', LAYERS, ids=IDS)
@pytest.mark.parametrize('phase', ['reshape', 'quantize'])
def test_the_input_may_be_given_by_its_keyword(layer, shape, phase):
    torch.manual_seed(0)
    x = torch.rand(shape)
    model = calibrated(Named(copy.deepcopy(layer)), x)
    gdrq_mm.training.get_state(model).set_phase(phase)
    assert torch.equal(model(x), model.layer(x).relu())
    if phase == 'quantize':
        torch.testing.assert_close(merge(model, x)(x), model(x))


@torch.no_grad()
def test_a_second_input_stays_where_it_is():
    torch.manual_seed(0)
    layer, x = DeformConv2d(4, 8, 3), torch.rand(2, 4, 6, 6)
    offset = torch.rand(2, 18, 4, 4)
    model = nn.Sequential(layer)
    gdrq_mm.quantize_(model, W4A4)
    gdrq_mm.calibrate(model, [lambda: layer(offset=offset, x=x)])
    assert torch.equal(model.eval()[0](offset=offset, x=x), layer(x, offset))


def test_a_missing_input_is_missed_and_a_wrong_name_is_named():
    layer = calibrated(nn.Sequential(nn.Linear(4, 8)), torch.rand(2, 4))[0]
    for call, word in ((dict(), 'input'), (dict(inputs=1), 'inputs')):
        with pytest.raises(TypeError, match=f"'{word}'"):
            layer(**call)


@torch.no_grad()
@pytest.mark.parametrize('weight_only', [False, True])
@pytest.mark.parametrize('conv', [nn.Conv2d, wrappers.Conv2d])
def test_named_inputs_are_seen_merged_and_exported(conv, weight_only,
                                                   tmp_path):
    torch.manual_seed(0)
    x = torch.randn(1, 3, 6, 6)
    model = Named(conv(3, 8, 3), nn.BatchNorm2d(8).eval())
    nn.init.normal_(model.norm.running_mean)
    traces = trace_layers(model, make_plan(
        model, gdrq_mm.QuantConfig.from_dict(W4A4)), lambda: model(x))
    assert traces['layer'].signed and traces['layer'].macs == 8 * 16 * 27
    calibrated(model, x, **dict(activation=None) if weight_only else {})
    merged = merge(model, x)
    if not weight_only:
        assert merged.layer.norm == 'norm'
        assert merge_errors(model, merged, x)['layer'] < 1e-5
        float_form(merged)(x)
    torch.testing.assert_close(merged(x), model(x))
    report = export_onnx(merged, x, tmp_path / 'model.onnx')
    assert report.difference < 1e-2


@torch.no_grad()
def test_named_inputs_of_quantized_relus():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 6, 6)
    model = calibrated(Named(nn.Conv2d(3, 8, 3)), x, activation=dict(
        bits=4, site='relu'))
    assert len(model(x).unique()) <= 2**4
    torch.testing.assert_close(merge(model, x)(x), model(x))


def test_a_part_that_is_copied_alone_computes_and_trains_as_in_the_model():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = calibrated(nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3)), nn.Conv2d(4, 4, 3)), x).train()
    for part in (copy.deepcopy(model[0]),
                 pickle.loads(pickle.dumps(model[0]))):
        assert torch.equal(part(x), model[0](x))
        weight = part[0].latent_weight
        optimizer = torch.optim.SGD([weight], 1.)
        weight.grad = torch.zeros_like(weight)
        weight.grad[0, 0, 0, 0] = -9
        optimizer.step()
        assert weight.max() < 2  # it was projected
