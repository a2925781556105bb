"""mmcv's own layers in merged models and files."""
import torch
from mmcv.cnn.bricks.conv2d_adaptive_padding import Conv2dAdaptivePadding
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx, merge


@torch.no_grad()
def test_adaptive_padding_is_an_integer_kernel(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        Conv2dAdaptivePadding(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(),
        Conv2dAdaptivePadding(8, 8, 5, stride=(1, 2), groups=8), nn.ReLU(),
        Conv2dAdaptivePadding(8, 4, 1))
    x = torch.randn(2, 3, 15, 18)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged = merge(model.eval(), x)
    for size in ((15, 18), (8, 7)):
        other = torch.randn(1, 3, *size)
        torch.testing.assert_close(merged(other), model(other))
    report = export_onnx(merged, x, tmp_path / 'model.onnx')
    assert len(report.kernels) == 3 and not report.float_layers
