"""What computes in float stays float in ONNX Runtime, and nothing else."""
import pytest
import torch
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx, merge, to_integer
from gdrq_mm.export.onnx_check import run, session

CASES = dict(
    conv=lambda: (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 4, 3)),
    transposed=lambda: (nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 8, 3),
                        nn.Conv2d(8, 4, 3)),
    rows=lambda: (nn.Sequential(nn.Conv2d(3, 8, 8), nn.Flatten()),
                  nn.Linear(8, 8), nn.Linear(8, 4)),
    tokens=lambda: (nn.Conv2d(3, 8, 3), nn.Linear(6, 8), nn.Linear(8, 4)),
    # Its first layer gives float values, not codes, to a ReLU.
    linear=lambda: (nn.Sequential(nn.Flatten(), nn.Linear(192, 8)),
                    nn.Linear(8, 8), nn.Linear(8, 4)))


@torch.no_grad()
@pytest.mark.parametrize('name', CASES)
def test_float_layers_between_quantized_ones_keep_their_weights(name,
                                                                tmp_path):
    torch.manual_seed(0)
    first, middle, last = CASES[name]()
    # Filters of many sizes: one scale for all of them is wrong for most.
    middle.weight.mul_(torch.logspace(-3, 0, middle.weight.shape[1]).view(
        -1, *[1] * (middle.weight.dim() - 2)))
    model = nn.Sequential(first, nn.ReLU(), middle, nn.ReLU(), last)
    skipped = [] if name == 'transposed' else [dict(match='2', skip=True)]
    x = torch.randn(1, 3, 8, 8)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=8), activation=dict(bits=8), rules=skipped))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    integer = to_integer(merge(model.eval(), x), x)
    report = export_onnx(integer, x, tmp_path / 'model.onnx')
    assert len(report.kernels) == 2 and len(report.float_layers) == 1
    other = torch.randn(1, 3, 8, 8)
    result, = run(session(report.path), [other])
    expected = integer(other)
    assert (torch.from_numpy(result) - expected).abs().max() < \
        1e-5 * expected.abs().max()


class Linears(nn.Module):
    """Linear layers whose results are read as codes and otherwise."""

    def __init__(self, forward):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(8, 8) for _ in range(3))
        self.computed = forward

    def forward(self, x):
        return self.computed(self, x)


def embedding(model, x):
    y = model.a(x)
    return y, model.c(model.b(y))


def residual(model, x):
    y = model.a(x)
    return model.c(y + model.b(y).relu())


def gate(model, x):
    y = model.a(x)
    return model.c(model.b(y) * y.mean(1, keepdim=True))


@torch.no_grad()
@pytest.mark.parametrize('weights', ['int8', 'int4'])
@pytest.mark.parametrize('forward', [embedding, residual, gate])
def test_linear_layers_read_twice_run_on_integers(forward, weights, tmp_path):
    torch.manual_seed(0)
    model, x = Linears(forward), torch.randn(4, 8)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    model.eval()
    integer = to_integer(merge(model, x), x)
    report = export_onnx(integer, x, tmp_path / 'model.onnx', weights=weights)
    assert set(report.kernels.values()) == {'QGemm'}
    other = torch.randn(4, 8)
    expected = integer(other)
    for ours, theirs in zip(run(session(report.path), [other]),
                            expected if isinstance(expected, tuple) else
                            (expected, )):
        torch.testing.assert_close(torch.from_numpy(ours), theirs,
                                   rtol=1e-5, atol=1e-5)
    export_onnx(model, x, tmp_path / 'trt.onnx', 'tensorrt')


@torch.no_grad()
@pytest.mark.parametrize('dim', [1, -1])
def test_softmax_between_codes_is_computed_in_float(dim, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Softmax(dim),
                          nn.Conv2d(8, 4, 1))
    x = 3 * torch.randn(2, 3, 9, 11)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    integer = to_integer(merge(model.eval(), x), x)
    report = export_onnx(integer, x, tmp_path / 'model.onnx')
    assert len(report.kernels) == 2
    result, = run(session(report.path), [x])
    torch.testing.assert_close(torch.from_numpy(result), integer(x))


@torch.no_grad()
def test_layers_may_have_the_words_of_onnx_runtime_in_their_names(tmp_path):
    model, x = nn.Sequential(), torch.randn(1, 3, 8, 8)
    model.to_token_conv, model.relu_token_2 = nn.Conv2d(3, 8, 3), nn.ReLU()
    model.conv_token_10 = nn.Conv2d(8, 4, 3)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    report = export_onnx(model.eval(), x, tmp_path / 'model.onnx')
    assert report.kernels == dict(to_token_conv='QLinearConv',
                                  conv_token_10='QLinearConv')


@torch.no_grad()
@pytest.mark.parametrize('format', ['qdq', 'tensorrt'])
def test_linear_layers_may_read_one_row(format, tmp_path):
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.rand(8, requires_grad=True)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    report = export_onnx(model.eval(), x, tmp_path / 'model.onnx', format)
    assert report.difference < 1e-6
