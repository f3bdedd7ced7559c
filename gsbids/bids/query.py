# SPDX-License-Identifier: Apache-2.0
"""Search for reconstruction tasks in a BIDS data set: which stacks, with which masks."""

import json
import logging
import math
import os
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gsbids.bids.bidsignore import read_bidsignore
from gsbids.bids.layout import (
    ABSENT,
    EXTENSIONS,
    anatomical_files,
    compressed_twin,
    is_utf8,
    open_raw,
    query,
    query_with_metadata,
)
from gsbids.bids.masks import MaskIndex
from gsbids.bids.metadata import Sidecars
from gsbids.bids.names import ENTITY_ORDER, entity_value, parse_name, raw_fault
from gsbids.bids.task import ReconstructionTask, StackFile
from gsbids.errors import InputError, not_fetched

LOGGER = logging.getLogger("gsbids.bids")

# What ImageType calls images of the phase, and real and imaginary ones.
_NO_MAGNITUDES = ("P", "PHASE", "PHASE MAP", "R", "REAL", "I", "IMAGINARY")

# Folders on the way to images; without the last star links that lead nowhere are not found.
_FOLDERS = ("sub-*", "sub-*/anat*", "sub-*/ses-*", "sub-*/ses-*/anat*")

# Endings of images, of whatever format and however written.
_IMAGE = re.compile(r"\.(nii|img|mg[hz]|nrrd|mh[ad]|mnc|dcm)\b(?!.*\.json$)", re.IGNORECASE)

# Stacks that differ in these alone are repeats of one contrast.
_ENUMERATE = ("run", "dir", "chunk")


@dataclass(frozen=True)
class Selection:
    """Selection of stacks and masks.

    Attributes
    ----------
    suffix : str
    participants, sessions : tuple of str
        Labels without prefix; empty: all.
    filters : mapping
        ``{"stacks": {...}, "masks": {...}}`` with pybids' entity names.
    filter_file : str
        Origin of the filters, for messages.
    mask_datasets : mapping of str to Path
        Derivative data sets with masks, by name.
    output_dir : Path or None
        Output folder, whose files are never input.
    slice_thickness : float or None
        Overrides the sidecars, mm.
    database_dir : Path or None
    database_wipe : bool
    """

    suffix: str = "T2w"
    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    filters: Mapping[str, Mapping] = field(default_factory=dict)
    filter_file: str = "--bids-filter-file"
    mask_datasets: Mapping[str, Path] = field(default_factory=dict)
    output_dir: Path | None = None
    slice_thickness: float | None = None
    database_dir: Path | None = None
    database_wipe: bool = False


def find_tasks(bids_dir: str | Path, selection: Selection | None = None) -> list[ReconstructionTask]:
    """Find the reconstruction tasks of a data set.

    Stacks of one subject, session and contrast (suffix, ``acq``, ``ce``, ``rec`` and the like) form a
    task; ``run``, ``dir`` and ``chunk`` enumerate its stacks. Only names, sidecars and the index of
    pybids are looked at; see :func:`gsbids.bids.check.check_task` for the data.

    Parameters
    ----------
    bids_dir : path
    selection : Selection, optional
        Everything of suffix T2w by default.

    Returns
    -------
    list of ReconstructionTask
        Sorted by name; never empty.

    Raises
    ------
    gsbids.errors.InputError
        Missing or empty data set, unknown participant or session, a filter that leaves nothing.
    """
    selection = selection or Selection()
    bids_dir = Path(bids_dir).absolute()
    _check_participants(bids_dir, selection)
    for path in sorted(path for level in _FOLDERS for path in bids_dir.glob(level) if path.is_symlink()):
        if line := not_fetched(path):
            LOGGER.warning("%s", line)
    layout = open_raw(bids_dir, selection.participants, selection.database_dir, selection.database_wipe)
    sidecars = Sidecars(layout.root)
    files = _query_stacks(layout, bids_dir, selection, sidecars)
    masks = MaskIndex(
        selection.mask_datasets, selection.filters.get("masks", {}), selection.filter_file, selection.output_dir
    )
    groups: dict[tuple, list[StackFile]] = {}
    errors: dict[tuple, list[str]] = {}
    for path in sorted(files, key=_natural):
        stack, troubles = _stack(path, sidecars, masks, selection.slice_thickness)
        group = tuple(sorted(_common(stack.entities).items()))
        groups.setdefault(group, []).append(stack)
        errors.setdefault(group, []).extend(troubles)
    tasks = [_task(dict(group), stacks, errors.get(group, ())) for group, stacks in groups.items()]
    return sorted(tasks, key=lambda task: _natural(task.name))


def list_participants(bids_dir: str | Path) -> list[str]:
    """List the labels of the ``sub-`` folders.

    Raises
    ------
    gsbids.errors.InputError
        No such folder, or no subject in it.
    """
    root = Path(bids_dir)
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder; give the root folder of a BIDS data set")
    labels = sorted(entry.name[4:] for entry in os.scandir(root) if entry.name.startswith("sub-") and entry.is_dir())
    if not labels:
        raise InputError(f"{root}: no sub-<label> folder in it; give the root folder of a BIDS data set")
    return labels


def _check_participants(bids_dir: Path, selection: Selection) -> None:
    known = list_participants(bids_dir)
    unknown = [label for label in selection.participants if label not in known]
    if unknown:
        raise InputError(
            f"--participant-label {' '.join(unknown)}: not in {bids_dir}; participants there are {_some(known)}"
        )
    sessions = sorted(
        {
            entry.name[4:]
            for label in selection.participants or known
            for entry in (bids_dir / f"sub-{label}").glob("ses-*")
            if entry.is_dir()
        }
    )
    unknown = [label for label in selection.sessions if label not in sessions]
    if unknown:
        raise InputError(
            f"--session-label {' '.join(unknown)}: not in {bids_dir}; "
            f"sessions of the selected participants are {_some(sessions)}"
        )


def _query_stacks(layout: Any, bids_dir: Path, selection: Selection, sidecars: Sidecars) -> list[Path]:
    default: dict[str, object] = {"datatype": "anat", "suffix": selection.suffix, "extension": list(EXTENSIONS)}
    if selection.participants:
        default["subject"] = list(selection.participants)
    if selection.sessions:
        default["session"] = list(selection.sessions)
    files = query(layout, default, str(bids_dir))
    others = query(layout, {key: default[key] for key in ("subject", "session") if key in default}, str(bids_dir))
    unreadable = [
        path for path in anatomical_files(bids_dir, selection.participants, selection.sessions) if not is_utf8(path)
    ]
    missed = sorted(set(others) - set(files))
    _say_near_misses([*missed, *unreadable], selection.suffix, sidecars.root)
    if not files:
        found = sorted(
            {
                parse_name(path.name)["suffix"]
                for path in others
                if path.parent.name == "anat" and path.name.endswith(EXTENSIONS)
            }
        )
        raise InputError(
            f"{bids_dir}: no {selection.suffix} image for {_who(selection)}; suffixes found: "
            f"{_some(found)}; choose one with --modality"
        )
    wanted = selection.filters.get("stacks", {})
    kept = query_with_metadata(layout, default, wanted, selection.filter_file, sidecars) if wanted else files
    if kept:
        return _usable(kept, bids_dir, sidecars, wanted)
    culprits = [
        key
        for key in wanted
        if not query_with_metadata(layout, default, {key: wanted[key]}, selection.filter_file, sidecars)
    ]
    shown = {key: None if wanted[key] == ABSENT else wanted[key] for key in culprits or wanted}
    raise InputError(
        f'{selection.filter_file}: the filter "stacks": {json.dumps(shown)} leaves none of '
        f"the {len(files)} {selection.suffix} images for {_who(selection)}; change or drop it"
    )


def _say_near_misses(files: Sequence[Path], suffix: str, root: Path) -> None:
    """Log images that the owner may take for stacks, and that are not found as such, with the reason."""
    for path in files:
        if _IMAGE.search(path.name) and (why := _near_miss(path.relative_to(root), suffix)):
            LOGGER.warning("%s: left out, as %s", path, why)


def _near_miss(below: Path, suffix: str) -> str:
    """Describe what keeps an image from being a stack whose name nearly says that it is one; empty for other images.

    The name has the suffix in other letters, with something after it, or not at the end; the file is of another format,
    or in another folder. Converters add a letter (``T2wa``), ``_Eq_1``, ``__dup-01``.
    """
    name = parse_name(below.name)
    nearly = re.compile(rf"{re.escape(suffix)}([^a-z].*|[a-vx-z])?", re.IGNORECASE)
    parts = [part for part in below.name.partition(".")[0].split("_") if not re.match("[a-z]+-", part)]
    if not any(map(nearly.fullmatch, parts)) or {"desc", "label"} & set(name):
        return ""
    if not is_utf8(below):
        return "its name is not in UTF-8; rename it, with its sidecar, to use it"
    if name["suffix"] != suffix:
        return f"its suffix is {name['suffix']!r}; rename it, with its sidecar, to end with _{suffix} to use it"
    if name["extension"] not in EXTENSIONS:
        return f"its name ends with {name['extension']!r}; convert it, or rename it, to .nii.gz to use it"
    fault = raw_fault(below)
    return f"{fault}; move it there, with its sidecar, to use it" if fault else ""


def _usable(files: Sequence[Path], bids_dir: Path, sidecars: Sidecars, wanted: Mapping) -> list[Path]:
    """Return the files that are stacks; log for each of the others why it is left out."""
    is_listed = read_bidsignore(sidecars.root)
    rest = {path for path in files if not is_listed(path.relative_to(sidecars.root))}
    reasons = {}
    for path in files:
        fault, twin = raw_fault(path.relative_to(sidecars.root)), compressed_twin(path, rest)
        if path not in rest:
            reasons[path] = "left out, as .bidsignore lists it; take it out of that file to use it"
        elif fault:
            reasons[path] = f"not a raw file name ({fault}), left out; rename or move it, with its sidecar, to use it"
        elif twin:
            reasons[path] = f"left out, as {twin} has the same name and is taken; remove one of the two"
        else:
            reasons[path] = _why_no_magnitude(path, sidecars, wanted)
    for path in files:
        if reasons[path]:
            LOGGER.warning("%s: %s", path, reasons[path])
    kept = [path for path in files if not reasons[path]]
    if not kept:
        raise InputError(f"{bids_dir}: none of {len(files)} images can be used; {files[0]}: {reasons[files[0]]}")
    return kept


def _why_no_magnitude(path: Path, sidecars: Sidecars, wanted: Mapping) -> str:
    """Describe why a file is left out as a phase, real or imaginary image; empty for others.

    Empty as well where a filter asks for it.
    """
    part = parse_name(path.name).get("part")
    types = (sidecars.readable(path) or {}).get("ImageType")
    words = types.split("\\") if isinstance(types, str) else types if isinstance(types, list) else ()
    other = next((word for word in words if str(word).upper() in _NO_MAGNITUDES), None)
    key, found = ("part", part) if part else ("ImageType", other)
    if found in (None, "mag") or key in wanted:
        return ""
    return (
        f'left out, as it is no magnitude image ({key} is {found}); ask for it by {key!r} in the query "stacks" '
        "of --bids-filter-file if it is what you want"
    )


def _stack(path: Path, sidecars: Sidecars, masks: MaskIndex, thickness: float | None) -> tuple[StackFile, list[str]]:
    """Return a stack with its metadata and its mask, and what keeps it from being used."""
    entities, metadata, mask, troubles = parse_name(path.name), {}, None, []
    del entities["extension"]
    try:
        metadata = sidecars.of(path)
        mask = masks.find(entities)
    except InputError as error:
        troubles.append(str(error))
    thickness = _thickness(path, metadata) if thickness is None else thickness
    return StackFile(path, entities, metadata, thickness, mask), troubles


def _thickness(path: Path, metadata: Mapping) -> float:
    """Return the thickness of the sidecar in mm; NaN where it is absent or no number."""
    value = metadata.get("SliceThickness")
    if value is None:
        return math.nan
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value <= sys.float_info.max:
        LOGGER.warning("%s: SliceThickness of the sidecar is %r, not a number of mm; ignored", path, value)
        return math.nan
    return float(value)


def _task(entities: dict[str, str], stacks: list[StackFile], errors: Sequence[str]) -> ReconstructionTask:
    ordered = {key: entities[key] for key in (*ENTITY_ORDER, "suffix") if key in entities}
    return ReconstructionTask(
        ordered["sub"],
        ordered.get("ses"),
        ordered["suffix"],
        ordered,
        tuple(stacks),
        errors=(*errors, *_same_entities(stacks)),
    )


def _same_entities(stacks: Sequence[StackFile]) -> Iterator[str]:
    """Yield one line about every stack that cannot be distinguished from one before it."""
    first: dict[tuple, Path] = {}
    for stack in stacks:
        key = tuple(entity_value(stack.entities, key) for key in _ENUMERATE)
        if key in first:
            yield (
                f"{first[key]} and {stack.path} have the same entities (run-1 is run-01); rename one of them, with "
                "its sidecar, or list it in .bidsignore"
            )
        first.setdefault(key, stack.path)


def _common(entities: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in entities.items() if key not in _ENUMERATE}


def _natural(path: str | Path) -> list:
    """Return a sorting key that puts run-2 before run-10."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", str(path))]


def _who(selection: Selection) -> str:
    who = "sub-" + ", sub-".join(selection.participants) if selection.participants else "any subject"
    return who + (f" in ses-{', ses-'.join(selection.sessions)}" if selection.sessions else "")


def _some(labels: Sequence[str], count: int = 10) -> str:
    if not labels:
        return "none"
    return ", ".join(labels[:count]) + (f" and {len(labels) - count} more" if len(labels) > count else "")
