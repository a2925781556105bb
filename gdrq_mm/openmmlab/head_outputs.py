"""What the heads of OpenMMLab's models give, for distillation to compare."""
import re
from typing import Dict, Iterator, List, Optional, Tuple

from torch import nn

from ..config import match_output
from ..errors import did_you_mean
from ..training import Branch, Output


def find_head_outputs(
        model: nn.Module, asked: Optional[Dict[str, str]] = None
        ) -> Tuple[List[Output], List[Branch]]:
    """What of a model is compared with its teacher.

    Args:
        model (nn.Module): The model.
        asked (dict, optional): Patterns of module names -> kinds. Defaults
            to None: what the heads of classifiers, segmentors and detectors
            give.

    Returns:
        tuple[list[Output], list[Branch]]: Outputs, and the parts of the model
        that work on its own proposals.

    Raises:
        ValueError: A name is unknown, or no head is known.
    """
    branches = list(_roi_branches(model))
    if asked is not None:
        names = [name for name, _ in model.named_modules() if name]
        outputs = []
        for pattern, kind in asked.items():
            found = tuple(name for name in names
                          if match_output(name, pattern))
            if not found:
                raise ValueError(f'distill.outputs: {pattern!r} matches no '
                                 f'module; {did_you_mean(pattern, names)}')
            label = re.sub(r'\W+', '_', pattern).strip('_')
            outputs.append(Output(label, found, kind))
        return outputs, branches
    outputs = [*_of_classifier(model), *_of_segmentor(model),
               *_of_detector(model)]
    if not outputs:
        last = [name for name, module in model.named_modules()
                if isinstance(module, nn.Linear)] or ['head.fc']
        raise ValueError(
            'GDRQHook: distill finds no class scores, boxes or logits in the '
            f'heads of {type(model).__name__}; name the modules that give '
            f"them, such as distill=dict(outputs={{{last[-1]!r}: "
            "'softmax'})")
    return outputs, branches


def _is_a(module: Optional[nn.Module], *names: str) -> bool:
    """By names, as not all mm packages need be installed."""
    return any(cls.__name__ in names for cls in type(module).__mro__)


def _of_classifier(model: nn.Module) -> Iterator[Output]:
    head = getattr(model, 'head', None)
    if _is_a(head, 'ClsHead', 'MultiLabelClsHead'):
        loss = getattr(head, 'loss_module', None)
        yield Output('cls', ('head', ), 'sigmoid' if _is_a(
            head, 'MultiLabelClsHead') else _kind('cls', loss),
            getattr(loss, 'loss_weight', 1.))


def _of_segmentor(model: nn.Module) -> Iterator[Output]:
    for label, part in (('seg', 'decode_head'), ('aux', 'auxiliary_head')):
        heads = getattr(model, part, None)
        for name, head in heads.named_modules(prefix=part) if isinstance(
                heads, nn.Module) else ():
            if not _is_a(head, 'BaseDecodeHead') or not isinstance(
                    getattr(head, 'conv_seg', None), nn.Conv2d):
                continue
            losses = head.loss_decode if isinstance(
                head.loss_decode, nn.ModuleList) else [head.loss_decode]
            single = any(getattr(loss, 'use_sigmoid', False)
                         for loss in losses)
            index = '_'.join(name.split('.')[1:])  # of several heads
            yield Output('_'.join(filter(None, (label, index))),
                         (f'{name}.conv_seg', ),
                         'sigmoid' if single else 'softmax',
                         sum(loss.loss_weight for loss in losses))


def _of_detector(model: nn.Module) -> Iterator[Output]:
    for prefix, part in (('rpn_', 'rpn_head'), ('', 'bbox_head')):
        head = getattr(model, part, None)
        if _is_a(head, 'AnchorHead', 'AnchorFreeHead', 'YOLOXHead'):
            yield from _of_dense_head(head, prefix, part)
    if _is_a(model, 'DetectionTransformer'):
        yield from _of_queries(model.bbox_head, 'bbox_head')
    roi_head = getattr(model, 'roi_head', None)
    for name, head in roi_head.named_modules(prefix='roi_head') if isinstance(
            roi_head, nn.Module) else ():
        if _is_a(head, 'BBoxHead'):
            index = '_'.join(name.split('.')[2:])  # of several stages
            for label, part, loss in (('cls', 'fc_cls', head.loss_cls),
                                      ('box', 'fc_reg', head.loss_bbox)):
                if isinstance(getattr(head, part, None), nn.Linear):
                    yield Output(
                        '_'.join(filter(None, (label, index))),
                        (f'{name}.{part}', ), _kind(label, loss),
                        getattr(loss, 'loss_weight', 1.))


def _of_dense_head(head: nn.Module, prefix: str, part: str
                   ) -> Iterator[Output]:
    """The last convolutions, by the endings of their names; where boxes are
    scaled a level, what comes out of that."""
    endings = dict(cls='cls_convs', box='reg_convs') if _is_a(
        head, 'SSDHead') else dict(cls='_cls', box='_reg',
                                   centerness='_centerness', obj='_obj')
    for label, ending in endings.items():
        loss = getattr(head, dict(box='loss_bbox').get(
            label, f'loss_{label}'), None)
        for name, child in head.named_children():
            if not name.endswith(ending) or not isinstance(
                    child, (nn.Conv2d, nn.ModuleList)):
                continue
            if label == 'box' and isinstance(
                    getattr(head, 'scales', None), nn.ModuleList):
                name, child = 'scales', head.scales
            modules = tuple(
                f'{part}.{name}.{index}' for index in range(len(child))
            ) if isinstance(child, nn.ModuleList) else (f'{part}.{name}', )
            kind = _kind(label, loss)
            yield Output(prefix + label, modules, kind,
                         getattr(loss, 'loss_weight', 1.),
                         head.cls_out_channels if kind == 'softmax' else None)
            break


def _of_queries(head: nn.Module, part: str) -> Iterator[Output]:
    """What all layers of a decoder share, as where a query is learned, and the
    same one in both models; where the encoder chooses queries (two stages)
    there are none. Of boxes DETR's own: others add a reference to them in
    place."""
    own = type(head).forward.__qualname__ == 'DETRHead.forward'
    branches = getattr(head, 'cls_branches', None)
    if branches is not None and not head.as_two_stage:
        names = [name for name, child in head.named_modules(prefix=part)
                 if any(child is each for each in branches)]
        yield Output('cls', tuple(names), _kind('cls', head.loss_cls),
                     head.loss_cls.loss_weight)
    for label, name, loss in (('cls', 'fc_cls', head.loss_cls),
                              ('box', 'fc_reg', head.loss_bbox)):
        if isinstance(getattr(head, name, None), nn.Module) and (
                own or label == 'cls'):
            yield Output(label, (f'{part}.{name}', ), _kind(label, loss),
                         loss.loss_weight)


def _kind(label: str, loss: Optional[nn.Module]) -> str:
    if label == 'box':
        return 'l2'
    return 'sigmoid' if getattr(loss, 'use_sigmoid', False) else 'softmax'


def _roi_branches(model: nn.Module) -> Iterator[Branch]:
    """From pooled features to box heads, of all stages."""
    roi_head = getattr(model, 'roi_head', None)
    features = 'neck' if isinstance(getattr(model, 'neck', None),
                                    nn.Module) else 'backbone'
    extractor = getattr(roi_head, 'bbox_roi_extractor', None)
    if extractor is None:
        return
    shared = ['roi_head.shared_head'] if getattr(
        roi_head, 'with_shared_head', False) else []
    stages = [f'.{index}' for index in range(len(extractor))] if isinstance(
        extractor, nn.ModuleList) else ['']
    for stage in stages:
        yield Branch(features, (f'roi_head.bbox_roi_extractor{stage}',
                                *shared, f'roi_head.bbox_head{stage}'))
