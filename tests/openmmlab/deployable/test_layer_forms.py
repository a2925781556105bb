"""Layers of the packages that graphs hold in another form."""
import pytest
import torch
from mmcv.ops import CornerPool
from mmseg.models.utils import Upsample
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx, to_integer
from gdrq_mm.integer.graph import capture
from gdrq_mm.merge import merge
from gdrq_mm.openmmlab.deployable.layer_forms import FORMS, layer_forms

CORNERS = [CornerPool(mode) for mode in CornerPool.cummax_dim_flip]
DOUBLED = [Upsample(scale_factor=2, mode='bilinear', align_corners=False),
           Upsample(scale_factor=1.5), Upsample(size=(9, 5))]


class Net(nn.Module):
    """A convolution, and one of them behind it."""

    def __init__(self, layer):
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.layer = nn.Conv2d(3, 4, 3, padding=1), layer

    def forward(self, x):
        with layer_forms():
            return self.layer(self.stem(x))


def images(size=(10, 14), number=1):
    return torch.randn(number, 3, *size,
                       generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize('layer', CORNERS + DOUBLED, ids=str)
def test_graphs_compute_what_the_package_does(layer):
    model = Net(layer).eval()
    graph = capture(model, (images(), ))
    torch.testing.assert_close(graph(images()), model(images()))


@torch.no_grad()
@pytest.mark.parametrize('layer', DOUBLED[:2], ids=str)
def test_sizes_follow_those_of_images(layer):
    model = Net(layer).eval()
    graph = capture(model, (images(), ), ['batch', 'size'])
    for x in (images(), images((12, 23), 3)):
        torch.testing.assert_close(graph(x), model(x))


@torch.no_grad()
@pytest.mark.parametrize('layer', [*CORNERS, DOUBLED[0]], ids=str)
def test_files_compute_what_graphs_do(layer, tmp_path):
    model, x = Net(layer), images()
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    dynamic = ['batch']
    integer = to_integer(merge(model.eval(), x), x, dynamic=dynamic)
    report = export_onnx(integer, x, tmp_path / 'model.onnx', dynamic=dynamic)
    assert report.difference < 1e-5 and len(report.kernels) == 1


def test_after_a_capture_the_packages_compute_as_before():
    before = CornerPool.forward, Upsample.forward
    for layer in (CORNERS[0], DOUBLED[0]):
        with torch.no_grad():
            capture(Net(layer).eval(), (images(), ))
    assert before == (CornerPool.forward, Upsample.forward)
    assert not {*before} & {*FORMS.values()}
