"""Where the checkout is, and which versions give a result."""
import os
import platform
import runpy
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as package_version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ('torch', 'torchvision', 'mmengine', 'mmcv', 'mmdet',
            'mmsegmentation', 'mmpretrain', 'numpy')


def gdrq_mm_version():
    """The version of the checkout or the wheel, without importing torch."""
    paths = (folder / 'version.py' for folder in (ROOT / 'gdrq_mm',
                                                  ROOT.parent))
    return runpy.run_path(str(next(path for path in paths if path.exists())))[
        '__version__']


def versions():
    """dict[str, str or None]: Package -> version, None where it lacks."""
    found = dict(python=platform.python_version(),
                 gdrq_mm=gdrq_mm_version())
    for package in PACKAGES:
        try:
            found[package] = package_version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def shown(path):
    """Short where it lies in the checkout: commands are to be read."""
    path = Path(path).resolve()
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def cores():
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(
        os, 'sched_getaffinity') else os.cpu_count() or 1
