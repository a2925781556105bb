import pytest
import torch
import torch.nn.functional as F
from mmcv.ops import DeformConv2dPack, ModulatedDeformConv2dPack
from torch import nn

import gdrq_mm
from gdrq_mm.functional import linear_quantize
from gdrq_mm.plan import count_macs
from gdrq_mm.plan.grids import has_low_bit_filters, is_evenly_spaced

W4A4 = dict(weight=dict(bits=4), activation=dict(bits=4))


def trained(model, x, **config):
    gdrq_mm.quantize_(model, dict(W4A4, **config))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    return model


class Squared(nn.Bilinear):

    def forward(self, x):
        return super().forward(x, x)


class TestIsOnGrid:

    @pytest.mark.parametrize('bits', [2, 4, 8])
    @pytest.mark.parametrize('signed', [True, False])
    def test_quantized_values_are_at_their_bits_only(self, bits, signed):
        x = torch.randn(1, 5000)
        x = linear_quantize(x, x.abs().max(), bits, signed)
        assert is_evenly_spaced(x, bits)
        assert is_evenly_spaced(x + .37, bits)  # an offset is no matter
        assert not is_evenly_spaced(x, bits - 1)

    def test_every_row_has_its_own_grid(self):
        rows = torch.randint(-7, 8, (6, 40)) * (1 + torch.rand(6, 1))
        assert is_evenly_spaced(rows, 4)
        rows[4, 33] += .1
        assert not is_evenly_spaced(rows, 4)

    def test_float_values_are_not(self):
        assert not is_evenly_spaced(torch.randn(3, 9), 8)

    def test_turned_operands(self):
        weight = torch.randint(-7, 8, (8, 60)) * torch.rand(8, 1)
        assert has_low_bit_filters(weight, 4)
        assert has_low_bit_filters(weight.t(), 4)
        assert has_low_bit_filters(weight.view(8, 15, 2, 2), 4)
        assert not has_low_bit_filters(torch.randn(8, 60), 4)


class TestCount:

    @pytest.mark.parametrize('layer, shape, macs', [
        (nn.Conv2d(4, 8, 3, padding=1), (2, 4, 6, 5), 2 * 8 * 30 * 4 * 9),
        (nn.Conv2d(4, 8, 3, groups=2), (2, 4, 6, 5), 2 * 8 * 12 * 2 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 3, 3),
         4 * 9 * 6 * 4),
        (nn.Conv1d(4, 8, 3), (2, 4, 9), 2 * 8 * 7 * 4 * 3),
        (nn.Linear(7, 5), (2, 3, 7), 2 * 3 * 7 * 5),
        (nn.LSTM(5, 3), (4, 2, 5), 4 * 2 * (12 * 5 + 12 * 3)),
        (Squared(5, 5, 3), (4, 2, 5), 4 * 2 * 3 * 5 * 5),
    ])
    @pytest.mark.parametrize('inference', [True, False])
    def test_layers(self, layer, shape, macs, inference):
        x = torch.randn(shape)
        with torch.inference_mode(inference):
            count = count_macs(layer, lambda: layer(x))
        assert count.parametric == macs
        assert count.low_bit == count.between_activations == 0

    @pytest.mark.parametrize('batch_first', [True, False])
    def test_attention_products_are_told_apart(self, batch_first):
        layer = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        x = torch.randn((3, 5, 8) if batch_first else (5, 3, 8))
        for options in ({}, dict(need_weights=False)):
            count = count_macs(layer, lambda options=options: layer(
                x, x, x, **options))
            assert count.parametric == 15 * 8 * 32
            assert count.between_activations == 2 * 3 * 5 * 5 * 8

    @pytest.mark.parametrize('padding', [
        None, torch.arange(5) >= torch.tensor([[5], [4], [3]])])
    @pytest.mark.parametrize('inference', [True, False])
    def test_encoders_of_torch_are_not_fused(self, inference, padding):
        model = nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
        x = torch.randn(3, 5, 8)
        with torch.inference_mode(inference):
            count = count_macs(
                model, lambda: model(x, src_key_padding_mask=padding))
        assert count.parametric == 2 * 15 * 8 * (32 + 32)
        assert count.between_activations == 2 * 2 * 3 * 5 * 5 * 8

    def test_constants_are_neither(self):
        layer = nn.Linear(6, 6)

        def forward():
            return layer(torch.randn(4, 6)) @ torch.eye(6)

        count = count_macs(layer, forward)
        assert count.parametric == 4 * 36
        assert count.between_activations == 0

    @pytest.mark.parametrize('inference', [True, False])
    def test_quantized_layers_see_low_bits(self, inference):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(),
                              nn.Conv2d(8, 8, 3, groups=8), nn.Flatten(),
                              nn.Linear(128, 4))
        x = torch.rand(2, 3, 8, 8)
        trained(model, x)
        with torch.inference_mode(inference):
            count = count_macs(model, lambda: model(x), 4)
        assert count.low_bit_share == 1
        assert count.float_parameters() == {}

    @pytest.mark.parametrize('lacks', ['weight', 'activation'])
    def test_one_operand_on_a_grid_is_not_enough(self, lacks):
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4))
        x = torch.rand(8, 16)
        trained(model, x, rules=[dict(match='0', **{lacks: dict(bits=None)})])
        count = count_macs(model, lambda: model(x), 4)
        assert set(count.float_parameters()) == {'0.weight'}
        assert count.low_bit == 8 * 64

    def test_a_layer_that_is_left_out_shows(self):
        model = nn.Sequential(nn.Linear(16, 16), nn.LSTM(16, 4))
        x = torch.rand(8, 16)
        trained(model, x)
        count = count_macs(model, lambda: model(x), 4)
        assert set(count.float_parameters()) == {
            '1.weight_ih_l0', '1.weight_hh_l0'}
        assert count.low_bit == 8 * 256

    @pytest.mark.parametrize('inference', [True, False])
    @pytest.mark.parametrize('cls', [DeformConv2dPack,
                                     ModulatedDeformConv2dPack])
    def test_what_a_kernel_writes_to_zeros_is_an_input(self, cls, inference):
        layer = cls(4, 8, 3, padding=1)
        x = torch.randn(2, 4, 6, 5)
        with torch.inference_mode(inference):
            count = count_macs(layer, lambda: layer(x))
        offsets = layer.conv_offset.weight.numel()
        assert count.float_parameters() == {
            'weight': 60 * 8 * 36, 'conv_offset.weight': 60 * offsets}
        assert all(each.parameter for each in count.products)

    @pytest.mark.parametrize('fill', [
        lambda zeros: zeros, lambda zeros: zeros.fill_diagonal_(1.)])
    def test_zeros_that_operators_write_to_are_a_constant(self, fill):
        layer = nn.Linear(6, 6, bias=False)

        def forward():
            return F.linear(torch.randn(4, 6),
                            layer.weight * fill(torch.zeros(6, 6)))

        assert count_macs(layer, forward).parametric == 4 * 36

    def test_a_parameter_goes_before_a_constant(self):
        layer = nn.Linear(6, 6)
        count = count_macs(layer, lambda: layer.weight @ torch.eye(6))
        assert count.float_parameters() == {'weight': 216}

    def test_the_mode_of_the_model_stays(self):
        model = nn.Sequential(nn.Linear(3, 3), nn.Dropout())
        model[1].eval()
        count_macs(model, lambda: F.relu(model(torch.rand(1, 3))))
        assert model[0].training and not model[1].training


def test_a_batch_that_is_drawn_inside_is_an_input():
    class Gram(nn.Module):

        def forward(self, x):
            return x @ x.transpose(-1, -2)

    model = Gram()
    count = count_macs(model, lambda: model(torch.randn(2, 3, 4)))
    assert count.between_activations == 2 * 3 * 3 * 4
    assert count.parametric == 0


@pytest.mark.parametrize('kind', [DeformConv2dPack,
                                  ModulatedDeformConv2dPack])
def test_interpolated_inputs_are_float_also_where_offsets_are_zeros(kind):
    """As they are before any training: the values then lie on the grid."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), kind(8, 8, 3))
    x = torch.randn(2, 3, 12, 12)
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    gdrq_mm.calibrate(model, [lambda: model(x)])
    count = count_macs(model.eval(), lambda: model(x))
    assert set(count.float_parameters()) == {'1.weight'}


@pytest.mark.parametrize('bits', [4, 8])
def test_products_of_low_bit_activations_are_told_from_float_ones(bits):
    torch.manual_seed(0)
    model = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 8))
    x = torch.randn(5, 3, 8)

    def forward():
        return model[1](model[0](x, x, x)[0])

    gdrq_mm.quantize_(model, dict(W4A4, products=dict(bits=bits)))
    gdrq_mm.calibrate(model, [forward])
    counts = [count_macs(model, forward, most) for most in (bits, bits - 1)]
    assert [count.between_activations for count in counts] == [
        2 * 3 * 5 * 5 * 8] * 2
    assert [count.low_bit_between for count in counts] == [
        2 * 3 * 5 * 5 * 8, 0]


def test_a_product_with_one_float_operand_is_none_of_low_bits():
    few, many = torch.randn(3, 4, 5).round(), torch.randn(3, 5, 4)
    model = nn.Linear(1, 1)
    for operands, low_bit in (((few, many), 0), ((many, few), 0),
                              ((few, few.mT), 3 * 4 * 4 * 5)):
        count = count_macs(model, lambda: torch.bmm(*operands))
        assert count.low_bit_between == low_bit
        assert count.between_activations > 0
