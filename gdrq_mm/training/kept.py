"""Quantized weights that evaluation keeps."""
import weakref
from itertools import chain

from torch import Tensor, nn


class KeptWeights:
    """Each weight is quantized once, until it or its quantizer changes.

    Changes are told by autograd's version counters. It does not count writes
    to ``weight.data``; call ``model.eval()`` after those.
    """

    def __init__(self) -> None:
        self._kept = weakref.WeakKeyDictionary()  # layer -> mark, weight

    def __len__(self) -> int:
        return len(self._kept)

    def forget(self) -> None:
        self._kept.clear()

    def quantized(self, layer: nn.Module) -> Tensor:
        """The quantized weight of a layer, without a gradient."""
        weight, quantizer = layer.weight, layer.weight_quantizer
        mark = (weight.data_ptr(), weight._version, weight.dtype, *(
            each._version for each in chain(quantizer.parameters(),
                                            quantizer.buffers())))
        kept = self._kept.get(layer)
        if kept is None or kept[0] != mark:
            quantized = quantizer.grid(weight).quantize(weight) \
                if quantizer.fused else quantizer(weight)
            self._kept[layer] = kept = mark, quantized
        return kept[1]
