from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

setup(
    name='gdrq_mm',
    version='0.1.0',
    description='2- to 8-bit quantization-aware training for OpenMMLab models',
    packages=find_packages(include=['gdrq_mm', 'gdrq_mm.*']),
    python_requires='>=3.8',
    install_requires=['torch>=2.1', 'mmengine>=0.10'],
)
