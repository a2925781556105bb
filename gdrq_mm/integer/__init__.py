"""Merged model -> integer model: what integer kernels compute."""
from .align import align_biases_
from .integer import IntegerModel, to_integer

__all__ = ['IntegerModel', 'align_biases_', 'to_integer']
