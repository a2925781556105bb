"""Where checkpoints, and files exported from them, part; on mm configs."""
import math

import pytest
import torch
from mmengine.model import BaseModel

from gdrq_mm.analysis.diff import first_parted, largest
from gdrq_mm.analysis.measurements import Measurements
from gdrq_mm.deploy import export_onnx, to_integer
from gdrq_mm.merge import merge
from gdrq_mm.openmmlab.bench import Bench
from gdrq_mm.openmmlab.calibrate import calibrate_checkpoint
from gdrq_mm.openmmlab.deployable import (
    first_images,
    load_model,
    make_deployable,
    pad_image,
)
from gdrq_mm.openmmlab.deployable.images import as_input
from gdrq_mm.openmmlab.deployable.synthetic import synthetic_images
from gdrq_mm.openmmlab.diff import FLOAT, diff_checkpoints
from gdrq_mm.openmmlab.publish import publish
from gdrq_mm.openmmlab.reading import read_checkpoint
from gdrq_mm.openmmlab.report_page import write_report
from gdrq_mm.openmmlab.sensitivity import Sensitivity


@pytest.fixture
def site():
    return 'input'


@pytest.fixture
def files(load_config, build_model, tmp_path, site):
    """Config and calibrated checkpoint of a tiny ResNet."""
    cfg = load_config('resnet', **{
        'custom_imports.imports': ['gdrq_mm', 'mmpretrain.models'],
        # 21 layers instead of 54.
        'model.backbone.depth': 18, 'model.head.in_channels': 32})
    cfg.custom_hooks = [dict(type='GDRQHook', quantization=dict(
        weight=dict(bits=4), activation=dict(bits=4, site=site)))]
    config, start, out = (tmp_path / name for name in (
        'net.py', 'float.pth', 'calibrated.pth'))
    cfg.dump(str(config))
    torch.save(dict(state_dict=build_model(cfg).state_dict()), start)
    calibrate_checkpoint(str(config), str(start), str(out), 1)
    return str(config), str(out)


def test_a_checkpoint_is_compared_with_its_float_weights_and_itself(files):
    config, checkpoint = files
    found = diff_checkpoints(FLOAT, checkpoint, config, batches=1)
    assert first_parted(found) is not None
    assert all(each.own.decibels < 60 for each in found
               if each.name.endswith(('conv2', 'head.fc')))
    assert first_parted(diff_checkpoints(
        checkpoint, checkpoint, config, batches=1)) is None


def test_packed_weights_have_no_float_ones(files, tmp_path):
    config, checkpoint = files
    packed, published = map(str, publish(config, checkpoint,
                                         str(tmp_path / 'zoo')))
    for measure in (
            lambda: diff_checkpoints(FLOAT, packed, config, batches=1),
            lambda: Sensitivity(Bench(config, packed, 1),
                                Measurements(tmp_path / 'a.json', {})),
            lambda: write_report(published, packed, tmp_path / 'a.html', 1)):
        with pytest.raises(ValueError, match=r'\.pth is packed, and has no '
                           'float weights .*checkpoint of the training'):
            measure()
    assert first_parted(diff_checkpoints(
        checkpoint, packed, config, batches=1)) is None


@pytest.mark.parametrize('site', ['relu'])
def test_a_checkpoint_of_quantized_relus_is_compared_with_its_float_weights(
        files):
    config, checkpoint = files
    found = {each.name: each for each in diff_checkpoints(
        FLOAT, checkpoint, config, batches=1)}
    assert 5 < found['backbone.layer1.0.relu'].own.decibels < 60
    assert found['backbone.layer1.0.bn1'].own.decibels == math.inf
    assert first_parted(diff_checkpoints(
        checkpoint, checkpoint, config, batches=1)) is None


def test_models_whose_eval_returns_nothing_are_loaded(files, monkeypatch):
    """Such as mmdet's distillation (LD)."""
    monkeypatch.setattr(BaseModel, 'eval', lambda self: (
        self.train(False) and None), raising=False)
    _, model = load_model(*files)
    assert not model.training
    for checkpoint in (FLOAT, files[1]):
        assert diff_checkpoints(checkpoint, files[1], files[0], batches=1)


@pytest.mark.parametrize('facts', [
    dict(calibration='training set', calibration_images='3'),
    dict(calibration='synthetic images', calibration_images='5'),
    dict(format='tensorrt')], ids=lambda each: list(each.values())[0])
def test_a_file_is_compared_as_it_was_calibrated(files, facts, tmp_path):
    config, checkpoint = files
    cfg, model = load_model(config, checkpoint)
    number = int(facts.get('calibration_images', 32))
    images = synthetic_images(cfg, number, (32, 32)) \
        if facts.get('calibration') == 'synthetic images' \
        else first_images(cfg, number)
    merged = merge(make_deployable(model).eval(), images[0])
    kind = facts.get('format', 'qdq')
    path = tmp_path / 'model.onnx'
    export_onnx(to_integer(merged, images[0], images, 'int8' if kind ==
                           'tensorrt' else 'uint8'), images[0], path, kind,
                metadata=facts)
    # Ten images have ten times the values of one.
    one, ten = (diff_checkpoints(checkpoint, str(path), config, batches=n)
                for n in (1, 10))
    assert first_parted(one) is first_parted(ten) is None
    assert [10 * each.own.values for each in one] == [
        each.own.values for each in ten]


@pytest.mark.parametrize('raw', [True, False])
def test_a_file_is_compared_with_the_form_and_pixels_that_it_had(
        raw, files, tmp_path, monkeypatch):
    """What images are padded with is no integer."""
    config, checkpoint = files
    cfg, model = load_model(config, checkpoint)
    padded = [pad_image(cfg, image, (40, 40)) for image in first_images(
        cfg, 2)]
    images = [as_input(image, torch.uint8) for image in padded]
    assert not torch.equal(images[0], padded[0].to(torch.uint8))
    merged = merge(make_deployable(model).eval(), images[0])
    path, seen = tmp_path / 'model.onnx', []
    export_onnx(to_integer(merged, images[0], images), images[0], path,
                metadata=dict(calibration_images='2', raw=str(raw)))
    forms = []

    def made(model, *, raw):
        forms.append(raw)
        return make_deployable(model, raw=raw)

    def watched(model, example, calibration, codes):
        seen.extend(calibration)
        return to_integer(model, example, calibration, codes)

    monkeypatch.setattr('gdrq_mm.openmmlab.deployable.make_deployable', made)
    monkeypatch.setattr('gdrq_mm.integer.to_integer', watched)
    diff_checkpoints(checkpoint, str(path), config, batches=1)
    assert forms == [raw]
    assert len(seen) == 2 and all(map(torch.equal, seen, images))


def test_a_file_of_other_images_is_refused(files, tmp_path):
    config, checkpoint = files
    cfg, model = load_model(config, checkpoint)
    images = first_images(cfg, 1)
    path = tmp_path / 'model.onnx'
    export_onnx(make_deployable(model).eval(), images[0], path,
                metadata=dict(calibration='folder of images'))
    with pytest.raises(ValueError, match='calibrated with a folder of images'):
        diff_checkpoints(checkpoint, str(path), config)


@pytest.mark.parametrize('format, size, dtype', [
    ('qdq', (40, 56), torch.uint8), ('qonnx', None, torch.float32)])
def test_a_checkpoint_is_compared_with_its_file(files, format, size, dtype,
                                                tmp_path):
    config, checkpoint = files
    cfg, model = load_model(config, checkpoint)
    images = first_images(cfg, 32)
    size = size or tuple(images[0].shape[2:])
    images = [pad_image(cfg, image, size).to(dtype) for image in images]
    model = make_deployable(model).eval()
    merged = merge(model, images[0])
    path = tmp_path / f'{format}.onnx'
    export_onnx(merged if format == 'qonnx' else to_integer(
        merged, images[0], images), images[0], path, format)
    found = diff_checkpoints(checkpoint, str(path), config, batches=1)
    assert 'backbone.layer1.0.conv1' in [each.name for each in found]
    assert first_parted(found) is None

    state = read_checkpoint(checkpoint)
    with torch.no_grad():
        key = 'backbone.layer2.0.conv1.weight'
        state['state_dict'][key] = state['state_dict'][key].flip(0)
    other = tmp_path / 'other.pth'
    torch.save(state, other)
    found = diff_checkpoints(str(other), str(path), config, batches=1)
    assert first_parted(found).name == 'backbone.layer2.0.conv1'
    assert largest(found).own.decibels < 20
    assert not math.isnan(largest(found).whole.decibels)
