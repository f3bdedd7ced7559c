# SPDX-License-Identifier: Apache-2.0
"""The arguments of ``gsbids``: argparse and nothing else, so that ``--help`` is quick."""

import argparse
import re
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

from gsbids import __version__
from gsbids.cli.argument_types import RESOLUTION_RANGE, OneOrThree, between, label, level, with_dashes
from gsbids.cli.options import add_corrections, add_masking, add_orientation, add_resources, add_seed_and_device
from gsbids.imaging.limits import THICKNESS_RANGE

DESCRIPTION = (
    "Reconstruct volumes from stacks of slices that were acquired while the subject moved, and "
    "super-resolve single volumes."
)
EPILOG = (
    "Plain files without BIDS: gsbids reconstruct --help, gsbids super-resolve --help, gsbids sample --help. "
    "Exit codes: 0 all done; 1 a subject failed; 2 the options or the data cannot be used; "
    "3 everything was computed, but the volume of at least one subject is marked 'do not use'; "
    "70 the workflow could not be built; 127 a command is missing; 130 interrupted."
)

FACTOR_RANGE = (1.0, 16.0)  # coarse voxels over fine ones, along an axis

#: Ways to say how fine a volume shall be: the command line's word replaces that of a settings file.
_SIZES = {"--output-resolution": "output_resolution", "--sr-factor": "sr_factor", "--like": "like"}


#: Options of fmriprep and mriqc that change nothing here, and why.
WITHOUT_EFFECT = {
    "--notrack": "gsbids never sends anything anywhere",
    "--skip-bids-validation": "gsbids does not run the validator; it checks what it uses",
    "--low-mem": "steps are planned by --mem",
    "--resource-monitor": "time and memory of every step are always in log/*/*_usage.tsv and in the report",
    "--md-only-boilerplate": "all forms of the methods text are written at once",
}


class Parser(argparse.ArgumentParser):
    """Parser whose errors are one line: ``gsbids: error: ...``."""

    def error(self, message: str) -> NoReturn:
        """Print one line, with the option that a mistyped one resembles, and exit with code 2."""
        unknown = re.match(r"unrecognized arguments: (--[^\s=]+)", message)
        close = unknown and get_close_matches(unknown[1], self._option_string_actions, n=1, cutoff=0.7)
        meant = f"; did you mean {close[0]}?" if close else ""
        self.exit(2, f"{self.prog}: error: {' '.join(message.split())}{meant} ({self.prog} --help lists the options)\n")


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; a ``--config-file`` gives the defaults.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program; ``sys.argv[1:]`` by default. Options may be spelled with ``_`` for ``-``.
    """
    argv = [with_dashes(arg) for arg in (sys.argv[1:] if argv is None else argv)]
    parser = build_parser()
    config_file = _config_file(argv)
    if config_file is not None:
        values = _settings(config_file)
        if any(arg.partition("=")[0] in _SIZES for arg in argv):
            values = {key: value for key, value in values.items() if key not in _SIZES.values()}
        parser.set_defaults(**values)
    return parser.parse_args(argv)


def _config_file(argv: Sequence[str]) -> str | None:
    for position, arg in enumerate(argv):
        if arg.startswith("--config-file="):
            return arg.partition("=")[2]
        if arg == "--config-file" and position + 1 < len(argv):
            return argv[position + 1]
    return None


def _settings(path: str) -> dict[str, object]:
    """Read the settings of a TOML file, checked as if they had been given as options."""
    from gsbids.config import read_toml

    values = {
        key: value for section in read_toml(path).values() for key, value in section.items() if key not in _OF_ONE_RUN
    }
    parser = build_parser()
    options = {action.dest: action for action in reversed(parser._actions) if action.option_strings}
    argv = [word for key, value in values.items() if key in options for word in _as_words(options[key], value)]
    checked = vars(parser.parse_args(["-", "-", "participant", *argv]))
    return {key: checked[key] if key in options else value for key, value in values.items()}


def _as_words(action: argparse.Action, value: Any) -> list[str]:
    """Return an option and its values as one would type them."""
    name = action.option_strings[0]
    if isinstance(value, bool):
        return [name] if value else action.option_strings[1:2]  # type: ignore[return-value]
    if action.dest == "verbosity":
        return [name] * value
    if action.dest == "memory_gb":
        return [name, f"{value}G"]
    if isinstance(value, dict):
        value = tuple(f"{key}={item}" for key, item in value.items())
    if isinstance(value, tuple):
        return [name, *map(str, value)] if value else []
    return [name, str(value)]


# Settings in a TOML file that belong to the run that wrote it.
_OF_ONE_RUN = ("bids_dir", "output_dir", "run_uuid", "command", "version", "dry_run")


def build_parser() -> Parser:
    """Build the parser, with one group of options a paragraph of ``--help``."""
    parser = Parser(prog="gsbids", description=DESCRIPTION, epilog=EPILOG, allow_abbrev=False)
    parser.add_argument("bids_dir", type=Path, help="root folder of the BIDS data set")
    parser.add_argument(
        "output_dir", type=Path, help="folder for the results: outside bids_dir, or its derivatives/gsbids"
    )
    parser.add_argument(
        "analysis_level",
        type=level,
        metavar="{participant,group}",
        help="participant: reconstruct; group: one table and one page of all that is in output_dir",
    )
    parser.add_argument("--version", action="version", version=f"gsbids {__version__}")
    parser.add_argument(
        "-v", "--verbose", dest="verbosity", action="count", default=0, help="say more; -vv also what nipype says"
    )
    parser.add_argument("--debug", dest="verbosity", action="store_const", const=2, help="the same as -vv")
    parser.set_defaults(bids_filters={}, plugin="auto", plugin_args={})
    _add_selection(parser.add_argument_group("which data"))
    _add_method(parser.add_argument_group("what is computed"))
    resources = parser.add_argument_group("resources")
    add_resources(resources)
    _add_plugin(resources)
    _add_control(parser.add_argument_group("control of the run"))
    others = parser.add_argument_group("accepted for scripts of other BIDS-Apps, and without effect")
    for name, why in WITHOUT_EFFECT.items():
        others.add_argument(name, action="store_true", help=why)
    return parser


def _add_selection(group: Any) -> None:
    group.add_argument(
        "--participant-label",
        "--participant-labels",
        nargs="+",
        type=label("sub"),
        metavar="LABEL",
        default=(),
        help="participants to run, with or without sub- (default: all)",
    )
    group.add_argument(
        "--session-label",
        "--session-id",
        nargs="+",
        type=label("ses"),
        metavar="LABEL",
        default=(),
        help="sessions to run, with or without ses- (default: all)",
    )
    group.add_argument(
        "--bids-filter-file",
        type=Path,
        metavar="JSON",
        help='queries "stacks" and "masks" with pybids entities; null: absent, "*": any',
    )
    group.add_argument(
        "--bids-database-dir",
        type=Path,
        metavar="DIR",
        help="cache the index of the data set here, and use it when it is there",
    )
    group.add_argument("--bids-database-wipe", action="store_true", help="rebuild the cached index of the data set")
    group.add_argument(
        "-d",
        "--derivatives",
        nargs="+",
        metavar="[NAME=]PATH",
        default={},
        help="derivative data sets with brain masks of the stacks (*_mask.nii.gz)",
    )


def _add_method(group: Any) -> None:
    _add_kind(group)
    _add_size(group.add_mutually_exclusive_group())
    _add_super_resolution(group)
    _add_preparation(group)
    add_orientation(group, template="auto")
    add_seed_and_device(group)


def _add_kind(group: Any) -> None:
    group.add_argument(
        "--mode",
        choices=("auto", "svr", "sr"),
        default="auto",
        help="svr: slice-to-volume reconstruction of two or more stacks; sr: super-resolution of every "
        "volume by itself; auto: svr for two or more thick stacks of one contrast, else sr "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--svr-method",
        choices=("default", "paper"),
        default="default",
        help="how it is fitted; paper: as in the paper on which it builds, slower and less exact, "
        "to compare with (default: %(default)s)",
    )
    group.add_argument(
        "-m",
        "--modality",
        "--modalities",
        default="T2w",
        metavar="SUFFIX",
        help="suffix of the stacks (default: %(default)s)",
    )


def _add_size(size: Any) -> None:
    size.add_argument(
        "--output-resolution",
        type=between(*RESOLUTION_RANGE),
        nargs="+",
        action=OneOrThree,
        metavar="MM",
        default=(),
        help="voxel size of the volume, for sr also one for each array axis "
        "(default: svr 0.8; sr half the voxel, thick slices as fine as in their plane)",
    )
    size.add_argument(
        "--sr-factor",
        type=between(*FACTOR_RANGE, unit=""),
        nargs="+",
        action=OneOrThree,
        metavar="F",
        default=(),
        help="sr: how many times finer, one number or one for each array axis",
    )
    size.add_argument("--like", type=Path, metavar="GRID.nii.gz", help="sr: the grid of this image")


def _add_super_resolution(group: Any) -> None:
    group.add_argument(
        "--sr-quality",
        choices=("full", "fast"),
        default="full",
        help="sr: fast is the linear solution, in seconds (default: %(default)s)",
    )
    group.add_argument(
        "--sr-profile",
        choices=("auto", "trilinear", "box", "gaussian", "kspace"),
        default="auto",
        help="sr: point-spread function assumed for the voxels; auto: the mean over the "
        "voxel, and a Gaussian slice profile across thick slices (default: %(default)s)",
    )


def _add_preparation(group: Any) -> None:
    group.add_argument(
        "--slice-thickness",
        type=between(*THICKNESS_RANGE),
        metavar="MM",
        help="thickness of the slices, instead of SliceThickness in the sidecars",
    )
    add_masking(
        group, ("auto", "derivatives", "network", "nonzero", "otsu", "none"), "--derivatives if it has one, else"
    )
    add_corrections(group, "with svr, not with sr")


def _add_plugin(group: Any) -> None:
    group.add_argument(
        "--use-plugin",
        "--nipype-plugin-file",
        type=Path,
        metavar="YAML",
        help="nipype plugin and its arguments: keys plugin and plugin_args",
    )


def _add_control(group: Any) -> None:
    group.add_argument(
        "-w",
        "--work-dir",
        type=Path,
        default=Path("work"),
        metavar="DIR",
        help="where steps keep what they made, to go on from (default: ./%(default)s)",
    )
    group.add_argument(
        "--clean-workdir", action="store_true", help="first remove what earlier runs of the selected data kept there"
    )
    group.add_argument("--stop-on-first-crash", action="store_true", help="stop everything when one step fails")
    group.add_argument(
        "--config-file",
        type=Path,
        metavar="TOML",
        help="settings of a former run (gsbids.toml); command-line options take precedence",
    )
    group.add_argument(
        "--dry-run", action="store_true", help="print tasks and steps with their threads and memory, run nothing"
    )
    only = group.add_mutually_exclusive_group()
    only.add_argument(
        "--reports-only",
        action="store_true",
        help="write the reports again from outputs and working folder, with the settings of the last run",
    )
    only.add_argument(
        "--boilerplate-only",
        action="store_true",
        help="print the methods text with its references, and write it to output_dir/logs",
    )
    group.add_argument(
        "--preview",
        action="store_true",
        help="write a first volume within seconds, and better ones until the final one is there",
    )
    group.add_argument(
        "--write-graph",
        action="store_true",
        help="draw the workflow into the work folder: its parts, all steps, and all steps by part "
        "(with --dry-run: without running it)",
    )
