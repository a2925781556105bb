"""The stand-in datasets: deterministic, complete, read by the mm packages."""
import hashlib
import sys
from pathlib import Path

import pytest
from mmengine.registry import DATASETS, DefaultScope

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'tools' / 'dataset_converters'))
import make_demo_data  # noqa: E402
from make_demo_data import FOLDERS, SIZES, DemoDataError, make  # noqa: E402


def digest(folder):
    return {str(path.relative_to(folder)):
            hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.mark.parametrize('task', FOLDERS)
def test_the_same_seed_gives_the_same_bytes(task, tmp_path, demo_data):
    again = make(task, tmp_path / 'a', seed=0, size='tiny')
    assert digest(again) == digest(demo_data / FOLDERS[task])
    other = make(task, tmp_path / 'b', seed=1, size='tiny')
    assert digest(other) != digest(again)


DATASET = dict(
    det=('mmdet', lambda root, split: dict(
        type='VOCDataset', data_root=f'{root}/',
        ann_file=f'VOC2007/ImageSets/Main/{("trainval", "test")[split]}.txt',
        data_prefix=dict(sub_data_root='VOC2007/'))),
    seg=('mmseg', lambda root, split: dict(
        type='CityscapesDataset', data_root=f'{root}/',
        data_prefix=dict(img_path=f'leftImg8bit/{("train", "val")[split]}',
                         seg_map_path=f'gtFine/{("train", "val")[split]}'))),
    cls=('mmpretrain', lambda root, split: dict(
        type='CustomDataset', data_root=f'{root}/',
        data_prefix=('train', 'val')[split])))
DATASET['signs'] = DATASET['cls']


@pytest.mark.parametrize('split', [0, 1])
@pytest.mark.parametrize('task', FOLDERS)
def test_the_packages_own_dataset_classes_read_it(task, split, demo_data):
    scope, config = DATASET[task]
    with DefaultScope.overwrite_default_scope(scope):
        dataset = DATASETS.build(dict(
            config(demo_data / FOLDERS[task], split), pipeline=[]))
    assert len(dataset) == SIZES['tiny'][task][split]
    if task == 'det':
        boxes = [item['bbox'] for index in range(len(dataset))
                 for item in dataset[index]['instances']]
        assert boxes and all(x2 > x1 and y2 > y1 for x1, y1, x2, y2 in boxes)


@pytest.mark.parametrize('task', FOLDERS)
def test_a_missing_file_is_named_and_nothing_is_written(task, tmp_path):
    folder = make(task, tmp_path, size='tiny')
    image = next(folder.rglob('*.jpg' if task == 'det' else '*.png'))
    image.unlink()
    before = digest(folder)
    with pytest.raises(DemoDataError, match=image.name):
        make(task, tmp_path, size='tiny')
    assert digest(folder) == before


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    folder = tmp_path / FOLDERS['cls']
    folder.mkdir()
    (folder / 'mine.txt').write_text('mine')
    with pytest.raises(DemoDataError, match='it was not'):
        make('cls', tmp_path, size='tiny')
    assert (folder / 'mine.txt').read_text() == 'mine'


def test_another_seed_or_size_is_refused(tmp_path):
    make('cls', tmp_path, size='tiny')
    with pytest.raises(DemoDataError, match='seed'):
        make('cls', tmp_path, seed=1, size='tiny')
    with pytest.raises(DemoDataError, match='size'):
        make('cls', tmp_path, size='demo')


def test_a_complete_folder_is_not_made_again(tmp_path):
    folder = make('cls', tmp_path, size='tiny')
    before = {path: path.stat().st_mtime_ns for path in folder.rglob('*')}
    assert make('cls', tmp_path, size='tiny') == folder
    assert before == {path: path.stat().st_mtime_ns
                      for path in folder.rglob('*')}


def test_an_interruption_leaves_no_half_dataset(tmp_path, monkeypatch):

    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(make_demo_data, 'write_split', interrupted)
    with pytest.raises(KeyboardInterrupt):
        make('seg', tmp_path, size='tiny')
    assert list(tmp_path.iterdir()) == []
