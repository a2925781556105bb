"""gdrq compare: the same start, schedule and seeds for every scheme."""
import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from gdrq_mm.checkpoint import NAME
from gdrq_mm.openmmlab.hook import GDRQHook
from gdrq_mm.openmmlab.metrics import metric_name
from gdrq_mm.quantizers import QUANTIZERS, QuantizerPair
from gdrq_mm.quantizers.scale_clip import LeastSquaresClipActivation

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools'))

import compare  # noqa: E402
from comparing.cell import run_cell, step_ratio  # noqa: E402
from comparing.plan import Cell, Comparison, Settings, _split  # noqa: E402
from comparing.schemes import (  # noqa: E402
    NAMED,
    at_bits,
    find_scheme,
    hook_of,
    parse_bits,
    short_name,
)
from comparing.table import collect, plot, table  # noqa: E402
from jobs.records import write_json  # noqa: E402

METRICS = dict(faster_rcnn='pascal_voc/mAP', pspnet='mIoU',
               resnet='accuracy/top1')


@pytest.fixture
def start(load_config, build_model, tmp_path):
    """Function name, options -> files of a config and of a float model."""

    def make(name, **options):
        cfg = load_config(name, **options)
        cfg.train_cfg.update(dict(max_epochs=1) if 'max_epochs' in
                             cfg.train_cfg else dict(max_iters=1))
        cfg.resume = True  # there is nothing that a cell could go on from
        cfg.dump(tmp_path / f'{name}.py')
        torch.save(dict(state_dict=build_model(name).state_dict()),
                   tmp_path / f'{name}.pth')
        return str(tmp_path / f'{name}.py'), str(tmp_path / f'{name}.pth')

    return make


def settings(files, tmp_path, schemes=('gdrq', 'lsq'), bits=((2, 4), ),
             seeds=(0, )):
    return Settings(*files, schemes, bits, seeds, tmp_path / 'work', 1)


# -- schemes ------------------------------------------------------------------


def test_every_quantizer_is_a_scheme(monkeypatch):
    lsq = QUANTIZERS['LSQ']
    monkeypatch.setitem(QUANTIZERS, 'Mine', QuantizerPair(lsq.weight, None))
    assert find_scheme('lsq') == dict(weight=dict(type='LSQ'),
                                      activation=dict(type='LSQ'))
    assert find_scheme('mine+lsq') == dict(weight=dict(type='Mine'),
                                           activation=dict(type='LSQ'))
    with pytest.raises(ValueError, match=r'Mine has no activation quantizer; '
                       r'pair it with another, mine\+scaleclip'):
        find_scheme('mine')
    with pytest.raises(ValueError, match="no scheme 'lqs'; did you mean.*lsq"):
        find_scheme('lqs')
    assert NAMED['gdrq']['weight'].get('levels', 'odd') == 'odd'


def test_a_file_is_a_scheme(tmp_path):
    path = tmp_path / 'mine.py'
    path.write_text('quantization = dict(weight=dict(type="LSQ"))')
    assert find_scheme(str(path)) == dict(weight=dict(type='LSQ'))
    demo = ROOT / 'configs/resnet/resnet18-small_gdrq-w2a4_demo-imagenet.py'
    found = at_bits(find_scheme(str(demo)), (3, 5), dict(
        rules=[dict(match='head.fc')]))
    assert (found['weight']['bits'], found['activation']['bits']) == (3, 5)
    assert found['weight']['group_size'] == 4  # its own
    assert [rule['match'] for rule in found['rules']] == [
        'backbone.conv1', 'head.fc']
    with pytest.raises(ValueError, match='is no file'):
        find_scheme('nothing.py')


def test_a_scheme_may_be_distilled_and_have_options_of_its_hook(tmp_path):
    assert find_scheme('lsq+distill') == find_scheme('lsq')
    assert find_scheme('dorefa+pact+distill') == find_scheme('dorefa+pact')
    assert hook_of('lsq') == {} and hook_of('lsq+distill') == dict(distill={})
    path = tmp_path / 'mine.py'
    path.write_text('quantization = dict(weight=dict(type="LSQ"))\n'
                    'hook = dict(bn_batches=4, distill=dict(weight=3.))')
    assert find_scheme(f'{path}+distill') == find_scheme(str(path))
    for name in (str(path), f'{path}+distill'):
        assert hook_of(name) == dict(bn_batches=4, distill=dict(weight=3.))
    assert short_name(f'{path}+distill') == 'mine+distill'
    assert short_name('dorefa+pact') == 'dorefa+pact'


@pytest.mark.parametrize('text', ['4', '4,x', '9,4', '4,1'])
def test_bad_bits(text):
    assert parse_bits('[2,4]') == (2, 4)
    with pytest.raises(ValueError, match=f"--bits has '{text}'"):
        parse_bits(text)


# -- what is run --------------------------------------------------------------


def test_a_quantized_config_is_a_scheme_of_its_model(start, tmp_path):
    demo = ROOT / 'configs/resnet/resnet18-small_gdrq-w2a4_demo-imagenet.py'
    comparison = Comparison(settings(start('resnet'), tmp_path,
                                     schemes=(str(demo), )))
    assert '[8,8]: backbone.conv1, head.fc' in comparison.cells[1].policy


def test_schemes_of_one_name_are_refused(start, tmp_path):
    files = start('resnet')
    (tmp_path / 'lsq.py').write_text('quantization = dict()')
    with pytest.raises(ValueError, match='and lsq have one name, lsq, where'):
        Comparison(settings(files, tmp_path, schemes=(
            str(tmp_path / 'lsq.py'), 'lsq')))


def test_a_hook_that_is_given_as_a_class_is_no_part_of_the_float_model():
    cfg = Config(dict(model=dict(), custom_hooks=[
        dict(type=GDRQHook, phases=dict(quantize=0), quantization=dict(
            weight=dict(bits=4), rules=[dict(match='fc', skip=True)]))]))
    hook, shared = _split(cfg)
    assert cfg.custom_hooks == []
    assert hook == dict(type='GDRQHook', phases=dict(quantize=0))
    assert shared == dict(rules=[dict(match='fc', skip=True)])


def test_a_float_model_of_several_gpus_is_one(start, tmp_path):
    config, checkpoint = start('resnet')
    weights = torch.load(checkpoint)['state_dict']
    torch.save({f'module.{key}': value for key, value in weights.items()},
               checkpoint)
    Comparison(settings((config, checkpoint), tmp_path))


def test_all_cells_are_trained_alike(start, tmp_path):
    comparison = Comparison(settings(start('resnet'), tmp_path,
                                     seeds=(0, 1)))
    assert [cell.name for cell in comparison.cells] == [
        'float', 'gdrq-w2a4', 'lsq-w2a4']
    assert [cell.weight_levels for cell in comparison.cells[1:]] == [4, 4]
    for cell in comparison.cells[1:]:
        assert '[8,8]: backbone.conv1, head.fc' in cell.policy
    cfgs = [comparison.config(cell, 1) for cell in comparison.cells]
    for cfg in cfgs:
        hooks = cfg.pop('custom_hooks')
        assert sum(hook['type'] == 'GDRQHook' for hook in hooks) == (
            cfg is not cfgs[0])
        assert cfg.randomness.seed == 1
    assert cfgs[0].to_dict() == cfgs[1].to_dict() == cfgs[2].to_dict()
    names = [job.name for job in comparison.jobs()]
    assert names == ['start/test', 'float/seed0', 'gdrq-w2a4/calibrated',
                     'gdrq-w2a4/seed0', 'lsq-w2a4/calibrated',
                     'lsq-w2a4/seed0', 'float/seed1', 'gdrq-w2a4/seed1',
                     'lsq-w2a4/seed1']


def test_another_first_seed_repeats_only_trainings(start, tmp_path):
    files = start('resnet')

    def inputs(seed):
        comparison = Comparison(settings(files, tmp_path, ['lsq'],
                                         seeds=(seed, )))
        return {job.name: job.prepare({}).inputs for job in comparison.jobs()}

    first, second = inputs(0), inputs(1)
    same = [name for name in first if first[name] == second.get(name)]
    assert same == ['start/test', 'lsq-w2a4/calibrated']


def test_a_quantized_config_says_what_ends_have_and_how_to_train(start,
                                                                 tmp_path):
    config, checkpoint = start('resnet')
    cfg = Config.fromfile(config)
    cfg.custom_hooks = [dict(type='GDRQHook', bn_batches=3, quantization=dict(
        weight=dict(bits=2), rules=[dict(match='head.fc', skip=True)]))]
    cfg.dump(config)
    comparison = Comparison(settings((config, checkpoint), tmp_path,
                                     ['gdrq-published']))
    cell = comparison.cells[1]
    hook, = comparison.config(cell, 0).custom_hooks
    assert hook.bn_batches == 3 and hook.quantization.weight.k == 2
    assert hook.quantization.weight.levels == 'odd'
    assert hook.quantization.activation.threshold == 'mean'
    assert cell.weight_levels == 3
    assert 'float: head.fc' in cell.policy and '[8,8]' not in cell.policy
    assert not comparison.config(comparison.cells[0], 0).custom_hooks


def test_outputs_and_products_of_a_quantized_config_hold_for_all(
        start, tmp_path):
    config, checkpoint = start('resnet')
    cfg = Config.fromfile(config)
    residual = dict(bits=8, outputs=['backbone.layer1.0'])
    cfg.custom_hooks = [dict(type='GDRQHook', quantization=dict(
        weight=dict(bits=2), residual=residual))]
    cfg.dump(config)
    own = tmp_path / 'own.py'
    own.write_text('quantization = dict(weight=dict(type="LSQ"), '
                   'residual=dict(bits=4, outputs=["backbone.layer1.1"]))')
    comparison = Comparison(settings((config, checkpoint), tmp_path,
                                     ['lsq', str(own)]))
    found = [cell.quantization for cell in comparison.cells[1:]]
    assert found[0]['residual'] == residual
    assert found[1]['residual'] == dict(bits=4,
                                        outputs=['backbone.layer1.1'])
    products = dict(products=dict(bits=6))
    assert at_bits({}, (2, 4), products)['products'] == dict(bits=6)
    assert at_bits(dict(products=None), (2, 4), products)['products'] is None


def test_a_config_without_a_default_scope_has_that_of_its_model(start,
                                                                tmp_path):
    config, checkpoint = start('resnet')
    cfg = Config.fromfile(config)
    cfg.default_scope = None
    cfg.model.type = 'mmpretrain.models.ImageClassifier'
    cfg.dump(config)
    comparison = Comparison(settings((config, checkpoint), tmp_path))
    task = comparison.jobs()[0].prepare({})
    assert task.arguments['config']['default_scope'] == 'mmpretrain'


def test_a_model_of_other_images_needs_rules(start, tmp_path):
    config, checkpoint = start('resnet')
    cfg = Config.fromfile(config)
    cfg.model.backbone.in_channels = 1
    cfg.dump(config)
    weights = torch.load(checkpoint)['state_dict']
    weights['backbone.conv1.weight'] = weights[
        'backbone.conv1.weight'][:, :1]
    torch.save(dict(state_dict=weights), checkpoint)
    with pytest.raises(ValueError, match='does not run on a random '
                       'image, 224x224 .*rules of a GDRQHook'):
        Comparison(settings((config, checkpoint), tmp_path))
    cfg.custom_hooks = [dict(type='GDRQHook', quantization=dict(
        weight=dict(bits=2), rules=[dict(match='head.fc', skip=True)]))]
    cfg.dump(config)
    assert 'float: head.fc' in Comparison(settings(
        (config, checkpoint), tmp_path)).cells[1].policy


def test_finished_trainings_of_other_settings_are_kept(start, tmp_path):
    config, checkpoint = start('resnet')

    def compared(batches=1, **hook):
        cfg = Config.fromfile(config)
        cfg.custom_hooks = [dict(type='GDRQHook', quantization=dict(
            weight=dict(bits=4)), **hook)]
        cfg.dump(config)
        return Comparison(dataclasses.replace(settings(
            (config, checkpoint), tmp_path), batches=batches))

    before = compared()
    for job in before.jobs():
        job.folder.mkdir(parents=True)
        file = job.folder / 'last.pth'
        file.touch()
        task = job.prepare({})
        write_json(job.record_path, dict(
            status='done', inputs=task.inputs,
            **task.finish(dict(metrics={}, outputs=[str(file)]))))
    before.check_work_dir(before.jobs())
    # A calibration is soon done again.
    again = compared(batches=2)
    again.check_work_dir(again.jobs())
    other = compared(bn_batches=3)
    with pytest.raises(ValueError, match=r'work has a comparison of another '
                       r'config \(gdrq-w2a4/seed0, lsq-w2a4/seed0\), which '
                       'would be removed: give another --work-dir'):
        other.check_work_dir(other.jobs())


def test_what_acts_on_validations_is_refused(start, tmp_path):
    config, checkpoint = start('resnet')
    plateau = dict(type='ReduceOnPlateauLR', monitor='accuracy/top1')
    for changes, kind in (
            (dict(custom_hooks=[dict(type='EarlyStoppingHook',
                                     monitor='accuracy/top1')]), 'EarlyStop'),
            (dict(param_scheduler=plateau), 'ReduceOnPlateauLR'),
            (dict(param_scheduler=[plateau]), 'ReduceOnPlateauLR'),
            (dict(param_scheduler=dict(gen=[plateau])), 'ReduceOnPlateauLR')):
        cfg = Config.fromfile(config)
        cfg.update(changes)
        path = tmp_path / 'changed.py'
        cfg.dump(path)
        with pytest.raises(ValueError, match=f'{kind}.*acts on validations'):
            Comparison(settings((str(path), checkpoint), tmp_path))


def test_bad_input_is_told_before_anything_is_written(start, tmp_path):
    config, checkpoint = start('resnet')
    before = sorted(tmp_path.rglob('*'))

    def refused(*files, **kwargs):
        with pytest.raises(ValueError) as error:
            Comparison(settings(files, tmp_path, **kwargs))
        assert '\n' not in str(error.value)
        return str(error.value)

    assert 'no scheme' in refused(config, checkpoint, schemes=['x'])
    (tmp_path / 'bad.py').write_text(
        'quantization = dict(weight=dict(type="LSQ"))\n'
        'hook = dict(distill=dict(outputs={"hed": "l2"}))')
    assert "'hed' matches no module" in refused(
        config, checkpoint, schemes=[str(tmp_path / 'bad.py')])
    (tmp_path / 'bad.py').write_text(
        'quantization = dict(weight=dict(type="LSQ"))\n'
        'hook = dict(bn_batch=1)')
    assert "'bn_batch'" in refused(
        config, checkpoint, schemes=[str(tmp_path / 'bad.py')])
    (tmp_path / 'bad.py').unlink()
    # No LSQ has 1 bit.
    assert refused(config, checkpoint, schemes=['lsq'], bits=[(1, 4)]
                   ).startswith('lsq at [1, 4]: ')
    other = tmp_path / 'other.pth'
    torch.save(dict(state_dict={'fc.weight': torch.zeros(2)}), other)
    assert 'does not fit' in refused(config, str(other))
    torch.save(dict(state_dict={f'{NAME}.schemes': torch.zeros(2)}), other)
    assert 'quantized already' in refused(config, str(other))
    other.unlink()
    cfg = Config.fromfile(config)
    cfg.pop('test_evaluator')
    cfg.dump(config)
    assert 'has no evaluator' in refused(config, checkpoint)
    assert sorted(tmp_path.rglob('*')) == before


@pytest.mark.parametrize('name', METRICS)
def test_cells_of_every_task(name, start, tmp_path):
    scheme = 'lsq+distill' if name == 'resnet' else 'lsq'
    comparison = Comparison(settings(start(name), tmp_path, [scheme]))
    hook = comparison.config(comparison.cells[1], 0).custom_hooks[-1]
    assert hook.get('distill') == ({} if name == 'resnet' else None)
    job = comparison.job(comparison.cells[1], 0, 'calibrate')
    job.folder.mkdir(parents=True)
    results = run_cell(**job.prepare({}).arguments)
    assert metric_name(results['metrics'], comparison.cfg) == \
        METRICS[name]
    assert 0 < results['bytes'] < .55 * results['float_bytes']
    assert results['step_ratio'] > 0
    assert set(results['activation_levels']) <= {'16', '15'}


def test_step_ratios_are_those_of_a_training_under_way(start, tmp_path,
                                                       monkeypatch):
    """Not of its first hundred steps, in which thresholds take longer."""
    steps = []

    def watched(cfg, plain, model):
        ratio = step_ratio(cfg, plain, model)
        steps.extend(int(module.num_updates) for module in model.modules()
                     if isinstance(module, LeastSquaresClipActivation))
        return ratio

    monkeypatch.setattr('comparing.cell.step_ratio', watched)
    comparison = Comparison(settings(start('resnet'), tmp_path, ['gdrq']))
    job = comparison.job(comparison.cells[1], 0, 'calibrate')
    job.folder.mkdir(parents=True)
    run_cell(**job.prepare({}).arguments)
    assert min(steps) > LeastSquaresClipActivation.FIRST_LOOKS


def test_the_tool_goes_on_and_shows_all(start, tmp_path):
    """From the command line, with a scheme more the second time."""
    config, checkpoint = start('resnet')
    out = [f'--{name}={tmp_path / name}' for name in ('json', 'table')] + [
        f'--plot={tmp_path / "plot.png"}']

    def run(*arguments):
        return subprocess.run(
            [sys.executable, str(ROOT / 'tools/compare.py'), config,
             checkpoint, '--bits', '2,4', '--batches', '1', '--work-dir',
             str(tmp_path / 'work'), *arguments],
            capture_output=True, text=True)

    nothing = run('--collect')
    assert nothing.returncode == 1 and 'without --collect' in nothing.stderr
    # So is a float model that cannot be tested, which all begin as.
    broken = run('--cfg-options', 'test_dataloader.dataset.type=Nowhere')
    assert broken.returncode == 1 and '1 jobs failed' in broken.stderr
    assert 'seed0' not in broken.stdout
    # Told after the test of the float model, before any training.
    mistyped = run('--schemes', 'lsq', '--metric', 'acc/top1')
    assert mistyped.returncode == 1
    assert mistyped.stderr.startswith("compare: the evaluator has no metric "
                                      "'acc/top1'; it has accuracy/top1")
    assert [path.name for path in (tmp_path / 'work').rglob('*.json')
            if path.parent.parent == tmp_path / 'work'] == ['test.json']
    first = run('--schemes', 'lsq')
    assert first.returncode == 0, first.stdout + first.stderr
    assert 'start/test: done already' in first.stdout
    second = run('--schemes', 'lsq', 'gdrq+distill', *out)
    assert second.returncode == 0, second.stdout + second.stderr
    assert 'lsq-w2a4/seed0: done already' in second.stdout
    result = json.loads((tmp_path / 'json').read_text())
    assert result['metric'] == 'accuracy/top1'
    assert [row['name'] for row in result['cells']] == [
        'float', 'lsq-w2a4', 'gdrq+distill-w2a4']
    assert result['rule'] == 'greater'
    log = (tmp_path / 'work/gdrq+distill-w2a4/seed0.log').read_text()
    assert 'GDRQHook: distills from' in log and 'loss_distill_cls' in log
    for row in result['cells']:
        assert 0 <= row['seeds']['0']['metric'] <= 100
    assert (tmp_path / 'table').read_text() == table(result) + '\n'
    assert table(result) in second.stdout
    assert (tmp_path / 'plot.png').read_bytes().startswith(b'\x89PNG')
    # Nothing is overwritten, the config least of all.
    before = Path(config).read_text()
    for option in (f'--table={config}', f'--json={tmp_path / "json"}', out[2]):
        refused = run('--schemes', 'lsq', '--collect', option)
        assert refused.returncode == 1
        assert refused.stderr.endswith('exists; remove it or choose another '
                                       'name\n')
    assert Path(config).read_text() == before
    assert json.loads((tmp_path / 'json').read_text()) == result
    # A work dir may be moved.
    (tmp_path / 'work').rename(tmp_path / 'moved')
    moved = run('--schemes', 'lsq', 'gdrq+distill', '--collect', '--work-dir',
                str(tmp_path / 'moved'))
    assert table(result) in moved.stdout
    (tmp_path / 'moved').rename(tmp_path / 'work')
    # The trainings of another comparison are kept.
    other = run('--schemes', 'lsq', '--cfg-options', 'randomness.seed=7',
                'optim_wrapper.optimizer.lr=0.5')
    assert other.returncode == 1
    assert ('has a comparison of another config (start/test, float/seed0, '
            'lsq-w2a4/seed0), which would be removed') in other.stderr
    assert (tmp_path / 'work/lsq-w2a4/seed0.json').exists()
    other = run('--collect', '--cfg-options', 'randomness.seed=7',
                'optim_wrapper.optimizer.lr=0.5')
    assert other.stderr.endswith('work has is of another config\n')
    again = run('--schemes', 'gdrq', 'lqs')
    assert again.returncode == 1
    assert again.stderr.startswith("compare: there is no scheme 'lqs'")
    assert 'Traceback' not in again.stderr


# -- table and plot -----------------------------------------------------------


def invented():
    def row(scheme, metrics, **more):
        return dict(scheme=scheme, name=scheme, seeds={
            str(seed): dict(metric=value)
            for seed, value in enumerate(metrics)}, **more)

    policy = '[weight,activation] bits: [2,4]: 20 layers; [8,8]: fc'
    return dict(
        metric='accuracy/top1', rule='greater', start=89.5, seeds=[0, 1],
        batches=32,
        versions=dict(gdrq_mm='0.2', torch='2.1'), cells=[
            row('float', [90., 91.], bits=[]),
            row('gdrq', [88., 89.5], bits=[2, 4], weight_levels=3,
                activation_levels={'16': 20}, calibrated=70.25,
                step_ratio=1.154, bytes=100e3, float_bytes=900e3,
                policy=policy),
            row('lsq', [], bits=[2, 4], weight_levels=4, policy=policy)])


def test_table_and_plot(tmp_path):
    lines = table(invented()).splitlines()
    assert len({len(line) for line in lines[:5]}) == 1
    cells = [[cell.strip() for cell in line.split('|')[1:-1]]
             for line in lines[2:5]]
    assert cells[0] == ['', 'float', 'float', '90.50 (90.00 to 91.00)', '',
                        '', '', '900']
    assert cells[1] == ['[2, 4]', 'gdrq', '3 / 16', '88.75 (88.00 to 89.50)',
                        '1.75 (1.50 to 2.00)', '70.25', '1.15', '100']
    assert cells[2] == ['[2, 4]', 'lsq', '4 / up to 16', 'not run', '',
                        'not run', '', '']
    assert '[8,8]: fc' in lines[-1]
    plot(invented(), tmp_path / 'plot.png')
    assert (tmp_path / 'plot.png').stat().st_size > 5000


def test_a_row_says_of_how_many_seeds_it_is():
    result = invented()
    result['cells'][1]['seeds'].pop('1')
    row = table(result).splitlines()[3]
    assert '88.00, 1 of 2 seeds' in row and '2.00, 1 of 2 seeds' in row
    assert 'of 2 seeds' not in table(invented())


def test_a_detector_that_finds_nothing_has_no_metric(tmp_path):
    """COCO's evaluator then gives an empty dict."""
    result = invented()
    row = result['cells'][1]
    row['seeds']['0']['metric'] = row['calibrated'] = float('nan')
    line = table(result).splitlines()[3]
    assert '89.50, 1 of 2 seeds' in line and '1.50, 1 of 2 seeds' in line
    assert '| none ' in line and 'nan' not in line
    row['seeds']['1']['metric'] = float('nan')
    assert table(result).splitlines()[3].count('| none ') == 3
    plot(result, tmp_path / 'plot.png')


def test_what_an_evaluator_does_not_give_is_no_number(monkeypatch, tmp_path):
    cells = [Cell('float'), Cell('lsq', (2, 4), dict(weight={}))]

    def results(comparison, cell, seed, kind):
        found = dict(metrics={} if kind == 'calibrate' else dict(mAP=.5),
                     seconds=1.)
        return dict(found, activation_levels={}, bytes=1, float_bytes=2,
                    step_ratio=1.)

    monkeypatch.setattr('comparing.table._results', results)
    result = collect(SimpleNamespace(cells=cells, cfg={}, settings=Settings(
        '', '', [], [], [0], tmp_path)), None, '')
    assert math.isnan(result['cells'][1]['calibrated'])
    assert 'none' in table(result)


def test_a_drop_is_what_gets_worse():
    result = dict(invented(), rule='less', metric='rmse')
    assert '-1.75 (-2.00 to -1.50)' in table(result)
    assert 'less is better' in table(result)


def test_a_metric_of_unknown_rule_is_asked_for(monkeypatch, tmp_path):
    monkeypatch.setattr('comparing.table._results', lambda *_: dict(
        metrics=dict(rmse=.5), seconds=1.))
    comparison = SimpleNamespace(cells=[], cfg=Config(), settings=Settings(
        '', '', [], [], [0], tmp_path))
    with pytest.raises(ValueError, match='whether a greater rmse is better is '
                       'not known.*, or give --rule greater or --rule less'):
        collect(comparison, None, '')
    assert collect(comparison, None, '', 'less')['rule'] == 'less'


def test_bad_arguments(capsys):
    for arguments, said in ((['--jobs', '0'], '--jobs is 0'),
                            (['--seeds', '-1'], '--seeds has -1')):
        with pytest.raises(SystemExit):
            compare.parse_args(['c.py', 'c.pth', *arguments])
        assert said in capsys.readouterr().err
