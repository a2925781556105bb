"""Evaluate many times in one process."""
import itertools
import logging
import sys
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping

from mmengine.logging import MMLogger


def in_this_process(loader: dict) -> dict:
    """The config of a dataloader without processes of its own.

    Args:
        loader (dict): As of ``test_dataloader``.
    """
    for_workers = ('prefetch_factor', 'multiprocessing_context', 'timeout')
    kept = {key: value for key, value in loader.items()
            if key not in for_workers}
    return dict(kept, num_workers=0, persistent_workers=False)


class _Pool:
    """What mmdet uses of :class:`multiprocessing.Pool`, without processes."""

    def __init__(self, processes: int) -> None:
        pass

    def starmap(self, function: Callable, arguments: Iterable) -> List[Any]:
        return list(itertools.starmap(function, arguments))

    def close(self) -> None:
        pass


@contextmanager
def one_process() -> Iterator[None]:
    """mmdet's VOC metric computes in this process.

    It starts a pool of processes at each evaluation, closes it and never
    joins it. CPython ends such a pool when its last reference goes, at times
    in a thread of the pool, which then waits for itself: threads and
    processes stay for good, and after some hundred evaluations in one process
    the next one may hang.
    """
    module = sys.modules.get('mmdet.evaluation.functional.mean_ap')
    if module is None:
        yield
        return
    pool, module.Pool = module.Pool, _Pool
    try:
        yield
    finally:
        module.Pool = pool


@contextmanager
def quiet() -> Iterator[None]:
    """Evaluators print tables at every turn."""
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def scalars(metrics: Mapping[str, Any]) -> Dict[str, float]:
    """What is one number of an evaluator's metrics; some give a matrix, or
    one for each class."""
    return {name: float(value) for name, value in metrics.items()
            if isinstance(value, (int, float))
            or getattr(value, 'ndim', None) == 0}
