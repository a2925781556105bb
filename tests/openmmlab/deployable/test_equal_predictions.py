"""Predictions that two models have in common, counted by hand."""
from types import SimpleNamespace

import pytest
import torch

from gdrq_mm.openmmlab.deployable.equal_predictions import count_equal

A, B, C = [0., 0., 8., 8.], [0., 0., 8., 7.], [20., 20., 30., 30.]
E = [5., 5., 5., 5.]


def detections(*found):
    """``(box, score, label)``, one after the other."""
    boxes, scores, labels = zip(*found) if found else ([], [], [])
    return (torch.tensor(boxes).reshape(1, -1, 4), torch.tensor([scores]),
            torch.tensor([labels], dtype=torch.long))


@pytest.mark.parametrize('ours, theirs, expected', [
    ([(A, .9, 0)], [(B, .9, 0)], (1, 1)),
    ([(A, .9, 0)], [(C, .9, 0)], (0, 2)),
    ([(A, .9, 1)], [(A, .9, 0)], (0, 2)),
    ([(A, .01, 0)], [(A, .9, 0)], (0, 1)),  # no more certain
    ([(A, .9, 0)] + 5 * [(C, .9, 0)], [(A, .9, 0)], (1, 6)),
    ([(C, .9, 0)], [], (0, 1)),
    ([], [], (0, 0)),
    ([(A, .9, 0)], [(A, .9, 0), (B, .9, 0)], (1, 2)),  # one with one
    # The best pairs first.
    ([(B, .9, 0), (A, .9, 0)], [(A, .9, 0), (B, .9, 0)], (2, 2)),
    ([(A, .9, 0), (E, .9, 0)], [(A, .9, 0), (E, .9, 0)], (1, 3)),  # no area
    ([(A, .9, -1)], [(A, .9, 0)], (0, 1))])  # filled up
def test_detections(ours, theirs, expected):
    for one, other in ((ours, theirs), (theirs, ours)):
        assert count_equal('mmdet', None, detections(*one),
                           detections(*other)) == expected


def test_padding_is_no_part_of_an_image():
    ours = torch.zeros(1, 6, 8, dtype=torch.long)
    theirs = ours.clone()
    theirs[:, 4:] = theirs[:, :, 5:] = 1  # padding
    theirs[0, 0, 0] = 2
    sample = SimpleNamespace(img_shape=(4, 5))
    assert count_equal('mmseg', sample, [ours], [theirs]) == (19, 20)


def test_classes_and_several_labels():
    one = torch.tensor([[.1, .6, .3]])
    assert count_equal('mmpretrain', None, [one], [one.flip(1)]) == (1, 1)
    assert count_equal('mmpretrain', None, [one],
                       [one[:, [1, 0, 2]]]) == (0, 1)
    several = torch.tensor([[.9, .8, .7, .1]])
    assert count_equal('mmpretrain', None, [several],
                       [several[:, [0, 3, 1, 2]]]) == (2, 4)
