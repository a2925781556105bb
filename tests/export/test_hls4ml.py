"""Files for hls4ml: its compiled emulation computes what was trained."""
import sys

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from test_finn import Net
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx, to_integer
from gdrq_mm.export import hls4ml_form
from gdrq_mm.export.qonnx_check import outputs_by_place
from gdrq_mm.merge import merge


@pytest.fixture
def uncompiled(monkeypatch):
    """hls4ml is not installed."""
    monkeypatch.setitem(sys.modules, 'hls4ml', None)


def quantized(model, bits=4, shape=(3, 4, 4), **options):
    torch.manual_seed(0)
    x = torch.rand(4, *shape)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=bits), activation=dict(bits=4), **options))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    return model.eval(), x[:1]


@torch.no_grad()
@pytest.mark.parametrize('bits,residual', [(2, True), (4, False)])
def test_compiled_emulation_equals_the_model(bits, residual, tmp_path):
    pytest.importorskip('hls4ml', reason='pip install hls4ml')
    torch.manual_seed(0)
    model, x = quantized(Net(residual), bits)
    report = export_onnx(model, x, tmp_path / 'net.onnx', 'hls4ml')
    assert report.steps['rewriting for hls4ml'] < 1e-6
    assert report.steps['compiled emulation of hls4ml, fixed<32,16>'] < 1e-3
    assert 'emulation of hls4ml, fixed<32,16>: outputs change by' in \
        str(report)
    assert report.size == (tmp_path / 'net.onnx').stat().st_size


@torch.no_grad()
def test_scales_of_8_bits_get_the_places_that_they_need(tmp_path):
    """Those of first and last layers; 16 are too few for them."""
    pytest.importorskip('hls4ml', reason='pip install hls4ml')
    eight = dict(weight=dict(bits=8), activation=dict(bits=8))
    model, x = quantized(Net(), rules=[
        dict(match=name, **eight) for name in ('stem', 'head')])
    report = export_onnx(model, x, tmp_path / 'net.onnx', 'hls4ml')
    step = 'compiled emulation of hls4ml, fixed<48,16>'
    assert report.steps[step] < 1e-5
    assert ModelWrapper(str(tmp_path / 'net.onnx')).get_metadata_prop(
        'hls4ml_precision') == 'fixed<48,16>'


@torch.no_grad()
@pytest.mark.filterwarnings('ignore:hls4ml is not installed')
def test_linear_layers_with_float_inputs_are_products(tmp_path, uncompiled):
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), \
        torch.rand(1, 6)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=2)))
    export_onnx(model.eval(), x, tmp_path / 'net.onnx', 'hls4ml')
    assert 'Gemm' not in {node.op_type for node in onnx.load(
        tmp_path / 'net.onnx').graph.node}


def draw(prototypes, number):
    """Noisy images, and which prototype each comes from."""
    labels = torch.randint(len(prototypes), (number, ))
    images = prototypes[labels]
    return images + .2 * torch.randn_like(images), labels


def test_compiled_emulation_predicts_as_the_trained_integer_model(
        tmp_path, monkeypatch):
    pytest.importorskip('hls4ml', reason='pip install hls4ml')
    torch.manual_seed(0)
    model, prototypes = Net(), torch.rand(5, 3, 4, 4)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=2), activation=dict(bits=4)))
    optimizer = torch.optim.SGD(model.parameters(), lr=.05, momentum=.9)
    for _ in range(80):
        images, labels = draw(prototypes, 32)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    images, labels = draw(prototypes, 200)
    emulated, found = hls4ml_form.emulated, []

    def of_all_images(wrapper, inputs, precision):  # compiled once
        if not found:
            found.extend(emulated(wrapper, images.movedim(1, -1).contiguous(),
                                  precision))
        torch.testing.assert_close(
            inputs, images[place:place + 1].movedim(1, -1))
        return [found[0][place:place + 1]]

    monkeypatch.setattr(hls4ml_form, 'emulated', of_all_images)
    with torch.no_grad():
        merged = merge(model.eval(), images[:1])
        for place in range(5):  # another one, as the message says
            try:
                export_onnx(merged, images[place:place + 1],
                            tmp_path / 'net.onnx', 'hls4ml')
                break
            except RuntimeError as error:
                assert 'on the border of two codes' in str(error)
        assert (tmp_path / 'net.onnx').exists()
        trained = merged(images)
        integer = to_integer(merged, images, [images])(images)
    found = torch.from_numpy(found[0])
    assert (labels == integer.argmax(1)).float().mean() > .95  # it learned
    assert torch.equal(found.argmax(1), integer.argmax(1))
    # With 16 binary places a value may fall on the other side of a border
    # between two codes: some do, in 8 to 16% of these images, by the CPU
    # that trained the network.
    off = (found - trained).abs().amax(1) / trained.abs().max()
    assert (off < 5e-4).float().mean() > .75


@torch.no_grad()
@pytest.mark.parametrize('dense', [False, True])
@pytest.mark.filterwarnings('ignore:hls4ml is not installed')
def test_scales_and_biases_stand_behind_the_layers(dense, tmp_path,
                                                   uncompiled):
    torch.manual_seed(0)
    model, x = quantized(nn.Sequential(
        nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), shape=(6, )) \
        if dense else quantized(Net(True))
    report = export_onnx(model, x, tmp_path / 'net.onnx', 'hls4ml')
    assert list(report.steps) == ['rewriting for hls4ml']  # not emulated
    proto = onnx.load(tmp_path / 'net.onnx')
    stored = {each.name: numpy_helper.to_array(each)
              for each in proto.graph.initializer}
    weights = {node.output[0]: node for node in proto.graph.node
               if node.op_type == 'Quant' and node.input[0] in stored}
    layers = [node for node in proto.graph.node
              if node.op_type in ('Conv', 'MatMul')]
    assert len(weights) == len(layers) == (2 if dense else 3)
    for layer in layers:
        quant = weights[layer.input[1]]
        codes, scale = (stored[name] for name in quant.input[:2])
        assert scale.shape == () and scale == 1
        np.testing.assert_allclose(codes, codes.round(), atol=1e-5)
        assert 1 < abs(codes).max() < 7.5 and len(layer.input) == 2
        behind = next(node for node in proto.graph.node
                      if layer.output[0] in node.input)
        assert behind.op_type == 'Mul'
        assert stored[behind.input[1]].shape[-1] in (3, 5, 8)


@torch.no_grad()
def test_images_of_an_output_stay_in_their_order(tmp_path):
    pytest.importorskip('hls4ml', reason='pip install hls4ml')
    torch.manual_seed(0)
    model, x = quantized(nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 1)),
        shape=(3, 4, 6))
    report = export_onnx(model, x, tmp_path / 'net.onnx', 'hls4ml')
    assert report.steps['compiled emulation of hls4ml, fixed<32,16>'] < 5e-3


@torch.no_grad()
def test_that_hls4ml_is_missing_is_said(tmp_path, uncompiled):
    model, x = quantized(Net())
    with pytest.warns(UserWarning, match='hls4ml is not installed'):
        export_onnx(model, x, tmp_path / 'net.onnx', 'hls4ml')


@torch.no_grad()
@pytest.mark.filterwarnings('ignore:hls4ml is not installed')
def test_inputs_and_outputs_keep_their_names(tmp_path, uncompiled):
    model, x = quantized(Net())
    export_onnx(model, x, tmp_path / 'net.onnx', 'hls4ml',
                input_names=['images'], output_names=['scores'])
    graph = onnx.load(tmp_path / 'net.onnx').graph
    assert [each.name for each in graph.input] == ['images']
    assert [each.name for each in graph.output] == ['scores']
    found, = outputs_by_place(hls4ml_form.ModelWrapper(
        str(tmp_path / 'net.onnx')), [x.movedim(1, -1).contiguous()])
    torch.testing.assert_close(torch.from_numpy(found), model(x))


@torch.no_grad()
@pytest.mark.parametrize('found, why', [
    (np.zeros((1, 5)), '1.0e.00 in the compiled emulation'),
    (np.full((1, 5), np.nan), 'by nan in the compiled emulation'),
    (np.zeros((1, 4)), 'sizes .4. in place of .5.')])
def test_another_result_of_hls4ml_writes_nothing(found, why, tmp_path,
                                                 monkeypatch):
    monkeypatch.setitem(sys.modules, 'hls4ml', sys)  # it is there
    monkeypatch.setattr(hls4ml_form, 'emulated', lambda *args: [
        found.astype(np.float32)])
    model, x = quantized(Net())
    with pytest.raises(RuntimeError, match=why):
        export_onnx(model, x, tmp_path / 'net.onnx', 'hls4ml')
    assert not list(tmp_path.iterdir())


class Twice(Net):

    def forward(self, x):
        x = self.relu(self.conv(self.relu(self.stem(x))))
        x = self.last(self.conv(x))
        return self.head(nn.functional.max_pool2d(x, 2).flatten(1))


@torch.no_grad()
@pytest.mark.filterwarnings('ignore:hls4ml is not installed')
def test_a_layer_that_is_called_twice_keeps_its_scales(tmp_path, uncompiled):
    torch.manual_seed(0)
    model, x = quantized(Twice())
    report = export_onnx(model, x, tmp_path / 'net.onnx', 'hls4ml')
    assert report.steps['rewriting for hls4ml'] < 1e-6
    operators = [node.op_type for node in onnx.load(
        tmp_path / 'net.onnx').graph.node]
    assert operators.count('Quant') == 4 + 4  # weights, and inputs


class Sorted(Net):

    def forward(self, x):
        return super().forward(x).sort(1)[0]


@torch.no_grad()
def test_what_hls4ml_has_no_operators_for_is_said(tmp_path):
    pytest.importorskip('hls4ml', reason='pip install hls4ml')
    model, x = quantized(Sorted())
    with pytest.raises(RuntimeError, match='hls4ml stops at this model: .*TopK'
                       ".*format='qonnx'"):
        export_onnx(model, x, tmp_path / 'net.onnx', 'hls4ml')
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_what_has_no_form_for_hls4ml_is_said(tmp_path):
    model, x = quantized(nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 4, 1)))
    with pytest.raises(RuntimeError, match='rewriting for hls4ml stops at '
                       'this model .*train with ReLU'):
        export_onnx(model, x, tmp_path / 'net.onnx', 'hls4ml')
    assert not list(tmp_path.iterdir())


@torch.no_grad()
def test_several_images_are_refused(tmp_path):
    model, x = quantized(Net())
    with pytest.raises(ValueError, match='one input, of shape .1, C, H, W'):
        export_onnx(model, x.repeat(2, 1, 1, 1), tmp_path / 'net.onnx',
                    'hls4ml')
