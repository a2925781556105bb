"""Models trained with 8-bit outputs: nothing is left to round afterwards."""
import pytest
import torch
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import (
    align_biases_,
    export_onnx,
    merged_layers,
    to_integer,
)
from gdrq_mm.export import onnx_check
from gdrq_mm.export.speed import float_form
from gdrq_mm.merge import merge, merge_errors

OUTPUTS = ['stem.1', 'norm', 'relu', 'plain', 'last']


class Net(nn.Module):
    """A sum of two branches, read by 4-bit layers and by another sum."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(),
                                  nn.MaxPool2d(2))
        self.first, self.norm = nn.Conv2d(8, 8, 3, padding=1), \
            nn.BatchNorm2d(8)
        self.relu, self.last = nn.ReLU(inplace=True), nn.ReLU()
        self.plain = nn.Conv2d(8, 8, 3, padding=1)
        self.mid = nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 5)
        nn.init.normal_(self.norm.weight)

    def forward(self, x):
        x = self.stem(x)
        y = self.norm(self.first(x))
        y += x
        y = self.relu(y)
        z = self.plain(self.mid(y).relu()) + y
        return self.head(self.last(z).mean((2, 3)))


@torch.enable_grad()
def trained(outputs=OUTPUTS, bits=4):
    torch.manual_seed(0)
    model = Net()
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=bits), activation=dict(bits=4),
        residual=dict(outputs=outputs)))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(15):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 12, 12)).square().mean().backward()
        optimizer.step()
    return model.eval(), torch.randn(32, 3, 12, 12)


@torch.no_grad()
def test_merged_model_keeps_the_quantizers_of_outputs():
    model, x = trained()
    merged = merge(model, x)
    assert merged.first.norm == 'norm'  # BN is gone, its quantizer is not
    assert isinstance(merged.norm, nn.Identity)
    for name in OUTPUTS:
        grid = merged.get_submodule(name).output_quantizer.grid
        scale, low, high, _ = model.get_submodule(
            name).output_quantizer.quantizer.code_range()
        assert (grid.scale, grid.low, grid.high) == (scale, low, high)
    assert max(merge_errors(model, merged, x).values()) < 5e-6
    close = torch.isclose(merged(x), model(x), rtol=1e-4, atol=1e-4)
    assert close.float().mean() > 0.9  # the rest: codes between two others


@torch.no_grad()
def test_nothing_is_left_to_round_and_the_models_agree():
    model, x = trained()
    integer = to_integer(merge(model, x), x)
    assert [call.added for call in integer.calls] == [False] * 5
    assert not integer.sums
    # Biases are rounded, too, which moves a code between two others here and
    # there.
    same = ((integer(x) - model(x)).abs() < 1e-3).all(1)
    assert same.float().mean() > 0.9
    plain, _ = trained(outputs=[])
    rounded = to_integer(merge(plain, x), x)
    assert sum(call.added for call in rounded.calls) == 3
    assert len(rounded.sums) == 2


@torch.no_grad()
@pytest.mark.parametrize('bits', [2, 4])
def test_with_aligned_biases_all_codes_are_equal(bits):
    model, x = trained(bits=bits)
    before = model(x)
    merged = merge(model, x)
    assert align_biases_(model, merged, to_integer(merged, x)) == []
    integer = to_integer(merge(model, x), x)
    expected = model(x)
    torch.testing.assert_close(integer(x), expected, rtol=1e-5, atol=1e-5)
    assert 0 < (expected - before).abs().mean() < 0.05 * before.abs().mean()


@torch.no_grad()
def test_norms_that_two_layers_share_are_left_alone():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.norm = nn.BatchNorm2d(4)

        def forward(self, x):
            return self.norm(self.a(x)), self.norm(self.b(x))

    torch.manual_seed(0)
    model, x = Shared(), torch.randn(1, 3, 8, 8)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged = merge(model.eval(), x)
    assert {merged.a.norm, merged.b.norm} == {'norm'}
    before = model(x)
    assert align_biases_(model, merged, to_integer(merged, x)) == ['a', 'b']
    assert all(map(torch.equal, model(x), before))


@torch.no_grad()
def test_biases_that_two_layers_share_are_left_alone():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
            self.b.weight, self.b.bias = self.a.weight, self.a.bias
            self.head = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.head(self.a(x) + self.b(3 * x))

    torch.manual_seed(0)
    model, x = Shared(), torch.randn(1, 3, 8, 8)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    before = model.eval().a.bias.clone()
    merged = merge(model, x)
    assert align_biases_(model, merged, to_integer(merged, x)) == ['a', 'b']
    assert torch.equal(model.a.bias, before)


@torch.no_grad()
def test_layers_of_two_names_are_aligned():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
            self.b = self.a

        def forward(self, x):
            return self.head(self.b(x).relu())

    torch.manual_seed(0)
    model, x = Twice(), torch.randn(1, 3, 8, 8)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged, before = merge(model.eval(), x), model.a.bias.clone()
    assert align_biases_(model, merged, to_integer(merged, x)) == []
    assert not torch.equal(model.a.bias, before)
    again = to_integer(merge(model, x), x).graph_module.a
    step = again.w_scale.double() * merged.a.grid.scale
    torch.testing.assert_close(again.bias * step, model.a.bias.double(),
                               rtol=1e-6, atol=1e-9)


@torch.no_grad()
@pytest.mark.parametrize('weights, bits', [('int8', 4), ('int2', 2)])
def test_onnx_runtime_equals_the_integer_model(weights, bits, tmp_path):
    """4-bit codes of 8-bit codes, too."""
    model, x = trained(bits=bits)
    integer = to_integer(merge(model, x[:1]), x[:1])
    path = tmp_path / 'model.onnx'
    report = export_onnx(integer, x[:1], path, weights=weights)
    assert set(report.kernels.values()) == {'QLinearConv', 'QGemm'}
    assert all(equal == total for equal, total in report.codes.values())
    runner = onnx_check.session(path)
    for image in x[:8].split(1):
        result, = onnx_check.run(runner, [image])
        torch.testing.assert_close(torch.from_numpy(result), integer(image),
                                   rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_8_bit_codes_of_8_bit_codes_stay_two_roundings(tmp_path):
    """ONNX Runtime would make one of them, with another scale."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(),
                             nn.Conv2d(8, 4, 3)), torch.randn(1, 3, 20, 20)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=8),
        residual=dict(outputs=['1'], threshold='mean', k=8.)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    integer = to_integer(merge(model.eval(), x), x)
    path = tmp_path / 'model.onnx'
    report = export_onnx(integer, x, path)
    assert set(report.kernels.values()) == {'QLinearConv'}
    result, = onnx_check.run(onnx_check.session(path), [x])
    assert torch.equal(torch.from_numpy(result), integer(x))


@torch.no_grad()
def test_quantizer_between_layer_and_norm_keeps_them_apart():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4),
                             nn.Conv2d(4, 4, 1)), torch.randn(1, 3, 9, 9)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4),
        residual=dict(outputs=['0']),
        rules=[dict(match='2', weight=dict(bits=None))]))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged = merge(model.eval(), x)
    assert merged_layers(merged)['0'].norm == ''
    assert isinstance(merged[1], nn.BatchNorm2d)
    torch.testing.assert_close(merged(x), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_float_layers_keep_theirs():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)), \
        torch.randn(1, 3, 9, 9)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4),
        residual=dict(outputs=['0']),
        rules=[dict(match='0', weight=dict(bits=None))]))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged = merge(model.eval(), x)
    torch.testing.assert_close(merged(x), model(x), rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_the_float_form_rounds_nothing():
    """Against the float network, with the weights that the layers have."""
    model, x = trained()
    expected = Net().eval()
    expected.load_state_dict(
        {key: value for key, value in model.state_dict().items()
         if 'quantiz' not in key})
    for name in ('stem.0', 'first', 'plain', 'mid', 'head'):
        expected.get_submodule(name).weight.copy_(
            model.get_submodule(name).quantized_weight())
    floats = float_form(merge(model, x))
    torch.testing.assert_close(floats(x), expected(x), rtol=1e-4, atol=1e-5)
    assert not torch.allclose(model(x), expected(x), rtol=1e-2, atol=1e-3)


@torch.no_grad()
def test_qonnx_has_them_as_quant_nodes(tmp_path):
    model, x = trained()
    reports = [export_onnx(each, x[:1], tmp_path / name, 'qonnx')
               for each, name in ((model, 'a'), (trained([])[0], 'b'))]
    assert reports[0].quant_nodes == reports[1].quant_nodes + len(OUTPUTS)
    assert reports[0].difference < 1e-5
