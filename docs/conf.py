# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration; ``make docs`` builds the pages."""

import shutil
from pathlib import Path

from pyro_tilt import __version__

project = "pyro_tilt"
author = "The pyro_tilt developers"
copyright = author
release = __version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
    "myst_nb",
]
html_theme = "furo"
html_title = f"pyro_tilt {release}"
html_static_path = ["_static"]
html_css_files = ["wide.css"]
exclude_patterns = ["_build"]
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_inherit_docstrings = False
myst_enable_extensions = ["dollarmath"]
nb_execution_mode = "off"
nb_merge_streams = True
suppress_warnings = ["mystnb.unknown_mime_type", "myst.header"]

# Notebooks live beside their sources in tutorials/; Sphinx reads below this folder only.
_here = Path(__file__).parent
_copies = _here / "tutorials"
_copies.mkdir(exist_ok=True)
for _notebook in sorted((_here.parent / "tutorials").glob("*.ipynb")):
    shutil.copy(_notebook, _copies / _notebook.name)
