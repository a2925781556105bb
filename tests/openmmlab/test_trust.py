"""Configs inside checkpoint files are code: run for named files only."""
import contextlib
import hashlib

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.infer import BaseInferencer
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint

import gdrq_mm  # noqa: F401, draws the boundary
from gdrq_mm.checkpoint import CheckpointError
from gdrq_mm.openmmlab import trust


@MODELS.register_module()
class TrustedNet(BaseModel):

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def forward(self, inputs, data_samples=None, mode='tensor'):
        return self.layer(inputs)


class Inferencer(BaseInferencer):
    """The least of one."""

    def _init_pipeline(self, cfg):
        return lambda inputs: inputs

    def visualize(self, *args, **kwargs):
        pass

    def postprocess(self, preds, *args, **kwargs):
        return preds


def code_of(tmp_path):
    """Python, and a config of literals that runs a program."""
    ran = tmp_path / 'ran'
    return ran, [
        f'__import__("os").mkdir({str(ran)!r})\n'
        "model = dict(type='TrustedNet')",
        f"model = dict(type='os.makedirs', name={str(ran)!r})"]


@pytest.fixture
def write(tmp_path):
    def save(cfg, **meta):
        path = tmp_path / 'file.pth'
        torch.save(dict(meta=dict(cfg=cfg, **meta), state_dict=TrustedNet(
        ).state_dict()), path)
        return str(path), hashlib.sha256(path.read_bytes()).hexdigest()

    return save


@pytest.mark.parametrize('number', [0, 1])
@pytest.mark.parametrize('place', ['meta', 'message_hub'])
def test_a_config_inside_runs_for_no_file_that_nobody_named(
        number, place, write, tmp_path, monkeypatch):
    monkeypatch.setenv(trust.VARIABLE, 64 * '0')
    ran, codes = code_of(tmp_path)
    path, sha256 = write(codes[number])
    if place == 'message_hub':  # mmengine looks there first
        torch.save(dict(torch.load(path), message_hub=dict(
            runtime_info=dict(cfg=codes[number]))), path)
        sha256 = trust.sha256_of(path)
    with pytest.raises(CheckpointError, match=(
            f'file.pth is opened without a config.*{trust.VARIABLE}={sha256}'
            '.*Nothing was loaded')):
        Inferencer(weights=path)
    assert not ran.exists()
    monkeypatch.setenv(trust.VARIABLE, sha256)
    with contextlib.suppress(Exception):  # os.makedirs gives no model
        Inferencer(weights=path)
    assert ran.exists()  # this is what is guarded against


@pytest.mark.parametrize('named', ['the file', 'all'])
def test_it_runs_for_files_that_are_named(named, write, monkeypatch):
    path, sha256 = write("model = dict(type='TrustedNet')")
    monkeypatch.setenv(trust.VARIABLE, 'all' if named == 'all' else
                       f'{64 * "a"}, {sha256.upper()}')
    assert isinstance(Inferencer(weights=path).model, TrustedNet)


def test_with_a_config_nothing_in_the_file_runs(write, tmp_path):
    ran, (code, _) = code_of(tmp_path)
    path, _ = write(code)
    cfg = ConfigDict(model=dict(type='TrustedNet'))
    assert isinstance(Inferencer(cfg, path).model, TrustedNet)
    load_checkpoint(TrustedNet(), path)
    assert not ran.exists()


def test_what_is_no_digest_is_named(write, monkeypatch):
    path, _ = write('model = dict()')
    monkeypatch.setenv(trust.VARIABLE, 'yes')
    with pytest.raises(ValueError, match="GDRQ_MM_TRUST has 'yes', allowed"):
        Inferencer(weights=path)


def test_a_run_resumes_from_its_own_folder_without_a_word(
        make_runner, tmp_path, run_log):
    make_runner('resnet', work_dir=tmp_path,
                **{'train_cfg.max_epochs': 1}).train()
    runner = make_runner('resnet', work_dir=tmp_path, resume=True)
    runner.train()
    assert runner.epoch == 2 and trust.VARIABLE not in run_log(runner)


def test_resuming_runs_no_config_of_the_file(make_runner, tmp_path, run_log,
                                             monkeypatch):
    ran, (code, _) = code_of(tmp_path)
    make_runner('resnet', **{'train_cfg.max_epochs': 1}).train()
    content = torch.load(tmp_path / 'run' / 'epoch_1.pth')
    content['meta']['config'] = code
    path = tmp_path / 'foreign.pth'
    torch.save(content, path)
    runner = make_runner('resnet', load_from=str(path), resume=True)
    runner.train()
    assert runner.epoch == 2 and not ran.exists()
    assert "meta['config'] is left out" in run_log(runner)
    monkeypatch.setenv(trust.VARIABLE, trust.sha256_of(str(path)))
    make_runner('resnet', load_from=str(path), resume=True).train()
    assert ran.exists()  # this is what is guarded against
