"""A directive whose content is made from the code when the site is built: ``{generated} settings``.

The argument is a module of ``docs/_generate`` that has a function ``page() -> str`` giving Markdown.
"""

from __future__ import annotations

import importlib
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective


class Generated(SphinxDirective):
    """Puts a generated piece of reference at this place of the page, headings included."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        made: str = importlib.import_module(f"_generate.{self.arguments[0]}").page()
        self.env.note_reread()  # the code may change without the page
        return self.parse_text_to_nodes(made, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    app.add_directive("generated", Generated)
    return {"parallel_read_safe": True}
