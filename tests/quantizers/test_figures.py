"""What holds for quantizers of every type: what they say of themselves,
where they start, on what device they work."""
import pytest
import torch
from torch import nn

from gdrq_mm import quantize_
from gdrq_mm.checkpoint import CheckpointError
from gdrq_mm.config.schemes import build_scheme
from gdrq_mm.quantizers import QUANTIZERS
from gdrq_mm.training import get_state, step_

ACTIVATIONS = {
    **{name: dict(type=name) for name in (
        'LSQ', 'LSQPlus', 'PACT', 'DoReFa', 'DirectQuantization')},
    'mean': dict(threshold='mean'), 'mse': dict(threshold='mse'),
    'learned': dict(threshold='learned'),
    'zero point': dict(threshold='mse', asymmetric=True)}
WEIGHTS = {
    **{name: dict(type=name) for name in (
        'LSQ', 'LSQPlus', 'DoReFa', 'DirectQuantization')},
    'threshold': {}, 'search': dict(clip='search'),
    'learned': dict(clip='learned')}


def trained(side, scheme, bits=4, shift=0.):
    """A layer and its quantizer after one step."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8))
    quantize_(model, {side: dict(scheme, bits=bits)})
    with torch.no_grad():
        model(torch.rand(40, 16) + shift)
        step_(get_state(model))
    layer = model[0]
    return layer, layer.input_quantizer if side == 'activation' else \
        layer.weight_quantizer


def test_every_type_is_here():
    assert set(QUANTIZERS) == {'ScaleClip', 'PACT', *WEIGHTS} - {
        'threshold', 'search', 'learned'}


@pytest.mark.parametrize('shift', [0., -.5])
@pytest.mark.parametrize('name', ACTIVATIONS)
def test_the_clipped_share_is_that_beyond_the_ends_of_the_grid(name, shift):
    _, quantizer = trained('activation', ACTIVATIONS[name], shift=shift)
    grid = quantizer.code_range()
    low, high = (float((code - grid.zero_point) * grid.scale)
                 for code in (grid.low, grid.high))
    assert low < 0 or not shift
    inside = [value for value in (.999 * low, .4 * low, .999 * high,
                                  .5 * high) if value]
    outside = [1.001 * high, 9 * high, *([1.001 * low] if low else [-1.])]
    x = torch.tensor([*inside, *outside, 0., 0.])
    assert float(quantizer.clipped_fraction(x)) == pytest.approx(
        len(outside) / (len(inside) + len(outside)))
    assert float(quantizer.clipped_fraction(torch.zeros(3))) == 0
    # The ends themselves are levels.
    least, greatest = (float(each) for each in quantizer.value_range())
    assert (least, greatest) == (
        pytest.approx(low, rel=1e-5, abs=1e-9), pytest.approx(high, rel=1e-5))
    ends = torch.stack([torch.as_tensor(each)
                        for each in quantizer.value_range()])
    assert float(quantizer.clipped_fraction(ends)) == 0


@pytest.mark.parametrize('name', ACTIVATIONS)
def test_scalars_of_activations_are_their_ranges(name):
    _, quantizer = trained('activation', ACTIVATIONS[name])
    grid = quantizer.code_range()
    scalars = {key: float(value) for key, value in quantizer.scalars().items()}
    top = pytest.approx(float(grid.scale) * (grid.high - grid.zero_point),
                        rel=1e-5)
    step = pytest.approx(grid.scale, rel=1e-5)
    assert scalars == {
        'LSQ': dict(lsq_act_step=step),
        'LSQPlus': dict(lsq_plus_act_step=step, lsq_plus_act_offset=(
            pytest.approx(-grid.zero_point * grid.scale, abs=grid.scale))),
        'PACT': dict(pact_act_clip=top), 'DoReFa': {},
        'DirectQuantization': dict(direct_act_step=step)}.get(
            name, dict(gdrq_act_clip=top))
    model = nn.Sequential(nn.Linear(16, 8))
    quantize_(model, dict(activation=dict(ACTIVATIONS[name], bits=4)))
    assert model[0].input_quantizer.scalars() == {}


@pytest.mark.parametrize('name', WEIGHTS)
def test_scalars_of_weights_are_means_over_their_groups(name):
    layer, quantizer = trained('weight', WEIGHTS[name])
    found = quantizer.scalars(layer.latent_weight)
    (key, value), = found.items()
    quantized = quantizer(layer.latent_weight).detach()
    if name in ('LSQ', 'LSQPlus'):
        assert key == 'lsq_weight_step'
        _, scales = quantizer.codes(layer.latent_weight)
        assert float(value) == pytest.approx(float(scales.mean()))
    elif name == 'DirectQuantization':
        assert key == 'direct_weight_top'
        assert float(value) == pytest.approx(
            float(quantizer.levels.abs().max()))
    elif name == 'DoReFa':
        assert key == 'dorefa_weight_top'
        assert float(value) == pytest.approx(float(quantizer.top.mean()))
    else:
        assert key == 'gdrq_weight_clip'
        groups = quantized.abs().view(2, -1).amax(1) if name == 'search' \
            else 3 * layer.latent_weight.detach().abs().view(2, -1).mean(1)
        assert float(value) == pytest.approx(float(groups.mean()), rel=1e-5)


@pytest.mark.parametrize('side, name, text', [
    ('activation', 'LSQ', 'bits=4'), ('activation', 'PACT', 'bits=4'),
    ('activation', 'learned', "bits=4, threshold='learned'"),
    ('activation', 'mean', 'bits=4, k=None, lr=0.01'),
    ('activation', 'mse', "bits=4, lr=0.01, threshold='mse'"),
    ('activation', 'zero point',
     "bits=4, lr=0.01, threshold='mse', asymmetric=True"),
    ('weight', 'LSQ', 'bits=4, group_size=-1'),
    ('weight', 'DoReFa', 'bits=4, group_size=-1'),
    ('weight', 'DirectQuantization', 'bits=4, group_size=-1'),
    ('weight', 'threshold', 'bits=4, group_size=4, k=3.0'),
    ('weight', 'search', "bits=4, group_size=4, k=3.0, clip='search'"),
    ('weight', 'learned', "bits=4, group_size=4, k=3.0, clip='learned'")])
def test_texts_say_what_was_asked_for(side, name, text):
    known = ACTIVATIONS if side == 'activation' else WEIGHTS
    _, quantizer = trained(side, known[name])
    assert quantizer.extra_repr() == text


@pytest.mark.parametrize('name', ['LSQ', 'LSQPlus', 'DoReFa',
                                  'DirectQuantization', 'threshold'])
def test_weights_that_have_not_started_are_those_of_the_start(name):
    """A model that was converted is quantized before any training."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8))
    quantize_(model, dict(weight=dict(WEIGHTS[name], bits=3)))
    layer = model[0]
    before = layer.weight_quantizer(layer.latent_weight).detach()
    assert (before - layer.latent_weight).norm() < \
        .5 * layer.latent_weight.norm()
    layer.weight_quantizer.start_step(layer.latent_weight)
    torch.testing.assert_close(
        layer.weight_quantizer(layer.latent_weight).detach(), before)


@pytest.mark.parametrize('bits', [2, 3, 4, 8])
@pytest.mark.parametrize('name', ['LSQ', 'LSQPlus', 'DoReFa',
                                  'DirectQuantization'])
def test_levels_are_all_codes_of_the_bits(name, bits):
    scheme = build_scheme('weight', dict(type=name, bits=bits), 'weight')
    assert scheme.num_levels() == 2**bits


@pytest.mark.parametrize('side, name', [
    ('weight', 'LSQ'), ('weight', 'LSQPlus'), ('weight', 'DoReFa'),
    ('weight', 'DirectQuantization'), ('activation', 'LSQ'),
    ('activation', 'LSQPlus'), ('activation', 'PACT'),
    ('activation', 'DoReFa'), ('activation', 'DirectQuantization')])
def test_more_than_8_bits_are_refused_for_every_type(side, name):
    with pytest.raises(ValueError, match='bits is 9, allowed'):
        build_scheme(side, dict(type=name, bits=9), side)


@pytest.mark.parametrize('side, name, entry', [
    ('weight', 'LSQ', 'step.unit'), ('weight', 'LSQPlus', 'step.unit'),
    ('activation', 'LSQ', 'step.unit'),
    ('activation', 'LSQPlus', 'step.unit'),
    ('activation', 'LSQPlus', 'offset.unit'),
    ('activation', 'PACT', 'clip.unit'),
    ('activation', 'DirectQuantization', 'step'),
    ('activation', 'mean', 'clip'), ('activation', 'zero point', 'zero'),
    ('activation', 'learned', 'clip.unit'), ('weight', 'threshold', 'clip'),
    ('weight', 'learned', 'clip.unit'), ('weight', 'DoReFa', 'top')])
def test_a_file_with_a_negative_range_is_refused(side, name, entry):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8))
    known = ACTIVATIONS if side == 'activation' else WEIGHTS
    quantize_(model, {side: dict(known[name], bits=4)})
    with torch.no_grad():
        model(torch.rand(4, 16))
        step_(get_state(model))
    saved = model.state_dict()
    part = 'input' if side == 'activation' else 'weight'
    key = f'0.{part}_quantizer.{entry}'
    saved[key] = -saved[key].abs() - 1
    with pytest.raises(CheckpointError, match='allowed: 0 and above'):
        model.load_state_dict(saved)


@pytest.mark.parametrize('name', ['LSQ', 'LSQPlus', 'DoReFa',
                                  'DirectQuantization', 'threshold',
                                  'learned'])
def test_the_start_is_kept_from_the_first_step_on(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8))
    quantize_(model, dict(weight=dict(WEIGHTS[name], bits=3)))
    quantizer = model[0].weight_quantizer
    assert not any(value.any() for value in quantizer.state_dict().values())
    quantizer.start_step(model[0].latent_weight)
    assert all(value.any() for value in quantizer.state_dict().values())


# Where the default device is another one, what names none is made there, and
# fails together with the input: so no second device is needed.


@pytest.mark.parametrize('shift', [0., -.5])
@pytest.mark.parametrize('name', ACTIVATIONS)
def test_activations_stay_on_the_device_of_the_input(name, shift):
    _, quantizer = trained('activation', ACTIVATIONS[name], shift=shift)
    x = (torch.randn(30, 16).abs() + shift).requires_grad_()
    with torch.device('meta'):
        for rounding in (True, False):
            out = quantizer(x, rounding)
            out.sum().backward()
        quantizer.observe(x)
        type(quantizer).update_([quantizer])
    assert out.device.type == x.grad.device.type == 'cpu'


@pytest.mark.parametrize('name', WEIGHTS)
def test_weights_stay_on_the_device_they_are_on(name):
    layer, quantizer = trained('weight', WEIGHTS[name])
    weight = layer.latent_weight
    with torch.device('meta'):
        quantizer.forget()
        quantizer.restart()
        quantizer.start_step(weight)
        out = quantizer(weight)
        out.sum().backward()
        quantizer.after_step(weight)
        codes = quantizer.packed_codes(weight)
        decoded = quantizer.decode(codes, quantizer.packed_state(weight))
    assert out.device.type == decoded.device.type == 'cpu'
