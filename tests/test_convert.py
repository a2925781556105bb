"""quantize_: what stays, what is refused, and how checkpoints load."""
import copy
import io
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as TF

from gdrq_mm import calibrate, quantize_
from gdrq_mm.checkpoint import NAME, CheckpointError
from gdrq_mm.config import QuantConfig
from gdrq_mm.plan import make_plan, trace_layers
from gdrq_mm.quantizers import QUANTIZERS
from gdrq_mm.training import get_state

W4A4 = dict(weight=dict(bits=4), activation=dict(bits=4))
CONFIGS = [
    W4A4, dict(weight=dict(bits=2, group_size=1)),
    dict(activation=dict(bits=8)),
    dict(weight=dict(bits=1, group_size=-1),
         activation=dict(bits=2, site='relu'))]


class Net(nn.Module):

    def __init__(self, width=6):
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        self.fc = nn.Linear(width, 5)

    def forward(self, x):
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.conv2(x) + x)
        return self.fc(x.mean((2, 3)))


def make_net(seed=0):
    torch.manual_seed(seed)
    return Net()


def batch(seed=0, size=4):
    return torch.randn(size, 3, 6, 6,
                       generator=torch.Generator().manual_seed(seed))


def train(model, steps=2, seed=0, lr=.05):
    optimizer = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr)
    model.train()
    for step in range(steps):
        optimizer.zero_grad()
        model(batch(seed + step)).pow(2).mean().backward()
        optimizer.step()
    return model


def trained(config=W4A4, seed=0):
    model = make_net(seed)
    quantize_(model, config)
    return train(model, seed=seed)


def same(one, other):
    return list(one) == list(other) and all(
        torch.equal(one[key], other[key]) for key in one)


def snapshot(model):
    return copy.deepcopy(model.state_dict())


# -- what stays ---------------------------------------------------------------

@pytest.mark.parametrize('config', CONFIGS)
def test_parameters_keys_and_values_stay(config):
    model = make_net()
    parameters, before = dict(model.named_parameters()), snapshot(model)
    quantize_(model, config)
    after = dict(model.named_parameters())
    assert all(after[name] is p for name, p in parameters.items())
    state_dict = model.state_dict()
    assert all(torch.equal(state_dict[key], before[key]) for key in before)
    new = set(state_dict) - set(before)
    assert all('_quantizer' in key or key.startswith(NAME) for key in new)


def test_new_parameters_are_not_trained():
    model = make_net()
    names = {name for name, _ in model.named_parameters()}
    quantize_(model, W4A4)
    assert not any(p.requires_grad for name, p in model.named_parameters()
                   if name not in names)


@pytest.mark.parametrize('config', CONFIGS)
def test_hooks_and_references_stay(config):
    model, calls = make_net(), []
    conv = model.conv1
    conv.register_forward_hook(lambda *_: calls.append('forward'))
    conv.register_forward_pre_hook(lambda *_: calls.append('before'))
    conv.weight.register_hook(lambda grad: calls.append('grad') or grad)
    quantize_(model, config)
    assert model.conv1 is conv
    model(batch()).sum().backward()
    assert calls == ['before', 'forward', 'grad']


@pytest.mark.parametrize('config', CONFIGS)
def test_layers_are_still_what_they_were(config):
    model = make_net()
    quantize_(model, config)
    assert isinstance(model.conv1, nn.Conv2d)
    assert isinstance(model.fc, nn.Linear)
    assert isinstance(model.relu, nn.ReLU)
    assert not model.train(False).conv1.training


def test_training_mode_stays():
    model = make_net().eval()
    quantize_(model, W4A4)
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize('config', [
    {}, dict(weight=dict(bits=None, group_size=1),
             activation=dict(bits=None, site='relu')),
    dict(**W4A4, rules=[dict(match='*', skip=True)])])
def test_without_bits_the_model_stays_bit_for_bit_float(config):
    model, plain = make_net(), make_net()
    report = quantize_(model, config)
    assert get_state(model) is None
    assert report.totals()['quantized_layers'] == 0
    assert [type(m) for m in model.modules()] == \
        [type(m) for m in plain.modules()]
    for net in (model, plain):
        net(batch()).pow(2).sum().backward()
    assert torch.equal(model(batch()), plain(batch()))
    assert same(model.state_dict(), plain.state_dict())
    for ours, theirs in zip(model.parameters(), plain.parameters()):
        assert torch.equal(ours.grad, theirs.grad)


def test_skipped_layers_compute_as_before():
    model = make_net()
    plain = copy.deepcopy(model)
    quantize_(model, dict(**W4A4, rules=[
        dict(match='fc', weight=dict(bits=2)), dict(match='*', skip=True)]))
    assert type(model.conv1) is nn.Conv2d and type(model.fc) is not nn.Linear
    x = batch()
    assert torch.equal(model.conv1(x), plain.conv1(x))


# -- the quantized computation ------------------------------------------------

@pytest.mark.parametrize('bits', range(1, 9))
def test_weight_only_layer_computes_with_brute_force_levels(bits):
    model = make_net()
    quantize_(model, dict(weight=dict(bits=bits, group_size=4,
                                      levels='odd')))
    w = model.conv2.weight.detach().double().numpy()
    quantized = np.empty_like(w)
    top = 2**(bits - 1) - 1
    k = 3 if bits > 3 else 2
    for start in (0, 4):
        group = w[start:start + 4]
        mean = np.abs(group).mean()
        if bits == 1:
            quantized[start:start + 4] = np.where(group < 0, -mean, mean)
        else:
            step = k * mean / top
            quantized[start:start + 4] = np.rint(
                np.clip(group, -k * mean, k * mean) / step) * step
    x = torch.randn(2, 6, 5, 5)
    expected = TF.conv2d(x.double(), torch.tensor(quantized),
                         model.conv2.bias.double(), padding=1)
    torch.testing.assert_close(model.conv2(x).double(), expected,
                               rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('config', CONFIGS)
def test_eval_outputs_are_the_same_under_no_grad_and_inference_mode(config):
    model = trained(config).eval()
    expected = model(batch()).detach()
    with torch.no_grad():
        assert torch.equal(model(batch()), expected)
    with torch.inference_mode():
        assert torch.equal(model(batch()), expected)


# -- twice --------------------------------------------------------------------

def test_quantizing_twice_with_the_same_config_changes_nothing():
    model = trained()
    before, modules = snapshot(model), list(model.modules())
    report = quantize_(model, QuantConfig.from_dict(W4A4))
    assert list(model.modules()) == modules
    assert same(model.state_dict(), before)
    assert report.totals()['quantized_layers'] == 3


def test_quantizing_again_with_another_config_is_refused():
    model = trained()
    before = snapshot(model)
    with pytest.raises(ValueError, match='already quantized with another'):
        quantize_(model, dict(weight=dict(bits=2)))
    assert same(model.state_dict(), before)


# -- what is refused ----------------------------------------------------------

@pytest.mark.parametrize('bad', [float('nan'), float('inf'), -float('inf')])
def test_weights_that_are_not_finite_are_named_and_nothing_changes(bad):
    model = make_net()
    model.conv2.weight.data[1, 2, 0, 0] = bad
    keys = list(model.state_dict())
    with pytest.raises(ValueError, match='conv2.weight has 1 NaN or infinite'):
        quantize_(model, W4A4)
    assert type(model.conv1) is nn.Conv2d and get_state(model) is None
    assert list(model.state_dict()) == keys


def test_nan_in_a_float_layer_is_no_error():
    model = make_net()
    model.fc.weight.data[0, 0] = float('nan')
    quantize_(model, dict(**W4A4, rules=[dict(match='fc', skip=True)]))


def test_bad_rule_leaves_the_model_alone():
    model = make_net()
    with pytest.raises(ValueError, match="did you mean 'conv1'"):
        quantize_(model, dict(**W4A4, rules=[dict(match='conv_1', skip=True)]))
    assert type(model.conv1) is nn.Conv2d


@pytest.mark.parametrize('name', ['conv1', 'fc'])
@pytest.mark.parametrize('config', CONFIGS[:3])
def test_replacing_the_weight_of_a_quantized_layer_raises(config, name):
    model = make_net()
    quantize_(model, config)
    layer = getattr(model, name)
    weight = layer.weight
    with pytest.raises(RuntimeError, match='cannot be replaced'):
        layer.weight = nn.Parameter(weight.detach() * 2)
    assert layer.weight is weight
    layer.weight = weight  # the same object is fine
    layer.bias = None
    model.conv1.weight.data.copy_(torch.zeros(()))


class Own(nn.Module):
    """Has names of ours for parts of its own."""

    def __init__(self, **parts):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.fc(x)


def layer_with(layer, name, part):
    if isinstance(part, torch.Tensor):
        layer.register_buffer(name, part)
    else:
        setattr(layer, name, part)
    return layer


@pytest.mark.parametrize('model, match', [
    (Own(quantization_state=nn.Linear(4, 4)),
     'model has a quantization_state of its own, a Linear, .*rename it'),
    (Own(quantization_state=None), 'quantization_state of its own'),
    (nn.Sequential(nn.Linear(4, 4), Own(output_quantizer=nn.Linear(4, 4))),
     '1, a Own, has output_quantizer of its own.*rename it, or name another '
     'module in residual.outputs'),
    *((nn.Sequential(nn.Linear(4, 4), layer_with(
        nn.Linear(4, 4), name, part)),
       f"1, a Linear, has {name} of its own.*rename it, or leave this layer "
       r"float with dict\(match='1', skip=True\)")
      for name, part in dict(
          weight_quantizer=nn.Linear(2, 2), input_quantizer=nn.Linear(2, 2),
          weight_packed=torch.ones(2), state='on', called=True,
          same_input=3, _shared=None).items()),
    (nn.Sequential(nn.Linear(4, 4), layer_with(nn.ReLU(), '_calls', 0)),
     '1, a ReLU, has _calls of its own')])
def test_names_that_the_model_has_itself_are_not_taken(model, match):
    """They would be replaced, and be missing in its checkpoints."""
    before, classes = snapshot(model), [type(m) for m in model.modules()]
    config = dict(
        weight=dict(bits=4), activation=dict(bits=4, site='relu'),
        residual=dict(outputs=['1'] if 'output' in match else []))
    with pytest.raises(ValueError, match=match):
        quantize_(model, config)
    assert [type(module) for module in model.modules()] == classes
    assert same(model.state_dict(), before)


def test_layers_that_stay_float_keep_their_names():
    model = nn.Sequential(nn.Linear(4, 4), layer_with(
        nn.Linear(4, 4), 'weight_packed', torch.ones(2)))
    quantize_(model, dict(**W4A4, rules=[dict(match='1', skip=True)]))
    model.load_state_dict(model.state_dict())
    assert torch.equal(model[1].weight_packed, torch.ones(2))


# -- shared weights -----------------------------------------------------------

def test_layers_that_share_a_weight_share_its_clip_values():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    quantize_(model, dict(weight=dict(bits=4)))
    optimizer = torch.optim.SGD(model.parameters(), .1)
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(5, 4)).pow(2).sum().backward()
        optimizer.step()
    assert model[0].weight is model[1].weight
    one, other = model[0].weight_quantizer.clip, model[1].weight_quantizer.clip
    assert torch.equal(one, other)
    assert model[0].weight.abs().max() <= one.max()


def test_shared_weight_is_projected_once_a_step():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    quantize_(model, dict(weight=dict(bits=4, group_size=-1, k=2.)))
    weight = model[0].weight
    optimizer = torch.optim.SGD([weight], lr=1e-30)
    before = weight.detach().double().numpy().copy()
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    clip = 2 * np.abs(before).mean()
    np.testing.assert_allclose(weight.detach(), before.clip(-clip, clip),
                               rtol=1e-6)


# -- copies -------------------------------------------------------------------

def pickled(model):
    return pickle.loads(pickle.dumps(model))


def saved(model):
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize('duplicate', [copy.deepcopy, pickled, saved])
@pytest.mark.parametrize('config', CONFIGS)
def test_copies_compute_the_same_and_train_alone(config, duplicate):
    model = trained(config)
    twin = duplicate(model)
    assert same(model.state_dict(), twin.state_dict())
    before = snapshot(model)
    train(twin, seed=5)
    assert same(model.state_dict(), before)  # undisturbed by its copy
    train(model, seed=5)
    assert same(model.state_dict(), twin.state_dict())
    assert torch.equal(model.eval()(batch(9)), twin.eval()(batch(9)))


def test_copy_of_an_untrained_model_trains_like_it():
    model = make_net()
    quantize_(model, W4A4)
    twin = copy.deepcopy(model)
    assert same(train(model).state_dict(), train(twin).state_dict())


# -- checkpoints --------------------------------------------------------------

@pytest.mark.parametrize('config', CONFIGS)
def test_float_state_dict_loads_strictly(config):
    source = make_net(1)
    model, fresh = make_net(2), make_net(1)
    quantize_(model, config)
    state_dict = source.state_dict()
    keys = list(state_dict)
    result = model.load_state_dict(state_dict)
    assert not result.missing_keys and not result.unexpected_keys
    assert list(state_dict) == keys  # the caller's dict is left alone
    quantize_(fresh, config)
    assert torch.equal(model.eval()(batch()), fresh.eval()(batch()))


def test_float_state_dict_resets_trained_quantizers():
    model = trained()
    model.load_state_dict(make_net(1).state_dict())
    fresh = make_net(1)
    quantize_(fresh, W4A4)
    assert same(model.state_dict(), fresh.state_dict())
    assert torch.equal(model.eval()(batch()), fresh.eval()(batch()))
    assert same(train(model).state_dict(), train(fresh).state_dict())


def test_float_state_dict_with_a_missing_key_is_still_refused():
    model = make_net()
    quantize_(model, W4A4)
    state_dict = make_net().state_dict()
    del state_dict['conv1.weight']
    with pytest.raises(RuntimeError, match='conv1.weight'):
        model.load_state_dict(state_dict)


@pytest.mark.parametrize('config', CONFIGS)
def test_quantized_state_dict_loads_into_the_same_scheme(config):
    source, model = trained(config), make_net(3)
    quantize_(model, config)
    model.load_state_dict(source.state_dict())
    assert same(model.state_dict(), source.state_dict())
    assert torch.equal(model.eval()(batch()), source.eval()(batch()))


@pytest.mark.parametrize('other, names', [
    (dict(weight=dict(bits=2), activation=dict(bits=4)),
     ['conv1', 'conv2', 'fc']),
    (dict(weight=dict(bits=4, group_size=1), activation=dict(bits=4)),
     ['conv1', 'conv2', 'fc']),
    (dict(**W4A4, rules=[dict(match='fc', activation=dict(bits=8))]), ['fc']),
    (dict(**W4A4, rules=[dict(match='conv2', skip=True)]), ['conv2'])])
def test_quantized_state_dict_of_another_scheme_changes_nothing(other, names):
    source, model = trained(W4A4), trained(other, seed=1)
    before, output = snapshot(model), model.eval()(batch())
    for strict in (True, False):
        with pytest.raises(RuntimeError) as error:
            model.load_state_dict(source.state_dict(), strict=strict)
        for name in ('conv1', 'conv2', 'fc'):
            assert (f'  {name}: checkpoint' in str(error.value)) == (
                name in names)
    assert f'{len(names)} layers differ' in str(error.value)
    assert same(model.state_dict(), before)
    assert torch.equal(model(batch()), output)


def test_thresholds_without_their_schemes_are_refused():
    """As of a converted wrapper, or of a teacher taken out of a distiller."""
    source, model = trained(W4A4), trained(W4A4, seed=1)
    before = snapshot(model)
    state_dict = source.state_dict()
    del state_dict[f'{NAME}.schemes']
    with pytest.raises(CheckpointError, match='not the schemes'):
        model.load_state_dict(state_dict, strict=False)
    assert same(model.state_dict(), before)


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('config', CONFIGS)
def test_a_float_model_refuses_a_quantized_state_dict(config, strict):
    source, model = trained(config), make_net()
    before = snapshot(model)
    with pytest.raises(CheckpointError, match='this model is float'):
        model.load_state_dict(source.state_dict(), strict=strict)
    assert same(model.state_dict(), before)


@pytest.mark.parametrize('config', CONFIGS)
def test_model_that_is_itself_one_layer_loads_and_trains(config):
    torch.manual_seed(0)
    model, source = nn.Linear(6, 4), nn.Linear(6, 4)
    quantize_(model, config)
    model.load_state_dict(source.state_dict())
    optimizer = torch.optim.SGD([model.weight, model.bias], .1)
    model(torch.randn(3, 6)).sum().backward()
    optimizer.step()
    twin = nn.Linear(6, 4)
    quantize_(twin, config)
    twin.load_state_dict(model.state_dict())
    assert same(model.state_dict(), twin.state_dict())


def test_quantized_part_of_a_float_model_loads_with_its_prefix():
    def build(seed):
        torch.manual_seed(seed)
        return nn.ModuleDict(dict(backbone=Net(), head=nn.Linear(5, 2)))

    source, model = build(0), build(1)
    quantize_(model['backbone'], W4A4)
    model.load_state_dict(source.state_dict())
    assert torch.equal(model['backbone'].fc.weight,
                       source['backbone'].fc.weight)
    train(model['backbone'])
    other = build(2)
    quantize_(other['backbone'], W4A4)
    other.load_state_dict(model.state_dict())
    assert same(model.state_dict(), other.state_dict())


@pytest.mark.parametrize('config', CONFIGS)
def test_part_of_a_quantized_model_loads_a_float_state_dict_alone(config):
    model, source = trained(config), make_net(1)
    other = snapshot(model.conv2)
    for name in ('conv1', 'fc', 'relu'):
        getattr(model, name).load_state_dict(
            getattr(source, name).state_dict())
    fresh = make_net(1)
    quantize_(fresh, config)
    assert same(model.conv1.state_dict(), fresh.conv1.state_dict())
    assert same(model.conv2.state_dict(), other)
    x = batch()
    assert torch.equal(model.eval().conv1(x), fresh.eval().conv1(x))


# -- calibrate ----------------------------------------------------------------

def tensors_of(model):
    """Of the quantizers; constants that no file holds as well."""
    return [pair for pair in [*model.named_parameters(),
                              *model.named_buffers()]
            if '_quantizer.' in pair[0]]


@pytest.mark.parametrize('kind', sorted(QUANTIZERS))
def test_thresholds_are_float32_whatever_the_default_dtype(kind):
    config = {part: dict(type=kind, bits=4)
              for part in ('weight', 'activation')}
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    expected = copy.deepcopy(model)
    quantize_(expected, config)
    model, default = model.bfloat16(), torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        quantize_(model, config)
        assert torch.get_default_dtype() is torch.bfloat16
        optimizer = torch.optim.SGD(model.parameters(), .01)
        for (name, ours), theirs in zip(tensors_of(model),
                                        tensors_of(expected)):
            assert ours.dtype is theirs[1].dtype, name
            # Those of weights begin with the weights, which are rounded.
            assert 'weight' in name or torch.equal(ours, theirs[1]), name
        for _ in range(3):
            model(torch.randn(4, 8)).square().mean().backward()
            optimizer.step()
        assert model(torch.randn(4, 8)).dtype is torch.bfloat16
    finally:
        torch.set_default_dtype(default)


def test_calibrate_averages_k_times_the_mean_of_each_batch():
    model = make_net()
    quantize_(model, dict(activation=dict(bits=4, threshold='mean', k=3.)))
    inputs = [batch(seed) * (seed + 1) for seed in range(3)]
    calibrate(model, ((lambda x=x: model(x)) for x in inputs))
    expected = np.mean([3 * x.double().abs().mean().item() for x in inputs])
    quantizer = model.conv1.input_quantizer
    assert quantizer.clip.item() == pytest.approx(expected, rel=1e-5)
    assert quantizer.is_signed and int(quantizer.num_updates) == 3


@pytest.mark.parametrize('options', [
    {}, dict(threshold='mse'), dict(threshold='mse', asymmetric=True),
    dict(threshold='learned'), dict(type='LSQ'), dict(type='PACT'),
    dict(type='DirectQuantization')])
@pytest.mark.parametrize('late', [1, 11, 13])
@pytest.mark.filterwarnings('ignore:.*signed codes')
def test_calibrate_finds_negatives_in_any_batch(options, late):
    model = nn.Sequential(nn.Linear(16, 4))
    quantize_(model, dict(activation=dict(bits=4, **options)))
    inputs = [torch.rand(8, 16) for _ in range(late)]
    inputs.append(torch.rand(8, 16) - .5)
    calibrate(model, ((lambda x=x: model(x)) for x in inputs))
    quantizer = model[0].input_quantizer
    assert quantizer.is_signed
    assert quantizer(torch.full((1, ), -.5)) < 0


def test_calibrate_of_an_offset_asks_for_no_sign(recwarn):
    """LSQ+ has its range from the first batch, and learns the offset."""
    model = nn.Sequential(nn.Linear(16, 4))
    quantize_(model, dict(activation=dict(bits=4, type='LSQPlus')))
    x = torch.linspace(0, 1, 128).view(8, 16)
    calibrate(model, [lambda: model(x), lambda: model(x - .5)])
    assert not model[0].input_quantizer.is_signed
    assert not [each for each in recwarn if 'signed codes' in str(
        each.message)]


def test_calibrate_changes_no_weights_statistics_or_modes():
    model = make_net()
    quantize_(model, W4A4)
    model.train()
    model.bn1.eval()
    modes = [module.training for module in model.modules()]
    before = snapshot(model)
    calibrate(model, [lambda: model(batch())])
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key])
               for key, value in model.state_dict().items()
               if 'input_quantizer' not in key)


def test_calibrate_ends_also_when_a_forward_fails():
    model = make_net()
    quantize_(model, W4A4)
    with pytest.raises(ZeroDivisionError):
        calibrate(model, [lambda: 1 / 0])
    assert model.training and not get_state(model).calibrating


def test_calibrate_without_batches_or_on_a_float_model_raises():
    model = make_net()
    with pytest.raises(ValueError, match='needs a quantized model'):
        calibrate(model, [lambda: model(batch())])
    quantize_(model, W4A4)
    with pytest.raises(ValueError, match='no batches'):
        calibrate(model, [])


# -- the report ---------------------------------------------------------------

def test_report_counts_layers_weights_and_bytes():
    model = make_net()
    report = quantize_(model, dict(
        weight=dict(bits=4, group_size=4), activation=dict(bits=4),
        rules=[dict(match='fc', skip=True)]))
    totals = report.totals()
    convs = [model.conv1.weight.numel(), model.conv2.weight.numel()]
    fc = model.fc.weight.numel()
    assert totals['layers'] == 3 and totals['quantized_layers'] == 2
    assert totals['weight_share'] == pytest.approx(
        sum(convs) / (sum(convs) + fc))
    assert totals['bytes_before'] == 4 * (sum(convs) + fc)
    # 4 bits a code, whole bytes a filter, two groups of 4 bytes a layer, fc
    # as before
    assert totals['bytes_after'] == sum(
        len(weight) * -(-weight[0].numel() // 2) + 8 for weight in (
            model.conv1.weight, model.conv2.weight)) + 4 * fc
    for text in ('conv1', "rule 'fc': skip", '2 of 3 layers'):
        assert text in str(report)


def test_report_tells_the_policy_of_all_layers():
    model = make_net()
    report = quantize_(model, dict(
        weight=dict(bits=2), activation=dict(bits=4), rules=[
            dict(match='conv1', weight=dict(bits=8), activation=dict(bits=8)),
            dict(match='fc', skip=True)]))
    expected = ('[weight,activation] bits: [2,4]: 1 layers; [8,8]: conv1; '
                'float: fc')
    assert report.policy() == expected
    assert str(report).endswith(expected)


def test_policy_names_a_few_of_many_layers():
    model = nn.Sequential(nn.Linear(30, 30),
                          *(nn.Linear(2, 2) for _ in range(10)))
    report = quantize_(model, dict(weight=dict(bits=2), rules=[
        dict(match='0', weight=dict(bits=3))]))
    assert report.policy() == (
        '[weight,activation] bits: [3,float]: 1 layers; [2,float]: '
        '1, 2, 3, 4, 5, 6, 7, 8 and 2 more')


def test_k_of_weights_is_that_of_the_bits_of_each_layer():
    model = nn.Sequential(*(nn.Conv2d(4, 4, 3) for _ in range(4)))
    rules = [dict(match='0', weight=dict(bits=8)),
             dict(match='1', weight=dict(k=4.)),
             dict(match='2', weight=dict(bits=5, k=None))]
    for k, expected in ((None, [3, 4, 3, 2]), (2.5, [2.5, 4, 3, 2.5])):
        net = copy.deepcopy(model)
        quantize_(net, dict(weight=dict(bits=2, k=k), rules=rules))
        assert [net[i].weight_quantizer.k for i in range(4)] == expected


class Parts(nn.ModuleDict):
    """A model whose parts are read by name."""


@pytest.mark.parametrize('config', CONFIGS)
def test_trace_tells_signs_calls_macs_and_shared_inputs(config):
    model = Parts(dict(net=make_net(), twin=nn.Conv2d(3, 2, 1)))
    report = quantize_(model, config)
    model['net'].bn1.eval()
    modes = [module.training for module in model.modules()]
    x = batch()

    def forward():
        model['net'](x), model['twin'](x)

    traces = trace_layers(model, report.layers, forward)
    with torch.inference_mode():
        forward_traces = trace_layers(model, report.layers, forward)
    assert traces == forward_traces
    assert [module.training for module in model.modules()] == modes
    conv1, fc = traces['net.conv1'], traces['net.fc']
    assert conv1.calls == 1 and conv1.signed and not fc.signed
    assert conv1.same_input == ['twin'] and fc.same_input == []
    assert conv1.macs == 4 * 6 * 36 * 27 and fc.macs == 4 * 5 * 6


def test_a_quantized_checkpoint_without_its_thresholds_is_refused():
    config = dict(weight=dict(bits=4), activation=dict(bits=4))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3))
    quantize_(model, config)
    state_dict = model.state_dict()
    state_dict = {key: value for key, value in state_dict.items()
                  if not key.startswith('1.input_quantizer')}
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match='1.input_quantizer.clip'):
        model.load_state_dict(state_dict)
    assert all(torch.equal(before[key], value)
               for key, value in model.state_dict().items())


def test_layers_that_are_called_with_keywords_are_traced():
    model = nn.MultiheadAttention(8, 2, batch_first=True)
    quantize_(model, dict(weight=dict(bits=4)))
    x = torch.randn(1, 3, 8)
    plans = make_plan(nn.MultiheadAttention(8, 2, batch_first=True),
                      QuantConfig.from_dict(dict(weight=dict(bits=4))))
    traces = trace_layers(plans[0].module, plans, lambda: plans[0].module(
        query=x, key=x, value=x))
    assert traces[plans[0].name].calls == 1


class Pair(nn.Identity):

    def forward(self, x):
        return x, x


def test_an_output_that_is_no_tensor_is_named_by_the_trace():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), Pair())
    plans = make_plan(model, QuantConfig.from_dict(
        dict(residual=dict(outputs=['1']))))
    with pytest.raises(ValueError, match='1.output_quantizer cannot .* a '
                       'Pair returns, a tuple; residual.outputs takes'):
        trace_layers(model, plans, lambda: model(torch.randn(1, 3, 6, 6)))
    assert not any(module._forward_hooks for module in model)


def test_a_model_without_parameters_can_have_outputs_of_8_bits():
    model = nn.Sequential(nn.ReLU())
    quantize_(model, dict(residual=dict(outputs=['0'])))
    x = torch.linspace(-1, 1, 101)
    calibrate(model, [lambda: model(x)])
    rounded = model.eval()(x)
    assert not torch.equal(rounded, x.relu())
    assert (rounded - x.relu()).abs().max() < .5 / 127


class TwoOutputs(nn.Conv2d):

    def forward(self, xs):
        return [super(TwoOutputs, self).forward(x) for x in xs], 1


class NoTensor(nn.Conv2d):

    def forward(self, x):
        return 'nothing'


@pytest.mark.parametrize('kind, macs', [(TwoOutputs, 4 * 36 * 3),
                                        (NoTensor, 0)])
def test_layers_of_users_that_give_no_single_tensor_are_traced(kind, macs):
    model = kind(3, 4, 1)
    plans = make_plan(model, QuantConfig.from_dict(
        dict(weight=dict(bits=4), activation=dict(bits=4))))
    trace, = trace_layers(model, plans, lambda: model(
        [torch.rand(1, 3, 6, 6)])).values()
    assert (trace.calls, trace.macs) == (1, macs)


def test_macs_of_transposed_convolutions_are_counted():
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 2, 2), nn.Conv2d(4, 5, 1))
    plans = make_plan(model, QuantConfig.from_dict(
        dict(weight=dict(bits=4), activation=dict(bits=4))))
    traces = trace_layers(model, plans, lambda: model(torch.randn(1, 3, 6, 6)))
    assert traces['0'].macs == 3 * 36 * 4 * 4
    assert traces['1'].macs == 144 * 4 * 5


def test_the_report_tells_the_sign_of_inputs_once_data_was_seen():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    report = quantize_(model, dict(activation=dict(bits=4)))
    assert [row['input'] for row in report.rows()] == 2 * ['not seen yet']
    x = torch.randn(2, 3, 9, 9)
    calibrate(model, [lambda: model(x)])
    assert [row['input'] for row in report.rows()] == ['signed', 'unsigned']


def test_the_report_tells_who_reads_the_same_tensor_once_data_was_seen():
    net = Parts(dict(a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1),
                     c=nn.Conv2d(4, 4, 1), d=nn.Conv2d(4, 4, 1)))
    report = quantize_(net, dict(weight=dict(bits=4)))
    assert not any(row['reads the same as'] for row in report.rows())
    x = torch.randn(2, 3, 4, 4)
    for _ in range(2):  # told once, however often it runs
        y = net['a'](x) + net['b'](x)
        net['c'](y)
        net['d'](y.mul_(2))  # another value in the same tensor
    copied = copy.deepcopy(net)
    shared = [row['reads the same as'] for row in report.rows()]
    assert shared == ['b', 'a', '', '']
    assert copied['a'].same_input == ['b']


# -- wrappers -----------------------------------------------------------------

class DistributedDataParallel(nn.Module):
    """What tells torch's: its name; that itself wants a process group."""

    def __init__(self, module):
        super().__init__()
        self.module = module


class MMDistributedDataParallel(DistributedDataParallel):
    pass


@pytest.mark.parametrize('wrap, inside', [
    (nn.DataParallel, 'module'), (DistributedDataParallel, 'module'),
    (MMDistributedDataParallel, 'module'),
    (lambda model: torch.compile(model, backend='eager'), '_orig_mod')],
    ids=['data parallel', 'distributed', 'of mm', 'compiled'])
def test_wrappers_are_refused_in_one_sentence(wrap, inside):
    model = nn.Sequential(nn.Linear(4, 4))
    wrapped = wrap(model)
    with pytest.raises(ValueError, match=(
            rf'quantize_ got a .* around a model: .*model\.{inside}')):
        quantize_(wrapped, dict(weight=dict(bits=4)))
    assert type(model[0]) is nn.Linear
    quantize_(getattr(wrapped, inside), dict(weight=dict(bits=4)))
    assert type(model[0]) is not nn.Linear


def test_a_model_compiled_in_place_computes_the_quantized_one():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 8)), torch.randn(3, 8)
    model.compile(backend='eager')
    before = model(x)
    expected = nn.Sequential(copy.deepcopy(model[0]))
    quantize_(expected, dict(weight=dict(bits=2)))
    quantize_(model, dict(weight=dict(bits=2)))
    torch.testing.assert_close(model(x), expected(x))
    assert not torch.allclose(model(x), before, atol=1e-2)


def test_a_model_without_values_is_refused():
    with torch.device('meta'):
        model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match='without values .on the meta device'):
        quantize_(model, W4A4)


def test_a_model_that_was_emptied_loads_its_checkpoint():
    """Its own schemes are whatever was in memory."""
    model, other = make_net(), make_net()
    for each in (model, other):
        quantize_(each, W4A4)
    train(model)
    other.to('meta').to_empty(device='cpu')
    get_state(other).schemes.fill_(7)
    other.load_state_dict(model.state_dict())
    assert same(model.state_dict(), other.state_dict())
