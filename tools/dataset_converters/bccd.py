#!/usr/bin/env python3
"""Convert BCCD (blood cells) to the layout of VOC, without its faults.

Source: https://github.com/Shenggan/BCCD_Dataset (its folder ``BCCD`` is VOC
already)::

    OUT/JPEGImages/*.jpg
    OUT/Annotations/*.xml
    OUT/ImageSets/Main/{train,val,trainval,test}.txt

Left out are boxes without an area, boxes of other classes than RBC, WBC and
Platelets, and images that are missing, cannot be read or have no annotation;
boxes are cut to their image. ``VOCDataset`` of mmdet reads it.

example:
  gdrq dataset bccd BCCD_Dataset-master.zip data/bccd
"""
import shutil
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Optional

from conversion import (
    ConversionError,
    Report,
    find_root,
    parser,
    read_image,
    read_lines,
)
from conversion import run as run_converter

CLASSES = ('RBC', 'WBC', 'Platelets')
SPLITS = ('train', 'val', 'trainval', 'test')


def box_of(item: ElementTree.Element, width: int, height: int) -> list:
    """Corners of an object in pixels counted from 1, cut to the image.

    Raises:
        ValueError: It has no numbers there.
    """
    corners = [item.findtext(f'bndbox/{name}')
               for name in ('xmin', 'ymin', 'xmax', 'ymax')]
    if None in corners:
        raise ValueError('a box without four corners')
    corners = [round(float(corner)) for corner in corners]
    return [min(max(corner, 1), limit) for corner, limit in zip(
        corners, (width, height) * 2)]


def annotation(source: Path, name: str, shape, report: Report
               ) -> Optional[ElementTree.ElementTree]:
    """The annotation of an image, its faults left out.

    Args:
        source (Path): The file.
        name (str): Name of the image, without suffix.
        shape (tuple): Height, width and perhaps channels of the image.
        report (Report): Is added to.

    Returns:
        ElementTree: To be written; None where it cannot be read.
    """
    try:
        root = ElementTree.parse(source).getroot()
    except (OSError, ElementTree.ParseError, LookupError, ValueError):
        return None  # damaged, or in an encoding that Python has not
    height, width = shape[:2]
    made = ElementTree.Element('annotation')
    ElementTree.SubElement(made, 'filename').text = f'{name}.jpg'
    size = ElementTree.SubElement(made, 'size')
    for key, value in zip(('width', 'height', 'depth'), (width, height, 3)):
        ElementTree.SubElement(size, key).text = str(value)
    for item in root.iter('object'):
        label = (item.findtext('name') or '').strip()
        try:
            box = box_of(item, width, height)
        except (ValueError, OverflowError):  # infinite
            report.dropped['boxes without four numbers'] += 1
            continue
        if label not in CLASSES:
            report.dropped[f'boxes of the unknown class "{label}"'] += 1
        elif box[2] <= box[0] or box[3] <= box[1]:
            report.dropped['boxes without an area'] += 1
        else:
            report.found[f'boxes of {label}'] += 1
            kept = ElementTree.SubElement(made, 'object')
            ElementTree.SubElement(kept, 'name').text = label
            for key in ('truncated', 'difficult'):
                flag = (item.findtext(key) or '').strip() == '1'
                ElementTree.SubElement(kept, key).text = str(int(flag))
            corners = ElementTree.SubElement(kept, 'bndbox')
            for key, value in zip(('xmin', 'ymin', 'xmax', 'ymax'), box):
                ElementTree.SubElement(corners, key).text = str(value)
    if made.find('object') is None:
        report.found['images without a box (among them)'] += 1
    ElementTree.indent(made)
    return ElementTree.ElementTree(made)


def write_item(root: Path, out: Path, name: str, report: Report) -> bool:
    """Write image and annotation; False where one of them cannot be used."""
    source = root / 'JPEGImages' / f'{name}.jpg'
    image = read_image(source)
    if image is None:
        report.dropped['images that ' + (
            'cannot be read' if source.exists() else 'are missing')] += 1
        return False
    found = annotation(root / 'Annotations' / f'{name}.xml', name,
                       image.shape, report)
    if found is None:
        report.dropped['images without a readable annotation'] += 1
        return False
    report.found['images'] += 1
    if image.ndim == 2:
        report.found['images that are grey (among them)'] += 1
    shutil.copyfile(source, out / 'JPEGImages' / source.name)
    found.write(out / 'Annotations' / f'{name}.xml', encoding='utf-8')
    return True


def write(folder: Path, out: Path, report: Report) -> None:
    """Write all images that a split names, and the splits."""
    lists = [f'ImageSets/Main/{split}.txt' for split in SPLITS]
    root = find_root(folder, ('JPEGImages', 'Annotations', *lists), 'BCCD')
    for part in ('JPEGImages', 'Annotations', 'ImageSets/Main'):
        (out / part).mkdir(parents=True)
    usable = {}
    for split, path in zip(SPLITS, lists):
        names = list(dict.fromkeys(read_lines(root / path)))
        for name in names:
            if name not in usable:
                usable[name] = write_item(root, out, name, report)
        names = [name for name in names if usable[name]]
        if not names:
            raise ConversionError('this is no complete BCCD: none of the '
                                  f'images that {path} names can be used')
        (out / path).write_text(''.join(f'{name}\n' for name in names))
        report.found[f'images of {split}'] = len(names)


def main() -> None:
    run_converter('BCCD', write, parser(__doc__).parse_args())


if __name__ == '__main__':
    main()
