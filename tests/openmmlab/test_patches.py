"""What is changed in mmengine, and that it can be taken back."""
import itertools
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.fileio import LocalBackend
from mmengine.hooks import checkpoint_hook
from mmengine.logging import HistoryBuffer
from mmpretrain.evaluation import Accuracy
from torch import nn

from gdrq_mm import writing
from gdrq_mm.openmmlab import patches


def test_log_histories_load_with_weights_only(tmp_path):
    history = HistoryBuffer([1., 2., 3.], [1, 1, 1])
    torch.save(dict(loss=history, last=np.float64(3.), seed=np.int64(1)),
               tmp_path / 'a.pth')
    loaded = torch.load(tmp_path / 'a.pth', weights_only=True)
    assert loaded['loss'].data[0].tolist() == [1., 2., 3.]
    assert loaded['loss'].mean(2) == 2.5
    assert loaded['last'] == 3. and loaded['seed'] == 1


@pytest.mark.parametrize('written_by', ['numpy.core', 'numpy._core'])
def test_arrays_that_numpy_1_or_2_wrote_load(written_by, tmp_path):
    torch.save(dict(a=np.arange(3.), b=np.float64(2.)), tmp_path / 'new.pth')
    with zipfile.ZipFile(tmp_path / 'new.pth') as new, \
            zipfile.ZipFile(tmp_path / 'old.pth', 'w') as old:
        for name in new.namelist():
            old.writestr(name, new.read(name).replace(
                b'numpy._core', written_by.encode()))
    loaded = torch.load(tmp_path / 'old.pth', weights_only=True)
    assert loaded['a'].tolist() == [0., 1., 2.] and loaded['b'] == 2.


def test_getattr_gives_nothing_but_statistics(tmp_path):

    class Attack:

        def __reduce__(self):
            return getattr, (HistoryBuffer, '__init__')

    torch.save(dict(loss=Attack()), tmp_path / 'a.pth')
    with pytest.raises(ValueError, match='do not trust it'):
        torch.load(tmp_path / 'a.pth', weights_only=True)


@pytest.mark.parametrize('unwritten', ['epoch_2.pth', '_epoch_2.pth'])
def test_a_run_that_keeps_one_checkpoint_always_has_one(
        unwritten, load_config, make_runner, tmp_path, monkeypatch):
    """mmengine removes the old one first, and writes the new one in place."""
    best = unwritten.startswith('_')
    scores, put = itertools.count(), LocalBackend.put

    def fail(self, obj, filepath):
        if not Path(filepath).name.endswith(unwritten) or (
                best != Path(filepath).name.startswith('best')):
            return put(self, obj, filepath)
        with monkeypatch.context() as context:
            context.setattr(writing, '_to_disk', lambda path: 1 / 0)
            put(self, obj, filepath)

    def make(**options):
        cfg = load_config('resnet')
        if best:  # every epoch is better than the one before
            cfg.update(val_dataloader=cfg.test_dataloader, val_cfg={},
                       val_evaluator=cfg.test_evaluator)
            monkeypatch.setattr(
                Accuracy, 'compute_metrics',
                lambda *args: dict(score=next(scores)))
        return make_runner(cfg, work_dir=tmp_path, **{
            'train_cfg.max_epochs': 3,
            'default_hooks.checkpoint': dict(
                type='CheckpointHook', interval=1, max_keep_ckpts=1,
                save_best='auto' if best else None)}, **options)

    with monkeypatch.context() as context:
        context.setattr(LocalBackend, 'put', fail)
        with pytest.raises(ZeroDivisionError):
            make().train()
    named = Path((tmp_path / 'last_checkpoint').read_text())
    assert torch.load(named)['meta']
    kept = {path.name for path in tmp_path.glob('*epoch_*.pth')}
    assert kept == ({'best_accuracy_score_epoch_1.pth', 'epoch_2.pth'}
                    if best else {'epoch_1.pth'})
    make(resume=True).train()
    kept = {path.name for path in tmp_path.glob('*epoch_*.pth')}
    assert kept == {'epoch_3.pth', *(
        ['best_accuracy_score_epoch_3.pth'] if best else [])}
    assert not list(tmp_path.glob('.*.part'))


def test_the_note_of_the_last_checkpoint_is_never_empty(tmp_path,
                                                        monkeypatch):
    note = tmp_path / 'last_checkpoint'
    note.write_text('epoch_1.pth')
    with pytest.raises(ZeroDivisionError):
        with checkpoint_hook.open(note, 'w') as file:
            file.write('epoch')
            1 / 0
    assert note.read_text() == 'epoch_1.pth'


def test_mmengine_is_left_as_it_was_when_asked(monkeypatch):
    ours = LocalBackend.put
    patches.unpatch_mmengine()
    try:
        assert LocalBackend.put is not ours
        assert not hasattr(checkpoint_hook, 'open')
    finally:
        patches.patch_mmengine()
    assert hasattr(checkpoint_hook, 'open')


@pytest.mark.parametrize('state_dict', [None, 3, {3: torch.ones(1)}])
def test_what_is_no_state_dict_is_said_in_torchs_own_words(state_dict):
    def outcome(strict):
        try:
            return str(nn.Linear(1, 1).load_state_dict(state_dict, strict))
        except Exception as error:
            return f'{type(error).__name__}: {error}'

    with_ours = [outcome(strict) for strict in (True, False)]
    patches.unpatch_mmengine()
    try:
        assert [outcome(strict) for strict in (True, False)] == with_ours
    finally:
        patches.patch_mmengine()


def test_configs_of_a_renamed_fork_are_found(tmp_path, monkeypatch):
    """As mmseg, which onedl-mmsegmentation brings, not mmsegmentation."""
    inside = tmp_path / 'renamed_mm' / '.mim'
    (inside / 'configs' / 'net').mkdir(parents=True)
    (tmp_path / 'renamed_mm' / '__init__.py').write_text('')
    (inside / 'model-index.yml').write_text('Import: []')
    (inside / 'configs' / 'net' / 'a.py').write_text('depth = 18')
    child = tmp_path / 'child.py'
    child.write_text("_base_ = 'renamed_mm::net/a.py'")
    monkeypatch.syspath_prepend(tmp_path)
    patches.unpatch_mmengine()
    try:
        monkeypatch.setitem(MODULE2PACKAGE, 'renamed_mm', 'first-name-of-mm')
        with pytest.raises(ModuleNotFoundError, match='first-name-of-mm'):
            Config.fromfile(child)
        patches.patch_mmengine()
        assert Config.fromfile(child).depth == 18
        patches.unpatch_mmengine()
        assert MODULE2PACKAGE['renamed_mm'] == 'first-name-of-mm'
    finally:
        patches.patch_mmengine()
    assert MODULE2PACKAGE['mmdet'] == 'mmdet'


def test_a_validation_without_training_needs_no_checkpoint():
    """CheckpointHook knows where it saves from the training on."""
    hook = checkpoint_hook.CheckpointHook(interval=1)
    assert hook._save_best_checkpoint(None, dict(acc=1.)) is None
