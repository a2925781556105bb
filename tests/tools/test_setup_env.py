"""The set-up script: its one-sentence errors, and nothing done twice."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / 'tools' / 'setup_env.py'
WRAPPER = SCRIPT.with_name('cxx_precompiled.py')


@pytest.fixture
def setup_env():
    spec = importlib.util.spec_from_file_location('setup_env', SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(*args, **env):
    return subprocess.run(
        [sys.executable, str(SCRIPT), *args], capture_output=True, text=True,
        env={**os.environ, **env})


def test_every_pin_names_one_exact_version(setup_env):
    pins = setup_env.read_pins()
    assert {'torch', 'mmengine', 'mmcv', 'mmdet', 'mmsegmentation',
            'mmpretrain', setup_env.ALONE, *setup_env.BUILD_TOOLS} <= set(pins)
    assert all(pin.count('==') == 1 for pin in pins.values())


def test_the_forks_differ_in_the_mm_packages_alone(setup_env):
    ours = setup_env.read_pins()
    forks = setup_env.read_pins(setup_env.PINS.with_name('forks.txt'))
    assert all(pin.count('==') == 1 for pin in forks.values())
    assert set(ours) - set(forks) == {
        'mmengine', 'mmcv', 'mmdet', 'mmsegmentation', 'mmpretrain'}
    assert all(name.startswith('onedl-') for name in set(forks) - set(ours))
    assert all(ours[name] == forks[name] for name in set(ours) & set(forks))


def test_the_pins_are_what_is_installed(setup_env):
    from importlib.metadata import distributions, version
    forks = any(distributions(name='onedl-mmengine'))
    pins = setup_env.read_pins(
        ROOT / 'requirements' / 'forks.txt') if forks else \
        setup_env.read_pins()
    for name, pin in pins.items():
        assert version(name).split('+')[0] == pin.split('==')[1]


def test_a_missing_compiler_is_one_clear_sentence(tmp_path):
    result = run('--venv', str(tmp_path / 'venv'), CXX='no-such-compiler')
    assert result.returncode != 0
    assert result.stderr.startswith('setup: no C++ compiler found')
    assert 'Traceback' not in result.stderr
    assert not (tmp_path / 'venv').exists()


def test_too_little_disk_is_one_clear_sentence(setup_env, tmp_path,
                                               monkeypatch):
    monkeypatch.setattr(setup_env, 'NEEDED_GB', 10**9)
    with pytest.raises(SystemExit, match='GB free, the environment needs'):
        setup_env.check_machine(tmp_path / 'venv')


def test_another_python_is_one_clear_sentence(setup_env, tmp_path,
                                              monkeypatch):
    monkeypatch.setattr(setup_env.sys, 'version_info', (3, 8, 1))
    with pytest.raises(SystemExit, match='tested with Python 3.11'):
        setup_env.check_machine(tmp_path / 'venv')


def test_no_network_is_a_clear_sentence(setup_env):
    with pytest.raises(SystemExit, match='check the network'):
        setup_env.pip(sys.executable, 'download', '-q', '--no-deps',
                      '--index-url', 'http://127.0.0.1:9/', '--retries', '0',
                      'no-such-package')


def test_a_finished_set_up_is_not_repeated(setup_env, tmp_path):
    stamp = tmp_path / 'gdrq_mm.stamp'
    stamp.write_text(setup_env.stamp_of(setup_env.PINS))
    result = run('--venv', str(tmp_path))
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')
    assert list(tmp_path.iterdir()) == [stamp]
    # The same of other sources is not finished.
    stamp.write_text('other')
    result = run('--venv', str(tmp_path), CXX='no-such-compiler')
    assert result.stderr.startswith('setup: no C++ compiler found')


def test_a_cached_mmcv_wheel_is_used(setup_env, tmp_path):
    wheel = tmp_path / 'mmcv-2.1.0-cp311-cp311-linux_x86_64.whl'
    wheel.touch()
    found = setup_env.build_mmcv(sys.executable, 'mmcv==2.1.0', tmp_path)
    assert found == wheel


def test_the_cxx_standard_is_that_of_the_torch_at_hand(setup_env):
    import torch
    newest = tuple(map(int, torch.__version__.split('.')[:2])) >= (2, 14)
    assert setup_env.cxx_standard(sys.executable) == (20 if newest else 17)


def test_an_environment_without_pip_is_not_taken_for_a_finished_one(
        setup_env, tmp_path):
    import venv
    venv.create(tmp_path / 'venv', with_pip=False)
    assert not setup_env.has_pip(tmp_path / 'venv' / 'bin' / 'python')
    assert not setup_env.has_pip(tmp_path / 'none' / 'bin' / 'python')
    assert setup_env.has_pip(Path(sys.executable))


def compile_(tmp_path, compiler, name):
    """Assembly of a small file, compiled in the order of torch's builder."""
    source, out = tmp_path / f'{name}.cpp', tmp_path / f'{name}.o'
    source.write_text('#include <torch/types.h>\n'
                      'int run(int x) { return twice(x) + FOUR; }\n')
    done = subprocess.run(
        [str(compiler), '-MMD', '-MF', f'{out}.d', '-DFOUR=4', '-fPIC', '-c',
         f'-I{tmp_path}', '-g0', str(source), '-o', str(out)],
        capture_output=True, text=True,
        env={**os.environ, 'REAL_CXX': 'c++', 'PRECOMPILED': str(tmp_path)})
    assert done.returncode == 0, done.stderr
    return subprocess.run(
        ['objdump', '-d', str(out)], capture_output=True, text=True,
        check=True).stdout.split('Disassembly')[1]


def test_torchs_headers_are_read_once(tmp_path):
    """Two files, one precompiled header; what they compile to is what they
    compile to without it."""
    (tmp_path / 'torch').mkdir()
    header = tmp_path / 'torch' / 'types.h'
    header.write_text(
        '#pragma once\ninline int twice(int x) { return 2 * x; }\n')
    plain = compile_(tmp_path, 'c++', 'plain')
    assert compile_(tmp_path, WRAPPER, 'first') == plain
    assert (tmp_path / 'precompiled.hpp.gch').exists()
    header.write_text('#pragma once\n')  # not read again
    assert compile_(tmp_path, WRAPPER, 'second') == plain


def test_what_does_not_precompile_is_compiled_as_ever(tmp_path):
    """A header that is wrong on its own, tried once."""
    (tmp_path / 'torch').mkdir()
    (tmp_path / 'torch' / 'types.h').write_text(
        '#ifdef MAIN\ninline int twice(int x) { return 2 * x; }\n'
        '#else\n#error no MAIN\n#endif\n')
    real = tmp_path / 'cxx'
    real.write_text('#!/bin/sh\necho "$@" >> ' + str(tmp_path / 'calls') +
                    '\ncase "$*" in *c++-header*) exec c++ "$@";; esac\n'
                    'exec c++ -DMAIN "$@"\n')
    real.chmod(0o755)
    for name in 'ab':
        source = tmp_path / f'{name}.cpp'
        source.write_text('#include <torch/types.h>\n'
                          'int run(int x) { return twice(x); }\n')
        subprocess.run(
            [str(WRAPPER), '-c', f'-I{tmp_path}', str(source), '-o',
             str(tmp_path / f'{name}.o')], check=True,
            stderr=subprocess.DEVNULL,
            env={**os.environ, 'REAL_CXX': str(real),
                 'PRECOMPILED': str(tmp_path)})
        assert (tmp_path / f'{name}.o').exists()
    calls = (tmp_path / 'calls').read_text().splitlines()
    assert sum('c++-header' in call for call in calls) == 1
    assert len(calls) == 3


def test_a_build_that_fails_is_tried_without_the_precompiled_header(
        setup_env, tmp_path, capsys):
    build = ['bash', '-c', 'test -z "$PRECOMPILED"']
    env = dict(os.environ)
    with_header = setup_env.precompiled(env, tmp_path)
    assert (with_header['CXX'], with_header['REAL_CXX']) == (
        str(WRAPPER), env.get('CXX', 'c++'))
    setup_env.run_build(build, tmp_path, with_header, env)
    assert 'trying without one' in capsys.readouterr().out
    with pytest.raises(SystemExit, match='building mmcv failed'):
        setup_env.run_build(['false'], tmp_path, with_header, env)
