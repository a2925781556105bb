"""How uniform the weights of a layer are, in figures and in a plot.

Every group is divided by its own threshold ``T = 2 * mean|G|`` first: a layer
whose groups are uniform on ``[-T, T]`` is then uniform on [-1, 1] as a whole.
"""
from typing import Dict, Tuple

import torch
from torch import Tensor

from .. import functional as F
from .drawing import Target, new_figure, save_figure

# Uniform data on [-T, T] have mean|x| = T / 2.
UNIFORM_K = 2.


def normalize_groups(weight: Tensor, group_size: int = -1) -> Tensor:
    """Divide every group by its threshold ``T = 2 * mean|G|``.

    Args:
        weight (Tensor): Shape ``(num_filters, ...)``, any float dtype.
        group_size (int): Filters per group, -1 for all. Defaults to -1.

    Returns:
        Tensor: Float64, shape of ``weight``; 0 in a group of zeros.

    Examples:
        >>> normalize_groups(torch.tensor([[1., -3.], [0., 0.]]), 1)
        tensor([[ 0.2500, -0.7500],
                [ 0.0000,  0.0000]], dtype=torch.float64)
    """
    weight = F.to_float64(weight.detach())
    clip = F.clip_threshold(weight, UNIFORM_K, group_size)
    clip = F.expand_clip(clip, weight, group_size)
    return weight / torch.where(clip > 0, clip, 1.)


def ks_to_uniform(weight: Tensor, group_size: int = -1) -> float:
    """Kolmogorov-Smirnov distance of a layer's weights to uniform ones.

    The largest difference between the distribution function of the
    normalized weights (see :func:`normalize_groups`) and that of the uniform
    distribution on [-1, 1]. A Gaussian has about 0.06, weights trained with
    ``k = 2`` about 0.01.

    Args:
        weight (Tensor): Shape ``(num_filters, ...)``, any float dtype.
        group_size (int): Filters per group, -1 for all. Defaults to -1.

    Returns:
        float: In [0, 1]; 0 is uniform.

    Raises:
        ValueError: The weight is empty or not finite.
    """
    _check(weight)
    values = normalize_groups(weight, group_size).flatten().sort().values
    expected = ((values + 1) / 2).clamp(0, 1)
    steps = torch.arange(values.numel() + 1, dtype=values.dtype,
                         device=values.device) / values.numel()
    return float(torch.maximum((expected - steps[:-1]).max(),
                               (steps[1:] - expected).max()))


def weight_histogram(weight: Tensor,
                     group_size: int = -1,
                     bins: int = 50,
                     limit: float = 2.) -> Tuple[Tensor, Tensor]:
    """Density of the normalized weights of a layer.

    Args:
        weight (Tensor): Shape ``(num_filters, ...)``, any float dtype.
        group_size (int): Filters per group, -1 for all. Defaults to -1.
        bins (int): Defaults to 50.
        limit (float): The histogram covers ``[-limit, limit]`` in units of
            ``T``; weights outside count in the total only. Defaults to 2.

    Returns:
        tuple[Tensor, Tensor]: Density, shape ``(bins, )``, float64 on the
        CPU, and the edges of the bins, shape ``(bins + 1, )``. Uniform
        weights have density 0.5 between -1 and 1.

    Raises:
        ValueError: The weight is empty or not finite.
    """
    _check(weight)
    values = normalize_groups(weight, group_size).flatten().cpu()
    counts, edges = torch.histogram(values, bins, range=(-limit, limit))
    return counts / values.numel() / (2 * limit / bins), edges


def plot_weight_distributions(columns: Dict[str, Dict[str, Tensor]],
                              group_sizes: Dict[str, int],
                              path: Target,
                              title: str = '') -> None:
    """Draw histograms: one row per layer, one column per state of the model.

    Args:
        columns (dict[str, dict[str, Tensor]]): Title of a column, for example
            'float' -> name of a layer -> weight. All with the same layers.
        group_sizes (dict[str, int]): Group size of every layer.
        path (str or os.PathLike): Image to write, the suffix says how.
        title (str): Above all. Defaults to ''.
    """
    layers = list(group_sizes)
    figure = new_figure(3 * len(columns), 1.9 * len(layers) + .9)
    axes = figure.subplots(len(layers), len(columns), squeeze=False,
                           sharex=True, sharey='row')
    for column, (name, weights) in enumerate(columns.items()):
        axes[0, column].set_title(name)
        axes[-1, column].set_xlabel('w / T, T = 2 mean|group|')
        for row, layer in enumerate(layers):
            axis, size = axes[row, column], group_sizes[layer]
            density, edges = weight_histogram(weights[layer], size)
            axis.stairs(density.numpy(), edges.numpy(), fill=True,
                        color='tab:blue')
            axis.plot([-1, -1, 1, 1], [0, .5, .5, 0], 'k--', linewidth=1)
            distance = ks_to_uniform(weights[layer], size)
            axis.text(.98, .93, f'KS {distance:.3f}', transform=axis.transAxes,
                      ha='right', va='top', fontsize='small')
            if column == 0:
                axis.set_ylabel(layer, fontsize='small')
    figure.suptitle(title)
    save_figure(figure, path)


def _check(weight: Tensor) -> None:
    if weight.numel() == 0:
        raise ValueError(f'the weight is empty, shape {tuple(weight.shape)}; '
                         'only layers with weights have a distribution')
    if not torch.isfinite(weight).all():
        raise ValueError('the weight has NaN or infinite values; the '
                         'checkpoint or the training before it is broken')
