"""What torch's exporter makes of captured graphs, and what it cannot."""
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx, merge
from gdrq_mm.export.onnx_check import run, session
from gdrq_mm.export.speed import export_float, float_form
from gdrq_mm.integer.graph import capture


def calibrated(between, x):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), between, nn.Conv2d(8, 4, 3))
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    return model.eval()


class Clamp(nn.Module):
    """``nn.Hardtanh`` turns its ends into numbers of one kind."""

    def __init__(self, *ends):
        super().__init__()
        self.ends = ends

    def forward(self, x):
        return x.clamp(*self.ends)


@torch.no_grad()
@pytest.mark.parametrize('ends, format', [
    ((-2, -.1), 'qdq'), ((-1, .5), 'qonnx')])
def test_ends_of_clamps_may_be_of_two_kinds(ends, format, tmp_path):
    x = torch.randn(1, 3, 8, 8)
    merged = merge(calibrated(Clamp(*ends), x), x)
    report = export_onnx(merged, x, tmp_path / 'model.onnx', format)
    assert report.difference < 1e-5
    export_float(merged, x, tmp_path / 'float')
    result, = run(session(tmp_path / 'float'), [x])
    torch.testing.assert_close(torch.from_numpy(result),
                               float_form(merged)(x))


@torch.no_grad()
def test_whole_numbers_that_are_clamped_stay_whole(tmp_path):

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3)

        def forward(self, x):
            y = self.conv(x)
            return y, y.argmax(1).clamp(1, 3)

    torch.manual_seed(0)
    model, x = Net(), torch.randn(1, 3, 8, 8)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    report = export_onnx(model.eval(), x, tmp_path / 'model.onnx', 'qonnx')
    assert report.difference < 1e-5
    kind = onnx.load(str(report.path)).graph.output[1].type.tensor_type
    assert kind.elem_type == onnx.TensorProto.INT64


@torch.no_grad()
@pytest.mark.parametrize('format', ['qdq', 'qonnx'])
def test_convolutions_without_a_batch_are_refused_by_name(format, tmp_path):
    x = torch.randn(3, 8, 8)
    model = calibrated(nn.ReLU(), x)
    torch.testing.assert_close(merge(model, x)(x), model(x))
    with pytest.raises(RuntimeError, match='^0 reads 3 x 8 x 8 values .* of '
                       r'shape \(1, C, H, W\)'):
        export_onnx(model, x, tmp_path / 'model.onnx', format)
    assert not list(tmp_path.iterdir())


class Attention(nn.Module):
    """Attention as it stands: one head, and perhaps no batch."""

    def __init__(self, mask=None, **options):
        super().__init__()
        self.project, self.last = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mask, self.options = mask, options

    def forward(self, x):
        return self.last(F.scaled_dot_product_attention(
            *self.project(x).chunk(3, -1), self.mask, **self.options))


@torch.no_grad()
@pytest.mark.parametrize('shape, mask, options, format', [
    ((6, 8), None, {}, 'qdq'), ((2, 6, 8), (2, 6, 6), {}, 'qdq'),
    ((2, 6, 8), (6, 6), dict(scale=.5), 'qonnx'),
    ((2, 3, 6, 8), None, dict(is_causal=True), 'qdq')])
def test_attention_has_a_form_in_any_dimensions(shape, mask, options, format,
                                                tmp_path):
    torch.manual_seed(0)
    x = torch.randn(shape)
    model = Attention(mask and torch.randn(mask), **options)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged = merge(model.eval(), x)
    module = capture(merged, (x, ))
    torch.testing.assert_close(module(x), merged(x))
    assert all(node.meta['nn_module_stack'] for node in module.graph.nodes
               if 'unsqueeze' in node.name)
    report = export_onnx(merged, x, tmp_path / 'model.onnx', format)
    assert report.difference < 1e-5


@torch.no_grad()
def test_operators_that_onnx_does_not_have_are_named(tmp_path):
    x = torch.randn(1, 3, 8, 8)
    model = calibrated(nn.AdaptiveMaxPool2d(4), x)
    with pytest.raises(RuntimeError, match='computes adaptive_max_pool2d, '
                       'which 1 does; compute it otherwise'):
        export_onnx(model, x, tmp_path / 'model.onnx', 'qonnx')
    assert not list(tmp_path.iterdir())


@torch.no_grad()
@pytest.mark.parametrize('format', ['qdq', 'qonnx'])
def test_outputs_that_are_no_tensors_are_named(format, tmp_path):
    class Counting(nn.Module):

        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x), 3

    model, x = Counting(), torch.randn(1, 3, 6, 6)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    with pytest.raises(RuntimeError, match='output 1 of the model is 3, and '
                       'files give tensors'):
        export_onnx(model.eval(), x, tmp_path / 'model.onnx', format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize('names, message', [
    (dict(input_names=['x', 'y']),
     'input_names is .* for each input of the model, which are 1'),
    (dict(output_names=[]), 'output_names is .*, which are 1'),
    (dict(input_names=['x'], output_names=['x']), "'x', of input_names or"),
    (dict(output_names=['0.w_scale']), "'0.w_scale', of input_names or")])
def test_names_that_do_not_fit_are_refused(names, message, tmp_path):
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3)), torch.randn(1, 3, 6, 6)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    with pytest.raises(ValueError, match=message):
        export_onnx(model.eval(), x, tmp_path / 'm.onnx', 'qonnx', **names)
    assert not any(tmp_path.iterdir())


class TwoSigmoids(nn.Module):

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        y = self.a(x).sigmoid()
        return self.b(y).relu(), self.c(y).sigmoid()


@torch.no_grad()
@pytest.mark.parametrize('names', [
    dict(output_names=['relu', 'sigmoid']), dict(input_names=['sigmoid'])])
def test_names_of_values_inside_may_be_given(names, tmp_path):
    model, x = TwoSigmoids(), torch.randn(4, 8)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    report = export_onnx(model.eval(), x, tmp_path / 'm.onnx', **names)
    graph = onnx.load(str(report.path)).graph
    for kind, values in (('input', graph.input), ('output', graph.output)):
        expected = names.get(f'{kind}_names')
        assert expected in (None, [each.name for each in values])


def test_what_is_no_tensor_is_refused(tmp_path):

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            return self.conv(images[0])

    model, x = First(), [torch.randn(1, 3, 6, 6)]
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    with pytest.raises(ValueError, match='input 0 of the example is a list; '
                       'files take tensors: wrap the model'):
        export_onnx(model.eval(), (x, ), tmp_path / 'm.onnx')
