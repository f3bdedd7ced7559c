# SPDX-License-Identifier: Apache-2.0
"""The plan of ``gsbids reconstruct``: one task of files that are in no BIDS data set."""

import argparse
import logging
import math
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsbids.errors import InputError

if TYPE_CHECKING:
    from gsbids.bids.task import StackFile
    from gsbids.cli.plan import Plan

LOGGER = logging.getLogger("gsbids.cli")


def make_plan(args: argparse.Namespace, work: Path) -> "Plan":
    """Make the plan of one task: stacks in the given order, outputs in the work folder or ``--output-folder``.

    Returns
    -------
    gsbids.cli.plan.Plan
    """
    from gsbids.bids.description import check_folders
    from gsbids.bids.task import ReconstructionTask
    from gsbids.cli.devices import resolve_device
    from gsbids.cli.plan import Plan, absolute, check_weights, nipype_options
    from gsbids.cli.tasks import check_svr, check_template
    from gsbids.config import Config, Execution, WorkflowOptions

    label = re.sub(r"[^A-Za-z0-9]", "", args.output_volume.name.partition(".")[0]) or "volume"
    stacks, poses = _stack_files(args, work, label)
    folder = args.output_folder.resolve() if args.output_folder else work / "outputs"
    files = [path for stack in stacks for path in stack.sources or (stack.path, stack.mask) if path]
    shared = Path(os.path.commonpath([path.parent for path in files]))
    if args.output_folder:
        check_folders(shared, folder)
    args.plugin, args.plugin_args, args.use_plugin = "auto", {}, None
    names = ("mask_mode", "motion_correction", "random_seed", "sloppy", "orientation")
    given = {name: getattr(args, name) for name in names}
    given |= {name: absolute(getattr(args, name)) for name in ("template", "template_mask", "mask_weights")}
    # Slices from elsewhere have been prepared there.
    given |= {name: not poses if getattr(args, name) is None else getattr(args, name) for name in ("denoise", "n4")}
    config = Config(
        Execution(shared, folder, work, "run", getattr(args, "command", ""), verbosity=args.verbosity),
        WorkflowOptions(
            mode="svr", output_resolution=(args.output_resolution,), device=resolve_device(args.device), **given
        ),
        nipype_options(args),
    )
    task = ReconstructionTask(
        label, None, "T2w", {"sub": label, "suffix": "T2w"}, tuple(stacks), plain=True, poses=poses
    )
    check_template(config.workflow)
    check_weights(config.workflow)
    try:
        task = check_svr(task, config)
    except InputError as error:
        # What is said of data sets does not help here.
        raise InputError(
            str(error)
            .replace(" with --bids-filter-file", "")
            .replace("in the data sets of --derivatives", "in --input-masks")
        ) from error
    for line in task.warnings:
        LOGGER.warning("%s: %s", task.name, line)
    return Plan(config, (task,))


def _stack_files(args: argparse.Namespace, work: Path, label: str) -> "tuple[list[StackFile], Path | None]":
    """Return the stacks in the given order, or made of ``--input-slices`` with the poses of those."""
    from gsbids.bids.task import StackFile

    poses = None
    if args.input_slices:
        from gsbids.cli.commands.slice_folders import stacks_of_slices

        found, poses = stacks_of_slices(args, work)
        parts = [
            (image, mask, thickness, {"SliceEncodingDirection": "k"}, files) for image, mask, thickness, files in found
        ]
    else:
        masks = [path.resolve() for path in args.input_masks] or [None] * len(args.input_stacks)
        parts = []
        for n, (path, mask) in enumerate(zip(args.input_stacks, masks, strict=True)):
            metadata = _sidecar(path)
            parts.append((path.resolve(), mask, _thickness_of(args, n, path, metadata), metadata, ()))
    entities = {"sub": label, "suffix": "T2w"}
    return [
        StackFile(path, entities | {"run": str(n)}, metadata, thickness, mask, sources)
        for n, (path, mask, thickness, metadata, sources) in enumerate(parts, start=1)
    ], poses


def _thickness_of(args: argparse.Namespace, number: int, path: Path, metadata: dict) -> float:
    """Return the slice thickness (mm) of a stack; NaN where it is not known."""
    if not args.slice_thickness:
        value: Any = metadata.get("SliceThickness")
        usable = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf
        return float(value) if usable else math.nan
    value = args.slice_thickness[number if len(args.slice_thickness) > 1 else 0]
    if value is not None:
        return value
    import numpy as np

    from gsbids.imaging.geometry import slice_axis
    from gsbids.imaging.nifti import read_header

    shape, affine = read_header(path)
    axis = slice_axis(shape, affine, metadata.get("SliceEncodingDirection"))
    return round(float(np.linalg.norm(affine[:3, axis])), 3)


def _sidecar(path: Path) -> dict:
    """Read the JSON file of the same name beside an image; empty where there is none."""
    from gsbids.bids.metadata import read_object

    sidecar = path.with_name(path.name.removesuffix(".gz").removesuffix(".nii") + ".json")
    try:
        return read_object(sidecar)
    except FileNotFoundError:
        return {}
