"""The sweep itself: what it chooses, that it goes on and tells causes."""
import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / 'tools'))

from jobs.engine import Engine  # noqa: E402
from jobs.process import Limits  # noqa: E402
from sweeping import batches, checks, models  # noqa: E402
from sweeping.engine import (  # noqa: E402
    path_of,
    read,
    read_all,
    run_families,
)
from sweeping.exporting import (  # noqa: E402
    check_export,
    write_export_page,
)
from sweeping.families import (  # noqa: E402
    candidates,
    families,
    installed,
    mim_folder,
)
from sweeping.page import share, verdict_of, write_page  # noqa: E402
from sweeping.probe import CHECKS  # noqa: E402


def record(package, family, **checks):
    return dict(package=package, family=family, done=True,
                checks={**dict.fromkeys(CHECKS, 'ok'), **checks})


class TestFamilies:

    def test_every_folder_of_configs(self):
        found = {package: families(package)
                 for package in ('mmpretrain', 'mmdet', 'mmseg')}
        assert len(found['mmpretrain']) > 80
        assert 'detr' in found['mmdet'] and 'knet' in found['mmseg']
        assert not any('_base_' in names for names in found.values())

    def test_the_smallest_config_comes_first(self):
        assert 'tiny' in candidates('mmpretrain', 'convnext')[0].stem
        assert candidates('mmseg', 'knet')[0].exists()

    def test_unknown_names_teach(self):
        with pytest.raises(ValueError, match='did you mean.*mask2former'):
            candidates('mmdet', 'mask2formr')


def test_images_are_trained_at_the_size_that_the_page_tells():
    """mmseg's preprocessor pads to the size that its config has."""
    cfg = models.read_config(
        mim_folder('mmseg') / 'configs' / 'pspnet'
        / 'pspnet_r18-d8_4xb2-80k_cityscapes-512x1024.py', 'mmseg')
    reduced, batch = next(batches.batches(cfg))
    with DefaultScope.overwrite_default_scope('mmseg'):
        preprocess = MODELS.build(cfg.model.data_preprocessor)
    height, width = preprocess(batch(), training=True)['inputs'].shape[2:]
    assert reduced == f'{height} x {width} pixels'


def test_no_weights_are_fetched_for_a_backbone_that_loads_them_itself():
    """PVT's ``init_cfg`` names a checkpoint and no type."""
    cfg = models.read_config(
        mim_folder('mmdet') / 'configs' / 'pvt'
        / 'retinanet_pvtv2-b0_fpn_1x_coco.py', 'mmdet')
    models.build(cfg).init_weights()


def test_more_classes_than_uint8_holds_make_a_batch():
    cfg = models.read_config(
        mim_folder('mmdet') / 'configs' / 'objects365'
        / 'retinanet_r50_fpn_1x_objects365v1.py', 'mmdet')
    _, batch = next(batches.batches(cfg))
    assert len(batch()['inputs']) == batches.BATCH


def test_a_detector_of_one_class_gets_labels_of_one():
    cfg = models.read_config(
        mim_folder('mmdet') / 'configs' / 'wider_face'
        / 'retinanet_r50_fpn_1x_widerface.py', 'mmdet')
    assert cfg.model.bbox_head.num_classes == 1
    _, batch = next(batches.batches(cfg))
    for sample in batch()['data_samples']:
        assert not sample.gt_instances.labels.any()


def test_images_of_two_branches_are_moved_in_float32():
    cfg = models.read_config(
        mim_folder('mmdet') / 'configs' / 'soft_teacher'
        / 'soft-teacher_faster-rcnn_r50-caffe_fpn_180k_'
        'semi-0.1-coco.py', 'mmdet')
    _, batch = next(batches.batches(cfg))
    for samples in batch()['data_samples'].values():
        assert samples[0].homography_matrix.dtype == 'float32'


class TestRecords:

    def test_what_was_run_stays(self, tmp_path):
        path = path_of(tmp_path, 'mmdet', 'detr')
        path.parent.mkdir()
        path.write_text(json.dumps(record('mmdet', 'detr')))
        assert read(tmp_path, 'mmdet', 'detr', 'a:b')['checks'][
            'train'] == 'ok'
        path.write_text('{"half":')
        assert read(tmp_path, 'mmdet', 'detr', 'a:b') is None
        assert list(read_all(tmp_path, 'a:b')) == []

    def test_what_is_run_again_stays_until_its_turn(self, tmp_path,
                                                    monkeypatch):
        names = [('mmpretrain', 'lenet'), ('mmpretrain', 'vgg')]
        run_families(tmp_path, names, function='fake_cells:recurse')

        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr(Engine, '_look_after', interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_families(tmp_path, names, function='fake_cells:recurse')
        found, = read_all(tmp_path, 'fake_cells:recurse')
        assert found['family'] == 'vgg'

    def test_the_two_sweeps_do_not_mix(self, tmp_path):
        run_families(tmp_path, [('mmpretrain', 'lenet')],
                     function='fake_cells:recurse')
        with pytest.raises(ValueError, match='lenet.json is of the other sw'):
            list(read_all(tmp_path, 'sweeping.probe:probe'))
        page = tmp_path / 'page.md'
        write_page(page, [record('mmdet', 'detr', convert='ok')])
        before = page.with_suffix('.json').read_text()
        with pytest.raises(ValueError, match='page.json is of the other sw'):
            write_export_page(page, [record('mmdet', 'fcos', export='ok')])
        assert page.with_suffix('.json').read_text() == before

    @pytest.mark.parametrize('function, limits, said', [
        ('burn', Limits(seconds=.5), 'more than 0.5 seconds of CPU time'),
        ('die', Limits(), 'ended with exit code 3')])
    def test_what_ended_a_family_is_told_of_the_check_it_was_at(
            self, tmp_path, function, limits, said):
        run_families(tmp_path, [('mmpretrain', 'lenet')], limits,
                     f'fake_cells:{function}')
        found, = read_all(tmp_path, f'fake_cells:{function}')
        assert found['checks'].keys() == {'train'}
        assert said in found['checks']['train']
        assert found['seconds'] > 0


def test_the_page_has_every_family(tmp_path):
    records = [
        record('mmpretrain', 'resnet'),
        record('mmpretrain', 'beit', packed='other | outputs'),
        record('mmpretrain', 'blip', float='OSError: no tokenizer')]
    records[0]['macs'] = dict(parametric=10000, low_bit=9999, float=[
        ['head.fc.weight', 1]])
    records[0].update(float_layers={'no input': 2},
                      float_gap=['backbone.index', 'backbone.table'])
    write_page(tmp_path / 'page.md', records)
    page = (tmp_path / 'page.md').read_text()
    assert '| head.fc.weight below 0.1%; 2 of the layers: no input | ok; ' \
        'loaded without 2 entries, as in float (backbone.index, ...) |' in page
    for package in ('mmpretrain', 'mmdet', 'mmseg'):
        assert all(name in page for name in families(package))
    assert '99.9%' in page and '100.0%' not in page
    assert 'mmpretrain beit: other \\| outputs' in page
    assert 'does not run in float here: OSError: no tokenizer' in page
    assert 'Not run yet' in page
    assert [each['family'] for each in json.loads(
        (tmp_path / 'page.json').read_text())] == ['beit', 'blip', 'resnet']


def test_families_that_are_not_run_anew_stay_on_the_page(tmp_path):
    page = tmp_path / 'page.md'
    write_page(page, [record('mmdet', 'detr'),
                      record('mmdet', 'dino', train='it is too slow')])
    write_page(page, [record('mmdet', 'dino')])
    rows = [line for line in page.read_text().splitlines()
            if line.startswith(('| detr |', '| dino |'))]
    assert len(rows) == 2 and all(row.endswith('| ok |') for row in rows)


def test_the_page_says_what_was_not_trained(tmp_path):
    whole, part = record('mmdet', 'detr'), record('mmpretrain', 'levit')
    for name in ('train', 'gradients'):
        del part['checks'][name]
    assert verdict_of(part) == 'train: not reached'
    part['untrained'] = 'NotImplementedError: no'
    whole['seconds'] = 151.
    assert verdict_of(part) == 'ok'
    write_page(tmp_path / 'page.md', [whole, part])
    page = (tmp_path / 'page.md').read_text()
    assert '| ok; not trained, as in float: NotImplementedError: no |' in page
    rows = [line for line in page.splitlines() if ' | 1 | 1 | ' in line]
    assert [row.split(' | ', 4)[4] for row in rows] == [
        '0 | 1 |  |', '1 | 0 | 3 |']


def test_shares_of_operands_that_stay_float_add_up(tmp_path):
    found = record('mmdet', 'detr')
    found['macs'] = dict(parametric=1000, low_bit=900, float=[
        ['a', 40], ['b', 30], ['c', 20]])  # and more that are not listed
    write_page(tmp_path / 'page.md', [found])
    assert '| 90.0% | a 4.0%, b 3.0%, others 3.0% |' in (
        tmp_path / 'page.md').read_text()


def test_results_of_upstreams_tests_beside_the_page_are_on_it(tmp_path):
    (tmp_path / 'results').mkdir()
    (tmp_path / 'results/upstream-mmdet.json').write_text(json.dumps(dict(
        package='mmdet', version='3.3', tests=['tests/a', 'tests/b'],
        passed=5, failed={'x.test_a.one': 'Error: 7 of 9\nlong',
                          'b': 'Error: 3 of 9'})))
    write_page(tmp_path / 'page.md', [])
    page = (tmp_path / 'page.md').read_text()
    assert 'mmdet 3.3: of 5 tests that pass in float 2 fail converted ' \
        '(`gdrq upstream-tests CHECKOUT tests/a tests/b`):' in page
    assert '- Error: ... of ... (2): `b`, `test_a.one`' in page


def test_failures_read_the_same_on_every_machine():
    folder = Path(checks.PACKAGES)
    assert (folder / 'torch').is_dir()
    assert checks.sentence(FileNotFoundError(
        f'file "{folder / "mmdet" / "sort.py"}" does  not\nexist')) == \
        'FileNotFoundError: file "mmdet/sort.py" does not'


def test_entries_of_quantizers_go_with_the_layer_that_is_not_loaded():
    gap = ['again.fc.bias', 'again.fc.weight', 'attn.table']
    assert not checks.differing_entries(
        ['again.fc.bias', 'again.fc.weight_packed',
         'again.fc.input_quantizer.clip', 'attn.table'], gap)
    assert checks.differing_entries(
        ['again.fc.bias', 'again.fc.weight', 'attn.qkv.weight'], gap) == [
            'attn.qkv.weight', 'attn.table']


def test_all_is_all():
    found = record('mmdet', 'detr')
    found['macs'] = dict(parametric=7, low_bit=7, float=[])
    assert share(found) == '100.0%'


def test_the_tool_runs_a_family(tmp_path):
    """From the command line: LeNet is the smallest family there is."""
    command = [sys.executable, str(ROOT / 'tools/sweep.py'), '--work-dir',
               str(tmp_path)]
    subprocess.run([*command, 'mmpretrain', 'lenet'], check=True)
    found = json.loads((tmp_path / 'mmpretrain/lenet.json').read_text())
    assert verdict_of(found) == 'ok'
    assert found['macs']['low_bit'] == found['macs']['parametric'] > 0
    again = subprocess.run([*command, 'mmpretrain', 'lenet'], check=True,
                           text=True, capture_output=True).stdout
    assert '1 of 1 families were run before' in again
    for arguments, said in (
            (['mmpretrain', 'nolenet'], 'no family'),
            (['--page', str(tmp_path / 'page.json')], 'give it a name in .md'),
            (['--page', str(tmp_path / 'page.md'), '--work-dir',
              str(tmp_path / 'none')], 'nothing was run in ')):
        wrong = subprocess.run([*command, *arguments], text=True,
                               capture_output=True)
        assert wrong.returncode == 1 and said in wrong.stderr
    assert not (tmp_path / 'page.md').exists()


def test_packages_that_are_installed_are_swept(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None
                        if name == 'mmpretrain' else find(name))
    assert installed() == ['mmdet', 'mmseg']
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    with pytest.raises(FileNotFoundError, match='none of mmpretrain, mmdet'):
        installed()


class TestExport:

    def test_a_family_becomes_a_file_and_a_row(self, tmp_path):
        cfg = Config(dict(default_scope='mmpretrain', model=dict(
            type='ImageClassifier', neck=dict(type='GlobalAveragePooling'),
            backbone=dict(type='MobileNetV2', widen_factor=.1,
                          out_indices=(0, )),
            head=dict(type='LinearClsHead', num_classes=2, in_channels=8),
            data_preprocessor=dict(mean=[0] * 3, std=[1] * 3))))
        found = dict(package='mmpretrain', family='toy', checks={})
        check_export(found, dict(toy=lambda: cfg))
        assert found['checks'] == dict(float='ok', export='ok'), found
        assert found['kernels'] > 2 and not found['float_layers']
        assert found['names'] == ['scores'] and 'refused' not in found
        page = tmp_path / 'page.md'
        write_export_page(page, [found])
        row, = [line for line in page.read_text().splitlines()
                if line.startswith('| toy')]
        assert row.endswith(f'| scores | {found["kernels"]} | 0 | '
                            f'{found["difference"]:.1g} | ok |')

    def test_what_is_exported_raw_or_not_at_all_is_told(self, tmp_path):
        raw = dict(package='mmdet', family='yolact', checks=dict(
            float='ok', export='ok'), refused='it has a MyHead', kernels=3,
            float_layers={}, difference=.02, names=['a', 'b', 'c', 'd', 'e'])
        failed = dict(package='mmdet', family='solo', checks=dict(
            float='ok', export='RuntimeError: no graph'))
        page = tmp_path / 'page.md'
        write_export_page(page, [raw, failed])
        text = page.read_text()
        assert '2 families run, 1 exported, 0 of them with' in text
        assert ('| a, b, ... (5) | 3 | 0 | 0.02 | raw: it has a MyHead |'
                in text)
        assert 'export: RuntimeError: no graph |' in text
        left = text.partition('## mmdet')[2].partition('Not run yet')[2]
        names = left.splitlines()[0].split(', ')
        assert 'retinanet' in names and 'solo' not in names
        # Those that are not run anew stay.
        write_export_page(page, [dict(failed, checks=raw['checks'])])
        text = page.read_text()
        assert '2 families run, 2 exported, 1 of them with' in text
        assert '| yolact |' in text and '| solo |' in text
