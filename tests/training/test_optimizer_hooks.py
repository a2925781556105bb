"""Optimizers keep their hooks, whatever torch.compile does to them."""
import pytest
import torch
from torch import nn

import gdrq_mm
from gdrq_mm.training.optimizer_hooks import keep_optimizer_hooks


class OwnSGD(torch.optim.SGD):
    """A step of its own, as optimizers of other packages have."""

    def step(self, closure=None):
        return super().step(closure)


def without_hooks(kind):
    """What torch._dynamo of torch 2.1 does to an optimizer class."""
    step = kind.step
    if getattr(step, 'hooked', False):
        kind.step = step.__wrapped__
    kind.step.hooked = True


@pytest.fixture
def kind(request):
    before = request.param.step
    yield request.param
    request.param.step = before


def weight_after_a_step(kind, strip):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4))
    gdrq_mm.quantize_(model, dict(weight=dict(bits=2)))
    optimizer = kind(model.parameters(), lr=.1)
    if strip:
        without_hooks(kind)
    model(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    clip = model[0].weight_quantizer.clip
    assert (model[0].weight.abs() <= clip).all()
    return model[0].weight.detach()


@pytest.mark.parametrize('kind', [
    torch.optim.SGD, torch.optim.AdamW, OwnSGD], indirect=True)
def test_weights_are_projected_after_torch_compile_took_the_hooks_off(kind):
    assert torch.equal(weight_after_a_step(kind, strip=True),
                       weight_after_a_step(kind, strip=False))


@pytest.mark.parametrize('kind', [torch.optim.SGD, torch.optim.AdamW],
                         indirect=True)
def test_hooks_run_once_however_often_they_are_kept(kind):
    calls, optimizer = [], kind([nn.Parameter(torch.ones(1))], lr=.1)
    optimizer.register_step_post_hook(lambda *_: calls.append(1))
    for strip in (False, True, True):
        if strip:
            without_hooks(kind)
        keep_optimizer_hooks()
        keep_optimizer_hooks()
        calls.clear()
        optimizer.step()
        assert len(calls) == 1
