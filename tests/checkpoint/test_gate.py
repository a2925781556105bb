"""One gate for every way in: what is refused changes nothing."""
import copy
import json

import pytest
import torch
from mmengine.runner.checkpoint import load_state_dict as mmengine_load
from torch import nn

import gdrq_mm
from gdrq_mm.checkpoint import (
    NAME,
    CheckpointError,
    check_whole,
    digest,
    float_weights,
    pack,
    part_of,
    seal,
)
from gdrq_mm.training import get_state

CONFIG = dict(weight=dict(bits=2, levels='odd'), activation=dict(bits=4))


class Net(nn.Module):
    """A backbone and a head, with names that ours collide with."""

    def __init__(self, seed=0, classes=3):
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, classes)
        self.input_quantizer = nn.Linear(2, 2, bias=False)
        self.quantization = nn.ParameterDict(dict(
            weight_packed=nn.Parameter(torch.ones(3))))
        self.register_buffer('mask', torch.tensor([0., -torch.inf]))

    def forward(self, x):
        return self.head(self.backbone(x).mean((2, 3)))


SKIPPED = dict(CONFIG, rules=[dict(match='input_quantizer', skip=True)])


def make(seed=0, config=SKIPPED, **options):
    model = Net(seed, **options)
    gdrq_mm.quantize_(model, config)
    return model


def train(model, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), .1)
    for seed in range(steps):
        torch.manual_seed(seed)
        model(torch.randn(4, 3, 8, 8)).square().sum().backward()
        optimizer.step()
    return model


@pytest.fixture(scope='module')
def trained():
    return train(make())


def snapshot(model):
    states = [get_state(part) for part in model.modules()]
    return copy.deepcopy(model.state_dict()), [
        state.phase for state in states if state is not None]


def assert_refused(model, state_dict, message, load=None):
    """By torch's and by mmengine's manner of loading."""
    before = snapshot(model)
    given = dict(state_dict)
    with pytest.raises(CheckpointError, match=message) as error:
        (load or model.load_state_dict)(state_dict, strict=False)
    assert 'othing was loaded' in str(error.value).replace('\n', ' ') or \
        'Use the config' in str(error.value)
    after = snapshot(model)
    assert after[1] == before[1]
    # Bytes: NaN is not equal to itself.
    assert all(torch.equal(value, before[0][key])
               for key, value in after[0].items())
    assert state_dict.keys() == given.keys()


def kinds_of(model):
    """State dicts of all kinds, as a training and publishing write them."""
    latent = {key: value.clone() for key, value in model.state_dict().items()}
    training = dict(latent)
    seal(latent, NAME)
    return dict(packed=pack(model), latent=latent, training=training)


def resealed(state_dict):
    if f'{NAME}.digest' in state_dict:
        for part in ('format', 'digest'):
            del state_dict[f'{NAME}.{part}']
        seal(state_dict, NAME)
    return state_dict


KINDS = ('packed', 'latent', 'training')


@pytest.mark.parametrize('kind', KINDS)
def test_what_is_intact_loads_and_gives_the_same_outputs(kind, trained):
    model = make(1)
    model.load_state_dict(kinds_of(trained)[kind])
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.eval()(x), copy.deepcopy(trained).eval()(x))
    assert torch.equal(model.input_quantizer.weight,
                       trained.input_quantizer.weight)


# An illegal value of every kind, by someone who seals the file anew.
VALUES = {
    'backbone.0.weight_quantizer.clip': [
        (torch.nan, 'NaN'), (torch.inf, 'infinite'), (-1., 'value of -1')],
    'head.input_quantizer.clip': [
        (torch.nan, 'NaN'), (-torch.inf, 'infinite'), (-.5, 'value of -0.5')],
    'head.input_quantizer.num_updates': [
        (-5, 'value of -5'), (2**62, 'allowed: 0 to')],
    'backbone.1.running_var': [(torch.nan, 'NaN'), (-1., 'value of -1')],
    'backbone.1.running_mean': [(torch.inf, 'infinite')],
    'head.bias': [(torch.nan, 'NaN')],
    f'{NAME}.phase_index': [(2, r'tensor\(2\), allowed: .* 0'),
                            (-1, r'tensor\(-1\), allowed')],
}


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('key', VALUES)
def test_illegal_values_are_refused(kind, key, trained):
    for value, message in VALUES[key]:
        state_dict = kinds_of(trained)[kind]
        state_dict[key] = state_dict[key].clone()
        state_dict[key].reshape(-1)[0] = value
        assert_refused(make(1), resealed(state_dict), message)


def test_codes_beyond_the_levels_are_refused(trained):
    state_dict = pack(trained)
    state_dict['head.weight_packed'][0, 0] |= 3  # of 2 bits: -1, 0, 1
    assert_refused(make(1), resealed(state_dict),
                   'head.weight_packed has code 2, allowed at 2 bits: -1 to 1')


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('change, message', [
    (lambda value: value.to(torch.complex64), 'complex'),
    (lambda value: value.long(), 'int64'),
    (lambda value: value.to_sparse(), 'sparse'),
    (lambda value: 'text', 'a str'),
    (lambda value: None, 'a NoneType')])
def test_other_kinds_of_values_change_no_layer_before(kind, change, message,
                                                      trained):
    """The last entry is refused; those before it are not loaded either."""
    state_dict = kinds_of(trained)[kind]
    state_dict['head.bias'] = change(state_dict['head.bias'])
    assert_refused(make(1), state_dict, f'(?s)head.bias.*{message}')


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('schemes', [
    torch.zeros(3), torch.tensor(list(b'[1]'), dtype=torch.uint8),
    torch.tensor(list(b'{"head": 3}'), dtype=torch.uint8),
    torch.tensor(list(b'{' * 10**5), dtype=torch.uint8),
    torch.tensor(list(b'[' * 10**5), dtype=torch.uint8),
    torch.tensor([255], dtype=torch.uint8), torch.tensor(5), 'text', None])
def test_schemes_that_are_none_are_refused(kind, schemes, trained):
    state_dict = kinds_of(trained)[kind]
    state_dict[f'{NAME}.schemes'] = schemes
    assert_refused(make(1), state_dict, 'schemes|no JSON|phase')


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('phase', [
    torch.tensor(1.), torch.tensor([1, 1]), torch.tensor(True),
    torch.zeros(1, dtype=torch.long).expand(2**30), 'text', None])
def test_phases_that_are_none_are_refused(kind, phase, trained):
    state_dict = kinds_of(trained)[kind]
    state_dict[f'{NAME}.phase_index'] = phase
    assert_refused(make(1), state_dict, 'phase_index')


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('key', [
    'head.bias', 'extra', 'backbone.0.weight_quantizer.clip',
    f'{NAME}.schemes', f'{NAME}.digest', f'{NAME}.format'])
def test_a_claimed_size_costs_neither_time_nor_memory(kind, key, trained):
    if kind == 'training' and key in ('extra', 'head.bias'):
        return  # not read: a head of another shape is not loaded
    state_dict = kinds_of(trained)[kind]
    state_dict[key] = torch.zeros(1).expand(2**36)
    with pytest.raises(CheckpointError):  # and no MemoryError: 256 GiB
        make(1).load_state_dict(state_dict, strict=False)


@pytest.mark.parametrize('kind', KINDS)
def test_missing_entries_of_quantized_layers_are_refused(kind, trained):
    for key in ('head.weight_packed' if kind == 'packed' else 'head.weight',
                'head.weight_quantizer.clip', 'head.input_quantizer.clip'):
        state_dict = kinds_of(trained)[kind]
        del state_dict[key]
        assert_refused(make(1), resealed(state_dict),
                       f'(?s){key}' if kind == 'training' else 'missing|none')


@pytest.mark.parametrize('kind', KINDS)
def test_thresholds_without_schemes_are_never_zeroed(kind, trained):
    state_dict = kinds_of(trained)[kind]
    for part in ('schemes', 'phase_index', 'format', 'digest'):
        state_dict.pop(f'{NAME}.{part}', None)
    assert_refused(train(make(1)), state_dict, 'not the schemes')


def test_a_wrapper_that_was_converted_is_named_as_the_reason(trained):
    """Its state dict without the wrapper's part has no schemes."""
    wrapper = nn.Sequential()
    wrapper.module = Net()
    gdrq_mm.quantize_(wrapper, dict(CONFIG, rules=[
        dict(match='module.input_quantizer', skip=True)]))
    assert_refused(make(1), wrapper.module.state_dict(), 'wrapper')


@pytest.mark.parametrize('kind', KINDS)
def test_parts_load_alone_with_their_schemes(kind, trained):
    state_dict = kinds_of(trained)[kind]
    model = make(1)
    before = snapshot(model)[0]
    model.backbone.load_state_dict(part_of(state_dict, 'backbone.'))
    for key, value in model.state_dict().items():
        source = trained.state_dict() if key.startswith('backbone') else before
        if not key.endswith('0.weight'):
            assert torch.equal(value, source[key]), key
    assert torch.equal(model.backbone[0].quantized_weight(),
                       trained.backbone[0].quantized_weight())
    part = {key[9:]: value for key, value in state_dict.items()
            if key.startswith('backbone.')}
    assert_refused(model, part, 'part_of', model.backbone.load_state_dict)


@pytest.mark.parametrize('kind', KINDS)
def test_parts_of_other_bits_or_with_edited_entries_are_refused(kind,
                                                                trained):
    state_dict = kinds_of(trained)[kind]
    model = make(1, dict(SKIPPED, weight=dict(bits=4)))
    assert_refused(model, part_of(state_dict, 'backbone.'), '2 bits.*4 bits',
                   model.backbone.load_state_dict)
    # Also of a layer that is the part itself.
    assert_refused(model, part_of(state_dict, 'head.'), '2 bits.*4 bits',
                   model.head.load_state_dict)
    state_dict['backbone.0.weight_quantizer.clip'] += 1
    if kind != 'training':
        with pytest.raises(CheckpointError, match='hash inside'):
            part_of(state_dict, 'backbone.')


def test_float_weights_into_a_part_reset_its_thresholds_only(trained):
    model, source = copy.deepcopy(trained), Net(2)
    model.backbone.load_state_dict(source.backbone.state_dict())
    assert not model.backbone[0].weight_quantizer.clip.any()
    assert torch.equal(model.head.input_quantizer.clip,
                       trained.head.input_quantizer.clip)


def test_thresholds_of_layers_that_are_not_loaded_stay(trained):
    model = copy.deepcopy(trained)
    head = {f'head.{key}': value for key, value in
            Net(2).head.state_dict().items()}
    model.load_state_dict(head, strict=False)
    assert torch.equal(model.head.weight, head['head.weight'])
    assert not model.head.weight_quantizer.clip.any()
    for key, value in model.state_dict().items():
        if not key.startswith('head'):
            assert torch.equal(value, trained.state_dict()[key]), key


def load_loosely(model, state_dict):
    """By torch's own method."""
    model.load_state_dict(state_dict, strict=False)


@pytest.mark.parametrize('load', [check_whole, load_loosely])
def test_what_one_of_two_models_refuses_is_loaded_into_neither(load, trained):
    """A student and a teacher in one file."""
    pair = nn.ModuleDict(dict(student=make(1), teacher=make(2)))
    state_dict = {f'{name}.{key}': value for name in pair
                  for key, value in trained.state_dict().items()}
    load(pair, state_dict)
    state_dict['teacher.head.bias'] = torch.full((3, ), torch.nan)
    state_dict['student.head.bias'] = torch.full((3, ), 5.)
    before = snapshot(pair)
    with pytest.raises(CheckpointError, match='head.bias has 3 NaN'):
        load(pair, state_dict)
    after = snapshot(pair)
    assert all(torch.equal(value, before[0][key])
               for key, value in after[0].items())


@pytest.mark.parametrize('load', [check_whole, load_loosely])
@pytest.mark.parametrize('kind', KINDS)
def test_a_float_model_refuses_files_of_quantized_ones(kind, load, trained):
    state_dict = kinds_of(trained)[kind]
    plain = Net(1)
    before = copy.deepcopy(plain.state_dict())
    with pytest.raises(CheckpointError, match='this model is float'):
        load(plain, state_dict)
    inside = nn.ModuleDict(dict(teacher=plain))
    below = {f'teacher.{key}': value for key, value in state_dict.items()}
    with pytest.raises(CheckpointError, match='teacher is float'):
        load(inside, below)
    assert all(torch.equal(value, before[key])
               for key, value in plain.state_dict().items())
    load(make(1), state_dict)  # its own gate looks at it
    load(nn.Linear(2, 2), below)  # nothing there is loaded


def test_names_of_the_users_own_are_not_ours(trained):
    """``input_quantizer``, ``weight_packed`` and ``quantization...``."""
    weights = float_weights(trained.state_dict())
    assert weights.keys() == Net().state_dict().keys()
    plain = Net(1)
    plain.load_state_dict(weights)
    check_whole(plain, weights)
    assert float_weights(weights).keys() == weights.keys()
    model = make(2)
    model.load_state_dict(weights)  # a float checkpoint, not a packed one
    assert torch.equal(model.input_quantizer.weight,
                       trained.input_quantizer.weight)
    with pytest.raises(CheckpointError, match='packed: it holds codes'):
        float_weights(pack(trained))


def test_files_of_format_1_still_open(trained):
    state_dict = pack(trained)
    for part in ('format', 'digest'):
        del state_dict[f'{NAME}.{part}']
    state_dict[f'{NAME}.format'] = torch.tensor(1)
    state_dict[f'{NAME}.digest'] = torch.tensor(
        list(digest(state_dict)), dtype=torch.uint8)
    model = make(1)
    model.load_state_dict(state_dict)
    assert torch.equal(model.head.quantized_weight(),
                       trained.head.quantized_weight())


def test_schemes_are_stored_as_json(trained):
    schemes = json.loads(bytes(trained.state_dict()[
        f'{NAME}.schemes'].tolist()))
    assert list(schemes) == sorted(schemes) == ['backbone.0', 'head']
    for scheme in schemes.values():  # the same model gives the same bytes
        assert list(scheme) == sorted(scheme)


def test_a_code_of_zero_beyond_the_codes_is_refused():
    config = dict(weight=dict(bits=4), activation=dict(
        bits=4, threshold='mse', asymmetric=True))
    models = [nn.Sequential(nn.Linear(8, 4)) for _ in range(2)]
    for model in models:
        gdrq_mm.quantize_(model, config)
    gdrq_mm.calibrate(models[0], [lambda: models[0](torch.randn(32, 8))])
    entry = '0.input_quantizer.zero'
    state_dict = copy.deepcopy(models[0].state_dict())
    for value in (15., 15.000001):  # averages round
        state_dict[entry].fill_(value)
        models[1].load_state_dict(state_dict)
    state_dict[entry].fill_(16.)
    with pytest.raises(CheckpointError, match='zero has a value of 16, '
                       'allowed: at most 15.25'):
        models[1].load_state_dict(state_dict)
    assert models[1].state_dict()[entry] < 16


# -- files of earlier versions ------------------------------------------------


ADDED = 'input_quantizer.zero'


def test_a_file_from_before_zero_points_were_the_default_has_signed_codes(
        trained):
    """Layers with negative inputs keep the codes they were trained with."""
    state_dict, model = trained.state_dict(), make(1)
    older = {key: value for key, value in state_dict.items()
             if not key.endswith(ADDED)}
    assert len(older) < len(state_dict)
    model.load_state_dict(dict(older))
    quantizer = model.backbone[0].input_quantizer
    assert quantizer.is_signed and not quantizer.has_zero_point
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.eval()(x), trained.eval()(x))
    for key in (key for key in state_dict if key.endswith(ADDED)):
        damaged = dict(state_dict)
        del damaged[key]
        assert_refused(make(1), damaged, 'missing')


@pytest.mark.parametrize('strict', [True, False])
@pytest.mark.parametrize('theirs, ours, told', [
    (None, False, 'has 2.input_quantizer.zero, for which the quantizer of the '
     r'config has no place: .* \(of a code of zero: its asymmetric\)'),
    (True, False, 'mse, zero point.*config .*mse, 1 sites'),
    (False, None, None)])
def test_codes_of_another_range_are_refused(theirs, ours, told, strict):
    """A width of unsigned codes is no bound of signed ones."""
    models = []
    for asymmetric in (theirs, ours):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 4), nn.SiLU(), nn.Linear(4, 2))
        gdrq_mm.quantize_(model, dict(weight=dict(bits=4), rules=[
            dict(match='2', activation=dict(bits=4, asymmetric=asymmetric))]))
        gdrq_mm.calibrate(model, [lambda: model(9 * torch.randn(64, 3))])
        models.append(model)
    before = snapshot(models[1])
    if told is None:  # signed codes remain what they are
        models[1].load_state_dict(models[0].state_dict(), strict=strict)
        x = torch.randn(64, 3)
        assert torch.equal(*(model.eval()(x) for model in models))
        return
    with pytest.raises(CheckpointError, match=told):
        models[1].load_state_dict(models[0].state_dict(), strict=strict)
    after = snapshot(models[1])
    assert all(torch.equal(value, before[0][key])
               for key, value in after[0].items())


# -- what torch copies before it raises ---------------------------------------


def without_a_bias(entries):
    del entries[next(key for key in entries if key.endswith('bias'))]


def with_another(entries):
    entries['another.weight'] = torch.zeros(2)


def with_a_longer_bias(entries):
    key = next(key for key in entries if key.endswith('bias'))
    entries[key] = torch.zeros(len(entries[key]) + 1)


def assert_unchanged_by(load, message):
    model = make(1)
    before = snapshot(model)
    with pytest.raises(CheckpointError, match=message):
        load(model)
    after = snapshot(model)
    assert after[1] == before[1]
    assert all(torch.equal(value, before[0][key])
               for key, value in after[0].items())


@pytest.mark.parametrize('load', [
    lambda model, entries: model.load_state_dict(entries),
    lambda model, entries: mmengine_load(model, entries, strict=True)],
    ids=['torch', 'mmengine'])
@pytest.mark.parametrize('change', [without_a_bias, with_another,
                                    with_a_longer_bias])
def test_a_strict_load_refuses_other_float_entries_as_a_whole(
        change, load, trained):
    entries = kinds_of(trained)['training']
    change(entries)
    assert_unchanged_by(lambda model: load(model, entries),
                        'of another architecture.*1 entries differ')


def test_torch_refuses_other_shapes_as_a_whole_if_not_strict(trained):
    entries = kinds_of(trained)['training']
    with_a_longer_bias(entries)
    with_another(entries)
    assert_unchanged_by(
        lambda model: model.load_state_dict(entries, strict=False),
        '1 entries differ')


@pytest.mark.parametrize('change', [without_a_bias, with_another])
def test_other_names_load_where_nobody_raises(change, trained):
    entries = kinds_of(trained)['training']
    change(entries)
    for load in (lambda model: model.load_state_dict(entries, strict=False),
                 lambda model: mmengine_load(model, entries)):
        model = make(1)
        load(model)
        name, layer = next(iter(get_state(model).layers.items()))
        assert torch.equal(layer.latent_weight, entries[f'{name}.weight'])


def test_extra_state_of_other_modules_is_no_entry_of_ours(trained):
    """What modules put there need be no tensor."""

    class Extra(nn.Module):

        def get_extra_state(self):
            return dict(a=1)

        def set_extra_state(self, state):
            self.found = state

        def forward(self, x):
            return x

    models = [nn.Sequential(nn.Linear(4, 4), Extra()) for _ in range(2)]
    for model in models:
        gdrq_mm.quantize_(model, dict(weight=dict(bits=4)))
    models[1].load_state_dict(models[0].state_dict())
    assert models[1][1].found == dict(a=1)


class Resized(nn.Module):
    """Takes tables of any length, as ViT position embeddings of others."""

    def __init__(self, length):
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.table = nn.Parameter(torch.zeros(length))
        self._register_load_state_dict_pre_hook(self.resize)

    def resize(self, state_dict, prefix, *_):
        key = f'{prefix}table'
        state_dict[key] = state_dict[key][:len(self.table)]

    def forward(self, x):
        return self.fc(x)


@pytest.mark.parametrize('strict', [True, False])
def test_parts_that_adapt_what_they_load_may(strict):
    models = [nn.Sequential(Resized(length)) for length in (5, 3)]
    for model in models:
        gdrq_mm.quantize_(model, dict(weight=dict(bits=4)))
    models[1].load_state_dict(models[0].state_dict(), strict=strict)
    assert torch.equal(models[1][0].fc.weight, models[0][0].fc.weight)


def detector(build_model, load_config):
    model = build_model(load_config('faster_rcnn'))
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4), rules=[
        dict(match='rpn_head*', skip=True)]))
    return model


def test_detectors_give_entries_other_names_and_refuse_other_shapes(
        build_model, load_config):
    """mmdet's detectors load what names the heads of another kind."""
    model, other = (detector(build_model, load_config) for _ in range(2))
    entries = other.state_dict()
    renamed = {key.replace('rpn_head.', 'bbox_head.', 1)
               if key.startswith('rpn_head.') else key: value
               for key, value in entries.items()}
    model.load_state_dict(renamed)
    assert torch.equal(model.rpn_head.rpn_conv.weight,
                       other.rpn_head.rpn_conv.weight)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    changed = {key: value + 1 if value.is_floating_point() else value
               for key, value in entries.items()}
    changed['rpn_head.rpn_cls.bias'] = torch.zeros(7)
    with pytest.raises(CheckpointError, match='1 entries differ'):
        model.load_state_dict(changed)
    assert all(torch.equal(value, before[key])
               for key, value in model.state_dict().items())


def test_the_innermost_load_says_what_it_demands(trained):
    entries = kinds_of(trained)['training']
    without_a_bias(entries)
    model = make(1)

    def load_state_dict(strict):
        mmengine_load(model, entries, strict=False)

    load_state_dict(strict=True)


def test_other_entries_of_a_model_inside_change_nothing_outside(trained):
    outer = nn.ModuleDict(dict(a=nn.Linear(2, 2), net=make(1)))
    state_dict = {f'net.{key}': value
                  for key, value in kinds_of(trained)['training'].items()}
    state_dict.update({'a.weight': torch.ones(2, 2), 'a.bias': torch.ones(2)})
    del state_dict['net.head.bias']
    before = snapshot(outer)
    with pytest.raises(CheckpointError, match='1 entries differ'):
        outer.load_state_dict(state_dict)
    after = snapshot(outer)
    assert all(torch.equal(value, before[0][key])
               for key, value in after[0].items())


def test_counters_that_were_averaged_load():
    """mmdet's SyncNormHook averages what normalization holds over ranks, as
    floats, and loads it."""
    model = make()
    entries = {key: value.float() for key, value in model.state_dict().items()
               if key.startswith('backbone.1.')}
    counter, = [key for key in entries if key.endswith('num_batches_tracked')]
    entries[counter] += 4
    model.load_state_dict(entries, strict=False)
    assert int(model.state_dict()[counter]) == 4
    entries[counter] = torch.zeros((), dtype=torch.bool)
    assert_refused(model, entries, 'num_batches_tracked is torch.bool')
