"""OpenMMLab models as plain functions of images, to export and to test."""
from .evaluation import evaluate, load_model
from .images import default_size, first_images, pad_image
from .models import DeployableClassifier, DeployableSegmentor, make_deployable

__all__ = ['DeployableClassifier', 'DeployableSegmentor', 'default_size',
           'evaluate', 'first_images', 'load_model', 'make_deployable',
           'pad_image']
