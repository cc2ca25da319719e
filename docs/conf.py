"""Sphinx configuration: `sphinx-build -W docs docs/_build`, with the extra `docs` installed."""

import sys
from pathlib import Path

import flaxresnet

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "flaxresnet"
author = "the flaxresnet authors"
version = flaxresnet.__version__
release = flaxresnet.__version__
html_title = f"flaxresnet {release}"
html_theme = "furo"

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "cli_help"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # tests/test_docs.py runs the code of the pages
exclude_patterns = ["_build", "_extensions"]

autodoc_typehints = "signature"
autodoc_member_order = "bysource"
smartquotes = False  # they would turn the hyphens of flags into dashes
default_role = "code"  # for `names` in docstrings
napoleon_google_docstring = True
napoleon_use_ivar = True
# Links to files outside docs/ work on the repository's pages only.
suppress_warnings = ["myst.xref_missing"]
