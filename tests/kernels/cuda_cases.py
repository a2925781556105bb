"""What the kernels of GPUs compute: on a GPU, or in Triton's interpreter.

That must be asked for before Triton is imported: ``test_cuda.py`` runs these
in a process of their own.
"""
import pytest
import torch
from torch.overrides import TorchFunctionMode

from gdrq_mm import functional as F
from gdrq_mm import kernels
from gdrq_mm.kernels import cuda, eager

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
pytestmark = pytest.mark.gpu


class DividesAsGPUs(TorchFunctionMode):
    """PyTorch on a GPU: by a number it multiplies with the reciprocal."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in (torch.Tensor.__truediv__, torch.Tensor.div, torch.div) \
                and not isinstance(args[1], torch.Tensor):
            return args[0] * (1 / torch.full((), args[1], dtype=torch.float32,
                                             device=DEVICE))
        return func(*args, **(kwargs or {}))


def assert_same(ours, plain):
    # The interpreter cuts off what bfloat16 has no room for.
    rtol = 2**-7 if DEVICE == 'cpu' and ours.dtype is torch.bfloat16 else 0
    torch.testing.assert_close(ours, plain, rtol=rtol, atol=0)


def blocks(dtype):
    """Tensors, their clip values and group sizes: of one block and of
    several, channels-last, permuted, a last group that is shorter."""
    torch.manual_seed(0)
    x = torch.randn(2, 6, 20, 21, device=DEVICE).to(dtype)
    weight = torch.randn(8, 3, 20, 3, device=DEVICE).to(dtype)
    clip = torch.tensor(.7, device=DEVICE)
    for each in (x, x.contiguous(memory_format=torch.channels_last),
                 x.permute(2, 0, 3, 1)):
        yield each, clip, -1
    for size in (3, -1):
        yield weight, F.clip_threshold(weight, 2., size), size
    yield (weight.contiguous(memory_format=torch.channels_last),
           F.clip_threshold(weight, 2., 3), 3)


@pytest.mark.parametrize('dtype', FLOATS)
def test_kernels_equal_plain_pytorch_bit_for_bit(dtype):
    for x, clip, group_size in blocks(dtype):
        assert cuda.takes(x, clip)
        for bits, signed in ((2, True), (4, False), (8, False)):
            args = x, clip, bits, signed, group_size
            ours = cuda.quantize(*args, None)
            assert ours.dtype == x.dtype and ours.stride() == x.stride()
            assert_same(ours, eager.quantize(*args, None))
        grad = torch.randn(x.shape, device=DEVICE).to(dtype)
        for signed in (True, False):
            assert torch.equal(
                cuda.mask_outside(grad.clone(), x, clip, signed, group_size),
                eager.mask_outside(grad.clone(), x, clip, signed, group_size))
        if not clip.dim():
            for bits, zero in ((2, 0.), (4, 2.), (8, 255.)):
                args = x, clip, torch.tensor(zero, device=DEVICE), bits
                ours = cuda.quantize_shifted(*args)
                assert ours.dtype == x.dtype and ours.stride() == x.stride()
                assert_same(ours, eager.quantize_shifted(*args))
                assert torch.equal(
                    cuda.mask_outside_shifted(grad.clone(), *args),
                    eager.mask_outside_shifted(grad.clone(), *args))
        else:
            assert_same(cuda.quantize_even(x, clip, 2, group_size),
                        eager.quantize_even(x, clip, 2, group_size))


@pytest.mark.parametrize('dtype', FLOATS)
@pytest.mark.parametrize('values', [1, 2048, 2049, 70001])
def test_statistics_and_relus_are_those_of_plain_pytorch(dtype, values):
    x = torch.linspace(-2, 2, values, device=DEVICE).to(dtype)
    clip, seen = torch.tensor(.9, device=DEVICE), torch.zeros(4, 4)
    ours, plain, ours_relu, plain_relu = seen.to(DEVICE)
    assert_same(cuda.quantize(x, clip, 4, True, -1, ours),
                eager.quantize(x, clip, 4, True, -1, plain))
    for inplace in (True, False):
        for each, other in ((ours_relu, plain_relu), (None, None)):
            given, source = x.clone(), x.clone()
            out, inside = cuda.quantize_relu(given, clip, 4, each, inplace)
            expected = eager.quantize_relu(source, clip, 4, other, inplace)
            assert_same(out, expected[0])
            assert torch.equal(inside, expected[1])
            assert_same(given, source)
    torch.testing.assert_close(ours, plain, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours_relu, plain_relu, rtol=1e-5, atol=0)


@pytest.mark.parametrize('dtype', FLOATS)
@pytest.mark.parametrize('group_size', [1, 4, -1])
def test_projections_agree_to_the_rounding_of_the_mean(dtype, group_size):
    weight = torch.randn(9, 3, 40, 20, device=DEVICE).to(dtype)
    ours, version = weight.clone(), weight.clone()._version
    clip = torch.zeros(F.num_groups(9, group_size), device=DEVICE)
    cuda.project_(ours, clip, 2., group_size)
    assert ours._version > version  # autograd must hear of it
    torch.testing.assert_close(
        clip.double(), F.clip_threshold(weight.double(), 2., group_size),
        rtol=1e-6, atol=0)
    assert_same(ours, F.scale_clip(weight, clip, group_size))


def test_they_agree_with_what_pytorch_computes_on_a_gpu():
    with DividesAsGPUs():
        kernels._check(cuda, torch.device(DEVICE))


def test_what_is_not_finite_stays_so():
    x = torch.tensor([float('nan'), float('inf'), -1., -0., .5, 3e38],
                     device=DEVICE)
    zero = torch.tensor(1., device=DEVICE)
    for clip in (0., 1e-39, .7, 3.4e38, float('nan')):
        clip = torch.tensor(clip, device=DEVICE)
        ours, plain = (
            torch.cat([module.quantize(x, clip, bits, signed, -1, None)
                       for bits in (2, 8) for signed in (True, False)]
                      + [module.quantize_shifted(x, clip, zero, bits)
                         for bits in (2, 8)])
            for module in (cuda, eager))
        torch.testing.assert_close(ours, plain, rtol=0, atol=0,
                                   equal_nan=True)


def test_other_tensors_are_left_to_plain_pytorch():
    clip = torch.tensor(1., device=DEVICE)
    x = torch.zeros(4, 6, device=DEVICE)
    assert cuda.takes(x, clip) and cuda.takes(x.T, clip)
    for other in (x.double(), x[:, ::2], x[:0], x[:1].expand(4, 6)):
        assert not cuda.takes(other, clip)
    groups = torch.ones(3, device=DEVICE)  # a filter lies in pieces
    assert not cuda.takes(x.T, groups) and cuda.takes(x, groups)
