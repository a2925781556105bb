"""What can be written: kinds of files, containers of weight codes."""
FORMATS = ('qdq', 'tensorrt', 'qonnx', 'finn', 'hls4ml')
# With Quant nodes of the true bits.
QONNX_FORMATS = ('qonnx', 'finn', 'hls4ml')
OPSET = 18  # that files are made in
LATER = dict(DeformConv=19)  # operators that came later -> their opset
LEAST_OPSET, GREATEST_OPSET = 13, 23  # quantized by channel; ONNX Runtime
CONTAINERS = dict(int8=8, int4=4, int2=2)  # of weight codes -> their bits
