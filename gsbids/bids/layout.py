# SPDX-License-Identifier: Apache-2.0
"""The few things that we ask of pybids: an index of a data set, and queries in it."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from gsbids.errors import InputError

EXTENSIONS = (".nii", ".nii.gz")

#: Stands for JSON's null in a filter (TOML has no null): the entity must be absent.
ABSENT = "<none>"

_IGNORE = (
    re.compile(r"/\."),
    re.compile(r"^/(derivatives|sourcedata|code|stimuli|models|phenotype)(/|$)"),
    re.compile(r"^/(?!sub-)[^/]+/."),
    re.compile(r"/(beh|dwi|eeg|fmap|func|ieeg|meg|micr|motion|mrs|nirs|perf|pet)(/|$)"))


def open_raw(root: Path, participants: Sequence[str] = (), database_dir: Path | None = None,
             database_wipe: bool = False):
    """Index a raw data set: subjects' anatomical files and sidecars, nothing from ``derivatives/``.

    Parameters
    ----------
    root : Path
    participants : sequence of str
        Labels; only these are indexed, unless the index is kept for later.
    database_dir : Path, optional
        Where the index is kept; used again when it is there.
    database_wipe : bool
        Make the kept index anew.

    Returns
    -------
    bids.layout.BIDSLayout

    Raises
    ------
    gsbids.errors.InputError
        A sidecar that is not JSON, or an index of another data set.
    """
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    ignore = list(_IGNORE)
    if participants and database_dir is None:
        labels = "|".join(map(re.escape, participants))
        ignore.append(re.compile(rf"^/sub-(?!({labels})(/|$))"))
    try:
        layout = BIDSLayout(root, validate=False, derivatives=False, database_path=database_dir,
                            reset_database=database_wipe,
                            indexer=BIDSLayoutIndexer(validate=False, ignore=ignore))
    except (ValueError, OSError, TypeError, AttributeError, RecursionError) as error:
        # pybids raises these and their subclasses on sidecars and indices that it cannot read, and names no file.
        raise InputError(_broken_sidecar(Path(root)) or
                         f"{root}: pybids cannot index the data set ({one_line(error)})") from error
    if Path(layout.root).resolve() != Path(root).resolve():
        raise InputError(f"--bids-database-dir {database_dir}: holds the index of {layout.root}; "
                         "add --bids-database-wipe or give another folder")
    return layout


def open_derivative(root: Path):
    """Index a derivative data set by names only; no ``dataset_description.json`` is needed."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer

    return BIDSLayout(root, validate=False, derivatives=False, config=["bids", "derivatives"],
                      indexer=BIDSLayoutIndexer(validate=False, index_metadata=False))


def query(layout, values: Mapping, where: str) -> list:
    """Files that match a filter.

    Parameters
    ----------
    layout : bids.layout.BIDSLayout
    values : mapping
        pybids entity names to values or lists of values; null or ``ABSENT``: the entity must be
        absent; ``"*"``: it must be there.
    where : str
        Where the filter comes from, for messages.

    Raises
    ------
    gsbids.errors.InputError
        pybids does not understand the filter.
    """
    try:
        return layout.get(**_convert(values))
    except (TypeError, ValueError) as error:
        # The second sentence of pybids is for programmers.
        raise InputError(f"{where}: {one_line(error).partition('. If you')[0]}") from error


def _broken_sidecar(root: Path) -> str:
    """The first JSON file that is no sidecar, and why; empty where all are."""
    for path in sorted((*root.glob("*.json"), *root.glob("sub-*/**/*.json"))):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            return f"{path}: not a JSON file ({one_line(error)}); correct it"
        if not isinstance(found, dict):
            return f"{path}: holds no JSON object {{...}}; correct it"
        targets = found.get("IntendedFor", [])
        if not all(isinstance(target, str) for target in (targets if isinstance(targets, list) else [targets])):
            return f"{path}: IntendedFor is {str(targets)[:80]!r}, a path or a list of paths is expected; correct it"
    return ""


def one_line(error: BaseException) -> str:
    """Text of an exception without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def _convert(values: Mapping) -> dict:
    from bids.layout import Query

    special = {None: Query.NONE, ABSENT: Query.NONE, "*": Query.ANY}

    def convert(value):
        if isinstance(value, list | tuple):
            return [convert(item) for item in value]
        return special.get(value, value)

    return {key: convert(value) for key, value in values.items()}
