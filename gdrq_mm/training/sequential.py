"""An ``nn.Sequential`` that is a quantized model."""
from collections import OrderedDict

from torch import nn

from .state import QuantizationState


class QuantSequential(nn.Sequential):
    """A Sequential one of whose children, the state, is no step of it.

    ``len``, iteration, indices and slices are those of the float model; what
    a slice gives is a plain Sequential of converted layers.
    """

    def _steps(self) -> list:
        return [name for name, module in self._modules.items()
                if not isinstance(module, QuantizationState)]

    def __len__(self):
        return len(self._steps())

    def __iter__(self):
        return iter([self._modules[name] for name in self._steps()])

    def _get_item_by_idx(self, iterator, idx):
        steps = [each for key, each in zip(list(self._modules), iterator)
                 if key in self._steps()]
        return super()._get_item_by_idx(steps, idx)

    def __getitem__(self, idx):
        if isinstance(idx, slice):
            return nn.Sequential(OrderedDict(
                (name, self._modules[name]) for name in self._steps()[idx]))
        return super().__getitem__(idx)

    def __delitem__(self, idx):
        states = self._without_state()
        try:
            super().__delitem__(idx)
        finally:
            self._modules.update(states)

    def insert(self, index, module):
        states = self._without_state()
        try:
            return super().insert(index, module)
        finally:
            self._modules.update(states)

    def _without_state(self) -> dict:
        steps = self._steps()
        return {name: self._modules.pop(name)
                for name in list(self._modules) if name not in steps}
