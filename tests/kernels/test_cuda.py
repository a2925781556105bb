"""The kernels of GPUs; what needs no GPU to be seen is seen without."""
import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from gdrq_mm import kernels, quantize_
from gdrq_mm.training import get_state

triton = pytest.importorskip(
    'triton', reason='torch without CUDA brings no Triton')

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402

from gdrq_mm.kernels import cuda, triton_kernels  # noqa: E402

DEVICE = 'cuda' if torch.cuda.is_available() else 'cpu'
NEEDS_GPU = pytest.mark.skipif(DEVICE == 'cpu', reason='needs a GPU')
pytestmark = pytest.mark.gpu


def test_kernels_compute_what_plain_pytorch_computes():
    result = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider',
         str(Path(__file__).with_name('cuda_cases.py'))],
        env=dict(os.environ, TRITON_INTERPRET=str(int(DEVICE == 'cpu'))),
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert result.returncode == 0, result.stdout
    assert ' skipped' not in result.stdout


POINTERS = dict(x='*{}', out='*{}', grad='*{}', weight='*{}', clip='*fp32',
                zero='*fp32', sums='*fp32', seen='*fp32', inside='*u8')
NUMBERS = dict(n='i32', group_values='i32', programs='i32', levels='fp32',
               half='fp32', largest='fp32', k='fp32')


@pytest.mark.parametrize('kernel', [
    'quantize', 'quantize_and_sum', 'quantize_relu', 'quantize_shifted',
    'add_sums', 'mask_outside', 'mask_outside_shifted', 'project'])
@pytest.mark.parametrize('dtype', ['fp32', 'bf16', 'fp16'])
def test_kernels_compile_for_gpus(kernel, dtype):
    # The interpreter takes more than the compiler does; it needs no GPU.
    function = getattr(triton_kernels, kernel)
    sizes = dict(BLOCK=cuda.BLOCK, PROGRAMS=cuda.PROGRAMS)
    flags = [name for name in function.arg_names
             if name.isupper() and name not in sizes]
    for values in itertools.product((True, False), repeat=len(flags)):
        constants = {**sizes, **dict(zip(flags, values))}
        signature = {name: {**POINTERS, **NUMBERS}.get(
            name, 'constexpr').format(dtype) for name in function.arg_names}
        source = ASTSource(function, signature, {
            (index, ): constants[name]
            for index, name in enumerate(function.arg_names)
            if name in constants})
        text = triton.compile(
            source, target=GPUTarget('cuda', 80, 32)).asm['ptx']
        # Codes are those of plain PyTorch: no division is rounded roughly.
        assert 'div.full' not in text and 'div.approx' not in text


@NEEDS_GPU
def test_gpus_run_them_after_they_agreed():
    assert kernels.status('cuda') == ('cuda', 'fused kernels')


@NEEDS_GPU
def test_nothing_is_compiled_anew_for_other_sizes():
    clip = torch.tensor(.7, device=DEVICE)

    def compiled():
        return len(triton_kernels.quantize.device_caches[
            torch.cuda.current_device()][0])

    for values in (5, 16):  # vectors are read where all are whole
        cuda.quantize(torch.zeros(values, device=DEVICE), clip, 4, True, -1,
                      None)
    before = compiled()
    for values in (40, 33, 4096, 100003):
        cuda.quantize(torch.zeros(values, device=DEVICE), clip, 2, True, -1,
                      None)
    assert compiled() == before > 0


@NEEDS_GPU
@pytest.mark.parametrize('site', ['input', 'relu'])
@pytest.mark.parametrize('first', [True, False])
def test_a_step_does_not_wait_for_the_gpu(site, first):
    """Whether thresholds look at every input, as in the first steps, or not.
    (One step in 20 counts negative values, and may.)"""
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
    if not first:
        for quantizer in get_state(model).activation_quantizers.values():
            quantizer.end_first_looks()
        step()
    torch.cuda.set_sync_debug_mode('error')
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode('default')
