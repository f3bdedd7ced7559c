# SPDX-License-Identifier: Apache-2.0
"""The site of the documentation: ``make docs``."""

import html
import re

from docutils import nodes
from docutils.parsers.rst import Directive

import gsbids

project = "gsbids"
author = "The gsbids developers"
project_copyright = "The gsbids developers, Apache-2.0"
release = version = gsbids.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "results"]

# Pages
myst_heading_anchors = 4
myst_enable_extensions = ["colon_fence"]

# Docstrings are in numpydoc form.
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"

# Nothing is loaded from elsewhere: the theme brings its own fonts and scripts.
html_theme = "furo"
html_title = f"gsbids {release}"
html_show_sourcelink = False
html_math_renderer = "plain"


class Workflow(Directive):
    """Show the code of fmriprep's ``.. workflow::`` without drawing a graph, which needs graphviz."""

    has_content = True
    option_spec = dict.fromkeys(("graph2use", "simple_form"), str)

    def run(self):
        """The code as a block."""
        code = "\n".join(self.content)
        return [nodes.literal_block(code, code, language="python")]


def drop_outside_links(app, docname, source):
    """Keep the words alone of links that leave ``docs/``: those files are no part of the site."""
    up = re.escape("../" * (docname.count("/") + 1))
    source[0] = re.sub(rf"\[([^\]]+)\]\({up}[^)]*\)", r"\1", source[0])


def plain_math(translator, node):
    """Formulas as they are written, without a script from elsewhere."""
    translator.body.append(f"<code>{html.escape(node.astext())}</code>")
    raise nodes.SkipNode


def setup(app):
    """Called by Sphinx."""
    app.add_html_math_renderer("plain", (plain_math, None), (plain_math, None))
    app.add_directive("workflow", Workflow)
    app.connect("source-read", drop_outside_links)
