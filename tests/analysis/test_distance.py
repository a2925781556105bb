"""What is heard of outputs."""
import pytest
import torch
from torch import nn

from gdrq_mm.analysis.distance import OutputProbe


@pytest.mark.parametrize('layer, inputs', [
    (nn.GRU(4, 6), (torch.randn(3, 2, 4), )),
    (nn.MultiheadAttention(6, 2), (torch.randn(3, 2, 6), ) * 3)])
def test_of_several_outputs_the_first_is_heard(layer, inputs):
    model = nn.Sequential(layer)
    probe = OutputProbe(model, ['0'])
    output = model[0](*inputs)[0]
    heard, = probe.take()['0']
    assert torch.equal(heard, output.view(6, 6))
