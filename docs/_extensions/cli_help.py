"""Sphinx directive that shows the help text of a command: ```` ```{cli-help} train ````."""

import os
from importlib import import_module

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from flaxresnet.cli import parser

COLUMNS = 88  # as many as fit the page of the theme


class CliHelp(SphinxDirective):
    """Inserts the text that `flaxresnet COMMAND --help` prints, or `--help-all` if the command has it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Returns a literal block with the help text."""
        name = self.arguments[0]
        command = import_module(f"flaxresnet.cli.{name.replace('-', '_')}")
        os.environ["COLUMNS"] = str(COLUMNS)  # argparse reads the width there
        layout = getattr(command, "LAYOUT", None)
        text = parser.format_help(command.Arguments, f"flaxresnet {name}", layout)
        return [nodes.literal_block(text, text, language="text")]


def setup(app: Sphinx) -> dict[str, bool]:
    """Registers the directive."""
    app.add_directive("cli-help", CliHelp)
    return {"parallel_read_safe": True}
