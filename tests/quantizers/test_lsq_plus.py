"""LSQ+ against the formulas of its paper in float64."""
import math

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from gdrq_mm import calibrate, quantize_
from gdrq_mm.deploy import export_onnx, merge
from gdrq_mm.merge import merge_errors
from gdrq_mm.quantizers import LSQPlusActivation, LSQPlusWeight


def normal(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape),
                        dtype=torch.float32)


def started(x, bits=4):
    quantizer = LSQPlusActivation(bits)
    assert quantizer(x) is x and not quantizer.initialized
    quantizer.observe(x)
    LSQPlusActivation.update_([quantizer])
    return quantizer


def formula(x, step, offset, high, grad):
    """Eq. 1 to 5 with ``offset`` a whole number of steps, one element at a
    time: values, gradients of x, of the step, of the offset."""
    values, grad_x, grad_step, grad_offset = [], [], 0., 0.
    offset = -min(max(round(-offset / step), 0), high) * step
    scale = 1 / math.sqrt(len(x) * high)
    for v, g in zip(x, grad):
        ratio = (v - offset) / step
        code = min(max(round(ratio), 0), high)
        values.append(code * step + offset)
        inside = 0 <= ratio <= high
        grad_x.append(g if inside else 0.)
        grad_step += g * scale * (code - ratio if inside else code)
        grad_offset += 0. if inside else g * scale
    return values, grad_x, grad_step, grad_offset


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('shift', [-.3, 0., 2.])
def test_activations_follow_the_paper(bits, shift):
    x = (normal(6, 40, seed=bits) + shift).requires_grad_()
    quantizer = started(nn.functional.silu(x.detach()), bits)
    grad = normal(6, 40, seed=9)
    out = quantizer(x)
    out.backward(grad)
    values, grad_x, grad_step, grad_offset = formula(
        x.detach().double().flatten().tolist(),
        float(quantizer.step.detached), float(quantizer.offset.detached),
        2**bits - 1, grad.double().flatten().tolist())
    assert out.flatten().tolist() == pytest.approx(values, rel=1e-4,
                                                   abs=1e-6)
    assert x.grad.flatten().tolist() == pytest.approx(grad_x)
    unit = float(quantizer.step.unit)
    assert float(quantizer.step.ratio.grad) == pytest.approx(
        grad_step / unit, rel=1e-4)
    assert float(quantizer.offset.ratio.grad) == pytest.approx(
        grad_offset / unit, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize('bits, group_size', [(2, -1), (4, 3), (8, 1)])
def test_weights_start_at_three_standard_deviations(bits, group_size):
    weight = normal(7, 5, seed=bits) + .1
    quantizer = LSQPlusWeight(7, bits, group_size)
    quantizer.start_step(weight)
    size = 7 if group_size == -1 else group_size
    rows = weight.double().numpy()
    for group, step in enumerate(quantizer.step.detached.tolist()):
        part = rows[group * size:(group + 1) * size]
        ends = part.mean() - 3 * part.std(), part.mean() + 3 * part.std()
        assert step == pytest.approx(
            max(map(abs, ends)) / 2**(bits - 1), rel=1e-5)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(-4, 12, width=32), min_size=4, max_size=40),
       st.integers(2, 8))
@example([0., 0., 0., 1.1754943508222875e-38], 3)
def test_there_are_2_to_the_bits_codes_and_zero_has_one(values, bits):
    x = torch.tensor(values)
    quantizer = started(x, bits)
    if not quantizer.initialized:
        assert torch.equal(quantizer(x), x)
        # A step of less than float32 divides by is none.
        assert not (x.abs() > 1e-34).any() or (x < 0).all()
        return
    scale, low, high, zero = quantizer.code_range()
    assert (low, high) == (0, 2**bits - 1) and low <= zero <= high
    codes = quantizer(x).detach() / scale + zero
    assert torch.allclose(codes, codes.round(), atol=1e-3)
    assert codes.round().min() >= low and codes.round().max() <= high
    assert float(quantizer(torch.zeros(1)).detach()) == 0


def test_small_negatives_cost_one_code_and_not_half_of_them():
    """The squared error of SiLU outputs at 4 bits, against the best grid of
    signed codes."""
    x = nn.functional.silu(normal(4000))
    quantizer = started(x)
    assert quantizer.is_signed and 1 <= quantizer.code_range().zero_point <= 3
    ours = float((quantizer(x) - x).square().mean().detach())
    signed = min(float(((x / step).round().clamp(-7, 7) * step
                        - x).square().mean()) for step in
                 np.geomspace(.01, 1, 200).tolist())
    assert ours < .6 * signed


def test_bfloat16_is_rounded_in_float32():
    x = normal(500).bfloat16()
    quantizer = started(x, 8)
    expected = quantizer(x.float())
    assert torch.equal(quantizer(x), expected.bfloat16())


@pytest.mark.parametrize('padding', [1, 'same'])
def test_offsets_go_through_padding_merging_and_export(padding, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=padding), nn.BatchNorm2d(8), nn.SiLU(),
        nn.Conv2d(8, 4, 3, padding=padding), nn.BatchNorm2d(4), nn.SiLU(),
        nn.Flatten(), nn.Linear(4 * 64, 5))
    quantize_(model, dict(weight=dict(type='LSQPlus', bits=4),
                          activation=dict(type='LSQPlus', bits=4)))
    x = normal(2, 3, 8, 8)
    calibrate(model, [lambda: model(x)])
    model.eval()
    ranges = [model[index].input_quantizer.code_range()
              for index in (0, 3, 7)]
    assert all(each.zero_point > 0 for each in ranges)
    merged = merge(model, x)
    assert max(merge_errors(model, merged, x).values()) < 1e-5
    if padding == 'same':
        return
    pytest.importorskip('qonnx', reason='needs what export needs')
    report = export_onnx(model, x, tmp_path / 'qdq.onnx')
    equal, total = report.equal_codes()
    assert equal == total > 0 and report.difference == 0
    report = export_onnx(model, x, tmp_path / 'qonnx.onnx', 'qonnx')
    assert report.difference < 1e-5


def test_the_ends_of_the_range_are_not_clipped():
    quantizer = LSQPlusActivation(3)
    assert quantizer.scalars() == {}
    quantizer.start_([.5, -1.], signed=True)  # codes 0 to 7, that of zero 2
    assert quantizer.code_range() == (.5, 0, 7, 2)
    x = torch.tensor([-1.1, -1., 0., 2.5, 2.6])
    assert float(quantizer.clipped_fraction(x)) == 2 / 4
    logged = quantizer.scalars()
    assert float(logged['lsq_plus_act_step']) == .5
    assert float(logged['lsq_plus_act_offset']) == -1
