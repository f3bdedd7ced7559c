# SPDX-License-Identifier: Apache-2.0
"""Folders to which libraries write beside the output: compiled kernels, fonts, temporary files.

On clusters and in containers the usual places may be read-only: the installation, the home folder (or there is
none), even ``/tmp``. Then a spare folder is used, which is below the work folder.
"""

import importlib.util
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from gsbids.errors import InputError

#: Set in the container image: a folder that holds ``numba/`` and ``matplotlib/`` as they are after a first run.
PREPARED = "GSBIDS_CACHE"
FOLDERS = {"numba": "NUMBA_CACHE_DIR", "matplotlib": "MPLCONFIGDIR"}

_V3 = {"abm", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"}
_V4 = {"avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl"}

#: x86-64 levels that kernels are compiled for in the image, best first, with what Linux calls their features.
LEVELS = {"x86-64-v4": _V3 | _V4, "x86-64-v3": _V3}


def processor_levels(cpuinfo: str) -> list[str]:
    r"""List the levels that a processor has, best first.

    Parameters
    ----------
    cpuinfo : str
        Text of ``/proc/cpuinfo``.

    >>> processor_levels("flags\t\t: fpu abm movbe fma f16c bmi1 bmi2 avx2")
    ['x86-64-v3']
    """
    lines = (line.partition(":") for line in cpuinfo.splitlines())
    flags = next((set(value.split()) for name, _, value in lines if name.strip() == "flags"), set())
    return [level for level, needed in LEVELS.items() if needed <= flags]


@contextmanager
def writable_places(spare: Path) -> Iterator[None]:
    """Set folders that libraries can write to, and copy prepared caches of the image there.

    Parameters
    ----------
    spare : Path
        Folder that is used, and made, only for what has no other place.
    """
    changes = find_places(spare, os.environ)
    before = {name: os.environ.get(name) for name in changes}
    made = [folder for folder in (spare, *spare.parents) if not folder.exists()]
    os.environ.update(changes)
    if "TMPDIR" in changes:
        Path(changes["TMPDIR"]).mkdir(parents=True, exist_ok=True)
        tempfile.tempdir = None  # it is asked for once only
    if os.environ.get(PREPARED):
        for name, variable in FOLDERS.items():
            _copy_once(Path(os.environ[PREPARED]) / name, Path(os.environ[variable]))
    try:
        yield
    except InputError:  # nothing stays of what cannot be used
        if made:
            shutil.rmtree(spare, ignore_errors=True)
        with suppress(OSError):  # others have used it meanwhile
            for folder in made[1:]:
                folder.rmdir()
        raise
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if "TMPDIR" in changes:
            tempfile.tempdir = None


@contextmanager
def spare_places(output: Path) -> Iterator[None]:
    """Set writable places for commands without a work folder.

    A hidden folder beside their output is used as long as they run.
    """
    spare = output.absolute().with_name(f".{output.name}-{os.getpid()}")
    try:
        with writable_places(spare):
            yield
    finally:
        shutil.rmtree(spare, ignore_errors=True)


def find_places(spare: Path, environ: Mapping[str, str]) -> dict[str, str]:
    """Return environment variables to be set, with folders in ``spare``; none where all is as usual.

    In the image numba's cache and matplotlib's are always in ``spare``, unless another place was given: numba's holds
    code, and the one folder that all can write to, ``/tmp``, may be shared with other users.
    """
    changes = {}
    if not _has_temporary_folder(environ):
        changes["TMPDIR"] = str(spare / "tmp")
    home = Path(os.path.expanduser("~"))
    if not home.is_absolute():  # neither HOME nor a name; libraries ask for it when they are loaded
        home = spare / "home"
        changes["HOME"] = str(home)
    cache = Path(environ.get("XDG_CACHE_HOME") or home / ".cache")
    settings = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    usual = {  # where numba looks, one after the other, and what matplotlib uses: both folders
        "numba": lambda: _writable(_kernels() / "__pycache__") or _writable(cache / "numba"),
        "matplotlib": lambda: _writable(cache / "matplotlib") and _writable(settings / "matplotlib"),
    }
    for name, variable in FOLDERS.items():
        given = environ.get(variable)
        if not (_writable(Path(given)) if given else not environ.get(PREPARED) and usual[name]()):
            changes[variable] = str(spare / name)
    if environ.get(PREPARED) and not {"NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"} & set(environ):
        level = next(iter(processor_levels(_cpuinfo())), None)
        changes |= {"NUMBA_CPU_NAME": level, "NUMBA_CPU_FEATURES": ""} if level else {}
    return changes


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return ""


def _kernels() -> Path:
    """Return the folder of the sources of the kernels, without loading them."""
    return Path(importlib.util.find_spec("gsbids.kernels").submodule_search_locations[0], "cpu")  # type: ignore[index, union-attr]


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _has_temporary_folder(environ: Mapping[str, str]) -> bool:
    try:
        found = tempfile.gettempdir()
    except FileNotFoundError:
        return False
    # Python's last resort is the current folder, which may be that of the data.
    named = {os.path.abspath(environ[name]) for name in ("TMPDIR", "TEMP", "TMP") if environ.get(name)}
    return found in {*named, "/tmp", "/var/tmp", "/usr/tmp"} or found != os.getcwd()


def _copy_once(source: Path, target: Path) -> None:
    """Fill a folder that is empty or missing, in one step: other jobs may share it.

    If it fails, the caches are made again, which takes longer.
    """
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))
    except OSError:
        return
    try:
        shutil.copytree(source, folder, dirs_exist_ok=True)
        folder.rename(target)  # refused if there is anything in it
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
