"""Quantized models for mmengine's registry."""
from .quantized_model import QuantizedModel

__all__ = ['QuantizedModel']
