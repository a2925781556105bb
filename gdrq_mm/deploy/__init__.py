"""From a trained model to what is published and deployed."""
from .pack import pack

__all__ = ['pack']
