"""nn.MultiheadAttention with quantized projections."""
import copy

import pytest
import torch
from torch import nn

import gdrq_mm
from gdrq_mm.checkpoint import pack
from gdrq_mm.deploy import export_onnx, float_layers, merge
from gdrq_mm.merge import merged_layers
from gdrq_mm.plan import count_macs
from gdrq_mm.training import get_state

W4A4 = dict(weight=dict(bits=4), activation=dict(bits=4))


def inputs(layer, kind, batched=True):
    torch.manual_seed(1)
    shape = (3, 5, 8) if batched else (5, 8)
    query = torch.randn(shape)
    if kind == 'self':
        return query, query, query
    key = torch.randn(shape)
    return (query, key, key) if kind == 'cross' else \
        (query, key, torch.randn(shape))


MASKS = {
    'none': {},
    'bool': dict(attn_mask=torch.ones(5, 5).triu(1).bool()),
    'float': dict(attn_mask=torch.randn(5, 5)),
    'padding': dict(key_padding_mask=torch.tensor(
        [[False] * 4 + [True]] * 3)),
    'both': dict(attn_mask=torch.ones(5, 5).triu(1).bool(),
                 key_padding_mask=torch.tensor([[False] * 4 + [True]] * 3))}


def test_a_hint_without_a_mask_is_an_error_as_in_torch():
    layer = nn.MultiheadAttention(8, 2)
    x = inputs(layer, 'self')
    model = nn.Sequential(layer)
    for _ in range(2):
        with pytest.raises(RuntimeError, match='is_causal'):
            model[0](*x, is_causal=True)
        gdrq_mm.quantize_(model, W4A4)


class TestFloatMode:
    """Until it rounds it computes what torch does, bit for bit."""

    @pytest.mark.parametrize('mask', list(MASKS))
    @pytest.mark.parametrize('kind', ['self', 'cross', 'other'])
    @pytest.mark.parametrize('options', [
        dict(batch_first=True, dropout=.5), dict(bias=False),
        dict(batch_first=True, bias=False)])
    @pytest.mark.parametrize('need_weights', [True, False])
    def test_equals_torch(self, mask, kind, options, need_weights):
        layer = nn.MultiheadAttention(8, 2, **options)
        x = inputs(layer, kind)
        masks = dict(MASKS[mask])
        if not options.get('batch_first') and mask in ('padding', 'both'):
            masks['key_padding_mask'] = torch.zeros(5, 3).bool()
            masks['key_padding_mask'][0, 1] = True
        if not options.get('batch_first') and 'attn_mask' in masks:
            masks['attn_mask'] = masks['attn_mask'][:3, :3]
        self.compare(layer, x, need_weights=need_weights, **masks)

    @pytest.mark.parametrize('options', [
        dict(average_attn_weights=False), {}])
    def test_unbatched(self, options):
        layer = nn.MultiheadAttention(8, 2, batch_first=True)
        self.compare(layer, inputs(layer, 'self', False), **options)

    def test_mask_of_every_head(self):
        layer = nn.MultiheadAttention(8, 2, batch_first=True)
        for need_weights in (True, False):
            self.compare(layer, inputs(layer, 'self'),
                         need_weights=need_weights,
                         attn_mask=torch.randn(6, 5, 5))

    @staticmethod
    def compare(layer, x, **options):
        converted = copy.deepcopy(layer)
        gdrq_mm.quantize_(converted, W4A4)
        get_state(converted).set_phase('reshape')
        found = []
        for each in (copy.deepcopy(layer), converted):
            torch.manual_seed(2)
            out, weights = each(*x, **options)
            loss = out.square().sum()
            if weights is not None:
                loss = loss + weights.square().sum()
            loss.backward()
            found.append([out, weights, each.in_proj_weight.grad,
                          each.out_proj.weight.grad])
        for ours, theirs in zip(found[1], found[0]):
            assert theirs is None and ours is None or \
                torch.equal(ours, theirs)


def trained(kind='cross'):
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(8, 2, batch_first=True)
    gdrq_mm.quantize_(layer, W4A4)
    x = inputs(layer, kind)
    optimizer = torch.optim.SGD(layer.parameters(), lr=.1)
    for _ in range(3):
        layer(*x)[0].square().mean().backward()
        optimizer.step()
    return layer.eval(), x


def test_all_projections_see_low_bits():
    layer, x = trained()
    with torch.no_grad():
        count = count_macs(layer, lambda: layer(*x), 4)
    assert count.parametric == 15 * 8 * 32
    assert count.low_bit_share == 1 and count.between_activations > 0


def test_query_key_and_value_have_thresholds_of_their_own():
    layer, x = trained('other')
    names = [name for name, _ in layer.activation_quantizers()]
    assert names == ['input_quantizer', 'key_quantizer', 'value_quantizer']
    assert all(quantizer.initialized
               for _, quantizer in layer.activation_quantizers())
    assert layer.value_quantizer.clip != layer.input_quantizer.clip


def test_the_stored_projection_is_projected():
    layer, _ = trained()
    clip = layer.weight_quantizer.clip
    assert clip.shape == (6, )
    limit = clip.repeat_interleave(4)[:, None]
    assert (layer.in_proj_weight.abs() <= limit).all()


@pytest.mark.parametrize('packed', [True, False])
def test_keys_stay_and_a_loaded_layer_computes_the_same(packed):
    layer, x = trained()
    keys = set(nn.MultiheadAttention(8, 2).state_dict())
    assert keys <= set(layer.state_dict())
    state_dict = pack(layer) if packed else layer.state_dict()
    assert not packed or 'weight_packed' in state_dict and \
        'in_proj_weight' not in state_dict
    loaded = nn.MultiheadAttention(8, 2, batch_first=True)
    gdrq_mm.quantize_(loaded, W4A4)
    loaded.load_state_dict(state_dict)
    assert torch.equal(loaded.eval()(*x)[0], layer(*x)[0])


def test_float_checkpoints_load():
    plain = nn.MultiheadAttention(8, 2)
    layer = nn.MultiheadAttention(8, 2)
    gdrq_mm.quantize_(layer, W4A4)
    layer.load_state_dict(plain.state_dict())
    assert torch.equal(layer.in_proj_weight, plain.in_proj_weight)


def test_a_merged_layer_computes_the_same(tmp_path):
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    x = torch.randn(2, 5, 8)
    gdrq_mm.quantize_(model, W4A4)
    gdrq_mm.calibrate(model, [lambda: model(x)])
    with torch.no_grad():
        merged = merge(model.eval(), x)
        assert float_layers(merged)['self_attn'] == \
            'no integer kernel for MultiheadAttention'
        assert set(merged_layers(merged)) == {
            'self_attn.out_proj', 'linear1', 'linear2'}
        torch.testing.assert_close(merged(x), model(x), rtol=1e-4,
                                   atol=1e-5)
        report = export_onnx(model, x, tmp_path / 'm.onnx')
    assert len(report.kernels) == 3 and 'self_attn' in report.float_layers
