"""What multiplies what in a forward, by module."""
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.analysis import pictures
from gdrq_mm.analysis.coverage import Coverage, Row, measure_coverage
from gdrq_mm.analysis.drawing import check_image
from gdrq_mm.training import calibrate

W4A4 = dict(weight=dict(bits=4), activation=dict(bits=4))


class Attention(nn.Module):

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24, bias=False)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return (q @ k.transpose(1, 2)).softmax(-1) @ v


class Functional(nn.Module):
    """A layer, a convolution without one, code that reads a weight past its
    layer, and an attention product."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.kernel = nn.Parameter(torch.randn(8, 8, 1, 1))
        self.past = nn.Linear(8, 8)
        self.attention = Attention()

    def forward(self, x):
        x = self.conv(x)  # 8 x 6 x 6
        x = F.conv2d(x, self.kernel)
        x = x.flatten(2).transpose(1, 2)  # 36 tokens of 8
        x = F.linear(x, self.past.weight)
        return self.attention(x)


def covered(model, *inputs):
    quantize_(model, W4A4)
    calibrate(model, [lambda: model(*inputs)])
    return measure_coverage(model, lambda: model(*inputs))


def test_functional_products_are_counted_and_are_not_low_bit():
    torch.manual_seed(0)
    coverage = covered(Functional(), torch.randn(1, 3, 8, 8))
    found = {(row.module, row.operand): row for row in coverage.rows}
    conv, qkv, past = 8 * 36 * 27, 36 * 8 * 24, 36 * 8 * 8
    assert {key: (row.macs, row.low_bit) for key, row in found.items()} == {
        ('conv', 'conv.weight'): (conv, conv),
        ('', 'kernel'): (8 * 36 * 8, 0),
        ('', 'past.weight'): (past, past),  # quantized on read
        ('attention.qkv', 'attention.qkv.weight'): (qkv, qkv),
        ('attention', 'activations'): (2 * 36 * 36 * 8, 0)}
    assert found['attention', 'activations'].calls == 2
    weights = conv + qkv + past + 8 * 36 * 8
    assert coverage.with_weights == weights
    assert coverage.share == (conv + qkv + past) / weights
    assert coverage.summary() == (
        f'{coverage.share:.1%} of 0.0193 million multiply-accumulates with '
        'weights have two low-bit operands; most of the others: the model '
        'itself with kernel (11.9%); 0.02074 million more have no weight '
        '(activations with activations, as in attention)')


def test_every_row_has_a_bar_of_its_own(monkeypatch):
    drawn = []
    monkeypatch.setattr(pictures, 'save_figure',
                        lambda image, path: drawn.append(image))
    pictures.plot_coverage(Coverage([
        Row('rnn', 'rnn.weight_ih', 1, 10, 0), Row('', 'kernel', 1, 4, 0),
        Row('rnn', 'rnn.weight_hh', 1, 9, 9), Row('x', 'x.weight', 1, 5, 5)]),
        'coverage.png')
    axis, = drawn[0].axes
    assert [text.get_text() for text in axis.get_yticklabels()] == [
        'rnn, rnn.weight_ih', 'rnn, rnn.weight_hh', 'x',
        '(the model itself), kernel']


@pytest.mark.parametrize('name', ['picture', 'picture.pngg'])
def test_an_image_has_a_suffix(name):
    check_image('picture.svg')
    with pytest.raises(ValueError, match=f'{name} has no suffix of an image, '
                       'allowed: .*png.*give a name such as picture.png'):
        check_image(name)


def test_a_model_of_layers_is_covered_whole():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(),
                          nn.Linear(288, 4))
    coverage = covered(model, torch.randn(2, 3, 8, 8))
    assert coverage.share == 1
    assert 'others' not in coverage.summary()
    assert not any(vars(module).get('forward') for module in model.modules())
