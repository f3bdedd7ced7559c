# SPDX-License-Identifier: Apache-2.0
"""Errors that are shown to people: one line with the finding, the file or option, and the remedy."""

from contextlib import suppress
from pathlib import Path

#: Exit code where everything was computed, but the volume of at least one subject is marked "do not use".
NOT_TO_BE_USED = 3

# What files begin with that stand for a content kept elsewhere, and what fetches it.
_POINTERS = {b"/annex/objects/": "datalad get or git annex get", b"version https://git-lfs": "git lfs pull"}


class GsbidsError(Exception):
    """Error with one readable line and an exit code.

    Parameters
    ----------
    message : str
        One line that names the file or option, says what was found, and what to do about it.
    """

    exit_code = 1


class InputError(GsbidsError):
    """Error of data or options of the user that cannot be used (exit code 2)."""

    exit_code = 2


class WorkflowError(GsbidsError):
    """Error of a workflow that could not be built (exit code 70, as ``EX_SOFTWARE``)."""

    exit_code = 70


class DeviceError(GsbidsError):
    """Error of a requested compute device that cannot be used (exit code 126)."""

    exit_code = 126


def not_fetched(path: str | Path) -> str:
    """Describe a file whose content is not here: a link without a target, a pointer of git-annex or Git LFS.

    Returns
    -------
    str
        One line; empty where the file has its content, or where there is no such file.
    """
    path = Path(path)
    if path.is_symlink() and not path.exists():
        return f"{path}: the target of this link is not here; get its content, as with datalad get, or remove the link"
    with suppress(OSError), open(path, "rb") as file:
        start = file.read(32)
        for sign, command in _POINTERS.items():
            if start.startswith(sign):
                return f"{path}: the content of this file was not fetched; get it with {command}, or remove the file"
    return ""
