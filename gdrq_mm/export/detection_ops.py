"""Operators of detectors: choices, which have a fixed number of rows, and
deformable convolutions."""
from typing import List, Optional

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
        boxes (Tensor): ``(x1, y1, x2, y2)``, shape ``(B, N, 4)``.
        scores (Tensor): Shape ``(B, N)``.
        iou_threshold (float): A box that overlaps more with a better one
            goes.
        score_threshold (float): A box must score more.
        size (int): Most boxes of an image that are kept.

    Returns:
        Tensor: int64, shape ``(B, size)``.
    """
    result = torch.full((scores.shape[0], size), -1, dtype=torch.int64,
                        device=boxes.device)
    if boxes.device.type == 'meta':
        return result
    import torchvision
    for row, each_boxes, each_scores in zip(result, boxes, scores):
        candidates = torch.nonzero(each_scores > score_threshold).flatten()
        kept = candidates[torchvision.ops.nms(
            each_boxes[candidates], each_scores[candidates],
            iou_threshold)][:size]
        row[:len(kept)] = kept
    return result


@register('top', 'Tensor scores, int size')
def top(scores: Tensor, size: int) -> Tensor:
    """Indices of the greatest values, of equal ones the first; then -1.

    ``torch.topk`` leaves the order of equal values open; 8-bit scores often
    tie.

    Args:
        scores (Tensor): Shape ``(B, N)``.
        size (int): Size of the result, also where it is more than ``N``.

    Returns:
        Tensor: int64, shape ``(B, size)``.
    """
    result = torch.full((scores.shape[0], size), -1, dtype=torch.int64,
                        device=scores.device)
    if scores.device.type == 'meta':
        return result
    order = torch.sort(scores, dim=1, descending=True, stable=True)[1][
        :, :size]
    result[:, :order.shape[1]] = order
    return result


@register('deform_conv2d', 'Tensor x, Tensor offset, Tensor weight, '
          'Tensor? mask, Tensor? bias, int[] stride, int[] padding, '
          'int[] dilation, int groups, int offset_groups')
def deform_conv2d(x: Tensor, offset: Tensor, weight: Tensor,
                  mask: Optional[Tensor], bias: Optional[Tensor],
                  stride: List[int], padding: List[int], dilation: List[int],
                  groups: int, offset_groups: int) -> Tensor:
    """Deformable ConvNets (Dai et al.), with a mask their second version.

    Args:
        x (Tensor): Shape ``(N, C, H, W)``.
        offset (Tensor): Where every value that a window reads lies beside
            its place, in ``y`` and ``x``, in pixels.
        weight (Tensor): Shape ``(filters, C / groups, KH, KW)``.
        mask (Tensor, optional): Factors of these values.
        bias (Tensor, optional): Shape ``(filters, )``.
        stride (list[int]): As of a convolution.
        padding (list[int]): The same.
        dilation (list[int]): The same.
        groups (int): The same. Both numbers of groups are in the shapes;
            ONNX asks for them.
        offset_groups (int): Groups of channels that share offsets.
    """
    import torchvision
    return torchvision.ops.deform_conv2d(
        x, offset, weight, bias, stride, padding, dilation, mask)
