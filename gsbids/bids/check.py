# SPDX-License-Identifier: Apache-2.0
"""Check of the data of a task before anything is computed."""

import hashlib
import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from gsbids.bids.task import ReconstructionTask, StackFile
from gsbids.errors import InputError
from gsbids.imaging.geometry import conform, slice_axis, slice_frames
from gsbids.imaging.intensity import without_spikes
from gsbids.imaging.limits import THICKNESS_RANGE
from gsbids.imaging.masks import inside_of, oddness, resample_mask, same_grid
from gsbids.imaging.nifti import load_image

LOGGER = logging.getLogger("gsbids.bids")

# Share of the slice thickness: protocols leave such a gap so that slices do not excite one another.
_USUAL_GAP = 0.2

# Thinner or thicker slices than this are a mistake in the unit.

# In ml; far below any brain that is imaged in stacks.
_SMALLEST_BRAIN = 0.5

# Times the other sides of a voxel: the slices are across this one.
_LONGER = 1.5

# Of the distance between slices, by which sidecar and header may differ.
_ROUNDING = 0.02

# What ImageType calls images that were computed from others, or that only serve to plan.
_NOT_ACQUIRED = {"MPR", "REFORMATTED", "RESAMPLED", "MIP", "PROJECTION IMAGE", "LOCALIZER"}


@dataclass(frozen=True)
class CheckOptions:
    """Options of the run that the check depends on.

    Attributes
    ----------
    mask_mode : {"auto", "derivatives", "network", "nonzero", "otsu", "none"}
    thickness_given : bool
        The thickness comes from ``--slice-thickness``.
    masks_given : bool
        Data sets with masks were given.
    """

    mask_mode: str = "auto"
    thickness_given: bool = False
    masks_given: bool = False


def fill_thickness(task: ReconstructionTask) -> ReconstructionTask:
    """Give stacks without a thickness that of the others, when those agree, with a warning.

    Raises
    ------
    gsbids.errors.InputError
        An error in the names and sidecars alone; no stack has a thickness, those that have differ, or one is out of
        range.
    """
    _check_found(task)
    missing = [stack for stack in task.stacks if math.isnan(stack.thickness)]
    known = sorted({stack.thickness for stack in task.stacks if not math.isnan(stack.thickness)})
    for stack in task.stacks:
        _check_thickness(stack)
    if not missing:
        return task
    if len(known) != 1:
        others = (
            "no other stack has one"
            if not known
            else (f"the other stacks have {' and '.join(f'{value:g}' for value in known)} mm")
        )
        raise InputError(
            f"{missing[0].path}: the sidecar has no SliceThickness and {others}; add it to "
            "the JSON sidecar or give --slice-thickness MM"
        )
    stacks = tuple(replace(stack, thickness=known[0]) if stack in missing else stack for stack in task.stacks)
    return replace(task, stacks=stacks).with_warnings(
        f"{_labels(missing)}: no SliceThickness in the sidecar; {known[0]:g} mm is taken from the other stacks"
    )


def check_task(task: ReconstructionTask, options: CheckOptions | None = None) -> list[str]:
    """Read the headers, voxels and masks of a task.

    Parameters
    ----------
    task : ReconstructionTask
        Task with a thickness for every stack (:func:`fill_thickness`).
    options : CheckOptions, optional

    Returns
    -------
    list of str
        Warnings: gaps or overlap between slices, repaired voxels, masks on other grids or absent.

    Raises
    ------
    gsbids.errors.InputError
        One line about the first thing that makes the task impossible: one stack only, a file that
        cannot be used, an empty or misplaced mask, a mask that is missing in mode ``derivatives``.
    """
    options = options or CheckOptions()
    _check_found(task)
    if len(task.stacks) < 2:
        raise InputError(
            f"{task.stacks[0].path}: {task.name} has this one stack only, and slice-to-volume reconstruction "
            "(SVR) needs two or more; stacks with different acq-, ce- or rec- labels are not put together. "
            "For super-resolution (SR) of a single volume give --mode sr"
        )
    spacings: dict[tuple[float, float], list[StackFile]] = defaultdict(list)
    regridded, unmasked, negative = [], [], []
    odd, alike = defaultdict(list), defaultdict(list)
    with _collected("gsbids.imaging") as warnings:
        for stack in task.stacks:
            image, affine = _load_stack(stack)
            spacing = _slice_spacing(stack, image.shape, affine)
            spacings[stack.thickness, spacing].append(stack)
            alike[image.shape, hashlib.sha256(image.tobytes()).digest()].append(stack)
            if image.min() < 0:
                negative.append((stack, float(image.min())))
            for note in _contradictions(stack, image.shape, affine, spacing):
                odd[note].append(stack)
            if stack.mask is None:
                unmasked.append(stack)
                continue
            same, notes = _check_mask(stack, image.shape, affine)
            if not same:
                regridded.append(stack)
            for note in notes:
                odd[note].append(stack)
    if unmasked and options.mask_mode == "derivatives":
        raise InputError(
            f"{unmasked[0].path}: no mask for this stack in the data sets of --derivatives; "
            "add one, leave the stack out with --bids-filter-file, or use another --mask-mode"
        )
    if unmasked and options.mask_mode == "auto" and options.masks_given:
        warnings.append(
            f"{_labels(unmasked)}: no mask in the data sets of --derivatives; a mask is made from the image"
        )
    if regridded:
        warnings.append(f"{_labels(regridded)}: the mask lies on another grid and is resampled by its affine")
    warnings += [f"{_labels(stacks)}: {note}" for note, stacks in odd.items()]
    warnings += [
        f"{_labels(stacks)}: every voxel is the same, so that one image counts {len(stacks)} times; leave all "
        "but one out with --bids-filter-file"
        for stacks in alike.values()
        if len(stacks) > 1
    ]
    if negative:
        warnings.append(
            f"{_labels(stack for stack, _ in negative)}: negative intensities (down to "
            f"{min(low for _, low in negative):.3g}); those of the brain are shifted for the fit, and the "
            "outputs are on the scale of the input; what is darker than the brain counts as nothing"
        )
    return warnings + ([] if task.poses else _gap_warnings(task.name, spacings, options))


def check_volume(task: ReconstructionTask, options: CheckOptions) -> tuple[tuple, list[str]]:
    """Read the voxels and the mask (optional) of a volume that is to be super-resolved.

    Parameters
    ----------
    task : ReconstructionTask
        Task of one stack.
    options : CheckOptions

    Returns
    -------
    header : tuple of (shape, affine)
    warnings : list of str

    Raises
    ------
    gsbids.errors.InputError
        As :func:`check_task`, but for the number of stacks and the geometry of slices.
    """
    _check_found(task)
    (stack,) = task.stacks
    _check_thickness(stack)
    with _collected("gsbids.imaging") as warnings:
        image, affine = _load_stack(stack)
        if stack.mask is not None:
            same, notes = _check_mask(stack, image.shape, affine)
            warnings += [] if same else ["the mask lies on another grid and is resampled by its affine"]
            warnings += notes
    if stack.mask is None and options.mask_mode == "derivatives":
        raise InputError(
            f"{stack.path}: no mask for this volume in the data sets of --derivatives; add one, or use "
            "another --mask-mode"
        )
    if stack.mask is None and options.mask_mode == "auto" and options.masks_given:
        warnings.append("no mask in the data sets of --derivatives; none is used")
    return (image.shape, affine), warnings


def _check_found(task: ReconstructionTask) -> None:
    if task.errors:
        raise InputError(task.errors[0])


def _check_thickness(stack: StackFile) -> None:
    if stack.thickness < THICKNESS_RANGE[0] or stack.thickness > THICKNESS_RANGE[1]:
        raise InputError(
            f"{stack.path}: a slice thickness of {stack.thickness:g} mm is outside "
            f"{THICKNESS_RANGE[0]:g} to {THICKNESS_RANGE[1]:g} mm; correct SliceThickness "
            "in the sidecar or give --slice-thickness"
        )


def _load_stack(stack: StackFile) -> tuple[np.ndarray, np.ndarray]:
    image, affine = load_image(stack.path)
    if not image.any():
        raise InputError(f"{stack.path}: all voxels are 0; leave the stack out with --bids-filter-file")
    return without_spikes(image, stack.path), affine


def _slice_spacing(stack: StackFile, shape: Sequence[int], affine: np.ndarray) -> float:
    """Return the distance between slices in mm; errors of the geometry get the name of the file."""
    try:
        axis = slice_axis(shape, affine, stack.metadata.get("SliceEncodingDirection"))
        placeholder, conformed = conform(np.empty(shape, dtype=bool), affine, axis)
        frames, _ = slice_frames(conformed, placeholder.shape)
    except InputError as error:
        raise InputError(f"{stack.path}: {error}") from error
    return round(float(abs(frames[0, :, 2] @ affine[:3, axis])), 3)


def _contradictions(stack: StackFile, shape: Sequence[int], affine: np.ndarray, spacing: float) -> Iterator[str]:
    """Describe fields of the sidecar that contradict the image, or that advise against its use."""
    if words := _axis_words(stack, shape, affine):
        yield words
    given: Any = stack.metadata.get("SpacingBetweenSlices")
    number = isinstance(given, int | float) and abs(given) < 1e6
    # Some converters write the gap.
    if number and min(abs(given - spacing), abs(given + stack.thickness - spacing)) > _ROUNDING * spacing:
        yield (
            f"SpacingBetweenSlices is {given:g} mm, but slices are {spacing:g} mm apart by the header; the header "
            "is taken: correct the one that is wrong"
        )
    times = stack.metadata.get("SliceTiming")
    count = shape[slice_axis(shape, affine, stack.metadata.get("SliceEncodingDirection"))]
    if times and (not isinstance(times, list) or len(times) != count):
        found = f"has {len(times)} times" if isinstance(times, list) else "is no list of times"
        yield (
            f"SliceTiming {found}, but the stack has {count} slices; when each was acquired is not known from it: "
            "correct the sidecar"
        )
    kind = stack.metadata.get("ImageType")
    words = kind if isinstance(kind, list) else str(kind).split("\\")  # type: ignore[assignment]  # as DICOM has it
    for word in sorted(_NOT_ACQUIRED & set(map(str, words))):
        yield (
            f"ImageType has {word}: its slices were not acquired like this, but made from other images or to plan; "
            "they are taken as they are: leave the stack out with --bids-filter-file if others hold the same"
        )


def _axis_words(stack: StackFile, shape: Sequence[int], affine: np.ndarray) -> str:
    """Describe what is odd about the slice axis that the sidecar names, and what to do; empty where nothing is."""
    given = stack.metadata.get("SliceEncodingDirection")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    axis, longest = slice_axis(shape, affine, given), int(np.argmax(spacing))
    if longest == axis or spacing[longest] < _LONGER * np.delete(spacing, longest).max():
        return ""
    own, other = "ijk"[axis], "ijk"[longest]
    return (
        f"SliceEncodingDirection is {given}, but voxels are longest along {other} ({spacing[longest]:.3g} mm, "
        f"along {own} {spacing[axis]:.3g} mm); slices along {own} are taken, as the sidecar says: correct it, or "
        "take it out, if the array was transposed"
    )


def _check_mask(stack: StackFile, shape: Sequence[int], affine: np.ndarray) -> tuple[bool, list[str]]:
    """Return whether the mask is on the grid of its stack, and remarks on it."""
    values, mask_affine = load_image(stack.mask)  # type: ignore[arg-type]
    try:
        mask, soft = inside_of(values)
    except InputError as error:
        raise InputError(
            f"{stack.mask}: {error}; give a mask with the brain in it, leave the stack out with "
            "--bids-filter-file, or use another --mask-mode"
        ) from error
    volume = mask.sum() * abs(np.linalg.det(mask_affine[:3, :3])) / 1000
    if volume < _SMALLEST_BRAIN:
        raise InputError(
            f"{stack.mask}: the mask holds {volume:.2g} ml, which is no brain (at least "
            f"{_SMALLEST_BRAIN:g} ml); give a mask with the brain in it, or leave the stack out "
            "with --bids-filter-file"
        )
    there = resample_mask(mask, mask_affine, affine, shape)
    if not there.any():
        raise InputError(
            f"{stack.mask}: the mask does not overlap its stack {stack.path}; check the affines "
            "of both, or that the mask is of this stack"
        )
    return same_grid(mask.shape, mask_affine, shape, affine), [words for words in (soft, oddness(there)) if words]


def _gap_warnings(
    name: str, spacings: Mapping[tuple[float, float], Sequence[StackFile]], options: CheckOptions
) -> list[str]:
    """Warn of slices that are not as thick as they are apart; a usual gap is only logged."""
    source = "--slice-thickness" if options.thickness_given else "sidecar"
    lines = []
    for (thickness, spacing), stacks in sorted(spacings.items()):
        apart = spacing - thickness
        if abs(apart) > 0.01:
            what = f"a gap of {apart:.3g} mm" if apart > 0 else f"an overlap of {-apart:.3g} mm"
            line = (
                f"{_labels(stacks)}: slices are {thickness:g} mm thick ({source}) and {spacing:g} mm apart "
                f"(header), {what}; the thickness is taken for the slice profile"
            )
            if 0 < apart <= _USUAL_GAP * thickness:
                LOGGER.info("%s: %s", name, line)
            else:
                lines.append(line)
    return lines


def _labels(stacks: Iterable[StackFile]) -> str:
    return ", ".join(stack.label for stack in stacks)


@contextmanager
def _collected(name: str) -> Iterator[list[str]]:
    """Collect the messages of a logger in place of its handlers: they belong to the task."""
    lines: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    logger, handler = logging.getLogger(name), Collector()
    propagate, logger.propagate = logger.propagate, False
    logger.addHandler(handler)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate
