"""The parts of ``tools/export_onnx.py``."""
