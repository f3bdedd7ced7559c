# SPDX-License-Identifier: Apache-2.0
"""Method of every task, and the check of its data."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from gsbids.bids.task import ReconstructionTask, StackFile
from gsbids.config import Config, WorkflowOptions
from gsbids.errors import InputError

if TYPE_CHECKING:
    from gsbids.bids.check import CheckOptions

LOGGER = logging.getLogger("gsbids.cli")


@dataclass(frozen=True)
class Refusal:
    """One line about a task that cannot be run."""

    subject: str
    line: str

    def __str__(self) -> str:
        """Return the line."""
        return self.line


def check_tasks(
    tasks: Sequence[ReconstructionTask],
    config: Config,
    settings: Callable[[ReconstructionTask], Config] | None = None,
) -> tuple[list[ReconstructionTask], list[Refusal]]:
    """Return the tasks that can be run, with their methods and warnings, and a line about each that cannot.

    Parameters
    ----------
    tasks : sequence of ReconstructionTask
        Tasks as found by their names.
    config : Config
    settings : callable, optional
        Settings of a task where these are not those of the run, as of an earlier one; methods have been logged then.
    """
    target = sr_target(config.workflow)  # a --like that cannot be read is no fault of a task
    if not settings:
        check_template(config.workflow)
    good, refused = [], []
    for found in tasks:
        own = settings(found) if settings else config
        for task in choose_method(found, own.workflow.mode):
            try:
                if task.method == "sr":
                    checked = _check_sr(task, own, sr_target(own.workflow) if settings else target)
                else:
                    checked = check_svr(task, own)
            except InputError as error:
                refused.append(Refusal(task.subject, str(error)))
                continue
            for line in checked.warnings:
                LOGGER.warning("%s: %s", checked.name, line)
            LOGGER.log(logging.DEBUG if settings else logging.INFO, "%s: %s", checked.name, checked.reason)
            good.append(checked)
    for line in () if settings else _useless(good, config):
        LOGGER.warning("%s", line)
    return good, refused


def choose_method(task: ReconstructionTask, mode: str) -> tuple[ReconstructionTask, ...]:
    """Return the task for slice-to-volume reconstruction, or one task for every volume that is super-resolved.

    Parameters
    ----------
    task : ReconstructionTask
        Task as found by its names.
    mode : {"auto", "svr", "sr"}
        ``auto``: SVR where two or more stacks are thick, else SR.
    """
    count = len(task.stacks)
    if mode == "svr":
        return (replace(task, reason="slice-to-volume reconstruction, as --mode svr asks for"),)
    if mode == "sr":
        more = "" if count == 1 else f"; {task.name} has {count} volumes, and each is super-resolved by itself"
        return task.volumes(f"super-resolution, as --mode sr asks for{more}")
    if count == 1:
        return task.volumes("super-resolution, as this is the only volume (--mode auto)")
    thick = sum(map(_is_thick, task.stacks))
    if thick >= 2:
        which = f"{count} stacks, {thick} of them" if thick < count else f"{count} stacks that are"
        return (replace(task, reason=f"slice-to-volume reconstruction of {which} thick (--mode auto)"),)
    kind = "none of them" if thick == 0 else "only one of them"
    return task.volumes(
        f"super-resolution of each of {count} volumes by itself, as {kind} has thick slices (--mode auto)"
    )


def _is_thick(stack: StackFile) -> bool:
    """Return whether a stack has thick slices; True for one that cannot be read, which the check reports."""
    import numpy as np

    from gsbids.imaging.nifti import read_header
    from gsbids.recon.sr.target import is_thick

    try:
        _, affine = read_header(stack.path)
    except InputError:
        return True
    return is_thick(np.linalg.norm(affine[:3, :3], axis=0), stack.thickness)


def check_svr(task: ReconstructionTask, config: Config) -> ReconstructionTask:
    """Return the task with a thickness for every stack and warnings; raise InputError if its data cannot be used."""
    from gsbids.bids.check import check_task, fill_thickness

    if len(set(config.workflow.output_resolution)) > 1:
        raise InputError(
            f"--output-resolution: {task.name} is reconstructed from stacks (SVR), and its voxels have "
            "equal sides; give one number, or --mode sr"
        )
    options = _check_options(config)
    if len(task.stacks) < 2:
        check_task(task, options)  # says so, before anything about thickness
    filled = fill_thickness(task)
    return filled.with_warnings(*check_task(filled, options))


def _check_sr(task: ReconstructionTask, config: Config, target: Any) -> ReconstructionTask:
    """Check data, thickness and grid of a volume; store size and number of its fine voxels in the task."""
    import numpy as np

    from gsbids.bids.check import check_volume
    from gsbids.recon.sr.target import is_thick, target_grid

    (stack,), warnings, options = task.stacks, [], config.workflow
    (shape, affine), lines = check_volume(task, _check_options(config))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    if not is_thick(spacing, stack.thickness):
        if options.slice_thickness is not None:
            warnings.append("--slice-thickness is not used: its voxels are no thick slices")
    elif not stack.thickness > 0:
        warnings.append("no SliceThickness in the sidecar; slices are taken to be as thick as they are apart")
    try:
        grid, other = target_grid(shape, affine, target)
    except InputError as error:
        raise InputError(f"{stack.path}: {error}") from error
    fine_shape, fine = (grid.shape, grid.affine) if other is None else other
    sides = tuple(round(float(side), 4) for side in np.linalg.norm(fine[:3, :3], axis=0))
    voxels = int(max(np.prod(fine_shape), np.prod(grid.shape)))
    return replace(task, resolution=sides, voxels=voxels).with_warnings(*lines, *warnings)


def sr_target(options: WorkflowOptions) -> Any:
    """Return the grid that the options ask for, as :class:`gsbids.recon.sr.target.SrTarget`."""
    from gsbids.imaging.nifti import read_header
    from gsbids.recon.sr.target import SrTarget

    try:
        like = read_header(options.like) if options.like else None
    except InputError as error:
        raise InputError(f"--like {error}") from error
    return SrTarget(options.sr_factor, options.output_resolution, like)


def check_template(options: WorkflowOptions) -> None:
    """Raise InputError where ``--template`` or its mask cannot be used."""
    if options.template_file:
        from gsbids.masking.template import load_template

        load_template(options.template_file, options.template_mask)


def _check_options(config: Config) -> "CheckOptions":
    from gsbids.bids.check import CheckOptions

    workflow = config.workflow
    return CheckOptions(
        mask_mode=workflow.mask_mode,
        thickness_given=workflow.slice_thickness is not None,
        masks_given=bool(config.execution.derivatives),
    )


def _useless(tasks: Sequence[ReconstructionTask], config: Config) -> Iterator[str]:
    """Yield a line about each option that has no effect in this run."""
    methods, options = {task.method for task in tasks}, config.workflow
    if methods == {"svr"}:
        for option, value in (("--sr-factor", options.sr_factor), ("--like", options.like)):
            if value:
                yield f"{option}: not used, as nothing is super-resolved; --mode sr would do so"
    for option, value in (("--template", options.template_file), ("--orientation", options.orientation != "scanner")):  # type: ignore[assignment]
        if methods == {"sr"} and value:
            yield f"{option}: not used, as nothing is reconstructed from stacks"
    if methods == {"sr"} and config.execution.preview:
        yield "--preview: not used, as nothing is reconstructed from stacks"
