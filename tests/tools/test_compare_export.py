"""tools/compare_export.py: a file beside the package's own test."""
import json
import sys
from pathlib import Path

import pytest
import torch

import gdrq_mm
from gdrq_mm.deploy import export_onnx
from gdrq_mm.deployable import first_images, make_deployable
from gdrq_mm.openmmlab.publish import inference_config
from gdrq_mm.openmmlab.scopes import build_model

TOOLS = Path(__file__).resolve().parents[2] / 'tools'
sys.path.insert(0, str(TOOLS))

import compare_export  # noqa: E402

QUANTIZATION = dict(weight=dict(bits=4), activation=dict(bits=4))


@pytest.fixture
def saved(load_config, tmp_path):
    """Config and checkpoint of an untrained classifier."""
    cfg = load_config('resnet')
    torch.manual_seed(0)
    model = build_model(cfg).eval()  # as tools do, with its preprocessor
    torch.nn.init.normal_(model.head.fc.weight)  # scores that differ
    cfg.dump(str(tmp_path / 'config.py'))
    torch.save(model.state_dict(), tmp_path / 'float.pth')
    return cfg, model, tmp_path / 'config.py', tmp_path / 'float.pth'


@pytest.fixture
def compare(monkeypatch):
    """Function *arguments -> figures."""

    def run(*arguments):
        monkeypatch.setattr(sys, 'argv', ['compare', *map(str, arguments)])
        return compare_export.compare(compare_export.parse_args())

    return run


def test_a_float_model_is_exported_and_compared(saved, compare, tmp_path,
                                                capsys):
    _, _, config, checkpoint = saved
    figures = compare(config, checkpoint, '--json', tmp_path / 'out.json')
    assert figures['same_labels'] == figures['images'] > 3
    assert figures['scores'] < 1e-5
    assert figures['metrics']['file'] == figures['metrics']['package']
    assert json.loads((tmp_path / 'out.json').read_text())['images'] == \
        figures['images']
    assert 'images with the same labels: ' in capsys.readouterr().out
    with pytest.raises(FileExistsError, match='another name'):
        compare(config, checkpoint, '--json', tmp_path / 'out.json')


@pytest.mark.parametrize('dynamic', [[], ['batch', 'size']])
def test_the_file_of_a_quantized_model_is_compared(
        dynamic, saved, compare, tmp_path, capsys):
    cfg, model, config, _ = saved
    images = first_images(cfg, 2, 'test')
    gdrq_mm.quantize_(model, QUANTIZATION)
    deployable = make_deployable(model, images[0].shape[2:]).eval()
    gdrq_mm.calibrate(model, [lambda: deployable(torch.cat(images))])
    checkpoint, file = tmp_path / 'quantized.pth', tmp_path / 'model.onnx'
    torch.save(model.state_dict(), checkpoint)
    cfg.custom_hooks = [dict(type='GDRQHook', quantization=QUANTIZATION)]
    cfg.custom_imports = dict(imports=['gdrq_mm'])
    cfg.dump(str(config))
    image = images[0].to(torch.uint8 if dynamic else torch.float32)
    export_onnx(deployable.eval(), image, file, dynamic=dynamic,
                calibration=[each.to(image.dtype) for each in images])
    figures = compare(config, checkpoint, '--file', file)
    assert figures['images'] > 3 and figures['scores'] < .1
    assert figures['same_labels'] > figures['images'] / 2
    assert ('images: any size' in capsys.readouterr().out) is bool(dynamic)
    with pytest.raises(ValueError, match='--file has a size of its own'):
        compare(config, checkpoint, '--file', file, '--shape', 32, 32)


def test_a_quantized_model_needs_its_file(saved, compare):
    cfg, _, config, checkpoint = saved
    cfg.custom_hooks = [dict(type='GDRQHook', quantization=QUANTIZATION)]
    inference_config(cfg).dump(str(config))
    with pytest.raises(ValueError, match='is quantized: give .* with --file'):
        compare(config, checkpoint)
