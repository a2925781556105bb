"""Tensors in, tensors out: detectors that learn where to begin."""
from typing import Sequence, Tuple

import torch
from torch import Tensor, nn

from ...merge.ops import OPS
from .boxes import check_methods, gather
from .two_stage import DeployableTwoStage, check_extractors, decode


class DeployableLearnedRegions(DeployableTwoStage):
    """An mmdet detector as Sparse R-CNN is: images -> boxes, scores, labels.

    Learned regions are refined in stages, each of which hands what it knows
    of a region to the next. Outputs have ``rcnn.max_per_img`` rows an image,
    the best first, without suppression or a threshold. ``masks`` of QueryInst
    are probabilities inside the box, see :func:`paste`.

    Args:
        model (nn.Module): The detector.

    Raises:
        ValueError: A part whose computation is not known, by name.
    """

    @staticmethod
    def check(model: nn.Module) -> None:
        check_methods('model', model, {'TwoStageDetector'},
                      ('predict', 'extract_feat'))
        check_methods('rpn_head', model.rpn_head, {'EmbeddingRPNHead'},
                      ('predict', '_decode_init_proposals'))
        roi = model.roi_head
        check_methods('roi_head', roi, {'BaseRoIHead', 'SparseRoIHead'},
                      ('predict', 'predict_bbox', 'predict_mask',
                       '_bbox_forward', '_mask_forward'))
        for head in roi.bbox_head:
            check_methods('roi_head.bbox_head', head, {'BBoxHead', 'DIIHead'},
                          ('forward', 'refine_bboxes', 'regress_by_class'))
        if roi.with_mask:
            check_methods('roi_head.mask_head', roi.mask_head[-1],
                          {'FCNMaskHead', 'DynamicMaskHead'},
                          ('forward', 'predict_by_feat',
                           '_predict_by_feat_single'))
        check_extractors(roi)

    def forward(self, images: Tensor) -> Tuple[Tensor, ...]:
        size, features = images.shape[2:], self.features(images)
        boxes, scores, attended = self.stages(
            features, images.shape[0], size)
        classes = self.roi_head.bbox_head[-1].num_classes
        scores = scores.flatten(1)
        index = OPS.top(scores, self.cfg.max_per_img)
        region, labels = index // classes, index % classes
        found = gather(boxes, region), gather(scores, index), labels
        if not self.roi_head.with_mask:
            return found
        masks = self.roi_head.mask_head[-1](self.extract(
            self.roi_head.mask_roi_extractor[-1], features, boxes), attended)
        masks = gather(masks.unflatten(0, boxes.shape[:2]), region)
        label = labels[..., None, None, None].expand(
            -1, -1, 1, *masks.shape[3:])
        return (*found, masks.gather(2, label)[:, :, 0].sigmoid())

    def stages(self, features: Sequence[Tensor], batch: int,
               size: Sequence[int]) -> Tuple[Tensor, Tensor, Tensor]:
        """Regions as the last stage has them.

        Args:
            features (sequence of Tensor): By level, ``(B, C, H, W)``.
            batch (int): Number of images, ``B``.
            size (sequence of int): Height and width of images.

        Returns:
            tuple[Tensor, Tensor, Tensor]: Boxes ``(B, N, 4)``, scores of
            classes ``(B, N, classes)``, what masks are made of.
        """
        (height, width), rpn = size, self.rpn_head
        x, y, w, h = rpn.init_proposal_bboxes.weight.unbind(-1)
        boxes = torch.stack([
            (x - w / 2) * width, (y - h / 2) * height,
            (x + w / 2) * width, (y + h / 2) * height], -1).expand(
                batch, -1, -1)
        known = rpn.init_proposal_features.weight.expand(batch, -1, -1)
        for head, extractor in zip(self.roi_head.bbox_head,
                                   self.roi_head.bbox_roi_extractor):
            scores, deltas, known, attended = head(
                self.extract(extractor, features, boxes), known)
            boxes = decode(head, boxes, deltas, size)
        scores = scores.sigmoid() if head.loss_cls.use_sigmoid else \
            scores.softmax(-1)[..., :-1]
        return boxes, scores, attended
