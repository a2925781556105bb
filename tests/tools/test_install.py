"""The wheel, used away from the checkout."""
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gdrq_mm import cli

ROOT = Path(__file__).parents[2]
BASE = 'gdrq_mm::faster_rcnn/faster-rcnn_r18-small_fpn_gdrq-w2a4_demo-voc.py'


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """Folder that the wheel is installed into."""
    source = tmp_path_factory.mktemp('source')
    for name in ('gdrq_mm', 'configs', 'tools'):
        shutil.copytree(ROOT / name, source / name,
                        ignore=shutil.ignore_patterns('__pycache__', '.mim'))
    for name in ('LICENSE', 'MANIFEST.in', 'README.md', 'model-index.yml',
                 'pyproject.toml', 'setup.py'):
        shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp('wheel')
    done = subprocess.run(
        [sys.executable, '-m', 'pip', 'wheel', '--no-deps', '-q',
         '--no-build-isolation', '-w', str(out), '.'],
        cwd=source, text=True, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    wheel, = out.glob('gdrq_mm-*.whl')
    subprocess.run(
        [sys.executable, '-m', 'pip', 'install', '--no-deps', '--no-index',
         '--no-compile', '-q', '--target', str(out / 'site'), str(wheel)],
        check=True)
    return out / 'site'


def test_the_source_of_the_kernels_is_in_the_wheel(installed):
    assert (installed / 'gdrq_mm' / 'kernels' / 'fused.c').exists()


def run_away(installed, folder, *arguments):
    done = subprocess.run(
        [sys.executable, '-W', 'ignore', *map(str, arguments)], cwd=folder,
        env={**os.environ, 'PYTHONPATH': str(installed)}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert done.returncode == 0, done.stdout
    return done.stdout


def test_the_wheel_brings_all_configs_and_the_tools(installed):
    mim = installed / 'gdrq_mm' / '.mim'
    ours = {path.relative_to(ROOT) for path in ROOT.glob('configs/**/*.*')
            if path.suffix in ('.py', '.yml', '.md')}
    theirs = {path.relative_to(mim) for path in mim.glob('configs/**/*.*')}
    assert ours == theirs
    assert (mim / 'model-index.yml').exists()
    tools = {path.name for path in mim.glob('tools/*')}
    assert {'train.py', 'test.py', 'publish_model.py', 'analyze.py'} < tools
    assert not {'demo.py', 'setup_env.py', 'publish_zoo.py', 'zoo_page.py',
                '__pycache__'} & tools


def test_configs_inherit_from_the_installed_ones(installed, tmp_path):
    """As gdrq_mm's tools read them, and as the packages' own tools do,
    which have not imported gdrq_mm when they parse the config."""
    tail = ('\npipeline = _base_.train_pipeline'
            '\ncustom_hooks = [*_base_.custom_hooks]\n')
    (tmp_path / 'ours.py').write_text(f'_base_ = {BASE!r}' + tail)
    (tmp_path / 'theirs.py').write_text(
        f"_base_ = __import__('gdrq_mm') and {BASE!r}" + tail)
    out = run_away(
        installed, tmp_path, '-c',
        'from mmengine.config import Config\n'
        "theirs = Config.fromfile('theirs.py')\n"
        "ours = Config.fromfile('ours.py')\n"
        'assert ours.to_dict() == theirs.to_dict()\n'
        'assert "\'_scope_\': \'gdrq_mm\'" not in str(ours.to_dict())\n'
        "assert ours.pipeline[0].get('_scope_') is None\n"
        "print(ours.custom_hooks[0].quantization.weight.bits)\n"
        'import gdrq_mm\nprint(gdrq_mm.__file__)\n').split()
    assert out[0] == '2' and out[1].startswith(str(installed))


def test_the_installed_command_runs_away_from_the_checkout(installed,
                                                           tmp_path):
    """The script that pip writes, the module, and the tools by their path:
    ``mim`` asks train.py for its help before it starts it."""
    tools = installed / 'gdrq_mm' / '.mim' / 'tools'
    assert 'usage: ' in run_away(installed, tmp_path, tools / 'train.py',
                                 '-h')
    config = installed / 'gdrq_mm/.mim/configs' / BASE.partition('::')[2]
    arguments = (config, '--shape', '64', '64')
    out = run_away(installed, tmp_path, installed / 'bin' / 'gdrq', 'plan',
                   *arguments)
    assert "layers with 100.0% of all layers' weights" in out
    out = run_away(installed, tmp_path, '-m', 'gdrq_mm', 'ends', *arguments)
    assert dict(match='rpn_head.rpn_cls', weight=dict(bits=8),
                activation=dict(bits=8)) in eval(f'dict({out})')['rules']


def test_a_published_model_opens_without_the_checkout(installed, tmp_path):
    """With its config beside it, and neither data nor configs."""
    entry = next(each for each in json.loads(
        (ROOT / 'model_zoo/models.json').read_text())
        if each['data'] == 'tiny-imagenet-100')
    for key in ('file', 'config'):
        shutil.copy(ROOT / 'model_zoo' / entry[key], tmp_path)
    out = run_away(
        installed, tmp_path, '-c',
        'import numpy as np\n'
        'from mmpretrain import ImageClassificationInferencer\n'
        f'inferencer = ImageClassificationInferencer({entry["config"]!r}, '
        f'{entry["file"]!r}, device="cpu")\n'
        'found, = inferencer(np.zeros((64, 64, 3), np.uint8))\n'
        'print(found["pred_class"] in inferencer.classes)\n'
        'import gdrq_mm\nprint(gdrq_mm.__file__)\n').split()
    assert out[-2] == 'True' and out[-1].startswith(str(installed))


def test_the_wheel_brings_its_licence(installed):
    licence, = installed.glob('gdrq_mm-*.dist-info/**/LICENSE')
    assert 'Apache License' in licence.read_text()


# Written into an empty folder: a float config and its 4-bit form.
CONFIGS = dict(
    my_float="""
_base_ = 'gdrq_mm::resnet/resnet18-small_demo-imagenet.py'
train_cfg = dict(max_epochs=1, val_interval=1)
default_hooks = dict(checkpoint=dict(interval=1))
""",
    my_w4a4="""
_base_ = './my_float.py'
custom_imports = dict(imports=['gdrq_mm'])
custom_hooks = [dict(type='GDRQHook', quantization=dict(
    weight=dict(bits=4), activation=dict(bits=4)))]
load_from = 'work_dirs/my_float/epoch_1.pth'
""")
FLOAT, QUANTIZED = (f'work_dirs/{name}/epoch_1.pth' for name in CONFIGS)
# Arguments, what is printed, a file that is left.
VERBS = [
    ('dataset demo data/demo --tasks cls --size tiny', 'made 20 training',
     'data/demo/imagenet'),
    ('train my_float.py', 'accuracy/top1: ', FLOAT),
    ('ends my_float.py --shape 32 32', "match='head.fc'", None),
    ('plan my_w4a4.py --shape 32 32', '22 of 22 layers', None),
    (f'calibrate my_w4a4.py {FLOAT} calibrated.pth --batches 1',
     'calibrated with 1 batch', 'calibrated.pth'),
    ('train my_w4a4.py', "GDRQHook: phase 'quantize'", QUANTIZED),
    (f'test my_w4a4.py {QUANTIZED}', 'Epoch(test)', None),
    (f'publish my_w4a4.py {QUANTIZED} zoo', 'published packed', 'zoo/*.pth'),
    (f'export my_w4a4.py {QUANTIZED} --shape 32 32 --out my_w4a4.onnx '
     '--speed-rounds 0', 'codes equal to the integer model', 'my_w4a4.onnx'),
    (f'compare-export my_w4a4.py {QUANTIZED} --file my_w4a4.onnx '
     '--json images.json', 'images: 32 x 32', 'images.json'),
    ('analyze coverage my_w4a4.py --shape 32 32',
     'have two low-bit operands', None),
    (f'compare my_w4a4.py {FLOAT} --schemes lsq --bits 4,4 --batches 1 '
     '--json compared.json', 'lsq', 'compared.json'),
    ('sweep mmpretrain lenet', 'mmpretrain lenet: ',
     'work_dirs/sweep/mmpretrain/lenet.json'),
]
# They need an archive or a checkout from elsewhere; their own tests make small
# ones.
NEED_A_DOWNLOAD = {'dataset bccd', 'dataset camvid', 'dataset tiny-imagenet',
                   'upstream-tests'}


def test_every_verb_runs_away_from_the_checkout(installed, tmp_path):
    """In one process, which spares importing torch a dozen times."""
    verbs = {cli.find_verb(line.split()) for line, _, _ in VERBS}
    assert verbs | NEED_A_DOWNLOAD == cli.VERBS.keys()
    for name, text in CONFIGS.items():
        (tmp_path / f'{name}.py').write_text(text)
    for line, printed, left in VERBS:
        (tmp_path / 'verbs').open('a').write(line + '\n')
    out = run_away(
        installed, tmp_path, '-c',
        'from gdrq_mm import cli\n'
        "for line in open('verbs'):\n"
        "    print('$', line, end='', flush=True)\n"
        '    cli.main(line.split())\n')
    outputs = re.split(r'^\$ .*\n', out, flags=re.M)[1:]
    for (line, printed, left), found in zip(VERBS, outputs, strict=True):
        assert printed in found, line
        assert left is None or list(tmp_path.glob(left)), line
