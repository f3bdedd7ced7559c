# SPDX-License-Identifier: Apache-2.0
"""The interface to pybids: an index of a data set, and queries in it."""

import json
import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from glob import escape
from pathlib import Path
from typing import Any

from gsbids.bids.metadata import Sidecars
from gsbids.errors import InputError

LOGGER = logging.getLogger("gsbids.bids")

EXTENSIONS = (".nii", ".nii.gz")

#: Stands for JSON's null in a filter (TOML has no null): the entity must be absent.
ABSENT = "<none>"

_INDEX = "layout_index.sqlite"  # name that pybids gives a kept index

# What pybids does not keep: names that are not in UTF-8.
_NOT_UTF8 = re.compile(r"[\udc80-\udcff]")

# Of a derivative data set, as by pybids itself.
_IGNORE_DERIVED = (re.compile(r"^/(code|models|sourcedata|stimuli)"),)

_IGNORE = (
    re.compile(r"/\."),
    re.compile(r"^/(derivatives|sourcedata|code|stimuli|models|phenotype)(/|$)"),
    re.compile(r"^/(?!sub-)[^/]+/."),
    re.compile(r"/(beh|dwi|eeg|fmap|func|ieeg|meg|micr|motion|mrs|nirs|perf|pet)(/|$)"),
)


class _Loop:
    """Pattern of paths that pybids must not index: links to folders that they lie in.

    pybids follows such links until the path is too long for the machine, and twice as often for every link.
    """

    def __init__(self, root: Path) -> None:
        self._root = Path(root).absolute()

    def search(self, below: str) -> bool:
        """Return whether a path below the root is such a link, and log it."""
        path = self._root / below.lstrip("/")
        if not path.is_symlink() or not path.is_dir():
            return False
        target = path.resolve()
        loop = any(parent.resolve() == target for parent in path.parents)
        if loop:
            LOGGER.warning("%s: left out, as this link leads back to %s, in which it lies; remove it", path, target)
        return loop


def open_raw(
    root: Path, participants: Sequence[str] = (), database_dir: Path | None = None, database_wipe: bool = False
) -> Any:
    """Index the names of a raw data set: the anatomical files of subjects, nothing from ``derivatives/``.

    Parameters
    ----------
    root : Path
    participants : sequence of str
        Labels; only these are indexed, unless the index is kept for later.
    database_dir : Path, optional
        Folder in which the index is kept; it is used again when it is there; later changes of the data are logged.
    database_wipe : bool
        Make the kept index again.

    Returns
    -------
    bids.layout.BIDSLayout

    Raises
    ------
    gsbids.errors.InputError
        pybids cannot index the data set, or a kept index cannot be read or is of another data set.
    """
    ignore = [*_IGNORE, _Loop(root)]
    if participants and database_dir is None:
        labels = "|".join(map(re.escape, participants))
        ignore.append(re.compile(rf"^/sub-(?!({labels})(/|$))"))
    index = database_dir and Path(database_dir) / _INDEX
    if index and database_wipe:
        index.unlink(missing_ok=True)  # pybids would have to read it first
    kept = bool(index) and index.exists()  # type: ignore[union-attr]
    try:
        layout = _open(root, ["bids"], ignore, database_path=database_dir, reset_database=database_wipe)
    except InputError as error:
        if not kept:
            raise
        raise InputError(
            f"--bids-database-dir {database_dir}: the index there cannot be read; add "
            "--bids-database-wipe to make it again"
        ) from error
    if Path(layout.root).resolve() != Path(root).resolve():
        raise InputError(
            f"--bids-database-dir {database_dir}: holds the index of {layout.root}; "
            "add --bids-database-wipe or give another folder"
        )
    if kept and not _is_ours(layout):
        LOGGER.warning(
            "--bids-database-dir %s: the index there is of another tool or version; it is not used, and the "
            "data set is looked through; add --bids-database-wipe to replace it",
            database_dir,
        )
        return _open(root, ["bids"], ignore)
    if kept:
        _say_what_changed(layout, database_dir)  # type: ignore[arg-type]
    return layout


def _is_ours(layout: Any) -> bool:
    """Return whether an index was made by our rules."""
    found = layout.get_entities()
    return all(
        entity["name"] in found and found[entity["name"]].pattern == entity["pattern"]
        for rules in _entity_rules(Path(layout.root), ["bids"])
        for entity in rules["entities"]
    )


def _say_what_changed(layout: Any, database_dir: Path) -> None:
    """Log images that a kept index does not know, and those that it knows and that are gone."""
    there = {path for path in anatomical_files(Path(layout.root)) if path.name.endswith(EXTENSIONS) and is_utf8(path)}
    known = {Path(file.path) for file in layout.get(datatype="anat", extension=list(EXTENSIONS))}
    changed = {"new": sorted(there - known), "gone": sorted(path for path in known if not os.path.lexists(path))}
    words = [f"{len(paths)} {what} (first {paths[0]})" for what, paths in changed.items() if paths]
    if words:
        LOGGER.warning(
            "--bids-database-dir %s: images came or went since the index was made, and are left out: %s; "
            "add --bids-database-wipe to make it again",
            database_dir,
            ", ".join(words),
        )


def open_derivative(root: Path) -> Any:
    """Index a derivative data set by names only; no ``dataset_description.json`` is needed."""
    return _open(root, ["bids", "derivatives"], [*_IGNORE_DERIVED, _Loop(root)])


def anatomical_files(root: Path, participants: Sequence[str] = (), sessions: Sequence[str] = ()) -> list[Path]:
    """List the files in the folders of anatomical images on the disk, whatever their names, but hidden ones."""
    subjects = [f"sub-{escape(label)}" for label in participants] or ["sub-*"]
    within = [f"ses-{escape(label)}/anat" for label in sessions] or ["anat", "ses-*/anat"]
    return sorted(
        path
        for subject in subjects
        for folder in within
        for path in root.glob(f"{subject}/{folder}/*")
        if not path.name.startswith(".")
    )


def is_utf8(path: Path) -> bool:
    """Return whether the name of a file and those of its folders are in UTF-8; pybids supports no others."""
    return not _NOT_UTF8.search(str(path))


def _open(root: Path, rules: Sequence[str], ignore: Sequence, **database: Any) -> Any:
    """Open a layout of names; metadata are read by :class:`gsbids.bids.metadata.Sidecars`."""
    from bids.layout import BIDSLayout, BIDSLayoutIndexer
    from sqlalchemy.exc import SQLAlchemyError

    root = Path(root).absolute()
    if not is_utf8(root):
        raise InputError(f"{root}: the path is not in UTF-8; rename the folder")
    try:
        return BIDSLayout(
            root,
            validate=False,
            derivatives=False,
            config=_entity_rules(root, rules),
            indexer=BIDSLayoutIndexer(validate=False, index_metadata=False, ignore=[*ignore, _NOT_UTF8]),
            **database,
        )
    except (ValueError, OSError, TypeError, AttributeError, RecursionError, SQLAlchemyError) as error:
        raise InputError(f"{root}: pybids cannot index the data set ({one_line(error)})") from error


def _entity_rules(root: Path, names: Sequence[str]) -> list[dict]:
    """Return pybids' rules for the entities of a file, bound to the path below the root.

    By themselves they search the absolute path: below ``run-7/`` every file would be of run 7. Dots may stand in
    labels, so that such a file is found, and can be named.
    """
    from bids.config import get_option

    above = f"^{re.escape(str(root))}(?=/)(?s:.*?)"
    rules = [json.loads(Path(get_option("config_paths")[name]).read_text(encoding="utf-8")) for name in names]
    for entity in (entity for rule in rules for entity in rule["entities"]):
        pattern = entity["pattern"]
        if entity["name"] in ("suffix", "extension"):
            pattern = pattern.replace(r"\.[^/\\]+", r"\.[^_/\\]+")
        entity["pattern"] = f"{above}(?:{pattern})"
    return rules


def query(layout: Any, values: Mapping, where: str) -> list[Path]:
    """Return the files whose names match a filter, as far as they are still there.

    Parameters
    ----------
    layout : bids.layout.BIDSLayout
    values : mapping
        pybids entity names to values or lists of values; null or ``ABSENT``: the entity must be
        absent; ``"*"``: it must be there.
    where : str
        Origin of the filter, for messages.

    Raises
    ------
    gsbids.errors.InputError
        pybids does not understand the filter.
    """
    try:
        return [Path(file.path) for file in layout.get(**_convert(values)) if os.path.lexists(file.path)]
    except (TypeError, ValueError) as error:
        # The second sentence of pybids is for programmers.
        raise InputError(f"{where}: {one_line(error).partition('. If you')[0]}") from error


def query_with_metadata(layout: Any, default: Mapping, wanted: Mapping, where: str, sidecars: Sidecars) -> list[Path]:
    """Return the files that match a filter, whose keys may also be fields of the sidecars.

    Parameters
    ----------
    layout, where
        As for :func:`query`.
    default : mapping
        Entities that are asked for in any case.
    wanted : mapping
        Filter.
    sidecars : Sidecars
        Sidecars of the same data set. A file whose sidecar cannot be read is taken: that is reported elsewhere.
    """
    others = [key for key in wanted if key not in layout.get_entities()]
    metadata = {path: sidecars.readable(path) for path in query(layout, default, where)} if others else {}
    fields = [key for key in others if any(key in found for found in metadata.values() if found is not None)]
    found = query(layout, {**default, **{key: wanted[key] for key in wanted if key not in fields}}, where)
    return [
        path
        for path in found
        if not fields or metadata.get(path) is None or all(_says(metadata[path], key, wanted[key]) for key in fields)  # type: ignore[arg-type]
    ]


def _says(metadata: Mapping, key: str, value: object) -> bool:
    """Return whether a field has a value, or one of a list; null and ``"*"`` as for entities."""
    if isinstance(value, list | tuple):
        return any(_says(metadata, key, item) for item in value)
    if value in (None, ABSENT, "*"):
        return (key in metadata) == (value == "*")
    return key in metadata and str(metadata[key]) == str(value)


def compressed_twin(path: Path, files: Collection[Path]) -> Path | None:
    """Return the ``.nii.gz`` among some files that has the name of a ``.nii``: it is taken, as both are one image."""
    twin = path.with_name(path.name + ".gz")
    return twin if path.suffix == ".nii" and twin in files else None


def one_line(error: BaseException) -> str:
    """Return the text of an exception without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def _convert(values: Mapping) -> dict:
    from bids.layout import Query

    special = {None: Query.NONE, ABSENT: Query.NONE, "*": Query.ANY}

    def convert(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return [convert(item) for item in value]
        return special.get(value, value)

    return {key: convert(value) for key, value in values.items()}
