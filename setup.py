from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = {}
exec((ROOT / 'gdrq_mm' / 'version.py').read_text(), VERSION)

# Not mmcv: which build (or mmcv-lite) fits depends on torch and CUDA.
MM = dict(
    det=['mmdet>=3.0'],
    seg=['mmsegmentation>=1.0', 'ftfy', 'regex'],
    cls=['mmpretrain>=1.0'])

setup(
    name='gdrq_mm',
    version=VERSION['__version__'],
    description='2- to 8-bit quantization-aware training for MMDetection, '
    'MMSegmentation and MMPretrain (GDRQ)',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    packages=find_packages(include=['gdrq_mm', 'gdrq_mm.*']),
    python_requires='>=3.8',
    # Whatever torch and mm packages an environment has stay as they are.
    install_requires=['torch>=2.1', 'mmengine>=0.10'],
    extras_require=dict(
        **MM,
        # onnx: qonnx 1.0.0 wants less than 1.23. torchvision: NMS, RoIAlign.
        deploy=['onnx>=1.20,<1.23', 'onnxruntime>=1.23', 'onnxscript>=0.5',
                'qonnx>=1.0', 'torchvision'],
        dev=['pytest', 'hypothesis', 'matplotlib', 'scikit-learn', 'scipy']))
