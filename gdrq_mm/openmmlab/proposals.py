"""Outputs of box and mask heads that can be compared: on the same regions.

Another model proposes other boxes, and the outputs of a head for these say
nothing about its layers. So each head runs once more, on its own features and
the regions of the model it is compared with.
"""
from contextlib import ExitStack, contextmanager
from typing import Callable, Dict, List, NamedTuple, Optional

from torch import Tensor, nn

from ..analysis.distance import OutputProbe
from ..analysis.replay import patched_forwards
from .wrappers import stages_of


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
        kinds = ['bbox', 'mask'] if getattr(
            roi_head, 'with_mask', False) else ['bbox']
        extractors, heads = (
            [stage for kind in kinds for stage in stages_of(getattr(
                roi_head, f'{kind}_{part}'))]
            for part in ('roi_extractor', 'head'))
        names = {module: name for name, module in model.named_modules()}
        for extractor, head in zip(extractors, heads):
            prefix = names[head] + '.'
            self.stages.append(_Stage(extractor, head, {
                name for name in probe.names if name.startswith(prefix)}))

    @contextmanager
    def kept(self):
        """Within it, the proposals of a forward are noted.

        Yields:
            list[Tensor]: One a stage of heads; None of one that did not run,
            as a mask head where there is nothing to be seen.
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
    def given(self, rois: List[Optional[Tensor]]):
        """Within it, the probe hears the heads on these regions only."""
        features: list = []  # of the running forward
        with ExitStack() as stack:
            for stage, regions in zip(self.stages, rois):
                stack.enter_context(self._compared(stage, regions, features))
            yield

    @contextmanager
    def _compared(self, stage: _Stage, regions: Optional[Tensor],
                  features: list):
        originals: Dict[str, Callable] = {}
        heard = []

        def extract(name, original):
            originals[name] = original

            def extracted(maps, *args, **kwargs):
                features[:] = [maps]
                return original(maps, *args, **kwargs)
            return extracted

        def predict(name, original):
            originals[name] = original

            def predicted(*args, **kwargs):
                output = original(*args, **kwargs)
                hear()
                return output
            return predicted

        def hear():
            if regions is None:  # the other model did not run it
                return
            self.probe.muted -= stage.layers
            try:
                originals['head'](originals['extractor'](
                    features[0], regions))
            finally:
                self.probe.muted |= stage.layers
            heard.append(True)

        self.probe.muted |= stage.layers
        try:
            with patched_forwards(dict(extractor=stage.extractor), extract), \
                    patched_forwards(dict(head=stage.head), predict):
                yield
                if features and not heard:  # it saw nothing to run it on
                    hear()
        finally:
            self.probe.muted -= stage.layers
