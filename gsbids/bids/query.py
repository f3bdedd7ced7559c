# SPDX-License-Identifier: Apache-2.0
"""From a BIDS data set to reconstruction tasks: which stacks, with which masks."""

import json
import logging
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gsbids.bids.layout import ABSENT, EXTENSIONS, open_raw, query
from gsbids.bids.masks import MaskIndex
from gsbids.bids.names import ENTITY_ORDER, parse_name
from gsbids.bids.task import ReconstructionTask, StackFile
from gsbids.errors import InputError

LOGGER = logging.getLogger("gsbids.bids")

# Stacks that differ in these alone are repeats of one contrast.
_ENUMERATE = ("run", "dir", "chunk")

# Names with these belong to derivatives, wherever they lie.
_DERIVED = ("space", "res", "den", "label", "from", "to", "mode", "desc")


@dataclass(frozen=True)
class Selection:
    """Which stacks to take.

    Attributes
    ----------
    suffix : str
    participants, sessions : tuple of str
        Labels without prefix; empty: all.
    filters : mapping
        ``{"stacks": {...}, "masks": {...}}`` with pybids' entity names.
    filter_file : str
        Where the filters come from, for messages.
    mask_datasets : mapping of str to Path
        Derivative data sets with masks, by name.
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
    slice_thickness: float | None = None
    database_dir: Path | None = None
    database_wipe: bool = False


def find_tasks(bids_dir: str | Path, selection: Selection | None = None) -> list[ReconstructionTask]:
    """Reconstruction tasks of a data set.

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
    bids_dir = Path(bids_dir)
    _check_participants(bids_dir, selection)
    layout = open_raw(bids_dir, selection.participants, selection.database_dir, selection.database_wipe)
    files = _query_stacks(layout, bids_dir, selection)
    masks = MaskIndex(selection.mask_datasets, selection.filters.get("masks", {}), selection.filter_file)
    groups: dict[tuple, list[StackFile]] = {}
    errors: dict[tuple, list[str]] = {}
    for file in sorted(files, key=lambda file: _natural(file.path)):
        stack = _stack(file, selection.slice_thickness)
        group = tuple(sorted(_common(stack.entities).items()))
        try:
            stack = replace(stack, mask=masks.find(stack.entities))
        except InputError as error:
            errors.setdefault(group, []).append(str(error))
        groups.setdefault(group, []).append(stack)
    tasks = [_task(dict(group), stacks, errors.get(group, ())) for group, stacks in groups.items()]
    return sorted(tasks, key=lambda task: _natural(task.name))


def list_participants(bids_dir: str | Path) -> list[str]:
    """Labels of the ``sub-`` folders.

    Raises
    ------
    gsbids.errors.InputError
        No such folder, or no subject in it.
    """
    root = Path(bids_dir)
    if not root.is_dir():
        raise InputError(f"{root}: there is no such folder; give the root folder of a BIDS data set")
    labels = sorted(entry.name[4:] for entry in os.scandir(root)
                    if entry.name.startswith("sub-") and entry.is_dir())
    if not labels:
        raise InputError(f"{root}: no sub-<label> folder in it; give the root folder of a BIDS data set")
    return labels


def _check_participants(bids_dir: Path, selection: Selection) -> None:
    known = list_participants(bids_dir)
    unknown = [label for label in selection.participants if label not in known]
    if unknown:
        raise InputError(f"--participant-label {' '.join(unknown)}: not in {bids_dir}; "
                         f"participants there are {_some(known)}")
    sessions = sorted({entry.name[4:] for label in selection.participants or known
                       for entry in (bids_dir / f"sub-{label}").glob("ses-*") if entry.is_dir()})
    unknown = [label for label in selection.sessions if label not in sessions]
    if unknown:
        raise InputError(f"--session-label {' '.join(unknown)}: not in {bids_dir}; "
                         f"sessions of the selected participants are {_some(sessions)}")


def _query_stacks(layout, bids_dir: Path, selection: Selection) -> list:
    default: dict[str, object] = {"datatype": "anat", "suffix": selection.suffix,
                                  "extension": list(EXTENSIONS)}
    if selection.participants:
        default["subject"] = list(selection.participants)
    if selection.sessions:
        default["session"] = list(selection.sessions)
    files = [file for file in query(layout, default, str(bids_dir)) if _is_raw(file.path)]
    if not files:
        del default["suffix"]
        found = sorted({file.entities["suffix"] for file in query(layout, default, str(bids_dir))})
        raise InputError(f"{bids_dir}: no {selection.suffix} image for {_who(selection)}; suffixes found: "
                         f"{_some(found)}; choose one with --modality")
    wanted = selection.filters.get("stacks", {})
    if not wanted:
        return files
    kept = [file for file in query(layout, default | dict(wanted), selection.filter_file)
            if _is_raw(file.path)]
    if kept:
        return kept
    culprits = [key for key in wanted
                if not query(layout, default | {key: wanted[key]}, selection.filter_file)]
    shown = {key: None if wanted[key] == ABSENT else wanted[key] for key in culprits or wanted}
    raise InputError(f"{selection.filter_file}: the filter \"stacks\": {json.dumps(shown)} leaves none of "
                     f"the {len(files)} {selection.suffix} images for {_who(selection)}; change or drop it")


def _is_raw(path: str) -> bool:
    """Whether a name may belong to raw data; anything else in the raw tree is left out, and said."""
    entities = parse_name(path)
    strange = [key for key in entities
               if key in _DERIVED or key not in (*ENTITY_ORDER, "suffix", "extension")]
    if strange:
        LOGGER.warning("%s: not a raw file name (%s), left out", path, ", ".join(strange))
    return not strange


def _stack(file, thickness: float | None) -> StackFile:
    path = Path(file.path)
    entities = parse_name(path.name)
    del entities["extension"]
    metadata = file.get_metadata()
    return StackFile(path, entities, metadata, _thickness(path, metadata) if thickness is None else thickness)


def _thickness(path: Path, metadata: Mapping) -> float:
    """Thickness of the sidecar in mm; NaN where it is absent or no number."""
    value = metadata.get("SliceThickness")
    if value is None:
        return math.nan
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or value <= 0:
        LOGGER.warning("%s: SliceThickness of the sidecar is %r, not a number of mm; ignored", path, value)
        return math.nan
    return float(value)


def _task(entities: dict[str, str], stacks: list[StackFile], errors: Sequence[str]) -> ReconstructionTask:
    ordered = {key: entities[key] for key in (*ENTITY_ORDER, "suffix") if key in entities}
    return ReconstructionTask(ordered["sub"], ordered.get("ses"), ordered["suffix"], ordered, tuple(stacks),
                              errors=tuple(errors))


def _common(entities: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in entities.items() if key not in _ENUMERATE}


def _natural(path: str) -> list:
    """Sorting key that puts run-2 before run-10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]


def _who(selection: Selection) -> str:
    who = "sub-" + ", sub-".join(selection.participants) if selection.participants else "any subject"
    return who + (f" in ses-{', ses-'.join(selection.sessions)}" if selection.sessions else "")


def _some(labels: Sequence[str], count: int = 10) -> str:
    if not labels:
        return "none"
    return ", ".join(labels[:count]) + (f" and {len(labels) - count} more" if len(labels) > count else "")
