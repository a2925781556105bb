"""Activation quantizers that start from what they first see."""
import pytest
import torch
import torch.distributed as dist

from gdrq_mm.quantizers import LSQActivation, PACTActivation
from gdrq_mm.quantizers.first_batch import sum_over_ranks_


@pytest.mark.parametrize('ranks, sums', [(2, [3., 6.]), (1, [1., 2.])])
def test_sums_are_those_of_all_ranks(ranks, sums, monkeypatch):
    """The other rank has twice as much of everything."""
    monkeypatch.setattr(dist, 'is_initialized', lambda: True)
    monkeypatch.setattr(dist, 'get_world_size', lambda: ranks)
    monkeypatch.setattr(dist, 'all_reduce', lambda x: x.mul_(3))
    values = torch.tensor([1., 2.])
    sum_over_ranks_(values)
    assert values.tolist() == sums


def test_the_start_is_the_mean_over_forwards_and_ranks(monkeypatch):
    """The other rank saw three times the values, all of them 4."""
    monkeypatch.setattr(dist, 'is_initialized', lambda: True)
    monkeypatch.setattr(dist, 'get_world_size', lambda: 2)
    monkeypatch.setattr(dist, 'all_reduce', lambda x: x.add_(
        torch.tensor([[60., 0., 60. * 4.]])))
    quantizer = LSQActivation(bits=4)
    for value in (1., 2.):
        quantizer.observe(torch.full((10, ), value))
    LSQActivation.update_([quantizer])
    mean = (10 * 1 + 10 * 2 + 60 * 4) / 80
    assert float(quantizer.step.detached) == pytest.approx(
        2 * mean / 15**.5)


@pytest.mark.parametrize('kind', [LSQActivation, PACTActivation])
def test_entries_that_were_written_are_read_again(kind):
    quantizer, fresh = kind(bits=4), kind(bits=4)
    quantizer.observe(torch.randn(50))
    kind.update_([quantizer])
    assert quantizer.initialized and quantizer.is_signed
    quantizer.load_state_dict(fresh.state_dict())
    quantizer.forget()
    assert not quantizer.initialized and not quantizer.is_signed
    x = torch.rand(9)
    assert quantizer(x) is x


@pytest.mark.parametrize('kind', [LSQActivation, PACTActivation])
@pytest.mark.parametrize('batch, signed', [(18, False), (19, False),
                                           (20, True), (21, False),
                                           (40, True)])
def test_negative_values_are_looked_for_once_in_20_steps(kind, batch,
                                                         signed):
    """After the start; one batch of many has them."""
    torch.manual_seed(0)
    quantizer = kind(bits=4)
    for number in range(50):
        quantizer.observe(torch.rand(40) - float(number == batch))
        kind.update_([quantizer])
    assert quantizer.is_signed == signed


@pytest.mark.parametrize('kind', [LSQActivation, PACTActivation])
def test_a_training_that_is_resumed_often_looks_for_them_as_well(kind):
    torch.manual_seed(0)
    quantizer = kind(bits=4)
    for number in range(12):
        if number % 4 == 0:
            quantizer.forget()  # what a load does
        quantizer.observe(torch.rand(40) - float(number > 5))
        kind.update_([quantizer])
    assert quantizer.is_signed


def test_only_the_batches_that_are_counted_are_read():
    quantizer = LSQActivation(bits=4)
    for number in range(3):
        assert not quantizer.seen.any()
        quantizer.observe(torch.rand(40))
        assert bool(quantizer.seen.any()) == (number == 0)
        LSQActivation.update_([quantizer])


def test_an_empty_input_says_nothing():
    quantizer = LSQActivation(bits=4)
    quantizer.observe(torch.rand(0, 4))
    LSQActivation.update_([quantizer])
    assert not quantizer.initialized
