# SPDX-License-Identifier: Apache-2.0
"""The text of ``gsbids`` alone and ``gsbids help``, and suggestions for mistyped commands."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from pathlib import Path

from gsbids import __version__
from gsbids.errors import InputError

#: Commands in the order in which they are shown: usage, what it does, and an example.
BIDS_COMMANDS = (
    (
        "BIDS_DIR OUT_DIR participant",
        "reconstruct every subject of a BIDS data set, with reports",
        "gsbids study study/derivatives/gsbids participant --participant-label 01",
    ),
    (
        "BIDS_DIR OUT_DIR group",
        "make one table and one page of all that is in OUT_DIR",
        "gsbids study study/derivatives/gsbids group",
    ),
)
FILE_COMMANDS = (
    (
        "reconstruct",
        "make one volume from stacks of slices",
        "gsbids reconstruct --input-stacks axial.nii.gz coronal.nii.gz sagittal.nii.gz --slice-thickness 3 "
        "--output-volume brain.nii.gz",
    ),
    ("super-resolve", "make one volume finer", "gsbids super-resolve brain.nii.gz fine.nii.gz --factor 2"),
    ("sample", "sample a saved model on any grid", "gsbids sample model.npz fine.nii.gz --spacing 0.5"),
    ("mask", "find the fetal brain in a stack", "gsbids mask stack.nii.gz mask.nii.gz"),
)


def overview() -> str:
    """List the commands with an example each."""
    width = max(len(usage) for usage, _, _ in (*BIDS_COMMANDS, *FILE_COMMANDS))

    def lines(commands: Sequence[tuple[str, str, str]]) -> str:
        return "\n".join(f"  gsbids {usage:<{width}}  {what}\n      {example}" for usage, what, example in commands)

    return (
        f"gsbids {__version__}: one sharp volume of the brain from slices that moved\n\nBIDS data sets:\n"
        f"{lines(BIDS_COMMANDS)}\n\nPlain files:\n{lines(FILE_COMMANDS)}\n\n"
        "Options: 'gsbids --help' for BIDS data sets, 'gsbids COMMAND --help' for the others."
    )


def check_command(words: Sequence[str], commands: Iterable[str]) -> None:
    """Refuse a first word that is a mistyped command.

    Parameters
    ----------
    words : sequence of str
        Arguments after ``gsbids``; the first one is no command.
    commands : iterable of str
        Commands that take files.

    Raises
    ------
    gsbids.errors.InputError
        The word resembles a command, and there is no folder of that name.

    Examples
    --------
    >>> check_command(["maks", "a.nii.gz", "b.nii.gz"], ["super-resolve", "mask"])
    Traceback (most recent call last):
    gsbids.errors.InputError: there is no command 'maks'; did you mean 'mask'? ('gsbids help' lists the commands)
    """
    word = words[0]
    close = get_close_matches(word, [*commands, "help"], n=1, cutoff=0.75)
    if close and not word.startswith("-") and not Path(word).exists():
        raise InputError(f"there is no command {word!r}; did you mean {close[0]!r}? ('gsbids help' lists the commands)")
