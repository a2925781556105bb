"""``gdrq VERB`` is the tool of that verb, from any folder."""
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from mmengine.config import config as mmengine_config
from mmengine.utils import is_installed, package_utils

from gdrq_mm import cli

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / 'configs/resnet/resnet18-small_gdrq-w2a4_demo-imagenet.py'


@pytest.fixture
def gdrq(monkeypatch, capsys, tmp_path):
    """Function *arguments -> exit code, stdout, stderr, in another folder."""

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, 'argv', ['gdrq', *map(str, arguments)])
        monkeypatch.setattr(sys, 'path', list(sys.path))
        try:
            cli.main()
            code = 0
        except SystemExit as stopped:
            code = stopped.code or 0
        if isinstance(code, str):  # as Python does at the end of a process
            sys.stderr.write(f'{code}\n')
            code = 1
        return code, *capsys.readouterr()

    return run


def test_help_lists_every_verb_with_examples(gdrq):
    code, out, err = gdrq('--help')
    assert code == 0 and err == ''
    for name, verb in cli.VERBS.items():
        assert re.search(rf'^  {name} +{re.escape(verb.summary)}$', out, re.M)
    assert 'examples:' in out and 'Exit codes: 0 done' in out


@pytest.mark.parametrize('name', cli.VERBS)
def test_every_verb_has_help_with_an_example(name, gdrq):
    code, out, err = gdrq(*name.split(), '--help')
    assert code == 0 and err == ''
    assert out.startswith('usage: gdrq ')
    assert re.search('^examples?:\n  gdrq ', out, re.M)


@pytest.mark.parametrize('verb', ['plan', 'ends', 'analyze plan',
                                  'analyze ends'])
def test_a_verb_speaks_by_its_own_name(verb, gdrq):
    out = gdrq(*verb.split(), '--help')[1]
    assert out.startswith(f'usage: gdrq {verb} ')
    assert f'example:\n  gdrq {verb} ' in out
    code, _, err = gdrq(*verb.split(), 'nowhere.py')
    assert code == 1
    assert err.startswith(f'gdrq {verb.partition(" ")[0]}: ')


def test_every_example_is_of_a_verb_that_is_there(gdrq):
    texts = [cli.help_text(), *(gdrq(*name.split(), '--help')[1]
                                for name in cli.VERBS)]
    for words in re.findall('^  gdrq (.*)$', '\n'.join(texts), re.M):
        assert cli.find_verb(words.split())


@pytest.mark.parametrize('arguments', [['-h'], ['--help']])
def test_half_a_verb_has_help_of_its_own(arguments, gdrq):
    code, out, err = gdrq('dataset', *arguments)
    assert code == 0 and err == ''
    assert out.startswith('usage: gdrq dataset VERB')
    assert re.search('^  dataset bccd ', out, re.M)
    assert not re.search('^  train', out, re.M)


@pytest.mark.parametrize('arguments', [
    [], ['no-such-verb', 'my.py'], ['dataset', 'no-such'], ['train'],
    ['plan'], ['plan', 'a.py', '--no-such-option'], ['analyze']])
def test_wrong_usage_exits_with_2(arguments, gdrq):
    code, out, err = gdrq(*arguments)
    assert code == 2 and 'Traceback' not in err
    if arguments[:1] in (['no-such-verb'], ['dataset']):
        asked = ' '.join(arguments).partition(' my.py')[0]
        assert f'no verb {asked!r}' in err


@pytest.mark.parametrize('arguments', [
    ['plan', 'missing.py'], ['train', 'missing.py'],
    ['calibrate', 'missing.py', 'a.pth', 'b.pth'],
    ['publish', 'missing.py', 'a.pth', 'zoo'],
    ['export', 'missing.py', 'a.pth'],
    *(['dataset', name, 'missing.py', 'out']
      for name in ('bccd', 'camvid', 'tiny-imagenet'))])
def test_an_error_is_one_sentence_and_exits_with_1(arguments, gdrq):
    code, out, err = gdrq(*arguments)
    assert code == 1 and out == ''
    assert re.fullmatch(r'gdrq [\w -]+: .*missing\.py.*\n', err)


def test_an_interruption_is_one_word(capsys):
    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as exit:
        cli.run_tool(interrupted)
    assert exit.value.code == 130
    assert capsys.readouterr().err.endswith(': interrupted\n')


@pytest.mark.parametrize('module, remedy, arguments', [
    ('sklearn', 'pip install scikit-learn',
     ['dataset', 'demo', 'data', '--size', 'tiny']),
    ('pkg_resources', 'pip install "setuptools<82"', ['plan', 'my.py'])])
def test_what_is_missing_is_named_with_the_way_to_get_it(
        module, remedy, arguments, gdrq, tmp_path, monkeypatch):
    if module not in inspect.getsource(package_utils) and \
            module == 'pkg_resources':
        pytest.skip('this mmengine does not use pkg_resources')
    (tmp_path / 'my.py').write_text(
        "_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'\n")
    # conftest.py keeps its answers, which another test may have asked for.
    monkeypatch.setattr(mmengine_config, 'is_installed', is_installed)
    for name in [name for name in sys.modules
                 if name.partition('.')[0] == module]:
        monkeypatch.delitem(sys.modules, name)

    class Missing:

        def find_spec(self, name, path=None, target=None):
            if name.partition('.')[0] == module:
                raise ModuleNotFoundError(f'No module named {name!r}',
                                          name=name)

    monkeypatch.setattr(sys, 'meta_path', [Missing(), *sys.meta_path])
    code, out, err = gdrq(*arguments)
    assert code == 1 and out == ''
    assert re.fullmatch(rf'gdrq [\w ]+: .*{re.escape(remedy)}\n', err)
    assert not list(tmp_path.glob('data/*'))


def test_a_verb_is_the_script(gdrq):
    arguments = [CONFIG, '--shape', '32', '32']
    script = subprocess.run(
        [sys.executable, ROOT / 'tools/analyze.py', 'plan', *arguments],
        capture_output=True, text=True, check=True)
    assert gdrq('plan', *arguments) == (0, script.stdout, '')


def test_importing_the_package_does_not_load_the_command():
    subprocess.run([sys.executable, '-W', 'ignore', '-c',
                    'import sys, gdrq_mm; assert "gdrq_mm.cli" not in '
                    'sys.modules'], check=True)


@pytest.mark.parametrize('scope, arguments, expected', [
    ('mmseg', ['c.py', '--resume'],
     ['c.py', '--resume', '--cfg-options', 'load_from=None']),
    ('mmseg', ['c.py', '--resume', '--cfg-options', 'a=1', '--amp'],
     ['c.py', '--resume', '--cfg-options', 'load_from=None', 'a=1', '--amp']),
    ('mmseg', ['c.py', '--resume', '--cfg-options', 'load_from=a.pth'], None),
    ('mmseg', ['c.py'], None), ('mmdet', ['c.py', '--resume'], None)])
def test_resuming_leaves_out_what_the_run_began_with(
        scope, arguments, expected):
    assert cli._resuming_the_run(scope, arguments) == (expected or arguments)


PURE_PYTHON = '''
from mmpretrain.models import ImageClassifier, LinearClsHead, ResNet
from mmpretrain.models.necks import GlobalAveragePooling

from gdrq_mm import GDRQHook

model = dict(
    type=ImageClassifier,
    backbone=dict(type=ResNet, depth=18, stem_channels=4, base_channels=4),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=4, in_channels=32))
custom_hooks = [dict(type=GDRQHook, quantization=dict(weight=dict(bits=4)))]
'''


def test_configs_in_pure_python_name_no_scope(gdrq, tmp_path):
    path = tmp_path / 'pure.py'
    path.write_text(PURE_PYTHON)
    code, out, err = gdrq('plan', path, '--shape', 32, 32)
    assert code == 0, err
    assert '21 of 21 layers' in out
