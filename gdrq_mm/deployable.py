"""The documented import path of :mod:`gdrq_mm.openmmlab.deployable`."""
from .openmmlab.deployable import (
    DeployableClassifier,
    DeployableSegmentor,
    evaluate,
    first_images,
    load_model,
    make_deployable,
)

__all__ = ['DeployableClassifier', 'DeployableSegmentor', 'evaluate',
           'first_images', 'load_model', 'make_deployable']
