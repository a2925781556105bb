"""The examples in docstrings compute what they say."""
import doctest
import importlib
import pkgutil

import pytest

import gdrq_mm

MODULES = sorted(module.name for module in pkgutil.walk_packages(
    gdrq_mm.__path__, 'gdrq_mm.'))


@pytest.mark.parametrize('name', MODULES)
def test_examples_hold(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # some write files
    module = importlib.import_module(name)
    assert doctest.testmod(module).failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    examples = sum(len(test.examples) for name in MODULES for test in
                   finder.find(importlib.import_module(name)))
    assert examples > 20
