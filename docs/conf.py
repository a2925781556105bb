"""The site: ``make docs`` builds it from the Markdown in this checkout.

The source folder is the checkout itself, so that every relative link is the
same on the site and where the files are read.
"""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from gdrq_mm.version import __version__  # noqa: E402

project = 'gdrq_mm'
author = 'the authors of gdrq_mm'
version = release = __version__

root_doc = 'README'
include_patterns = ['*.md', 'docs/**.md', 'configs/*/README.md']
exclude_patterns = ['model_zoo/**']
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.napoleon',
              'sphinx.ext.viewcode']

myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 4

autodoc_member_order = 'bysource'
# Names that a class gives to what is documented elsewhere.
autodoc_default_options = {'exclude-members': 'Scheme'}
autodoc_typehints = 'none'  # the docstrings name types and shapes
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = 'furo'
html_title = f'gdrq_mm {__version__}'
html_static_path = ['_static']
html_css_files = ['site.css']
html_extra_path = ['_redirect']
templates_path = []

# The README is the first page; this is what stands beside every page.
NAVIGATION = """

```{toctree}
:hidden:
:caption: From float to deployed

docs/how_to
docs/deploy
```

```{toctree}
:hidden:
:caption: Reference

docs/patches
docs/api
```

```{toctree}
:hidden:
:caption: Background

docs/architecture
docs/method
docs/results
docs/performance
```

```{toctree}
:hidden:
:caption: Configs

configs/faster_rcnn/README
configs/pspnet/README
configs/resnet/README
configs/vgg/README
```

```{toctree}
:hidden:
:caption: Project

CONTRIBUTING
CHANGELOG
```
"""


def add_navigation(app, docname, source):
    if docname == root_doc:
        source[0] += NAVIGATION


def setup(app):
    app.connect('source-read', add_navigation)
