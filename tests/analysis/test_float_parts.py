"""Parts of a quantized model in float, to measure the others."""
import copy

import pytest
import torch
from torch import nn

from gdrq_mm import calibrate, quantize_
from gdrq_mm.analysis.sensitivity import PARTS, Setting, float_in, float_parts
from gdrq_mm.training import get_state

OUTPUTS = dict(residual=dict(outputs=['2']))


@pytest.mark.parametrize('site, more', [
    ('input', {}), ('relu', {}), ('input', OUTPUTS), ('relu', OUTPUTS)])
def test_all_that_is_quantized_can_be_float_for_a_while(site, more):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3),
                          nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    plain, x = copy.deepcopy(model), torch.randn(2, 3, 12, 12)
    quantize_(model, dict(weight=dict(bits=4), activation=dict(
        bits=2, site=site), **more))
    calibrate(model, [lambda: model(x)])
    names = list(get_state(model).layers)
    with torch.no_grad():
        expected, before = plain(x), model(x)
        with float_parts(model, dict.fromkeys(names, PARTS['both'])):
            torch.testing.assert_close(model(x), expected)
        weight = Setting('4', 'weight', 4, 'alone')
        plain[4].weight.copy_(model[4].weight_quantizer(model[4].weight))
        with float_parts(model, float_in(weight, ['4'], names)):
            torch.testing.assert_close(model(x), plain(x))
        assert torch.equal(model(x), before)


def test_attention_can_be_float_in_all_of_its_inputs():
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    model = nn.Sequential()
    model.add_module('attention', attention)
    inputs = [torch.randn(2, 6, 8) for _ in range(3)]
    with torch.no_grad():
        expected = attention(*inputs)[0]
        quantize_(model, dict(weight=dict(bits=4), activation=dict(bits=2)))
        calibrate(model, [lambda: attention(*inputs)])
        assert not torch.allclose(attention(*inputs)[0], expected, atol=.05)
        with float_parts(model, dict.fromkeys(
                get_state(model).layers, PARTS['both'])):
            torch.testing.assert_close(attention(*inputs)[0], expected)
        assert attention.key_quantizer is not None
