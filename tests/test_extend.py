"""The example of docs/extend.md, as it stands there."""
import re
from pathlib import Path

import pytest
import torch
from torch import nn

from gdrq_mm import calibrate, quantize_
from gdrq_mm.deploy import merge, pack
from gdrq_mm.quantizers import QUANTIZERS

PAGE = Path(__file__).parents[1] / 'docs' / 'extend.md'
CONFIG = dict(weight=dict(type='Static', bits=4, group_size=2),
              activation=dict(bits=4))


@pytest.fixture(autouse=True)
def example(monkeypatch):
    """Run the first code block of the page, and forget it afterwards."""
    source = re.search(r'```python\n(.*?)```', PAGE.read_text(), re.S)[1]
    assert len(source.splitlines()) <= 40
    monkeypatch.setitem(QUANTIZERS, 'Static', None)  # restored at the end
    exec(compile(source, str(PAGE), 'exec'), {'__name__': 'example'})


def make():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(),
                          nn.Conv2d(5, 4, 3))
    quantize_(model, CONFIG)
    return model


def test_it_trains_reloads_packs_and_merges():
    model, images = make(), torch.rand(2, 3, 8, 8)
    optimizer = torch.optim.SGD(model.parameters(), .01)
    before = model[0].weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()
    assert not torch.equal(before, model[0].weight)
    model.eval()
    with torch.no_grad():
        expected = model(images)
        weight = model[0].weight_quantizer(model[0].weight)
        for row in weight.flatten(1):
            assert len(row.unique()) <= 15
        for content in (model.state_dict(), pack(model)):
            other = make()
            other.load_state_dict(content)
            assert torch.equal(other.eval()(images), expected)
        merged = merge(model, images)
        torch.testing.assert_close(merged(images), expected, rtol=1e-4,
                                   atol=1e-5)


def test_it_needs_no_training():
    model, images = make(), torch.rand(2, 3, 8, 8)
    calibrate(model, [lambda: model(images)])
    other = make()
    other.load_state_dict(pack(model))
    assert torch.equal(other.eval()(images), model.eval()(images))


def test_it_has_no_activation_side():
    with pytest.raises(ValueError, match="'Static', which is no activation"):
        quantize_(nn.Linear(2, 2), dict(activation=dict(type='Static',
                                                        bits=4)))
