"""Recalibrated batch normalization against statistics taken by hand."""
import pytest
import torch
from torch import nn

from gdrq_mm import calibrate, quantize_, update_bn_stats
from gdrq_mm.training import get_state

W2A4 = dict(weight=dict(bits=2), activation=dict(bits=4))


class Net(nn.Module):

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 4, 3), nn.BatchNorm2d(4)
        self.dropout = nn.Dropout(.5)
        self.unused = nn.BatchNorm2d(4)

    def forward(self, x):
        self.first = self.conv1(x)
        self.second = self.conv2(self.dropout(self.bn1(self.first).relu()))
        return self.bn2(self.second)


def make(config=W2A4):
    torch.manual_seed(0)
    model = Net()
    for norm in (model.bn1, model.bn2, model.unused):
        norm.running_mean.fill_(7.)
        norm.running_var.fill_(7.)
        norm.num_batches_tracked.fill_(5)
    quantize_(model, config)
    return model


def batches(number=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(4, 3, 8, 8, generator=generator) * (1 + i)
            for i in range(number)]


def forwards(model, inputs):
    return ((lambda x=x: model(x)) for x in inputs)


def snapshot(model):
    return {key: value.clone() for key, value in model.state_dict().items()}


def test_statistics_are_the_means_over_batches_of_the_quantized_model():
    model, inputs = make(), batches()
    assert update_bn_stats(model, forwards(model, inputs)) == 3
    means, variances = [], []
    for x in inputs:  # conv1 sees a quantized weight and a float input
        out = nn.functional.conv2d(
            x, model.conv1.weight_quantizer(model.conv1.weight),
            model.conv1.bias).double().transpose(0, 1).flatten(1)
        means.append(out.mean(1))
        variances.append(out.var(1))
    for ours, expected in ((model.bn1.running_mean, means),
                           (model.bn1.running_var, variances)):
        torch.testing.assert_close(
            ours, torch.stack(expected).mean(0).float(), rtol=1e-5, atol=1e-6)


def test_everything_else_stays():
    model, inputs = make(), batches()
    calibrate(model, forwards(model, inputs))
    model.train()
    model.bn2.eval()  # frozen, recalibrated nevertheless
    model.bn2.requires_grad_(False)
    modes = [module.training for module in model.modules()]
    before = snapshot(model)
    update_bn_stats(model, forwards(model, inputs))
    assert [module.training for module in model.modules()] == modes
    for key, value in model.state_dict().items():
        changed = key.startswith(('bn1.running', 'bn2.running'))
        assert torch.equal(value, before[key]) != changed, key
    assert model.bn1.momentum == .1
    assert not any(quantizer.seen.any() for quantizer in
                   get_state(model).activation_quantizers.values())


def test_training_after_it_is_not_disturbed():
    """Nothing of the recalibration leaks into thresholds or weights."""
    results = []
    for recalibrated in (False, True):
        model = make()
        model.dropout.p = 0.
        if recalibrated:
            update_bn_stats(model, forwards(model, batches()))
        optimizer = torch.optim.SGD(model.parameters(), .1)
        model(batches(1)[0]).square().mean().backward()
        optimizer.step()
        results.append(snapshot(model))
    for key, value in results[0].items():
        if 'running' not in key:
            assert torch.equal(results[1][key], value), key


def test_no_threshold_is_no_warning_here_and_one_later(recwarn):
    model = make()
    update_bn_stats(model, forwards(model, batches()))
    assert not recwarn
    model.eval()(batches()[0])
    assert 'threshold is not set' in str(recwarn.pop(UserWarning).message)


@pytest.mark.parametrize('calls, error', [
    ([], ValueError), ([lambda: 1 / 0], ZeroDivisionError)])
def test_statistics_come_back_where_it_fails(calls, error):
    model = make()
    model.train()
    before = snapshot(model)
    with pytest.raises(error):
        update_bn_stats(model, [
            *([lambda: model(batches()[0])] if calls else []), *calls])
    assert all(torch.equal(value, before[key])
               for key, value in model.state_dict().items())
    assert model.training and model.bn1.momentum == .1


def test_models_without_batch_normalization_and_float_models_pass():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(
        4, track_running_stats=False), nn.GroupNorm(2, 4))
    assert update_bn_stats(model, forwards(model, batches())) == 3


def test_less_is_lost_with_recalibrated_statistics():
    """What it is for: 2-bit weights change the scale of what BN sees."""
    torch.manual_seed(0)
    model, inputs = Net(), batches()
    model.dropout.p = 0.
    update_bn_stats(model, forwards(model, inputs))
    expected = model.eval()(inputs[0])
    quantize_(model, dict(weight=dict(bits=2)))
    before = (model(inputs[0]) - expected).square().mean()
    update_bn_stats(model, forwards(model, inputs))
    after = (model(inputs[0]) - expected).square().mean()
    assert after < before
