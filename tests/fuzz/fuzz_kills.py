"""Kills at random moments of all that writes files: nothing is lost.

Usage: python tests/fuzz/fuzz_kills.py [--cases 64] [--seed 0] [--json FILE]

A forked process trains (one kept checkpoint, and the best), publishes,
calibrates or exports, and is killed after some CPU time, or at the n-th time
that it touches a file in the folder of its output. A failure is

- a file under a final name that is not whole, or a file of before that
  changed;
- a training whose ``last_checkpoint`` names no whole checkpoint once there
  was one, or that does not resume from it.
"""
import hashlib
import itertools
import mmap
import os
import random
import resource
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Tuple

import slices
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.registry import DATASETS, METRICS, init_default_scope
from mmengine.runner import Runner
from torch import nn

import gdrq_mm
from gdrq_mm.openmmlab.calibrate import calibrate_checkpoint
from gdrq_mm.openmmlab.publish import publish
from gdrq_mm.openmmlab.reading import read_checkpoint
from gdrq_mm.openmmlab.scopes import build_model

CONFIG = """
custom_imports = dict(imports=['gdrq_mm', 'mmpretrain.models'])
default_scope = 'mmpretrain'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(type='ClsDataPreprocessor', num_classes=3),
    backbone=dict(type='LeNet5', num_classes=3),
    head=dict(type='ClsHead'))
custom_hooks = [dict(type='GDRQHook', quantization=dict(
    weight=dict(bits=4), activation=dict(bits=4)))]
loader = dict(
    batch_size=2, num_workers=0, collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='NoiseImages'))
train_dataloader = loader
val_dataloader = loader
val_evaluator = dict(type='Rising')
test_dataloader = loader
test_evaluator = dict(type='Rising')
test_cfg = dict()
train_cfg = dict(by_epoch=True, max_epochs=4)
val_cfg = dict()
optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.01))
default_hooks = dict(
    checkpoint=dict(type='CheckpointHook', interval=1, max_keep_ckpts=1,
                    save_best='score', rule='greater'),
    logger=dict(type='LoggerHook', interval=100))
randomness = dict(seed=0)
log_level = 'ERROR'
"""
FOLDER_EVENTS = ('open', 'os.', 'shutil.', 'tempfile.')


@DATASETS.register_module(force=True)
class NoiseImages(torch.utils.data.Dataset):
    """Four random images, no file."""
    metainfo = dict(classes=('a', 'b', 'c'))

    def __len__(self):
        return 4

    def __getitem__(self, index):
        from mmpretrain.structures import DataSample
        generator = torch.Generator().manual_seed(index)
        return dict(inputs=torch.rand(1, 32, 32, generator=generator),
                    data_samples=DataSample().set_gt_label(index % 3))

    def full_init(self):
        pass


@METRICS.register_module(force=True)
class Rising(BaseMetric):
    """Every epoch is better than the one before."""

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return dict(score=time.monotonic())


def train(folder: Path, config: Path) -> None:
    cfg = Config.fromfile(config)
    cfg.work_dir, cfg.resume = str(folder), True
    cfg.experiment_name = f'{folder.name}_{os.getpid()}_{time.monotonic()}'
    Runner.from_cfg(cfg).train()


def check_training(folder: Path, config: Path) -> None:
    """What is there is whole, and the run goes on from it to its end."""
    for path in folder.glob('*.pth'):
        read_checkpoint(str(path))
    note = folder / 'last_checkpoint'
    if note.exists():
        assert Path(note.read_text()).exists(), f'{note.read_text()} is lost'
        # In a fork: torch allows none in a process that trained.
        assert not killed(lambda: train(folder, config))
        kept = sorted(path.name.rpartition('_')[2] for path in folder.glob(
            '*.pth'))
        assert kept[-1] == '4.pth', kept


def check_published(folder: Path) -> None:
    for path in folder.glob('*.pth'):
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.stem.endswith(sha[:8]), f'{path.name} is not whole'
        assert path.with_suffix('.py').exists(), 'its config is missing'
    for path in folder.glob('*.py'):
        assert Config.fromfile(path).model.type == 'QuantizedModel'


def check_calibrated(folder: Path) -> None:
    for path in folder.glob('*.pth'):
        assert read_checkpoint(str(path))['state_dict']


def check_exported(folder: Path) -> None:
    import onnx
    for path in folder.glob('*.onnx'):
        onnx.checker.check_model(onnx.load(path))


def export(folder: Path) -> None:
    from gdrq_mm.deploy import export_onnx
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
                          nn.Conv2d(4, 4, 3))
    gdrq_mm.quantize_(model, dict(weight=dict(bits=4),
                                  activation=dict(bits=4)))
    image = torch.rand(1, 3, 8, 8)
    gdrq_mm.calibrate(model, [lambda: model(image)])
    export_onnx(model.eval(), image, folder / 'model.onnx')


def killed(function, arm=lambda: None) -> bool:
    """Run in a fork that ``arm`` may kill; whether it was."""
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            arm()
            function()
            os._exit(0)
        except BaseException as error:
            os.write(2, f'{error!r}\n'.encode())
            os._exit(1)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSIGNALED(status) and os.WEXITSTATUS(status):
        raise AssertionError('the child failed')
    return os.WIFSIGNALED(status)


def at_touch(folder: Path, number: int, touches: mmap.mmap):
    """Kill when the process touches a file in a folder for the n-th time.

    Args:
        folder (Path): What counts.
        number (int): The n; 0: never.
        touches (mmap): Where the touches are counted, 8 bytes.
    """
    count = itertools.count(1)

    def see(event, args):
        if event.startswith(FOLDER_EVENTS) and str(folder) in str(args):
            now = next(count)
            touches[:] = now.to_bytes(8, 'little')
            if now == number:
                os.kill(os.getpid(), signal.SIGKILL)

    return lambda: sys.addaudithook(see)


def after(seconds: float):
    """Kill after so much CPU time."""
    return lambda: signal.setitimer(signal.ITIMER_PROF, seconds)


def cpu_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def undisturbed(work, folder: Path) -> Tuple[float, int]:
    """CPU time of a task, and how often it touches files in its folder."""
    folder.mkdir()
    touches, begin = mmap.mmap(-1, 8), cpu_of_children()
    assert not killed(lambda: work(folder), at_touch(folder, 0, touches))
    return cpu_of_children() - begin, int.from_bytes(touches[:], 'little')


def make_tasks(root: Path) -> dict:
    """What is killed, and what must hold then."""
    config = root / 'net.py'
    config.write_text(CONFIG)
    init_default_scope('mmpretrain')
    model = build_model(Config.fromfile(config))
    torch.save(dict(state_dict=model.state_dict()), root / 'float.pth')
    calibrated = root / 'calibrated.pth'
    calibrate_checkpoint(str(config), str(root / 'float.pth'),
                         str(calibrated), 1)
    return dict(
        train=(lambda folder: train(folder, config),
               lambda folder: check_training(folder, config)),
        publish=(lambda folder: publish(str(config), str(calibrated),
                                        str(folder)), check_published),
        calibrate=(lambda folder: calibrate_checkpoint(
            str(config), str(root / 'float.pth'), str(folder / 'out.pth'), 1),
            check_calibrated),
        export=(export, check_exported))


def run(numbers: range, seed: int) -> dict:
    """Returns figures; the failures among them are described."""
    torch.set_num_threads(1)  # a fork has none of the other threads
    failures, sizes = [], {}
    with tempfile.TemporaryDirectory() as root:
        tasks = make_tasks(Path(root))
        kills = dict.fromkeys(tasks, 0)
        for number in numbers:
            random_ = random.Random(f'{seed} {number}')
            task = list(tasks)[number % len(tasks)]
            work, check = tasks[task]
            if task not in sizes:
                sizes[task] = undisturbed(work, Path(root) / f'whole_{task}')
            seconds, touches = sizes[task]
            folder = Path(root) / f'{number}_{task}'
            folder.mkdir()
            (folder / 'mine.part').write_text('mine')
            if random_.random() < .6:
                touch = random_.randrange(1, touches + 1)
                arm = at_touch(folder, touch, mmap.mmap(-1, 8))
                how = f'at touch {touch} of {touches}'
            else:
                cpu = seconds * random_.uniform(.05, .9)
                arm, how = after(cpu), f'after {cpu:.2f} s of {seconds:.2f}'
            try:
                kills[task] += killed(lambda: work(folder), arm)
                assert (folder / 'mine.part').read_text() == 'mine'
                check(folder)
            except Exception as error:
                failures.append(f'seed {seed} case {number}: {task} killed '
                                f'{how}: {error!r}')
    return dict(cases=len(numbers), seed=seed, kills=kills,
                failures=failures)


if __name__ == '__main__':
    slices.main(run, __doc__.split('\n')[0], cases=64, size=16)
