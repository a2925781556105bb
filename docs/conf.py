"""The site: ``make docs`` builds it from the Markdown in this checkout.

The source folder is the checkout itself, so that every relative link is the
same on the site and where the files are read.
"""
import re
import runpy
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gdrq_mm.version import __version__  # noqa: E402

project = 'gdrq_mm'
author = 'the authors of gdrq_mm'
version = release = __version__

root_doc = 'README'
include_patterns = ['*.md', 'docs/**', 'configs/*/README.md',
                    'model_zoo/README.md']
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon',
              'sphinx.ext.viewcode']

myst_enable_extensions = ['html_image']
myst_heading_anchors = 4

autodoc_member_order = 'bysource'
# Names that a class gives to what is documented elsewhere.
autodoc_default_options = {'exclude-members': 'Scheme'}
autodoc_inherit_docstrings = False
autodoc_typehints = 'none'  # the docstrings name types and shapes
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = 'furo'
html_title = f'gdrq_mm {__version__}'
html_static_path = ['_static']
html_css_files = ['site.css']
html_extra_path = ['_redirect']
templates_path = []

# What stands beside every page; pages that are not named are put at the end.
SECTIONS = {
    'Start': ['docs/install', 'docs/demo'],
    'From float to deployed': [
        'docs/tasks/detection', 'docs/tasks/segmentation',
        'docs/tasks/classification', 'docs/how_to', 'docs/deploy',
        *(f'docs/deploy/{name}' for name in (
            'onnxruntime', 'openvino', 'tensorrt', 'qonnx-finn', 'hls4ml'))],
    'Reference': ['docs/config', 'docs/api', 'docs/errors',
                  'docs/checkpoint_format', 'docs/analysis', 'docs/extend',
                  'docs/patches'],
    'Background': ['docs/architecture', 'docs/method', 'docs/results',
                   'docs/comparison', 'docs/performance', 'docs/support',
                   'docs/export'],
    'Configs and models': ['model_zoo/README', *(
        str(path.relative_to(ROOT).with_suffix(''))
        for path in sorted(ROOT.glob('configs/*/README.md')))],
    'Project': ['CONTRIBUTING', 'CHANGELOG', 'SECURITY'],
}


def navigation() -> str:
    """The tables of contents, in Markdown."""
    there = {str(path.relative_to(ROOT).with_suffix(''))
             for pattern in ('*.md', 'docs/**/*.md', 'configs/*/README.md',
                             'model_zoo/README.md')
             for path in ROOT.glob(pattern)} - {root_doc}
    named = {page for pages in SECTIONS.values() for page in pages}
    sections = {**SECTIONS, 'More': sorted(there - named)}
    text = ''
    for caption, pages in sections.items():
        pages = [page for page in pages if page in there]
        if pages:
            text += '\n'.join(['', '```{toctree}', ':hidden:',
                               f':caption: {caption}', '', *pages, '```', ''])
    return text


def to_readmes(app, docname, source):
    """A link to a folder is one to its README, as where files are read."""
    here = (ROOT / docname).parent

    def replace(match):
        readme = match[1].rstrip('/') + '/README.md'
        return f']({readme})' if (here / readme).exists() else match[0]

    source[0] = re.sub(r'\]\(([^)#:]+)\)', replace, source[0])


def add_navigation(app, docname, source):
    """The README is the first page, and knows nothing of the site."""
    if docname == root_doc:
        source[0] += navigation()


def write_config_reference(app):
    """The page is kept as the code has it."""
    script = runpy.run_path(str(ROOT / 'docs' / 'config_reference.py'))
    path, page = script['OUT'], script['page']()
    if path.read_text() != page:
        path.write_text(page)


def skip_field_numbers(app, what, name, obj, skip, options):
    """Fields of named tuples: their class describes them."""
    if (getattr(obj, '__doc__', '') or '').startswith('Alias for field'):
        return True
    return None


def setup(app):
    app.connect('autodoc-skip-member', skip_field_numbers)
    app.connect('builder-inited', write_config_reference)
    app.connect('source-read', to_readmes)
    app.connect('source-read', add_navigation)
