"""Every registered quantizer under everything that training and deployment do.

A new one is tested by being registered. What these tests compare with is what
the quantizer itself says it computes, its ``forward``; whether that is what a
paper says is the matter of tests/quantizers.
"""
import copy
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import nn
from torch.utils.checkpoint import checkpoint

from gdrq_mm import quantize_
from gdrq_mm.checkpoint import pack
from gdrq_mm.deploy import export_onnx, merge
from gdrq_mm.merge import merge_errors
from gdrq_mm.openmmlab.publish import publish
from gdrq_mm.openmmlab.reading import read_checkpoint
from gdrq_mm.openmmlab.scopes import build_model
from gdrq_mm.quantizers import (
    QUANTIZERS,
    ActivationQuantizer,
    WeightQuantizer,
)
from gdrq_mm.training import get_state

# Options under which a type computes something else.
OPTIONS = {
    'ScaleClip, zero points': dict(
        weight=dict(levels='even'),
        activation=dict(threshold='mse', asymmetric=True)),
    'ScaleClip, learned': dict(
        weight=dict(clip='search'), activation=dict(threshold='learned')),
    'ScaleClip, learned clip': dict(
        weight=dict(clip='learned', levels='even')),
    'ScaleClip, learned clip in the forward': dict(
        weight=dict(clip='learned', projection=False))}
NAMES = sorted([*QUANTIZERS, *OPTIONS])
# Bits, filters a group and site of the activations.
CASES = [dict(bits=(4, 4), group_size=2, site='input'),
         dict(bits=(2, 4), group_size=-1, site='relu'),
         dict(bits=(3, 8), group_size=1, site='input')]
WORKER = Path(__file__).with_name('quantizer_worker.py')


def pair_of(name):
    return QUANTIZERS[name.partition(',')[0]]


def quantization(name, bits, group_size, site):
    """A config in which both sides are of that type, where it has both, and
    a rule gives the last layer other bits."""
    pair, options = pair_of(name), OPTIONS.get(name, {})
    weight = dict(bits=bits[0], group_size=group_size,
                  **options.get('weight', {}))
    activation = dict(bits=bits[1], site=site,
                      **options.get('activation', {}))
    for scheme, quantizer in ((weight, pair.weight),
                              (activation, pair.activation)):
        if quantizer is not None:
            scheme['type'] = name.partition(',')[0]
    return dict(weight=weight, activation=activation, rules=[
        dict(match='7', weight=dict(bits=6), activation=dict(bits=6))])


def make(name, **case):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(),
        nn.Conv2d(6, 5, 3, stride=2), nn.BatchNorm2d(5), nn.ReLU(),
        nn.Flatten(), nn.Linear(5 * 9, 4))
    return model, quantize_(model, quantization(name, **case))


def batch(seed):
    return torch.randn(4, 3, 8, 8,
                       generator=torch.Generator().manual_seed(seed))


def optimizer_of(model):
    return torch.optim.SGD(model.parameters(), .05, momentum=.9)


def train(model, optimizer, steps):
    model.train()
    for step in steps:
        optimizer.zero_grad()
        model(batch(step)).square().mean().backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.fixture(params=CASES, ids=lambda case: '_'.join(
    map(str, case.values())))
def case(request):
    return request.param


def assert_equal(ours, expected):
    assert ours.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.equal(ours[key], value), key


def same_outputs(one, other):
    with torch.no_grad():
        return torch.equal(one(batch(9)), other(batch(9)))


def has_codes(quantizer):
    """Whether a type says that it has integer codes."""
    default = WeightQuantizer.codes if isinstance(
        quantizer, WeightQuantizer) else ActivationQuantizer.code_range
    return getattr(type(quantizer), default.__name__) is not default


def test_trains_with_rules_sites_and_groups(name, case):
    """All that learns moves, where it has a gradient, and stays finite; as
    many values a group as the bits allow; the layer of the rule has those of
    the rule."""
    model, report = make(name, **case)
    optimizer = optimizer_of(model)
    train(model, optimizer, range(2))  # the first one starts it
    before = {key: value.detach().clone()
              for key, value in report.learned_parameters().items()}
    weight = model[3].weight.detach().clone()
    train(model, optimizer, range(2, 4))
    assert not torch.equal(weight, model[3].weight)
    moved = {key for key, value in report.learned_parameters().items()
             if not torch.equal(value, before[key])}
    for key, value in report.learned_parameters().items():
        assert torch.isfinite(value).all(), key
        # A clip value that clips nothing, or of an input that a ReLU rounds,
        # or steps that float32 does not see.
        assert key in moved or value.grad is None or bool(
            (.05 * value.grad.abs() <= 1e-6 * value.abs()).all()), key
    assert bool(moved) == bool(before)
    for index, bits in ((0, case['bits'][0]), (3, case['bits'][0]), (7, 6)):
        quantizer = model[index].weight_quantizer
        assert quantizer.bits == bits
        if pair_of(name).weight:
            assert type(quantizer).Scheme is pair_of(name).weight.Scheme
        weight = quantizer(model[index].weight).detach()
        size = len(weight) if case['group_size'] == -1 \
            else case['group_size']
        for group in weight.split(size):
            assert group.unique().numel() <= 2**bits
    sites = get_state(model).activation_quantizers
    assert {quantizer.bits for quantizer in sites.values()} == {
        case['bits'][1], 6}
    # Behind a ReLU that rounds, the input of a layer is not rounded again.
    assert [key for key, each in sites.items() if not each.initialized] == (
        ['3.input_quantizer'] if case['site'] == 'relu' else [])


def test_resumed_training_equals_the_uninterrupted_one(name, case):
    whole, _ = make(name, **case)
    train(whole, optimizer_of(whole), range(5))
    first, _ = make(name, **case)
    optimizer = optimizer_of(first)
    train(first, optimizer, range(2))
    second, _ = make(name, **case)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    resumed = optimizer_of(second)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(second, resumed, range(2, 5))
    assert_equal(second.state_dict(), whole.state_dict())


def test_copies_reload_and_pack_bit_for_bit(name, case):
    model, _ = make(name, **case)
    train(model, optimizer_of(model), range(3))
    assert same_outputs(copy.deepcopy(model), model)
    for content in (model.state_dict(), pack(model)):
        other, _ = make(name, **case)
        other.load_state_dict(content)
        assert same_outputs(other.eval(), model)
        # And again, from what was loaded.
        third, _ = make(name, **case)
        third.load_state_dict(pack(other))
        assert same_outputs(third.eval(), model)


def test_an_overflown_step_of_float16_changes_nothing(name, case):
    """But for batch normalization, as in float training; the next one does."""
    model, _ = make(name, **case)
    optimizer = optimizer_of(model)
    train(model, optimizer, range(2))
    scaler = torch.amp.GradScaler('cpu', init_scale=4.)
    for factor, changes in ((float('inf'), False), (1., True)):
        before = {key: value.clone() for key, value
                  in model.state_dict().items() if 'running' not in key
                  and 'num_batches' not in key}
        model.train()
        optimizer.zero_grad()
        scaler.scale(model(batch(3)).square().mean() * factor).backward()
        scaler.step(optimizer)
        scaler.update()
        after = model.state_dict()
        changed = [key for key, value in before.items()
                   if not torch.equal(value, after[key])]
        assert bool(changed) == changes, changed


@pytest.mark.parametrize('reentrant', [True, False])
def test_activation_checkpointing(name, case, reentrant):
    """Bit for bit the training without it: repeated forwards do not count.
    (But in batch normalization, as in float training.)"""
    plain, _ = make(name, **case)
    again, _ = make(name, **case)
    optimizer, other = optimizer_of(plain), optimizer_of(again)
    train(plain, optimizer, range(3))
    again.train()
    for step in range(3):
        other.zero_grad()
        x = checkpoint(again[1:6], again[0](batch(step)),
                       use_reentrant=reentrant)
        again[6:](x).square().mean().backward()
        other.step()
    drop = ('running_mean', 'running_var', 'num_batches_tracked')
    ours, expected = ({key: value for key, value in model.state_dict().items()
                       if not key.endswith(drop)} for model in (again, plain))
    assert_equal(ours, expected)


def test_compiled_it_is_the_same_model(name):
    """With torch's ahead-of-time tracing, up to float noise."""
    plain, _ = make(name, **CASES[0])
    train(plain, optimizer_of(plain), range(2))
    traced, _ = make(name, **CASES[0])
    traced.load_state_dict(copy.deepcopy(plain.state_dict()))
    compiled = torch.compile(traced, backend='aot_eager')
    results = []
    for model, call in ((plain, plain), (traced, compiled)):
        model.train().zero_grad()
        call(batch(5)).square().mean().backward()
        results.append({key: value.grad for key, value
                        in model.named_parameters() if value.grad is not None})
        results[-1]['outputs'] = model.eval() and call(batch(9)).detach()
    assert results[0].keys() == results[1].keys()
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-3,
                                   atol=1e-4, msg=key)


def test_starts_from_a_float_checkpoint(name, case):
    """Nothing of an earlier training is left."""
    model, _ = make(name, **case)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    weights = {key: value for key, value in fresh.items()
               if 'quantiz' not in key}
    train(model, optimizer_of(model), range(2))
    model.load_state_dict(copy.deepcopy(weights), strict=False)
    assert_equal(model.state_dict(), fresh)
    train(model, optimizer_of(model), range(2))
    other, _ = make(name, **case)
    train(other, optimizer_of(other), range(2))
    assert_equal(model.state_dict(), other.state_dict())


def test_merges_or_says_why_not(name, case):
    model, _ = make(name, **case)
    train(model, optimizer_of(model), range(3))
    quantizers = [model[0].weight_quantizer, *get_state(
        model).activation_quantizers.values()]
    if not all(map(has_codes, quantizers)):
        with pytest.raises(ValueError, match='to merge or export, train'):
            merge(model, batch(9))
        return
    with torch.no_grad():
        errors = merge_errors(model, merge(model, batch(9)), batch(9))
    assert len(errors) >= 2 and max(errors.values()) < 1e-5
    for index in (0, 3, 7):
        layer = model[index]
        codes, scale = layer.weight_quantizer.codes(layer.weight)
        assert torch.equal(codes * scale,
                           layer.weight_quantizer(layer.weight))


def test_averages_of_two_models_lie_on_a_grid(name, case):
    """What EMAHook does to parameters: the average is a model that quantizes
    to as many levels, packs, and loads."""
    one, _ = make(name, **case)
    optimizer = optimizer_of(one)
    train(one, optimizer, range(2))
    average = copy.deepcopy(one)
    train(one, optimizer, range(2, 4))
    with torch.no_grad():
        for ours, theirs in zip(average.parameters(), one.parameters()):
            ours.lerp_(theirs, .3)
    other, _ = make(name, **case)
    other.load_state_dict(pack(average))
    assert same_outputs(other.eval(), average)
    for index in (0, 3, 7):
        layer = average[index]
        values = layer.weight_quantizer(layer.weight)
        assert torch.isfinite(values).all()
        size = len(values) if case['group_size'] == -1 \
            else case['group_size']
        assert all(group.unique().numel() <= 2**layer.weight_quantizer.bits
                   for group in values.split(size))


def test_every_code_of_an_export_equals_the_integer_model(name, tmp_path):
    case = CASES[0]
    model, _ = make(name, **case)
    train(model, optimizer_of(model), range(3))
    if not has_codes(model[0].weight_quantizer):
        with pytest.raises(ValueError, match='to merge or export, train'):
            export_onnx(model, batch(9), tmp_path / 'model.onnx')
        assert not list(tmp_path.iterdir())
        return
    report = export_onnx(model, batch(9), tmp_path / 'model.onnx')
    equal, total = report.equal_codes()
    assert equal == total > 0 and report.difference == 0


def test_two_processes_train_the_same_model(run_processes, tmp_path):
    """In a DDP wrapper around the converted model, through both phases."""
    run_processes(*([WORKER, rank, tmp_path] for rank in range(2)))
    ours, theirs = (torch.load(tmp_path / f'{rank}.pth', weights_only=True)
                    for rank in range(2))
    assert ours.keys() == theirs.keys() == set(NAMES)
    for name in ours:
        start = make(name, **CASES[0])[0].state_dict()
        assert_equal(ours[name], theirs[name])
        for key, value in ours[name].items():
            # Weights have moved, and what quantizers know has started.
            # (Batch normalization takes the gradient of a bias back; an
            # input without small negatives has no zero point.)
            if key.endswith('.zero'):
                continue
            if key.endswith('.weight') or '_quantizer.' in key and \
                    value.is_floating_point():
                assert not torch.equal(value, start[key]), (name, key)


def test_a_run_of_mmengine(name, make_runner, amp, tmp_path):
    """bfloat16, clipped gradients of two iterations a step, a model average,
    both phases: the run resumed after two of four iterations is bit for bit
    the uninterrupted one; its checkpoint is published, which compares the
    outputs, and opens."""
    settings = quantization(name, **CASES[0])
    settings['rules'] = [dict(match='head.fc', weight=dict(bits=6))]
    hooks = [dict(type='GDRQHook', begin_iter=1, quantization=settings),
             dict(type='EMAHook', momentum=.3)]
    options = {
        'model.backbone.depth': 18, 'model.backbone.num_stages': 1,
        'model.backbone.out_indices': (0, ), 'model.backbone.strides': (2, ),
        'model.backbone.dilations': (1, ), 'model.head.in_channels': 4,
        'optim_wrapper.type': 'AmpOptimWrapper',
        'optim_wrapper.dtype': 'bfloat16',
        'optim_wrapper.accumulative_counts': 2,
        'optim_wrapper.clip_grad': dict(max_norm=.1)}
    whole = make_runner('resnet', *hooks, work_dir=tmp_path / 'whole',
                        **options)
    whole.cfg.custom_imports = dict(imports=['gdrq_mm'])
    config = tmp_path / 'matrix.py'
    whole.cfg.dump(str(config))
    whole.train()
    first = make_runner('resnet', *hooks, work_dir=tmp_path / 'halves',
                        train_cfg=dict(max_epochs=1), **options)
    first.train()
    second = make_runner('resnet', *hooks, work_dir=tmp_path / 'halves',
                         resume=True, **options)
    second.train()
    assert whole.record.phases == ['reshape'] + 3 * ['quantize']
    assert whole.record.losses == first.record.losses + second.record.losses
    ema = next(hook for hook in whole.hooks
               if type(hook).__name__ == 'EMAHook').ema_model.module
    for module in (whole.model, ema):
        state = get_state(module)
        assert all(each.initialized
                   for each in state.activation_quantizers.values())
    checkpoints = [read_checkpoint(str(tmp_path / folder / 'epoch_2.pth'))
                   for folder in ('whole', 'halves')]
    for part in ('state_dict', 'ema_state_dict'):
        assert_equal(*(each[part] for each in checkpoints))
    file, published = publish(
        str(config), str(tmp_path / 'whole' / 'epoch_2.pth'),
        str(tmp_path / 'published'))
    model = build_model(Config.fromfile(published))
    model.load_state_dict(torch.load(file, weights_only=True)['state_dict'])
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        for ours, theirs in zip(model.eval()(images), ema.eval()(images)):
            assert torch.equal(ours, theirs)
