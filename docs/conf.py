"""The settings of the documentation: ``sphinx-build -W -b html docs docs/_build/html``."""

from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

import unirnn

project = "unirnn"
copyright = "the unirnn authors"
version = release = unirnn.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
root_doc = "index"
myst_heading_anchors = 2  # as code hosts make them

# A word between backquotes in a docstring is a link if it names an object; otherwise it is code, such as `(T, B, H)`.
default_role = "py:obj"
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings describe the arguments, and signatures stay short
napoleon_google_docstring = False
napoleon_attr_annotations = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = f"unirnn {release}"


def name_the_files_of_diffs(app: Sphinx, doctree: nodes.document) -> None:
    """Show only the names of the two files of a diff, and not the folders of the machine that Sphinx runs on."""
    for block in doctree.findall(nodes.literal_block):
        if block.get("language") == "udiff":
            lines = block.astext().splitlines(keepends=True)
            lines[:2] = [f"{line[:4]}{Path(line[4:].strip()).name}\n" for line in lines[:2]]
            block.rawsource, block[:] = "".join(lines), [nodes.Text("".join(lines))]


def set_the_language(
    app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    """Mark the Chinese pages as such: search engines, screen readers and the choice of fonts go by it."""
    context["language"] = "zh" if page.endswith(".zh") else "en"


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("doctree-read", name_the_files_of_diffs)
    app.connect("html-page-context", set_the_language)
