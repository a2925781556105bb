"""Grids of activations travel with the state dict of a merged model."""
import io

import pytest
import torch
from torch import nn

import gdrq_mm
from gdrq_mm.merge import merge


class Net(nn.Module):
    """Every module that keeps a grid: layers, ReLUs, outputs, products."""

    def __init__(self):
        super().__init__()
        self.conv, self.relu = nn.Conv2d(3, 8, 3), nn.ReLU()
        self.deep = nn.ConvTranspose2d(8, 8, 1)  # stays, on rounded inputs
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = self.deep(self.relu(self.conv(x))).mean(2)
        return self.head((x @ x.transpose(1, 2)) @ x.transpose(1, 2)[..., :8])


def merged(scale, site='input', **options):
    torch.manual_seed(0)
    model, x = Net(), scale * torch.randn(2, 3, 10, 10)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4, site=site),
        products=dict(bits=8), residual=dict(outputs=['deep']), **options))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    return merge(model.eval(), x), x


@torch.no_grad()
@pytest.mark.parametrize('site', ['input', 'relu'])
def test_a_state_dict_brings_its_grids(site):
    (one, x), (other, _) = merged(1., site), merged(9., site)
    expected = one(x)
    assert not torch.equal(other(x), expected)
    file = io.BytesIO()
    torch.save(one.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other(x), expected)
    assert str(other) == str(one)


def test_bits_come_with_the_codes():
    one, _ = merged(1.)
    other, _ = merged(1., rules=[dict(match='head', weight=dict(bits=8))])
    assert one.head.bits == 4 and other.head.bits == 8
    one.load_state_dict(other.state_dict())
    assert one.head.bits == 8


def test_a_state_dict_of_other_grids_is_refused():
    model, _ = merged(1., 'relu')
    state = model.state_dict()
    rows = state['relu._extra_state']
    state['relu._extra_state'] = torch.cat([rows[:1], rows])
    with pytest.raises(ValueError, match='a MergedReLU has 1 grids, the state '
                       'dict 2: it is of another merged model'):
        model.load_state_dict(state)
