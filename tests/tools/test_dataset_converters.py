"""Converters of public data sets, on small trees in the same layouts."""
import json
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

ROOT = Path(__file__).resolve().parents[2]
TOOLS = ROOT / 'tools' / 'dataset_converters'
sys.path.insert(0, str(TOOLS))

import bccd  # noqa: E402
import camvid  # noqa: E402
import conversion  # noqa: E402
import tiny_imagenet  # noqa: E402
from conversion import ConversionError, convert  # noqa: E402

CONVERTERS = dict(
    bccd=('BCCD', bccd.write, {}),
    camvid=('CamVid', camvid.write, {}),
    tiny_imagenet=('Tiny-ImageNet', tiny_imagenet.write, dict(classes=2)))


def picture(path, height=12, width=16, grey=False, seed=0):
    shape = (height, width) if grey else (height, width, 3)
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.random.default_rng(seed).integers(
        0, 256, shape, np.uint8))


def xml(*objects, width=16, height=12):
    items = ''.join(
        f'<object><name>{name}</name><difficult>0</difficult><bndbox>'
        f'<xmin>{x1}</xmin><ymin>{y1}</ymin><xmax>{x2}</xmax>'
        f'<ymax>{y2}</ymax></bndbox></object>'
        for name, x1, y1, x2, y2 in objects)
    return ('<annotation><filename>any.jpg</filename><size>'
            f'<width>{width}</width><height>{height}</height>'
            f'<depth>3</depth></size>{items}</annotation>')


def make_bccd(folder):
    """Six images; what is wrong with each one is in its name."""
    root = folder / 'BCCD_Dataset-master' / 'BCCD'
    annotations = dict(
        good=xml(('RBC', 2, 3, 8, 9), ('WBC', 1, 1, 16, 12),
                 ('Platelets', 4, 4, 7, 7), ('RBC', 1, 1, 'inf', 9),
                 ('RBC', 1, 1, 9, '1e400'), ('RBC', 1, 'nan', 9, 'x')),
        empty_box=xml(('RBC', 5, 5, 5, 5), ('RBC', 2, 2, 9, 9)),
        wrong_class=xml(('Dog', 2, 2, 9, 9)),
        over=xml(('WBC', 0, -3, 40, 12)),
        grey=xml(('RBC', 2, 3, 8, 9), width=999),
        missing=xml(('RBC', 2, 3, 8, 9)),
        unreadable=xml(('RBC', 2, 3, 8, 9)),
        cut='<annotation><object>',
        encoding='<?xml version="1.0" encoding="klingon"?>' + xml())
    for number, (name, text) in enumerate(annotations.items()):
        path = root / 'Annotations' / f'{name}.xml'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if name != 'missing':
            picture(root / 'JPEGImages' / f'{name}.jpg', grey=name == 'grey',
                    seed=number)
    (root / 'JPEGImages' / 'unreadable.jpg').write_bytes(b'no image')
    lists = root / 'ImageSets' / 'Main'
    lists.mkdir(parents=True)
    for split, names in dict(
            train='good empty_box missing cut', val='wrong_class over',
            trainval='good empty_box missing cut wrong_class over encoding',
            test='grey unreadable').items():
        # Carriage returns, and an empty line at the end.
        (lists / f'{split}.txt').write_bytes(
            ''.join(f'{name}\r\n' for name in names.split()).encode()
            + b'\r\n')
    return folder


def make_camvid(folder):
    root = folder / 'CamVid'
    for split, names in dict(
            train=('a', 'b', 'small', 'coloured'), val=('c', 'unreadable'),
            test=('d', 'grey', 'bare')).items():
        for number, name in enumerate(names):
            # PNG in the original; JPEG where somebody saved space.
            suffix = '.jpg' if name == 'b' else '.png'
            picture(root / split / f'{name}{suffix}', grey=name == 'grey',
                    seed=number)
            labels = np.random.default_rng(number).integers(
                0, 12, (12, 16), np.uint8)
            labels[0, 0] = 11
            if name == 'a':
                labels[1, 1] = 30
            if name == 'small':
                labels = labels[:6]
            if name == 'coloured':
                labels = np.stack([labels] * 3, -1)
            path = root / f'{split}annot' / f'{name}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            if name != 'bare':
                cv2.imwrite(str(path), labels)
    (root / 'val' / 'unreadable.png').write_bytes(b'')
    cv2.imwrite(str(root / 'testannot' / 'alone.png'), labels)
    return folder


def make_tiny_imagenet(folder):
    root = folder / 'tiny-imagenet-200'
    names, lines = ('n03', 'n01', 'n02'), []
    for name in names:
        for number in range(3):
            picture(root / 'train' / name / 'images'
                    / f'{name}_{number}.JPEG', 64, 64,
                    grey=number == 2, seed=number)
        (root / 'train' / name / f'{name}_boxes.txt').write_text('')
        for number in range(2):
            image = f'val_{len(lines)}.JPEG'
            picture(root / 'val' / 'images' / image, 64, 64, seed=number)
            lines.append(f'{image}\t{name}\t0\t0\t62\t62\r\n')
    lines.append('val_99.JPEG\tn01\t0\t0\t62\t62\n')
    (root / 'train/n02/images/n02_0.JPEG').write_bytes(b'\xff\xd8 cut off')
    (root / 'val' / 'val_annotations.txt').write_text(''.join(lines))
    (root / 'wnids.txt').write_text(''.join(f'{name}\r\n' for name in names))
    (root / 'words.txt').write_text('n01\tgoldfish, Carassius\nn02\tbull\n')
    return folder


MAKE = dict(bccd=make_bccd, camvid=make_camvid,
            tiny_imagenet=make_tiny_imagenet)
REPORTS = dict(
    bccd=(
        {'boxes of RBC': 3, 'boxes of WBC': 2, 'boxes of Platelets': 1,
         'images': 5, 'images without a box (among them)': 1,
         'images that are grey (among them)': 1, 'images of train': 2,
         'images of val': 2, 'images of trainval': 4, 'images of test': 1},
        {'boxes without an area': 1, 'boxes of the unknown class "Dog"': 1,
         'boxes without four numbers': 3,
         'images that are missing': 1, 'images that cannot be read': 1,
         'images without a readable annotation': 2}),
    camvid=(
        {'images of train': 2, 'images of val': 1, 'images of test': 2,
         'images that are grey (among them)': 1,
         'label maps with labels above 11, ignored there (among them)': 1},
        {'images whose label map has another size, or colours': 2,
         'images that cannot be read': 1, 'images without a label map': 1,
         'label maps without an image': 1}),
    tiny_imagenet=(
        {'training images': 5, 'validation images': 4, 'classes': 2,
         'training images that are grey (among them)': 2},
        {'training images that cannot be read': 1,
         'validation images that are missing': 1,
         'validation images of other classes': 2}))


def run(name, source, out):
    dataset, write, options = CONVERTERS[name]
    return convert(dataset, source, out, write, **options)


def content(folder):
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.mark.parametrize('name', CONVERTERS)
def test_it_says_what_it_found_and_what_it_dropped(name, tmp_path, capsys):
    stamp = run(name, MAKE[name](tmp_path / 'source'), tmp_path / 'out')
    assert (stamp['found'], stamp['dropped']) == REPORTS[name]
    printed = capsys.readouterr().out
    for kind, counts in zip(('found', 'dropped'), REPORTS[name]):
        for what, count in counts.items():
            assert f'{kind}: {count} {what}\n' in printed
    assert json.loads((tmp_path / 'out' / 'conversion.json').read_text()) \
        == stamp


@pytest.mark.parametrize('kind', ['zip', 'gztar'])
@pytest.mark.parametrize('name', CONVERTERS)
def test_an_archive_gives_the_same_as_the_folder(name, kind, tmp_path):
    source = MAKE[name](tmp_path / 'source')
    archive = shutil.make_archive(str(tmp_path / 'archive'), kind, source)
    expected = run(name, source, tmp_path / 'out')
    assert run(name, archive, tmp_path / 'again') == expected
    assert content(tmp_path / 'again') == content(tmp_path / 'out')
    assert not list(tmp_path.glob('.*'))  # what was unpacked is gone


@pytest.mark.parametrize('name', CONVERTERS)
def test_a_second_run_does_nothing(name, tmp_path, capsys):
    source, out = MAKE[name](tmp_path / 'source'), tmp_path / 'out'
    stamp = run(name, source, out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob('*')}
    shutil.rmtree(source)  # is not needed any more
    assert run(name, source, out) == stamp
    assert 'complete already' in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns
                      for path in out.rglob('*')}


@pytest.mark.parametrize('name, lost, message', [
    ('bccd', 'BCCD_Dataset-master/BCCD/ImageSets/Main/test.txt',
     'lacks ImageSets/Main/test.txt'),
    ('bccd', 'BCCD_Dataset-master/BCCD/JPEGImages', 'lacks JPEGImages'),
    ('camvid', 'CamVid/valannot', 'lacks valannot'),
    ('camvid', 'CamVid/val/c.png', 'no image of val can be used'),
    ('tiny_imagenet', 'tiny-imagenet-200/val/val_annotations.txt',
     'lacks val/val_annotations.txt'),
    ('tiny_imagenet', 'tiny-imagenet-200/train/n01', 'n01 has no images in')])
def test_an_incomplete_source_is_one_sentence(name, lost, message, tmp_path):
    path = MAKE[name](tmp_path / 'source') / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ConversionError, match=message):
        run(name, tmp_path / 'source', tmp_path / 'out')
    assert [path.name for path in tmp_path.iterdir()] == ['source']


@pytest.mark.parametrize('classes, message', [
    (100, 'has 3 classes, 100 are'), (-2, '--classes is -2; give 1 or')])
def test_numbers_of_classes_that_there_are_not(classes, message, tmp_path):
    source = make_tiny_imagenet(tmp_path / 'source')
    with pytest.raises(ConversionError, match=message):
        convert('Tiny-ImageNet', source, tmp_path / 'out',
                tiny_imagenet.write, classes=classes)


@pytest.mark.parametrize('kind', ['zip', 'gztar'])
def test_a_damaged_archive_is_refused(kind, tmp_path):
    archive = Path(shutil.make_archive(
        str(tmp_path / 'archive'), kind, make_bccd(tmp_path / 'source')))
    archive.write_bytes(archive.read_bytes()[:-200])
    with pytest.raises(ConversionError, match='archive'):
        run('bccd', archive, tmp_path / 'out')
    assert not (tmp_path / 'out').exists()
    assert not list(tmp_path.glob('.*'))


def test_an_interruption_leaves_nothing(tmp_path, monkeypatch):
    source = make_bccd(tmp_path / 'source')

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(conversion, 'digest', interrupted)
    with pytest.raises(KeyboardInterrupt):
        run('bccd', source, tmp_path / 'out')
    assert [path.name for path in tmp_path.iterdir()] == ['source']


def test_what_is_there_is_not_overwritten(tmp_path):
    source, out = make_bccd(tmp_path / 'source'), tmp_path / 'out'
    out.mkdir()
    (out / 'mine.txt').write_text('mine')
    with pytest.raises(ConversionError, match='not written by this'):
        run('bccd', source, out)
    assert content(out) == {'mine.txt': b'mine'}
    run('bccd', source, tmp_path / 'whole')
    with pytest.raises(ConversionError, match='holds BCCD'):
        run('camvid', make_camvid(tmp_path / 'other'), tmp_path / 'whole')
    (tmp_path / 'whole' / 'JPEGImages' / 'good.jpg').unlink()
    with pytest.raises(ConversionError, match='13 of its 14 files'):
        run('bccd', source, tmp_path / 'whole')


def test_as_a_command_an_error_is_one_line(tmp_path):
    command = [sys.executable, str(TOOLS / 'camvid.py'),
               str(tmp_path / 'no.zip'), str(tmp_path / 'out')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == f'camvid: there is no {tmp_path / "no.zip"}\n'


# -- the packages' own dataset classes read it --------------------------------

DATASET_CONFIGS = dict(bccd='bccd', camvid='camvid',
                       tiny_imagenet='tiny_imagenet_100')
SCOPES = dict(bccd='mmdet', camvid='mmseg', tiny_imagenet='mmpretrain')


@pytest.fixture
def load(tmp_path):
    """Function name, split -> the dataset of our config, on the small tree."""

    def dataset(name, split):
        out = tmp_path / 'out'
        if not out.exists():
            run(name, MAKE[name](tmp_path / 'source'), out)
        cfg = Config.fromfile(ROOT / 'configs' / '_base_' / 'datasets'
                              / f'{DATASET_CONFIGS[name]}.py')
        config = cfg[f'{split}_dataloader'].dataset
        config.update(data_root=f'{out}/', pipeline=[])
        if name == 'tiny_imagenet':
            config.metainfo.classes = config.metainfo.classes[:2]
        with DefaultScope.overwrite_default_scope(SCOPES[name]):
            return DATASETS.build(config)

    return dataset


def test_voc_dataset_reads_bccd(load):
    train, test = load('bccd', 'train'), load('bccd', 'test')
    assert type(train).__name__ == 'VOCDataset'
    # Without a box: not for training.
    assert [item['img_id'] for item in train] == ['good', 'empty_box', 'over']
    good, empty_box, over = ([(
        train.metainfo['classes'][box['bbox_label']], box['bbox'])
        for box in item['instances']] for item in train)
    assert good == [('RBC', [1, 2, 7, 8]), ('WBC', [0, 0, 15, 11]),
                    ('Platelets', [3, 3, 6, 6])]
    assert empty_box == [('RBC', [1, 1, 8, 8])]
    assert over == [('WBC', [0, 0, 15, 11])]
    grey, = test
    assert (grey['width'], grey['height']) == (16, 12)
    assert cv2.imread(grey['img_path']).shape == (12, 16, 3)


def test_base_seg_dataset_reads_camvid(load):
    for split, names in dict(train='ab', test=('d', 'grey')).items():
        dataset = load('camvid', split)
        assert type(dataset).__name__ == 'BaseSegDataset'
        assert len(dataset.metainfo['classes']) == 11
        assert [Path(item['img_path']).stem for item in dataset] == [*names]
        for item in dataset:
            labels = cv2.imread(item['seg_map_path'], cv2.IMREAD_UNCHANGED)
            assert labels[0, 0] == 255 and {*labels.flat} <= {*range(11), 255}
            assert cv2.imread(item['img_path']).shape == (12, 16, 3)


def test_imagenet_reads_tiny_imagenet(load):
    for split, count in (('train', 5), ('test', 4)):
        dataset = load('tiny_imagenet', split)
        assert type(dataset).__name__ == 'ImageNet'
        assert len(dataset) == count
        for item in dataset:
            assert Path(item['img_path']).parent.name == \
                ('n01', 'n02')[item['gt_label']]
