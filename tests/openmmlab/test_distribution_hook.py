"""Histograms in the visualizer, and trouble at the end of a training."""
from pathlib import Path

import cv2
import pytest
import torch
from mmengine.hooks import Hook
from mmengine.registry import VISBACKENDS
from mmengine.visualization import BaseVisBackend

QUANTIZATION = dict(weight=dict(bits=4), activation=dict(bits=4))


class Writer:
    """As TensorBoard's SummaryWriter takes histograms."""

    def __init__(self):
        self.histograms = {}

    def add_histogram_raw(self, tag, min, max, num, sum, sum_squares,
                          bucket_limits, bucket_counts, global_step=None):
        assert len(bucket_limits) == len(bucket_counts) and max > min
        self.histograms[tag, global_step] = num

    def add_scalar(self, *args):
        pass


@VISBACKENDS.register_module()
class WriterBackend(BaseVisBackend):

    def __init__(self, save_dir=None):
        super().__init__(save_dir)
        self.writer = Writer()

    experiment = property(lambda self: self.writer)

    def add_config(self, *args, **kwargs):
        pass

    add_graph = add_image = add_scalar = add_scalars = add_config

    def _init_env(self):
        pass


class Spoil(Hook):
    """Break a layer in the middle of a training."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 3:
            with torch.no_grad():
                runner.model.backbone.layer2[0].conv1.weight[3].zero_()
                runner.model.head.fc.weight.zero_()


def test_histograms_go_to_every_backend(make_runner, tmp_path):
    runner = make_runner(
        'resnet', dict(type='GDRQHook', quantization=QUANTIZATION,
                       histograms=2),
        visualizer=dict(type='Visualizer', vis_backends=[
            dict(type='LocalVisBackend'), dict(type='WriterBackend')]))
    runner.train()
    assert runner.iter == 4
    found = runner.visualizer.get_backend('WriterBackend').writer.histograms
    layers = runner.model.quantization_state.layers
    assert set(found) == {(f'gdrq_{word}/{name}', step) for name in layers
                          for word in ('weight', 'activation')
                          for step in (2, 4)}
    weight = runner.model.head.fc.weight
    assert found['gdrq_weight/head.fc', 4] == weight.numel()
    pictures = sorted(Path(tmp_path).rglob('gdrq_distributions_*.png'))
    assert [path.stem[-1] for path in pictures] == ['2', '4']
    assert cv2.imread(str(pictures[0])).std() > 0


def test_trouble_is_in_the_log(make_runner, run_log):
    runner = make_runner('resnet', dict(
        type='GDRQHook', quantization=QUANTIZATION),
        **{'optim_wrapper.optimizer.lr': 0.})
    runner.register_hook(Spoil())
    runner.train()
    log = run_log(runner)
    assert 'all weights became one level: head.fc. The layer is lost' in log
    assert 'outputs whose weights are all zero: ' in log
    assert 'backbone.layer2.0.conv1 (1)' in log
    assert not [hook for layer in
                runner.model.quantization_state.layers.values()
                for hook in layer._forward_pre_hooks]


@VISBACKENDS.register_module()
class FailingBackend(WriterBackend):
    experiment = None

    def add_image(self, *args, **kwargs):
        raise ConnectionError('no route to host')


def test_a_backend_that_fails_does_not_end_a_training(make_runner, run_log,
                                                      tmp_path):
    runner = make_runner(
        'resnet', dict(type='GDRQHook', quantization=QUANTIZATION,
                       histograms=2),
        visualizer=dict(type='Visualizer', vis_backends=[
            dict(type='FailingBackend')]))
    runner.train()
    assert 'no figures of distributions: ConnectionError: no route to ' \
        'host' in run_log(runner)
    assert list(Path(tmp_path).rglob('epoch_2.pth'))


def test_a_number_that_is_none_is_refused():
    from gdrq_mm.openmmlab import GDRQHook
    with pytest.raises(ValueError, match='histograms is -1, allowed'):
        GDRQHook(QUANTIZATION, histograms=-1)
