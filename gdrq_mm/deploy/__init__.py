"""From a trained model to what is published and deployed."""
from .align import align_biases_
from .export import ExportReport, export_onnx
from .integer import IntegerModel, to_integer
from .merge import float_layers, merge, merged_layers
from .pack import pack

__all__ = ['ExportReport', 'IntegerModel', 'align_biases_', 'export_onnx',
           'float_layers', 'merge', 'merged_layers', 'pack', 'to_integer']
