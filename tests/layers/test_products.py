"""Products of activations with activations, both operands quantized."""
import copy
import math
import pickle
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

import gdrq_mm
from gdrq_mm.checkpoint import float_weights, pack
from gdrq_mm.deploy import export_onnx, merge
from gdrq_mm.layers import (
    QuantMultiheadAttention,
    count_products,
    register_products,
    register_quant_layer,
)
from gdrq_mm.layers.scaled_attention import attention
from gdrq_mm.merge.layers import MergedLinear
from gdrq_mm.plan import count_macs
from gdrq_mm.training import get_state

PRODUCTS = dict(products=dict(bits=4))
W4A4 = dict(weight=dict(bits=4), activation=dict(bits=4), **PRODUCTS)


class Attention(nn.Module):
    """Two heads of four."""

    def __init__(self):
        super().__init__()
        self.qkv = nn.Linear(8, 24)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        out = self.attend(q, k, v).reshape(q.shape)
        return out.transpose(1, 2).flatten(2)

    def attend(self, q, k, v):
        return ((q / 2) @ k.mT).softmax(-1) @ v


class Matmul(Attention):

    def attend(self, q, k, v):
        return torch.matmul((q / 2).matmul(other=k.mT).softmax(-1), other=v)


class Batched(Attention):

    def attend(self, q, k, v):
        q, k, v = (x.flatten(0, 1) for x in (q / 2, k, v))
        return torch.bmm(torch.bmm(q, mat2=k.mT).softmax(-1), v)


class Added(Attention):

    def attend(self, q, k, v):
        q, k, v = (x.flatten(0, 1) for x in (q / 2, k, v))
        weights = torch.baddbmm(torch.zeros(1), q, batch2=k.mT)
        return weights.softmax(-1).bmm(v)


class Einsum(Attention):

    def attend(self, q, k, v):
        weights = torch.einsum('nhqd,nhkd->nhqk', q / 2, k).softmax(-1)
        return torch.einsum('nhqk,nhkd->nhqd', [weights, v])


class Function(Attention):

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class ByName(Attention):

    def forward(self, x):
        return getattr(super(), 'for' + 'ward')(x)


class Torchs(nn.Module):
    """The same by ``nn.MultiheadAttention``."""

    def __init__(self, need_weights):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.need_weights = need_weights

    def forward(self, x):
        return self.attn(x, x, x, need_weights=self.need_weights)[0]


WAYS = (Attention, Matmul, Batched, Added, Einsum, Function, ByName)


def batch(seed=0):
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(seed))


def trained(model, config=PRODUCTS, steps=3):
    """The model after a few steps, in eval mode."""
    gdrq_mm.quantize_(model, config)
    optimizer = torch.optim.SGD(model.parameters(), lr=.05)
    for _ in range(steps):
        optimizer.zero_grad()
        model(batch()).square().mean().backward()
        optimizer.step()
    return model.eval()


def made(part, **config):
    torch.manual_seed(0)
    return trained(nn.Sequential(part), {**PRODUCTS, **config})


def on_grid(x, quantizer):
    """The nearest of the levels, in float64 and by brute force."""
    bits, clip = quantizer.bits, quantizer.clip.double()
    codes = torch.arange(2**bits)
    if quantizer.has_zero_point:
        levels = (codes - quantizer.zero.round().double()) * (
            clip / codes[-1])
    elif quantizer.signed:
        top = 2**(bits - 1) - 1
        levels = torch.arange(-top, top + 1) * (clip / top)
    else:
        levels = codes * (clip / codes[-1])
    nearest = (x.double()[..., None] - levels).abs().argmin(-1)
    return levels[nearest]


def by_hand(q, k, v, quantizers):
    """Attention of rounded operands in float64."""
    first, second, third, fourth = quantizers
    weights = (on_grid(q, first) @ on_grid(k, second).mT).softmax(-1)
    return on_grid(weights, third) @ on_grid(v, fourth)


def heads(projected):
    return projected.unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)


# -- what is computed ---------------------------------------------------------


@pytest.mark.parametrize('way', WAYS)
def test_both_operands_of_both_products_lie_on_their_grids(way):
    model = made(way())
    x = batch(1)
    q, k, v = heads(model[0].qkv(x))
    expected = by_hand(q / 2, k, v, model[0].product_quantizers)
    torch.testing.assert_close(
        model(x).double(), expected.transpose(1, 2).flatten(2), atol=1e-6,
        rtol=1e-5)


@pytest.mark.parametrize('need_weights', [False, True])
def test_those_of_torchs_attention_do(need_weights):
    model = made(Torchs(need_weights))
    layer, x = model[0].attn, batch(1)
    assert type(layer) is QuantMultiheadAttention
    q, k, v = heads(F.linear(x, layer.in_proj_weight, layer.in_proj_bias))
    out = by_hand(q / 2, k, v, layer.product_quantizers)
    expected = F.linear(out.transpose(1, 2).flatten(2),
                        layer.out_proj.weight.double(),
                        layer.out_proj.bias.double())
    torch.testing.assert_close(model(x).double(), expected, atol=1e-6,
                               rtol=1e-5)


@pytest.mark.parametrize('part', [Attention(), Torchs(True)])
def test_attention_weights_are_unsigned_and_all_else_is_signed(part):
    model = made(part)
    signs = [quantizer.is_signed for quantizer in
             get_state(model).activation_quantizers.values()]
    assert signs == [True, True, False, True]


def test_the_gradient_passes_rounding_and_stops_where_values_are_clipped():

    class Pair(nn.Linear):
        def forward(self, x, y):
            return x @ y.mT

    torch.manual_seed(0)
    model = Pair(8, 8)
    gdrq_mm.quantize_(model, PRODUCTS)
    gdrq_mm.calibrate(model, [lambda: model(batch(), batch(1))])
    first, second = model.product_quantizers
    x, y = ((3 * batch(seed)).requires_grad_() for seed in (2, 3))
    model.eval()(x, y).sum().backward()
    for ours, clip, other in ((x, first.clip, on_grid(y, second)),
                              (y, second.clip, on_grid(x, first))):
        inside = ours.detach().abs() <= clip
        assert 0 < inside.float().mean() < 1
        expected = other.sum(-2, keepdim=True) * inside
        torch.testing.assert_close(ours.grad, expected.float())


def test_in_the_reshape_phase_operands_are_clipped_and_not_rounded():
    model = made(Attention())
    model.quantization_state.set_phase('reshape')
    x = batch(1) * 3
    q, k, v = heads(model[0].qkv(x))
    clips = [each.clip for each in model[0].product_quantizers]
    weights = ((q / 2).clamp(-clips[0], clips[0]) @ k.clamp(
        -clips[1], clips[1]).mT).softmax(-1)
    expected = weights.clamp(0, clips[2]) @ v.clamp(-clips[3], clips[3])
    torch.testing.assert_close(model(x), expected.transpose(1, 2).flatten(2))


# -- scaled_dot_product_attention as its two products -------------------------

MASK = torch.tensor([[1, 1, 0, 1, 0, 1, 0], [1, 1, 1, 1, 1, 1, 1],
                     [1, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 0],
                     [0, 0, 0, 0, 0, 0, 0]], dtype=torch.bool)
ATTENTION = {
    'plain': {}, 'bool': dict(attn_mask=MASK), 'causal': dict(is_causal=True),
    'float': dict(attn_mask=torch.randn(
        2, 4, 5, 7, generator=torch.Generator().manual_seed(3)).double()),
    'infinite': dict(attn_mask=torch.zeros(5, 7).double().masked_fill(
        ~MASK, -math.inf)),
    'scaled': dict(scale=.1), 'grouped': dict(enable_gqa=True)}


@pytest.mark.parametrize('name', ATTENTION)
def test_attention_in_float_is_torchs_with_its_gradients(name):
    options = ATTENTION[name]
    generator = torch.Generator().manual_seed(0)
    kv = 2 if name == 'grouped' else 4
    shapes = (2, 4, 5, 6), (2, kv, 7, 6), (2, kv, 7, 3)
    inputs = [torch.randn(shape, dtype=torch.float64, generator=generator)
              for shape in shapes]
    found = []
    for function in (F.scaled_dot_product_attention,
                     lambda *args, **kwargs: attention(
                         torch.matmul, *args, **kwargs)):
        leaves = [x.clone().requires_grad_() for x in inputs]
        out = function(*leaves, **options)
        out.sin().sum().backward()
        found.append([out.detach(), *(x.grad for x in leaves)])
    for theirs, ours in zip(*found):
        torch.testing.assert_close(ours, theirs)


def test_dropout_of_attention_weights_keeps_their_mean():
    torch.manual_seed(0)
    x = torch.randn(50, 20, 4)
    weights = (x / 2 @ x.mT).softmax(-1)
    out = attention(torch.matmul, x, x, torch.eye(20).expand(50, -1, -1),
                    dropout_p=.25)
    kept = out != 0
    assert kept.float().mean().item() == pytest.approx(.75, abs=.01)
    torch.testing.assert_close(out[kept], weights[kept] / .75)


def test_a_causal_mask_beside_another_is_refused_as_torch_does():
    x = torch.randn(1, 3, 4)
    with pytest.raises(ValueError, match='exclude each other'):
        attention(torch.matmul, x, x, x, torch.zeros(3, 3), is_causal=True)


# -- whose products -----------------------------------------------------------


class Outer(nn.Module):
    """Multiplies itself, before and after a child that does so."""

    def __init__(self):
        super().__init__()
        self.child = Attention()

    def forward(self, x):
        x = (x @ x.mT) @ x
        return self.child(x) @ torch.ones(8, 8).tril()


def test_what_a_child_multiplies_is_not_its_parents():
    model = made(Outer())
    assert model[0].product_quantizers.most == 3
    assert model[0].child.product_quantizers.most == 2


def test_a_child_that_a_rule_skips_stays_float():
    torch.manual_seed(0)
    model = nn.Sequential(Outer())
    floats = copy.deepcopy(model[0].child)
    gdrq_mm.quantize_(model, dict(**PRODUCTS, rules=[
        dict(match='0.child', skip=True)]))
    gdrq_mm.calibrate(model, [lambda: model(batch())])
    given = []
    model[0].child.register_forward_hook(
        lambda module, args, out: given.extend([args[0], out]))
    model.eval()(batch(1))
    assert torch.equal(floats(given[0]), given[1])
    assert model[0].product_quantizers.most == 3


class Weighted(nn.Module):
    """A product with a Parameter between two of activations."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(8, 8))
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = x @ x.mT @ x
        x = x @ self.matrix.t() @ self.fc.weight
        return x.mT @ x


def test_products_with_weights_are_left_to_their_own_quantizers():
    torch.manual_seed(0)
    model = nn.Sequential(Weighted())
    report = gdrq_mm.quantize_(model, dict(weight=dict(bits=4), **PRODUCTS))
    assert report.layers[-1].sites == 10
    model(batch())
    assert model[0].product_quantizers.of_weights == {2, 3}
    gdrq_mm.calibrate(model, [lambda: model(batch())])
    x = torch.randn(2, 5, 8)
    q = list(model[0].product_quantizers)
    out = on_grid(on_grid(x, q[0]) @ on_grid(x.mT, q[1]), q[2]) @ on_grid(
        x, q[3])
    out = out @ model[0].matrix.t().double() @ model[
        0].fc.quantized_weight().double()
    expected = on_grid(out.mT, q[8]) @ on_grid(out, q[9])
    torch.testing.assert_close(model.eval()(x).double(), expected, atol=1e-2,
                               rtol=1e-4)


class Loop(Attention):

    def attend(self, q, k, v):
        for _ in range(3):
            q = (q @ k.mT).softmax(-1) @ v
        return q


def test_products_in_a_loop_share_thresholds():
    model = made(Loop())
    operands = model[0].product_quantizers
    assert operands.most == 6 and operands.seen == {0, 1}


def test_a_function_of_the_same_file_is_code_of_the_module():

    class Called(nn.Linear):
        def forward(self, x):
            return multiplied(super().forward(x))

    assert count_products(Called(8, 8)) == 1
    model = made(Called(8, 8))
    x = model[0].weight.new_ones(1, 2, 8)
    y = F.linear(x, model[0].weight, model[0].bias)
    first, second = model[0].product_quantizers
    torch.testing.assert_close(
        model(x).double(), on_grid(y, first) @ on_grid(y.mT, second))


def test_what_is_said_by_a_name_counts_after_the_source_was_read():

    class Said(nn.Linear):
        def forward(self, x):
            return multiplied(super().forward(x))

    assert count_products(Said(8, 8)) == 1
    register_products(f'{Said.__module__}.{Said.__qualname__}', 3)
    assert count_products(Said(8, 8)) == 3


def multiplied(x):
    return x @ x.mT


# -- where it runs ------------------------------------------------------------


@pytest.mark.parametrize('part', [Function(), Torchs(False)])
def test_copies_pickles_and_inference_mode_compute_the_same(part):
    model = made(part)
    with torch.no_grad():
        expected = model(batch(1))
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(twin(batch(1)), expected)
        for quantizer in get_state(model).activation_quantizers.values():
            assert quantizer.clip > 0
        for quantizer in get_state(twin).activation_quantizers.values():
            quantizer.clip.fill_(1e-6)
        assert not torch.equal(twin(batch(1)), expected)
        assert torch.equal(model(batch(1)), expected)
    with torch.inference_mode():
        assert torch.equal(model(batch(1)), expected)


def test_a_forward_that_is_called_past_the_hooks_is_quantized():
    model = made(Attention())
    assert torch.equal(model[0].forward(batch(1)), model(batch(1)))


def test_a_forward_that_fails_leaves_no_mode_behind():
    model = made(Attention())
    with pytest.raises(RuntimeError):
        model(torch.randn(3, 5, 7))
    assert not torch._C._len_torch_function_stack()


class _Seen(TorchFunctionMode):

    def __init__(self):
        super().__init__()
        self.functions = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.functions.append(func)
        return func(*args, **(kwargs or {}))


def test_the_modes_of_others_see_the_rounded_products():
    model = made(Attention())
    expected = model(batch(1))
    with _Seen() as seen:
        assert torch.equal(model(batch(1)), expected)
    products = torch.Tensor.matmul, torch.Tensor.__matmul__
    assert sum(each in products for each in seen.functions) == 2


def test_threads_share_a_model():
    model = made(nn.Sequential(Attention(), Function()))
    inputs = [batch(seed) for seed in range(40)]
    with torch.no_grad():
        expected = [model(x) for x in inputs]
        slow = model[0][0].qkv.register_forward_hook(
            lambda *_: time.sleep(.001))
        with ThreadPoolExecutor(6) as pool:
            found = list(pool.map(torch.no_grad()(model), inputs))
        slow.remove()
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize('reentrant', [False, True])
@pytest.mark.parametrize('way', [Attention, Function])
def test_activation_checkpointing_changes_nothing(way, reentrant):
    results = []
    for repeated in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(way())
        gdrq_mm.quantize_(model, W4A4)
        optimizer = torch.optim.SGD(model.parameters(), lr=.1)
        for _ in range(3):
            optimizer.zero_grad()
            x = batch().requires_grad_()
            out = checkpoint(model, x, use_reentrant=reentrant) \
                if repeated else model(x)
            out.square().sum().backward()
            optimizer.step()
        results.append([x.grad, *model.state_dict().values()])
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize('way', [Attention, Function])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_mixed_precision_has_the_thresholds_of_float32(dtype, way):
    found = []
    for enabled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(way())
        gdrq_mm.quantize_(model, W4A4)
        optimizer = torch.optim.SGD(model.parameters(), lr=.01)
        for _ in range(3):
            optimizer.zero_grad()
            with torch.autocast('cpu', dtype, enabled=enabled):
                loss = model(batch()).float().square().mean()
            loss.backward()
            optimizer.step()
        assert model[0].qkv.weight.grad.isfinite().all()
        found.append([each.clip for each in get_state(
            model).activation_quantizers.values()])
    for plain, mixed in zip(*found):
        assert mixed.dtype is torch.float32 and mixed > 0
        torch.testing.assert_close(mixed, plain, rtol=.1, atol=0)


def test_a_compiled_model_computes_the_same():
    model = made(Attention())
    compiled = torch.compile(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled(batch(1)), model(batch(1)))


@torch.no_grad()
def test_encoder_layers_of_torch_do_not_pass_by_their_attention():
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(
        8, 2, 16, dropout=0., batch_first=True), 2).eval()
    floats = model(batch(1))
    gdrq_mm.quantize_(model, PRODUCTS)
    gdrq_mm.calibrate(model, [lambda: model(batch())])
    found = model.eval()(batch(1))
    with torch.enable_grad():  # torch computes layer by layer
        torch.testing.assert_close(found, model(batch(1)))
    assert (found - floats).abs().max() > .05


# -- training and checkpoints -------------------------------------------------


def test_thresholds_are_observed_and_move_in_training():
    model = made(Attention())
    state = get_state(model.train())
    quantizer = state.activation_quantizers['0.product_quantizers.2']
    before, updates = quantizer.clip.clone(), quantizer.num_updates.clone()
    optimizer = torch.optim.SGD(model.parameters(), lr=.1)
    model(3 * batch(1)).sum().backward()
    optimizer.step()
    assert quantizer.num_updates == updates + 1 and quantizer.clip != before


def test_what_quantizers_of_products_learn_is_learned():
    torch.manual_seed(0)
    model = nn.Sequential(Attention())
    report = gdrq_mm.quantize_(model, dict(products=dict(type='LSQ', bits=4)))
    learned = report.learned_parameters()
    assert len(learned) == 4
    optimizer = torch.optim.SGD(model.parameters(), lr=.1)
    for step in range(4):
        before = {name: each.clone() for name, each in learned.items()}
        optimizer.zero_grad()
        model(batch(step)).square().sum().backward()
        optimizer.step()
    moved = [name for name, each in learned.items()
             if not torch.equal(each, before[name])]
    assert moved == list(learned)


@pytest.mark.parametrize('part', [Attention, lambda: Torchs(True)])
def test_checkpoints_load_strictly_into_a_fresh_model(part):
    model = made(part(), **W4A4)
    torch.manual_seed(7)
    fresh = nn.Sequential(part())
    gdrq_mm.quantize_(fresh, W4A4)
    weights = model.state_dict()
    fresh.load_state_dict(weights)
    assert torch.equal(fresh.eval()(batch(1)), model(batch(1)))
    packed = nn.Sequential(part())
    gdrq_mm.quantize_(packed, W4A4)
    packed.load_state_dict(pack(model))
    torch.testing.assert_close(packed.eval()(batch(1)), model(batch(1)))
    del weights[next(key for key in weights if 'product_quantizers.2' in key)]
    with pytest.raises(gdrq_mm.checkpoint.CheckpointError,
                       match='product_quantizers.2.clip: checkpoint has none'):
        fresh.load_state_dict(weights)


def test_a_checkpoint_of_other_bits_or_float_products_is_refused():
    weights = made(Attention(), **W4A4).state_dict()
    for config in (dict(W4A4, products=dict(bits=8)),
                   dict(W4A4, products=None)):
        other = nn.Sequential(Attention())
        gdrq_mm.quantize_(other, config)
        with pytest.raises(gdrq_mm.checkpoint.CheckpointError,
                           match='product_quantizers'):
            other.load_state_dict(weights)


def test_float_checkpoints_go_in_and_come_out():
    floats = nn.Sequential(Attention())
    model = nn.Sequential(Attention())
    gdrq_mm.quantize_(model, W4A4)
    model.load_state_dict(floats.state_dict())
    found = float_weights(made(Attention(), **W4A4).state_dict())
    assert found.keys() == floats.state_dict().keys()


def test_without_products_a_model_and_its_checkpoint_are_as_before():
    model = made(Attention(), weight=dict(bits=4), products=None)
    assert 'forward' not in vars(model[0])
    assert not any('product' in key for key in model.state_dict())
    assert b'product' not in bytes(
        model.state_dict()['quantization_state.schemes'].tolist())


# -- merged -------------------------------------------------------------------


class Registered(nn.Linear):
    """A layer with a weight that multiplies activations as well."""

    def forward(self, x):
        return (x @ x.mT).softmax(-1) @ F.linear(x, self.weight, self.bias)


class WithKernel(Registered):
    """Its integer kernel would know nothing of the products."""


register_quant_layer(Registered)
register_quant_layer(WithKernel,
                     integer=lambda layer, *args: MergedLinear(*args))


@pytest.mark.parametrize('part', [
    Attention, lambda: Function(), lambda: Torchs(False),
    lambda: Registered(8, 8), lambda: WithKernel(8, 8), Weighted])
def test_a_merged_model_computes_what_was_trained(part):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), part())
    model = trained(model, W4A4)
    merged = merge(model, batch(1))
    torch.testing.assert_close(merged(batch(1)), model(batch(1)), atol=1e-4,
                               rtol=1e-4)
    count = count_macs(merged, lambda: merged(batch(1)), bits=4)
    assert count.between_activations and \
        count.low_bit_between == count.between_activations


def test_merging_refuses_products_without_thresholds():
    model = nn.Sequential(Attention())
    gdrq_mm.quantize_(model, W4A4)
    gdrq_mm.calibrate(model, [lambda: model(batch())])
    for quantizer in model[0].product_quantizers:
        quantizer.num_updates.zero_(), quantizer.clip.zero_()
    model[0].product_quantizers.forget()
    with pytest.raises(ValueError, match='0: the thresholds of its products'):
        merge(model, batch())


def test_a_merged_model_refuses_products_that_its_example_did_not_show():

    class Sometimes(Attention):
        def attend(self, q, k, v):
            out = super().attend(q, k, v)
            return out @ out.mT @ out if len(q) > 3 else out

    model = made(Sometimes(), **W4A4)
    merged = merge(model, batch())
    with pytest.raises(RuntimeError, match='0 computes more products'):
        merged(torch.randn(4, 5, 8))


@pytest.mark.parametrize('part', [Attention, lambda: Torchs(True)])
def test_quantized_products_alone_are_not_exported(part, tmp_path):
    model = made(part())
    with pytest.raises(ValueError, match='no layer of the model has quantized '
                       'weights'):
        export_onnx(model, batch(), tmp_path / 'model.onnx')
