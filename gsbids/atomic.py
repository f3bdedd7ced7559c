# SPDX-License-Identifier: Apache-2.0
"""Files that are whole or not there: written under a temporary name, then renamed."""

import fcntl
import os
import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_TEMPORARY = re.compile(r"\..+\.\d+\.tmp(\.nii(\.gz)?)?")
# Seconds; an empty temporary file that is younger may be about to be locked.
_JUST_MADE = 60.0


@contextmanager
def replacing(path: str | Path, ending: str = "") -> Iterator[Path]:
    """Give a temporary name for a file that takes the place of ``path`` when the block has ended well.

    The temporary file is locked meanwhile (where the file system can), so that :func:`sweep` knows it from one
    that a killed process has left, and is on the disk before it is renamed.

    Parameters
    ----------
    path : path-like
        File in an existing folder. An existing file stays as it is until the block has ended.
    ending : str
        Ending of the temporary name, for libraries that depend on it.

    Yields
    ------
    pathlib.Path
        Temporary path in the folder of ``path``. It is removed when the block raises.

    Raises
    ------
    OSError
        The file cannot be written; it names ``path``.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with replacing(Path(folder) / "a.txt") as temporary:
    ...         _ = temporary.write_text("whole")
    ...         before = sorted(path.name == "a.txt" for path in Path(folder).iterdir())
    ...     before, [path.name for path in Path(folder).iterdir()]
    ([False], ['a.txt'])
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp{ending}")
    descriptor = None
    try:
        descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o666)
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield temporary
        os.fsync(descriptor)
        os.replace(temporary, path)
    except OSError as error:
        names = [str(name) for name in (error.filename, error.filename2) if name is not None]
        if error.errno is None or (names and str(temporary) not in names):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink()
        if descriptor is not None:
            os.close(descriptor)


def write_atomic(path: str | Path, source: str | Path | bytes) -> None:
    """Copy a file, or write bytes, under a temporary name in the same folder, then rename."""
    with replacing(path) as temporary:
        if isinstance(source, bytes):
            temporary.write_bytes(source)
        else:
            shutil.copyfile(source, temporary)


def sweep(folders: Iterable[Path]) -> list[Path]:
    """Remove temporary files that killed processes have left in these folders (not below them).

    Returns
    -------
    list of Path
        Removed files. A file that another process is writing, on this machine or another, is left alone, and so
        is everything on file systems without locks.
    """
    removed = []
    for path in (path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())):
        if _TEMPORARY.fullmatch(path.name) and path.is_file() and _abandoned(path):
            path.unlink(missing_ok=True)
            removed.append(path)
    return removed


def _abandoned(path: Path) -> bool:
    try:
        with open(path, "rb+") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            facts = os.fstat(file.fileno())
            return facts.st_size > 0 or time.time() - facts.st_mtime > _JUST_MADE
    except OSError:
        return False
