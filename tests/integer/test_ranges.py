"""Grids of 8 bits; those of whole models are in test_integer.py."""
import pytest
import torch
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import to_integer
from gdrq_mm.integer.graph import capture
from gdrq_mm.integer.moves import target_of
from gdrq_mm.integer.ranges import RANGES, best_grid, observe, widen_grids
from gdrq_mm.merge import merge
from gdrq_mm.merge.grids import TINY, QuantParams
from gdrq_mm.merge.ops import OPS


def merged_of(bits=4):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=bits)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    return merge(model.eval(), x), x


@pytest.mark.parametrize('codes, widened', [
    ((0, 15), (0, 127)), ((-7, 7), (-128, 127)), ((0, 255), (0, 127)),
    ((-128, 127), (-128, 126)), ((-1, 14), (-9, 127)), ((-3, 12), (-32, 127)),
    ((-14, 1), (-128, 9)), ((0, 0), (0, 0))])
def test_codes_of_int8_reach_as_far_as_those_of_the_quantizer(
        codes, widened):
    merged, _ = merged_of()
    before = merged[2].grid = QuantParams(.5, *codes)
    grid = widen_grids(merged)[2].grid
    assert (grid.low, grid.high) == widened
    assert merged[2].grid == before  # it is a copy
    if any(codes):
        assert grid.scale * 127 == pytest.approx(.5 * max(map(abs, codes)))
    # No value that was kept is clipped now, but for half a step.
    for code, end in zip(codes, widened):
        assert abs(end * grid.scale) >= abs(code * .5) - grid.scale / 2


def test_an_unknown_container_is_named():
    merged, x = merged_of()
    with pytest.raises(ValueError, match="container is 'int4', allowed: uint8"
                       ', int8'):
        to_integer(merged, x, container='int4')


@torch.no_grad()
def test_integer_models_of_both_containers_are_near_each_other():
    merged, x = merged_of()
    expected = merged(x)
    for container in ('uint8', 'int8'):
        integer = to_integer(merged, x, container=container)
        error = (integer(x) - expected).abs().mean()
        assert error < .1 * expected.abs().mean()


class Summed(nn.Module):
    """A tensor without negative values and one with them, both summed."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        y = self.first(x).relu()
        return y + self.second(y)


@torch.no_grad()
@pytest.mark.parametrize('container, positive, other', [
    ('uint8', (0, 255), (-128, 127)), ('int8', (0, 127), (-128, 127))])
def test_added_grids_have_the_codes_of_the_container(
        container, positive, other):
    torch.manual_seed(0)
    model, x = Summed(), torch.randn(2, 3, 8, 8)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    integer = to_integer(merge(model.eval(), x), x, container=container)
    assert integer.container == container
    assert [(call.grid.low, call.grid.high) for call in integer.calls] == [
        positive, other]
    grid, = integer.sums.values()
    assert (grid.low, grid.high) == other


def observed(functions, *examples):
    """Grids of what the first results of functions are made of; each reads
    an input of its own."""

    class Module(nn.Module):
        def forward(self, *inputs):
            results = [function(x) for function, x in zip(functions, inputs)]
            return [each[0] for each in results], results

    examples = [tuple(each.clone() for _ in functions) for each in examples]
    module = capture(Module(), examples[0])
    output, = [node for node in module.graph.nodes if node.op == 'output']
    nodes = list(output.args[0][:len(functions)])
    for index, node in enumerate(nodes):
        while target_of(node) in (OPS.quantize.default,
                                  torch.ops.aten.flip.default):
            node = node.args[0]
        nodes[index] = node
    grids = observe(module, nodes, examples, RANGES['uint8'])
    return [grids[node] for node in nodes]


def quantize(x, scale, low, high):
    return OPS.quantize(x, scale, low, high)


def on_grid(x, low):
    return OPS.dequantize(quantize(x, .1, low, 15), .1, low)


POSITIVE = [
    lambda x: [x.relu()], lambda x: [x.relu().clamp(max=1.)],
    lambda x: [x.relu().sqrt().relu().flip(1), x],
    lambda x: [torch.cat([x.relu(), x.clamp(0., 2.)])],
    lambda x: [x.relu() + x.clamp(0., 2.)],
    lambda x: [on_grid(x, 0) + x.relu()],
    # All that read it lose what is negative.
    lambda x: [quantize(y := x.sin(), .1, 0, 15), quantize(y, .2, 0, 3)]]
NEGATIVE = [
    lambda x: [x.sin()], lambda x: [x.clamp(-1., 0.)],
    lambda x: [x.clamp(max=1.)], lambda x: [torch.cat([x.relu(), x])],
    lambda x: [x.relu() + x], lambda x: [x.relu() + -1.],
    lambda x: [torch.add(x.relu(), x.clamp(0., 2.), alpha=-1)],
    lambda x: [on_grid(x, -8) + x.relu()],
    lambda x: [quantize(y := x.sin(), .1, 0, 15), quantize(y, .2, -8, 7)],
    lambda x: [quantize(y := x.sin(), .1, 0, 15), y.exp()]]


@pytest.mark.parametrize('functions, codes', [
    (POSITIVE, (0, 255)), (NEGATIVE, (-128, 127))])
def test_codes_are_unsigned_where_nothing_negative_is_left(functions, codes):
    for grid in observed(functions, torch.randn(3, 5)):
        assert (grid.low, grid.high) == codes


READ = [
    (lambda x: [quantize(x.exp(), .3, 0, 15)], .3),
    (lambda x: [quantize(y := x.exp(), .3, 0, 15), quantize(y, .7, 0, 15),
                y.sin()], .3),
    (lambda x: [quantize((y := x.exp()).flip(1), .3, -8, 7), y.flip(0),
                quantize(y.flip(0), .7, 0, 15), y.sin()], .3),
    (lambda x: [y := x.exp(), quantize(y.sin(), .3, 0, 15)], None),
    (lambda x: [y := x.exp(), y.flip(1).sin()], None)]


def test_scales_are_odd_fractions_of_the_finest_that_is_read():
    x = torch.linspace(-2, 2, 15).view(3, 5)
    grids = observed([function for function, _ in READ], x)
    for grid, (_, reader) in zip(grids, READ):
        assert grid == best_grid(x.exp(), (grid.low, grid.high), reader)
        if reader is not None:
            fraction = reader / grid.scale
            assert fraction == pytest.approx(round(fraction), rel=1e-5)
            assert round(fraction) % 2


def test_ranges_are_those_of_all_examples():
    """The greatest value counts, of however many, and nothing of none."""
    large, empty = torch.rand(3, 20000), torch.zeros(0, 20000)
    large[1, 12345] = 3.
    grid, = observed([lambda x: [x.relu()]], torch.rand(3, 20000), large,
                     empty)
    assert 2.5 < grid.scale * 255 < 3.1


def test_zeros_are_as_fine_as_the_finest_of_the_others():
    """Wide steps beside fine ones make sums of ONNX Runtime inexact."""
    x = torch.rand(3, 50)
    fine, wide, zeros = observed([
        lambda x: [x.sin()], lambda x: [(9 * x).exp()],
        lambda x: [(0 * x).cumsum(0)]], x)
    assert zeros.scale == fine.scale < wide.scale


@pytest.mark.parametrize('reader', [1e-4, .5, None])
def test_grids_reach_as_far_as_the_values(reader):
    """Beyond where the codes of the reader end: others may read that."""
    values = torch.linspace(0, 3, 400)
    grid = best_grid(values, (0, 255), reader)
    assert grid.scale > 0
    assert (grid.round(values) - values).abs().max() <= 1.01 * 3 / 255


@pytest.mark.parametrize('top, has_grid', [
    (255 * TINY, False), (300 * TINY, True), (1e-30, True)])
def test_values_too_small_for_a_scale_are_codes_of_zero(top, has_grid):
    values = torch.linspace(0, 1, 100) * top
    grid = best_grid(values, (0, 255))
    assert (grid.scale != 1) == bool(grid.quantize(values).any()) == has_grid
    assert grid.scale >= TINY


def test_a_grid_clips_what_costs_less_to_clip():
    # Against all scales that there are, finely.
    values = torch.cat([torch.linspace(-1, 1, 200001), torch.tensor([1.5])])

    def error(scale):
        return float(((values / scale).round().clamp(-127, 127) * scale
                      - values).double().square().sum())

    least = min(map(error, torch.linspace(.002, 1.5 / 127, 100).tolist()))
    found = best_grid(values, (-127, 127))
    assert error(found.scale) <= 1.05 * least
    assert least < .8 * error(1.5 / 127)  # which clips nothing
