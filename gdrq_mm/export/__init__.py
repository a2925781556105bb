"""Merged and integer models -> ONNX files."""
from .export import ExportReport, export_onnx
from .formats import CONTAINERS, FORMATS, OPSET, QONNX_FORMATS

__all__ = ['CONTAINERS', 'ExportReport', 'FORMATS', 'OPSET',
           'QONNX_FORMATS', 'export_onnx']
