"""Packed weights: round trips, sizes and damaged input."""
import copy

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gdrq_mm
from gdrq_mm.checkpoint import (
    CheckpointError,
    pack,
    pack_bits,
    part_of,
    unpack_bits,
)
from gdrq_mm.training import get_state, step_

fixed = settings(max_examples=60, deadline=None, derandomize=True)


@fixed
@given(st.integers(1, 8), st.integers(1, 5), st.integers(0, 40),
       st.integers(0, 10**6))
def test_bits_are_the_little_endian_stream_of_numpy(bits, rows, columns, seed):
    values = np.random.default_rng(seed).integers(0, 2**bits, (rows, columns))
    packed = pack_bits(torch.from_numpy(values), bits)
    stream = [sum(int(value) << (bits * place)
                  for place, value in enumerate(row)) for row in values]
    width = -(-columns * bits // 8)
    expected = [list(number.to_bytes(width, 'little')) for number in stream]
    assert packed.tolist() == expected
    assert unpack_bits(packed, bits, (rows, columns)).tolist() == \
        values.tolist()


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that an operator makes."""
    bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **kwargs or {})
        for each in out if isinstance(out, (list, tuple)) else [out]:
            self.bytes = max(self.bytes, each.numel() * each.itemsize)
        return out


@pytest.mark.parametrize('bits', [2, 4, 8])
def test_packing_makes_no_tensor_larger_than_the_weight(bits):
    codes = torch.randint(0, 2**bits, (16, 999)).float()
    with Largest() as largest:
        packed = pack_bits(codes, bits)
        unpack_bits(packed, bits, codes.shape)
    assert 0 < largest.bytes <= codes.numel() * codes.itemsize


def test_packed_codes_of_another_size_are_refused():
    packed = pack_bits(torch.zeros(2, 9, dtype=torch.long), 3)
    with pytest.raises(ValueError, match=r'shape \(2, 4\), expected .*\(2, 5'):
        unpack_bits(packed, 3, (2, 11))
    with pytest.raises(ValueError, match='torch.int64'):
        unpack_bits(packed.long(), 3, (2, 9))


def make_model(bits, group_size, **weight):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(),
                          nn.Flatten(), nn.Linear(6 * 36, 5))
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=bits, group_size=group_size, **weight),
        activation=dict(bits=4)))
    return model


def train(model, steps=3):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(steps):
        loss = model(torch.randn(4, 3, 8, 8)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.mark.parametrize('trained', [True, False])
@pytest.mark.parametrize('group_size', [1, 4, 16, -1])
@pytest.mark.parametrize('bits', range(1, 9))
def test_a_packed_model_gives_the_very_same_outputs(bits, group_size, trained):
    model = make_model(bits, group_size).eval()
    if trained:
        train(model.train())
    packed = pack(model)
    copied = make_model(bits, group_size).eval()
    copied.load_state_dict(packed)
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(copied(x), model(x))
    assert packed['0.weight_packed'].numel() == 6 * -(-27 * bits // 8)
    assert '0.weight' not in packed
    # Packing it again gives the same file.
    again = pack(copied)
    assert all(torch.equal(again[key], value)
               for key, value in packed.items())


@fixed
@given(bits=st.integers(1, 8), rows=st.integers(1, 7),
       columns=st.integers(1, 9),
       group_size=st.integers(-1, 9).filter(bool),
       k=st.sampled_from([2., 3.5]),
       clip=st.sampled_from(['threshold', 'search']),
       projection=st.booleans(), trained=st.booleans(),
       exponent=st.integers(-45, 38), seed=st.integers(0, 10**6))
def test_every_weight_is_packed_exactly(bits, rows, columns, group_size, k,
                                        clip, projection, trained, exponent,
                                        seed):
    """Of any size and magnitude, in any groups, filters of zeros too."""

    def make():
        model = nn.Sequential(nn.Linear(columns, rows))
        gdrq_mm.quantize_(model, dict(weight=dict(
            bits=bits, group_size=group_size, k=k, clip=clip,
            projection=projection)))
        return model.eval()

    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((rows, columns)) * 10.**exponent
    weight *= generator.integers(0, 3, (rows, 1))
    model, copied = make(), make()
    with torch.no_grad():
        model[0].weight.copy_(torch.from_numpy(weight.clip(-3e38, 3e38)))
    if trained:
        model[0].called = True
        step_(get_state(model.train()))
        model.eval()
    packed = pack(model)
    copied.load_state_dict(packed)
    expected = model[0].quantized_weight()
    assert torch.isfinite(expected).all()
    assert torch.equal(copied[0].quantized_weight(), expected)
    # The same codes and the same scales, too.
    for ours, theirs in zip(*(layer.weight_quantizer.codes(layer.weight)
                              for layer in (model[0], copied[0]))):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize('weight', [
    dict(clip='search'), dict(clip='search', projection=False),
    dict(projection=False)])
@pytest.mark.parametrize('trained', [True, False])
@pytest.mark.parametrize('bits', [1, 2, 3, 8])
def test_weights_outside_their_clip_values_are_packed_exactly(
        bits, trained, weight):
    model = make_model(bits, 2, **weight).eval()
    if trained:
        train(model.train())
    packed = pack(model)
    copied = make_model(bits, 2, **weight).eval()
    copied.load_state_dict(packed)
    x = torch.randn(4, 3, 8, 8)
    assert torch.equal(copied(x), model(x))


def test_packing_does_not_change_the_model():
    model = train(make_model(2, 4))
    before = copy.deepcopy(model.state_dict())
    pack(model)
    assert all(torch.equal(before[key], value)
               for key, value in model.state_dict().items())


def test_codes_of_the_wrong_size_name_the_layer():
    """In a part of the model, which has no seal."""
    state_dict = pack(train(make_model(2, 4)))
    state_dict['4.weight_packed'] = state_dict['4.weight_packed'][:, :-1]
    with pytest.raises(CheckpointError, match='4.weight_packed: checkpoint '
                       r'\(5, 53\), model \(5, 54\)'):
        make_model(2, 4).load_state_dict(state_dict)


def test_a_layer_without_outputs_has_no_codes():
    def make():
        model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 0))
        gdrq_mm.quantize_(model, dict(weight=dict(bits=4)))
        return model

    packed = pack(make())
    assert packed['1.weight_packed'].shape[0] == 0
    make().load_state_dict(packed)


def test_packed_weights_of_other_bits_are_refused():
    packed = pack(train(make_model(2, 4)))
    with pytest.raises(RuntimeError, match='another quantization'):
        make_model(4, 4).load_state_dict(packed)


def test_a_float_model_is_not_packed():
    with pytest.raises(ValueError, match='quantize_'):
        pack(nn.Conv2d(1, 1, 1))


def test_a_model_in_its_reshape_phase_is_not_packed():
    model = make_model(2, 4)
    get_state(model).set_phase('reshape')
    with pytest.raises(ValueError, match='reshape'):
        pack(model)


class Parts(nn.ModuleDict):
    """A model whose parts are read by name."""


def test_a_module_under_two_names_is_packed_under_both():
    model = Parts(dict(a=nn.Conv2d(3, 4, 3)))
    model['b'] = model['a']
    config = dict(weight=dict(bits=2))
    gdrq_mm.quantize_(model, config)
    packed = pack(model)
    assert not any(key.endswith('.weight') for key in packed)
    copied = Parts(dict(a=nn.Conv2d(3, 4, 3)))
    copied['b'] = copied['a']
    gdrq_mm.quantize_(copied, config)
    copied.load_state_dict(packed)
    assert torch.equal(copied['b'].quantized_weight(),
                       model['a'].quantized_weight())


def test_a_model_that_is_one_layer_is_packed():
    model = nn.Conv2d(3, 4, 3)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=2)))
    copied = nn.Conv2d(3, 4, 3)
    gdrq_mm.quantize_(copied, dict(weight=dict(bits=2)))
    copied.load_state_dict(pack(model))
    assert torch.equal(copied.quantized_weight(), model.quantized_weight())


def test_a_part_of_a_packed_model_loads_alone():
    """As the backbone does with init_cfg=dict(type='Pretrained')."""
    model, copied = train(make_model(2, 4)), make_model(2, 4)
    copied[0].load_state_dict(part_of(pack(model), '0.'))
    assert torch.equal(copied[0].quantized_weight(),
                       model[0].quantized_weight())


def test_one_bit_with_another_k_is_refused():
    models = []
    for k in (2., 4.):
        models.append(nn.Sequential(nn.Conv2d(3, 4, 3)))
        gdrq_mm.quantize_(models[-1], dict(weight=dict(bits=1, k=k)))
    with pytest.raises(RuntimeError, match='k 2.0.*k 4.0'):
        models[1].load_state_dict(models[0].state_dict())
