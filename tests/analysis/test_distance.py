"""What is heard of outputs."""
import pytest
import torch
from torch import nn

from gdrq_mm.analysis.distance import (
    OutputProbe,
    mean_noise,
    noise_energy,
)


@pytest.mark.parametrize('layer, inputs', [
    (nn.GRU(4, 6), (torch.randn(3, 2, 4), )),
    (nn.MultiheadAttention(6, 2), (torch.randn(3, 2, 6), ) * 3)])
def test_of_several_outputs_the_first_is_heard(layer, inputs):
    model = nn.Sequential(layer)
    probe = OutputProbe(model, ['0'])
    output = model[0](*inputs)[0]
    heard, = probe.take()['0']
    assert torch.equal(heard, output.view(6, 6))


def test_a_batch_of_one_image_says_nothing_of_noise():
    torch.manual_seed(0)
    one, many = torch.randn(1, 5), torch.randn(3, 5)
    assert noise_energy(dict(fc=[one]), dict(fc=[one + 1])) is None
    ratio = noise_energy(dict(fc=[many]), dict(fc=[many + 1]))
    assert mean_noise([ratio, None]).mean == ratio
    with pytest.raises(ValueError, match='larger val_dataloader.batch_size'):
        mean_noise([None, None])
