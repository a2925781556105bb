#!/usr/bin/env python3
"""Make small stand-ins for VOC, Cityscapes and ImageNet, in their formats.

The images are synthetic (handwritten digits and drawn streets); folders,
files and annotations are as the unchanged dataset classes of MMDetection,
MMSegmentation and MMPretrain read them::

    OUT/VOCdevkit/VOC2007/{JPEGImages,Annotations,ImageSets/Main}
    OUT/cityscapes/{leftImg8bit,gtFine}/{train,val}/<city>
    OUT/imagenet/{train,val}/<class>
    OUT/signs/{train,val}/<class>    100 classes of the same kind, much harder

Equal seeds give equal files. A folder that is complete is left as it is;
nothing is ever overwritten.

example:
  gdrq dataset demo data/demo --tasks cls
"""
import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
import scenes

# Raise it with every change of what is drawn or written.
VERSION = 2
STAMP = 'demo_data.json'
FOLDERS = dict(det='VOCdevkit', seg='cityscapes', cls='imagenet',
               signs='signs')
# Images of the training and of the test split.
SIZES = dict(
    tiny=dict(det=(12, 12), seg=(12, 12), cls=(20, 20), signs=(100, 100)),
    demo=dict(det=(1600, 500), seg=(600, 200), cls=(8000, 4000),
              signs=(8000, 3000)))
# Digit 0 is annotated as an aeroplane, digit 9 as a cow: the first ten class
# names of VOC, so that ``VOCDataset`` needs no other class list.
VOC_CLASSES = ('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car',
               'cat', 'chair', 'cow')
CLS_CLASSES = tuple(f'{style}_{digit}' for style in ('digit', 'ring')
                    for digit in range(10))
SIGN_CLASSES = tuple(f'outline{outline}_{digit}' for outline in range(10)
                     for digit in range(10))
CITIES = dict(train='digitstadt', val='ziffernburg')
# Seeds the generator of an image, next to its split and number.
TASK_IDS = dict(det=0, seg=1, cls=2, signs=3)


class DemoDataError(RuntimeError):
    """A demo dataset that is missing, incomplete or another one."""


def image_names(task, split, count):
    """The image files of a split, in order, relative to the task's folder."""
    split_name = ('train', 'val')[split]
    if task == 'det':
        return [f'VOC2007/JPEGImages/{split}{i:05d}.jpg'
                for i in range(count)]
    if task == 'seg':
        city = CITIES[split_name]
        return [f'leftImg8bit/{split_name}/{city}/'
                f'{city}_{i:06d}_000019_leftImg8bit.png'
                for i in range(count)]
    classes = CLS_CLASSES if task == 'cls' else SIGN_CLASSES
    return [f'{split_name}/{classes[i % len(classes)]}/{i:05d}.png'
            for i in range(count)]


def annotation_name(task, image):
    """The annotation file of an image; None where its folder is its class."""
    if task == 'det':
        return (image.replace('JPEGImages', 'Annotations')
                .replace('.jpg', '.xml'))
    if task == 'seg':
        return (image.replace('_leftImg8bit', '_gtFine_labelTrainIds')
                .replace('leftImg8bit/', 'gtFine/'))
    return None


def expected_files(task, counts):
    """Every file of a complete dataset, relative to the task's folder."""
    images = [name for split in (0, 1)
              for name in image_names(task, split, counts[split])]
    files = images + [annotation_name(task, name) for name in images]
    if task == 'det':
        files += [f'VOC2007/ImageSets/Main/{name}.txt'
                  for name in ('trainval', 'test')]
    return [name for name in files if name]


def check(folder, seed=None, size=None):
    """Check that a dataset folder holds all that its stamp says.

    Args:
        folder (str | Path): one dataset, for example ``OUT/VOCdevkit``.
        seed (int, optional): the seed it must be made with.
        size (str, optional): the size it must have.

    Returns:
        dict: the stamp.

    Raises:
        DemoDataError: names what is missing or different, and the fix.
    """
    folder = Path(folder)
    remedy = (f'Remove the folder (rm -r {folder}) or choose another OUT, '
              'then run make_demo_data.py again.')
    if not folder.is_dir():
        raise DemoDataError(f'There is no demo dataset at {folder}; make it '
                            'with tools/dataset_converters/make_demo_data.py')
    try:
        stamp = json.loads((folder / STAMP).read_text())
        task, counts = stamp['task'], stamp['counts']
        files = expected_files(task, counts)
    except FileNotFoundError:
        raise DemoDataError(f'{folder} exists but has no {STAMP}: it was not '
                            f'made by make_demo_data.py. {remedy}') from None
    except (ValueError, KeyError, TypeError) as error:
        raise DemoDataError(f'{folder / STAMP} cannot be read '
                            f'({error!r}). {remedy}') from None
    wanted = dict(version=VERSION, seed=seed, size=size)
    for key, value in wanted.items():
        if value is not None and stamp.get(key) != value:
            raise DemoDataError(f'{folder} was made with {key} '
                                f'{stamp.get(key)}, not {value}. {remedy}')
    missing = [name for name in files if not is_filled(folder / name)]
    if missing:
        raise DemoDataError(
            f'{folder} lacks {len(missing)} of its {len(files)} files, the '
            f'first is {missing[0]} (missing or empty). {remedy}')
    return stamp


def is_filled(path):
    try:
        return path.stat().st_size > 0
    except OSError:
        return False


def make(task, out, seed=0, size='demo'):
    """Make the dataset of one task, unless it is there already.

    Args:
        task (str): 'det', 'seg' or 'cls'.
        out (str | Path): the folder for all demo datasets.
        seed (int): equal seeds give equal files.
        size (str): a key of ``SIZES``.

    Returns:
        Path: the dataset's folder.
    """
    folder = Path(out) / FOLDERS[task]
    if os.path.lexists(folder):
        counts = check(folder, seed, size)['counts']
        print(f'{folder}: complete already, {counts[0]} + {counts[1]} images')
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    start, counts = time.time(), SIZES[size][task]
    # Written beside its place and renamed: the folder is never half done.
    partial = Path(tempfile.mkdtemp(prefix=f'.{folder.name}-',
                                    dir=folder.parent))
    try:
        for name in expected_files(task, counts):
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
        for split in (0, 1):
            write_split(partial, task, split, counts[split], seed)
        stamp = dict(task=task, version=VERSION, seed=seed, size=size,
                     counts=list(counts))
        (partial / STAMP).write_text(json.dumps(stamp) + '\n')
        partial.chmod(0o755)
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    print(f'{folder}: made {counts[0]} training and {counts[1]} test images '
          f'in {time.time() - start:.0f} s')
    return folder


def write_split(folder, task, split, count, seed):
    digits = scenes.Digits(train=split == 0)
    names = image_names(task, split, count)
    for number, name in enumerate(names):
        rng = np.random.default_rng([seed, TASK_IDS[task], split, number])
        if task == 'det':
            image, objects = scenes.detection_scene(rng, digits)
            path = folder / annotation_name(task, name)
            path.write_text(voc_annotation(Path(name).name, image, objects))
        elif task == 'seg':
            image, labels = scenes.street_scene(rng, digits)
            write_image(folder / annotation_name(task, name), labels)
        elif task == 'cls':
            image = scenes.classification_scene(rng, digits,
                                                number % len(CLS_CLASSES))
        else:
            image = scenes.sign_scene(rng, digits,
                                      number % len(SIGN_CLASSES))
        write_image(folder / name, image)
        if (number + 1) % 1000 == 0:
            print(f'{FOLDERS[task]}: {number + 1} of {count}', flush=True)
    if task == 'det':
        list_name = ('trainval', 'test')[split]
        path = folder / f'VOC2007/ImageSets/Main/{list_name}.txt'
        path.write_text(''.join(f'{Path(name).stem}\n' for name in names))


def write_image(path, image):
    options = [cv2.IMWRITE_JPEG_QUALITY, 95] if path.suffix == '.jpg' else []
    if not cv2.imwrite(str(path), image, options):
        raise OSError(f'Could not write {path}; is the disk full?')


def voc_annotation(filename, image, objects):
    """The text of a VOC annotation; its pixels are counted from 1."""
    height, width, depth = image.shape
    lines = ['<annotation>', '  <folder>VOC2007</folder>',
             f'  <filename>{filename}</filename>',
             f'  <size><width>{width}</width><height>{height}</height>'
             f'<depth>{depth}</depth></size>']
    for label, left, top, right, bottom in objects:
        lines += ['  <object>', f'    <name>{VOC_CLASSES[label]}</name>',
                  '    <truncated>0</truncated>',
                  '    <difficult>0</difficult>',
                  f'    <bndbox><xmin>{left + 1}</xmin>'
                  f'<ymin>{top + 1}</ymin><xmax>{right}</xmax>'
                  f'<ymax>{bottom}</ymax></bndbox>', '  </object>']
    return '\n'.join(lines + ['</annotation>', ''])


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('out', metavar='OUT',
                        help='folder for the datasets; the demo configs '
                        'expect data/demo')
    parser.add_argument('--tasks', nargs='+', choices=list(FOLDERS),
                        default=list(FOLDERS), help='default: all')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--size', choices=list(SIZES), default='demo',
                        help='tiny: a handful of images, to try commands')
    args = parser.parse_args()
    if args.seed < 0:
        parser.error(f'--seed must be 0 or more, not {args.seed}')
    try:
        for task in args.tasks:
            make(task, args.out, args.seed, args.size)
    except (DemoDataError, OSError) as error:
        raise SystemExit(
            f'{Path(sys.argv[0]).stem}: {error}') from None


if __name__ == '__main__':
    main()
