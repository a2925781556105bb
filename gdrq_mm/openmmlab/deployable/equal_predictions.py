"""How many predictions two deployed models have in common."""
from typing import Any, Sequence, Tuple

from torch import Tensor
from torchvision.ops import box_iou

CERTAIN = .3  # score of detections that count
OVERLAP = .75  # IoU of boxes of one thing
PRESENT = .5  # score of a label among several


def count_equal(scope: str, sample: Any, ours: Sequence[Tensor],
                theirs: Sequence[Tensor]) -> Tuple[int, int]:
    """Equal predictions for one image, and all.

    Of classes: whether the first is the same; of several labels, those over
    0.5 that either has. Of segmentation: pixels of the image, without its
    padding. Of detections: those over 0.3 of both, of which two are equal
    that have the same label and an IoU over 0.75, one with one.

    Args:
        scope (str): Package of the model.
        sample (BaseDataElement): Data sample of the image.
        ours (sequence of Tensor): Outputs of a deployable model.
        theirs (sequence of Tensor): Those of another one.

    Returns:
        tuple[int, int]: The second is 0 where nothing was predicted.
    """
    if scope == 'mmpretrain':
        return _classes(ours[0], theirs[0])
    if scope == 'mmseg':
        height, width = sample.img_shape[:2]
        ours, theirs = (each[0][..., :height, :width]
                        for each in (ours, theirs))
        return int((ours == theirs).sum()), ours.numel()
    return _detections(*([each[0] for each in found[:3]]
                         for found in (ours, theirs)))


def _classes(ours: Tensor, theirs: Tensor) -> Tuple[int, int]:
    one_label = (theirs.sum(1) - 1).abs() < .01  # a softmax
    if bool(one_label.all()):
        return int((ours.argmax(1) == theirs.argmax(1)).sum()), len(ours)
    ours, theirs = ours > PRESENT, theirs > PRESENT
    return int((ours & theirs).sum()), int((ours | theirs).sum())


def _detections(ours: Sequence[Tensor], theirs: Sequence[Tensor]
                ) -> Tuple[int, int]:
    (boxes, _, labels), (other_boxes, _, other_labels) = (
        [each[(found[1] > CERTAIN) & (found[2] >= 0)] for each in found]
        for found in (ours, theirs))
    overlaps = box_iou(other_boxes, boxes).nan_to_num(0)  # of no area
    overlaps[other_labels[:, None] != labels] = 0
    equal = 0
    while overlaps.numel() and overlaps.max() > OVERLAP:
        row, column = divmod(int(overlaps.argmax()), overlaps.shape[1])
        overlaps[row], overlaps[:, column] = 0, 0
        equal += 1
    return equal, len(boxes) + len(other_boxes) - equal
