"""Fused kernels compute what plain PyTorch computes."""
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gdrq_mm import functional as F
from gdrq_mm import kernels
from gdrq_mm.kernels import cpu, eager

HUGE = torch.finfo(torch.float32).max
TINY = torch.finfo(torch.float32).tiny
VALUES = st.sampled_from(
    [0., -0., 1., -1., .5, 1.5, 2.5, -2.5, 1e-3, 7., HUGE, -HUGE, TINY / 4,
     float('inf'), -float('inf'), float('nan')]) | st.floats(
         -4, 4, width=32)


@pytest.fixture(scope='module', autouse=True)
def _compiler_is_there():
    """These tests compare with nothing where there is no compiler."""
    assert kernels.status('cpu') == ('cpu', 'fused kernels')


def same(a, b):
    return torch.equal(a.nan_to_num(12345.), b.nan_to_num(12345.))


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=40), st.integers(2, 8),
       st.booleans(), st.sampled_from([0., TINY / 8, 1e-30, .7, 3., HUGE]))
def test_quantized_activations_are_bit_equal(values, bits, signed, clip):
    x, clip = torch.tensor(values), torch.tensor(clip)
    ours = cpu.quantize(x, clip, bits, signed, -1, None, None)
    assert same(ours, eager.quantize(x, clip, bits, signed, -1, None))
    x.requires_grad_()
    assert same(ours, F.linear_quantize(x, clip, bits, signed).detach())


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=40), st.integers(1, 3),
       st.sampled_from([0., TINY / 8, 1e-30, .7, 3., HUGE]))
def test_even_levels_are_bit_equal(values, bits, clip):
    x, clip = torch.tensor([values]), torch.tensor([clip])
    ours = cpu.quantize_even(x, clip, bits, -1, None)
    assert same(ours, eager.quantize_even(x, clip, bits, -1))
    assert same(ours, F.linear_quantize(x, clip, bits, even=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 12),
       st.integers(2, 8), st.booleans(), st.integers(0, 9))
def test_quantized_weights_are_bit_equal(filters, inputs, group_size, bits,
                                         channels_last, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(filters, inputs, 3, 2, generator=generator)
    if channels_last:
        weight = weight.to(memory_format=torch.channels_last)
    for size in (group_size, -1):
        clip = F.clip_threshold(weight, 2., size)
        ours = cpu.quantize(weight, clip, bits, True, size, None, None)
        assert ours.stride() == weight.stride()
        assert torch.equal(
            ours, eager.quantize(weight, clip, bits, True, size, None))
        few = min(bits, 3)
        assert torch.equal(cpu.quantize_even(weight, clip, few, size, None),
                           eager.quantize_even(weight, clip, few, size))
        grad = torch.randn(weight.shape, generator=generator).to(weight)
        grad = torch.empty_like(weight).copy_(grad)
        assert torch.equal(
            eager.mask_outside(grad.clone(), weight, clip, True, size),
            cpu.mask_outside(grad.clone(), weight, clip, True, size))


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=40), st.booleans(),
       st.sampled_from([0., .5, 3., HUGE]))
def test_masks_are_those_of_autograd(values, signed, clip):
    x = torch.tensor(values, requires_grad=True)
    grad = torch.linspace(1, 2, len(values))
    F.linear_quantize(x, torch.tensor(clip), 4, signed).backward(grad)
    for module in (cpu, eager):
        ours = module.mask_outside(grad.clone(), x.detach(),
                                   torch.tensor(clip), signed, -1)
        assert torch.equal(ours, x.grad)


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=40), st.integers(2, 8),
       st.integers(0, 255), st.sampled_from([0., TINY / 8, 1e-30, .7, HUGE]))
def test_codes_with_a_zero_point_are_bit_equal(values, bits, zero, width):
    x, clip = torch.tensor(values), torch.tensor(width)
    zero = torch.tensor(float(zero % 2**bits))
    ours = cpu.quantize_shifted(x, clip, zero, bits, None)
    assert same(ours, eager.quantize_shifted(x, clip, zero, bits))
    grad = torch.linspace(1, 2, len(values))
    masked = cpu.mask_outside_shifted(grad.clone(), x, clip, zero, bits)
    assert same(masked, eager.mask_outside_shifted(
        grad.clone(), x, clip, zero, bits))
    # In float64, by the definition.
    levels = 2**bits - 1
    step = max((clip / levels).item(), TINY)
    ratio = x.double() / step
    codes = (ratio.round() + zero).clamp(0, levels)
    finite = ratio.isfinite() & ((ratio - ratio.floor() - .5).abs() > 1e-4)
    assert torch.allclose(ours[finite].double(),
                          ((codes - zero) * step)[finite], rtol=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=40), st.integers(2, 8),
       st.booleans())
def test_relu_and_quantizer_equal_one_after_the_other(values, bits, inplace):
    x, clip = torch.tensor(values), torch.tensor(.9)
    source = x.clone().requires_grad_()
    plain = F.linear_quantize(torch.relu(source), clip, bits, signed=False)
    plain.backward(torch.ones_like(plain))
    for module in (cpu, eager):
        seen, given_x = torch.zeros(3), x.clone()
        out, inside = module.quantize_relu(given_x, clip, bits, seen, inplace)
        assert same(out, plain.detach())
        assert (out.data_ptr() == given_x.data_ptr()) == inplace
        assert same(given_x, plain.detach() if inplace else x)
        assert torch.equal(inside.float(), source.grad)
        expected = torch.relu(x.double()).sum().float()
        assert torch.allclose(seen[0], expected, equal_nan=True)
        assert seen[1] == len(values)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 9), st.integers(1, 999) | st.just(20000),
       st.integers(1, 12), st.integers(0, 9))
def test_projection_agrees_to_the_rounding_of_the_mean(filters, cols,
                                                       group_size, seed):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(filters, cols, generator=generator)
    for size in (group_size, -1):
        clip = torch.empty(F.num_groups(filters, size))
        projected = weight.clone()
        version = projected._version
        cpu.project_(projected, clip, 2., size)
        assert projected._version > version  # autograd must hear of it
        expected = F.clip_threshold(weight.double(), 2., size)
        torch.testing.assert_close(clip.double(), expected, rtol=1e-6, atol=0)
        assert torch.equal(projected, F.scale_clip(weight, clip, size))


def test_projection_of_huge_weights_clips_nothing():
    weight = torch.full((2, 3), HUGE)
    clip = torch.empty(2)
    cpu.project_(weight, clip, 2., 1)
    assert (clip == HUGE).all() and (weight == HUGE).all()


@pytest.mark.parametrize('shape', [(7, ), (3, 20011), (2, 5, 31, 17)])
def test_statistics_do_not_depend_on_threads(shape):
    x = torch.randn(shape)
    threads, found = torch.get_num_threads(), []
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            seen = torch.zeros(3)
            cpu.quantize(x, torch.tensor(1.), 4, True, -1, seen, None)
            found.append(seen)
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(seen, found[0]) for seen in found)
    torch.testing.assert_close(found[0][0].double(), x.double().abs().sum(),
                               rtol=1e-6, atol=0)
    assert found[0][1] == x.numel()


@pytest.mark.parametrize('x', [
    torch.randn(4, 6).t(), torch.randn(4, 6).double(), torch.randn(4).half(),
    torch.randn(4, 6).bfloat16(), torch.empty(0, 3), torch.tensor(.3)],
    ids=['transposed', 'double', 'half', 'bfloat16', 'empty', 'scalar'])
def test_tensors_of_all_kinds_are_quantized(x):
    clip = torch.tensor(.8)
    out = kernels.quantize(x, clip, 3, seen=torch.zeros(3), slot='input')
    assert out.dtype == x.dtype and out.shape == x.shape
    assert torch.equal(out, F.linear_quantize(x, clip, 3))


def test_temporaries_of_one_slot_share_their_memory():
    clip = torch.tensor(1.)
    first = kernels.quantize(torch.randn(4, 8), clip, 4, slot='input')
    second = kernels.quantize(torch.randn(5, 2), clip, 4, slot='input')
    other = kernels.quantize(torch.randn(5, 2), clip, 4, slot='weight')
    lasting = kernels.quantize(torch.randn(5, 2), clip, 4)
    assert first.data_ptr() == second.data_ptr()
    assert len({second.data_ptr(), other.data_ptr(),
                lasting.data_ptr()}) == 3


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_temporaries_are_float32_whatever_the_default(dtype, request):
    x, clip = torch.randn(999), torch.tensor(1.)
    request.addfinalizer(
        lambda default=torch.get_default_dtype():
        torch.set_default_dtype(default))
    torch.set_default_dtype(dtype)
    y = kernels.quantize(x, clip, 4, slot=f'of {dtype}')
    assert y.dtype is torch.float32
    assert torch.equal(y, F.linear_quantize(x, clip, 4))


def test_memory_made_in_inference_mode_serves_training():
    program = (
        'import torch; from gdrq_mm import kernels\n'
        'x, clip = torch.randn(9), torch.tensor(1.)\n'
        'with torch.inference_mode():\n'
        '    kernels.quantize(x, clip, 4, slot="input")\n'
        'y = kernels.quantize(x, clip, 4, slot="input")\n'
        'assert not y.is_inference()')
    subprocess.run([sys.executable, '-c', program], check=True)


# -- what runs ---------------------------------------------------------------


def status_after(program, **environment):
    code = 'from gdrq_mm import kernels\n' \
           f'from gdrq_mm.kernels import cpu\n{program}\n' \
           'print(*kernels.status("cpu"), sep="|")'
    result = subprocess.run(
        [sys.executable, '-c', code], text=True, capture_output=True,
        env={**os.environ, **environment})
    return result


@pytest.mark.parametrize('compiler, reason', [
    ('/no/such/compiler', 'no fused kernels: '),
    ('false', 'no fused kernels: false builds no kernels'),
    ('true', 'no fused kernels: true builds no kernels')])
def test_without_a_compiler_plain_pytorch_runs_and_says_why(compiler, reason):
    result = status_after('', CC=compiler)
    kind, why = result.stdout.strip().split('|')
    assert kind == 'eager' and why.startswith(reason)


def test_kernels_that_compute_something_else_are_not_used():
    result = status_after(
        'real = cpu.quantize\n'
        'cpu.quantize = lambda *args: real(*args) + 1e-6')
    assert result.stdout.strip() == (
        'eager|no fused kernels: quantize does not agree with plain PyTorch '
        'in 10073 of 10073 values')


@pytest.fixture
def fresh_status():
    """What is built and compared in a test is not kept for the next."""

    def forget():
        cpu.library.cache_clear()
        kernels.status.cache_clear()

    forget()
    yield
    forget()


@pytest.mark.parametrize('kernel, line, broken', [
    ('quantize', 'is_signed ? -clip : 0.f', '-clip'),
    ('quantize', 'sum += fabsf(value)', 'sum += value'),
    ('quantize', 'nonzero += value != 0.f ? 1.f : 0.f;\n        out',
     'nonzero += 1.f; out'),
    ('quantize_relu', 'nonzero += value != 0.f ? 1.f : 0.f;\n        inside',
     'nonzero += 1.f; inside'),
    ('quantize', 'row * cols + at', 'row * cols + (row ? 0 : at)'),
    ('quantize', 'grid_of(clip[span.row / group_size]', 'grid_of(clip[0]'),
    ('quantize_even', 'code > last ? last : code', 'code'),
    ('quantize_even', 'high = clip[span.row / group_size], step',
     'high = clip[0], step'),
    ('quantize_even', 'floorf(clamped', 'rintf(clamped'),
    ('mask_outside', 'grad[i] : 0.f', '0.f : grad[i]'),
    ('mask_outside', 'low = is_signed ? -high : 0', 'low = -high'),
    ('mask_outside', 'high = clip[span.row / group_size]', 'high = clip[0]'),
    ('mask_outside', 'x[i] <= high ?', 'x[i] < high ?'),
    ('quantize_relu', 'x[i] > 0.f &&', 'x[i] >= 0.f &&'),
    ('quantize_relu', 'x[i] <= grid.high', 'x[i] < grid.high'),
    ('quantize_relu', 'sum += value;\n        nonzero', 'nonzero'),
    ('quantize_relu', 'value < 0.f ? 0.f : value', 'value'),
    ('quantize_shifted', 'rintf(x[i] / grid.scale)', 'x[i] / grid.scale'),
    ('quantize_shifted', '{-zero, levels - zero', '{-zero, levels'),
    ('quantize_shifted', '{-zero, levels - zero', '{0, levels - zero'),
    ('mask_outside_shifted', 'ratio >= grid.low', 'ratio > grid.low'),
    ('mask_outside_shifted', 'ratio <= grid.high', 'ratio < grid.high'),
    ('project_', '(float)(k * (float)', '(float)((float)'),
    ('project_', 'values[i] = clamped', '(void)clamped'),
    ('project_', 'clip[group] = bound', '(void)group'),
])
def test_a_kernel_with_one_wrong_line_is_not_used(
        kernel, line, broken, fresh_status, monkeypatch, tmp_path):
    source = cpu.SOURCE.read_text()
    assert line in source
    monkeypatch.setattr(cpu, 'SOURCE', tmp_path / 'fused.c')
    cpu.SOURCE.write_text(source.replace(line, broken))
    kind, why = kernels.status('cpu')
    assert kind == 'eager'
    assert why.startswith(f'no fused kernels: {kernel} does not agree')


@pytest.mark.parametrize('dtype', [torch.float64, torch.bfloat16])
def test_kernels_are_compared_in_float32_whatever_the_default(dtype):
    result = status_after(f'import torch; torch.set_default_dtype({dtype})')
    assert result.stdout.strip() == 'cpu|fused kernels'


def test_quantizing_without_statistics_is_compared():
    def quantize(x, clip, bits, signed, group_size, seen, slot=None):
        out = eager.quantize(x, clip, bits, signed, group_size, seen)
        return out if seen is not None else out + 1e-6

    broken = SimpleNamespace(**{**vars(eager), 'quantize': quantize})
    with pytest.raises(RuntimeError, match='quantize does not agree'):
        kernels._check(broken, torch.device('cpu'))


def test_plain_pytorch_can_be_asked_for():
    result = status_after('', GDRQ_MM_KERNELS='eager')
    assert result.stdout.strip() == 'eager|GDRQ_MM_KERNELS=eager'


def test_an_unknown_choice_is_refused():
    result = status_after('', GDRQ_MM_KERNELS='fast')
    assert "GDRQ_MM_KERNELS is 'fast', allowed: auto, eager" in result.stderr


def test_devices_without_kernels_run_plain_pytorch():
    assert kernels.status('meta') == (
        'eager', 'there are no fused kernels for meta')
