"""Merged model -> integer model: what integer kernels compute."""
from .align import align_biases_
from .integer import to_integer
from .model import IntegerModel

__all__ = ['IntegerModel', 'align_biases_', 'to_integer']
