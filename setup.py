"""Adds configs and tools to the package; all else is in pyproject.toml."""
import os
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# mmengine and mim look for these in the ``.mim`` folder of a package.
MIM = ('configs', 'tools', 'model-index.yml')
# What needs the checkout is not installed.
NOT_INSTALLED = ('__pycache__', 'setup_env.py', 'cxx_precompiled.py',
                 'pythons.py', 'demo.py', 'demo_stages', 'model_zoo.py',
                 'zoo_page.py', 'publish_zoo.py', 'experiments',
                 'run_experiments.py', 'results_page.py')


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


setup(cmdclass=dict(build_py=BuildWithMim))
