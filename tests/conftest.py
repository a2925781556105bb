"""Tiny OpenMMLab models, runs and data that the tests share."""
import functools
import itertools
import logging
import multiprocessing
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import config as mmengine_config
from mmengine.config import utils as mmengine_config_utils
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

import gdrq_mm  # noqa: F401, registers what configs name
from gdrq_mm.openmmlab.evaluating import one_process
from gdrq_mm.training import get_state

# Tiny tensors: threads cost more than they give, and one thread makes runs
# repeatable bit for bit. Before mmcv, for the tools that tests start as well.
os.environ.setdefault('OMP_NUM_THREADS', '1')
torch.set_num_threads(1)

# mmengine reads all installed distributions, and all metafiles of a package,
# anew for every "::" in a config: half a second each time.
for _module, _name in ((mmengine_config, 'is_installed'),
                       (mmengine_config, 'get_installed_path'),
                       (mmengine_config_utils, 'load')):
    setattr(_module, _name,
            functools.lru_cache(None)(getattr(_module, _name)))

ROOT = Path(__file__).parents[1]
CONFIGS = Path(__file__).parent / 'integration' / 'configs'
SCOPES = dict(faster_rcnn='mmdet', pspnet='mmseg', resnet='mmpretrain')
FOLDERS = dict(faster_rcnn='VOCdevkit', pspnet='cityscapes', resnet='imagenet')
QUANTIZATION = dict(weight=dict(bits=4), activation=dict(bits=4))
_numbers = itertools.count()
SLOW = ('kernels', 'configs', 'openmmlab', 'integration', 'tools')


def pytest_collection_modifyitems(items):
    """Fast tests first."""

    def cost(item):
        part = item.path.relative_to(Path(__file__).parent).parts[0]
        return SLOW.index(part) if part in SLOW else -1

    items.sort(key=cost)


@HOOKS.register_module()
class RecordingHook(Hook):
    """Keep what every iteration gave; make it independent of earlier ones.

    mmengine saves no state of random generators, so a resumed run draws other
    samples and dropout masks than an uninterrupted one. Seeding each
    iteration by its number removes this difference, which has nothing to do
    with quantization.
    """
    priority = 'LOWEST'

    def __init__(self):
        self.losses, self.phases = [], []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        random.seed(runner.iter)
        np.random.seed(runner.iter)
        torch.manual_seed(runner.iter)

    def after_train_iter(self, runner, batch_idx, data_batch=None,
                         outputs=None):
        self.losses.append({key: float(value.detach())
                            for key, value in outputs.items()})
        model = getattr(runner.model, 'module', runner.model)
        state = get_state(model)
        self.phases.append(state.phase if state is not None else None)


@pytest.fixture(scope='session')
def demo_data(tmp_path_factory):
    """Folder of tiny VOC, Cityscapes and ImageNet stand-ins."""
    out = tmp_path_factory.mktemp('data') / 'demo'
    subprocess.run(
        [sys.executable,
         str(ROOT / 'tools/dataset_converters/make_demo_data.py'), str(out),
         '--size', 'tiny'], check=True)
    return out


@pytest.fixture
def load_config(demo_data):
    """Function name -> Config of a tiny model with its data."""
    from mmengine.config import Config

    def load(name, **options):
        cfg = Config.fromfile(CONFIGS / f'{name}.py')
        root = str(demo_data / FOLDERS[name]) + '/'
        cfg.merge_from_dict({
            'train_dataloader.dataset.data_root': root,
            'test_dataloader.dataset.data_root': root})
        cfg.merge_from_dict(options)
        return cfg

    return load


@pytest.fixture
def make_runner(load_config, tmp_path):
    """Function that builds a Runner: name or Config, hooks, options."""
    from mmengine.runner import Runner

    def make(cfg, *hooks, work_dir=tmp_path / 'run', **options):
        if isinstance(cfg, str):
            cfg = load_config(cfg)
        cfg.merge_from_dict(options)
        cfg.custom_hooks = list(hooks)
        cfg.work_dir = str(work_dir)
        # Runners of the same name and second share logger and message hub.
        cfg.experiment_name = f'test_{next(_numbers)}'
        # And those of the same folder and second the log file.
        while Path(work_dir, time.strftime('%Y%m%d_%H%M%S')).exists():
            time.sleep(.05)
        runner = Runner.from_cfg(cfg)
        runner.record = RecordingHook()
        runner.register_hook(runner.record)
        return runner

    return make


@pytest.fixture
def build_model(load_config):
    """Function that builds the model of a tiny config, in its scope."""
    from mmengine.registry import MODELS, DefaultScope

    def build(cfg, seed=0, **options):
        if isinstance(cfg, str):
            cfg = load_config(cfg)
        cfg.merge_from_dict(options)
        torch.manual_seed(seed)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            model = MODELS.build(cfg.model)
            model.init_weights()
        return model

    return build


@pytest.fixture
def with_masks():
    """Function that makes the config of a Faster R-CNN one of Mask R-CNN."""

    def change(cfg):
        cfg.model.type = 'MaskRCNN'
        head = cfg.model.roi_head
        head.mask_roi_extractor = dict(
            head.bbox_roi_extractor, roi_layer=dict(
                type='RoIAlign', output_size=14, sampling_ratio=0))
        head.mask_head = dict(
            type='FCNMaskHead', num_convs=1,
            in_channels=head.bbox_roi_extractor.out_channels,
            conv_out_channels=8, num_classes=head.bbox_head.num_classes)
        cfg.model.test_cfg.rcnn.mask_thr_binary = .5
        return cfg

    return change


@pytest.fixture
def load_batch(load_config):
    """Function name, 'train' or 'test' -> the first batch of the dataset."""
    from mmengine.registry import DefaultScope
    from mmengine.runner import Runner

    def load(name, split='train'):
        cfg = load_config(name)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            loader = Runner.build_dataloader(cfg[f'{split}_dataloader'],
                                             seed=0)
        return next(iter(loader))

    return load


@pytest.fixture
def run_log():
    """Function runner -> text of its log file."""

    def read(runner):
        for handler in runner.logger.handlers:
            handler.flush()
        return (Path(runner.log_dir) / f'{runner.timestamp}.log').read_text()

    return read


@pytest.fixture(scope='session')
def run_processes():
    """Run Python files side by side; what one that fails has printed is
    shown."""

    def run(*commands):
        jobs = [subprocess.Popen(
            [sys.executable, *map(str, command)], stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True) for command in commands]
        try:
            for job in jobs:
                output, _ = job.communicate(timeout=300)
                assert job.returncode == 0, output[-4000:]
        finally:
            for job in jobs:
                job.kill()

    return run


@pytest.fixture(scope='session')
def exit_code():
    """Call a function in a process of its own; how that ends, by a signal
    where it is negative.

    It is not forked from this one: a fork has none of the threads that
    libraries have started here, and waits for them for ever where it must.
    """
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['pytest', 'mmpretrain', 'gdrq_mm'])

    def call(function, *args):
        process = context.Process(target=function, args=args)
        process.start()
        process.join(300)
        code = process.exitcode
        process.kill()
        assert code is not None, f'{function.__name__} hangs'
        return code

    return call


@pytest.fixture(autouse=True)
def _no_pools():
    """Detectors are evaluated some hundred times in one process."""
    with one_process():
        yield


@pytest.fixture(autouse=True)
def _forget_runners():
    """Loggers and scopes of one test's runners do not reach the next."""
    yield
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.registry import DefaultScope
    from mmengine.visualization import Visualizer
    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.close()
    managers = [MMLogger, MessageHub, DefaultScope, Visualizer]
    for manager in managers:  # each class keeps instances of its own
        manager._instance_dict.clear()
        managers += manager.__subclasses__()
