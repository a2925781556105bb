"""Figures of matplotlib, without a display."""
from pathlib import Path
from typing import Union

from ..writing import write_whole

Target = Union[str, Path]


def new_figure(width: float, height: float):
    """An empty figure.

    Args:
        width (float): In inches.
        height (float): In inches.

    Raises:
        ImportError: matplotlib is missing.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('matplotlib is missing: pip install '
                          '"gdrq_mm[analysis]"') from error
    figure = Figure(figsize=(width, height), layout='constrained')
    FigureCanvasAgg(figure)
    return figure


def check_image(path: Target) -> None:
    """Whether an image can be written under that name, before it is drawn.

    Raises:
        ValueError: Its suffix is no kind of image.
        ImportError: matplotlib is missing.
    """
    kinds = new_figure(1, 1).canvas.get_supported_filetypes()
    if Path(path).suffix[1:] not in kinds:
        raise ValueError(f'{path} has no suffix of an image, allowed: '
                         f'{", ".join(sorted(kinds))}; give a name such as '
                         f'{Path(path).with_suffix(".png").name}')


def save_figure(figure, path: Target) -> None:
    """Write an image, whole or not at all; its suffix says of which kind."""
    with write_whole(path, overwrite=True) as part:
        figure.savefig(part, dpi=110, format=Path(path).suffix[1:])
