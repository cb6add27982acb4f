"""The settings of the documentation: ``sphinx-build -W -b html docs docs/_build/html``."""

import unirnn

project = "unirnn"
copyright = "the unirnn authors"
version = release = unirnn.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
root_doc = "index"
myst_heading_anchors = 2  # as code hosts make them

# A backquoted word in a docstring is a link where it names an object, and code where it doesn't, as `(T, B, H)`.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature stays short; the docstrings say what is taken
napoleon_google_docstring = False
napoleon_attr_annotations = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"unirnn {release}"
