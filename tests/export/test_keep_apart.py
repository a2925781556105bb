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
