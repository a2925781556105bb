"""What cannot be judged whole is told in one sentence, and nothing stops."""
import sys
from functools import partial
from pathlib import Path

import pytest
from mmcv.ops import carafe
from mmengine.config import Config
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / 'tools'))

from jobs.process import Limits  # noqa: E402
from sweeping.engine import read_all, run_families  # noqa: E402
from sweeping.page import verdict_of, write_page  # noqa: E402
from sweeping.probe import CHECKS, check_first  # noqa: E402


@pytest.fixture(scope='module', autouse=True)
def registered():
    kinds = Endless, OnlyGPU, Unknown, NoLoss
    for kind in kinds:
        MODELS.register_module(module=kind)
    yield
    for kind in kinds:
        MODELS.module_dict.pop(kind.__name__)


class Endless(BaseModule):

    def forward(self, x):
        return self.forward(x)


class OnlyGPU(BaseModule):
    """mmcv has no CARAFE for CPUs."""

    def forward(self, x):
        return carafe(x, x[:, :1], 1, 1, 1),


class Doubled(nn.Linear):
    """A layer that nobody registered."""

    def forward(self, x):
        return 2 * super().forward(x)


class Unknown(BaseModule):

    def __init__(self):
        super().__init__()
        self.layer = Doubled(3, 3)

    def forward(self, x):
        return self.layer(x.mean((2, 3))),


class NoLoss(BaseModule):

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(3, 3, 1)

    def forward(self, x):
        if self.training:
            raise NotImplementedError('this one does not train')
        return self.layer(x).mean((2, 3)),


def judged(backbone, *names):
    """The record of a family and the configs of it that were read."""
    read = []

    def config(name):
        read.append(name)
        return Config(dict(
            default_scope='mmpretrain', model=dict(
                type='ImageClassifier', backbone=dict(type=backbone),
                head=dict(type='LinearClsHead', num_classes=2, in_channels=3),
                data_preprocessor=dict(mean=[0] * 3, std=[1] * 3))))

    found = dict(package='mmpretrain', family='lenet', checks={})
    check_first(found, {name: partial(config, name)
                        for name in names or ('toy', )})
    return found, read


@pytest.mark.parametrize('backbone, said', [
    ('Endless', 'RecursionError: maximum recursion depth exceeded'),
    ('OnlyGPU', 'implementation for device cpu not found'),
    ('NoSuchBackbone', 'NoSuchBackbone is not in the')])
def test_what_does_not_run_in_float_is_one_row(tmp_path, backbone, said):
    found, _ = judged(backbone)
    assert said in found['checks']['float'], found
    write_page(tmp_path / 'page.md', [found])
    row, = [line for line in (tmp_path / 'page.md').read_text().splitlines()
            if line.startswith('| lenet |')]
    assert said in row and 'does not run in float here' in row


def test_unknown_layers_are_told_and_the_rest_is_judged(tmp_path):
    found, _ = judged('Unknown')
    assert verdict_of(found) == 'ok', found.get('traceback')
    write_page(tmp_path / 'page.md', [found])
    assert '| 1 of 2 | 40.0% | backbone.layer.weight 60.0%; 1 of the ' \
        'layers: Doubled is a Linear that may compute something else' in (
            tmp_path / 'page.md').read_text()


def test_what_only_predicts_is_judged_without_training():
    found, _ = judged('NoLoss')
    assert found['untrained'] == 'NotImplementedError: this one does not train'
    assert found['checks'] == dict.fromkeys(
        set(CHECKS) - {'train', 'gradients'} | {'macs'}, 'ok'), found
    assert found['macs']['low_bit'] == found['macs']['parametric'] > 0


def test_what_two_configs_cannot_train_is_judged_with_the_first():
    found, read = judged('NoLoss', 'first', 'second', 'third')
    assert 'third' not in read and 'second' in read
    assert found['config'] == 'first' and verdict_of(found) == 'ok'


def test_too_deep_recursion_does_not_stop_the_sweep(tmp_path):
    run_families(tmp_path, [('mmpretrain', 'lenet'), ('mmpretrain', 'vgg')],
                 Limits(), 'fake_cells:recurse')
    first, second = read_all(tmp_path, 'fake_cells:recurse')
    assert first['checks']['float'].startswith('RecursionError: maximum')
    assert second['checks'] == dict(float='ok')
