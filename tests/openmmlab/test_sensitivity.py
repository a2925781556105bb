"""Sensitivity of layers, by the metric and the outputs of the model."""
import copy
import json
import math
import re
import shutil

import pytest
import torch
from mmengine.config import Config
from torch import nn

from gdrq_mm.analysis.distance import OutputProbe
from gdrq_mm.analysis.measurements import Measurements
from gdrq_mm.analysis.sensitivity import Setting, worst_first
from gdrq_mm.analysis.tables import sensitivity_tables
from gdrq_mm.clip_search import search_clip
from gdrq_mm.config import QuantConfig
from gdrq_mm.convert import quantize_
from gdrq_mm.functional import expand_clip, linear_quantize
from gdrq_mm.openmmlab.bench import Bench, base_quantization
from gdrq_mm.openmmlab.proposals import Proposals
from gdrq_mm.openmmlab.reference import Reference
from gdrq_mm.openmmlab.sensitivity import Sensitivity, measure_sensitivity
from gdrq_mm.plan import make_plan
from gdrq_mm.training import calibrate, get_state

METRICS = dict(resnet='accuracy/top1', pspnet='mIoU',
               faster_rcnn='pascal_voc/mAP')
# Not the first one unless it is broken.
BROKEN = 'backbone.layer1.0.downsample.0'


@pytest.fixture
def files(load_config, build_model, tmp_path):
    """Function name -> config file and float checkpoint of a tiny model."""

    def write(name, change=None, **options):
        cfg = load_config(name, **options)
        model = build_model(copy.deepcopy(cfg))
        if change is not None:
            change(model)
        cfg.dump(str(tmp_path / f'{name}.py'))
        torch.save(dict(state_dict=model.state_dict()),
                   tmp_path / f'{name}.pth')
        return [str(tmp_path / f'{name}.{end}') for end in ('py', 'pth')]

    return write


def unequal_filters(layer):
    """A change after which no clip value of a group fits its filters: one
    is a thousand times as large as the others, which its normalization
    undoes."""

    def change(model):
        norm = model.get_submodule(layer[:-1] + '1')
        with torch.no_grad():
            model.get_submodule(layer).weight[::4] *= 1000
            norm.running_mean[::4] *= 1000
            norm.running_var[::4] *= 1000**2

    return change


@pytest.mark.parametrize('name, by', [
    ('resnet', 'layer'), ('pspnet', 'stage'), ('faster_rcnn', 'stage')])
def test_a_broken_layer_comes_first(name, by, files, tmp_path):
    changes, firsts = [unequal_filters(BROKEN)], []
    if by == 'stage':  # quick enough to see that it does not come first ever
        changes.append(None)
    for change in changes:
        path = tmp_path / f'{bool(change)}.json'
        sensitivity, figures = measure_sensitivity(
            *files(name, change), path, bits=[4], batches=1, by=by,
            sides=['weight'], ways=['alone'])
        assert sensitivity.metric == METRICS[name]
        assert sum(map(len, sensitivity.groups(by).values())) > 20
        firsts.append(worst_first(figures)[0].group)
    assert BROKEN.startswith(firsts[0])
    assert not any(BROKEN.startswith(other) for other in firsts[1:])


@pytest.mark.parametrize('name, group, way', [
    ('resnet', 'backbone.layer3.0.downsample.0', 'alone'),
    ('faster_rcnn', 'roi_head.bbox_head.shared_fcs.1', 'rest')])
def test_the_kept_prefix_changes_no_figure(name, group, way, files, tmp_path,
                                           monkeypatch):
    bench = Bench(*files(name), batches=2)
    setting = Setting(group, 'both', 4, way)

    def figures(path):
        sensitivity = Sensitivity(bench, Measurements(path, bench.inputs()))
        return sensitivity.run([4], only=[group], ways=[way])[setting]

    with_prefix = figures(tmp_path / 'a.json')
    monkeypatch.setattr('gdrq_mm.analysis.replay.prefix_of',
                        lambda calls, layers: {})
    without = figures(tmp_path / 'b.json')
    assert vars(with_prefix) == pytest.approx(vars(without), rel=1e-6)
    assert with_prefix.noise > 0


def test_the_noise_is_that_of_the_quantized_layer_alone(files, tmp_path):
    """Against a float64 computation by hand, of the last layer."""
    bench = Bench(*files('resnet'), batches=2)
    sensitivity = Sensitivity(bench, Measurements(tmp_path / 'a.json', {}))
    found = sensitivity.run([4], only=['head.fc'], sides=['weight'],
                            ways=['alone'])
    model, ratios = bench.model, []
    weight = model.head.fc.weight
    clip = expand_clip(search_clip(weight, 4, 4), weight, 4)
    rounded = linear_quantize(weight, clip, 4)
    for batch in bench.batches:
        seen = []
        handle = model.head.fc.register_forward_hook(
            lambda module, args, output: seen.append(args[0]))
        with torch.no_grad():
            model.test_step(copy.deepcopy(batch))
        handle.remove()
        x, bias = seen[0].double(), model.head.fc.bias.double()
        ours, theirs = (x @ each.double().T + bias
                        for each in (weight, rounded))
        ratios.append(float(((ours - theirs)**2).sum()
                            / ((ours - ours.mean(0))**2).sum()))
    figures, = found.values()
    assert figures.noise == pytest.approx(sum(ratios) / 2, rel=1e-4)
    assert figures.error == pytest.approx(abs(ratios[0] - ratios[1]) / 2,
                                          rel=1e-3)


def test_weights_of_a_float_model_are_rounded_not_clipped_at_k(
        files, tmp_path):
    """k says how far a training reshapes weights, not what their bits cost."""
    noises = []
    for k in (2., 4.):
        quantization = dict(
            weight=dict(bits=2, k=k), activation=dict(bits=4),
            rules=[dict(match='backbone.*', weight=dict(bits=8, k=k))])
        sensitivity, figures = measure_sensitivity(
            *files('resnet', custom_hooks=[
                dict(type='GDRQHook', quantization=quantization)]),
            tmp_path / f'{k}.json', bits=[2, 8], batches=1, by='stage',
            sides=['weight'], ways=['alone'])
        noises.append({setting: each.noise
                       for setting, each in figures.items()})
    assert noises[0] == noises[1]
    for setting, noise in noises[0].items():
        assert noise < 1e-3 if setting.bits == 8 else noise > 1e-3


def test_rules_keep_their_order_and_what_they_leave_float():
    given = dict(
        weight=dict(bits=2), activation=dict(bits=4, site='relu'),
        rules=[dict(match='head.fc', weight=dict(bits=8)),
               dict(match='head.*', skip=True),
               dict(match='backbone.conv1', weight=dict(bits=None),
                    activation=dict(bits=8, site='relu')),
               dict(match='backbone.*', weight=dict(group_size=1))])
    base = base_quantization(Config(dict(
        model=dict(type='QuantizedModel', quantization=given))), 3)
    parsed = QuantConfig.from_dict(base)
    found = {name: [scheme.bits for scheme in parsed.schemes(name)]
             for name in ('head.fc', 'head.x', 'backbone.conv1',
                          'backbone.x', 'neck')}
    assert found == {
        'head.fc': [3, 3], 'head.x': [None, None],
        'backbone.conv1': [None, 3], 'backbone.x': [3, 3], 'neck': [3, 3]}
    assert parsed.schemes('backbone.x')[0].group_size == 1
    assert parsed.schemes('backbone.conv1')[1].site == 'input'


def test_rules_of_relus_alone_are_no_rules_of_layers():
    given = dict(
        weight=dict(bits=4), activation=dict(bits=4, site='relu'),
        rules=[dict(match='1', activation=dict(bits=8)),
               dict(match='[03]', weight=dict(bits=8),
                    activation=dict(bits=8)),
               dict(match='*', activation=dict(bits=6))])
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 3, 1),
                          nn.ReLU())
    quantize_(copy.deepcopy(model), given)
    base = base_quantization(Config(dict(
        model=dict(type='QuantizedModel', quantization=given))), 3, model)
    assert [rule['match'] for rule in base['rules']] == ['[03]', '*']
    report = quantize_(model, base)
    assert [(plan.name, plan.weight.bits, plan.activation.bits)
            for plan in report.layers] == [('0', 3, 3), ('2', 3, 3)]


@torch.no_grad()
def test_masks_are_compared_on_the_same_regions(load_config, build_model,
                                                with_masks, tmp_path):
    cfg = with_masks(load_config('faster_rcnn'))
    cfg.model.test_cfg.rcnn.score_thr = .05
    model = build_model(copy.deepcopy(cfg))
    cfg.dump(str(tmp_path / 'mask.py'))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'mask.pth')
    bench = Bench(str(tmp_path / 'mask.py'), str(tmp_path / 'mask.pth'), 2)
    model = bench.model
    reference = Reference(bench, model, make_plan(
        model, QuantConfig.from_dict(dict(weight=dict(bits=8)))))
    logits = 'roi_head.mask_head.conv_logits'
    assert logits in reference.outputs
    for outputs, regions in reference.batches:
        assert len(regions) == 2 and outputs[logits][0].numel()
    assert reference.compare(model)[1].mean == 0
    # Others find other boxes, or none; masks are those of the same ones.
    for change in (lambda head: head.fc_reg.bias.add_(.5),
                   lambda head: head.fc_cls.bias[-1].add_(99.)):
        other = bench.model
        change(other.roi_head.bbox_head)
        probe = OutputProbe(other, [logits])
        for forward, (outputs, regions) in zip(bench.forwards(other),
                                               reference.batches):
            with Proposals(other, probe).given(regions):
                forward()
            assert torch.equal(probe.take()[logits][0], outputs[logits][0])
        reference.compare(other)


def test_a_detector_that_finds_nothing_has_no_metric(files, tmp_path,
                                                     monkeypatch):
    """COCO's evaluator then gives an empty dict."""
    bench = Bench(*files('resnet'), batches=1)
    sensitivity = Sensitivity(bench, Measurements(tmp_path / 'a.json', {}))
    metric, evaluate = sensitivity.baseline(), Bench.evaluate
    monkeypatch.setattr(Bench, 'evaluate', lambda self, model, around: (
        evaluate(self, model, around), {})[1])
    found = sensitivity.run([4], only=['head.fc'], ways=['alone'])
    figures, = found.values()
    assert math.isnan(figures.metric) and figures.noise > 0
    table = sensitivity_tables(found, *list(metric.items())[0])
    assert re.search(r'head.fc +none +none +\d', table)


def test_what_relus_round_is_no_input_of_one_layer(files, tmp_path):
    paths = files('resnet')
    quantization = dict(weight=dict(bits=4),
                        activation=dict(bits=2, site='relu'))
    bench = Bench(*paths, batches=1)
    model = bench.model
    plain = bench.evaluate(model)
    quantize_(model, quantization)
    with torch.no_grad():
        calibrate(model, bench.forwards(model))
    checkpoint = str(tmp_path / 'trained.pth')
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    options = dict(custom_hooks=[dict(type='GDRQHook',
                                      quantization=quantization)])
    arguments = dict(by='stage', batches=1, only=['head.fc'],
                     ways=['alone'], cfg_options=options)
    with pytest.raises(ValueError, match=r"--sides has 'both', but in .*ReLUs "
                       r'\(backbone.relu\) round .*give --sides weight'):
        measure_sensitivity(paths[0], checkpoint, tmp_path / 'a.json',
                            **arguments)
    sensitivity, figures = measure_sensitivity(
        paths[0], checkpoint, tmp_path / 'a.json', sides=['weight'],
        **arguments)
    assert sensitivity.baseline() == plain
    figures, = figures.values()
    assert 0 < figures.noise < .1  # that of the last layer's weights alone


def test_what_is_measured_is_kept_and_nothing_is_measured_twice(
        files, tmp_path, monkeypatch):
    arguments = dict(bits=[4], batches=1, by='stage', ways=['alone'])
    paths = files('resnet'), tmp_path / 'kept.json'
    whole = measure_sensitivity(*paths[0], paths[1], **arguments)[1]
    kept = json.loads(paths[1].read_text())
    lost = next(key for key in kept['figures'] if key != 'float')
    del kept['figures'][lost]
    paths[1].write_text(json.dumps(kept))
    measured = []
    measure = Sensitivity._measure
    monkeypatch.setattr(Sensitivity, '_measure', lambda self, setting, names: (
        measured.append(setting.key), measure(self, setting, names))[1])
    again = measure_sensitivity(*paths[0], paths[1], **arguments)[1]
    assert measured == [lost]
    assert {key: vars(value) for key, value in again.items()} == {
        key: pytest.approx(vars(value), nan_ok=True)
        for key, value in whole.items()}


def test_a_trained_checkpoint_is_measured_at_its_bits(
        files, tmp_path, build_model, load_config):
    config, _ = files('resnet')
    quantization = dict(weight=dict(bits=2), activation=dict(bits=4),
                        rules=[dict(match='head.fc', skip=True)])
    bench = Bench(config, files('resnet')[1], batches=1)
    model = bench.model
    quantize_(model, quantization)
    with torch.no_grad():
        calibrate(model, bench.forwards(model))
    checkpoint = str(tmp_path / 'trained.pth')
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    options = dict(custom_hooks=[dict(type='GDRQHook',
                                      quantization=quantization)])
    sensitivity, figures = measure_sensitivity(
        config, checkpoint, tmp_path / 'a.json', by='stage', batches=1,
        cfg_options=options)
    assert {setting.bits for setting in figures} == {0}
    assert 'head.fc' not in sensitivity.groups()
    alone = figures[Setting('backbone.layer4', 'both', 0, 'alone', 'stage')]
    without = figures[Setting('backbone.layer4', 'both', 0, 'rest',
                               'stage')]
    nothing = figures[Setting('', 'both', 0, 'rest')]
    assert 0 < alone.noise < nothing.noise != without.noise
    # The model is as before, quantizers and all.
    assert all(layer.weight_quantizer is not None for layer in get_state(
        sensitivity._trained).layers.values())
    with pytest.raises(ValueError, match='is trained at its bits'):
        sensitivity.run([2])
    with pytest.raises(ValueError, match='is quantized already'):
        sensitivity.bench.quantized(quantization)


def test_bad_input_is_one_sentence_and_writes_nothing(files, tmp_path):
    config, checkpoint = files('resnet')
    out = tmp_path / 'kept.json'

    def measure(message, config=config, checkpoint=checkpoint, **arguments):
        with pytest.raises(ValueError, match=message):
            measure_sensitivity(config, checkpoint, out, **arguments)
        assert not out.exists()

    measure('batches is 0, allowed: 1 or more', batches=0)
    measure("'backbone.layr1' is no quantized stage; did you mean "
            "'backbone.layer1'", by='stage', only=['backbone.layr1'])
    measure('--bits has 9, allowed: 2 to 8', bits=[9])
    measure('resnet.pth is not of .*pspnet.py: .*ive the config',
            config=files('pspnet')[0], batches=1)
    small, _ = files('resnet', test_evaluator=None)
    measure('resnet.py has no evaluator with its data: give it', config=small)


def test_figures_of_other_inputs_are_not_mixed(tmp_path):
    path = tmp_path / 'kept.json'
    Measurements(path, dict(batches=1)).put('a', 1)
    with pytest.raises(ValueError, match=r'with other settings \(batches\)'):
        Measurements(path, dict(batches=2))
    assert Measurements(path, dict(batches=1)).get('a') == 1
    path.write_text('{"other": 1}')
    with pytest.raises(ValueError, match='is no file of measurements'):
        Measurements(path, {})
    assert path.read_text() == '{"other": 1}'


def test_figures_of_two_processes_are_all_kept(tmp_path):
    one, other = (Measurements(tmp_path / 'kept.json', dict(batches=1))
                  for _ in range(2))
    one.put('a', 1)
    other.put('b', 2)
    one.put('c', 3)
    assert dict(Measurements(tmp_path / 'kept.json').items()) == dict(
        a=1, b=2, c=3)


def test_a_checkpoint_behind_a_url_is_known_by_its_content(
        files, tmp_path, monkeypatch):
    config, checkpoint = files('resnet')
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    cache = tmp_path / 'hub' / 'checkpoints'
    cache.mkdir(parents=True)
    shutil.copy(checkpoint, cache / 'model.pth')
    bench = Bench(config, 'https://example.invalid/model.pth', batches=1)
    assert bench.inputs() == Bench(config, checkpoint, batches=1).inputs()


def test_figures_of_other_images_are_refused(files, tmp_path):
    """The names of files are the same."""
    first = Bench(*files('resnet'), batches=2)
    path = tmp_path / 'figures.json'
    Measurements(path, first.inputs()).put('alone weight 4 conv', 1.)
    Measurements(path, Bench(*files('resnet'), batches=2).inputs())
    other = Bench(*files('resnet'), batches=2)
    for batch in other.batches:
        batch['inputs'] = [255 - each for each in batch['inputs']]
    with pytest.raises(ValueError, match='other settings .images.'):
        Measurements(path, other.inputs())
