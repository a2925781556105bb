"""What lies between quantized layers is compared, too."""
import numpy as np
import onnx
import pytest
import torch
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx
from gdrq_mm.export import onnx_check
from gdrq_mm.export.between_check import check_between
from gdrq_mm.integer.graph import capture
from gdrq_mm.merge.ops import OPS

FORMATS = ['qdq', 'tensorrt', 'qonnx']


class Net(nn.Module):
    """A float part between two layers, and one behind them."""

    def __init__(self, sort=False):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.last = nn.Conv2d(8, 8, 1)
        self.sort = sort

    def forward(self, x):
        x = self.first(x)
        x = self.last(x * torch.sigmoid(x * 1.702))
        x = torch.softmax(x.flatten(1) * .125, 1)
        return x.topk(50)[0] if self.sort else x


def quantized(**options):
    torch.manual_seed(0)
    model, x = Net(**options), torch.randn(1, 3, 8, 8)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    return model.eval(), x


def change(monkeypatch, constant, factor):
    """Files are written with another value of a constant."""

    def write(proto, path):
        found = 0
        for each in proto.graph.initializer:
            values = onnx.numpy_helper.to_array(each)
            if values.dtype == np.float32 and values.size == 1 and abs(
                    float(values.reshape(())) - constant) < 1e-4:
                each.CopyFrom(onnx.numpy_helper.from_array(
                    (values * factor).astype(np.float32), each.name))
                found += 1
        assert found == 1
        onnx.save(proto, str(path))

    monkeypatch.setattr('gdrq_mm.export.onnx_file.write', write)


@pytest.mark.parametrize('format', FORMATS)
@pytest.mark.parametrize('constant, factor', [
    (1.702, -3.), (.125, 100.), (.125, float('nan'))])
def test_a_file_with_another_constant_is_refused(
        format, constant, factor, tmp_path, monkeypatch):
    model, x = quantized()
    export_onnx(model, x, tmp_path / 'right.onnx', format)
    change(monkeypatch, constant, factor)
    with pytest.raises(RuntimeError, match='an operator between quantized '
                       'layers, .* computes something else: .*nothing was '
                       'written'):
        export_onnx(model, x, tmp_path / 'wrong.onnx', format)
    assert [each.name for each in tmp_path.iterdir()] == ['right.onnx']


def test_the_layer_that_reads_other_codes_is_named(tmp_path, monkeypatch):
    model, x = quantized()
    change(monkeypatch, 1.702, -3.)
    with pytest.raises(RuntimeError, match='% of the codes that last reads'):
        export_onnx(model, x, tmp_path / 'wrong.onnx')


def test_where_values_are_sorted_it_is_a_warning(tmp_path, monkeypatch):
    """Equal ones may have changed places; NaN has no such excuse."""
    model, x = quantized(sort=True)
    change(monkeypatch, .125, 100.)
    with pytest.warns(UserWarning, match='sorted in another order.*--eval'):
        export_onnx(model, x, tmp_path / 'other.onnx')
    change(monkeypatch, .125, float('nan'))
    with pytest.raises(RuntimeError, match='nan% of .* differ'):
        export_onnx(model, x, tmp_path / 'nan.onnx')


class Choice(nn.Module):
    """Rows of four boxes, the best first."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind

    def forward(self, boxes, scores):
        kept = OPS.top(scores, 4) if self.kind == 'top' else OPS.nms(
            boxes, scores, .5, 0., 4)
        return boxes.gather(1, kept[..., None].expand(-1, -1, 4))


SCORES = torch.tensor([[3., 2., 2. + 2e-7, 1.]])
ORDER = [0, 2, 1, 3]


def check_choice(kind, order, rows):
    """Of a file that chooses ``order`` and gives the boxes ``rows``."""
    corners = torch.arange(4.)[None, :, None] * 20
    boxes = torch.cat([corners, corners + 10], -1)[..., [0, 0, 1, 1]]
    module = capture(Choice(kind), (boxes, SCORES))
    assert torch.equal(module(boxes, SCORES), boxes[:, ORDER])
    check_between(module, (boxes, SCORES), [], {
        kind: np.array([order]), 'rows': boxes[:, rows].numpy()}, ['rows'])


@pytest.mark.parametrize('kind', ['top', 'nms'])
def test_boxes_that_score_the_same_may_change_places(kind):
    check_choice(kind, [0, 1, 2, 3], [0, 1, 2, 3])


@pytest.mark.parametrize('kind', ['top', 'nms'])
def test_boxes_are_compared_in_the_order_of_the_file(kind):
    with pytest.raises(RuntimeError, match='% of rows differ'):
        check_choice(kind, [0, 1, 2, 3], [0, 1, 3, 2])


def test_other_choices_are_refused_or_of_suppression_told():
    worst = ORDER[::-1]
    with pytest.raises(RuntimeError, match='of the scores that top chooses'):
        check_choice('top', worst, worst)
    with pytest.warns(UserWarning, match='of the scores that nms chooses.*'
                      '--eval'):
        check_choice('nms', worst, worst)


@pytest.mark.parametrize('off, refused', [(1, False), (11, True)])
def test_one_value_of_a_hundred_may_be_off(off, refused):
    """Where two activations are added, a code next to a boundary may be."""
    x = torch.ones(1, 1000)
    x[0, 100:] = 0  # what is nothing does not count
    module, found = capture(nn.Identity(), (x, )), x.clone()
    found[0, :off] = 2
    values = dict(y=found.numpy())
    if not refused:
        check_between(module, (x, ), [], values, ['y'])
        return
    with pytest.raises(RuntimeError, match='11.0% of y'):
        check_between(module, (x, ), [], values, ['y'])


@pytest.mark.parametrize('right', [0, 2000])
def test_one_label_of_five_that_is_another_is_refused(right):
    labels = torch.full((1, 1000), -1)
    labels[0, :5] = right
    found = labels.clone()
    found[0, 0] += 1
    with pytest.raises(RuntimeError, match='20.0% of y'):
        check_between(capture(nn.Identity(), (labels, )), (labels, ), [],
                      dict(y=found.numpy()), ['y'])


def test_a_file_that_is_joined_otherwise_as_a_whole_is_warned_of(
        monkeypatch, tmp_path):
    """Values between layers are read from a copy that has them as outputs."""
    run = onnx_check.run

    def joined(session, example):
        results = run(session, example)
        return [1.5 * each for each in results] if len(results) == 1 \
            else results

    model, x = quantized()
    monkeypatch.setattr(onnx_check, 'run', joined)
    with pytest.warns(UserWarning, match='joins operators otherwise'):
        export_onnx(model, x, tmp_path / 'model.onnx')
