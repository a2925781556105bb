"""Operators of detectors whose outputs have a fixed size."""
import torch
from torch import Tensor

from ..merge.ops import register


@register('nms', 'Tensor boxes, Tensor scores, float iou_threshold, '
          'float score_threshold, int size')
def nms(boxes: Tensor, scores: Tensor, iou_threshold: float,
        score_threshold: float, size: int) -> Tensor:
    """Indices of the boxes that are kept, best first, then -1.

    ONNX's ``NonMaxSuppression``: of two boxes with equal scores the first
    wins.

    Args:
        boxes (Tensor): ``(x1, y1, x2, y2)``, shape ``(N, 4)``.
        scores (Tensor): Shape ``(N, )``.
        iou_threshold (float): A box that overlaps more with a better one
            goes.
        score_threshold (float): A box must score more.
        size (int): Most boxes that are kept.

    Returns:
        Tensor: int64, shape ``(size, )``.
    """
    result = torch.full((size, ), -1, dtype=torch.int64, device=boxes.device)
    if boxes.device.type == 'meta':
        return result
    import torchvision
    candidates = torch.nonzero(scores > score_threshold).flatten()
    kept = candidates[torchvision.ops.nms(
        boxes[candidates], scores[candidates], iou_threshold)][:size]
    result[:len(kept)] = kept
    return result


@register('top', 'Tensor scores, int size')
def top(scores: Tensor, size: int) -> Tensor:
    """Indices of the greatest values, of equal ones the first.

    ``torch.topk`` leaves the order of equal values open; 8-bit scores often
    tie.

    Args:
        scores (Tensor): Shape ``(N, )``.
        size (int): Not more than ``N``.

    Returns:
        Tensor: int64, shape ``(size, )``.
    """
    # A copy: operators return no views.
    return torch.sort(scores, descending=True, stable=True)[1][:size].clone()
