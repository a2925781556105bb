"""The examples in docstrings compute what they say."""
import doctest
import importlib
import pkgutil
import re
from pathlib import Path

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


def test_descriptions_name_what_they_describe():
    """No "state: Of the model.", whose subject a reader has to find."""
    pattern = re.compile(r'^ +[`*\w]+(?: \(.*\))?: Of .*|.*"""Of .*', re.M)
    root = Path(__file__).parents[1]
    found = [f'{path.relative_to(root)}: {line.strip()}'
             for folder in ('gdrq_mm', 'tools', 'docs')
             for path in sorted((root / folder).rglob('*.py'))
             for line in pattern.findall(path.read_text())]
    assert found == []
