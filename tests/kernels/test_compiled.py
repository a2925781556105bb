"""The kernels of CUDA; compiled for the CPU where there is no GPU."""
import pytest
import torch

from gdrq_mm import functional as F
from gdrq_mm.kernels import compiled, eager

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
pytestmark = pytest.mark.gpu


def blocks(height, width):
    """An activation, one in channels-last format, a weight; clip, groups."""
    torch.manual_seed(height)
    x = torch.randn(2, 6, height, width, device=DEVICE)
    weight = torch.randn(8, 3, height, 3, device=DEVICE)
    return [(x, torch.tensor(1.1, device=DEVICE), -1),
            (x.contiguous(memory_format=torch.channels_last),
             torch.tensor(.7, device=DEVICE), -1),
            (x.to(torch.bfloat16), torch.tensor(.7, device=DEVICE), -1),
            (x.to(torch.float16), torch.tensor(.7, device=DEVICE), -1),
            (weight, F.clip_threshold(weight, 2., 3), 3)]


def differing(ours, plain):
    """Share of values that differ: on CUDA a division may be rounded in
    another way, which moves values on the edge of two codes."""
    return float((ours != plain).float().mean())


def compare(height, width):
    for x, clip, group_size in blocks(height, width):
        for bits, signed in ((2, True), (4, False), (8, False)):
            seen = torch.zeros(2, 3, device=DEVICE)
            for statistics in (None, seen):
                ours = compiled.quantize(
                    x, clip, bits, signed, group_size,
                    None if statistics is None else seen[0])
                plain = eager.quantize(
                    x, clip, bits, signed, group_size,
                    None if statistics is None else seen[1])
                assert ours.dtype == x.dtype and ours.shape == x.shape
                assert differing(ours, plain) < 1e-3
            torch.testing.assert_close(seen[0], seen[1], rtol=1e-3, atol=0)
            grad = torch.randn_like(x)
            assert torch.equal(
                compiled.mask_outside(grad, x, clip, signed, group_size),
                eager.mask_outside(grad.clone(), x, clip, signed, group_size))
        if clip.dim():
            for bits in (2, 3):
                assert differing(
                    compiled.quantize_even(x, clip, bits, group_size),
                    eager.quantize_even(x, clip, bits, group_size)) < 1e-3
        if clip.dim() == 0:
            seen = torch.zeros(2, 3, device=DEVICE)
            ours, inside = compiled.quantize_relu(x, clip, 4, seen[0], False)
            plain, expected = eager.quantize_relu(x, clip, 4, seen[1], False)
            assert differing(ours, plain) < 1e-3
            assert torch.equal(inside, expected)
            torch.testing.assert_close(seen[0], seen[1], rtol=1e-3, atol=0)


def test_compiled_kernels_equal_the_eager_ones_and_serve_all_sizes():
    compare(20, 21)
    compare(24, 31)
    counters = torch._dynamo.utils.counters
    before = counters['stats']['unique_graphs']
    assert before > 0
    for height, width in ((40, 19), (33, 33), (20, 21)):
        compare(height, width)
    assert counters['stats']['unique_graphs'] == before


@pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')
@pytest.mark.parametrize('site', ['input', 'relu'])
def test_a_step_does_not_wait_for_the_gpu(site):
    from torch import nn

    from gdrq_mm import quantize_
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, 4)).cuda()
    quantize_(model, dict(weight=dict(bits=4),
                          activation=dict(bits=4, site=site)))
    optimizer = torch.optim.SGD(model.parameters(), .1)
    x = torch.randn(4, 3, 16, 16, device='cuda')

    def step():
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()

    for _ in range(12):  # signs settle, kernels are compiled
        step()
    torch.cuda.set_sync_debug_mode('error')
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
