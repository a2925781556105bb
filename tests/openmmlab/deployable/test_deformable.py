"""mmcv's deformable convolutions in graphs and files."""
import onnx
import pytest
import torch
from mmcv.ops import (
    DeformConv2dPack,
    ModulatedDeformConv2d,
    ModulatedDeformConv2dPack,
)
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx
from gdrq_mm.integer.graph import capture
from gdrq_mm.openmmlab.deployable.deformable import deformable_kernels


class Net(nn.Module):
    """A convolution, a deformable one behind it."""

    def __init__(self, kind, **options):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.deform = kind(8, 4, (3, 2), **options)
        torch.manual_seed(0)
        nn.init.normal_(self.deform.conv_offset.weight, std=.5)
        nn.init.normal_(self.deform.conv_offset.bias, std=.5)

    def forward(self, x):
        with deformable_kernels():
            return self.deform(self.stem(x).relu())


CASES = {
    'plain': (DeformConv2dPack, dict()),
    'strided': (DeformConv2dPack, dict(stride=(2, 1), padding=(2, 1),
                                       dilation=(1, 2))),
    'groups': (DeformConv2dPack, dict(groups=2, deform_groups=4, padding=1)),
    'modulated': (ModulatedDeformConv2dPack, dict(padding=1, deform_groups=2)),
    'without bias': (ModulatedDeformConv2dPack, dict(bias=False))}


def images(size=(7, 9), number=1):
    return torch.randn(number, 3, *size,
                       generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize('case', CASES)
def test_graphs_compute_what_mmcv_does(case):
    kind, options = CASES[case]
    model = Net(kind, **options).eval()
    graph = capture(model, (images(), ), ['batch', 'size'])
    for x in (images(), images((12, 8), 3)):
        torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize('opset', [None, 21])
@pytest.mark.parametrize('case', CASES)
def test_files_compute_what_graphs_do(case, opset, tmp_path):
    """In the first opset that has the operator, where none is asked for."""
    kind, options = CASES[case]
    model, x = Net(kind, **options), images()
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4), activation=dict(bits=4),
                                  rules=[dict(match='stem', activation=dict(
                                      bits=8))]))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    path = tmp_path / 'model.onnx'
    report = export_onnx(model.eval(), x, path, opset=opset)
    assert list(report.float_layers) == ['deform']
    assert report.difference < 1e-5
    assert onnx.load(str(path)).opset_import[0].version == (
        opset or 19)


@torch.no_grad()
def test_opsets_without_the_operator_are_refused(tmp_path):
    model, x = Net(DeformConv2dPack), images()
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4)))
    for opset in (17, 18):
        with pytest.raises(ValueError, match=f'opset {opset}: onnx cannot '
                           'turn the DeformConv of the model into it; 19, the '
                           'default'):
            export_onnx(model.eval(), x, tmp_path / 'model.onnx', opset=opset)
    assert not list(tmp_path.iterdir())


class Dynamic(nn.Module):
    """Offsets of another level, as in mmdet's DyHead."""

    def __init__(self):
        super().__init__()
        self.offsets = nn.Conv2d(3, 27, 3, padding=1)
        self.deform = ModulatedDeformConv2d(3, 4, 3, padding=1, bias=False)
        torch.manual_seed(0)
        nn.init.normal_(self.offsets.weight, std=.5)

    def forward(self, x):
        offset, mask = self.offsets(x).split([18, 9], 1)
        with deformable_kernels():
            return self.deform(x[..., ::2, ::2].contiguous(), offset,
                               mask.sigmoid())


@torch.no_grad()
def test_offsets_of_larger_maps_are_read_as_mmcv_reads_them():
    model = Dynamic().eval()
    graph = capture(model, (images((8, 12), 2), ))
    x = images((8, 12), 2)
    torch.testing.assert_close(graph(x), model(x), rtol=1e-4, atol=1e-5)


def test_after_a_capture_mmcv_computes_as_before():
    from mmcv.ops.deform_conv import DeformConv2dFunction
    before = DeformConv2dFunction.forward
    model = Net(DeformConv2dPack)
    with torch.no_grad():
        capture(model.eval(), (images(), ))
    assert DeformConv2dFunction.forward is before
    model(images()).sum().backward()  # mmcv's own gradient
    assert model.deform.weight.grad.any()
