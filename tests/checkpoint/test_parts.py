"""What of a state dict is the float model's."""
import pytest
import torch
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.checkpoint import CheckpointError, float_weights, part_of


class SharedHead(nn.Module):
    """One convolution under two names, as heads of several levels have it."""

    def __init__(self):
        super().__init__()
        conv = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU())
        self.stem = nn.Conv2d(3, 4, 3)
        self.convs = nn.ModuleList([conv, conv])
        self.last = conv[0]

    def forward(self, x):
        x = self.stem(x)
        return [conv(x) for conv in self.convs] + [self.last(x)]


def test_second_names_of_a_layer_have_no_entries_of_quantizers_left():
    torch.manual_seed(0)
    for quantization in (
            dict(weight=dict(bits=4), activation=dict(bits=4)),
            dict(weight=dict(bits=4), activation=dict(bits=4, site='relu'),
                 residual=dict(bits=8, outputs=['convs.1.1']))):
        plain = SharedHead()
        model = SharedHead()
        quantize_(model, quantization)
        weights = float_weights(model.state_dict())
        assert weights.keys() == plain.state_dict().keys()
        copied = {key: value.clone()  # as a file may have them
                  for key, value in model.state_dict().items()}
        assert float_weights(copied).keys() == weights.keys()
        plain.load_state_dict(weights)
        assert torch.equal(plain.last.weight, model.last.weight)


def test_names_of_a_wrapper_are_not_taken_for_a_float_model():
    model = SharedHead()
    quantize_(model, dict(weight=dict(bits=4)))
    wrapped = {f'module.{key}': value
               for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"'module\.'.*part_of\(state_"):
        float_weights(wrapped)
    assert float_weights(part_of(wrapped, 'module.')).keys() \
        == SharedHead().state_dict().keys()
