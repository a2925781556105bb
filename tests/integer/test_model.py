"""An integer model is a module like others: modes, copies, state dicts."""
import copy
import io
import pickle

import pytest
import torch
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import export_onnx, to_integer
from gdrq_mm.merge import merge


def net_of(x):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
                          nn.Conv2d(8, 4, 3))
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    return merge(model.eval(), x)


@pytest.fixture
def x():
    return torch.randn(2, 3, 12, 12,
                       generator=torch.Generator().manual_seed(1))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


def test_modes_change_nothing(x):
    model = to_integer(net_of(x), x)
    expected = model(x)
    for each in (model.eval(), model.train(), model.train(False),
                 nn.Sequential(model).eval()):
        assert torch.equal(each(x), expected)


@pytest.mark.parametrize('copied', [
    copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved])
def test_copies_compute_and_export_the_same(copied, x, tmp_path):
    model = to_integer(net_of(x), x)
    other = copied(model)
    assert torch.equal(other(x), model(x))
    report = export_onnx(other, x, tmp_path / 'model.onnx')
    assert report.codes == {'0': (1600, 1600), '3': (512, 512)}
    other.load_state_dict(model.state_dict())


def test_inputs_of_other_shapes_are_refused(x, tmp_path):
    model = to_integer(net_of(x), x)
    other = torch.randn(1, 3, 14, 14)
    for call in (lambda: model(other), lambda: copy.deepcopy(model)(other),
                 lambda: export_onnx(model, other, tmp_path / 'a.onnx')):
        with pytest.raises(ValueError, match=r'shapes \[\(2, 3, 12, 12\)\], '
                           r'got \[\(1, 3, 14, 14\)\].*to_integer'):
            call()
    assert not list(tmp_path.iterdir())
    dynamic = to_integer(net_of(x), x, dynamic=['batch', 'size'])
    assert dynamic(other).shape == (1, 4, 10, 10)


def test_a_state_dict_of_other_scales_is_refused(x):
    model, other = (to_integer(net_of(each), each) for each in (x, 9 * x))
    before = copy.deepcopy(model.graph_module.state_dict())
    with pytest.raises(ValueError, match='of another integer model.*save the '
                       'whole model'):
        model.load_state_dict(other.state_dict())
    for name, value in model.graph_module.state_dict().items():
        assert torch.equal(value, before[name])
    model.load_state_dict(to_integer(net_of(x), x).state_dict())


def test_calibration_that_is_not_finite_is_named(x):
    merged, other = net_of(x), x.clone()
    other[0, 0, 0, 0] = torch.nan  # infinite ones would be clipped
    with pytest.raises(ValueError, match=(
            'example 2 of calibration .* gives NaN or infinite values at '
            r'conv2d_1: leave it out$')):
        to_integer(merged, x, [x, other])
