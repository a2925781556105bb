"""What the docs say of the code is so."""
import json
import runpy
from pathlib import Path

import pytest

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
