"""From a trained model to what is deployed, in one place.

The rooms behind it: :mod:`.checkpoint` packs, :mod:`.merge` merges,
:mod:`.integer` computes with integers, :mod:`.export` writes files.
"""
from .checkpoint import pack, pack_bits, unpack_bits
from .export import ExportReport, export_onnx
from .integer import IntegerModel, align_biases_, to_integer
from .merge import float_layers, merge, merged_layers

__all__ = ['ExportReport', 'IntegerModel', 'align_biases_', 'export_onnx',
           'float_layers', 'merge', 'merged_layers', 'pack', 'pack_bits',
           'to_integer', 'unpack_bits']
