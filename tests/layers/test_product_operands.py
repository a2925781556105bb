"""Which product is which, which have a weight, and what nobody reaches."""
import copy
import pickle

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from mmcv.cnn.bricks.non_local import NonLocal2d
from mmpretrain.models.utils import MultiheadAttention
from mmseg.models.decode_heads.ema_head import EMAModule
from mmseg.models.decode_heads.ham_head import NMF2D
from torch import nn
from torch.utils.checkpoint import checkpoint

import gdrq_mm
from gdrq_mm.deploy import merge
from gdrq_mm.layers import register_products
from gdrq_mm.layers.scaled_attention import attention
from gdrq_mm.training import get_state

PRODUCTS = dict(products=dict(bits=4))
W4A4 = dict(weight=dict(bits=4), activation=dict(bits=4), **PRODUCTS)


class LoopedEMA(EMAModule):
    """Of another class, so that its source is counted."""


class LoopedNMF(NMF2D):
    """The same."""


class Registered(EMAModule):
    """Three stages of two products, and one."""


register_products(Registered, 7)


def made(part, config=PRODUCTS):
    torch.manual_seed(0)
    model = nn.Sequential(part)
    gdrq_mm.quantize_(model, config)
    return model


def step(model, *inputs):
    optimizer = torch.optim.SGD(model.parameters(), lr=.01)
    for x in inputs:
        optimizer.zero_grad()
        out = model(x)
        out = out['out'][0] if isinstance(out, dict) else out
        out.square().mean().backward()
        optimizer.step()


def tokens(seed=0):
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(seed))


# -- one place in the code for each product -----------------------------------


@pytest.mark.parametrize('part, x', [
    (lambda: LoopedEMA(16, 4, 3, 1.), torch.randn(2, 16, 4, 4)),
    (lambda: LoopedNMF(dict(MD_R=4)), torch.rand(2, 16, 4, 4))])
@pytest.mark.parametrize('training', [True, False])
def test_a_loop_of_only_some_products_is_refused(part, x, training):
    model = made(nn.Sequential(nn.Conv2d(16, 16, 1), nn.ReLU(), part()))
    with pytest.raises(RuntimeError, match=(
            r"^0\.2 multiplies activations in an order that changes.*"
            r"match='0\.2', products=dict\(bits=None\).*register_products")):
        model.train(training)(x)


def test_the_products_of_such_a_loop_that_is_registered_are_told_apart():
    model = made(nn.Sequential(
        nn.Conv2d(16, 16, 1), Registered(16, 4, 3, 1.)))
    x = torch.randn(2, 16, 4, 4)
    for training in (True, False):
        model.train(training)(x)
    assert model[0][1].product_quantizers.seen == set(range(7))


class Auxiliary(nn.Module):
    """Training has a product more, before the others."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        x = self.fc(x)
        if self.training:
            x = x + (x.mT @ x).sum(-1)[:, None]
        weights = (x @ x.mT).softmax(-1)
        return weights @ x


def test_an_order_that_evaluation_changes_is_refused_there():
    model = made(Auxiliary(), W4A4)
    step(model, tokens())
    twin = copy.deepcopy(model)
    for each in (model, twin):
        with pytest.raises(RuntimeError, match='an order that changes'):
            each.eval()(tokens())
    with pytest.raises(RuntimeError, match='an order that changes'):
        merge(model, tokens())


def test_a_pickle_may_be_read_where_the_code_is_another():
    model = made(Auxiliary())
    model(tokens())
    assert model[0].product_quantizers.sites
    again = pickle.loads(pickle.dumps(model))
    assert not again[0].product_quantizers.sites


class Sometimes(nn.Linear):

    def forward(self, x):
        x = super().forward(x)
        if len(x) > 3:
            return x @ x.mT @ x
        return (x @ x.mT).softmax(-1) @ x


def test_a_merged_model_refuses_an_order_that_its_example_did_not_have():
    model = made(nn.Sequential(nn.Linear(8, 8), Sometimes(8, 8)), W4A4)
    gdrq_mm.calibrate(model, [lambda: model(tokens())])
    merged = merge(model, tokens())
    with pytest.raises(RuntimeError, match='0.1 multiplies activations in an'):
        merged(torch.randn(4, 5, 8))


def test_torchs_attention_may_give_its_weights_or_not():
    model = made(nn.MultiheadAttention(8, 2, batch_first=True))
    x = tokens()
    model[0](x, x, x, need_weights=True)
    model[0](x, x, x, need_weights=False)
    assert model[0].product_quantizers.seen == {0, 1}


# -- weights ------------------------------------------------------------------


class Views(nn.Module):
    """Products with views of weights, and one of activations."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(8, 8))
        self.fc, self.skipped = nn.Linear(8, 8), nn.Linear(8, 8)
        self.other = None

    def forward(self, x):
        x = x @ self.fc.weight.t()
        x = x @ self.fc.weight[:, :8].mT
        x = x @ self.matrix.t() @ self.skipped.weight.t()
        if self.other is not None:
            x = x @ self.other[0].weight.t()
        return x @ x.mT @ x


@pytest.mark.parametrize('mode', [
    torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_views_of_weights_are_weights_in_every_mode(mode):
    model = made(nn.ModuleList([Views(), nn.Linear(8, 8)]),
                 dict(weight=dict(bits=4), **PRODUCTS,
                      rules=[dict(match='*skipped', skip=True)]))
    views = model[0][0]
    views.other = (model[0][1], )  # a layer of another module
    with mode():
        views(tokens().clone())
    assert views.product_quantizers.of_weights == {0, 1, 2, 3, 4}
    assert views.product_quantizers.seen == {5, 6}


class Either(nn.Module):
    """One product, with a Parameter or without."""

    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return x @ (self.matrix if len(x) > 3 else x.mT)


def test_merging_refuses_a_product_that_has_a_weight_in_some_calls_only():
    model = made(nn.Sequential(nn.Linear(8, 8), Either()), W4A4)
    gdrq_mm.calibrate(model, [lambda: model(tokens()),
                              lambda: model(torch.randn(4, 5, 8))])
    with pytest.raises(ValueError, match=(
            r"^0\.1: product 1 .* with a weight .*match='0\.1'")):
        merge(model, tokens())


# -- what is learned and not reached ------------------------------------------


@pytest.fixture
def one_process(tmp_path):
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store',
                            rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize('name', ['LSQ', 'LSQPlus', 'PACT'])
@pytest.mark.parametrize('part', [
    lambda: NonLocal2d(8, reduction=2),  # two of four are of other modes
    lambda: nn.Sequential(nn.Flatten(2), Alternating())])
def test_distributed_training_waits_for_no_product_that_is_not_reached(
        name, part, one_process):
    model = nn.Sequential(nn.Conv2d(3, 8, 1), part())
    gdrq_mm.quantize_(model, dict(
        weight=dict(bits=4), activation=dict(bits=8),
        products=dict(type=name, bits=8)))
    wrapped = nn.parallel.DistributedDataParallel(model)
    step(wrapped, *(torch.randn(2, 3, 8, 1) for _ in range(4)))
    learned = [parameter for plan in get_state(model).plans
               for parameter in plan.learned_parameters().values()]
    assert learned
    assert all(each.grad is not None and each.isfinite().all()
               for each in learned)


class Alternating(nn.Module):
    """Every second forward has a product more; returns no tensor."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        x = x @ x.mT
        return dict(out=[x @ x if self.calls % 2 else x])


# -- dtypes -------------------------------------------------------------------


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_a_float32_mask_leaves_attention_in_half_precision(dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 2, 5, 8, generator=generator).to(dtype)
               for _ in range(3))
    mask = torch.randn(5, 5, generator=generator)
    mask[0, 1] = -float('inf')
    ours = attention(torch.matmul, q, k, v, mask)
    theirs = F.scaled_dot_product_attention(q, k, v, mask)
    assert ours.dtype is theirs.dtype is dtype
    torch.testing.assert_close(ours, theirs, atol=2e-2, rtol=2e-2)


# -- activation checkpointing -------------------------------------------------


class Inside(nn.Module):
    """Checkpoints a part of its own forward."""

    def __init__(self, reentrant):
        super().__init__()
        self.qkv = nn.Linear(8, 24)
        self.reentrant = reentrant

    def forward(self, x):
        return checkpoint(self.attend, x, use_reentrant=self.reentrant)

    def attend(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return (q @ k.mT).softmax(-1) @ v


class Around(nn.Module):
    """Multiplies, and checkpoints a module that does so, as blocks of the
    packages do."""

    def __init__(self, reentrant):
        super().__init__()
        self.attn = MultiheadAttention(8, 2)
        self.reentrant = reentrant

    def forward(self, x):
        def inner(x):
            return x + self.attn(x)

        x = checkpoint(inner, x, use_reentrant=self.reentrant) \
            if self.reentrant is not None else inner(x)
        return x @ x.mT @ x


@pytest.mark.parametrize('reentrant', [False, True])
def test_a_module_that_checkpoints_its_own_products_is_refused(reentrant):
    model = made(Inside(reentrant))
    with pytest.raises(RuntimeError, match=(
            r"^0 checkpoints a part of its own forward .*match='0'")):
        model(tokens().requires_grad_())
    with torch.no_grad():  # nothing is repeated
        model(tokens())
    floats = made(Inside(reentrant), dict(
        weight=dict(bits=4), **PRODUCTS,
        rules=[dict(match='0', products=dict(bits=None))]))
    step(floats, tokens().requires_grad_())


@pytest.mark.parametrize('reentrant', [False, True])
def test_checkpointing_around_an_attention_module_changes_nothing(reentrant):
    gradients = []
    for how in (None, reentrant):
        model = made(Around(how), W4A4)
        x = tokens().requires_grad_()
        step(model, x, x)
        gradients.append([x.grad, *(each.grad for each in model.parameters()
                                    if each.grad is not None)])
    assert len(gradients[0]) > 3
    assert all(map(torch.equal, *gradients))
