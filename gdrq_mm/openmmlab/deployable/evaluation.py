"""The metric of a deployed model: mm dataset, any function, mm evaluator."""
import copy
import math
from typing import (
    Any,
    Callable,
    Dict,
    Iterable,
    List,
    Optional,
    Sequence,
    Tuple,
)

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.evaluator import Evaluator
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.structures import InstanceData, PixelData
from torch import Tensor, nn

from ..evaluating import in_this_process
from ..publish import inference_config, load_all
from ..reading import read_checkpoint, weights_of
from ..scopes import build_model, read_config, scope_of
from .equal_predictions import count_equal
from .images import images_of
from .two_stage import paste


def load_model(config: str, checkpoint: str,
               cfg_options: Optional[dict] = None) -> Tuple[Config, nn.Module]:
    """A trained (or published) quantized model, in eval mode.

    Returns:
        tuple[Config, nn.Module]: The config in ``QuantizedModel`` form.

    Raises:
        CheckpointError: The checkpoint is of another model, if in part.
    """
    cfg = read_config(config, cfg_options)
    cfg = inference_config(cfg)
    model = build_model(cfg)
    load_all(model, weights_of(read_checkpoint(checkpoint)))
    model.eval()  # returns nothing in some models
    return cfg, model


def evaluate(cfg: Config, functions: Dict[str, Callable],
             size: Tuple[int, int]) -> Dict[str, Dict[str, float]]:
    """Metrics of several functions on the test set, in one go over it.

    Args:
        cfg (Config): With ``test_dataloader`` and ``test_evaluator``.
        functions (dict[str, callable]): Image -> outputs, as the deployable
            models give them.
        size (tuple[int, int]): Height and width they take.

    Returns:
        dict[str, dict[str, float]]: By function and metric. ``agreement`` is
        the share of predictions that are those of the first function, in
        percent (see :func:`.equal_predictions.count_equal`); NaN where
        neither predicts anything.
    """
    scope, evaluators = scope_of(cfg), evaluators_of(cfg, functions)
    agreement, images = {name: [0, 0] for name in functions}, 0
    for image, sample in images_of(cfg, 'test', size):
        first, images = None, images + 1
        for name, function in functions.items():
            outputs = tensors_of(function(image))
            first = outputs if first is None else first
            counts = count_equal(scope, sample, outputs, first)
            agreement[name] = [sum(each) for each in zip(
                agreement[name], counts)]
            filled = with_predictions(cfg, copy.deepcopy(sample), outputs)
            evaluators[name].process([filled], dict(inputs=[image[0]]))
    return {name: dict(evaluators[name].evaluate(images),
                       agreement=100 * equal / total if total else math.nan)
            for name, (equal, total) in agreement.items()}


def evaluators_of(cfg: Config, names: Iterable[str]) -> Dict[str, Evaluator]:
    """An evaluator of the test set for each of several names."""
    init_default_scope(scope_of(cfg))
    dataset = Runner.build_dataloader(
        in_this_process(cfg.test_dataloader)).dataset
    evaluators = {}
    for name in names:
        evaluators[name] = Evaluator(copy.deepcopy(cfg.test_evaluator))
        evaluators[name].dataset_meta = dataset.metainfo
    return evaluators


def tensors_of(outputs: Any) -> List[Tensor]:
    """Outputs of a deployable model, or of a file, as tensors."""
    return [torch.as_tensor(each) for each in (
        outputs if isinstance(outputs, (tuple, list)) else [outputs])]


def with_predictions(cfg: Config, sample: Any, outputs: Sequence[Tensor]
                     ) -> Any:
    """The data sample with the predictions in it.

    Args:
        cfg (Config): Config of the model.
        sample (BaseDataElement): Data sample of the image; changed in place.
        outputs (sequence of Tensor): As deployable models give them.
    """
    scope = scope_of(cfg)
    if scope == 'mmpretrain':
        scores, = outputs
        return sample.set_pred_score(scores[0]).set_pred_label(
            scores.argmax(1))
    if scope == 'mmseg':
        classes = outputs[0][:, None].float()
        height, width = sample.img_shape
        classes = F.interpolate(classes[..., :height, :width],
                                sample.ori_shape, mode='nearest')
        sample.pred_sem_seg = PixelData(data=classes[0].long())
        return sample
    boxes, scores, labels, *masks = (each[0] for each in outputs)
    there = labels >= 0
    scale = torch.tensor(sample.scale_factor).repeat(2)
    found = InstanceData(bboxes=boxes[there] / scale, scores=scores[there],
                         labels=labels[there])
    if masks:
        found.masks = paste(
            masks[0][there], found.bboxes, sample.ori_shape
        ) >= cfg.model.test_cfg.rcnn.mask_thr_binary
    sample.pred_instances = found
    return sample
