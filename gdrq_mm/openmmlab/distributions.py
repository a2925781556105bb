"""What a training does to distributions: histograms and trouble."""
import logging
from contextlib import ExitStack
from typing import Dict, List

import numpy as np
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log

from ..analysis.drawing import new_figure
from ..analysis.layer_figures import (
    LATE,
    LIMIT,
    InputFigures,
    LayerFigures,
    Part,
    find_trouble,
    moving_thresholds,
    watch_inputs,
    weight_figures,
)
from ..training import QuantizationState


class DistributionHook(Hook):
    """Histograms for the visualizer, and what is wrong at the end.

    ``GDRQHook`` registers it. An iteration with histograms costs about two
    more forwards; all others cost nothing.

    Args:
        state (QuantizationState): State of the model.
        interval (int): Iterations between two histograms of each layer's
            weights and inputs; 0 for none. TensorBoard gets histograms, other
            backends of the visualizer get a picture.
    """

    priority = 'LOW'

    def __init__(self, state: QuantizationState, interval: int) -> None:
        self.interval = interval
        self.state = state
        self.layers = {name: layer for name, layer in state.layers.items()
                       if hasattr(layer, 'weight_quantizer')}
        self.watched = ExitStack()
        self.inputs: Dict[str, InputFigures] = {}
        self.late: Dict[str, float] = {}

    def _is_last(self, runner) -> bool:
        return runner.iter + 1 == runner.max_iters

    def _is_due(self, runner) -> bool:
        return is_main_process() and self.state.phase == 'quantize' and (
            self._is_last(runner)
            or self.interval and self.every_n_train_iters(
                runner, self.interval))

    def before_train_iter(self, runner, batch_idx: int,
                          data_batch=None) -> None:
        if runner.iter == int(LATE * runner.max_iters):
            self.late = self._thresholds()
        if self._is_due(runner):
            self.inputs = watch_inputs(self.layers, self.watched)

    def after_train_iter(self, runner, batch_idx: int, data_batch=None,
                         outputs=None) -> None:
        if not self._is_due(runner):
            return
        self.watched.close()
        try:
            self._tell(runner)
        except Exception as error:  # whatever a backend comes up with
            # The last iteration comes before the last checkpoint.
            print_log(
                f'GDRQHook: no figures of distributions: '
                f'{type(error).__name__}: {error}', 'current',
                logging.WARNING)

    def _tell(self, runner) -> None:
        figures = []
        for name, layer in self.layers.items():
            figures.append(weight_figures(name, layer))
            if name in self.inputs:
                figures[-1].activation = self.inputs[name].figures()
        if self.interval and self.every_n_train_iters(runner, self.interval):
            show(runner.visualizer, figures, runner.iter + 1)
        if self._is_last(runner):
            lines = find_trouble(figures)
            moving = moving_thresholds(self.late, self._thresholds())
            for line in [*lines, *([moving] if moving else [])]:
                print_log(f'GDRQHook: {line}', 'current', logging.WARNING)

    def _thresholds(self) -> Dict[str, float]:
        """The step of each activation quantizer that has one."""
        found = {}
        for name, quantizer in self.state.activation_quantizers.items():
            if quantizer.initialized:
                try:
                    found[name] = quantizer.code_range()[0]
                except ValueError:  # no integer codes
                    continue
        return found


def show(visualizer, figures: List[LayerFigures], step: int) -> None:
    """Hand histograms to every backend of a visualizer."""
    picture = None
    for backend in visualizer._vis_backends.values():
        writer = getattr(backend, 'experiment', None)
        if hasattr(writer, 'add_histogram_raw'):  # that of TensorBoard
            for each in figures:
                for word in ('weight', 'activation'):
                    part = getattr(each, word)
                    if part is not None:
                        writer.add_histogram_raw(
                            f'gdrq_{word}/{each.name}', global_step=step,
                            **raw_histogram(part))
        else:
            picture = draw(figures) if picture is None else picture
            backend.add_image('gdrq_distributions', picture, step)


def raw_histogram(part: Part) -> dict:
    """Arguments of TensorBoard's ``add_histogram_raw``; values in units of
    the largest level."""
    edges = np.linspace(part.lowest, LIMIT, len(part.counts) + 1)
    counts, middles = np.array(part.counts), (edges[1:] + edges[:-1]) / 2
    return dict(min=float(edges[0]), max=float(edges[-1]),
                num=int(counts.sum()), sum=float((counts * middles).sum()),
                sum_squares=float((counts * middles**2).sum()),
                bucket_limits=edges[1:].tolist(),
                bucket_counts=counts.tolist())


def draw(figures: List[LayerFigures]) -> np.ndarray:
    """A picture of all layers: weights left, inputs right; uint8, RGB."""
    image = new_figure(6, 1.1 * len(figures))
    axes = image.subplots(len(figures), 2, squeeze=False)
    for row, each in zip(axes, figures):
        for axis, word in zip(row, ('weight', 'activation')):
            part = getattr(each, word)
            axis.set_title(f'{each.name} {word}', fontsize=6)
            axis.tick_params(labelsize=5)
            if part is not None:
                edges = np.linspace(part.lowest, LIMIT, len(part.counts) + 1)
                axis.stairs(part.counts, edges, fill=True)
    image.canvas.draw()
    return np.asarray(image.canvas.buffer_rgba())[..., :3].copy()
