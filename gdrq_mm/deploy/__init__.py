"""From a trained model to what is published and deployed."""
from ..packing import pack_weights, unpack_weights
from .pack import pack

__all__ = ['pack', 'pack_weights', 'unpack_weights']
