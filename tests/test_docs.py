"""What the docs say of the code is so."""
import json
import re
import runpy
from pathlib import Path

import mmcv
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

DOCS = Path(__file__).parents[1] / 'docs'


def test_the_drawing_of_the_rooms_is_of_this_code():
    script = runpy.run_path(str(DOCS / 'draw_architecture.py'))
    script['check_names']()
    drawing = DOCS / 'images' / 'architecture.svg'
    assert drawing.read_text() == script['draw']()


def test_the_config_reference_is_of_this_code():
    script = runpy.run_path(str(DOCS / 'config_reference.py'))
    page = script['page']()
    for row in ("| `bits` | int | `None` | 1 to 8. None: weights stay float. "
                '|', "### `type='LSQ'`", '| `begin_epoch` | int | `0` | '):
        assert row in page


def test_a_page_of_commands_gets_their_output(tmp_path):
    script = runpy.run_path(str(DOCS / 'run_commands.py'))
    page = tmp_path / 'page.md'
    page.write_text('```python\n# say.py\nprint(1 + 2)\n```\n'
                    '```console\n$ python3 say.py\nold\n'
                    '$ echo a \\\n  b\n```\n```\n$ echo left alone\n```\n')
    script['run_page'](page, tmp_path)
    assert page.read_text().endswith(
        '```console\n$ python3 say.py\n3\n$ echo a \\\n  b\na b\n```\n'
        '```\n$ echo left alone\n```\n')


def write_detector(path):
    """A file with the inputs, outputs and metadata of an exported detector
    that finds the same in all images."""
    found = dict(boxes=np.float32([[[2, 4, 10, 12], [0, 0, 3, 3],
                                    [0, 0, 0, 0]]]),
                 scores=np.float32([[.9, .2, 0]]),
                 labels=np.int64([[1, 0, -1]]))
    nodes = [helper.make_node('Constant', [], [name],
                              value=numpy_helper.from_array(value))
             for name, value in found.items()]
    # Of the image itself, so that the input is used: its first value.
    nodes += [
        helper.make_node('ReduceMin', ['images'], ['least'], keepdims=0),
        helper.make_node('Clip', ['least', 'zero', 'zero'], ['nothing']),
        helper.make_node('Add', ['boxes', 'nothing'], ['out'])]
    images = helper.make_tensor_value_info(
        'images', onnx.TensorProto.FLOAT, (1, 3, 32, 64))
    kinds = (('out', onnx.TensorProto.FLOAT, (1, 3, 4)),
             ('scores', onnx.TensorProto.FLOAT, (1, 3)),
             ('labels', onnx.TensorProto.INT64, (1, 3)))
    model = helper.make_model(helper.make_graph(
        nodes, 'detector', [images],
        [helper.make_tensor_value_info(*each) for each in kinds],
        [numpy_helper.from_array(np.float32(0), 'zero')]),
        opset_imports=[helper.make_opsetid('', 18)], ir_version=8)
    helper.set_model_props(model, dict(
        classes='["cat", "dog"]', padding='[3, 2, 1]',
        pipeline='[{"type": "Resize", "scale": [48, 32], "keep_ratio": true}]'
    ))
    onnx.save(model, path)


def test_the_example_runs_a_file(tmp_path, monkeypatch, capsys):
    page = (DOCS / 'deploy' / 'onnxruntime.md').read_text()
    source, = re.findall(r'```python\n# predict.py\n(.*?)```', page, re.S)
    write_detector(tmp_path / 'my.onnx')
    mmcv.imwrite(np.zeros((64, 96, 3), np.uint8), str(tmp_path / 'image.jpg'))
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(source, 'predict.py', 'exec'), names)
    # 64 x 96 becomes 32 x 48; the rest is filled, in the order of channels.
    assert names['batch'][0, :, 5, 60].tolist() == [3, 2, 1]
    assert capsys.readouterr().out == 'dog 0.900 [ 4  8 20 24]\n'


def texts_in(value):
    if isinstance(value, dict):
        for each in value.items():
            yield from texts_in(each)
    elif isinstance(value, (list, tuple)):
        for each in value:
            yield from texts_in(each)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize('path', sorted((DOCS / 'results').glob('*.json')),
                         ids=lambda path: path.stem)
def test_results_name_no_folder_of_the_machine_that_made_them(path):
    assert not [text for text in texts_in(json.loads(path.read_text()))
                if text.startswith('/')]
