"""The rooms of the package: who may know whom, and how large they get."""
import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / 'gdrq_mm'
MODULES = sorted(path for path in PACKAGE.rglob('*.py')
                 if '.mim' not in path.parts)
TESTS = sorted(Path(__file__).parent.rglob('test_*.py'))
# Data flows this way: a room may import from those before it.
ORDER = ['version', 'errors', 'modes', 'writing', 'functional', 'clip_search',
         'kernels', 'quantizers', 'config', 'layers', 'plan', 'training',
         'checkpoint', 'convert', 'merge', 'integer', 'export', 'deploy',
         'analysis', 'openmmlab', 'deployable', 'cli', '__main__']
MM = ('mmengine', 'mmcv', 'mmdet', 'mmseg', 'mmpretrain')
# They import mm packages.
OUTSIDE = ('openmmlab', 'deployable', 'cli', '__main__')


def name_of(path):
    return '.'.join(path.relative_to(PACKAGE).with_suffix('').parts)


def room_of(path):
    return path.relative_to(PACKAGE).with_suffix('').parts[0]


def imports_of(path, top_level=False):
    """Absolute names that a module imports, gdrq_mm's without the first."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level else ast.walk(tree)
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ''
            if node.level:
                parts = path.relative_to(PACKAGE).parts[:-1]
                base = parts[:len(parts) - (node.level - 1)]
                module = '.'.join(['gdrq_mm', *base, *filter(None, [module])])
            for alias in node.names:
                yield module, alias.name


def rooms_of(path):
    for module, name in imports_of(path):
        if module == 'gdrq_mm' or module.startswith('gdrq_mm.'):
            yield (module.split('.') + [name])[1]


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_a_module_knows_only_rooms_before_its_own(path):
    own = room_of(path)
    if own == '__init__':
        return
    later = {room for room in rooms_of(path) if room in ORDER
             and ORDER.index(room) > ORDER.index(own)}
    assert not later


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_only_the_last_rooms_import_mm_packages(path):
    if room_of(path) not in OUTSIDE:
        assert not [module for module, _ in imports_of(path)
                    if module.split('.')[0] in MM]


def test_modules_import_each_other_in_no_circle():
    """Of what runs at the top of a module; a package is its __init__."""
    names = {'.'.join(['gdrq_mm', *filter(None, [
        name_of(path).removesuffix('__init__').rstrip('.')])]): path
        for path in MODULES}
    known = {name: {found for module, thing in imports_of(path, True)
                    for found in [f'{module}.{thing}' if
                                  f'{module}.{thing}' in names else module]
                    if found in names and found != name}
             for name, path in names.items()}
    assert known['gdrq_mm'] and 'gdrq_mm.plan' in known['gdrq_mm.convert']
    graphlib.TopologicalSorter(known).prepare()  # raises CycleError


def test_every_room_has_its_place():
    assert {room_of(path) for path in MODULES} - {'__init__'} <= set(ORDER)


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_modules_and_classes_stay_readable(path):
    source = path.read_text()
    assert len(source.splitlines()) <= 300
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            assert node.end_lineno - node.lineno < 200, node.name


@pytest.mark.parametrize('path', MODULES, ids=name_of)
def test_no_private_name_of_another_room_is_imported(path):
    own = room_of(path)
    for module, name in imports_of(path):
        if module.startswith('gdrq_mm.') and module.split('.')[1] != own:
            assert not (name or '').startswith('_') or name == '__version__'


def test_no_code_outside_the_room_names_a_quantizer_type():
    for path in MODULES:
        if room_of(path) in ('quantizers', '__init__'):
            continue
        tree = ast.parse(path.read_text())
        names = {node.id for node in ast.walk(tree)
                 if isinstance(node, ast.Name)}
        names |= {name for _, name in imports_of(path) if name}
        words = ('ScaleClip', 'LSQ', 'PACT', 'DoReFa', 'DirectQuantization')
        assert not [name for name in names for word in words
                    if name.startswith(word)], path


@pytest.mark.parametrize('path', TESTS, ids=lambda path: path.name)
def test_no_test_imports_a_conftest(path):
    """There are several, and which one `import conftest` finds depends on
    which files a worker has run before."""
    names = {module for module, _ in imports_of(path)}
    assert 'conftest' not in names


def test_test_files_have_names_of_their_own():
    # pytest imports them by these.
    names = [path.name for path in TESTS]
    assert len(set(names)) == len(names), [
        name for name in set(names) if names.count(name) > 1]
