# SPDX-License-Identifier: Apache-2.0
"""``.bidsignore``: files that the owner of a data set excludes."""

import logging
import re
from collections.abc import Callable
from pathlib import Path, PurePath

from gsbids.errors import InputError, not_fetched

LOGGER = logging.getLogger("gsbids.bids")

FILE = ".bidsignore"

# Neither letters nor stars are escaped in patterns of names of BIDS: folders are meant.
_BACKSLASH = re.compile(r"\\[\w*]")


def read_bidsignore(root: Path) -> Callable[[PurePath], bool]:
    """Return a test of whether a file is listed in the ``.bidsignore`` of a data set, with patterns as ``.gitignore``.

    Parameters
    ----------
    root : Path
        Root folder of the data set.

    Returns
    -------
    callable
        Takes the path of a file relative to the root.

    Raises
    ------
    gsbids.errors.InputError
        The file cannot be read, or a line is no pattern.
    """
    file = root / FILE
    if missing := not_fetched(file):
        raise InputError(missing)
    try:
        text = file.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except FileNotFoundError:
        return lambda below: False
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror}); make it readable or remove it") from error
    if "\0" in text:  # as of UTF-16, which some shells write
        raise InputError(f"{file}: not a text in UTF-8; save it as UTF-8")
    lines = text.splitlines()
    for line in lines:
        if not line.startswith("#") and _BACKSLASH.search(line):
            LOGGER.warning("%s: %r has backslashes, which part no folders here; write / between folders", file, line)
    from pathspec import GitIgnoreSpec

    try:
        spec = GitIgnoreSpec.from_lines(lines)
    except ValueError as error:
        raise InputError(f"{file}: {' '.join(str(error).split())}; correct it") from error
    return lambda below: spec.match_file(below.as_posix())
