"""The fused kernels of the CPU, built by the C compiler at hand.

Plain C behind ctypes: it needs no header of torch, is built within a second
for the very processor that it runs on, and a call costs microseconds.
"""
import ctypes
import functools
import os
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path
from typing import Optional, Tuple

import torch
from torch import Tensor

from ..functional import num_levels

SOURCE = Path(__file__).with_name('fused.c')
# Larger temporaries are left to the allocator: 128 MB of float32.
MAX_SCRATCH = 1 << 25
_FLAGS = ('-O3', '-fPIC', '-fno-math-errno', '-fno-trapping-math',
          '-ffp-contract=off')
# The threads are those of torch: its OpenMP library is in the process
# already, a second one would fight with it for the cores. Where it is of
# another kind than the compiler's, the kernels run on one thread.
# Large operands are read from beyond the caches, where hardware fetches no
# further ahead than to the end of a page; for weights, fused.c says more.
_VARIANTS = (('-march=native', '-fprefetch-loop-arrays', '-fopenmp'),
             ('-march=native', '-fopenmp'), ('-march=native', '-fopenmp-simd'),
             ('-fopenmp-simd', ))

_VOID, _LONG, _INT, _FLOAT = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_int,
                              ctypes.c_float)
_SIGNATURES = dict(
    quantize=[_VOID, _VOID, _VOID, _LONG, _LONG, _LONG, _LONG, _FLOAT, _INT,
              _VOID],
    quantize_even=[_VOID, _VOID, _VOID, _LONG, _LONG, _LONG, _LONG],
    quantize_shifted=[_VOID, _VOID, _VOID, _VOID, _LONG, _LONG],
    quantize_relu=[_VOID, _VOID, _VOID, _VOID, _LONG, _LONG, _FLOAT, _VOID],
    mask_outside=[_VOID, _VOID, _VOID, _LONG, _LONG, _LONG, _INT],
    mask_outside_shifted=[_VOID, _VOID, _VOID, _VOID, _LONG, _LONG],
    project=[_VOID, _VOID, _LONG, _LONG, _LONG, _FLOAT])

_local = threading.local()


@functools.lru_cache(None)
def library() -> ctypes.CDLL:
    """The kernels, built when first asked for.

    Raises:
        OSError: There is no C compiler, or none of its results loads.
    """
    compiler = os.environ.get('CC') or shutil.which('cc') or shutil.which(
        'gcc') or shutil.which('clang')
    if not compiler:
        raise OSError('there is no C compiler')
    failure = None
    with tempfile.TemporaryDirectory(prefix='gdrq_mm_') as folder:
        for number, flags in enumerate(_VARIANTS):
            try:
                return _build(compiler.split(), flags,
                              Path(folder, f'fused{number}'))
            except (OSError, subprocess.SubprocessError) as error:
                failure = failure or error
    detail = getattr(failure, 'stderr', None) or str(failure)
    raise OSError(f'{compiler} builds no kernels: '
                  f'{detail.strip().splitlines()[-1]}')


def _build(compiler: list, flags: tuple, path: Path) -> ctypes.CDLL:
    # Two steps, because linking with -fopenmp would bring in that library.
    for command in (
            [*_FLAGS, *flags, '-c', str(SOURCE), '-o', f'{path}.o'],
            ['-shared', f'{path}.o', '-o', f'{path}.so', '-lm']):
        subprocess.run([*compiler, *command], check=True, text=True,
                       capture_output=True, timeout=60)
    found = ctypes.CDLL(f'{path}.so')
    for name, types in _SIGNATURES.items():
        getattr(found, name).argtypes = types
        getattr(found, name).restype = None
    return found


def takes(x: Tensor, clip: Tensor, other: Optional[Tensor] = None) -> bool:
    """Whether the kernels know this: float32 without gaps, all alike."""
    return (x.dtype is clip.dtype is torch.float32 and clip.is_contiguous()
            # In both formats, each filter lies in one piece.
            and (x.is_contiguous() or x.dim() == 4 and x.is_contiguous(
                memory_format=torch.channels_last))
            and x.numel() > 0 and (other is None or (
                other.dtype is torch.float32
                and other.stride() == x.stride())))


def _scratch_like(x: Tensor, slot: str) -> Tensor:
    """Memory that serves all layers: fresh one costs more than the maths."""
    values = x.numel()
    if values > MAX_SCRATCH:
        return torch.empty_like(x)
    memory = getattr(_local, slot, None)
    if memory is None or memory.numel() < values:
        with torch.inference_mode(False):
            # The kernels write float32 by address, whatever the default is.
            memory = torch.empty(values, dtype=torch.float32, device='cpu')
        setattr(_local, slot, memory)
    return memory.as_strided(x.shape, x.stride())


def _rows(x: Tensor, clip: Tensor, group_size: int) -> tuple:
    """Rows, values per row, rows per group."""
    if clip.dim() == 0:
        return 1, x.numel(), 1
    rows = x.shape[0]
    return rows, x.numel() // rows, rows if group_size == -1 else group_size


@functools.lru_cache(None)
def _levels(bits: int, signed: bool) -> tuple:
    """Levels, and the largest scale: no code times it may overflow."""
    levels, finfo = num_levels(bits, signed), torch.finfo(torch.float32)
    return levels, finfo.max / levels * (1 - finfo.eps)


def _pointer(x: Optional[Tensor]) -> Optional[int]:
    return None if x is None else x.data_ptr()


def quantize(x: Tensor, clip: Tensor, bits: int, signed: bool,
             group_size: int, seen: Optional[Tensor],
             slot: Optional[str]) -> Tensor:
    out = _scratch_like(x, slot) if slot else torch.empty_like(x)
    library().quantize(
        x.data_ptr(), out.data_ptr(), clip.data_ptr(),
        *_rows(x, clip, group_size), *_levels(bits, signed), signed,
        _pointer(seen))
    return out


def quantize_even(x: Tensor, clip: Tensor, bits: int, group_size: int,
                  slot: Optional[str]) -> Tensor:
    out = _scratch_like(x, slot) if slot else torch.empty_like(x)
    library().quantize_even(x.data_ptr(), out.data_ptr(), clip.data_ptr(),
                            *_rows(x, clip, group_size), 2**(bits - 1))
    return out


def quantize_shifted(x: Tensor, clip: Tensor, zero: Tensor, bits: int,
                     slot: Optional[str]) -> Tensor:
    out = _scratch_like(x, slot) if slot else torch.empty_like(x)
    library().quantize_shifted(x.data_ptr(), out.data_ptr(), clip.data_ptr(),
                               zero.data_ptr(), x.numel(), 2**bits - 1)
    return out


def quantize_relu(x: Tensor, clip: Tensor, bits: int, seen: Optional[Tensor],
                  inplace: bool) -> Tuple[Tensor, Tensor]:
    out = x if inplace else torch.empty_like(x)
    inside = torch.empty_like(x, dtype=torch.bool)
    library().quantize_relu(
        x.data_ptr(), out.data_ptr(), inside.data_ptr(), clip.data_ptr(),
        x.numel(), *_levels(bits, False), _pointer(seen))
    return out, inside


def mask_outside(grad: Tensor, x: Tensor, clip: Tensor, signed: bool,
                 group_size: int) -> Tensor:
    library().mask_outside(
        x.data_ptr(), grad.data_ptr(), clip.data_ptr(),
        *_rows(x, clip, group_size), signed)
    return grad


def mask_outside_shifted(grad: Tensor, x: Tensor, clip: Tensor, zero: Tensor,
                         bits: int) -> Tensor:
    library().mask_outside_shifted(
        x.data_ptr(), grad.data_ptr(), clip.data_ptr(), zero.data_ptr(),
        x.numel(), 2**bits - 1)
    return grad


def project_(weight: Tensor, clip: Tensor, k: float, group_size: int) -> None:
    library().project(weight.data_ptr(), clip.data_ptr(),
                      *_rows(weight, clip, group_size), k)
    # Writing by address does not count as a change: say it to autograd.
    increment_version(weight)
    increment_version(clip)


def increment_version(x: Tensor) -> None:
    if hasattr(torch.autograd.graph, 'increment_version'):
        torch.autograd.graph.increment_version(x)
    else:  # torch < 2.3
        x.narrow(0, 0, 0).zero_()
