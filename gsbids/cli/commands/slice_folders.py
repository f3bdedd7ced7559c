# SPDX-License-Identifier: Apache-2.0
"""Folders of slices as input and output of ``gsbids reconstruct``, as those of NeSVoR."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from gsbids.errors import InputError

if TYPE_CHECKING:
    from gsbids.cli.plan import Plan

#: Options for folders of slices, and whether what is written is simulated.
FOLDERS = {"output_slices": False, "simulated_slices": True}


def stacks_of_slices(args: argparse.Namespace, work: Path) -> tuple[list[tuple], Path]:
    """Combine the slices of ``--input-slices`` to stacks, as files in the work folder.

    Returns
    -------
    list of tuple
        Image, mask, slice thickness (mm) and the files of the slices (a tuple), of each stack.
    Path
        JSON with the poses of all slices, as :class:`gsbids.interfaces.reconstruct.FitSvr` reads it.

    Raises
    ------
    gsbids.errors.InputError
        See :func:`gsbids.recon.volume.slice_folder.read_slices`; or all slices are of one stack.
    """
    from gsbids.atomic import write_atomic
    from gsbids.imaging.nifti import save_image
    from gsbids.recon.volume.slice_folder import as_stacks, group_slices, read_slices

    slices = read_slices(args.input_slices, args.slice_thickness[0] if args.slice_thickness else None)
    groups = group_slices(slices)
    stacks, transforms = as_stacks(groups)
    if len(stacks) < 2:
        raise InputError(
            f"--input-slices {args.input_slices}: its {len(slices)} slices are one stack, and two or more "
            "are needed; add slices of another direction"
        )
    folder = work / "slices"
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for stack, group in zip(stacks, groups, strict=True):
        image = save_image(folder / f"{stack.name}.nii.gz", stack.image, stack.affine)
        mask = save_image(folder / f"{stack.name}_mask.nii.gz", stack.mask, stack.affine, "uint8")
        files.append((image, mask, stack.thickness, tuple(path.resolve() for piece in group for path in piece.files)))
    poses = folder / "poses.json"
    reason = "Its slices start where their files say."
    write_atomic(poses, json.dumps({"transforms": transforms.tolist(), "reason": [reason] * len(stacks)}).encode())
    return files, poses


def write_slice_folders(plan: "Plan", args: argparse.Namespace) -> list[Path]:
    """Write the requested folders, from what the steps left in the work folder."""
    from gsbids.interfaces.base import read_stack
    from gsbids.recon.svr.result import SvrResult
    from gsbids.recon.volume.slice_folder import write_slices
    from gsbids.workflows.report import left_files

    wanted = {getattr(args, option): simulated for option, simulated in FOLDERS.items() if getattr(args, option)}
    if not wanted:
        return []
    task = plan.tasks[0]
    left = left_files(plan.config.of_method("svr"), task)
    images, result = left.get("corrected", left["conformed"]), SvrResult.load(left["result"])
    stacks = [
        read_stack(image, mask, stack.path.name, stack.thickness)
        for image, mask, stack in zip(images, left["masks"], task.stacks, strict=True)
    ]
    return [write_slices(folder, stacks, result, simulated) for folder, simulated in wanted.items()]
