"""From a trained model to what is published and deployed."""
from .merge import float_layers, merge, merged_layers
from .pack import pack

__all__ = ['float_layers', 'merge', 'merged_layers', 'pack']
