"""What can be written: kinds of files, containers of weight codes."""
FORMATS = ('qdq', 'tensorrt', 'qonnx')
CONTAINERS = dict(int8=8, int4=4, int2=2)  # of weight codes -> their bits
