"""Quantized models for mmengine's registry."""
from .mmcv_layers import register_mmcv_layers
from .quantized_model import QuantizedModel

register_mmcv_layers()

__all__ = ['QuantizedModel']
