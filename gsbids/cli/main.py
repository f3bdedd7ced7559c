# SPDX-License-Identifier: Apache-2.0
"""Entry point: from arguments to an exit code; every error of the user is one line."""

import argparse
import logging
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gsbids.cli.commands import mask, reconstruct, sample, super_resolve
from gsbids.cli.overview import check_command, overview
from gsbids.cli.parser import parse_args
from gsbids.cli.places import writable_places
from gsbids.cli.running.progress import RunLog, TerminalHandler
from gsbids.cli.running.signals import handled
from gsbids.config import Config
from gsbids.errors import GsbidsError, InputError

if TYPE_CHECKING:
    from types import FrameType

LOGGER = logging.getLogger("gsbids.cli")

INTERRUPTED = 130  # exit code after Ctrl-C: 128 + SIGINT
BROKEN_PIPE = 141  # as a shell says of a command that SIGPIPE ended
LONGEST = 1200  # characters of a message

#: Commands that take files, not a BIDS data set.
COMMANDS: dict[str, Any] = {command.COMMAND: command for command in (reconstruct, super_resolve, sample, mask)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program; ``sys.argv[1:]`` by default.

    Returns
    -------
    int
        0 all done; 1 a subject failed; 2 options or data cannot be used; 3 all was computed, but the volume of at
        least one subject is marked "do not use"; 70 the workflow could not be built; 127 a command is missing; 130
        interrupted; 141 nobody reads the standard output.
    """
    try:
        try:
            return _run(argv)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # As with ``| head``: nothing to complain of, neither here nor when Python flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE


def _run(argv: Sequence[str] | None) -> int:
    with _messages() as logger, _terminated_like_interrupted():
        try:
            words = list(sys.argv[1:] if argv is None else argv)
            typed = shlex.join(["gsbids", *words])
            if not words:
                print(overview(), file=sys.stderr)
                return InputError.exit_code
            if words[0] == "help":
                return _help(words[1:])
            if command := COMMANDS.get(words[0]):
                args = command.parse(words[1:])
                args.command = typed
                return command.run(args)
            check_command(words, COMMANDS)
            args = parse_args(words)
            args.command = typed
            logger.setLevel(logging.DEBUG if args.verbosity else logging.INFO)
            if args.analysis_level == "group":
                from gsbids.cli.commands.group import run

                return run(args)
            from gsbids.cli.plan import make_config

            config = make_config(args)
            # Before anything loads the kernels: numba wants to know then where it may keep them.
            with writable_places(config.execution.work_dir / ".cache"):
                return _participants(args, config)
        except GsbidsError as error:
            LOGGER.error("%s", " ".join(str(error).split()))
            return error.exit_code
        except KeyboardInterrupt:
            LOGGER.error("interrupted; the same command goes on from here")
            return INTERRUPTED


def _help(words: Sequence[str]) -> int:
    """Print the help of ``gsbids help``, or of ``gsbids help COMMAND``, which is ``gsbids COMMAND --help``."""
    if words and words[0] in COMMANDS:
        COMMANDS[words[0]].parse(["--help"])
    print(overview())
    return 0


def _participants(args: argparse.Namespace, config: Config) -> int:
    """Run the participant level: reconstructions, reports alone, or the methods text alone."""
    from gsbids.cli.plan import make_plan

    plan = make_plan(args, config)
    if (args.reports_only or args.boilerplate_only) and not args.dry_run:
        from gsbids.cli.commands.reports import print_boilerplate, remake_reports

        return remake_reports(plan) if args.reports_only else print_boilerplate(plan)
    from gsbids.cli.running.run import run_plan

    return run_plan(plan)


class _Formatter(logging.Formatter):
    """Formatter of ``gsbids: error: ...``; plain text below the level of warnings."""

    def format(self, record: logging.LogRecord) -> str:
        """Format a message."""
        text = super().format(record)
        if record.levelno >= logging.WARNING:
            return f"gsbids: {record.levelname.lower()}: {_quotable(text)}"
        return text


def _quotable(text: str) -> str:
    r"""Make a message one line of readable length, whatever it quotes from files and names.

    >>> _quotable("a\nb \x1b[2J \udcff")
    'a\\nb \\x1b[2J \\udcff'
    """
    shown = text if len(text) <= LONGEST else f"{text[: LONGEST // 2]} ... {text[-LONGEST // 2 :]}"
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in shown)


@contextmanager
def _messages() -> Iterator[logging.Logger]:
    """Send messages of gsbids to the standard error, once, and to the logs of the run, while the command line runs."""
    logger = logging.getLogger("gsbids")
    handler, log = TerminalHandler(sys.stderr), RunLog()
    handler.setFormatter(_Formatter("%(message)s"))
    before = logger.level, logger.propagate
    logger.addHandler(handler)
    logger.addHandler(log)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    try:
        yield logger
    finally:
        logger.removeHandler(handler)
        logger.removeHandler(log)
        logger.setLevel(before[0])
        logger.propagate = before[1]


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """End a terminated run (as by a batch system) as cleanly as an interrupted one."""

    def interrupt(number: int, frame: "FrameType | None") -> None:
        raise KeyboardInterrupt

    with handled([signal.SIGTERM], interrupt):
        yield
