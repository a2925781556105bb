"""Merged and integer models -> ONNX files."""
from .export import ExportReport, export_onnx
from .formats import CONTAINERS, FORMATS, QONNX_FORMATS

__all__ = ['CONTAINERS', 'ExportReport', 'FORMATS', 'QONNX_FORMATS',
           'export_onnx']
