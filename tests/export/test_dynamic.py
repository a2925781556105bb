"""Files for batches and sizes other than the example's, in other opsets."""
import onnx
import pytest
import torch
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx, to_integer
from gdrq_mm.export import onnx_check
from gdrq_mm.integer.graph import capture
from gdrq_mm.merge import merge


def small():
    """Two quantized convolutions."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                          nn.Conv2d(4, 4, 1))
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    return model


class Net(nn.Module):
    """Residual, resized, padded to a multiple of 4, with a linear head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.side, self.deep = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, 2, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        height, width = x.shape[2:]
        x = nn.functional.pad(x, (0, (width + 3) // 4 * 4 - width,
                                  0, (height + 3) // 4 * 4 - height))
        x = self.stem(x).relu()
        small = self.deep(x)
        x = (self.side(x) + nn.functional.interpolate(
            small, size=x.shape[2:], mode='nearest')).relu()
        return self.head(x.permute(0, 2, 3, 1))


@pytest.fixture(scope='module')
def merged():
    torch.manual_seed(0)
    model, x = Net(), torch.randn(1, 3, 14, 18)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    return merge(model.eval(), x), x


@torch.no_grad()
@pytest.mark.parametrize('dynamic', [('batch', ), ('batch', 'size')])
def test_other_batches_and_sizes_give_what_the_model_gives(
        merged, dynamic, tmp_path):
    merged, x = merged
    path = tmp_path / 'model.onnx'
    report = export_onnx(merged, x, path, dynamic=dynamic)
    assert len(report.others) == 2 and len(report.kernels) == 4
    assert max(report.others.values()) < 1e-4
    integer = to_integer(merged, x, dynamic=dynamic)
    runner = onnx_check.session(path)
    sizes = [(14, 18), (33, 21), (8, 64)] if 'size' in dynamic else [(14, 18)]
    for batch, size in zip((4, 1, 5), sizes):
        images = torch.randn(batch, 3, *size)
        y, = onnx_check.run(runner, [images])
        assert len(y) == batch
        torch.testing.assert_close(torch.from_numpy(y), integer(images),
                                   rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize('opset', [13, 21])
def test_files_of_another_opset_compute_the_same(opset, tmp_path):
    model, x = small(), torch.randn(1, 3, 8, 8)
    path = tmp_path / 'model.onnx'
    gdrq_mm.calibrate(model, [lambda: model(x)])
    report = export_onnx(model.eval(), x, path, opset=opset)
    assert report.difference < 1e-4 and len(report.kernels) == 2
    assert onnx.load(str(path)).opset_import[0].version == opset


class Pooled(nn.Module):
    """Operators that got attributes later: pooling, reshaping, means."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        x = nn.functional.max_pool2d(self.conv(x).relu(), 2)
        y = nn.functional.avg_pool2d(x, 2)
        return self.fc(x.mean((2, 3))), self.last(y.flatten(1))


@torch.no_grad()
@pytest.mark.parametrize('opset', range(14, 24))
def test_pooling_reshaping_and_means_are_in_opsets_from_14_on(opset, tmp_path):
    torch.manual_seed(0)
    model, x = Pooled(), torch.rand(1, 3, 8, 8)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    path = tmp_path / 'model.onnx'
    report = export_onnx(model.eval(), x, path, opset=opset)
    assert report.difference < 1e-6 and len(report.kernels) == 3
    assert onnx.load(str(path)).opset_import[0].version == opset


@torch.no_grad()
def test_an_operator_that_an_opset_lacks_is_named(merged, tmp_path):
    merged, x = merged
    with pytest.raises(ValueError, match='opset 13: onnx cannot turn the Pad '
                       '.*into it; 18, the default, always does'):
        export_onnx(merged, x, tmp_path / 'model.onnx', opset=13)
    assert not list(tmp_path.iterdir())


class Several(nn.Module):
    """Takes any number of images."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, *images):
        return self.first(images[0]) + self.last(images[-1])


@torch.no_grad()
@pytest.mark.parametrize('dynamic', [(), ('batch', 'size')])
def test_inputs_are_as_many_as_the_example_has(dynamic, tmp_path):
    """Be they one tensor in the example, and gathered by the forward."""
    torch.manual_seed(0)
    model, path = Several(), tmp_path / 'model.onnx'
    x, y = torch.randn(2, 1, 3, 12, 12)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x, y)])
    merged = merge(model.eval(), x, y)
    module = capture(merged, (x, x), dynamic)
    torch.testing.assert_close(module(x, y), merged(x, y))
    assert len(export_onnx(merged, (x, x), path, dynamic=dynamic).others) == \
        len(dynamic)
    if dynamic:
        x, y = torch.randn(2, 4, 3, 20, 9)
    result, = onnx_check.run(onnx_check.session(path), [x, y])
    # 8-bit sums are clipped where those of the example end.
    assert (torch.from_numpy(result) - merged(x, y)).abs().mean() < .1


class Grid(nn.Module):
    """Adds the place of every feature, as priors are made."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, 8, 1)

    def forward(self, x):
        y = self.conv(x)
        rows, columns = torch.meshgrid(*map(torch.arange, y.shape[2:]),
                                       indexing='ij')
        return y.flatten(2) + rows.reshape(-1) + columns.reshape(-1)


@torch.no_grad()
def test_images_too_small_for_a_dynamic_size_are_refused(tmp_path):
    model, x = Grid(), torch.randn(1, 3, 10, 32)  # .75 of 10 is one row
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    with pytest.raises(RuntimeError, match='at least 9 pixels a side .*'
                       'checked at 8.*--shape'):
        export_onnx(model.eval(), x, tmp_path / 'model.onnx',
                    dynamic=['size'])
    assert not list(tmp_path.iterdir())


class OneSize(nn.Module):
    """Computes with the size of its example."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)
        self.place = nn.Parameter(torch.randn(4, 8, 8))

    def forward(self, x):
        return self.conv(x) + self.place


@torch.no_grad()
def test_a_model_of_one_size_is_refused(tmp_path):
    model, x = OneSize(), torch.randn(1, 3, 8, 8)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    path = tmp_path / 'model.onnx'
    with pytest.raises(RuntimeError, match='no graph with dynamic size.*'
                       'fixed'):
        export_onnx(model.eval(), x, path, dynamic=['size'])
    assert not list(tmp_path.iterdir())
    assert export_onnx(model, x, path, dynamic=['batch']).others


@torch.no_grad()
def test_what_is_not_there_is_named(merged, tmp_path):
    merged, x = merged
    path = tmp_path / 'model.onnx'
    for options, message in (
            (dict(dynamic=['depth']), "'depth', allowed: batch, size"),
            (dict(opset=9), 'opset is 9, allowed: 13 to'),
            (dict(format='qonnx', dynamic=['size']), 'fixed shapes')):
        with pytest.raises(ValueError, match=message):
            export_onnx(merged, x, path, **options)
    with pytest.raises(ValueError, match='make it with to_integer'):
        export_onnx(to_integer(merged, x), x, path, dynamic=['batch'])
    assert not list(tmp_path.iterdir())


@torch.no_grad()
@pytest.mark.parametrize('dtype', [torch.float16, torch.float64])
def test_models_of_other_dtypes_export(dtype, tmp_path):
    model, x = small(), torch.randn(1, 3, 8, 8)
    gdrq_mm.calibrate(model, [lambda: model(x)])
    report = export_onnx(model.eval().to(dtype), x.to(dtype),
                         tmp_path / 'model.onnx', calibration=[x.to(dtype)])
    assert report.difference < 1e-4 and len(report.kernels) == 2
