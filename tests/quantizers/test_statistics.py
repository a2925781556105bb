"""Statistics and thresholds hold whatever comes: dtypes, outliers, signs."""
import copy

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from gdrq_mm import quantize_
from gdrq_mm.quantizers import (
    DirectQuantizationActivation,
    LSQActivation,
    LSQPlusActivation,
    PACTActivation,
)
from gdrq_mm.training import get_state, step_

QUANTIZATION = dict(weight=dict(bits=4), activation=dict(bits=4))


def layer_of():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8))
    quantize_(model, QUANTIZATION)
    return model, model[0].input_quantizer


def steps(model, inputs):
    with torch.no_grad():
        for x in inputs:
            model(x)
            step_(get_state(model))


def unsigned(number, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [torch.rand(4, 16, generator=generator) for _ in range(number)]


# -- dtypes ------------------------------------------------------------------


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('when', ['before', 'after'])
def test_thresholds_of_a_half_precision_model_stay_float32(dtype, when):
    model, quantizer = layer_of()
    reference = copy.deepcopy(model)
    inputs = [x.to(dtype) for x in unsigned(200)]
    if when == 'before':
        model.to(dtype)
        steps(model, inputs)
    else:
        steps(model, [x.float() for x in inputs[:20]])
        model.to(dtype)
        steps(model, inputs[20:])
    for name, value in model.state_dict().items():
        if '_quantizer.' in name and value.is_floating_point():
            assert value.dtype is torch.float32, name
    assert model[0].weight.dtype is dtype
    assert model(inputs[0]).dtype is dtype
    reference[0].weight.data.copy_(model[0].weight)
    steps(reference, [x.float() for x in inputs])
    # In bfloat16 a threshold moves by no less than 0.8%.
    torch.testing.assert_close(
        quantizer.clip, reference[0].input_quantizer.clip,
        rtol=1e-5, atol=0)


def test_conversion_to_half_and_back_loses_no_digit_of_a_threshold():
    model, quantizer = layer_of()
    steps(model, unsigned(3))
    before = quantizer.clip.clone()
    model.half().float()
    assert torch.equal(quantizer.clip, before)
    assert model.double()[0].input_quantizer.clip.dtype is torch.float64


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_conversion_from_double_to_half_leaves_float32(dtype):
    model, quantizer = layer_of()
    steps(model, unsigned(3))
    before = quantizer.clip.clone()
    model.double().to(dtype)
    assert model[0].weight.dtype is dtype
    assert quantizer.clip.dtype is torch.float32
    assert torch.equal(quantizer.clip, before)
    assert model[0].weight_quantizer.clip.dtype is torch.float32


def test_an_average_without_the_integers_is_an_error_with_the_remedy():
    """As model averages of timm and YOLO are, which average floats only."""
    model, _ = layer_of()
    averaged = AveragedModel(model).eval()
    steps(model, unsigned(3))
    for ours, theirs in zip([*averaged.module.parameters(),
                             *averaged.module.buffers()],
                            [*model.parameters(), *model.buffers()]):
        if ours.is_floating_point():
            ours.data.copy_(theirs)
    with pytest.raises(RuntimeError, match='num_updates.*copy them') as error:
        averaged(unsigned(1)[0])
    remedy = str(error.value).partition('model that trains: ')[2]
    exec(remedy, dict(averaged=averaged, model=model))
    assert averaged.n_averaged == 0
    x = unsigned(1)[0]
    assert torch.equal(averaged(x), model.eval()(x))


# -- outliers ----------------------------------------------------------------


@pytest.mark.parametrize('at, most', [(0, 7.), (3, 4.), (150, 1.11)])
def test_one_spike_moves_a_threshold_little(at, most):
    inputs = unsigned(200)
    plain, quantizer = layer_of()
    steps(plain, inputs)
    expected = quantizer.clip.clone()
    inputs[at] = inputs[at].clone()
    inputs[at][0] = 1e4  # one image of four
    model, quantizer = layer_of()
    largest = 0.
    for number, x in enumerate(inputs):
        steps(model, [x])
        if number > at:
            largest = max(largest, float(quantizer.clip))
    assert largest < most * expected
    assert quantizer.clip < 1.11 * expected


def test_a_branch_that_begins_at_zero_gets_its_threshold():
    """As ReZero and the last norm of a residual branch do."""
    model, quantizer = layer_of()
    steps(model, [torch.zeros(4, 16)] * 20)
    steps(model, unsigned(400))
    plain, expected = layer_of()
    steps(plain, unsigned(400))
    torch.testing.assert_close(quantizer.clip, expected.clip, rtol=.05,
                               atol=0)


# -- signs -------------------------------------------------------------------


def with_negatives(x, number):
    x = x.clone()
    x.view(-1)[:number] = -1e-3
    return x


def test_sign_goes_by_the_share_of_negatives():
    torch.manual_seed(0)
    x = torch.rand(100, 160)
    for number, signed in ((8, False), (16, False), (17, True)):
        model = nn.Sequential(nn.Linear(160, 8))
        quantize_(model, QUANTIZATION)
        steps(model, [with_negatives(x, number)])
        assert model[0].input_quantizer.is_signed == signed


def test_negatives_that_come_late_make_the_codes_signed_and_are_told_of():
    model, quantizer = layer_of()
    steps(model, unsigned(19))
    assert quantizer.settled and not quantizer.is_signed
    late = [x - .5 for x in unsigned(100)]
    with pytest.warns(UserWarning, match=(
            'the input has negative values, which it did not have')) as told:
        steps(model, late)
    assert len(told) == 1
    assert quantizer.is_signed and quantizer.signed
    model.eval()
    with torch.no_grad():
        x = late[0]
        error = nn.functional.linear(x, model[0].weight, model[0].bias) - \
            model(x)
    assert error.abs().mean() < .1


@pytest.mark.parametrize('options', [
    {}, dict(threshold='mse'), dict(threshold='learned'), dict(type='LSQ')])
def test_a_short_training_finds_late_negatives(options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8))
    quantize_(model, dict(activation=dict(bits=4, **options)))
    steps(model, unsigned(10))
    with pytest.warns(UserWarning, match='have codes from now on'):
        steps(model, [x - .5 for x in unsigned(20)])
    assert model[0].input_quantizer.is_signed


def test_inputs_without_negatives_stay_unsigned(recwarn):
    model, quantizer = layer_of()
    steps(model, unsigned(230))
    assert not quantizer.is_signed
    assert not [each for each in recwarn if 'negative' in str(each.message)]


def test_outputs_of_a_relu_stay_unsigned(recwarn):
    """What goes into it may be negative and does not count."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    quantize_(model, dict(QUANTIZATION, activation=dict(bits=4, site='relu')))
    steps(model, [x - .5 for x in unsigned(130)])
    quantizer, = model[1].site_quantizers
    assert quantizer.settled and not quantizer.is_signed
    assert not [each for each in recwarn if 'negative' in str(each.message)]


@pytest.mark.parametrize('kind', [
    LSQActivation, PACTActivation, LSQPlusActivation,
    DirectQuantizationActivation])
def test_a_first_batch_that_is_not_finite_does_not_count(kind):
    """Nor does a share of negatives of a thousandth make codes signed."""
    x = torch.rand(1000, 1) + .1
    x[0] = -.1
    quantizer, clean = kind(4), kind(4)
    partly = x.clone()
    for bad in (float('inf'), float('nan')):
        partly[7] = bad
        for batches in ([torch.full((8, 1), bad)], [partly], [partly, x]):
            for batch in batches:  # of one step
                quantizer.observe(batch)
            kind.update_([quantizer])
            assert not quantizer.initialized
    for each in (quantizer, clean):
        each.observe(x)
        kind.update_([each])
        assert each.initialized and not each.is_signed
    assert quantizer.code_range() == clean.code_range()
    assert 'seen' not in quantizer.state_dict()


# -- first batches -----------------------------------------------------------


def learned_layer(kind):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8))
    quantize_(model, dict(activation=dict(bits=4, type=kind)))
    return model, model[0].input_quantizer


@pytest.mark.parametrize('kind', [
    'LSQ', 'PACT', 'DoReFa', 'DirectQuantization'])
def test_a_sign_that_the_first_batch_had_not_is_found_and_told_of(kind):
    model, quantizer = learned_layer(kind)
    steps(model, unsigned(2))
    greatest = quantizer(torch.full((1, ), 9.)).item()
    assert quantizer(torch.tensor([-.5])).item() == 0
    with pytest.warns(UserWarning,
                      match='0.input_quantizer.*have codes from now on'):
        steps(model, [x - .5 for x in unsigned(21)])
    assert quantizer.is_signed and bool(quantizer.signed)
    assert quantizer(torch.tensor([-9.])).item() <= -.9 * greatest
    # The range stays what it was.
    top = quantizer(torch.full((1, ), 9.)).item()
    assert top == pytest.approx(greatest, rel=.2)


@pytest.mark.parametrize('kind', [
    'LSQ', 'PACT', 'DoReFa', 'DirectQuantization'])
def test_a_few_negatives_turn_no_sign(kind, recwarn):
    model, quantizer = learned_layer(kind)
    steps(model, unsigned(1))
    some = torch.cat(unsigned(20))
    some[0, 0] = -1e-3
    steps(model, [some] * 50)
    assert not quantizer.is_signed
    assert not [each for each in recwarn if 'have codes from now on' in str(
        each.message)]


def test_an_offset_needs_no_sign(recwarn):
    """LSQ+ learns it."""
    model, quantizer = learned_layer('LSQPlus')
    before = [x - .5 for x in unsigned(150)]
    steps(model, unsigned(1))
    unit = quantizer.step.unit.clone()
    steps(model, before)
    assert torch.equal(quantizer.step.unit, unit)
    assert not [each for each in recwarn if 'have codes from now on' in str(
        each.message)]
