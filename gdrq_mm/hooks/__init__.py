"""Hooks for mmengine's runner."""
from .gdrq_hook import GDRQHook

__all__ = ['GDRQHook']
