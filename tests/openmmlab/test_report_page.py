"""What a report reads of files that others wrote."""
import pytest

from gdrq_mm.analysis.measurements import Measurements
from gdrq_mm.analysis.sensitivity import Figures, Setting
from gdrq_mm.openmmlab.report_page import read_settings, run_scalars

LINE = '{"loss": 1.0, "step": 1}\n'


@pytest.fixture
def scalars(tmp_path):
    path = tmp_path / '2026' / 'vis_data' / 'scalars.json'
    path.parent.mkdir(parents=True)
    return path


def test_a_run_that_was_cut_off_has_its_curves(scalars, tmp_path):
    scalars.write_text(f'{LINE}\n{{"loss": 0.')
    assert run_scalars(tmp_path / 'x.pth') == [dict(loss=1., step=1)]
    scalars.write_text(f'{{"loss": 0.\n{LINE}')
    with pytest.raises(ValueError, match='scalars.json has no JSON in line 1'):
        run_scalars(tmp_path / 'x.pth')


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
    assert read_settings(path) == expected


@pytest.mark.parametrize('text', ['[1]', '{"figures": []}', '{',
                                  '{"figures": [], "inputs": {}}'])
def test_a_file_of_something_else_is_told(text, tmp_path):
    path = tmp_path / 'kept.json'
    with pytest.raises(ValueError, match='there is no file .*kept.json'):
        read_settings(path)
    path.write_text(text)
    with pytest.raises(ValueError, match='is no file of measurements'):
        read_settings(path)
