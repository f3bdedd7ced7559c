# SPDX-License-Identifier: Apache-2.0
"""``gsbids reconstruct``: from stacks to one volume, plain files without BIDS, by the same workflow."""

import argparse
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsbids.cli.argument_types import RESOLUTION_RANGE, between, with_dashes
from gsbids.cli.commands.plain_files import make_plan
from gsbids.cli.commands.slice_folders import FOLDERS, write_slice_folders
from gsbids.cli.options import add_corrections, add_masking, add_orientation, add_resources, add_seed_and_device
from gsbids.cli.parser import Parser
from gsbids.cli.places import writable_places
from gsbids.config import AUTO, DEFAULT_RESOLUTION, NONE
from gsbids.errors import NOT_TO_BE_USED, InputError
from gsbids.imaging.limits import THICKNESS_RANGE

if TYPE_CHECKING:
    from gsbids.cli.plan import Plan

LOGGER = logging.getLogger("gsbids.cli")
COMMAND = "reconstruct"
INTERRUPTED = 130  # exit code after Ctrl-C: 128 + SIGINT

#: Options for further outputs, and their kinds in ``gsbids.bids.names.KINDS``.
EXTRA = {
    "output_mask": "volume_mask",
    "output_unmasked": "volume_unmasked",
    "output_model": "model",
    "output_report": "report",
    "output_transform": "template_xfm",
}


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments after ``gsbids reconstruct``."""
    parser = Parser(
        prog=f"gsbids {COMMAND}",
        allow_abbrev=False,
        description="Reconstruct one volume from stacks of "
        "slices in plain files; everything else is as at the participant level.",
    )
    _add_files(parser.add_argument_group("files"))
    _add_method(parser.add_argument_group("what is computed"))
    group = parser.add_argument_group("resources and control")
    add_resources(group)
    group.add_argument(
        "-w",
        "--work-dir",
        type=Path,
        metavar="DIR",
        help="keep what steps made here, to go on from (default: a folder that is removed at the end)",
    )
    group.add_argument("-v", "--verbose", dest="verbosity", action="count", default=0, help="say more")
    args = parser.parse_args([with_dashes(word) for word in argv])
    if args.input_slices and args.input_masks:
        parser.error("--input-masks: slices of --input-slices have their masks beside them; leave it out")
    if args.output_transform and args.template == NONE:
        parser.error(
            "--output-transform: there is one with --template only; leave it out, or give --template auto or NII"
        )
    if args.template_mask and args.template in (AUTO, NONE):
        parser.error("--template-mask: there is no --template that it could belong to; give --template NII")
    count = 1 if args.input_slices else len(args.input_stacks)
    if args.input_masks and len(args.input_masks) != count:
        parser.error(
            f"--input-masks: {len(args.input_masks)} files for {count} stacks; give one for each, in their order"
        )
    if args.input_slices and args.slice_thickness and (len(args.slice_thickness) > 1 or None in args.slice_thickness):
        parser.error("--slice-thickness: give one number for all slices of --input-slices (default: what they say)")
    if args.slice_thickness and len(args.slice_thickness) not in (1, count):
        parser.error(
            f"--slice-thickness: {len(args.slice_thickness)} values for {count} stacks; give one, or one for each"
        )
    for option, endings in {
        "output_volume": (".nii.gz", ".nii"),
        "output_mask": (".nii.gz", ".nii"),
        "output_unmasked": (".nii.gz", ".nii"),
        "output_model": (".npz",),
        "output_report": (".html",),
        "output_transform": (".txt",),
    }.items():
        path = getattr(args, option)
        if path is not None and not path.name.endswith(endings):
            parser.error(f"--{option.replace('_', '-')} {path}: the name must end with {' or '.join(endings)}")
    return args


def _add_files(group: Any) -> None:
    given = group.add_mutually_exclusive_group(required=True)
    given.add_argument(
        "--input-stacks",
        nargs="+",
        type=Path,
        default=(),
        metavar="NII",
        help="two or more stacks of one brain; a JSON file of the same name beside a stack is read",
    )
    given.add_argument(
        "--input-slices",
        type=Path,
        metavar="DIR",
        help="a folder of slices N.nii.gz (masks mask_N.nii.gz), each where it lies in the anatomy, as "
        "NeSVoR, SVoRT and --output-slices write them",
    )
    group.add_argument(
        "--input-masks",
        "--stack-masks",
        nargs="+",
        type=Path,
        default=(),
        metavar="NII",
        help="a brain mask for each, in the same order, on any grid",
    )
    group.add_argument("--output-volume", type=Path, required=True, metavar="NII", help="the volume")
    group.add_argument("--output-mask", type=Path, metavar="NII", help="its brain mask")
    group.add_argument("--output-unmasked", type=Path, metavar="NII", help="the volume in the whole field of view")
    group.add_argument("--output-model", type=Path, metavar="NPZ", help="the Gaussians with the poses of the slices")
    group.add_argument(
        "--output-transform",
        type=Path,
        metavar="TXT",
        help="the ITK transform from where the brain lay in the scanner to --template",
    )
    group.add_argument("--output-report", type=Path, metavar="HTML", help="the report")
    group.add_argument(
        "--output-slices",
        type=Path,
        metavar="DIR",
        help="the slices as they entered the fit, each with its estimated pose, in such a folder",
    )
    group.add_argument(
        "--simulated-slices", type=Path, metavar="DIR", help="the same slices as the reconstruction predicts them"
    )
    group.add_argument(
        "--output-folder",
        type=Path,
        metavar="DIR",
        help="everything, with motion, transforms and metrics, as BIDS derivatives",
    )


def _add_method(group: Any) -> None:
    group.add_argument(
        "--output-resolution",
        type=between(*RESOLUTION_RANGE),
        metavar="MM",
        default=DEFAULT_RESOLUTION,
        help="voxel size of the volume (default: %(default)s)",
    )
    group.add_argument(
        "--slice-thickness",
        "--thicknesses",
        nargs="+",
        type=_thickness,
        metavar="MM",
        default=(),
        help="one value or one a stack, instead of SliceThickness in the JSON files; header: the "
        "distance between slices, which is too much where there are gaps",
    )
    add_masking(group, ("auto", "network", "nonzero", "otsu", "none"), "--input-masks, else")
    add_corrections(group, "stacks, not --input-slices")
    add_orientation(group, template="none")
    add_seed_and_device(group)


def run(args: argparse.Namespace) -> int:
    """Check the files, run the workflow of one task in a work folder, and copy the requested outputs.

    Returns
    -------
    int
        0; 1 when a step failed (its work folder is kept); 3 when the volume is written, but not to be used; 130 when
        interrupted.

    Raises
    ------
    gsbids.errors.InputError
        Files or options that cannot be used.
    """
    outputs = {option: getattr(args, option) for option in ("output_volume", *EXTRA) if getattr(args, option)}
    _check_outputs(args, outputs)
    work = args.work_dir.resolve() if args.work_dir else _temporary_work()
    keep, code = args.work_dir is not None, 0
    try:
        with writable_places(work / ".cache"):
            plan = make_plan(args, work)
            failed = _execute(plan)
            keep = keep or failed
            if not failed:
                _deliver(plan, outputs)
                for folder in write_slice_folders(plan, args):
                    LOGGER.info("wrote %s", folder)
                code = _tell_verdict(plan, args.output_volume)
    except KeyboardInterrupt:
        LOGGER.error("interrupted; %s", "the same command goes on from here" if keep else "nothing is kept without -w")
        return INTERRUPTED
    except OSError as error:
        raise InputError(f"{error.filename or work}: cannot be written ({error.strerror})") from error
    finally:
        if not keep:
            shutil.rmtree(work, ignore_errors=True)
    if failed:
        LOGGER.error("%s: not written; what the steps left is in %s", args.output_volume, work)
    return int(failed) or code


def _temporary_work() -> Path:
    try:
        return Path(tempfile.mkdtemp(prefix="gsbids-"))
    except OSError as error:
        raise InputError(
            f"there is no folder for temporary files ({error.strerror}); give a work folder with -w"
        ) from error


def _execute(plan: "Plan") -> bool:
    """Run the workflow; return whether it failed, which has been logged then."""
    from gsbids.cli.running.locks import locked
    from gsbids.cli.running.outcome import find_crashes, report_outcome
    from gsbids.cli.running.run import build, environment, execute, prepare_folders
    from gsbids.workflows.names import volume_path

    config, task = plan.config, plan.tasks[0]
    with environment(config), redirect_stdout(sys.stderr), locked(plan):
        for crash in find_crashes(config, task):
            crash.unlink()  # of the same command, before
        prepare_folders(plan)
        finished = execute(build(plan), plan)
        volume = config.execution.output_dir / volume_path(config, task)
        if finished and volume.is_file() and not find_crashes(config, task):
            return False
        report_outcome(config, plan.tasks, finished)
    return True


def _tell_verdict(plan: "Plan", volume: Path) -> int:
    """Log the verdict on the volume; return the exit code that follows."""
    from gsbids.cli.running.outcome import find_verdict, tell_verdict

    return NOT_TO_BE_USED if tell_verdict(str(volume), find_verdict(plan.config, plan.tasks[0])) else 0


def _deliver(plan: "Plan", outputs: dict[str, Path]) -> None:
    """Copy the requested outputs, each under a temporary name that is then renamed."""
    from gsbids.atomic import write_atomic
    from gsbids.bids.names import KINDS, derivative_path
    from gsbids.imaging.nifti import load_image, save_image
    from gsbids.workflows.names import volume_extra

    config, task = plan.config, plan.tasks[0]
    for option, target in outputs.items():
        kind = EXTRA.get(option, "volume")
        needs = volume_extra(config.workflow) if "res" in KINDS[kind].needs else {}
        needs |= {"from": task.suffix} if "from" in KINDS[kind].needs else {}
        source = config.execution.output_dir / derivative_path(task.entities, kind, **needs)
        if option == "output_transform" and not source.is_file():
            LOGGER.warning("--output-transform %s: not written, as the volume keeps the axes of the scanner", target)
            continue
        target.parent.mkdir(exist_ok=True)
        if target.name.endswith(".nii"):
            save_image(target, *load_image(source), "uint8" if kind == "volume_mask" else "float32")
        else:
            write_atomic(target, source)
        LOGGER.info("wrote %s", target)


def _check_outputs(args: argparse.Namespace, outputs: dict[str, Path]) -> None:
    stacks = [path.resolve() for path in args.input_stacks]
    twice = next((path for path in stacks if stacks.count(path) > 1), None)
    if twice:
        raise InputError(f"--input-stacks {twice}: is given twice; give every stack once")
    for path in (*args.input_stacks, *args.input_masks):
        if not path.is_file():
            raise InputError(f"{path}: there is no such file; check the path")
    inputs = {
        path.resolve()
        for path in (*args.input_stacks, *args.input_masks, args.template, args.template_mask)
        if path not in (None, AUTO, NONE)
    }
    _check_slice_folders(args)
    for option, path in outputs.items():
        name = f"--{option.replace('_', '-')} {path}"
        if path.resolve() in inputs:
            raise InputError(f"{name}: is an input; give the output another name")
        if [other.resolve() for other in outputs.values()].count(path.resolve()) > 1:
            raise InputError(f"{name}: two outputs have this name; give them different ones")
        there = path.parent if path.parent.exists() else path.parent.parent
        if not there.is_dir():
            raise InputError(f"{name}: there is no folder {there}; make it first")
        if path.is_dir() or not os.access(there, os.W_OK):
            raise InputError(f"{name}: cannot be written; give another name or make {there} writable")


def _check_slice_folders(args: argparse.Namespace) -> None:
    from gsbids.recon.volume.slice_folder import check_slice_folder

    taken = {args.input_slices.resolve(): "--input-slices"} if args.input_slices else {}
    for name in FOLDERS:
        folder, option = getattr(args, name), f"--{name.replace('_', '-')}"
        if not folder:
            continue
        if folder.resolve() in taken:
            raise InputError(f"{option} {folder}: is the folder of {taken[folder.resolve()]}; give another")
        if not folder.resolve().parent.is_dir():
            raise InputError(f"{option} {folder}: there is no folder {folder.resolve().parent}; make it first")
        check_slice_folder(folder, option)
        taken[folder.resolve()] = option


def _thickness(text: str) -> float | None:
    """Parse a number of mm; None for ``header``."""
    return None if text == "header" else between(*THICKNESS_RANGE)(text)
