"""Merged and integer models -> ONNX files."""
from .export import ExportReport, export_onnx
from .formats import CONTAINERS, FORMATS

__all__ = ['CONTAINERS', 'ExportReport', 'FORMATS', 'export_onnx']
