"""Kills at random moments of all that writes files: nothing is lost.

Usage: python tests/fuzz/fuzz_kills.py [--cases 60] [--seed 0] [--json FILE]

A forked process trains (one kept checkpoint, and the best), publishes,
calibrates or exports, and is killed by a timer, or at the n-th time that it
touches a file in the folder of its output. A failure is

- a file under a final name that is not whole, or a file of before that
  changed;
- a training whose ``last_checkpoint`` names no whole checkpoint once there
  was one, or that does not resume from it.
"""
import argparse
import contextlib
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.logging import MessageHub, MMLogger
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
        with forgotten_runners():
            train(folder, config)
        kept = sorted(path.name.rpartition('_')[2] for path in folder.glob(
            '*.pth'))
        assert kept[-1] == '4.pth', kept


@contextlib.contextmanager
def forgotten_runners():
    yield
    for manager in (MMLogger, MessageHub):
        manager._instance_dict.clear()


def check_published(folder: Path, config: Path) -> None:
    for path in folder.glob('*.pth'):
        sha = hashlib.sha256(path.read_bytes()).hexdigest()
        assert path.stem.endswith(sha[:8]), f'{path.name} is not whole'
        assert path.with_suffix('.py').exists(), 'its config is missing'
    for path in folder.glob('*.py'):
        assert Config.fromfile(path).model.type == 'QuantizedModel'


def check_calibrated(folder: Path, config: Path) -> None:
    for path in folder.glob('*.pth'):
        assert read_checkpoint(str(path))['state_dict']


def check_exported(folder: Path, config: Path) -> None:
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


def killed(function, folder: Path, arm) -> bool:
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


def at_event(folder: Path, number: int):
    """Kill when the process touches a file in a folder for the n-th time."""
    left = [number]

    def count(event, args):
        if event.startswith(FOLDER_EVENTS) and str(folder) in str(args):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return lambda: sys.addaudithook(count)


def after(seconds: float):
    signal_ = signal.ITIMER_REAL
    return lambda: (signal.signal(signal.SIGALRM, signal.SIG_DFL),
                    signal.setitimer(signal_, seconds))


def run(cases: int, seed: int, root: Path) -> dict:
    """Returns figures; the failures among them are described."""
    config = root / 'net.py'
    config.write_text(CONFIG)
    cfg = Config.fromfile(config)
    init_default_scope('mmpretrain')
    model = build_model(cfg)
    torch.save(dict(state_dict=model.state_dict()), root / 'float.pth')
    calibrated = root / 'calibrated.pth'
    calibrate_checkpoint(str(config), str(root / 'float.pth'),
                         str(calibrated), 1)
    tasks = dict(
        train=(lambda folder: train(folder, config), check_training),
        publish=(lambda folder: publish(str(config), str(calibrated),
                                        str(folder)), check_published),
        calibrate=(lambda folder: calibrate_checkpoint(
            str(config), str(root / 'float.pth'), str(folder / 'out.pth'), 1),
            check_calibrated),
        export=(export, check_exported))
    kills, failures, durations = dict.fromkeys(tasks, 0), [], {}
    for number in range(cases):
        random_ = random.Random(f'{seed} {number}')
        task = list(tasks)[number % len(tasks)]
        work, check = tasks[task]
        folder = root / f'{number}_{task}'
        folder.mkdir()
        (folder / 'mine.part').write_text('mine')
        if task not in durations:  # how long it takes, undisturbed
            begin = time.monotonic()
            whole = root / f'whole_{task}'
            whole.mkdir()
            assert not killed(lambda: work(whole), whole, lambda: None)
            durations[task] = time.monotonic() - begin
        if random_.random() < .6:
            touch = random_.randrange(1, 60 if task == 'train' else 12)
            arm, how = at_event(folder, touch), f'at touch {touch}'
        else:
            seconds = durations[task] * random_.uniform(.2, 1.)
            arm, how = after(seconds), f'after {seconds:.2f} s'
        try:
            kills[task] += killed(lambda: work(folder), folder, arm)
            assert (folder / 'mine.part').read_text() == 'mine'
            check(folder, config)
        except Exception as error:
            failures.append(f'seed {seed} case {number}: {task} killed '
                            f'{how}: {error!r}')
    return dict(cases=cases, seed=seed, kills=kills, failures=failures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--cases', type=int, default=60)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--json')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        figures = run(args.cases, args.seed, Path(root))
    written = json.dumps(figures, indent=1)
    if args.json:
        Path(args.json).write_text(written + '\n')
    print(written)
    sys.exit(bool(figures['failures']))


if __name__ == '__main__':
    main()
