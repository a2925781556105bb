#!/usr/bin/env python3
"""Create the tested environment in ``.venv``; safe to repeat.

Installs the versions of ``requirements/environment.txt``, builds mmcv with its
ops (once: the wheel is cached outside the checkout) and installs this project
in editable mode. Needs Python 3.11 and nothing but its standard library, a
C++ compiler and a package index that pip can reach.

Usage: python3 tools/setup_env.py [--venv DIR] [--pins FILE]
"""
import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / 'requirements' / 'environment.txt'
# The virtual environment takes about 6.5 GB (torch's wheel brings CUDA
# libraries), building mmcv about 1 GB more.
NEEDED_GB = 9
# Installed before the rest: they are what builds mmcv.
BUILD_TOOLS = ('setuptools', 'wheel', 'ninja', 'psutil', 'torch',
               'torchvision', 'numpy', 'opencv-python')
# Installed alone: it pins older versions of what it needs, and the steps that
# are tested run with these.
ALONE = 'finn-plus'


def fail(message):
    sys.exit(f'setup: {message}')


def read_pins(path=PINS):
    """dict: requirement name -> ``name==version``."""
    lines = (line.split('#')[0].strip() for line in
             path.read_text().splitlines())
    return {line.split('==')[0]: line for line in lines if line}


def pip(python, *args):
    command = [str(python), '-m', 'pip', '--disable-pip-version-check', *args]
    if subprocess.run(command, stdin=subprocess.DEVNULL).returncode:
        fail(f'"pip {" ".join(args)}" failed (its message is above). If it '
             'found no matching version or could not connect, check the '
             'network and the package index that pip is set up with; then '
             'run this again: finished steps are kept.')


def check_machine(venv_dir):
    if sys.version_info[:2] != (3, 11):
        fail('the pinned environment is tested with Python 3.11, this is '
             f'{sys.version.split()[0]}; run "make PYTHON=python3.11 setup".')
    if shutil.which(shlex.split(os.environ.get('CXX', 'c++'))[0]) is None:
        fail('no C++ compiler found, and mmcv must be built with its ops; '
             'install one (Debian/Ubuntu: apt-get install g++) or set CXX.')
    if not venv_dir.exists():
        free_gb = shutil.disk_usage(venv_dir.parent).free / 1e9
        if free_gb < NEEDED_GB:
            fail(f'{venv_dir.parent} has {free_gb:.1f} GB free, the '
                 f'environment needs {NEEDED_GB} GB.')


def has_pip(python):
    return python.exists() and subprocess.run(
        [str(python), '-m', 'pip', '--version'],
        capture_output=True).returncode == 0


def cxx_standard(python):
    """The C++ standard that the installed torch's headers ask for.

    mmcv 2.1.0 fixes C++17, but torch >= 2.14 needs C++20; torch's own
    extension builder names the right one.
    """
    code = ('import inspect, torch.utils.cpp_extension as e; '
            'print(inspect.getsource(e))')
    source = subprocess.run([str(python), '-c', code], check=True,
                            capture_output=True, text=True).stdout
    return max(int(found) for found in re.findall(r'-std=c\+\+(\d+)', source))


def build_mmcv(python, pin, cache, cuda=False):
    """Build the mmcv wheel from its source distribution into ``cache``.

    Args:
        python (Path): Interpreter of the environment, with torch in it.
        pin (str): ``mmcv==version``, or that of a fork.
        cache (Path): Folder of this build's wheel.
        cuda (bool): Build the ops for the GPU, too. Defaults to False.

    Returns:
        Path: the wheel; taken from the cache where it is there already.
    """
    found = sorted(cache.glob('*mmcv-*.whl'))
    if found:
        print(f'setup: mmcv wheel from the cache: {found[0]}')
        return found[0]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix='mmcv-build-') as folder:
        folder = Path(folder)
        pip(python, 'download', '-q', '--no-deps', '--no-binary', ':all:',
            '--no-build-isolation', '-d', str(folder), pin)
        with tarfile.open(next(folder.glob('*mmcv-*.tar.gz'))) as archive:
            archive.extractall(folder, filter='data')
        source = next(path for path in folder.glob('*mmcv-*') if path.is_dir())
        setup = source / 'setup.py'
        setup.write_text(setup.read_text().replace(
            '-std=c++17', f'-std=c++{cxx_standard(python)}'))
        jobs = os.environ.get('MAX_JOBS', str(os.cpu_count()))
        env = dict(os.environ, MMCV_WITH_OPS='1', MAX_JOBS=jobs,
                   CFLAGS=os.environ.get('CFLAGS', '-O3 -DNDEBUG') + ' -g0')
        print(f'setup: building {pin} with its ops, {jobs} jobs; about '
              f'{30 if cuda else 10} CPU minutes')
        command = [str(python), 'setup.py', 'build']
        if cuda:
            run_build(command, source, env)
        else:  # mmcv would want nvcc as soon as torch sees a GPU
            env['CUDA_VISIBLE_DEVICES'] = ''
            run_build(command, source, precompiled(env, folder), env)
        for library in source.glob('build/lib*/mmcv/_ext*.so'):
            if shutil.which('strip'):
                subprocess.run(['strip', str(library)], check=True)
        subprocess.run([str(python), 'setup.py', '-q', 'bdist_wheel',
                        '--skip-build', '-d', str(folder)],
                       cwd=source, env=env, check=True,
                       stdout=subprocess.DEVNULL)
        wheel = next(folder.glob('*.whl'))
        # Copied beside its place, then renamed: never half a wheel there.
        partial = cache / (wheel.name + f'.{os.getpid()}.part')
        shutil.copy(wheel, partial)
        partial.rename(cache / wheel.name)
    return cache / wheel.name


def precompiled(env, folder):
    """The environment ``env`` with a compiler that reads torch's headers once.

    Its files are kept in ``folder``.
    """
    return dict(env, PRECOMPILED=str(folder),
                REAL_CXX=env.get('CXX', 'c++'),
                CXX=str(Path(__file__).with_name('cxx_precompiled.py')))


def run_build(command, folder, *envs):
    """Run a ninja build, and show one short line a finished file.

    Args:
        command (list[str]): The build.
        folder (Path): Where it runs.
        *envs (dict): Environments to try in turn until it succeeds.
    """
    for env in envs:
        tail = show_build(command, folder, env)
        if tail is None:
            return
        sys.stdout.writelines(tail)
        if env is not envs[-1]:
            print('setup: building mmcv failed with a precompiled header; '
                  'trying without one', flush=True)
    fail('building mmcv failed; the end of its output is above.')


def show_build(command, folder, env):
    """Run it once; the end of its output (list[str]) where it fails."""
    start, tail = time.time(), []
    process = subprocess.Popen(command, cwd=folder, env=env, text=True,
                               stdout=subprocess.PIPE,
                               stderr=subprocess.STDOUT)
    for line in process.stdout:
        tail = [*tail[-60:], line]
        step = re.match(r'\[(\d+)/(\d+)\].*?([\w.]+)\.o\b', line)
        if step:
            done, total = int(step[1]), int(step[2])
            spent = time.time() - start
            left = spent / done * (total - done)
            print(f'setup: mmcv [{done}/{total}] {step[3]}  '
                  f'{spent / 60:.1f} min, about {left / 60:.0f} min left',
                  flush=True)
    return tail if process.wait() else None


def stamp_of(pins):
    """What a finished environment is marked with: all that it comes from."""
    sources = hashlib.sha256(b''.join(path.read_bytes() for path in (
        pins, ROOT / 'pyproject.toml', ROOT / 'setup.py', Path(__file__))))
    return f'{sources.hexdigest()} {ROOT}'


def main():
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('--venv', type=Path, default=ROOT / '.venv')
    parser.add_argument('--pins', type=Path, default=PINS,
                        help='file with the versions')
    args = parser.parse_args()
    venv_dir = args.venv.resolve()
    stamp = venv_dir / 'gdrq_mm.stamp'
    wanted = stamp_of(args.pins)
    if stamp.exists() and stamp.read_text() == wanted:
        return
    check_machine(venv_dir)
    python = venv_dir / 'bin' / 'python'
    if not has_pip(python):  # none yet, or one that was interrupted
        print(f'setup: creating {venv_dir}', flush=True)
        try:
            venv.create(venv_dir, clear=True, with_pip=True)
        except subprocess.CalledProcessError:
            fail('this Python cannot make virtual environments with pip; '
                 'install its venv package (Debian/Ubuntu: apt-get install '
                 'python3-venv)')
    pins = read_pins(args.pins)
    ops = next(name for name in pins if name.endswith('mmcv'))
    pip(python, 'install', *(pins[name] for name in BUILD_TOOLS))
    torch, gpu = subprocess.run(
        [str(python), '-c', 'import torch; '
         'print(torch.__version__, torch.cuda.is_available())'],
        check=True, capture_output=True, text=True).stdout.split()
    cuda = gpu == 'True' and shutil.which('nvcc') is not None
    cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
    mmcv = build_mmcv(python, pins[ops], cache / 'gdrq_mm' / (
        f'py{sys.version_info[0]}{sys.version_info[1]}-torch{torch}-'
        f'{pins[ops].replace("==", "")}' + ('-cuda' if cuda else '')),
        cuda)
    alone = pins.pop(ALONE)
    pip(python, 'install', *(str(mmcv) if name == ops else pin
                             for name, pin in pins.items()))
    pip(python, 'install', '--no-deps', alone)
    if subprocess.run([str(python), '-c', 'import cv2'],
                      capture_output=True).returncode:
        # opencv-python wants libGL, which a server without a screen lacks.
        print('setup: no libGL here, taking the headless OpenCV')
        pip(python, 'install', '--no-deps', '--force-reinstall',
            pins['opencv-python'].replace('python', 'python-headless'))
    pip(python, 'install', '-q', '--no-build-isolation', '--no-deps',
        '-e', str(ROOT))
    stamp.write_text(wanted)
    print(f'setup: done, {venv_dir}')


if __name__ == '__main__':
    main()
