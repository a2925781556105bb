"""Tensors in, tensors out: Faster R-CNN with boxes of fixed number."""
from typing import List, Sequence, Tuple

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from ...merge.ops import OPS
from .boxes import Candidates, apart, check_nms, clip, suppress
from .models import Deployable


class DeployableDetector(Deployable):
    """An mmdet Faster R-CNN: one image -> boxes, scores and labels.

    All three have ``rcnn.max_per_img`` rows, the best first; where there are
    fewer detections, the rest have label -1 and score 0. Boxes are ``(x1, y1,
    x2, y2)`` in pixels of the image that goes in.

    Args:
        model (nn.Module): The detector.
        image_shape (tuple[int, int]): Height and width of images.

    Raises:
        ValueError: A part that is not that of a Faster R-CNN, by name.
    """
    output_names = ('boxes', 'scores', 'labels')

    def __init__(self, model: nn.Module, image_shape: Tuple[int, int]
                 ) -> None:
        super().__init__(model, 'mmdet')
        self.image_shape = tuple(image_shape)
        self.rpn_head = model.rpn_head
        self.roi_head = model.roi_head
        self.rpn_cfg, self.rcnn_cfg = model.test_cfg.rpn, model.test_cfg.rcnn
        _check_parts(self, model)
        image_shape = self.padded_size(image_shape)
        strides = self.rpn_head.prior_generator.strides
        sizes = [(-(-image_shape[0] // stride[1]),
                  -(-image_shape[1] // stride[0]))
                 for stride in strides]
        anchors = self.rpn_head.prior_generator.grid_priors(
            sizes, device=next(model.parameters()).device)
        for level, values in enumerate(anchors):
            self.register_buffer(f'anchors{level}', values)

    def forward(self, images: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        if (images.shape[0], *images.shape[2:]) != (1, *self.image_shape):
            height, width = self.image_shape
            raise ValueError(
                f'a two-stage detector reads one image of {height} x {width} '
                f'at a time, got inputs of {tuple(images.shape)}')
        features = self.features(images)
        rois = self.propose(*self.rpn_head(features))
        scores, deltas = self.roi_head.bbox_head(
            self.extract(features, rois))
        return self.detect(rois, scores, deltas)

    def propose(self, scores: List[Tensor], deltas: List[Tensor]) -> Tensor:
        """Boxes of the region proposal network.

        Args:
            scores (list[Tensor]): By level, ``(1, anchors, H, W)``.
            deltas (list[Tensor]): By level, ``(1, anchors * 4, H, W)``.

        Returns:
            Tensor: Shape ``(rpn.max_per_img, 4)``; empty ones are zero.
        """
        all_scores, all_deltas, all_anchors, levels = [], [], [], []
        for level, (score, delta) in enumerate(zip(scores, deltas)):
            anchors = getattr(self, f'anchors{level}')
            score = score[0].permute(1, 2, 0)
            delta = delta[0].permute(1, 2, 0).reshape(-1, 4)
            if self.rpn_head.use_sigmoid_cls:
                score = score.reshape(-1).sigmoid()
            else:
                score = score.reshape(-1, 2).softmax(-1)[:, 0]
            if 0 < self.rpn_cfg.nms_pre < len(score):
                order = OPS.top(score[None], self.rpn_cfg.nms_pre)[0]
                score, delta = score[order], delta[order]
                anchors = anchors[order]
            all_scores.append(score)
            all_deltas.append(delta)
            all_anchors.append(anchors)
            levels.append(torch.full_like(score, level))
        boxes = self.decode(self.rpn_head.bbox_coder, torch.cat(all_anchors),
                            torch.cat(all_deltas))
        sides = boxes[:, 2:] - boxes[:, :2]
        least = self.rpn_cfg.get('min_bbox_size', -1)
        score = torch.cat(all_scores)
        if least >= 0:
            score = torch.where((sides > least).all(1), score,
                                torch.full_like(score, -1.))
        moved = apart(boxes[None], torch.cat(levels)[None],
                      score[None] > -0.5)
        kept, = OPS.nms(moved, score[None], self.rpn_cfg.nms.iou_threshold,
                        -0.5, self.rpn_cfg.max_per_img)
        return torch.where((kept >= 0)[:, None], boxes[kept.clamp(min=0)], 0.)

    def extract(self, features: Sequence[Tensor], rois: Tensor) -> Tensor:
        """Features of regions, each from the level of its size."""
        with_image = F.pad(rois, (1, 0))  # image 0
        extractor = self.roi_head.bbox_roi_extractor
        layers = extractor.roi_layers
        levels = extractor.map_roi_levels(with_image, len(layers))
        result = None
        for level, (layer, feature) in enumerate(zip(layers, features)):
            each = torchvision.ops.roi_align(
                feature, with_image, layer.output_size, layer.spatial_scale,
                layer.sampling_ratio, layer.aligned)
            result = each if result is None else torch.where(
                (levels == level)[:, None, None, None], each, result)
        return result

    def detect(self, rois: Tensor, scores: Tensor, deltas: Tensor
               ) -> Tuple[Tensor, Tensor, Tensor]:
        """Detections of the ROI head."""
        head, cfg = self.roi_head.bbox_head, self.rcnn_cfg
        classes = head.num_classes
        scores = scores.softmax(-1)[:, :-1]
        # Regions that are only padding.
        real = (rois[:, 2:] > rois[:, :2]).all(1)
        scores = torch.where(real[:, None], scores, 0.)
        if head.reg_class_agnostic:
            boxes = self.decode(head.bbox_coder, rois, deltas)[:, None]
            boxes = boxes.expand(-1, classes, 4)
        else:
            boxes = self.decode(
                head.bbox_coder, rois[:, None].expand(
                    -1, classes, 4).reshape(-1, 4), deltas.reshape(-1, 4))
        boxes, scores = boxes.reshape(-1, 4), scores.reshape(-1)
        scores = torch.where(scores > cfg.score_thr, scores, -1.)
        labels = torch.arange(classes, device=rois.device).repeat(len(rois))
        found = suppress(Candidates(boxes[None], scores[None], labels[None]),
                         cfg.nms, cfg.max_per_img)
        return tuple(each[0] for each in found)

    def decode(self, coder, boxes: Tensor, deltas: Tensor) -> Tensor:
        boxes = coder.decode(boxes, deltas, max_shape=None)
        return clip(boxes, self.image_shape) if coder.clip_border else boxes


def _check_parts(detector: DeployableDetector, model: nn.Module) -> None:
    """Raise on what the exported graph would not compute.

    Raises:
        ValueError: Names the part.
    """
    extractor = getattr(model.roi_head, 'bbox_roi_extractor', None)
    bbox_head = getattr(model.roi_head, 'bbox_head', None)
    parts = [
        (model.rpn_head, ('RPNHead', )),
        (model.roi_head, ('StandardRoIHead', )),
        (extractor, ('SingleRoIExtractor', )),
        (bbox_head, ('Shared2FCBBoxHead', 'Shared4Conv1FCBBoxHead',
                      'ConvFCBBoxHead', 'BBoxHead')),
        (model.rpn_head.bbox_coder, ('DeltaXYWHBBoxCoder', )),
        (getattr(bbox_head, 'bbox_coder', None), ('DeltaXYWHBBoxCoder', )),
        *[(layer, ('RoIAlign', )) for layer in getattr(
            extractor, 'roi_layers', ())]]
    for part, allowed in parts:
        if type(part).__name__ not in allowed:
            raise ValueError(
                f'{type(model).__name__} has a {type(part).__name__}, which '
                f'cannot be exported yet; allowed: {", ".join(allowed)}')
    if getattr(model.roi_head, 'with_mask', False):
        raise ValueError('masks cannot be exported yet: the model has a '
                         'mask_head')
    if getattr(model.roi_head, 'with_shared_head', False):
        raise ValueError('roi_head has a shared_head, which cannot be '
                         'exported yet; export the first stage with --raw')
    for cfg in (detector.rpn_cfg, detector.rcnn_cfg):
        check_nms(cfg.nms)
    if any(layer.pool_mode != 'avg' for layer in extractor.roi_layers):
        raise ValueError("RoIAlign has pool_mode='max', allowed: 'avg'")
