#!/usr/bin/env python3
"""Convert Tiny-ImageNet to one folder per class, as ImageNet is.

Source: http://cs231n.stanford.edu/tiny-imagenet-200.zip (200 classes). Of its
classes, sorted by WordNet id, the first ones are taken::

    OUT/{train,val}/<WordNet id>/*.JPEG
    OUT/classes.txt                      <WordNet id> <words> a line

``ImageNet`` and ``CustomDataset`` of mmpretrain read it.

example:
  gdrq dataset tiny-imagenet tiny-imagenet-200.zip data/tiny-imagenet-100
"""
import shutil
from pathlib import Path

from conversion import (
    ConversionError,
    Report,
    find_root,
    parser,
    read_image,
    read_lines,
)
from conversion import run as run_converter


def copy(source: Path, target: Path, split: str, report: Report) -> None:
    """Copy an image that can be read."""
    if not source.exists():
        report.dropped[f'{split} images that are missing'] += 1
        return
    image = read_image(source)
    if image is None:
        report.dropped[f'{split} images that cannot be read'] += 1
        return
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target / source.name)
    report.found[f'{split} images'] += 1
    if image.ndim == 2:
        report.found[f'{split} images that are grey (among them)'] += 1


def write(folder: Path, out: Path, report: Report, classes: int) -> None:
    """Write train/ and val/ of the first ``classes`` classes."""
    root = find_root(folder, ('wnids.txt', 'words.txt', 'train', 'val/images',
                              'val/val_annotations.txt'), 'Tiny-ImageNet')
    if classes < 1:
        raise ConversionError(f'--classes is {classes}; give 1 or more')
    names = sorted(set(read_lines(root / 'wnids.txt')))[:classes]
    if len(names) < classes:
        raise ConversionError(f'the source has {len(names)} classes, '
                              f'{classes} are wanted (--classes)')
    for name in names:
        images = root / 'train' / name / 'images'
        found = sorted(images.glob('*.JPEG'))
        if not found:
            raise ConversionError(f'this is no complete Tiny-ImageNet: class '
                                  f'{name} has no images in train')
        for path in found:
            copy(path, out / 'train' / name, 'training', report)
    for line in read_lines(root / 'val/val_annotations.txt'):
        image, _, rest = line.partition('\t')
        name = rest.partition('\t')[0]
        if name in names:
            copy(root / 'val/images' / image, out / 'val' / name,
                 'validation', report)
        else:
            report.dropped['validation images of other classes'] += 1
    for split in ('train', 'val'):
        empty = [name for name in names if not (out / split / name).is_dir()]
        if empty:
            raise ConversionError('this is no complete Tiny-ImageNet: class '
                                  f'{empty[0]} has no images in {split}')
    words = dict(line.split('\t', 1) for line in read_lines(root / 'words.txt')
                 if '\t' in line)
    (out / 'classes.txt').write_text(''.join(
        f'{name} {words.get(name, name)}\n' for name in names))
    report.found['classes'] = len(names)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument('--classes', type=int, default=100,
                           help='how many; 100 is what the configs expect '
                           '(default)')
    run_converter('Tiny-ImageNet', write, arguments.parse_args())


if __name__ == '__main__':
    main()
