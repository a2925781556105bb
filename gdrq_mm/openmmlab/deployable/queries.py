"""Tensors in, tensors out: detectors whose queries are the detections."""
from typing import Tuple

import torch
from torch import Tensor, nn

from ...merge.ops import OPS
from .boxes import check_methods, clip, gather
from .lengths import known_lengths
from .whole import DeployableWhole


class DeployableQueryDetector(DeployableWhole):
    """An mmdet DETR-like detector: images -> boxes, scores and labels.

    All three have ``test_cfg.max_per_img`` rows an image, the best first, as
    in mmdet without suppression or a threshold. The whole image counts as
    seen: mmdet masks what it pads where images of a batch differ in size.

    Args:
        model (nn.Module): The detector.

    Raises:
        ValueError: A head whose post-processing is not known, by name.
    """
    output_names = ('boxes', 'scores', 'labels')

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        check_methods('model', model, {'DetectionTransformer'}, ('predict', ))
        check_methods('bbox_head', model.bbox_head, {
            'DETRHead', 'ConditionalDETRHead', 'DABDETRHead',
            'DeformableDETRHead'},
            ('predict', 'predict_by_feat', '_predict_by_feat_single'))

    def forward(self, images: Tensor) -> Tuple[Tensor, Tensor, Tensor]:
        height, width = images.shape[2:]
        features = self.features(images)
        with known_lengths():
            outputs = self.model.forward_transformer(features, self.samples(
                self.told_apart(images), (height, width)))
            scores, boxes = (each[-1]
                             for each in self.bbox_head(**outputs)[:2])
        number = self.bbox_head.test_cfg.get('max_per_img', boxes.shape[1])
        if self.bbox_head.loss_cls.use_sigmoid:
            classes = scores.shape[2]
            scores = scores.sigmoid().flatten(1)
            index = OPS.top(scores, number)
            query, labels = index // classes, index % classes
            scores = gather(scores, index)
        else:
            scores, labels = scores.softmax(-1)[..., :-1].max(-1)
            query = OPS.top(scores, number)
            scores, labels = gather(scores, query), gather(labels, query)
        x, y, w, h = gather(boxes, query).unbind(-1)
        boxes = torch.stack([
            (x - w / 2) * width, (y - h / 2) * height,
            (x + w / 2) * width, (y + h / 2) * height], -1)
        return clip(boxes, (height, width)), scores, labels

    def told_apart(self, images: Tensor) -> int:
        """How many images the model must be told of.

        Where nothing is padded mmdet asks no more than whether all images
        have the same size: one stands for any number of them.

        Raises:
            ValueError: Padding is to be masked in images of any number or
                size.
        """
        if self.prepare.divisor == 1:
            return 1
        if any(isinstance(length, torch.SymInt) for length in images.shape):
            raise ValueError(
                'mmdet masks, image by image, what pad_size_divisor='
                f'{self.prepare.divisor} of the data_preprocessor pads; set '
                "it to 1, as in mmdet's configs")
        return len(images)
