"""Evaluations without processes of their own."""
import multiprocessing

import numpy as np
import pytest
import torch

from gdrq_mm.openmmlab.evaluating import (
    in_this_process,
    one_process,
    scalars,
)


@pytest.fixture
def mean_ap(monkeypatch):
    """mmdet's module, as it is where no test has changed it."""
    from mmdet.evaluation.functional import mean_ap
    monkeypatch.setattr(mean_ap, 'Pool', multiprocessing.Pool)
    return mean_ap


def random_boxes(generator, count, scores=False):
    corners = generator.random((count, 2)) * 50
    columns = [corners, corners + 5 + generator.random((count, 2)) * 40]
    if scores:
        columns.append(generator.random((count, 1)))
    return np.hstack(columns).astype(np.float32)


def test_the_metric_is_that_of_the_pool(mean_ap, monkeypatch):
    generator = np.random.default_rng(0)
    found = [[random_boxes(generator, 9, True) for _ in range(2)]
             for _ in range(3)]
    truth = [dict(bboxes=random_boxes(generator, 6),
                  labels=generator.integers(0, 2, 6)) for _ in range(3)]

    def evaluate():
        return mean_ap.eval_map(found, truth, iou_thr=.3, logger='silent')[0]

    with monkeypatch.context() as context:
        context.setattr(mean_ap, 'Pool', None)  # to be called by nobody
        with one_process():
            ours = evaluate()
    assert ours == pytest.approx(evaluate(), abs=0) and 0 < ours < 1


def test_it_is_over_after_an_error(mean_ap):
    with pytest.raises(KeyError):
        with one_process():
            assert mean_ap.Pool is not multiprocessing.Pool
            raise KeyError
    assert mean_ap.Pool is multiprocessing.Pool


def test_scalars_are_what_is_one_number():
    """A confusion matrix is none, nor are figures of each class."""
    found = scalars(dict(
        top1=np.float32(50), loss=torch.tensor(2.), count=3,
        matrix=torch.zeros(2, 2), one=torch.zeros(1), classes=[1., 2.],
        nothing=None, words='x', parts=dict(a=1.)))
    assert found == dict(top1=50., loss=2., count=3.)
    assert {type(value) for value in found.values()} == {float}


def test_dataloaders_have_no_options_of_other_processes():
    cfg = dict(num_workers=2, persistent_workers=True, prefetch_factor=4,
               multiprocessing_context='spawn', timeout=30, batch_size=8)
    loader = in_this_process(cfg)
    assert loader == dict(num_workers=0, persistent_workers=False,
                          batch_size=8)
    assert cfg['num_workers'] == 2
    torch.utils.data.DataLoader([1], **loader)
