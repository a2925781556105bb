import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import gdrq_mm
from gdrq_mm.deploy import float_layers, merged_layers
from gdrq_mm.merge import merge, merge_errors

ROUNDING = 5e-6  # float32 sums of some hundred terms, relative


def quantized(model, *args, bits=4, group_size=4, site='input', rules=()):
    """Quantize, with thresholds that ``args`` set."""
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=bits, group_size=group_size),
        activation=dict(bits=4, site=site), rules=list(rules)))
    gdrq_mm.calibrate(model, [lambda: model(*args)])
    return model.eval()


def randomize_norm(norm, draw=torch.randn):
    for name in ('weight', 'bias', 'running_mean'):
        getattr(norm, name).data = draw(norm.num_features)
    norm.running_var = torch.rand(norm.num_features) + 0.1


class Block(nn.Module):
    """A residual block: two norms, one of them before the sum."""

    def __init__(self, channels=10):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        # Registered before its layer: the order of names says nothing.
        self.second_norm = nn.BatchNorm2d(channels)
        self.first = nn.Conv2d(3, channels, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(channels)
        self.second = nn.Conv2d(channels, channels, 3, padding=1)
        self.fc = nn.Linear(channels, 5)
        randomize_norm(self.first_norm)
        randomize_norm(self.second_norm)

    def forward(self, x):
        x = self.relu(self.first_norm(self.first(x)))
        y = self.second_norm(self.second(x))
        y += x
        return self.fc(self.relu(y).mean((2, 3)))


class Shifted(nn.Module):
    """What its second layer reads is the output of a ReLU, changed."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1)
        self.relu = nn.ReLU()

    def forward(self, x):
        x = self.relu(self.first(x))
        x += .37
        return self.second(x)


def test_an_input_changed_behind_a_relu_is_quantized_by_its_layer():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = quantized(Shifted(), x, site='relu')
    merged = merge(model, x)
    with torch.no_grad():
        torch.testing.assert_close(merged(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('site', ['input', 'relu'])
def test_merged_model_equals_the_quantized_one(site):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = quantized(Block(), x, site=site)
    merged = merge(model, x)
    layers = merged_layers(merged)
    assert {name: layer.norm for name, layer in layers.items()} == {
        'first': 'first_norm', 'second': 'second_norm', 'fc': ''}
    assert layers['fc'].reason == 'no batch normalization reads its output'
    assert not any(isinstance(module, nn.BatchNorm2d)
                   for module in merged.modules())
    assert max(merge_errors(model, merged, x).values()) < ROUNDING
    torch.testing.assert_close(merged(x), model(x), rtol=1e-4, atol=1e-5)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(data=st.data(), bits=st.sampled_from([1, 2, 3, 4, 8]),
       group_size=st.sampled_from([1, 2, 3, 4, 7, 100, -1]),
       seed=st.integers(0, 2**16))
def test_any_batch_norm_merges(data, bits, group_size, seed):
    """Signs, zeros and tiny variances, against float64."""
    torch.manual_seed(seed)
    gammas = st.sampled_from([-2., -1e-3, 0., 1e-42, 1e-6, 1., 50.])
    variances = st.sampled_from([0., 1e-12, 1e-3, 1., 1e4])
    conv, norm = nn.Conv2d(3, 7, 3, groups=1), nn.BatchNorm2d(7)
    norm.weight.data = torch.tensor(
        data.draw(st.lists(gammas, min_size=7, max_size=7)))
    norm.running_var = torch.tensor(
        data.draw(st.lists(variances, min_size=7, max_size=7)))
    norm.running_mean, norm.bias.data = torch.randn(7), torch.randn(7)
    x = torch.randn(2, 3, 5, 5)
    model = quantized(nn.Sequential(conv, norm), x, bits=bits,
                      group_size=group_size)
    oracle = nn.Sequential(*map(copy.deepcopy, (
        nn.Conv2d(3, 7, 3), norm))).double().eval()
    oracle[0].weight.data = conv.quantized_weight().double()
    oracle[0].bias.data = conv.bias.data.double()
    expected = oracle(conv.quantized_input(x).double())

    layer, = merged_layers(merge(model, x)).values()
    result = layer(x).double()
    assert layer.norm == '1'
    assert (layer.w_scale > 0).all()
    top = 2**(bits - 1) - 1 if bits > 3 else 2**bits - 1  # 2c + 1: even
    assert layer.weight.abs().max() <= top
    # Rounding of scale and bias to float32, each of its own size.
    size = expected.abs().amax((0, 2, 3)) + layer.bias.abs() + (
        oracle[1].running_mean * oracle[1].weight
        / (oracle[1].running_var + norm.eps).sqrt()).abs()
    error = (result - expected).abs().amax((0, 2, 3))
    assert (error <= 3e-7 * size + 1e-37).all()


def test_one_bit_codes_are_signs_and_vanish_with_gamma():
    torch.manual_seed(0)
    x, norm = torch.randn(1, 3, 5, 5), nn.BatchNorm2d(4)
    norm.weight.data = torch.tensor([1., -1., 0., 2.])
    model = quantized(nn.Sequential(nn.Conv2d(3, 4, 3), norm), x, bits=1)
    codes = merge(model, x)[0].weight
    signs = torch.where(model[0].weight < 0, -1, 1)
    assert torch.equal(codes[1], -signs[1])
    assert torch.equal(codes[0], signs[0])
    assert not codes[2].any()


class Pyramid(nn.Module):
    """A convolution shared by two levels."""

    def __init__(self, norms):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norms = nn.ModuleList(norms)

    def forward(self, x):
        return [norm(self.conv(level)) for norm, level in zip(
            self.norms, (x, x[..., ::2, ::2]))]


def test_shared_layer_with_shared_norm_is_merged():
    x = torch.randn(1, 3, 16, 16)
    norm = nn.BatchNorm2d(4)
    model = quantized(Pyramid([norm, norm]), x)
    merged = merge(model, x)
    assert merged.conv.norm == 'norms.0'
    assert isinstance(merged.norms[1], nn.Identity)
    assert max(merge_errors(model, merged, x).values()) < ROUNDING


def test_shared_layer_with_two_norms_keeps_both():
    x = torch.randn(1, 3, 16, 16)
    model = quantized(Pyramid([nn.BatchNorm2d(4), nn.BatchNorm2d(4)]), x)
    merged = merge(model, x)
    assert 'not all followed by the same' in merged.conv.reason
    assert isinstance(merged.norms[1], nn.BatchNorm2d)
    for ours, theirs in zip(merged(x), model(x)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_norm_behind_some_calls_of_a_layer_stays():
    x = torch.randn(1, 3, 16, 16)
    model = quantized(Pyramid([nn.BatchNorm2d(4), nn.Identity()]), x)
    randomize_norm(model.norms[0])
    merged = merge(model, x)
    assert merged.conv.reason.startswith('its 2 calls are not all followed')
    for ours, theirs in zip(merged(x), model(x)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


class ByKeyword(nn.Module):
    """What its forward gives to layers and operators by name."""

    def __init__(self):
        super().__init__()
        self.up, self.conv = nn.ConvTranspose2d(3, 4, 3, 2), \
            nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)
        randomize_norm(self.norm)

    def forward(self, x):
        y = self.up(x, output_size=(18, 18)) + x.new_ones(18)
        first = torch.zeros(1, dtype=torch.long)
        return self.norm(input=self.conv(input=y))[first]


def test_arguments_by_keyword_are_kept():
    torch.manual_seed(0)
    model, x = ByKeyword(), torch.randn(2, 3, 8, 8)
    merged = merge(quantized(model, x), x)
    assert merged.conv.norm == 'norm'
    torch.testing.assert_close(merged(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_forward_of_an_instance_is_kept():
    """Of a layer in the model, and of a norm, which may do more than that of
    its class."""
    model, x = randomized(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), \
        torch.randn(2, 3, 6, 6)
    norm = model[1].forward
    model[1].forward = lambda x: 2 * norm(x)
    quantized(model, x)
    forward, calls = model[0].forward, []
    model[0].forward = lambda x: calls.append(1) or forward(x)
    expected = model(x)
    merged = merge(model, x)
    assert type(merged[1]) is nn.BatchNorm2d
    torch.testing.assert_close(merged(x), expected, rtol=1e-4, atol=1e-5)
    calls.clear()
    assert torch.equal(model(x), expected) and calls == [1]


class Odd(nn.Module):
    """Layers whose normalization must stay, each for a reason."""

    def __init__(self, case):
        super().__init__()
        self.case = case
        self.conv, self.other = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(
            4, track_running_stats=case != 'batch statistics')
        if case == 'read by a layer':
            self.reader = nn.Conv2d(4, 2, 3)

    def forward(self, x):
        y = self.conv(x)
        if self.case == 'read twice':
            return self.norm(y) + y
        if self.case == 'normalized twice':
            return self.norm(y) + self.norm(y)
        if self.case == 'returned':
            return self.norm(y), y
        if self.case == 'read by a layer':
            return self.norm(y), self.reader(y)
        if self.case == 'not the next':
            return self.norm(y * 2)
        if self.case == 'changed before':
            return self.norm(y.mul_(2))
        if self.case == 'norm of a stranger':
            return self.norm(y) + self.norm(x[:, [0, 1, 2, 0], 1:-1, 1:-1])
        if self.case == 'norm of two layers':
            return self.norm(y), self.norm(self.other(x) + 1)
        if self.case == 'norm of a layer that keeps it':
            z = self.other(x)
            return self.norm(y), self.norm(z) + z
        return self.norm(y)


@pytest.mark.parametrize('case, reason', [
    ('read twice', 'more than a normalization reads'),
    ('normalized twice', 'more than a normalization reads'),
    ('returned', 'more than a normalization reads'),
    ('read by a layer', 'more than a normalization reads'),
    ('not the next', 'no batch normalization reads'),
    ('changed before', 'no batch normalization reads'),
    ('norm of a stranger', 'normalizes other tensors'),
    ('norm of two layers', 'normalizes other tensors'),
    ('norm of a layer that keeps it',
     'another layer shares its normalization'),
    ('batch statistics', 'statistics of the batch')])
def test_norm_that_cannot_merge_stays(case, reason):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = quantized(Odd(case), x)
    merged = merge(model, x)
    assert reason in merged.conv.reason
    assert isinstance(merged.norm, nn.BatchNorm2d)
    ours, theirs = merged(x), model(x)
    for a, b in zip(ours, theirs) if isinstance(ours, tuple) else [
            (ours, theirs)]:
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


class Tokens(nn.Module):
    """A linear layer on tokens, their normalization, and attention."""

    def __init__(self, attention=False):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.attention = nn.MultiheadAttention(8, 2) if attention else None

    def forward(self, x):
        y = self.linear(x)
        if self.attention is None:
            return self.norm(y)
        return self.norm(y) + self.attention(y, y, y)[0]


@pytest.mark.parametrize('attention, shape, reason', [
    (False, (4, 8, 8), 'its normalization normalizes another dimension'),
    (True, (4, 8), 'more than a normalization reads its output'),
    (False, (4, 8), '')])
def test_norm_of_tokens_and_tokens_that_attention_reads(
        attention, shape, reason):
    """As many tokens as features: shapes alone do not tell."""
    torch.manual_seed(0)
    model, x = Tokens(attention), torch.randn(shape)
    model.norm.running_var.uniform_(.5, 2)
    model.norm.running_mean.normal_()
    merged = merge(quantized(model, x), x)
    assert merged.linear.reason.startswith(reason)
    assert isinstance(merged.norm, nn.BatchNorm1d) is bool(reason)
    torch.testing.assert_close(merged(x), model(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('options', [
    dict(padding='same', dilation=2), dict(padding=1, padding_mode='circular'),
    dict(padding=(2, 1), stride=(1, 2)), dict(padding=1, groups=2)])
def test_options_of_convolutions_are_kept(options):
    torch.manual_seed(0)
    x = torch.randn(2, 4, 9, 9)
    model = quantized(nn.Sequential(nn.Conv2d(4, 6, 3, **options)), x)
    merged = merge(model, x)
    torch.testing.assert_close(merged(x), model(x), rtol=1e-5, atol=1e-5)


def test_float_layers_stay_float_and_are_named():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.Conv2d(4, 4, 1),
        nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    x = torch.randn(1, 3, 8, 8)
    model = quantized(model, x, rules=[
        dict(match='2', skip=True), dict(match='3', weight=dict(bits=None)),
        dict(match='4', activation=dict(bits=None))])
    merged = merge(model, x)
    assert float_layers(merged) == {
        '1': 'no integer kernel for ConvTranspose2d', '2': 'not quantized',
        '3': 'its weight is float', '4': 'its input is float'}
    torch.testing.assert_close(merged(x), model(x), rtol=1e-5, atol=1e-5)


def test_merge_leaves_the_model_alone():
    x = torch.randn(2, 3, 8, 8)
    model = quantized(Block(), x)
    before = copy.deepcopy(model.state_dict())
    expected = model(x)
    hooks = [list(module._forward_hooks) + list(module._forward_pre_hooks)
             for module in model.modules()]
    merge(model, x)
    after = model.state_dict()
    assert hooks == [
        list(module._forward_hooks) + list(module._forward_pre_hooks)
        for module in model.modules()]
    assert torch.equal(model(x), expected)
    assert list(after) == list(before)
    assert all(torch.equal(after[key], before[key]) for key in before)
    assert isinstance(model.first_norm, nn.BatchNorm2d)


def test_sums_beyond_float32_are_exact():
    conv = nn.Conv2d(14000, 1, 1)
    nn.init.uniform_(conv.weight, 0.9, 1.1)
    x = torch.rand(1, 14000, 2, 2)
    gdrq_mm.quantize_(conv, dict(weight=dict(bits=8, k=2.),
                                 activation=dict(bits=8)))
    gdrq_mm.calibrate(conv, [lambda: conv(x)])
    layer = merge(conv, x)
    assert layer.wide
    acc = (layer.grid.quantize(x).long() * layer.weight.long()).sum(1)
    assert acc.max() > 2**24
    expected = acc.double() * (layer.grid.scale * layer.w_scale).double() \
        + layer.bias
    assert torch.equal(layer(x)[:, 0], expected.float())


def test_unset_threshold_is_refused_by_name():
    model = nn.Sequential(nn.Conv2d(3, 4, 3))
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    with pytest.warns(UserWarning, match='threshold'), \
            pytest.raises(ValueError, match='^0: the threshold'):
        merge(model, torch.randn(1, 3, 8, 8))


def test_unset_threshold_of_an_output_is_refused_by_name():
    class Optional(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 4, 3), nn.ReLU()

        def forward(self, x, act=False):
            return self.act(self.conv(x)) if act else self.conv(x)

    model, x = Optional(), torch.randn(1, 3, 8, 8)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4),
        residual=dict(outputs=['act'])))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged = merge(model.eval(), x)  # does not call it
    assert merged.act.output_quantizer.grid is None
    with pytest.warns(UserWarning, match='threshold'), \
            pytest.raises(ValueError,
                          match='^act: the threshold of its output'):
        merge(model, x, act=True)


@pytest.mark.parametrize('rules', [
    [], [dict(match='*', weight=dict(bits=None))],
    [dict(match='*', activation=dict(bits=None))]])
def test_models_may_ask_layers_for_their_sizes(rules):
    """As DINO does, of its last classifier; merged, rounded or codes alone."""
    class Asks(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 5)

        def forward(self, x):
            kernel, _ = self.conv.kernel_size
            x = self.conv(x)[..., :kernel, 0].mean(-1)
            return self.fc(x[:, :self.fc.in_features])[
                :, :self.fc.out_features - 1]

    torch.manual_seed(0)
    model, x = Asks(), torch.randn(1, 3, 8, 8)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4), rules=rules))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged = merge(model.eval(), x)
    assert merged(x).shape == (1, 4)
    torch.testing.assert_close(merged(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('outputs', [[], ['norm', 'second']])
@pytest.mark.parametrize('rules', [
    [], [dict(match='second', weight=dict(bits=None))],
    [dict(match='second', activation=dict(bits=None))],
    [dict(match='first', weight=dict(bits=None))]])
def test_forward_hooks_are_kept(rules, outputs):
    """On layers that merge or stay float, and on norms that go away."""
    class Hooked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
            self.second = nn.Conv2d(4, 4, 3)

        def forward(self, x):
            return self.second(self.norm(self.first(x)))

    torch.manual_seed(0)
    model, x = Hooked(), torch.randn(1, 3, 8, 8)
    randomize_norm(model.norm)
    model.norm.register_forward_hook(lambda module, args, y: 2 * y)
    model.second.register_forward_pre_hook(
        lambda module, args, kwargs: ((args[0] + 0.3, ), kwargs),
        with_kwargs=True)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4), rules=rules,
        residual=dict(outputs=outputs)))
    model.second.register_forward_hook(lambda module, args, y: 3 * y)
    gdrq_mm.calibrate(model, [lambda: model(x)])
    expected = model.eval()(x)
    merged = merge(model, x)
    # A float layer keeps its normalization.
    assert isinstance(merged.norm, nn.BatchNorm2d if rules and rules[0][
        'match'] == 'first' else nn.Identity)
    torch.testing.assert_close(merged(x), expected, rtol=1e-5, atol=1e-5)


def test_inputs_of_two_scales_are_refused():
    class TwoSites(nn.Module):
        def __init__(self):
            super().__init__()
            self.relu, self.conv = nn.ReLU(), nn.Conv2d(3, 3, 1)

        def forward(self, x):
            return self.conv(self.relu(x)) + self.conv(self.relu(x * 4))

    x = torch.randn(1, 3, 8, 8)
    model = quantized(TwoSites(), x, site='relu')
    with pytest.raises(ValueError, match='^conv is called 2 times'):
        merge(model, x)


def test_float_models_and_phases_are_refused():
    with pytest.raises(ValueError, match='no layer .* is quantized'):
        merge(nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8))
    x = torch.randn(1, 3, 8, 8)
    model = quantized(nn.Sequential(nn.Conv2d(3, 4, 3)), x)
    model.quantization_state.set_phase('reshape')
    with pytest.raises(ValueError, match="'reshape' phase"):
        merge(model, x)


@pytest.mark.parametrize('name', ['faster_rcnn', 'pspnet', 'resnet'])
def test_openmmlab_models_merge_layer_by_layer(name, build_model, load_batch):
    torch.manual_seed(0)
    model = build_model(name)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            randomize_norm(module)
    data = model.data_preprocessor(load_batch(name, 'test'))
    gdrq_mm.calibrate(model, [lambda: model(**data, mode='predict')])
    merged = merge(model, **data, mode='predict')
    errors = merge_errors(model, merged, **data, mode='predict')
    called = [name for name, layer in
              model.quantization_state.layers.items() if layer.called]
    assert sorted(errors) == sorted(called)
    assert max(errors.values()) < ROUNDING
    assert not any(isinstance(module, nn.BatchNorm2d)
                   for module in merged.modules()
                   if module not in set(getattr(
                       merged, 'auxiliary_head', nn.Module()).modules()))


class Activated(nn.BatchNorm2d):
    """As timm's BatchNormAct2d."""

    def forward(self, x):
        return nn.functional.relu(super().forward(x))


def randomized(*layers):
    torch.manual_seed(0)
    for layer in layers:
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_()
            layer.running_var.uniform_(.3, 2)
            nn.init.uniform_(layer.weight, -1.5, 1.5)
            nn.init.normal_(layer.bias)
    return nn.Sequential(*layers)


@pytest.mark.parametrize('layers, shape', [
    ((nn.Conv1d(3, 5, 3), nn.BatchNorm1d(5)), (2, 3, 9)),
    ((nn.Conv3d(3, 5, 3), nn.BatchNorm3d(5)), (2, 3, 5, 5, 5)),
    ((nn.ConvTranspose2d(3, 5, 3), nn.BatchNorm2d(5)), (2, 3, 6, 6)),
    ((nn.Conv2d(3, 5, 3), Activated(5)), (2, 3, 6, 6))])
def test_norms_that_no_kernel_takes_stay(layers, shape):
    model, x = randomized(*layers), torch.randn(shape)
    merged = merge(quantized(model, x), x)
    torch.testing.assert_close(merged(x), model(x), rtol=1e-4, atol=1e-5)


def test_a_code_of_minus_128_keeps_its_sign():
    """Its opposite is no int8: the norm of such a filter is not merged."""
    model, x = randomized(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5)), \
        torch.randn(2, 3, 6, 6)
    nn.init.constant_(model[1].weight, -1)
    model[0].weight.data[:, 0, 0, 0] = -100
    gdrq_mm.quantize_(model, dict(weight=dict(type='LSQ', bits=8),
                                  activation=dict(bits=8)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    merged = merge(model.eval(), x)
    assert merged[0].weight.min() == -128
    assert 'codes of -128' in merged[0].reason
    torch.testing.assert_close(merged(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('least, gamma', [
    (-128, .5), (-127, -1.), (-127, .5), (-128, None)])
def test_norms_of_codes_whose_opposites_are_int8_are_merged(least, gamma):
    norm = nn.BatchNorm2d(5, affine=gamma is not None)
    norm.running_mean, norm.running_var = torch.randn(5), torch.rand(5) + .5
    model, x = nn.Sequential(nn.Conv2d(3, 5, 3), norm), torch.randn(2, 3, 6, 6)
    gdrq_mm.quantize_(model, dict(weight=dict(type='LSQ', bits=8),
                                  activation=dict(bits=8)))
    model(x)  # its weight has a step size from here on
    gdrq_mm.calibrate(model, [lambda: model(x)])
    model.eval()
    with torch.no_grad():
        if gamma is not None:
            norm.weight.fill_(gamma)
        _, step = model[0].weight_quantizer.codes(model[0].weight)
        model[0].weight[:, :1, :1, :1] = least * step
    merged = merge(model, x)
    assert merged[0].norm == '1' and isinstance(merged[1], nn.Identity)
    codes = merged[0].weight[:, 0, 0, 0]
    assert (codes == (127 if gamma == -1. else least)).all()
    torch.testing.assert_close(merged(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_sums_are_exact_under_autocast(dtype):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 8, 8)
    model = quantized(nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 8, 3), nn.Flatten(),
        nn.Linear(128, 4)), x, bits=8)
    merged = merge(model, x)
    with torch.autocast('cpu', dtype):
        inside = merged(x)
    assert torch.equal(inside, merged(x))


class TwoInputs(nn.Module):
    """One layer on the output of a ReLU, and on one without."""

    def __init__(self):
        super().__init__()
        self.first, self.relu = nn.Conv2d(3, 3, 1), nn.ReLU()
        self.shared = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        x = self.first(x)
        return self.shared(self.relu(x)), self.shared(x)


def test_a_layer_with_quantized_and_float_inputs_is_refused():
    torch.manual_seed(0)
    model, x = TwoInputs(), torch.randn(2, 3, 8, 8)
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=4, site='relu'),
        rules=[dict(match='shared', activation=dict(bits=None))]))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    with pytest.raises(ValueError, match='shared is called with inputs that '
                       'are quantized and with some that are not'):
        merge(model.eval(), x)


class Referred(nn.Module):
    """A layer that is called past its place in the model, or its hooks."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.norm, self.how = \
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), how
        self.layers = [self.conv] if how == 'list' else nn.ModuleList(
            [self.conv])

    def forward(self, x):
        y = self.layers[0](x)
        return self.norm(y), self.conv.forward(x) if self.how == 'forward' \
            else x


def test_a_forward_past_the_hooks_keeps_its_norm():
    x = torch.randn(2, 3, 8, 8)
    model = quantized(Referred('forward'), x)
    merged = merge(model, x)
    assert 'past its hooks' in merged.conv.reason
    for ours, theirs in zip(merged(x), model(x)):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_reference_that_merging_cannot_replace_is_an_error():
    x = torch.randn(2, 3, 8, 8)
    for how, match in (('list', 'conv was merged, but .* nn.ModuleList'),
                       ('modules', None)):
        model = quantized(Referred(how), x)
        merged = merge(model, x)
        assert merged.conv.norm == 'norm'
        model(x)  # is as it was
        if match is None:
            torch.testing.assert_close(merged(x)[0], model(x)[0], rtol=1e-4,
                                       atol=1e-5)
        else:
            with pytest.raises(RuntimeError, match=match):
                merged(x)


def test_so_is_one_without_a_normalization():

    class Listed(nn.Module):

        def __init__(self):
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for _ in range(2))
            self.order = [*self.convs]

        def forward(self, x):
            for conv in self.order:
                x = conv(x)
            return x

    x = torch.randn(2, 3, 8, 8)
    model = quantized(Listed(), x)
    merged = merge(model, x)
    model(x)  # is as it was
    with pytest.raises(RuntimeError, match='convs.0 was merged'):
        merged(x)


def test_a_merged_model_can_be_saved_as_a_whole(tmp_path):
    x = torch.randn(2, 3, 8, 8)
    merged = merge(quantized(Block(), x), x)
    torch.save(merged, tmp_path / 'merged.pth')
    loaded = torch.load(tmp_path / 'merged.pth', weights_only=False)
    with torch.no_grad():
        assert torch.equal(loaded(x), merged(x))
