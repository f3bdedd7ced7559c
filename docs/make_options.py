# SPDX-License-Identifier: Apache-2.0
"""Write ``docs/options.md`` from the parsers: ``python docs/make_options.py``."""

import argparse
import textwrap
from contextlib import suppress
from pathlib import Path
from unittest import mock

from gsbids.cli.main import COMMANDS
from gsbids.cli.parser import build_parser

PAGE = Path(__file__).with_name("options.md")

HEAD = """\
<!-- Written by docs/make_options.py from the parsers (make docs-options); a test compares the two. -->

# Options

The texts are those of `--help`. Options by topic, with examples: [usage](usage.md).
"""

TAIL = """\
## Exit codes

| code | meaning |
|---|---|
| 0 | all done |
| 1 | at least one subject failed or was refused; the others are done |
| 2 | options or data that cannot be used: one line says what was found and what to do |
| 3 | everything was computed, but at least one volume is marked `do not use` |
| 70 | the workflow could not be built |
| 127 | a command of the batch system is missing |
| 130 | interrupted |
| 141 | nobody reads the standard output any more (a pipe that was closed) |
"""


def parser_of(command) -> argparse.ArgumentParser:
    """The parser that a command builds in its ``parse``."""
    caught = []

    def catch(self, *_, **__):
        caught.append(self)
        raise StopIteration

    with mock.patch.object(argparse.ArgumentParser, "parse_args", catch), suppress(StopIteration):
        command.parse([])
    return caught[0]


def heading(action: argparse.Action, parser: argparse.ArgumentParser) -> str:
    """Names of an option, the value after the last one."""
    formatter = parser._get_formatter()
    if not action.option_strings:
        return f"`{formatter._format_args(action, action.metavar or action.dest)}`"
    names = [f"`{name}`" for name in action.option_strings]
    if action.nargs != 0:
        default = formatter._get_default_metavar_for_optional(action)
        names[-1] = f"`{action.option_strings[-1]} {formatter._format_args(action, default)}`"
    return ", ".join(names)


def section(parser: argparse.ArgumentParser) -> list[str]:
    """Description, and a list for each group of options."""
    lines = [textwrap.fill(" ".join(parser.description.split()), 118), ""]
    for group in parser._action_groups:
        actions = [
            action for action in group._group_actions if action.help is not argparse.SUPPRESS and action.dest != "help"
        ]
        if not actions:
            continue
        lines += [f"### {group.title[0].upper()}{group.title[1:]}", ""]
        for action in actions:
            text = " ".join(parser._get_formatter()._expand_help(action).split()) if action.help else ""
            text = text.replace("<", "&lt;").replace("*", "\\*")
            item = f"{heading(action, parser)}: {text}" if text else heading(action, parser)
            lines += textwrap.wrap(
                item, 118, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False, break_long_words=False
            )
        lines.append("")
    return lines


def page() -> str:
    """The whole page."""
    lines = [HEAD, "## gsbids BIDS_DIR OUT_DIR participant, group", "", *section(build_parser())]
    for name, command in COMMANDS.items():
        lines += [f"## gsbids {name}", "", *section(parser_of(command))]
    return "\n".join(lines) + "\n" + TAIL


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
