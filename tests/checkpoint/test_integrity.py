"""Damaged, foreign and hostile files: one error, and the model as it was."""
import copy
import os
import re
import textwrap

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.runner import load_checkpoint
from torch import nn

import gdrq_mm
from gdrq_mm.checkpoint import FORMAT, NAME, digest, open_seal, pack, seal
from gdrq_mm.training import get_state


def make_float(width=6, classes=5, norm=True, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.BatchNorm2d(width) if norm else nn.ReLU(),
        nn.Flatten(), nn.Linear(width * 36, classes))


def make_model(bits=2, **options):
    model = make_float(**options)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=bits),
                                  activation=dict(bits=4)))
    return model


def train(model):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model(torch.randn(4, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    return model


@pytest.fixture(scope='module')
def trained():
    return train(make_model())


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('files')


@pytest.fixture(scope='module')
def published(trained, folder):
    """A packed file with metadata."""
    path = folder / 'published.pth'
    torch.save(dict(meta=dict(cfg='x = 1\n' * 50, gdrq_format='packed'),
                    state_dict=pack(trained)), path)
    return path


def load(model, path, content):
    path.write_bytes(content)
    load_checkpoint(model, str(path), map_location='cpu')


def snapshot(model):
    return copy.deepcopy(model.state_dict()), get_state(model).phase


def assert_unchanged(model, before):
    state, phase = snapshot(model)
    assert phase == before[1] and state.keys() == before[0].keys()
    for key, value in state.items():
        assert torch.equal(value, before[0][key]), key


@settings(max_examples=200, deadline=None)
@given(position=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_refused_or_without_effect(
        position, bit, published, trained, folder):
    content = bytearray(published.read_bytes())
    content[int(position * len(content))] ^= 1 << bit
    model = make_model(seed=1)
    before = snapshot(model)
    try:
        load(model, folder / 'flipped.pth', bytes(content))
    except RuntimeError as error:
        assert re.search('Nothing was loaded|No state_dict found', str(error))
        assert_unchanged(model, before)
    else:  # in what the container says of itself
        expected = make_model(seed=2)
        expected.load_state_dict(pack(trained))
        assert_unchanged(model, snapshot(expected))
        assert torch.load(folder / 'flipped.pth')['meta'] == torch.load(
            published)['meta']


@settings(max_examples=50, deadline=None)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_refused(share, published, folder):
    model = make_model(seed=1)
    before = snapshot(model)
    content = published.read_bytes()
    with pytest.raises(RuntimeError, match='short.pth .* cut off'):
        load(model, folder / 'short.pth', content[:int(share * len(content))])
    assert_unchanged(model, before)


def damaged(trained, change):
    state_dict = pack(trained)
    change(state_dict)
    return state_dict


FORMAT_KEY, DIGEST_KEY = f'{NAME}.format', f'{NAME}.digest'
CHANGES = {
    'hash inside does not fit': lambda state: state['1.bias'].add_(1),
    '1.bias: checkpoint has none': lambda state: state.pop('1.bias'),
    'hash inside does': lambda state: state.pop(DIGEST_KEY),
    'model has none': lambda state: state.update(extra=torch.ones(1)),
    f'of format {FORMAT + 1}, this gdrq_mm reads format 1 to {FORMAT}':
        lambda state: state[FORMAT_KEY].add_(1),
    '1.bias is a int, the model has': lambda state: state.update(
        {'1.bias': 3}),
    'hash inside does not fit its': lambda state: state.update(
        {DIGEST_KEY: state[DIGEST_KEY].float()}),
    'no format version': lambda state: [state.pop(key) for key in (
        FORMAT_KEY, DIGEST_KEY)],
}


@pytest.mark.parametrize('message', CHANGES)
def test_a_changed_file_is_refused_in_words(message, trained):
    model = make_model(seed=1)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=message) as error:
        model.load_state_dict(damaged(trained, CHANGES[message]))
    assert 'loaded' in str(error.value) or 'format' in str(error.value)
    assert_unchanged(model, before)


def test_a_checkpoint_of_something_else_is_refused():
    """A flipped bit in the name 'state_dict' gives such a one."""
    model = make_model()
    before = snapshot(model)
    with pytest.raises(RuntimeError, match="no entry of this model.*'meta'"):
        model.load_state_dict(dict(meta=torch.ones(1)), strict=False)
    assert_unchanged(model, before)


@pytest.mark.parametrize('other, message', [
    (dict(bits=4), 'another quantization.*2 bits.*4 bits'),
    (dict(width=8), r'another architecture.*0.bias: checkpoint \(6,\), model '
     r'\(8,\)'),
    (dict(classes=4), r'another architecture.*3.bias'),
    (dict(norm=False), '1.bias: checkpoint .6,., model has none')])
def test_a_model_of_another_kind_refuses_a_packed_file(other, message,
                                                       trained):
    model = make_model(**other)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=f'(?s){message}'):
        # Not strict, as the packages' tools load.
        model.load_state_dict(pack(trained), strict=False)
    assert_unchanged(model, before)


class MadeInForward(nn.Module):
    """Like mmseg's Ham head without random bases."""

    def forward(self, x):
        if not hasattr(self, 'bases'):
            self.register_buffer('bases', torch.rand(1, x.shape[1], 1, 1))
        return x * self.bases


def test_buffers_that_a_forward_makes(trained):
    def make():
        model = make_model()
        model.insert(1, MadeInForward())
        return model

    model, fresh, x = make(), make(), torch.randn(2, 3, 8, 8)
    expected = train(model).eval()(x)
    packed = pack(model)
    before = snapshot(fresh)
    with pytest.raises(RuntimeError, match=(
            r'(?s)1.bases: checkpoint \(1, 6, 1, 1\), model has none.*'
            'What a module makes in its first forward is there after it')):
        fresh.load_state_dict(packed)
    assert_unchanged(fresh, before)
    fresh(x)
    fresh.load_state_dict(packed)
    assert torch.equal(fresh.eval()(x), expected)


def test_modules_that_got_a_second_name_while_training(trained):
    """mmdet's DDQ hands its decoder parts of its head in the forward."""
    model = train(make_model())
    model[0].part = model[3]
    packed = pack(model.eval())
    fresh = make_model(seed=1)
    assert {'0.part.weight_packed', '3.weight_packed'} <= packed.keys()
    fresh.load_state_dict(packed, strict=False)  # as the packages load
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(fresh.eval()(x), model(x))
    packed['0.part.bias'] = packed['0.part.bias'] + 1
    before = snapshot(fresh)
    with pytest.raises(RuntimeError, match='0.part.bias: checkpoint .*none'):
        fresh.load_state_dict(packed, strict=False)
    assert_unchanged(fresh, before)


@pytest.fixture(scope='module')
def latent(trained, folder):
    """A file that keeps the float weights."""
    state_dict = dict(trained.state_dict())
    seal(state_dict, NAME)
    torch.save(dict(state_dict=state_dict), folder / 'latent.pth')
    return folder / 'latent.pth'


def test_a_latent_file_is_sealed(latent, trained):
    state_dict = torch.load(latent, weights_only=True)['state_dict']
    model = make_model(seed=1)
    model.load_state_dict(dict(state_dict))
    assert_unchanged(model, snapshot(trained))
    state_dict['0.weight'] = state_dict['0.weight'] + 1e-6
    with pytest.raises(RuntimeError, match='damaged'):
        make_model().load_state_dict(state_dict)


def test_a_latent_file_starts_a_model_with_another_head(latent, trained):
    model = make_model(classes=8, seed=1)
    head = model[3].weight.detach().clone()
    load_checkpoint(model, str(latent), map_location='cpu')
    assert torch.equal(model[0].weight, trained[0].weight)
    assert torch.equal(model[0].weight_quantizer.clip,
                       trained[0].weight_quantizer.clip)
    assert torch.equal(model[3].weight, head)
    # The clip values of the other head have the same shape, but are not its.
    assert trained[3].weight_quantizer.clip.shape == (2, )
    assert not model[3].weight_quantizer.clip.any()  # set as it trains
    assert train(model)[3].weight_quantizer.clip.all()


def test_the_advice_for_other_bits_makes_a_float_checkpoint(latent, trained,
                                                            tmp_path):
    model = make_model(bits=4, seed=1)
    with pytest.raises(RuntimeError, match='another quantization') as error:
        load_checkpoint(model, str(latent), map_location='cpu')
    code = textwrap.dedent(str(error.value).partition('not packed:\n')[2])
    new = str(tmp_path / 'float.pth')
    exec(code, dict(path=str(latent), new_path=new))
    load_checkpoint(model, new, map_location='cpu', strict=True)
    assert torch.equal(model[0].weight, trained[0].weight)
    assert not model[0].weight_quantizer.clip.any()  # set as it trains
    plain = make_float(seed=2)
    load_checkpoint(plain, new, map_location='cpu', strict=True)
    assert torch.equal(plain[3].weight, trained[3].weight)


class Hostile:

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path), )


@pytest.mark.parametrize('place', ['meta', 'state_dict'])
def test_a_file_with_code_in_it_is_refused_and_not_run(place, trained,
                                                       tmp_path):
    content = dict(meta={}, state_dict=pack(trained))
    content[place]['code'] = Hostile(tmp_path / 'ran')
    torch.save(content, tmp_path / 'hostile.pth')
    model = make_model(seed=1)
    before = snapshot(model)
    with pytest.raises(RuntimeError, match=r'asks for \w+\.mkdir'):
        load_checkpoint(model, str(tmp_path / 'hostile.pth'))
    assert not (tmp_path / 'ran').exists()
    assert_unchanged(model, before)


@given(values=st.lists(st.integers(0, 255), min_size=1, max_size=20),
       index=st.integers(0, 19), kind=st.sampled_from(
           [torch.uint8, torch.int64, torch.float32, torch.bfloat16,
            torch.bool]))
def test_the_hash_tells_values_names_shapes_and_dtypes(values, index, kind):
    one = torch.tensor(values).to(kind)
    other = one.clone()
    index %= len(values)
    other[index] = ~one[index] if kind is torch.bool else one[index] + 16
    assert digest(dict(a=one)) == digest(dict(a=one.clone()))
    different = [dict(a=other), dict(b=one), dict(a=one[None]),
                 dict(a=one, b=one), dict(a=one.double())]
    assert len({digest(dict(a=one)), *map(digest, different)}) == 6


def test_a_seal_opens_below_a_prefix():
    state_dict = dict(weight=torch.ones(2))
    seal(state_dict, 'seal')
    below = {f'model.{key}': value for key, value in state_dict.items()}
    below['other'] = torch.ones(1)
    open_seal(below, 'model.', 'seal')
    assert set(below) == {'model.weight', 'other'}
