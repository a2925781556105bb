"""Grids of 8 bits; those of whole models are in test_integer.py."""
import pytest
import torch
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import to_integer
from gdrq_mm.integer.ranges import widen_grids
from gdrq_mm.merge import merge
from gdrq_mm.merge.layers import QuantParams


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
