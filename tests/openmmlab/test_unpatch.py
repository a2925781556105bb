"""What importing gdrq_mm loads and changes, and that it can be undone."""
import os
import subprocess
import sys
from pathlib import Path

from gdrq_mm.openmmlab import active_patches

ROOT = Path(__file__).parents[2]
# Every attribute of every module and class of mmengine, and the tables that
# patches may write to, before the import and after.
BEFORE = """
import sys
import torch
import mmengine.config, mmengine.dataset, mmengine.evaluator, mmengine.fileio
import mmengine.hooks, mmengine.infer, mmengine.model, mmengine.optim
import mmengine.runner
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.runner import CheckpointLoader

def members(owner):
    for key, value in list(vars(owner).items()):
        # _schemes: sorted anew by each registration, compared by content.
        if key not in ('__abstractmethods__', '_abc_impl', '_schemes'):
            yield key, value

def snapshot():
    seen = dict(table=dict(MODULE2PACKAGE), schemes=dict(
        CheckpointLoader._schemes), safe=set(map(str,
            torch.serialization.get_safe_globals())))
    for name in modules:
        for key, value in members(sys.modules[name]):
            seen[name, key] = value
            if isinstance(value, type) and value.__module__ == name:
                for attribute, member in members(value):
                    seen[name, key, attribute] = getattr(
                        member, '__func__', member)
    return seen

def changes(old, new):
    missing = object()
    return [key for key in {**old, **new} if key[0] in modules or key in (
            'table', 'schemes', 'safe')
            if (old.get(key, missing) is not new.get(key, missing)
                if isinstance(key, tuple) else old[key] != new[key])]

modules = [name for name in sys.modules if name in (
               'torch.serialization', 'torch.nn.modules.module')
           or name.split('.')[0] == 'mmengine']
before, loaded = snapshot(), set(sys.modules)
import gdrq_mm
from gdrq_mm import openmmlab
"""


def run(code, **environment):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', '-c', BEFORE + code], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, **environment})
    assert done.returncode == 0, done.stdout


def test_unpatching_restores_everything():
    run("""
found = changes(before, snapshot())
assert len(found) >= len(openmmlab.active_patches()) >= 4, found
openmmlab.unpatch_mmengine()
assert not openmmlab.active_patches()
assert not changes(before, snapshot()), changes(before, snapshot())
openmmlab.patch_mmengine()
assert set(changes(before, snapshot())) == set(found)
""")


def test_patches_are_applied_all_or_none():
    run("""
from gdrq_mm.openmmlab import patches
openmmlab.unpatch_mmengine()

def fails():
    raise OSError('no')

patches.watch_quantized_runs = fails
try:
    openmmlab.patch_mmengine()
except OSError:
    assert not openmmlab.active_patches()
    assert not changes(before, snapshot()), changes(before, snapshot())
else:
    raise AssertionError
""")


def test_a_variable_calls_all_patches_off():
    run("""
assert not openmmlab.active_patches()
assert not changes(before, snapshot()), changes(before, snapshot())
""", GDRQ_MM_PATCHES='off')


def test_importing_loads_little_beside_mmengine():
    """Training needs no deployment, no mm package but mmcv's layers."""
    run("""
packages = {name.split('.')[0] for name in set(sys.modules) - loaded}
assert packages - set(sys.stdlib_module_names) <= {
    'gdrq_mm', 'mmcv', 'PIL', 'cv2', 'tifffile'}, packages
rooms = {name.split('.')[1] for name in sys.modules
         if name.startswith('gdrq_mm.')}
assert not rooms & {'merge', 'integer', 'export', 'deploy', 'deployable',
                    'analysis', 'cli'}, rooms
""")


def test_the_docs_list_every_patch():
    text = (ROOT / 'docs' / 'patches.md').read_text()
    rows = [line.split('|')[1].strip() for line in text.splitlines()
            if line.startswith('| ')]
    assert rows[2:] == active_patches()


def test_the_hook_logs_every_patch_once(make_runner, run_log):
    hook = dict(type='GDRQHook', quantization=dict(weight=dict(bits=4)))
    runner = make_runner('resnet', hook, **{'train_cfg.max_epochs': 1})
    runner.train()
    log = run_log(runner)
    assert all(log.count(change) == 1 for change in active_patches())
