"""Masks for data that have boxes alone."""
import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from mmdet.structures.mask import BitmapMasks


@TRANSFORMS.register_module()
class EllipseMasks(BaseTransform):
    """The ellipse inside every box, as blood cells nearly are.

    Required keys: ``gt_bboxes``, ``img_shape``; added key: ``gt_masks``.
    """

    def transform(self, results: dict) -> dict:
        height, width = results['img_shape'][:2]
        boxes = results['gt_bboxes'].numpy()
        masks = np.zeros((len(boxes), height, width), dtype=np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.tolist()):
            center = (left + right) / 2, (top + bottom) / 2
            cv2.ellipse(mask, (center, (right - left, bottom - top), 0.), 1,
                        thickness=-1)
        results['gt_masks'] = BitmapMasks(masks, height, width)
        return results
