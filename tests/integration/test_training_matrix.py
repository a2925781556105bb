"""Quantization-aware training under everything that people train with.

Every cell runs mmengine's Runner on a tiny ResNet-18 and says what it compares
with the plain run of the same model, data and seed. Distributed training is in
test_distributed.py (weights and thresholds equal those of one process with
the joint batch, one collective a step for all layers), resuming each setting
alone in test_resume.py.
"""
import copy

import pytest
import torch
from mmengine.hooks import Hook
from mmengine.model import convert_sync_batchnorm

from gdrq_mm import quantize_
from gdrq_mm.functional import expand_clip
from gdrq_mm.layers import QuantLayer
from gdrq_mm.training import any_threshold, get_state

HOOK = dict(type='GDRQHook', quantization=dict(
    weight=dict(bits=4), activation=dict(bits=4)))
# Four iterations of a batch of 4, at one learning rate.
SMALL = {'model.backbone.depth': 18, 'model.head.in_channels': 32,
         'model.backbone.strides': (1, 2, 2, 2), 'param_scheduler': [],
         'optim_wrapper.optimizer.lr': .05}


@pytest.fixture
def train(make_runner, tmp_path):
    """Function *hooks, **options of the config -> Runner after its run."""
    numbers = iter(range(9))

    def run(*hooks, hook=HOOK, work_dir=None, **options):
        runner = make_runner(
            'resnet', hook, *(one for one in hooks if isinstance(one, dict)),
            work_dir=work_dir or tmp_path / f'run_{next(numbers)}',
            **{**SMALL, **options})
        for one in hooks:
            if isinstance(one, Hook):
                runner.register_hook(one)
        runner.train()
        return runner

    return run


def entries(runner):
    return runner.model.state_dict()


def assert_same(one, other, but=()):
    """Losses, weights, statistics and thresholds, bit for bit."""
    assert one.record.losses == other.record.losses
    ours, theirs = entries(one), entries(other)
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        if not key.endswith(but):
            assert torch.equal(ours[key], value), key


def assert_inside(runner):
    """Every stored weight within the clip value of its group."""
    for name, layer in runner.model.named_modules():
        if isinstance(layer, QuantLayer):
            clip = expand_clip(layer.weight_quantizer.clip, layer.weight, 4)
            assert (clip > 0).all() and (layer.weight.abs() <= clip).all()


def distance(one, other, start):
    """Of the weights after two runs, in units of what the second learned."""
    ours, theirs = entries(one), entries(other)
    parts = [((ours[key] - value).square().sum(),
              (value - start[key]).square().sum())
             for key, value in theirs.items()
             if key.endswith(('.weight', '.bias'))]
    apart, moved = (torch.stack(column).sum().sqrt() for column in zip(*parts))
    assert moved > 0
    return float(apart / moved)


def thresholds(runner):
    return torch.stack([
        quantizer.clip for quantizer in
        get_state(runner.model).activation_quantizers.values()])


class Start(Hook):
    """Keep the weights that training begins with."""

    def before_train(self, runner):
        self.weights = copy.deepcopy(runner.model.state_dict())


# -- mixed precision ----------------------------------------------------------


@pytest.mark.parametrize('dtype, site, tolerance', [
    ('bfloat16', 'input', .15), ('bfloat16', 'relu', .15),
    ('float16', 'input', .05)])
def test_mixed_precision(dtype, site, tolerance, amp, train):
    """Thresholds equal those of float32 up to the precision, entries keep
    their dtype, weights stay inside. (Gradients round to other codes: weights
    are not compared.)"""
    hook = dict(type='GDRQHook', quantization=dict(
        weight=dict(bits=4), activation=dict(bits=4, site=site)))
    plain = train(hook=hook)
    runner = train(hook=hook, **{'optim_wrapper.type': 'AmpOptimWrapper',
                                 'optim_wrapper.dtype': dtype,
                                 'optim_wrapper.loss_scale': 64.})
    assert runner.record.losses != plain.record.losses  # it was used
    for key, value in entries(plain).items():
        assert entries(runner)[key].dtype == value.dtype, key
    ours, theirs = thresholds(runner), thresholds(plain)
    assert ((ours - theirs).abs() <= tolerance * theirs).all(), \
        float(((ours - theirs).abs() / theirs).max())
    assert_inside(runner)


def test_overflown_steps_of_float16_are_skipped(amp, train):
    """The loss scale overflows until GradScaler has halved it often enough:
    thresholds move and weights are projected in the other steps only."""
    runner = train(**{'optim_wrapper.type': 'AmpOptimWrapper',
                      'optim_wrapper.dtype': 'float16',
                      'optim_wrapper.loss_scale': dict(
                          init_scale=2.**24, backoff_factor=2.**-10)})
    scale = runner.optim_wrapper.loss_scaler.get_scale()
    skipped = {2.**14: 1, 2.**4: 2}[scale]
    updates = {int(quantizer.num_updates) for quantizer in get_state(
        runner.model).activation_quantizers.values()}
    assert updates == {4 - skipped}
    assert_inside(runner)


# -- gradients ----------------------------------------------------------------


def test_gradient_accumulation(train):
    """Two batches of 2 a step: thresholds and weights are those of the plain
    run with batches of 4, up to codes that float noise rounds otherwise.
    Batch statistics, which would differ, are frozen."""
    start = Start()
    frozen = {'model.backbone.norm_eval': True}
    # A threshold that is exactly that of the joint batch.
    hook = dict(HOOK, quantization=dict(
        weight=dict(bits=4), activation=dict(bits=4, threshold='nonzero')))
    plain = train(start, hook=hook, **frozen)
    runner = train(hook=hook, **frozen, **{
        'optim_wrapper.accumulative_counts': 2,
        'train_dataloader.batch_size': 2})
    assert len(runner.record.losses) == 8
    torch.testing.assert_close(thresholds(runner), thresholds(plain),
                               rtol=1e-2, atol=0)
    assert distance(runner, plain, start.weights) < .05
    assert_inside(runner)


def test_gradient_clipping_that_does_not_bite(train):
    """The very run without it."""
    assert_same(train(**{'optim_wrapper.clip_grad': dict(max_norm=1e9)}),
                train())


def test_gradient_clipping_that_bites(train):
    """The first loss is that of the plain run; the last step is the short one
    that the norm allows, but for the projection: weights stay inside."""
    start, clipped = Start(), {'optim_wrapper.clip_grad': dict(max_norm=1e-6)}
    plain = train()
    runner = train(start, **clipped)
    assert runner.record.losses[0] == plain.record.losses[0]
    assert_inside(runner)
    for name, layer in runner.model.named_modules():
        if isinstance(layer, QuantLayer):
            before = start.weights[f'{name}.weight']
            clip = expand_clip(layer.weight_quantizer.clip, before, 4)
            moved = layer.weight - torch.clamp(before, -clip, clip)
            assert moved.norm() < 1e-3 * before.norm()  # and weight decay


def test_activation_checkpointing(train):
    """Bit for bit the run without it: repeated forwards do not count. (But in
    the running statistics of batch normalization, as in float training.)"""
    assert_same(train(**{'model.backbone.with_cp': True}), train(),
                but=('running_mean', 'running_var', 'num_batches_tracked'))


# -- normalization, averaging -------------------------------------------------


def test_sync_bn_that_the_runner_turns_into_bn(train):
    """Bit for bit the plain run: without processes to talk to, mmengine
    replaces SyncBN layers."""
    assert_same(train(**{'model.backbone.norm_cfg': dict(type='SyncBN')}),
                train())


def test_sync_bn_that_the_runner_puts_into_a_quantized_model(train):
    """What mmengine does for ``sync_bn='torch'`` after a QuantizedModel is
    built: entries, report and training stay. SyncBN itself needs a GPU to
    synchronize."""
    plain, runner = train(), train(train_cfg=dict(max_epochs=0))
    quantized = runner.model
    before = {id(parameter) for parameter in quantized.parameters()}
    converted = convert_sync_batchnorm(quantized, 'torch')
    norms = [module for module in converted.modules()
             if isinstance(module, torch.nn.SyncBatchNorm)]
    assert len(norms) == 20
    assert {id(parameter) for parameter in converted.parameters()} == before
    assert entries(plain).keys() == converted.state_dict().keys()
    data = torch.rand(2, 3, 32, 32)
    optimizer = torch.optim.SGD(converted.parameters(), .1)
    converted.train()
    converted(data)[0].sum().backward()
    optimizer.step()
    assert_inside(runner)
    assert any_threshold(get_state(converted))


def test_sync_bn_whose_output_is_quantized(train):
    """A QuantizedModel with 8-bit residual sums trains bit for bit as that of
    plain BN, whose norms mmengine does not replace; all outputs have
    thresholds."""
    outputs = ['backbone.layer*.*.bn2', 'backbone.layer*.0']
    model = {'model.type': 'QuantizedModel',
             'model.architecture': 'ImageClassifier',
             'model.quantization': dict(HOOK['quantization'], residual=dict(
                 outputs=outputs))}
    hook = dict(type='GDRQHook')
    runner = train(hook=hook, **model, **{
        'model.backbone.norm_cfg': dict(type='SyncBN')})
    assert_same(runner, train(hook=hook, **model))
    clips = {key: value for key, value in entries(runner).items()
             if key.endswith('output_quantizer.quantizer.clip')}
    assert len(clips) == 12 and all(clip > 0 for clip in clips.values())


def test_ema(train):
    """The model trains bit for bit as without it; the average is that of its
    weights after each step."""

    class Weights(Hook):

        def __init__(self):
            self.average = None

        def after_train_iter(self, runner, *_, **kwargs):
            now = {key: value.detach().double().clone() for key, value in
                   runner.model.named_parameters()}
            self.average = now if self.average is None else {
                key: .7 * self.average[key] + .3 * value
                for key, value in now.items()}

    weights = Weights()
    runner = train(dict(type='EMAHook', momentum=.3), weights)
    assert_same(runner, train())
    ema = next(hook for hook in runner.hooks
               if type(hook).__name__ == 'EMAHook').ema_model.module
    for key, value in ema.named_parameters():
        torch.testing.assert_close(value.double(), weights.average[key],
                                   rtol=1e-5, atol=1e-7, msg=key)


# -- compilation --------------------------------------------------------------


def test_compile(train):
    """``compile=`` of mmengine, with torch's ahead-of-time tracing but no code
    generation (which takes minutes): losses, weights and thresholds are those
    of the plain run up to float noise."""
    start = Start()
    one_stage = {'model.backbone.num_stages': 1, 'model.head.in_channels': 4,
                 'model.backbone.out_indices': (0, ),
                 'model.backbone.strides': (2, ),
                 'model.backbone.dilations': (1, )}
    plain = train(start, **one_stage)
    runner = train(compile=dict(backend='aot_eager'), **one_stage)
    for ours, theirs in zip(runner.record.losses, plain.record.losses):
        assert ours['loss'] == pytest.approx(theirs['loss'], rel=1e-3)
    torch.testing.assert_close(thresholds(runner), thresholds(plain),
                               rtol=1e-2, atol=0)
    assert distance(runner, plain, start.weights) < .05
    assert_inside(runner)


class Block(torch.nn.Module):
    """A residual block between a stem and a classifier."""

    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3, padding=1)
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1)
        self.bn1, self.bn2 = torch.nn.BatchNorm2d(4), torch.nn.BatchNorm2d(4)
        self.fc = torch.nn.Linear(4, 2)

    def forward(self, x):
        x = self.bn1(self.stem(x)).relu()
        x = (self.bn2(self.conv(x)) + x).relu()
        return self.fc(x.mean((2, 3)))


def test_generated_code():
    """torch.compile with inductor: losses and weights of the plain run up to
    float noise. A small network, without mmengine: with torch 2.14 inductor
    ends the process in the backward pass of the tiny ResNet, also of the
    float one."""
    def train(compiled):
        torch.manual_seed(0)
        model = Block()
        quantize_(model, HOOK['quantization'])
        forward = torch.compile(model) if compiled else model
        optimizer = torch.optim.SGD(model.parameters(), .05)
        losses = []
        for _ in range(3):
            loss = forward(torch.randn(4, 3, 8, 8)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss))
        return losses, model.state_dict()

    (ours, weights), (theirs, expected) = train(True), train(False)
    assert ours == pytest.approx(theirs, rel=1e-4)
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-4, atol=1e-5,
                                   msg=key)


# -- everything at once -------------------------------------------------------


@pytest.mark.parametrize('begin_iter', [1, 3])
def test_resumed_in_the_middle_of_a_phase_with_everything_on(
        begin_iter, amp, train, tmp_path):
    """bfloat16, accumulation, checkpointing, gradient clipping, EMA, searched
    clip values: the run resumed after iteration 2, in the reshape phase or
    after it, is bit for bit the uninterrupted one."""
    hook = dict(type='GDRQHook', begin_iter=begin_iter, quantization=dict(
        weight=dict(bits=3, clip='search'), activation=dict(bits=4)))
    options = {'optim_wrapper.type': 'AmpOptimWrapper',
               'optim_wrapper.dtype': 'bfloat16',
               'optim_wrapper.accumulative_counts': 2,
               'optim_wrapper.clip_grad': dict(max_norm=1.),
               'model.backbone.with_cp': True}
    ema = dict(type='EMAHook', momentum=.3)
    whole = train(ema, hook=hook, **options)
    halves = dict(hook=hook, work_dir=tmp_path / 'halves', **options)
    first = train(ema, train_cfg=dict(max_epochs=1), **halves)
    second = train(ema, resume=True, **halves)
    assert whole.record.phases == first.record.phases + second.record.phases
    assert whole.record.losses == first.record.losses + second.record.losses
    for key, value in entries(whole).items():
        assert torch.equal(entries(second)[key], value), key
