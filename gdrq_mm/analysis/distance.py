"""How far the outputs of a model are from those of another one."""
from typing import Dict, Iterable, List, NamedTuple, Optional

import torch
from torch import Tensor, nn

from ..functional import to_float64
from ..plan.trace import first_tensor

CHANNELS_LAST = nn.Linear, nn.RNNBase, nn.MultiheadAttention


class Noise(NamedTuple):
    """Energy of a difference over that of the signal, 0 where none differs.

    Args:
        mean (float): Over batches and outputs.
        error (float): Standard error of the mean over batches; NaN of one.
    """
    mean: float
    error: float


class OutputProbe:
    """Listen to the outputs of some layers, batch by batch; of several
    that one returns, to the first.

    Args:
        model (nn.Module): The model.
        names (iterable of str): Layers, see
            :func:`gdrq_mm.analysis.first_and_last`.
    """

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        self.names = list(names)
        self.muted = set()  # names that are not listened to now
        self.seen: Dict[str, List[Tensor]] = {}
        self._handles = [
            model.get_submodule(name).register_forward_hook(self._hook(name))
            for name in self.names]

    def _hook(self, name):

        def listen(module, args, output):
            value = first_tensor(output)
            if name not in self.muted and value is not None:
                self.seen.setdefault(name, []).append(
                    _rows(module, value.detach()).clone())

        return listen

    def take(self) -> Dict[str, List[Tensor]]:
        """What was heard since the last time, by layer and call; each of
        shape ``(positions, channels)``."""
        seen, self.seen = self.seen, {}
        return seen

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _rows(module: nn.Module, output: Tensor) -> Tensor:
    """Channels last: those of convolutions are the second dimension."""
    if isinstance(module, CHANNELS_LAST):
        return output.reshape(-1, output.shape[-1])
    return output.movedim(1, -1).reshape(-1, output.shape[1])


def noise_energy(expected: Dict[str, List[Tensor]],
                 found: Dict[str, List[Tensor]]) -> Optional[float]:
    """Energy of the difference over that of the signal, the mean of layers.

    The signal is what differs from the mean of its channel: a large bias is
    none.

    Returns:
        float, optional: None where nothing differs from it, as the scores of
        a batch of one image.

    Raises:
        ValueError: The calls or shapes differ, so that there is nothing to
            compare.
    """
    ratios = []
    for name, outputs in expected.items():
        others = found.get(name, [])
        shapes = [[tuple(each.shape) for each in one]
                  for one in (outputs, others)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f'the outputs of {name} cannot be compared: shapes '
                f'{shapes[0]} and {shapes[1]}')
        signal, noise = (torch.zeros((), dtype=torch.float64)
                         for _ in range(2))
        for ours, theirs in zip(outputs, others):
            ours, theirs = to_float64(ours), to_float64(theirs)
            if ours.numel():
                signal += (ours - ours.mean(0)).square().sum().cpu()
                noise += (ours - theirs).square().sum().cpu()
        if signal > 0:
            ratios.append(float(noise / signal))
    return sum(ratios) / len(ratios) if ratios else None


def mean_noise(ratios: Iterable[Optional[float]]) -> Noise:
    """The mean over batches and its standard error.

    Args:
        ratios (iterable of float): What :func:`noise_energy` gave for each.

    Raises:
        ValueError: No batch has any noise to compare.
    """
    known = [each for each in ratios if each is not None]
    if not known:
        raise ValueError(
            'no output of the model varies within a batch, so there is '
            'nothing to compare; give a larger val_dataloader.batch_size')
    values = torch.tensor(known, dtype=torch.float64)
    error = float(values.std() / len(known)**.5) if len(known) > 1 \
        else float('nan')
    return Noise(float(values.mean()), error)
