"""What the docs say of the code is so."""
import runpy
from pathlib import Path

DOCS = Path(__file__).parents[1] / 'docs'


def test_the_drawing_of_the_rooms_is_of_this_code():
    script = runpy.run_path(str(DOCS / 'draw_architecture.py'))
    script['check_names']()
    drawing = DOCS / 'images' / 'architecture.svg'
    assert drawing.read_text() == script['draw']()
