"""What the post-processing of all detectors shares; standard ONNX only."""
from typing import Iterable, NamedTuple, Sequence, Set, Tuple

import torch
from torch import Tensor

from ...export import detection_ops  # noqa: F401, defines OPS.nms, OPS.top
from ...merge.ops import OPS

PACKAGES = 'mmcv', 'mmdet', 'mmengine', 'mmpretrain', 'mmseg'
NMS_KEYS = {'type', 'iou_threshold', 'iou_thr', 'class_agnostic',
            'split_thr'}


class Candidates(NamedTuple):
    """Boxes before suppression; those that do not count score -1.

    Args:
        boxes (Tensor): ``(x1, y1, x2, y2)``, shape ``(B, N, 4)``.
        scores (Tensor): Shape ``(B, N)``.
        labels (Tensor): Shape ``(B, N)``.
    """
    boxes: Tensor
    scores: Tensor
    labels: Tensor

    def clipped(self, coder: object, size: Sequence[int]) -> 'Candidates':
        """Inside an image of a height and width, if the coder says so."""
        return self._replace(boxes=clip(self.boxes, size)) if getattr(
            coder, 'clip_border', False) else self

    def larger_than(self, least: float) -> 'Candidates':
        """Without boxes whose sides are not; of -1 all."""
        if least < 0:
            return self
        sides = self.boxes[..., 2:] - self.boxes[..., :2]
        return self._replace(scores=torch.where(
            (sides > least).all(-1), self.scores, -1.))


def joined(levels: Iterable[Candidates]) -> Candidates:
    """Those of all levels."""
    return Candidates(*(torch.cat(each, 1) for each in zip(*levels)))


def method_of(part: object, name: str) -> str:
    """The class whose method a part has, such as 'BaseDenseHead'; with its
    module where that is not of OpenMMLab: names of others say nothing."""
    method = getattr(type(part), name, None)
    if name in getattr(part, '__dict__', ()):
        return f'the method of this {type(part).__name__} alone'
    module = getattr(method, '__module__', None) or '?'
    kind = getattr(method, '__qualname__', '?').rpartition('.')[0]
    return kind if module.partition('.')[0] in PACKAGES else \
        f'{module}.{kind}'


def check_methods(name: str, part: object, known: Set[str],
                  methods: Sequence[str]) -> None:
    """Raise where a part computes in another way than a class that is known.

    Args:
        name (str): Name of the part.
        part (object): The part.
        known (set[str]): Classes whose methods are known.
        methods (sequence of str): Those that decide what is computed.

    Raises:
        ValueError: Names the part and the method.
    """
    for method in methods:
        if method_of(part, method) not in known:
            raise ValueError(
                f'{name} is a {type(part).__name__}, whose {method} is not '
                f'known ({", ".join(sorted(known))} are); export what comes '
                'before it with --raw (make_deployable(..., raw=True))')


def check_nms(where: str, cfg) -> None:
    """Raise on suppression that ONNX has no operator for.

    Args:
        where (str): Name of the ``test_cfg``.
        cfg (dict, optional): Its ``nms``.

    Raises:
        ValueError: Names the value.
    """
    if cfg is None:
        raise ValueError(f'{where} has nms=None, which keeps all boxes; give '
                         "it type='nms', or export with --raw")
    if cfg.get('type', 'nms') != 'nms':
        raise ValueError(f'{where} has nms.type={cfg.type!r}, allowed: '
                         "'nms' (ONNX has no other); or export with --raw")
    unknown = sorted(set(cfg) - NMS_KEYS)
    if unknown:
        raise ValueError(f'{where} has nms.{unknown[0]}, which cannot be '
                         'exported; leave it out, or export with --raw')


def check_rows(where: str, cfg) -> None:
    """Raise where the number of boxes of an image is not one.

    Args:
        where (str): Name of the ``test_cfg``.
        cfg (dict): It.

    Raises:
        ValueError: Names the value.
    """
    rows = cfg.get('max_per_img', 0)
    if rows < 0:
        raise ValueError(
            f'{where} has max_per_img={rows}, which is the number of rows of '
            'all outputs: give it 0 or more, or export with --raw')


def gather(values: Tensor, index: Tensor) -> Tensor:
    """Rows of every image: ``(B, N, ...)`` and ``(B, K)`` ->
    ``(B, K, ...)``."""
    shape = (*index.shape, *values.shape[2:])
    return values.gather(1, index.view(
        *index.shape, *[1] * (values.dim() - 2)).expand(shape))


def clip(boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Boxes inside an image of a height and width."""
    height, width = size
    x, y = boxes[..., 0::2].clamp(0, width), boxes[..., 1::2].clamp(0, height)
    return torch.stack([x[..., 0], y[..., 0], x[..., 1], y[..., 1]], -1)


def apart(boxes: Tensor, groups: Tensor, counts: Tensor) -> Tensor:
    """Boxes moved so far that those of different groups never overlap."""
    reach = torch.where(counts[..., None], boxes, 0.).amax(
        (1, 2), keepdim=True) + 1
    return torch.where(counts[..., None], boxes + groups[
        ..., None].float() * reach, 0.)


def suppress(candidates: Candidates, nms, size: int
             ) -> Tuple[Tensor, Tensor, Tensor]:
    """Detections, the best first; then rows of label -1 and score 0.

    Args:
        candidates (Candidates): Candidates of a batch.
        nms (dict): ``nms`` of a ``test_cfg``.
        size (int): Rows of an image.

    Returns:
        tuple: Boxes ``(B, size, 4)``, scores and labels ``(B, size)``.
    """
    boxes, scores, labels = candidates
    moved = boxes if nms.get('class_agnostic', False) else apart(
        boxes, labels, scores > -0.5)
    kept = OPS.nms(moved, scores, nms.get('iou_threshold', nms.get(
        'iou_thr')), -0.5, size)
    there, index = kept >= 0, kept.clamp(min=0)
    return (torch.where(there[..., None], gather(boxes, index), 0.),
            torch.where(there, gather(scores, index), 0.),
            torch.where(there, gather(labels, index), -1))
