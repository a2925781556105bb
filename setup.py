import os
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
VERSION = {}
exec((ROOT / 'gdrq_mm' / 'version.py').read_text(), VERSION)

# Not mmcv: which build (or mmcv-lite) fits depends on torch and CUDA.
MM = dict(
    det=['mmdet>=3.0'],
    seg=['mmsegmentation>=1.0', 'ftfy', 'regex'],
    cls=['mmpretrain>=1.0'])

# mmengine and mim look for these in the ``.mim`` folder of a package.
MIM = ('configs', 'tools', 'model-index.yml')
# What needs the checkout is not installed.
NOT_INSTALLED = ('__pycache__', 'setup_env.py', 'demo.py', 'demo_stages',
                 'model_zoo.py', 'experiments', 'run_experiments.py',
                 'results_page.py')


class BuildWithMim(build_py):
    """Add configs and tools to what is built: copied, or linked where the
    checkout itself is installed (editable)."""

    def run(self):
        super().run()
        if getattr(self, 'editable_mode', False):
            self._link(ROOT / 'gdrq_mm' / '.mim')
        else:
            self._copy(Path(self.build_lib) / 'gdrq_mm' / '.mim')

    def _copy(self, mim):
        shutil.rmtree(mim, ignore_errors=True)  # of an earlier build
        mim.mkdir(parents=True)
        for name in MIM:
            if (ROOT / name).is_dir():
                shutil.copytree(
                    ROOT / name, mim / name,
                    ignore=shutil.ignore_patterns(*NOT_INSTALLED))
            else:
                shutil.copy(ROOT / name, mim / name)

    def _link(self, mim):
        mim.mkdir(exist_ok=True)
        for name in MIM:
            if not (mim / name).is_symlink():
                os.symlink(Path('..', '..', name), mim / name)


setup(
    name='gdrq_mm',
    version=VERSION['__version__'],
    description='2- to 8-bit quantization-aware training for MMDetection, '
    'MMSegmentation and MMPretrain (GDRQ)',
    long_description=(ROOT / 'README.md').read_text(),
    long_description_content_type='text/markdown',
    packages=find_packages(include=['gdrq_mm', 'gdrq_mm.*']),
    package_data={'gdrq_mm.kernels': ['*.c']},
    cmdclass=dict(build_py=BuildWithMim),
    python_requires='>=3.8',
    # Whatever torch and mm packages an environment has stay as they are.
    install_requires=['torch>=2.1', 'mmengine>=0.10'],
    extras_require=dict(
        **MM,
        # onnx: qonnx 1.0.0 wants less than 1.23. torchvision: NMS, RoIAlign.
        deploy=['onnx>=1.20,<1.23', 'onnxruntime>=1.23', 'onnxscript>=0.5',
                'qonnx>=1.0', 'torchvision'],
        dev=['pytest', 'pytest-xdist', 'hypothesis', 'matplotlib',
             'model-index', 'ruff', 'scikit-learn', 'scipy']))
