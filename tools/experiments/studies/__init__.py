"""Every training experiment: its models, its table, what it is to show.

Classification is on the stand-in "signs" (100 classes, 32x32). Chains of
trainings are as long for a model as for the float model that it is compared
with: start -> float -> quantized against start -> float -> float, or start ->
quantized against start -> float.
"""
# In the order of the results page.
from . import (  # noqa: F401, I001, I100
    real, real_changes, detectors, weights, choices, architectures, tasks)
from .common import CELLS, FAMILIES, STUDIES

__all__ = ['CELLS', 'FAMILIES', 'STUDIES']
