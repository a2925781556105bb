"""What a report reads of files that others wrote."""
import json

import pytest

from gdrq_mm.analysis.measurements import Measurements
from gdrq_mm.analysis.sensitivity import Figures, Setting
from gdrq_mm.openmmlab.report_page import read_settings, run_scalars

LINE = '{"loss": 1.0, "iter": 1, "step": 1}\n'


@pytest.fixture
def scalars(tmp_path):
    path = tmp_path / '2026' / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    return path


def test_a_run_that_was_cut_off_has_its_curves(scalars, tmp_path):
    scalars.write_text(f'{LINE}\n{{"loss": 0.')
    assert run_scalars(tmp_path / 'x.pth') == [
        dict(loss=1., iter=1, step=1)]
    scalars.write_text(f'{{"loss": 0.\n{LINE}')
    with pytest.raises(ValueError, match='scalars.json has no JSON in line 1'):
        run_scalars(tmp_path / 'x.pth')


def test_a_resumed_run_has_the_curves_of_all_its_parts(tmp_path):
    def write(name, *lines):
        path = tmp_path / name / 'vis_data' / 'scalars.json'
        path.parent.mkdir(parents=True)
        path.write_text(''.join(json.dumps(line) + '\n' for line in lines))

    def step(number, loss):
        return dict(loss=loss, iter=number, step=number)

    score = dict(top1=.5, step=1)  # of a validation; its step is an epoch
    write('1', step(10, 9.), step(20, 9.))
    write('2', step(10, 5.), step(20, 4.), score, step(30, 3.), step(40, 2.))
    write('3', step(30, 2.5), score)
    write('4', score)  # a test
    assert run_scalars(tmp_path / 'x.pth') == [
        step(10, 5.), step(20, 4.), score, step(30, 2.5), score]


def test_layers_and_stages_of_one_name_are_kept_apart(tmp_path):
    path = tmp_path / 'kept.json'
    measured = Measurements(path, dict(batches=1))
    expected = {
        setting: Figures(float(index), .1, .2) for index, setting in enumerate(
            Setting('neck.attn', 'both', 4, 'alone', by)
            for by in ('layer', 'stage'))}
    for setting, figures in expected.items():
        measured.put(setting.key, vars(figures))
    measured.put('calibrated [1, 2] a b', 1)
    assert read_settings(path, ['neck.attn', 'neck.attn.proj']) == expected


@pytest.mark.parametrize('by, group', [
    ('layer', 'backbone.layer9.conv'), ('stage', 'backbone.layer9'),
    ('stage', 'backbone.conv1.conv')])
def test_figures_of_another_model_are_refused(by, group, tmp_path):
    path = tmp_path / 'kept.json'
    measured = Measurements(path, dict(batches=1))
    layers = ['backbone.conv1', 'backbone.layer1.conv']
    for each in (Setting('', 'both', 4, 'rest'),
                 Setting('backbone.layer1', 'both', 4, 'alone', 'stage'),
                 Setting('backbone.layer1.conv', 'weight', 2, 'alone')):
        measured.put(each.key, vars(Figures(1., .1, .2)))
    assert len(read_settings(path, layers)) == 3
    measured.put(Setting(group, 'both', 4, 'alone', by).key,
                 vars(Figures(1., .1, .2)))
    with pytest.raises(ValueError, match='kept.json was measured of another '
                       f"model: this one has no {by} '{group}'; measure it"):
        read_settings(path, layers)


@pytest.mark.parametrize('text', ['[1]', '{"figures": []}', '{',
                                  '{"figures": [], "inputs": {}}'])
def test_a_file_of_something_else_is_told(text, tmp_path):
    path = tmp_path / 'kept.json'
    with pytest.raises(ValueError, match='there is no file .*kept.json'):
        read_settings(path, [])
    path.write_text(text)
    with pytest.raises(ValueError, match='is no file of measurements'):
        read_settings(path, [])
