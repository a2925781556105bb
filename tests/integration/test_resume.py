"""A resumed run equals the uninterrupted one, bit for bit."""
import copy
from pathlib import Path

import pytest
import torch
from mmengine.hooks import EMAHook

from gdrq_mm import quantize_
from gdrq_mm.functional import expand_clip
from gdrq_mm.layers import QuantLayer
from gdrq_mm.training import get_state

QUANTIZATION = dict(weight=dict(bits=4), activation=dict(bits=4))
# Four iterations; the checkpoint after the second is what is resumed.
HALF = dict(faster_rcnn=dict(max_epochs=1), resnet=dict(max_epochs=1),
            pspnet=dict(max_iters=2))
LAST = dict(faster_rcnn='epoch_2.pth', resnet='epoch_2.pth',
            pspnet='iter_4.pth')


def hooks(quantization=QUANTIZATION, begin_iter=0, ema=None):
    yield dict(type='GDRQHook', quantization=quantization,
               begin_iter=begin_iter)
    if ema is not None:
        yield dict(type='EMAHook', **ema)


def run_whole_and_halves(name, make_runner, tmp_path, **kwargs):
    whole = make_runner(name, *hooks(**kwargs), work_dir=tmp_path / 'whole')
    whole.train()
    work_dir = tmp_path / 'halves'
    first = make_runner(name, *hooks(**kwargs), work_dir=work_dir,
                        train_cfg=HALF[name])
    first.train()
    second = make_runner(name, *hooks(**kwargs), work_dir=work_dir,
                         resume=True)
    second.train()
    assert len(first.record.losses) == len(second.record.losses) == 2
    assert whole.record.losses == first.record.losses + second.record.losses
    assert whole.record.phases == first.record.phases + second.record.phases
    ours, expected = (
        torch.load(Path(runner.work_dir) / LAST[name], weights_only=True)
        for runner in (second, whole))
    assert_equal(ours['state_dict'], expected['state_dict'])
    assert_equal(ours['optimizer'], expected['optimizer'])
    return whole, ours, expected


def assert_equal(ours, expected, where=''):
    if isinstance(expected, dict):
        assert ours.keys() == expected.keys(), where
        for key in expected:
            assert_equal(ours[key], expected[key], f'{where}.{key}')
    elif isinstance(expected, (list, tuple)):
        assert len(ours) == len(expected), where
        for index, (one, other) in enumerate(zip(ours, expected)):
            assert_equal(one, other, f'{where}.{index}')
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(ours, expected), where
    else:
        assert ours == expected, where


@pytest.mark.parametrize('name', ['resnet', 'pspnet', 'faster_rcnn'])
def test_resumed_run_equals_the_uninterrupted_one(
        name, make_runner, tmp_path):
    whole, ours, _ = run_whole_and_halves(name, make_runner, tmp_path)
    assert len({losses['loss'] for losses in whole.record.losses}) == 4
    conv = 'backbone.layer3.0.conv2.input_quantizer'
    assert ours['state_dict'][f'{conv}.num_updates'] == 4


@pytest.mark.parametrize('name, begin_iter', [
    ('resnet', 1), ('resnet', 3), ('pspnet', 3)])
def test_run_with_phases_resumed_equals_the_uninterrupted_one(
        name, begin_iter, make_runner, tmp_path):
    """Interrupted after the reshape phase (1) and in its middle (3)."""
    whole, _, _ = run_whole_and_halves(name, make_runner, tmp_path,
                                       begin_iter=begin_iter)
    assert whole.record.phases == \
        ['reshape'] * begin_iter + ['quantize'] * (4 - begin_iter)


def test_run_with_relu_site_resumed_equals_the_uninterrupted_one(
        make_runner, tmp_path):
    run_whole_and_halves(
        'resnet', make_runner, tmp_path, quantization=dict(
            weight=dict(bits=2, group_size=-1),
            activation=dict(bits=4, site='relu')))


@pytest.mark.parametrize('name, ema', [
    ('resnet', dict(momentum=0.2)),
    ('pspnet', dict(momentum=0.2)),
    ('resnet', dict(momentum=0.2, update_buffers=True)),
], ids=['resnet', 'pspnet', 'resnet-buffers'])
def test_run_with_ema_resumed_equals_the_uninterrupted_one(
        name, ema, make_runner, tmp_path):
    _, ours, expected = run_whole_and_halves(name, make_runner, tmp_path,
                                             ema=ema)
    assert_equal(ours['ema_state_dict'], expected['ema_state_dict'])


def clips_and_weights(model, state_dict):
    for name, layer in model.named_modules():
        if isinstance(layer, QuantLayer):
            weight = state_dict[f'{name}.weight']
            clip = state_dict[f'{name}.weight_quantizer.clip']
            yield name, weight, expand_clip(clip, weight, 4)


@pytest.mark.parametrize('update_buffers', [False, True])
def test_averaged_weights_lie_within_averaged_clip_values(
        update_buffers, make_runner):
    runner = make_runner('resnet', *hooks(ema=dict(
        momentum=0.3, update_buffers=update_buffers)))
    runner.train()
    path = Path(runner.work_dir) / 'epoch_2.pth'
    checkpoint = torch.load(path, weights_only=True)
    averaged = checkpoint['state_dict']  # mmengine saves the average here
    trained = {key[len('module.'):]: value
               for key, value in checkpoint['ema_state_dict'].items()
               if key.startswith('module.')}
    for name, weight, clip in clips_and_weights(runner.model, averaged):
        assert (clip > 0).all(), name
        # An average rounds: one step of float32.
        assert (weight.abs() <= clip * (1 + 1e-6)).all(), name
    name = 'backbone.layer2.0.conv1.weight_quantizer.clip'
    assert not torch.equal(averaged[name], trained[name])


@torch.no_grad()
def outputs(model, batch):
    model.eval()
    data = model.data_preprocessor(copy.deepcopy(batch), False)
    return model(data['inputs'], data['data_samples'], mode='tensor')


@pytest.mark.parametrize('kwargs', [
    dict(), dict(update_buffers=True)], ids=['default', 'buffers'])
def test_saved_model_evaluates_as_the_averaged_model(
        kwargs, make_runner, build_model, load_batch):
    runner = make_runner('pspnet', *hooks(ema=dict(momentum=0.3, **kwargs)))
    runner.train()
    ema = next(one for one in runner.hooks if isinstance(one, EMAHook))
    saved = torch.load(Path(runner.work_dir) / 'iter_4.pth',
                       weights_only=True)['state_dict']
    model = build_model('pspnet', seed=5)
    quantize_(model, QUANTIZATION)
    model.load_state_dict(saved)
    batch = load_batch('pspnet', 'test')
    ours = outputs(model, batch)
    assert torch.equal(ours, outputs(ema.ema_model.module, batch))
    assert not torch.equal(ours, outputs(runner.model, batch))


def test_averaged_buffers_do_not_keep_the_first_phase_and_sign(make_runner):
    """mmengine averages float buffers only, others stay as first copied."""
    runner = make_runner('resnet', *hooks(
        begin_iter=2, ema=dict(momentum=0.3, update_buffers=True)))
    runner.train()
    saved = torch.load(Path(runner.work_dir) / 'epoch_2.pth',
                       weights_only=True)['state_dict']
    assert saved['quantization_state.phase_index'] == 1
    ema = next(one for one in runner.hooks if isinstance(one, EMAHook))
    assert get_state(ema.ema_model.module).phase == 'quantize'
    for name, value in runner.model.state_dict().items():
        if name.endswith(('.signed', '.num_updates')):
            assert torch.equal(saved[name], value), name


@pytest.mark.parametrize('begin_iter, ema', [
    (2, dict()), (2, dict(update_buffers=True)), (0, dict(begin_iter=1))])
@pytest.mark.parametrize('kind', ['LSQ', 'LSQPlus', 'ScaleClip'])
def test_averages_of_ranges_do_not_begin_at_zero(kind, begin_iter, ema,
                                                 make_runner):
    """Step sizes of weights are set when rounding begins."""
    runner = make_runner('resnet', *hooks(
        dict(weight=dict(bits=4, type=kind),
             activation=dict(bits=4, type=kind)),
        begin_iter=begin_iter, ema=dict(momentum=.01, **ema)))
    runner.train()
    averaged = torch.load(Path(runner.work_dir) / 'epoch_2.pth',
                          weights_only=True)['state_dict']
    checked = 0
    for name, value in runner.model.state_dict().items():
        if name.endswith(('quantizer.step.unit', 'quantizer.clip')):
            torch.testing.assert_close(averaged[name], value, rtol=.5, atol=0)
            checked += 1
    assert checked == 2 * len(runner.model.quantization_state.layers)


@pytest.mark.parametrize('clip', ['threshold', 'learned'])
def test_averages_of_ranges_do_not_decay_before_rounding(clip, make_runner,
                                                         recwarn):
    """mmpretrain's EMAHook takes them from the file that a run begins with."""
    quantization = dict(weight=dict(bits=4, clip=clip),
                        activation=dict(bits=4))
    ema = dict(type='mmpretrain.EMAHook', momentum=.3)
    before = make_runner('resnet', dict(
        type='GDRQHook', quantization=quantization), ema)
    before.train()
    runner = make_runner(
        'resnet', dict(type='GDRQHook', quantization=quantization,
                       begin_iter=3), ema,
        load_from=f'{before.work_dir}/epoch_2.pth')
    runner.train()
    averaged = next(each for each in runner.hooks
                    if isinstance(each, EMAHook)).ema_model.module
    for name, layer in get_state(runner.model).layers.items():
        ours, theirs = (
            each.weight_quantizer.current_clip(each.latent_weight)
            for each in (layer, get_state(averaged).layers[name]))
        torch.testing.assert_close(theirs, ours, rtol=.2, atol=0, msg=name)
    # No file was saved in that phase, and no one is told of one.
    assert not any("in the 'reshape' phase" in str(each.message)
                   for each in recwarn)


def test_another_optimizer_or_no_training_is_told(make_runner, tmp_path):
    hook = dict(type='GDRQHook', quantization=QUANTIZATION)
    trained = make_runner('resnet', hook)
    trained.train()
    path = f'{trained.work_dir}/epoch_2.pth'
    other = make_runner('resnet', hook, resume=True, load_from=path, **{
        'train_cfg.max_epochs': 3, 'optim_wrapper.optimizer': dict(
            _delete_=True, type='AdamW', lr=1e-3)})
    with pytest.raises(ValueError, match='is of another type than that of '
                       r'this run \(options momentum; betas\)'):
        other.train()
    weights = torch.load(path, weights_only=True)
    torch.save({key: weights[key] for key in ('meta', 'state_dict')},
               tmp_path / 'published.pth')
    other = make_runner('resnet', hook, resume=True,
                        load_from=str(tmp_path / 'published.pth'))
    with pytest.raises(ValueError, match='published.pth.*no checkpoint of a '
                       'training: .* leave out --resume'):
        other.train()


def test_names_of_several_gpus_are_those_of_one(make_runner, tmp_path):
    hook = dict(type='GDRQHook', quantization=QUANTIZATION)
    weights = make_runner('resnet').model.state_dict()
    torch.save(dict(state_dict={f'module.{key}': value for key, value in
                                weights.items()}), tmp_path / 'float.pth')
    runner = make_runner('resnet', hook, dict(type='EMAHook'),
                         load_from=str(tmp_path / 'float.pth'), **{
                             'optim_wrapper.optimizer.lr': 0.})
    runner.train()
    key = 'head.fc.bias'
    assert torch.equal(runner.model.state_dict()[key], weights[key])
