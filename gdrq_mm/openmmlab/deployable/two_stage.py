"""Tensors in, tensors out: detectors that look twice."""
from typing import Sequence, Tuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ..wrappers import stages_of
from .boxes import (
    Candidates,
    check_methods,
    check_nms,
    check_rows,
    clip,
    gather,
    joined,
    method_of,
    suppress,
)
from .dense import MOST_BOXES, by_level
from .models import Deployable


class DeployableTwoStage(Deployable):
    """An mmdet two-stage detector: images -> boxes, scores, labels, masks.

    Faster, Mask and Cascade R-CNN, and all that predict as they do. Outputs
    have ``rcnn.max_per_img`` rows an image, the best first; where there are
    fewer detections, the rest have label -1 and score 0. Boxes are ``(x1, y1,
    x2, y2)`` in pixels of the image that goes in; ``masks`` of a model that
    has them are probabilities inside the box, shape ``(B, rows, 28, 28)`` in
    mmdet's configs, see :func:`paste`.

    Args:
        model (nn.Module): The detector.

    Raises:
        ValueError: A part whose computation is not known, by name.
    """
    output_names = ('boxes', 'scores', 'labels')

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.check(model)
        self.rpn_head, self.roi_head = model.rpn_head, model.roi_head
        self.rpn_cfg, self.cfg = model.test_cfg.rpn, model.test_cfg.rcnn
        if self.roi_head.with_mask:
            self.output_names = (*self.output_names, 'masks')

    @staticmethod
    def check(model: nn.Module) -> None:
        """Raise on what the exported graph would not compute.

        Args:
            model (nn.Module): The detector.

        Raises:
            ValueError: Names the part.
        """
        _check_parts(model)

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        size, features = images.shape[2:], self.features(images)
        rois, there = self.propose(features, size)
        found = self.detect(*self.refine(features, rois, size), there, size)
        if not self.roi_head.with_mask:
            return found
        return (*found, self.masks(features, found[0], found[2]))

    def propose(self, features: Sequence[Tensor], size: Sequence[int]
                ) -> Tuple[Tensor, Tensor]:
        """Boxes of the region proposal network.

        Args:
            features (sequence of Tensor): By level, ``(B, C, H, W)``.
            size (sequence of int): Height and width of images.

        Returns:
            tuple[Tensor, Tensor]: Boxes, shape ``(B, rpn.max_per_img, 4)``,
            and which of them are there.
        """
        # It keeps whatever scores; levels do not suppress each other.
        levels = by_level(self.rpn_head, dict(self.rpn_cfg, score_thr=-.5),
                          *self.rpn_head(features))
        found = joined([each._replace(labels=torch.full_like(
            each.labels, number)) for number, each in enumerate(levels)])
        found = found.clipped(self.rpn_head.bbox_coder, size).larger_than(
            self.rpn_cfg.get('min_bbox_size', -1))
        boxes, _, labels = suppress(found, self.rpn_cfg.nms,
                                    self.rpn_cfg.max_per_img)
        return boxes, labels >= 0

    def extract(self, extractor: nn.Module, features: Sequence[Tensor],
                rois: Tensor) -> Tensor:
        """Features of regions ``(B, N, 4)``, each from the level of its size;
        shape ``(B * N, C, H, W)``."""
        batch, number = rois.shape[:2]
        image = torch.arange(batch, device=rois.device).view(-1, 1, 1)
        rows = torch.cat([image.expand(batch, number, 1).to(rois), rois],
                         -1).flatten(0, 1)
        layers = extractor.roi_layers
        levels = extractor.map_roi_levels(rows, len(layers))
        result = None
        for level, (layer, feature) in enumerate(zip(layers, features)):
            each = torchvision.ops.roi_align(
                feature, rows, layer.output_size, layer.spatial_scale,
                layer.sampling_ratio, layer.aligned)
            result = each if result is None else torch.where(
                (levels == level)[:, None, None, None], each, result)
        return self.roi_head.shared_head(result) \
            if self.roi_head.with_shared_head else result

    def refine(self, features: Sequence[Tensor], rois: Tensor,
               size: Sequence[int]) -> Tuple[Tensor, Tensor, Tensor]:
        """Regions of the last stage, its deltas, scores of all stages."""
        heads = stages_of(self.roi_head.bbox_head)
        total = 0.
        for head, extractor in zip(
                heads, stages_of(self.roi_head.bbox_roi_extractor)):
            scores, deltas = (each.unflatten(0, rois.shape[:2]) for each in
                              head(self.extract(extractor, features, rois)))
            total = total + scores
            if head is heads[-1]:
                return rois, total / len(heads), deltas
            if not head.reg_class_agnostic:
                deltas = deltas.unflatten(-1, (-1, 4)).gather(
                    2, scores[..., :-1].argmax(-1)[..., None, None].expand(
                        -1, -1, -1, 4))[:, :, 0]
            rois = decode(head, rois, deltas, size)

    def detect(self, rois: Tensor, scores: Tensor, deltas: Tensor,
               there: Tensor, size: Sequence[int]
               ) -> Tuple[Tensor, Tensor, Tensor]:
        """Detections among regions."""
        head = stages_of(self.roi_head.bbox_head)[-1]
        scores = scores.softmax(-1)[..., :-1]
        scores = torch.where(
            (scores > self.cfg.score_thr) & there[..., None], scores, -1.)
        classes = scores.shape[-1]
        deltas = deltas.unflatten(-1, (-1, 4))  # one, or one a class
        boxes = decode(head, rois[:, :, None].expand(
            -1, -1, deltas.shape[2], 4).flatten(1, 2), deltas.flatten(1, 2),
            size).unflatten(1, (-1, deltas.shape[2]))
        labels = torch.arange(classes, device=scores.device).expand(
            scores.shape)
        return suppress(Candidates(
            boxes.expand(-1, -1, classes, 4).flatten(1, 2),
            scores.flatten(1), labels.flatten(1)),
            self.cfg.nms, self.cfg.max_per_img if self.cfg.max_per_img > 0
            else MOST_BOXES)

    def masks(self, features: Sequence[Tensor], boxes: Tensor,
              labels: Tensor) -> Tensor:
        """Probabilities inside boxes, the mean of all stages."""
        heads = stages_of(self.roi_head.mask_head)
        found = []
        for head, extractor in zip(
                heads, stages_of(self.roi_head.mask_roi_extractor)):
            each = head(self.extract(extractor, features, boxes)).sigmoid()
            label = labels.flatten()[:, None].clamp(min=0)
            found.append(each[:, :1] if head.class_agnostic else gather(
                each, label))
        masks = torch.stack(found).mean(0)[:, 0].unflatten(
            0, labels.shape)
        return torch.where((labels >= 0)[..., None, None], masks, 0.)


def paste(masks: Tensor, boxes: Tensor, size: Sequence[int]) -> Tensor:
    """Masks of boxes in an image, sampled as mmdet does.

    Args:
        masks (Tensor): Probabilities inside boxes, shape ``(N, h, w)``.
        boxes (Tensor): ``(x1, y1, x2, y2)``, shape ``(N, 4)``.
        size (sequence of int): Height and width of the image.

    Returns:
        Tensor: Probabilities, shape ``(N, *size)``; 0 outside of boxes.
    """
    places = []
    for axis in (1, 0):
        low, high = boxes[:, axis, None], boxes[:, axis + 2, None]
        pixels = torch.arange(size[1 - axis], device=boxes.device) + .5
        place = (pixels - low) / (high - low) * 2 - 1
        places.append(torch.where(place.isinf(), 0., place))
    y, x = places
    grid = torch.stack([x[:, None].expand(-1, y.shape[1], -1),
                        y[:, :, None].expand(-1, -1, x.shape[1])], -1)
    return F.grid_sample(masks[:, None].float(), grid,
                         align_corners=False)[:, 0]


def decode(head: nn.Module, boxes: Tensor, deltas: Tensor,
           size: Sequence[int]) -> Tensor:
    """Boxes moved by deltas.

    Args:
        head (nn.Module): The head that gave the deltas.
        boxes (Tensor): Shape ``(B, N, 4)``.
        deltas (Tensor): Theirs, of the shape of ``boxes``.
        size (sequence of int): Height and width of images.

    Returns:
        Tensor: Shape ``(B, N, 4)``.
    """
    coder = head.bbox_coder
    moved = coder.decode(boxes.flatten(0, 1), deltas.flatten(0, 1)).unflatten(
        0, boxes.shape[:2])
    return clip(moved, size) if coder.clip_border else moved


def _check_parts(model: nn.Module) -> None:
    """Raise on what the exported graph would not compute.

    Raises:
        ValueError: Names the part.
    """
    check_methods('model', model, {'TwoStageDetector'},
                  ('predict', 'extract_feat'))
    if getattr(model, 'rpn_head', None) is None:
        raise ValueError(
            f'model is a {type(model).__name__} without rpn_head, which takes '
            'the regions of another model; export what comes before them with '
            '--raw (make_deployable(..., raw=True))')
    check_methods('rpn_head', model.rpn_head,
                  {'BaseDenseHead', 'RPNHead'},
                  ('predict', 'predict_by_feat', '_predict_by_feat_single',
                   '_bbox_post_process'))
    roi = model.roi_head
    check_methods(
        'roi_head', roi, {'BaseRoIHead', 'StandardRoIHead', 'CascadeRoIHead'},
        ('predict', 'predict_bbox', 'predict_mask', '_bbox_forward',
         '_mask_forward'))
    if method_of(roi, 'predict_bbox') == 'CascadeRoIHead':
        check_methods('roi_head', roi, {'CascadeRoIHead'}, ('_refine_roi', ))
    for head in stages_of(roi.bbox_head):
        check_methods('roi_head.bbox_head', head, {'BBoxHead'},
                      ('predict_by_feat', '_predict_by_feat_single',
                       'regress_by_class'))
        if head.custom_cls_channels or not head.with_reg:
            raise ValueError(
                f'roi_head.bbox_head is a {type(head).__name__} with a loss '
                'that computes scores of its own, or without boxes; export '
                'the first stage with --raw')
    if roi.with_mask:
        for head in stages_of(roi.mask_head):
            check_methods('roi_head.mask_head', head, {'FCNMaskHead'},
                          ('predict_by_feat', '_predict_by_feat_single'))
    check_extractors(roi)
    for stage in ('rpn', 'rcnn'):
        check_nms(f'test_cfg.{stage}', model.test_cfg[stage].get('nms'))
    check_rows('test_cfg.rpn', model.test_cfg.rpn)


def check_extractors(roi: nn.Module) -> None:
    """Raise where features of regions are not known to be RoIAlign's.

    Args:
        roi (nn.Module): The ``roi_head``.

    Raises:
        ValueError: Names the part.
    """
    parts = ['bbox_roi_extractor'] + ['mask_roi_extractor'] * roi.with_mask
    for part in parts:
        for extractor in stages_of(getattr(roi, part)):
            check_methods(f'roi_head.{part}', extractor,
                          {'SingleRoIExtractor'},
                          ('forward', 'map_roi_levels'))
            for layer in extractor.roi_layers:
                _check_align(f'roi_head.{part}.roi_layers', layer)


def _check_align(name: str, layer: nn.Module) -> None:
    check_methods(name, layer, {'RoIAlign'}, ('forward', ))
    if layer.pool_mode != 'avg':
        raise ValueError(
            f'{name} has pool_mode={layer.pool_mode!r}, allowed: '
            "'avg'; or export the first stage with --raw")
