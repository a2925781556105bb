"""tools/compare_export.py: a file beside the package's own test."""
import json
import sys
from pathlib import Path

import onnx
import pytest
import torch

import gdrq_mm
from gdrq_mm.deploy import export_onnx
from gdrq_mm.deployable import first_images, make_deployable
from gdrq_mm.export import onnx_check
from gdrq_mm.export.onnx_ops import COMMON_TRANSLATIONS
from gdrq_mm.export.to_proto import to_proto
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


@pytest.fixture
def quantized(saved, tmp_path):
    """Its config and checkpoint after quantization, and a function that
    exports it: file, options -> path."""
    cfg, model, config, _ = saved
    images = first_images(cfg, 2, 'test')
    gdrq_mm.quantize_(model, QUANTIZATION)
    deployable = make_deployable(model).eval()
    gdrq_mm.calibrate(model, [lambda: deployable(torch.cat(images))])
    checkpoint = tmp_path / 'quantized.pth'
    torch.save(model.state_dict(), checkpoint)
    cfg.custom_hooks = [dict(type='GDRQHook', quantization=QUANTIZATION)]
    cfg.custom_imports = dict(imports=['gdrq_mm'])
    cfg.dump(str(config))

    def export(file, dtype=torch.float32, raw=False, **options):
        form = make_deployable(model, raw=raw).eval()
        export_onnx(form, images[0].to(dtype), file, input_names=['images'],
                    output_names=['logits'] if raw else form.output_names,
                    calibration=[each.to(dtype) for each in images],
                    **options)
        return file

    return config, checkpoint, export


@pytest.mark.parametrize('dynamic', [[], ['batch', 'size']])
def test_the_file_of_a_quantized_model_is_compared(
        dynamic, quantized, compare, tmp_path, capsys):
    config, checkpoint, export = quantized
    file = export(tmp_path / 'model.onnx',
                  torch.uint8 if dynamic else torch.float32, dynamic=dynamic)
    figures = compare(config, checkpoint, '--file', file)
    assert figures['images'] > 3 and figures['scores'] < .1
    assert figures['same_labels'] > figures['images'] / 2
    assert ('images: any size' in capsys.readouterr().out) is bool(dynamic)
    with pytest.raises(ValueError, match='--file has a size of its own'):
        compare(config, checkpoint, '--file', file, '--shape', 32, 32)


@pytest.mark.parametrize('form', ['qdq', 'tensorrt'])
def test_a_file_is_opened_as_it_was_checked(form, quantized, compare,
                                            tmp_path, monkeypatch):
    """ONNX Runtime's integer kernels are not made for the tensorrt form."""
    opened, session = [], onnx_check.session

    def note(path, *args, **options):
        opened.append(options)
        return session(path, *args, **options)

    config, checkpoint, export = quantized
    file = export(tmp_path / 'model.onnx', format=form)
    monkeypatch.setattr(onnx_check, 'session', note)
    compare(config, checkpoint, '--file', file)
    assert opened == [dict(optimise=form == 'qdq')]


def test_a_test_set_that_is_not_there_has_a_remedy(saved, compare):
    _, _, config, checkpoint = saved
    with pytest.raises(OSError, match='test set cannot be read .*--cfg-option'
                       's test_dataloader.dataset.data_root=DIR'):
        compare(config, checkpoint, '--cfg-options',
                'test_dataloader.dataset.data_root=nowhere')


def test_a_file_that_cannot_be_compared_is_refused(
        quantized, compare, tmp_path, build_model):
    config, checkpoint, export = quantized
    cut = tmp_path / 'cut.onnx'
    cut.write_bytes(export(tmp_path / 'model.onnx').read_bytes()[:999])
    opens = 'is no file that ONNX Runtime opens .*--target qdq or tensorrt'
    other = make_deployable(
        build_model('resnet', **{'model.head.num_classes': 3})).eval()
    fewer = tmp_path / 'fewer.onnx'
    onnx.save(to_proto(other, (torch.rand(1, 3, 32, 32), ),
                       COMMON_TRANSLATIONS, ['images'], ['scores']), fewer)
    for file, said in (
            (tmp_path / 'no.onnx', 'no.onnx, which is not there; give a file'),
            (tmp_path, 'which is not there; give a file'),
            (checkpoint, opens), (cut, opens),
            (export(tmp_path / 'q.onnx', format='qonnx'), opens),
            (export(tmp_path / 'raw.onnx', raw=True),
             'raw.onnx gives logits, .* with scores: .* without --raw'),
            (fewer, r'fewer.onnx gives outputs of shape \(1, 3\), the model '
             r'of the checkpoint \(1, ')):
        with pytest.raises((OSError, ValueError), match=said) as raised:
            compare(config, checkpoint, '--file', file)
        assert '\n' not in str(raised.value)


def test_a_quantized_model_needs_its_file(saved, compare):
    cfg, _, config, checkpoint = saved
    cfg.custom_hooks = [dict(type='GDRQHook', quantization=QUANTIZATION)]
    inference_config(cfg).dump(str(config))
    with pytest.raises(ValueError, match='is quantized: give .* with --file'):
        compare(config, checkpoint)
