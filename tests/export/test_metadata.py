"""What exported files say about themselves."""
import json

import pytest
import torch
from onnx import ModelProto
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import merge, to_integer
from gdrq_mm.export.metadata import add_metadata


@torch.no_grad()
@pytest.mark.parametrize('integer', [False, True])
def test_bits_of_weights_and_of_what_layers_read(integer):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1),
                          nn.Flatten(), nn.Linear(64, 4))
    x = torch.randn(1, 3, 4, 4)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=8),
        rules=[dict(match='2', activation=dict(bits=2)),
               dict(match='4', weight=dict(bits=2),
                    activation=dict(bits=3))]))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    model = merge(model.eval(), x)
    proto = ModelProto()
    add_metadata(proto, to_integer(model, x) if integer else model,
                 dict(classes='["cat"]'))
    told = {each.key: each.value for each in proto.metadata_props}
    assert json.loads(told['weight_bits']) == {'0': 4, '2': 4, '4': 2}
    assert json.loads(told['activation_bits']) == {'0': 8, '2': 2, '4': 3}
    assert told['classes'] == '["cat"]' and told['torch'] == torch.__version__
