"""Outputs of box heads that can be compared: on the same proposals.

Another model proposes other boxes, and the outputs of a box head for these
say nothing about its layers. So each box head runs once more, on its own
features and the proposals of the model it is compared with.
"""
from contextlib import ExitStack, contextmanager
from typing import Dict, List, NamedTuple, Optional

from torch import Tensor, nn

from ..analysis.distance import OutputProbe
from ..analysis.replay import patched_forwards


class _Stage(NamedTuple):
    extractor: nn.Module
    head: nn.Module
    layers: set  # names of the head's layers


class Proposals:
    """Proposals of the detector that others are compared with.

    Args:
        model (nn.Module): Any model; one without a box head has none.
        probe (OutputProbe): Output probe of that model.
    """

    def __init__(self, model: nn.Module, probe: OutputProbe) -> None:
        self.probe = probe
        self.stages: List[_Stage] = []
        roi_head = getattr(model, 'roi_head', None)
        if roi_head is None:
            return
        if getattr(roi_head, 'with_shared_head', False):
            raise ValueError(
                'roi_head has a shared_head, whose outputs cannot be '
                'compared on equal proposals; measure a model without one')
        extractors, heads = (
            list(each) if isinstance(each, nn.ModuleList) else [each]
            for each in (roi_head.bbox_roi_extractor, roi_head.bbox_head))
        names = {module: name for name, module in model.named_modules()}
        for extractor, head in zip(extractors, heads):
            prefix = names[head] + '.'
            self.stages.append(_Stage(extractor, head, {
                name for name in probe.names if name.startswith(prefix)}))

    @contextmanager
    def kept(self):
        """Within it, the proposals of a forward are noted.

        Yields:
            list[Tensor]: One a stage of box heads.
        """
        rois: List[Optional[Tensor]] = [None] * len(self.stages)

        def wrapper(index):
            def wrap(_, original):
                def noted(features, boxes, *args, **kwargs):
                    rois[index] = boxes.clone()
                    return original(features, boxes, *args, **kwargs)
                return noted
            return wrap

        with ExitStack() as stack:
            for index, stage in enumerate(self.stages):
                stack.enter_context(patched_forwards(
                    dict(extractor=stage.extractor), wrapper(index)))
            yield rois

    @contextmanager
    def given(self, rois: List[Tensor]):
        """Within it, the probe hears box heads on these proposals only."""
        with ExitStack() as stack:
            for stage, boxes in zip(self.stages, rois):
                stack.enter_context(self._compared(stage, boxes))
            yield

    @contextmanager
    def _compared(self, stage: _Stage, boxes: Tensor):
        seen: Dict[str, tuple] = {}

        def extract(_, original):
            def extracted(features, *args, **kwargs):
                output = original(features, *args, **kwargs)
                seen['features'] = features, original
                return output
            return extracted

        def predict(_, original):
            def predicted(*args, **kwargs):
                output = original(*args, **kwargs)
                features, extractor = seen['features']
                self.probe.muted -= stage.layers
                try:
                    original(extractor(features, boxes))
                finally:
                    self.probe.muted |= stage.layers
                return output
            return predicted

        self.probe.muted |= stage.layers
        try:
            with patched_forwards(dict(extractor=stage.extractor), extract), \
                    patched_forwards(dict(head=stage.head), predict):
                yield
        finally:
            self.probe.muted -= stage.layers
