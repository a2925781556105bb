"""The set-up script: its one-sentence errors, and nothing done twice."""
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / 'tools' / 'setup_env.py'


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
            'mmpretrain', *setup_env.BUILD_TOOLS} <= set(pins)
    assert all(pin.count('==') == 1 for pin in pins.values())


def test_the_pins_are_what_is_installed(setup_env):
    from importlib.metadata import version
    for name, pin in setup_env.read_pins().items():
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


def test_a_finished_set_up_is_not_repeated():
    result = run()
    assert (result.returncode, result.stdout, result.stderr) == (0, '', '')


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
