"""Tensors in, tensors out: detectors with one dense head."""
from typing import Callable, Dict, List, Tuple

import torch
from torch import Tensor, nn

from ...merge.ops import OPS
from .boxes import (
    Candidates,
    check_methods,
    check_nms,
    check_rows,
    gather,
    joined,
    method_of,
    suppress,
)
from .models import Deployable

# Rows of heads that keep everything NMS leaves.
MOST_BOXES = 1000


class DeployableDenseDetector(Deployable):
    """An mmdet single-stage detector: images -> boxes, scores and labels.

    All three have ``test_cfg.max_per_img`` rows an image, the best first,
    :data:`MOST_BOXES` where mmdet does not read that field (YOLOX); where
    there are fewer detections, the rest have label -1 and score 0.
    Boxes are ``(x1, y1, x2, y2)`` in pixels of the image that goes in.

    Args:
        model (nn.Module): The detector.

    Raises:
        ValueError: A head whose post-processing is not known, by name.
    """
    output_names = ('boxes', 'scores', 'labels')

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        check_methods('model', model, {'SingleStageDetector'},
                      ('predict', 'extract_feat'))
        self.bbox_head = model.bbox_head
        self.cfg = model.bbox_head.test_cfg
        self.candidates = _known_head(model)
        # YOLOX clips nothing, has no coder, and keeps all that NMS leaves.
        self.cuts = method_of(self.bbox_head,
                              '_bbox_post_process') == 'BaseDenseHead'
        self.size = MOST_BOXES
        if self.cuts:
            check_rows('bbox_head.test_cfg', self.cfg)
            self.size = self.cfg.get('max_per_img', MOST_BOXES)

    def forward(self, images: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        raw = self.bbox_head(self.features(images))
        found = joined(self.candidates(self.bbox_head, self.cfg, *raw))
        if self.cuts:
            found = found.clipped(
                self.bbox_head.bbox_coder, images.shape[2:]
            ).larger_than(self.cfg.get('min_bbox_size', -1))
        return suppress(found, self.cfg.nms, self.size)


def by_level(head: nn.Module, cfg, scores: List[Tensor],
             boxes: List[Tensor], factors: List[Tensor] = None,
             centers: Callable = None) -> List[Candidates]:
    """Heads of mmdet's ``BaseDenseHead``: the best of every level, decoded.

    RetinaNet, SSD (anchors), FCOS and ATSS (a factor of the scores), RTMDet.

    Args:
        head (nn.Module): The head.
        cfg (dict): Its ``test_cfg``.
        scores (list[Tensor]): By level, ``(B, priors * classes, H, W)``.
        boxes (list[Tensor]): By level, ``(B, priors * 4, H, W)``.
        factors (list[Tensor], optional): By level, ``(B, priors, H, W)``.
        centers (callable, optional): Priors -> what boxes are decoded from.

    Returns:
        list[Candidates]: By level.
    """
    all_priors = head.prior_generator.grid_priors(
        [each.shape[-2:] for each in scores], dtype=torch.float32,
        device=scores[0].device)
    levels = []
    for level, (score, box) in enumerate(zip(scores, boxes)):
        score = _rows(score, head.cls_out_channels)
        score = score.sigmoid() if head.use_sigmoid_cls else \
            score.softmax(-1)[..., :-1]
        score, prior, label = _best(score, cfg)
        box = gather(_rows(box, 4), prior)
        start = all_priors[level][prior.flatten()]
        decoded = head.bbox_coder.decode(
            centers(start) if centers else start, box.flatten(0, 1))
        decoded = decoded.unflatten(0, (prior.shape[0], -1))
        if factors is not None:
            factor = gather(_rows(factors[level], 1)[..., 0], prior)
            score = torch.where(score > -0.5, score * factor.sigmoid(), -1.)
        levels.append(Candidates(decoded, score, label))
    return levels


def _best(score: Tensor, cfg) -> Tuple[Tensor, Tensor, Tensor]:
    """The ``nms_pre`` best of ``(B, priors, classes)`` scores over the
    threshold, with their priors and labels."""
    classes = score.shape[-1]
    score = score.flatten(1)
    score = torch.where(score > cfg.get('score_thr', 0), score, -1.)
    index = torch.arange(score.shape[1], device=score.device).expand(
        score.shape)
    before = cfg.get('nms_pre', -1)
    if before > 0:
        order = OPS.top(score, before)
        index = order.clamp(min=0)
        score = torch.where(order >= 0, gather(score, index), -1.)
    return score, index // classes, index % classes


def by_distribution(head: nn.Module, cfg, scores: List[Tensor],
                    boxes: List[Tensor]) -> List[Candidates]:
    """GFL: the mean of a distribution is a distance, in strides."""
    distances = []
    for box, stride in zip(boxes, head.prior_generator.strides):
        rows = _rows(box, 4 * (head.reg_max + 1))
        distance = head.integral(rows.flatten(0, 1)) * stride[0]
        distances.append(distance.view(
            box.shape[0], *box.shape[2:], 4).permute(0, 3, 1, 2))
    return by_level(head, cfg, scores, distances, centers=head.anchor_center)


def with_anchors(head: nn.Module, cfg, maps: List[Tensor]
                 ) -> List[Candidates]:
    """YOLOv3: all levels together, boxes, objectness and scores in one."""
    anchors = head.prior_generator.grid_priors(
        [each.shape[-2:] for each in maps], device=maps[0].device)
    rows = [_rows(each, head.num_attrib) for each in maps]
    strides = torch.cat([torch.full((each.shape[1], 1), float(stride),
                                    device=each.device)
                         for each, stride in zip(rows, head.featmap_strides)])
    values = torch.cat(rows, 1)
    boxes = head.bbox_coder.decode(torch.cat(anchors), torch.cat(
        [values[..., :2].sigmoid(), values[..., 2:4]], -1), strides)
    objectness = values[..., 4].sigmoid()
    scores = values[..., 5:].sigmoid()
    least = cfg.get('conf_thr', -1)
    if least > 0:
        scores = torch.where(objectness[..., None] >= least, scores, -1.)
    score, prior, label = _best(scores, cfg)
    score = torch.where(score > -0.5, score * gather(objectness, prior), -1.)
    return [Candidates(gather(boxes, prior), score, label)]


def with_objectness(head: nn.Module, cfg, scores: List[Tensor],
                    boxes: List[Tensor], objectness: List[Tensor]
                    ) -> List[Candidates]:
    """YOLOX: one label a prior, its score times that of an object."""
    priors = head.prior_generator.grid_priors(
        [each.shape[-2:] for each in scores], dtype=torch.float32,
        device=scores[0].device, with_stride=True)

    def rows(levels, channels):
        return torch.cat([_rows(each, channels) for each in levels], 1)

    score, label = rows(scores, head.cls_out_channels).sigmoid().max(-1)
    score = score * rows(objectness, 1)[..., 0].sigmoid()
    score = torch.where(score >= cfg.score_thr, score, -1.)
    return [Candidates(head._bbox_decode(torch.cat(priors), rows(boxes, 4)),
                       score, label)]


def _rows(values: Tensor, channels: int) -> Tensor:
    """``(B, priors * channels, H, W)`` -> ``(B, H * W * priors,
    channels)``."""
    return values.permute(0, 2, 3, 1).reshape(values.shape[0], -1, channels)


# By the classes whose predict_by_feat, _predict_by_feat_single and
# _bbox_post_process a head has: the functions say what is computed, names of
# heads do not.
KNOWN_HEADS: Dict[Tuple[str, str, str], Callable[..., List[Candidates]]] = {
    ('BaseDenseHead', 'BaseDenseHead', 'BaseDenseHead'): by_level,
    ('BaseDenseHead', 'GFLHead', 'BaseDenseHead'): by_distribution,
    ('YOLOV3Head', 'BaseDenseHead', 'BaseDenseHead'): with_anchors,
    ('YOLOXHead', 'BaseDenseHead', 'YOLOXHead'): with_objectness}


def _known_head(model: nn.Module) -> Callable[..., List[Candidates]]:
    """How the outputs of the head become candidates.

    Raises:
        ValueError: Its post-processing is not known, or not as ONNX.
    """
    head = model.bbox_head
    methods = 'predict_by_feat', '_predict_by_feat_single', \
        '_bbox_post_process'
    kind = tuple(method_of(head, name) for name in methods)
    check_methods('bbox_head', head, {'BaseDenseHead'}, ('predict', ))
    own_scores = getattr(getattr(head, 'loss_cls', None),
                         'custom_cls_channels', False)
    if own_scores or kind not in KNOWN_HEADS:
        what = 'a loss_cls that computes scores of its own' if own_scores \
            else ', '.join(f'{name} of {owner}'
                           for name, owner in zip(methods, kind))
        raise ValueError(
            f'bbox_head is a {type(head).__name__}, whose post-processing is '
            f'not known ({what}); export what comes before it with --raw '
            '(make_deployable(..., raw=True))')
    check_nms('bbox_head.test_cfg', head.test_cfg.get('nms'))
    return KNOWN_HEADS[kind]
