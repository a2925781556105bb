"""Thresholds of activations that no ``k`` gives, and zero points."""
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from gdrq_mm import calibrate, quantize_
from gdrq_mm.deploy import export_onnx, merge
from gdrq_mm.merge import merge_errors
from gdrq_mm.quantizers.scale_clip import (
    LearnedClipActivation,
    LeastSquaresClipActivation,
    ScaleClipActivation,
    ScaleClipActivationScheme,
    activation,
)
from gdrq_mm.training import add_learned_parameters, get_state, step_

ACTIVATIONS = dict(relu=nn.functional.relu, identity=lambda x: x,
                   silu=nn.functional.silu, gelu=nn.functional.gelu,
                   hardswish=nn.functional.hardswish,
                   leaky=lambda x: nn.functional.leaky_relu(x, .1),
                   halved=lambda x: nn.functional.leaky_relu(x, .5))


def normal(*shape, seed=0):
    return torch.tensor(np.random.default_rng(seed).normal(size=shape),
                        dtype=torch.float32)


def built(bits=4, **options):
    return ScaleClipActivation.build(ScaleClipActivationScheme(
        bits=bits, **options))


def seen(quantizer, inputs):
    for x in inputs:
        quantizer.observe(x)
        type(quantizer).update_([quantizer])
    return quantizer


def batches(function, number, size=20000):
    return [function(normal(size, seed=seed)) for seed in range(number)]


def relative_error(x, q):
    x, q = x.double(), q.double()
    return float(((q - x)**2).sum() / (x**2).sum())


def least_error(x, bits, zeros, symmetric=False):
    """Of a fine search, in float64."""
    x = x.double().numpy()
    errors = []
    for zero in zeros:
        low, high = -zero, 2**bits - 1 - zero
        if symmetric:
            low, high = -2**(bits - 1) + 1, 2**(bits - 1) - 1
        errors += [
            ((np.clip(np.rint(x / s), low, high) * s - x)**2).sum()
            for s in np.geomspace(.1, 3, 80) * np.abs(x).max() / 2**bits]
    return min(errors) / (x**2).sum()


# -- least squared error ------------------------------------------------------


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('function, signed', [('relu', False),
                                              ('identity', True)])
def test_no_other_threshold_has_a_much_smaller_error(function, signed, bits):
    quantizer = seen(built(bits, threshold='mse'),
                     batches(ACTIVATIONS[function], 15))
    assert type(quantizer) is LeastSquaresClipActivation
    assert quantizer.is_signed == signed
    x = ACTIVATIONS[function](normal(8000, seed=99))
    ours = relative_error(x, quantizer(x))
    # Of 8 bits the few largest values decide.
    assert ours <= (1.4 if bits == 8 else 1.1) * least_error(
        x, bits, [0], symmetric=signed)


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('function', ['silu', 'gelu', 'hardswish'])
def test_a_zero_point_has_the_least_error_there_is(function, bits):
    """Small negatives cost a few codes, not half of them."""
    inputs = batches(ACTIVATIONS[function], 15)
    quantizer = seen(built(bits, threshold='mse', asymmetric=True), inputs)
    x = ACTIVATIONS[function](normal(8000, seed=99))
    ours = relative_error(x, quantizer(x))
    best = least_error(
        x, bits, range(0, 2**bits // 8 + 1, 2**bits // 64 or 1))
    # At 8 bits zero points are tried that are 8 codes apart.
    assert ours <= (2 if bits == 8 else 1.1) * best
    signed = seen(built(bits, asymmetric=False), inputs)
    assert ours < .6 * relative_error(x, signed(x))
    mean = seen(built(bits, threshold='nonzero'), inputs)
    assert ours < .5 * relative_error(x, mean(x))


@pytest.mark.parametrize('function, small', [
    ('silu', True), ('gelu', True), ('hardswish', True), ('relu', False),
    ('leaky', True), ('halved', False), ('identity', False)])
def test_small_negatives_get_a_zero_point(function, small):
    inputs = batches(ACTIVATIONS[function], 12)
    quantizer = seen(built(), inputs)
    assert quantizer.has_zero_point == small
    assert quantizer.is_signed == (function != 'relu')
    # From there on it is what was asked for by name.
    asked = seen(built(asymmetric=small), inputs)
    assert quantizer.code_range() == asked.code_range()
    x = inputs[0].requires_grad_()
    assert torch.equal(quantizer(x), asked(x))


def test_all_batches_of_a_step_decide_on_a_zero_point():
    """A head on several levels, or gradient accumulation: not the last one
    alone."""
    quantizer = built()
    for x in (normal(20000), *2 * batches(nn.functional.silu, 1)):
        quantizer.observe(x)
    type(quantizer).update_([quantizer])
    assert quantizer.is_signed and not quantizer.has_zero_point
    seen(quantizer, batches(nn.functional.silu, 12))
    assert not quantizer.has_zero_point  # decided once


@pytest.mark.parametrize('settings', [
    (False, None, True), (None, None), (True, None), (False, False)])
def test_quantizers_of_a_model_move_as_each_alone(settings):
    inputs = batches(nn.functional.silu, 30, size=2000)
    together = [built(asymmetric=setting) for setting in settings]
    for x in inputs:
        for quantizer in together:
            quantizer.observe(x)
        type(together[0]).update_(together)
    for quantizer, setting in zip(together, settings):
        alone = seen(built(asymmetric=setting), inputs)
        assert quantizer.code_range() == alone.code_range()
        assert quantizer.has_zero_point == (setting is not False)


def train_as_ranks(monkeypatch, ranks, inputs):
    """Each quantizer in a thread, as if in a process of its own.

    Args:
        inputs (iterable): Of every step what each rank sees.
    """
    barrier, parts = threading.Barrier(len(ranks)), {}

    def sum_over_ranks_(seen):
        parts[threading.get_ident()] = seen.clone()
        barrier.wait(60)
        seen.copy_(sum(parts.values()))
        barrier.wait(60)

    def train(quantizer, inputs):
        for x in inputs:
            quantizer.observe(x)
            type(quantizer).update_([quantizer])

    monkeypatch.setattr(activation, 'sum_over_ranks_', sum_over_ranks_)
    monkeypatch.setattr(activation, 'is_distributed', lambda: True)
    with ThreadPoolExecutor(len(ranks)) as pool:
        list(pool.map(train, ranks, zip(*inputs)))


def test_ranks_agree_on_a_zero_point(monkeypatch):
    """Each sees other values, and all decide on those of the joint batch."""
    for functions, both in (((nn.functional.silu, torch.clone), False),
                            ((nn.functional.silu, nn.functional.gelu), True)):
        ranks = built(), built()
        train_as_ranks(monkeypatch, ranks, [
            [function(normal(20000)) for function in functions]])
        assert [each.has_zero_point for each in ranks] == [both, both]
        assert ranks[0].state_dict() == ranks[1].state_dict()


def test_a_rank_that_was_not_called_once_agrees_on_a_zero_point(monkeypatch):
    """It counts negative values in other steps than the others."""
    ranks, inputs = (built(), built()), []
    for step in range(60):
        x = normal(2000)
        x = x.relu() if step < 38 else nn.functional.silu(x)
        inputs.append((x, x[:0] if step == 35 else x))
    train_as_ranks(monkeypatch, ranks, inputs)
    assert [each.has_zero_point for each in ranks] == [True, True]
    assert ranks[0].code_range() == ranks[1].code_range()


def test_steps_that_are_not_looked_at_count(monkeypatch):
    """Whether all of a model's quantizers look, some, or none; and those of
    a rank that was not called where others were."""
    early, late = built(), built()
    for step in range(135):
        x = normal(50)
        early.observe(x)
        late.observe(x if step >= 4 else x[:0])
        type(early).update_([early, late])
    for quantizer, steps in ((early, 135), (late, 131)):
        assert int(quantizer.num_updates) == steps
        assert quantizer.known.updates == steps
    ranks = built(), built()
    train_as_ranks(monkeypatch, ranks, [
        (x, x[:0] if step == 122 else x)
        for step, x in enumerate([normal(50)] * 125)])
    assert [int(each.num_updates) for each in ranks] == [125, 125]


@pytest.mark.parametrize('bits', [4, 8])
def test_calls_with_zeros_alone_say_nothing_of_the_code_of_zero(bits):
    inputs = batches(nn.functional.silu, 150, size=2000)
    alone, beside = seen(built(bits), inputs), built(bits)
    for x in inputs:
        beside.observe(x)
        beside.observe(torch.zeros(2000))
        type(beside).update_([beside])
    ours, theirs = beside.code_range(), alone.code_range()
    assert ours.zero_point == theirs.zero_point
    # Zeros do count before there is any threshold.
    assert ours.scale == pytest.approx(theirs.scale, rel=.02)


def test_a_zero_point_that_was_given_stays_where_it_is_loaded():
    inputs = batches(nn.functional.silu, 40, size=2000)
    whole = seen(built(), inputs)
    resumed = built()
    resumed.load_state_dict(seen(built(), inputs[:5]).state_dict())
    assert resumed.has_zero_point
    seen(resumed, inputs[5:])
    assert resumed.state_dict() == whole.state_dict()


@pytest.mark.parametrize('zero_point', [False, True])
def test_thresholds_follow_the_data(zero_point):
    quantizer = seen(built(threshold='mse', asymmetric=zero_point, lr=.05),
                     batches(nn.functional.gelu, 20))
    before = float(quantizer.clip)
    doubled = [2 * x for x in batches(nn.functional.gelu, 150)]
    seen(quantizer, doubled)
    assert float(quantizer.clip) == pytest.approx(2 * before, rel=.1)
    x = doubled[0]
    assert relative_error(x, quantizer(x)) <= 1.1 * least_error(
        x, 4, [0, 1, 2], symmetric=not zero_point)


@pytest.mark.parametrize('zero_point', [False, True])
def test_after_a_hundred_steps_one_in_ten_is_looked_at(zero_point):
    """And moves the threshold as far as ten would."""
    quantizer = seen(built(threshold='mse', asymmetric=zero_point, lr=.02),
                     batches(nn.functional.gelu, 100))
    before = float(quantizer.clip)
    doubled = 2 * batches(nn.functional.gelu, 1)[0]
    seen(quantizer, [doubled])
    after = float(quantizer.clip)
    assert after - before == pytest.approx((1 - .98**10) * before, rel=.3)
    seen(quantizer, 9 * [100 * doubled])
    assert float(quantizer.clip) == after
    assert int(quantizer.num_updates) == 110
    seen(quantizer, [doubled])
    assert float(quantizer.clip) > after


def test_first_steps_can_be_counted_as_done():
    quantizer = seen(built(threshold='mse'),
                     batches(nn.functional.relu, 12))
    quantizer.end_first_looks()
    seen(quantizer, batches(nn.functional.relu, 1))  # the 101st is looked at
    before = float(quantizer.clip)
    seen(quantizer, [5 * x for x in batches(nn.functional.relu, 5)])
    assert float(quantizer.clip) == before
    assert int(quantizer.num_updates) == 106


def test_first_steps_without_data_are_not_done():
    quantizer, x = built(threshold='mse'), torch.ones(3)
    quantizer.end_first_looks()
    assert not quantizer.initialized
    assert torch.equal(quantizer(x), x)


@pytest.mark.parametrize('threshold', ['mse', 'nonzero'])
def test_a_layer_that_is_called_now_and_then_follows_its_data(threshold):
    """Whichever steps these are: not every step of the model counts."""
    quantizer = seen(built(threshold=threshold, lr=.1),
                     batches(nn.functional.relu, 105))
    before = float(quantizer.clip)
    for step in range(300):
        if step % 10 == 0:
            quantizer.observe(2 * batches(nn.functional.relu, 1)[0])
        type(quantizer).update_([quantizer])
    assert float(quantizer.clip) > 1.5 * before
    assert int(quantizer.num_updates) == quantizer.known.updates == 135


class FromTheHost(TorchDispatchMode):
    """Names of operations that a GPU would be waited for in."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default,
                        torch.ops.aten.lift_fresh.default,
                        torch.ops.aten.nonzero.default):
            self.found.append(str(function))
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize('options', [
    dict(threshold='mean'), dict(threshold='nonzero'), dict(threshold='mse'),
    dict(threshold='mse', asymmetric=True), dict(asymmetric=False)])
@pytest.mark.parametrize('steps', [12, 105, 110])
def test_a_step_asks_nothing_of_the_device(options, steps):
    """But where negative values are counted, once in 20 steps."""
    quantizer = seen(built(**options),
                     batches(nn.functional.gelu, steps, size=500))
    x = batches(nn.functional.gelu, 1)[0]
    with FromTheHost() as watched:
        seen(quantizer, [x])
    assert watched.found == []


@pytest.mark.parametrize('steps', [90, 105, 110])
def test_a_loaded_quantizer_looks_at_the_same_steps(steps):
    inputs = batches(nn.functional.relu, 130, size=2000)
    whole = seen(built(threshold='mse'), inputs)
    half = seen(built(threshold='mse'), inputs[:steps])
    resumed = built(threshold='mse')
    resumed.load_state_dict(half.state_dict())
    seen(resumed, inputs[steps:])
    assert resumed.state_dict() == whole.state_dict()


@pytest.mark.parametrize('threshold', ['mse', 'nonzero', 'mean'])
@pytest.mark.parametrize('steps', [39, 40, 41])
def test_a_loaded_quantizer_sees_a_late_sign_at_the_same_step(
        threshold, steps):
    """One step in twenty counts negative values, the one behind a checkpoint
    among them."""
    inputs = batches(nn.functional.relu, 40, size=500) + batches(
        torch.clone, 5, size=500)
    whole = seen(built(threshold=threshold), inputs)
    resumed = built(threshold=threshold)
    resumed.load_state_dict(seen(built(threshold=threshold),
                                 inputs[:steps]).state_dict())
    seen(resumed, inputs[steps:])
    assert whole.is_signed and resumed.is_signed
    assert resumed.state_dict() == whole.state_dict()


def test_inputs_without_negatives_have_no_zero_point():
    plain, asymmetric = (
        seen(built(threshold='mse', asymmetric=asymmetric),
             batches(nn.functional.relu, 12)) for asymmetric in (False, True))
    assert asymmetric.fused and not asymmetric.has_zero_point
    assert asymmetric.code_range() == plain.code_range()
    x = normal(100)
    assert torch.equal(plain(x), asymmetric(x))


def test_signed_codes_can_be_asked_for():
    quantizer = seen(built(asymmetric=False),
                     batches(nn.functional.silu, 12))
    assert quantizer.is_signed and quantizer.fused
    assert not quantizer.has_zero_point
    assert quantizer.state_dict().keys() == {'clip', 'signed', 'num_updates'}
    assert quantizer.code_range().zero_point == 0


@pytest.mark.parametrize('asymmetric', [True, None])
def test_negatives_that_come_late_get_their_zero_point_at_once(asymmetric):
    model = nn.Sequential(nn.Linear(50, 4))
    quantize_(model, dict(weight=dict(bits=4), activation=dict(
        bits=4, threshold='mse', asymmetric=asymmetric)))
    quantizer = model[0].input_quantizer

    def steps(inputs):
        with torch.no_grad():
            for x in inputs:
                model(x.view(-1, 50))
                step_(get_state(model))

    steps(batches(nn.functional.relu, 20, 2000))
    assert quantizer.fused and not quantizer.is_signed
    late = batches(nn.functional.gelu, 100, 2000)
    with pytest.warns(UserWarning, match='0.input_quantizer: the input has '
                                         'negative values'):
        steps(late[:2])
    assert quantizer.code_range().zero_point == 1
    steps(late[2:])
    x = late[0]
    assert relative_error(x, quantizer(x)) <= 1.2 * least_error(x, 4, [1])


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_a_step_with_values_that_are_not_finite_does_not_count(bad):
    for asymmetric in (False, True, None):
        quantizer = seen(built(threshold='mse', asymmetric=asymmetric),
                         batches(nn.functional.gelu, 12, 500))
        before = {key: value.clone()
                  for key, value in quantizer.state_dict().items()}
        seen(quantizer, [torch.full((50, ), bad)])
        for key, value in quantizer.state_dict().items():
            assert torch.equal(value, before[key]), key


def test_zeros_give_a_threshold_of_zero():
    for asymmetric in (False, True, None):
        quantizer = seen(built(threshold='mse', asymmetric=asymmetric),
                         [torch.zeros(7)] * 12)
        assert quantizer.clip == 0
        assert quantizer(torch.zeros(3)).tolist() == [0, 0, 0]


@pytest.mark.parametrize('threshold', ['nonzero', 'mse'])
def test_steps_of_zeros_do_not_move_a_threshold(threshold):
    """A branch that is dead now and then keeps its range."""
    inputs = batches(nn.functional.relu, 6)
    zeros = [torch.zeros(50)] * 4
    quantizer = built(threshold=threshold)
    alone = float(seen(built(threshold=threshold), inputs).clip)
    before = float(seen(quantizer, inputs[:3]).clip)
    assert float(seen(quantizer, zeros).clip) == before > 0
    assert float(seen(quantizer, inputs[3:]).clip) == pytest.approx(
        alone, rel=.05)
    first = seen(built(threshold=threshold), [*zeros, *inputs])
    assert float(first.clip) == pytest.approx(alone, rel=.05)
    assert seen(built(threshold=threshold), zeros).clip == 0
    # The published mean (Eq. 10) takes them for what they are.
    assert seen(built(threshold='mean'), [*inputs, *zeros]).clip < seen(
        built(threshold='mean'), inputs).clip


def test_the_gradient_is_one_inside_the_range_with_a_zero_point():
    quantizer = seen(built(threshold='mse', asymmetric=True),
                     batches(nn.functional.gelu, 3))
    step, _, high, zero = quantizer.code_range()
    x = torch.tensor([-1.2 * zero * step, -.5 * zero * step, 0.,
                      3. * step, 1.1 * high * step], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 0]
    bounds = quantizer(x.detach() * 10, rounding=False)
    assert float(bounds.min()) == pytest.approx(-zero * step)
    assert float(bounds.max()) == pytest.approx((high - zero) * step)


def test_zero_points_go_through_padding_merging_and_export(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.SiLU(),
        nn.Conv2d(8, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Hardswish(),
        nn.Flatten(), nn.Linear(4 * 64, 5))
    quantize_(model, dict(
        weight=dict(bits=4, group_size=2),
        activation=dict(bits=4, asymmetric=True)))
    x = normal(2, 3, 8, 8)
    calibrate(model, [lambda: model(x)])
    model.eval()
    assert all(model[index].input_quantizer.code_range().zero_point > 0
               for index in (0, 3, 7))
    merged = merge(model, x)
    assert max(merge_errors(model, merged, x).values()) < 1e-5
    pytest.importorskip('qonnx', reason='needs what export needs')
    report = export_onnx(model, x, tmp_path / 'qdq.onnx')
    equal, total = report.equal_codes()
    assert equal == total > 0 and report.difference == 0
    report = export_onnx(model, x, tmp_path / 'qonnx.onnx', 'qonnx')
    assert report.difference < 1e-5


# -- learned ------------------------------------------------------------------


@pytest.mark.parametrize('bits', [2, 4, 8])
@pytest.mark.parametrize('signed', [False, True])
def test_learned_thresholds_have_the_gradient_of_a_step_size(signed, bits):
    """dL/dT = 1/L sum g (round(x / s) - x / s inside, L where clipped), times
    1 / sqrt(N L), in float64."""
    x = normal(300, seed=bits)
    x = (x if signed else x.relu()).requires_grad_()
    quantizer = seen(built(bits, threshold='learned'), [x])
    assert type(quantizer) is LearnedClipActivation
    assert quantizer.is_signed == signed
    with torch.no_grad():
        quantizer.clip.ratio.mul_(.6)  # something is clipped
    grad = normal(300, seed=9)
    out = quantizer(x)
    out.backward(grad)
    levels = 2**(bits - 1) - 1 if signed else 2**bits - 1
    clip = float(quantizer.clip.detached)
    ratio = x.detach().double().numpy() * levels / clip
    low = -levels if signed else 0
    codes = np.clip(np.rint(ratio), low, levels)
    inside = (ratio >= low) & (ratio <= levels)
    slope = np.where(inside, codes - ratio, codes) / levels
    assert out.tolist() == pytest.approx((codes * clip / levels).tolist(),
                                         rel=1e-5, abs=1e-6)
    assert x.grad.tolist() == pytest.approx(
        np.where(inside, grad.double().numpy(), 0).tolist())
    assert float(quantizer.clip.ratio.grad) == pytest.approx(
        (grad.double().numpy() * slope).sum() / math.sqrt(300 * levels)
        / float(quantizer.clip.unit),
        rel=1e-3, abs=1e-5)


def test_learned_thresholds_do_not_decay():
    model = nn.Sequential(nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), .1, weight_decay=.1)
    report = quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4, threshold='learned')))
    groups = add_learned_parameters(get_state(model), optimizer)
    assert list(report.learned_parameters()) == [
        '0.input_quantizer.clip.ratio']
    assert [group['weight_decay'] for group in groups] == [0.]


# -- configs ------------------------------------------------------------------


def test_what_differs_stands_in_the_scheme():
    Scheme = ScaleClipActivationScheme
    assert Scheme(bits=4, threshold='mse').describe() == \
        'ScaleClip 4 bits, threshold mse'
    assert Scheme(bits=4, threshold='mse', asymmetric=True).describe() == \
        'ScaleClip 4 bits, threshold mse, zero point'
    assert Scheme(bits=4, threshold='learned').describe() == \
        'ScaleClip 4 bits, threshold learned'


@pytest.mark.parametrize('options, message', [
    (dict(threshold='mse', k=3.), "k is 3.0, allowed: with threshold='mse'"),
    (dict(threshold='learned', k=2), 'as no mean is taken'),
    (dict(threshold='nonzero', asymmetric=True),
     "asymmetric is True, allowed: with threshold="
     "'nonzero': None or False; threshold='mse' finds"),
    (dict(threshold='learned', asymmetric=True), "type='LSQPlus' learns one"),
    (dict(threshold='mse', asymmetric=1),
     'asymmetric is 1, allowed: True, False, or None'),
    (dict(threshold='max'), "threshold is 'max', allowed: "
                            "'mean', 'nonzero', 'mse' or 'learned'")])
def test_what_does_not_go_together_is_an_error(options, message):
    with pytest.raises(ValueError, match=message):
        ScaleClipActivationScheme(bits=4, **options)


def test_statistics_of_a_step_are_no_part_of_a_checkpoint():
    assert built(asymmetric=True).state_dict().keys() == {
        'clip', 'signed', 'num_updates', 'zero'}
    assert built().state_dict().keys() == {
        'clip', 'signed', 'num_updates', 'zero'}


def test_learned_thresholds_are_logged_once_they_are_there():
    quantizer = built(threshold='learned')
    assert quantizer.scalars() == {}
    seen(quantizer, batches(nn.functional.relu, 1))
    assert float(quantizer.scalars()['gdrq_act_clip']) == float(
        quantizer.clip.detached) > 0


def test_a_zero_point_stands_in_the_text():
    assert 'asymmetric' not in repr(built())
    assert repr(built(asymmetric=False)).endswith(', asymmetric=False)')
    assert repr(built(threshold='mse', asymmetric=True)).endswith(
        "threshold='mse', asymmetric=True)")


@pytest.mark.parametrize('options, message', [
    (dict(activation=dict(bits=9)),
     'activation.bits is 9, allowed: 2 to 8, or None for '),
    (dict(activation=dict(bits=4, asymmetric=1)),
     'activation.asymmetric is 1, allowed: True, False, or'),
    (dict(weight=dict(bits=4, projection=1)),
     'weight.projection is 1, allowed: True or False'),
    (dict(weight=dict(bits=4, levels='three')),
     "weight.levels is 'three', allowed: 'odd' or 'even'")])
def test_a_bad_value_names_its_field(options, message):
    with pytest.raises(ValueError, match=message):
        quantize_(nn.Linear(2, 2), options)


@pytest.mark.parametrize('asymmetric', [False, True])
def test_the_clipped_share_of_least_squared_error(asymmetric):
    data = batches(nn.functional.silu, 3)
    quantizer = seen(built(threshold='mse', asymmetric=asymmetric), data)
    scale, low, high, zero = quantizer.code_range()
    assert (zero > 0) == asymmetric
    x = data[0]
    outside = (x < (low - zero) * scale) | (x > (high - zero) * scale)
    assert float(quantizer.clipped_fraction(x)) == pytest.approx(
        float(outside.sum() / x.count_nonzero()), rel=1e-3)
    assert outside.any()


def test_a_zero_point_follows_data_that_lose_their_negatives():
    quantizer = seen(built(threshold='mse', asymmetric=True),
                     batches(nn.functional.silu, 12, 500))
    assert quantizer.code_range().zero_point > 0
    seen(quantizer, batches(nn.functional.relu, 300, 500))
    assert quantizer.is_signed and quantizer.code_range().zero_point == 0


def test_zero_point_and_width_descend_in_the_same_steps():
    quantizer = seen(built(), batches(nn.functional.silu, 110, 500))
    clip, zero = quantizer.clip.clone(), quantizer.zero.clone()
    inputs = batches(nn.functional.relu, 11, 500)
    seen(quantizer, inputs[:1])  # is looked at, without counting negatives
    assert quantizer.zero < zero and quantizer.clip != clip
    clip, zero = quantizer.clip.clone(), quantizer.zero.clone()
    seen(quantizer, inputs[1:10])
    assert quantizer.zero == zero and quantizer.clip == clip


def test_the_ends_of_a_range_with_a_zero_point_are_inside():
    quantizer = seen(built(threshold='mse', asymmetric=True),
                     batches(nn.functional.silu, 3))
    quantizer.clip.fill_(15.)  # a step of 1
    quantizer.zero.fill_(2.)
    x = torch.tensor([-2., 0., 13.])
    assert quantizer.clipped_fraction(x) == 0
    assert quantizer.clipped_fraction(torch.tensor([0., 0., 13.1])) == 1
