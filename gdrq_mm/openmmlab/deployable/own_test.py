"""An exported file beside the package's own test, image by image."""
import copy
from dataclasses import dataclass, field
from typing import Any, Callable, Dict, Optional, Tuple

import numpy as np
import torch
from mmengine.config import Config
from torch import Tensor, nn

from ..scopes import scope_of
from .evaluation import evaluators_of, tensors_of, with_predictions
from .images import images_of, pad_image


@dataclass
class Comparison:
    """What a file gives for a test set, against the package's own test.

    Args:
        images (int): Number of images.
        same_labels (int): Images whose labels are all the same: classes of
            the image or of its pixels, or those of the detections.
        boxes (float, optional): Greatest difference of a coordinate, in
            pixels of the image as it is in the data set, over images of the
            same labels; None without boxes.
        scores (float): Greatest difference of a score, over these images.
        pixels (tuple[int, int]): How many are predicted alike, and how many
            there are: of segmentors by class, of detectors with masks by
            every mask, over images of the same labels.
        metrics (dict[str, dict[str, float]]): By 'package' or 'file', and by
            metric.
    """
    images: int = 0
    same_labels: int = 0
    boxes: Optional[float] = None
    scores: float = 0.
    pixels: Tuple[int, int] = (0, 0)
    metrics: Dict[str, Dict[str, float]] = field(default_factory=dict)

    def __str__(self) -> str:
        share = 100 * self.same_labels / max(self.images, 1)
        lines = [f'images with the same labels: {self.same_labels} of '
                 f'{self.images} ({share:.2f}%)']
        equal, pixels = self.pixels
        if pixels:
            what = 'class' if self.boxes is None else 'mask'
            lines.append(f'pixels of the same {what}: '
                         f'{equal} of {pixels} ({equal / pixels:.5%})')
        if self.boxes is not None or not pixels:
            lines.append('greatest difference of a score there: '
                         f'{self.scores:.1e}')
        if self.boxes is not None:
            lines.append('greatest difference of a box there: '
                         f'{self.boxes:.1e} pixels')
        for name, values in self.metrics.items():
            shown = ', '.join(f'{key} {value:.3f}'
                              for key, value in values.items())
            lines.append(f'{name}: {shown}')
        return '\n'.join(lines)

    def add(self, scope: str, ours: Any, theirs: Any) -> None:
        """Count one image: data samples with the predictions of both."""
        self.images += 1
        if scope == 'mmseg':
            self.same_labels += self._add_pixels(
                ours.pred_sem_seg.data, theirs.pred_sem_seg.data)
            return
        if scope == 'mmpretrain':
            pairs = [(ours.pred_score, theirs.pred_score)]
            same = predicts(ours.pred_score, theirs.pred_label) \
                and not bool(theirs.pred_score.isnan().any())
        else:
            ours, theirs = ours.pred_instances, theirs.pred_instances
            order = paired(ours, theirs)
            same = order is not None
            if order is not None:
                ours = ours[order]
                pairs = [(ours.scores, theirs.scores)]
                self.boxes = max(self.boxes or 0., _apart(
                    ours.bboxes, theirs.bboxes))
                if 'masks' in theirs:
                    self._add_pixels(ours.masks, theirs.masks)
        self.same_labels += same
        if same:
            self.scores = max(self.scores, *(_apart(*pair)
                                             for pair in pairs))

    def _add_pixels(self, ours: Tensor, theirs: Tensor) -> bool:
        """Count them; whether all are equal."""
        same = ours == theirs
        self.pixels = (self.pixels[0] + int(same.sum()),
                       self.pixels[1] + same.numel())
        return bool(same.all())


def _apart(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max()) if ours.numel() else 0.


def predicts(scores: Tensor, labels: Tensor) -> bool:
    """Whether the classes of some labels have the greatest scores.

    Args:
        scores (Tensor): Those of an image, shape ``(classes, )``.
        labels (Tensor): Predicted from other scores: one, or as many as the
            head of a model of several labels says.
    """
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[labels] = True
    return bool(chosen.all()) or not bool(chosen.any()) or bool(
        scores[chosen].min() >= scores[~chosen].max())


def paired(ours: Any, theirs: Any) -> Optional[Tensor]:
    """Which detection of ours is each of theirs; None where one has no other.

    Scores that are equal but for rounding change places, so the order says
    little: each is paired with the nearest of its label, by box and score.

    Args:
        ours (InstanceData): With ``bboxes``, ``scores`` and ``labels``.
        theirs (InstanceData): The same of the other.
    """
    if len(ours) != len(theirs):
        return None
    if not len(ours):
        return torch.zeros(0, dtype=torch.long)
    rows = [torch.cat([each.bboxes, 1e2 * each.scores[:, None]], 1).double()
            for each in (theirs, ours)]
    if any(each.isnan().any() for each in rows):
        return None
    apart = torch.cdist(*rows, p=float('inf'))
    apart[theirs.labels[:, None] != ours.labels] = float('inf')
    nearest, order = apart.min(1)
    if nearest.isinf().any() or len(order.unique()) < len(order):
        return None
    return order


@torch.no_grad()
def compare_with_own_test(cfg: Config, model: nn.Module, function: Callable,
                          size: Optional[Tuple[int, int]]) -> Comparison:
    """Run the whole test set through a model and through its exported form.

    Args:
        cfg (Config): With ``test_dataloader`` and ``test_evaluator``.
        model (nn.Module): The model of the package, which tests one image at
            a time as it is, without padding to ``size``.
        function (callable): Image -> outputs, as deployable models give them.
        size (tuple[int, int], optional): Height and width it takes; None:
            any.

    Returns:
        Comparison: What was found; metrics of several numbers are left out.

    Raises:
        ValueError: The exported form gives NaN.
    """
    scope, result = scope_of(cfg), Comparison()
    evaluators = evaluators_of(cfg, ('package', 'file'))
    for image, sample in images_of(cfg, 'test'):
        padded = image if size is None else pad_image(cfg, image, size)
        outputs = tensors_of(function(padded))
        if any(each.isnan().any() for each in outputs):
            raise ValueError(
                f'{sample.get("img_path", "an image")}: the exported model '
                'gives NaN; export it again, which compares every layer and '
                'names the first that differs')
        inputs: Any = image if scope == 'mmpretrain' else [image[0]]
        found = dict(
            package=model.test_step(dict(
                inputs=inputs, data_samples=[copy.deepcopy(sample)]))[0],
            file=with_predictions(cfg, copy.deepcopy(sample), outputs))
        result.add(scope, found['file'], found['package'])
        for name, evaluator in evaluators.items():
            evaluator.process([found[name]], dict(inputs=[image[0]]))
    result.metrics = {
        name: {key: float(value) for key, value in evaluator.evaluate(
            result.images).items() if np.ndim(value) == 0}
        for name, evaluator in evaluators.items()}
    return result
