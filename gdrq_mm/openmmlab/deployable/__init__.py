"""OpenMMLab models as plain functions of images, to export and to test."""
from .evaluation import evaluate, first_images, load_model
from .models import DeployableClassifier, DeployableSegmentor, make_deployable

__all__ = ['DeployableClassifier', 'DeployableSegmentor', 'evaluate',
           'first_images', 'load_model', 'make_deployable']
