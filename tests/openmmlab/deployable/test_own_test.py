"""An exported file beside the package's own test, image by image."""
import pytest
import torch
from mmengine.structures import InstanceData

from gdrq_mm.deployable import first_images, make_deployable
from gdrq_mm.openmmlab.deployable.images import default_size
from gdrq_mm.openmmlab.deployable.own_test import (
    compare_with_own_test,
    paired,
    predicts,
)


def found(boxes, scores, labels):
    return InstanceData(
        bboxes=torch.tensor(boxes).repeat_interleave(4).view(-1, 4),
        scores=torch.tensor(scores), labels=torch.tensor(labels))


def test_detections_are_paired_by_label_box_and_score():
    ours = found([1., 5., 5.], [.9, .5, .4], [0, 1, 0])
    theirs = found([5., 1., 5.], [.5, .9, .4], [1, 0, 0])
    assert paired(ours, theirs).tolist() == [1, 0, 2]
    assert paired(ours[:2], theirs) is None  # one is missing
    assert paired(found([1., 5., 5.], [.9, .5, .4], [0, 1, 1]),
                  theirs) is None  # another label
    none = theirs[:0]
    assert paired(none, none).tolist() == []
    bad = found([5., 1., 5.], [.5, float('nan'), .4], [1, 0, 0])
    assert paired(ours, bad) is None


@pytest.mark.parametrize('labels, same', [
    ([1], True), ([0], False), ([1, 3], True), ([3, 1], True),
    ([0, 1], False), ([1, 2, 3], True), ([1, 0, 3], True), ([], True),
    ([0, 1, 2, 3], True)])
def test_labels_are_the_classes_of_the_greatest_scores(labels, same):
    """One, several, all or none; equal scores are in either order."""
    scores = torch.tensor([.2, .9, .2, .5])
    assert predicts(scores, torch.tensor(labels, dtype=torch.long)) == same


@torch.no_grad()
def test_images_of_several_labels_are_compared(load_config, build_model):
    cfg = load_config('resnet')
    cfg.model.head = dict(
        type='MultiLabelLinearClsHead', thr=.4, num_classes=20,
        in_channels=cfg.model.head.in_channels)
    model = build_model(cfg).eval()
    form = make_deployable(model).eval()
    result = compare_with_own_test(cfg, model, form, None)
    assert result.same_labels == result.images > 0
    worse = compare_with_own_test(
        cfg, model, lambda image: form(image).flip(1), None)
    assert worse.same_labels < worse.images


@torch.no_grad()
def test_an_exported_form_that_gives_nan_is_named(load_config, build_model):
    cfg = load_config('resnet')
    model = build_model(cfg).eval()
    deployable = make_deployable(model).eval()
    with pytest.raises(ValueError, match='the exported model gives NaN'):
        compare_with_own_test(
            cfg, model, lambda image: deployable(image) * float('nan'), None)


@torch.no_grad()
def test_metrics_of_several_numbers_are_left_out(load_config, build_model):
    cfg = load_config('resnet')
    cfg.test_evaluator = [dict(type='Accuracy', topk=1),
                          dict(type='ConfusionMatrix')]
    model = build_model(cfg).eval()
    form = make_deployable(model).eval()
    result = compare_with_own_test(cfg, model, form, None)
    assert result.metrics['file'].keys() == {'accuracy/top1'}


@torch.no_grad()
@pytest.mark.parametrize('name', ['faster_rcnn', 'pspnet', 'resnet'])
def test_a_float_form_gives_the_packages_own_test(name, load_config,
                                                  build_model):
    cfg = load_config(name)
    dataset = cfg.test_dataloader.dataset
    if name == 'pspnet':  # mmseg enlarges logits, the form gives classes
        dataset.pipeline = [each for each in dataset.pipeline
                            if each['type'] != 'Resize']
    model = build_model(cfg).eval()
    size = default_size(cfg, first_images(cfg, 1, 'test'))
    deployable = make_deployable(model).eval()
    result = compare_with_own_test(cfg, model, deployable, size)
    assert result.images > 1
    assert result.scores < 1e-5 and (result.boxes or 0) < 1e-2
    assert (result.boxes is None) is (name != 'faster_rcnn')
    if name == 'pspnet':
        equal, pixels = result.pixels
        assert .999 < equal / pixels
    else:
        assert result.same_labels == result.images
        assert result.metrics['file'] == pytest.approx(
            result.metrics['package'], nan_ok=True)

    def other(images):
        """Something else than the model gives, in its first image alone."""
        outputs = deployable(images)
        if other.called:
            return outputs
        other.called = True
        if name == 'faster_rcnn':
            boxes, scores, labels = outputs
            return boxes + 3, scores, labels
        return outputs + 1 if name == 'pspnet' else outputs.roll(1, 1)

    other.called = False
    changed = compare_with_own_test(cfg, model, other, size)
    if name == 'faster_rcnn':
        assert changed.boxes > 2 and changed.scores < 1e-5
        assert 'greatest difference of a box there' in str(changed)
    else:
        assert changed.same_labels <= result.same_labels
        assert changed.pixels <= result.pixels
        assert (changed.same_labels, changed.pixels) != (
            result.same_labels, result.pixels)


@torch.no_grad()
def test_masks_are_compared_by_pixel(load_config, build_model, with_masks):
    cfg = with_masks(load_config('faster_rcnn'))
    model = build_model(cfg).eval()
    torch.nn.init.normal_(model.roi_head.mask_head.conv_logits.weight)
    size = default_size(cfg, first_images(cfg, 1, 'test'))
    form = make_deployable(model).eval()
    result = compare_with_own_test(cfg, model, form, size)
    equal, pixels = result.pixels
    assert result.same_labels == result.images > 1
    assert .999 < equal / pixels <= 1 and pixels > 10000
    assert result.scores < 1e-5
    for words in ('pixels of the same mask: ', 'difference of a score',
                  'difference of a box'):
        assert words in str(result)

    def inverted(images):
        *found, masks = form(images)
        return *found, 1 - masks

    worse, pixels = compare_with_own_test(cfg, model, inverted, size).pixels
    # Outside of boxes nothing is another.
    assert .2 < worse / pixels < equal / pixels - .01
