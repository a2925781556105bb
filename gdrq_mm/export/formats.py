"""What can be written: kinds of files, containers of weight codes."""
FORMATS = ('qdq', 'tensorrt', 'qonnx', 'finn')
QONNX_FORMATS = ('qonnx', 'finn')  # with Quant nodes of the true bits
CONTAINERS = dict(int8=8, int4=4, int2=2)  # of weight codes -> their bits
