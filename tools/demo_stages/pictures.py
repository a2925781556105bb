"""Predictions of several models side by side, one row an image."""
from xml.etree import ElementTree

import cv2
import numpy as np

from gdrq_mm.analysis.drawing import new_figure, save_figure

NUM_IMAGES = dict(det=4, seg=4, cls=6)
HEIGHTS = dict(det=2.1, seg=1.5, cls=1.3)  # of an image, in inches
MIN_SCORE = .4  # of a box that is drawn
RIGHT, WRONG = 'tab:green', 'tab:red'


def draw(task, images, columns, meta, path, title):
    """Draw one PNG: the truth, then a column for every model.

    Args:
        task (str): 'det', 'seg' or 'cls'.
        images (list[Path]): Images of the validation split.
        columns (dict[str, list]): Title -> predictions, one per image, as
            the package's inferencer gives them.
        meta (dict): ``classes`` and ``palette`` of the dataset.
        path (str): The PNG; replaced whole or not at all.
        title (str): Above all.
    """
    draw_truth, draw_prediction = DRAWERS[task]
    pixels = [cv2.imread(str(image))[..., ::-1] for image in images]
    ratio = pixels[0].shape[1] / pixels[0].shape[0]
    height = HEIGHTS[task]
    figure = new_figure(
        height * ratio * (1 + len(columns)) + .2,
        (height + .25 * (task == 'cls')) * len(images) + .8)
    axes = figure.subplots(len(images), 1 + len(columns), squeeze=False)
    for row, image in enumerate(images):
        for axis in axes[row]:
            axis.imshow(pixels[row])
            axis.set_xticks([])
            axis.set_yticks([])
        truth = draw_truth(axes[row, 0], image, meta)
        for axis, predictions in zip(axes[row, 1:], columns.values()):
            draw_prediction(axis, predictions[row], truth, meta)
    # The captions of classification stand where titles would.
    for axis, name in zip(axes[0], ['ground truth', *columns]):
        axis.annotate(name, (.5, 1), xytext=(0, 18 if task == 'cls' else 4),
                      xycoords='axes fraction', textcoords='offset points',
                      ha='center', va='bottom', annotation_clip=False)
    figure.suptitle(title)
    save_figure(figure, path)


def voc_truth(axis, image, meta):
    """Boxes of a VOC annotation; returns them."""
    path = image.parents[1] / 'Annotations' / f'{image.stem}.xml'
    for item in ElementTree.parse(path).iter('object'):
        box = [float(item.find(f'bndbox/{side}').text) - 1
               for side in ('xmin', 'ymin', 'xmax', 'ymax')]
        draw_box(axis, box, meta['classes'].index(item.findtext('name')))


def voc_prediction(axis, prediction, truth, meta):
    for box, label, score in zip(*(prediction[name] for name in (
            'bboxes', 'labels', 'scores'))):
        if score >= MIN_SCORE:
            draw_box(axis, box, label, f' {score:.2f}')


def draw_box(axis, box, label, text=''):
    """A box with the number of its class, which is the digit it shows."""
    left, top, right, bottom = box
    color = f'C{label}'
    axis.plot([left, right, right, left, left],
              [top, top, bottom, bottom, top], color=color, linewidth=1.5)
    axis.text(left, top, f'{label}{text}', fontsize=7, color='white',
              va='bottom', clip_on=True,
              bbox=dict(facecolor=color, linewidth=0, pad=.7))


def cityscapes_truth(axis, image, meta):
    name = image.name.replace('_leftImg8bit', '_gtFine_labelTrainIds')
    path = image.parents[3] / 'gtFine' / image.parts[-3] \
        / image.parts[-2] / name
    labels = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    axis.imshow(colored(labels, meta['palette']), alpha=.7)


def cityscapes_prediction(axis, prediction, truth, meta):
    axis.imshow(colored(prediction, meta['palette']), alpha=.7)


def colored(labels, palette):
    """Label map -> colours; black where there is no label."""
    colors = np.zeros((256, 3), np.uint8)
    colors[:len(palette)] = palette
    return colors[np.asarray(labels)]


def imagenet_truth(axis, image, meta):
    """The folder is the class; returns it."""
    axis.set_title(image.parent.name, fontsize=8)
    return image.parent.name


def imagenet_prediction(axis, prediction, truth, meta):
    name = prediction['pred_class']
    axis.set_title(f'{name} {prediction["pred_score"]:.2f}', fontsize=8,
                   color=RIGHT if name == truth else WRONG)


DRAWERS = dict(det=(voc_truth, voc_prediction),
               seg=(cityscapes_truth, cityscapes_prediction),
               cls=(imagenet_truth, imagenet_prediction))
