# SPDX-License-Identifier: Apache-2.0
"""The report of a task: inputs that are known when the workflow is built, and files that are left after a crash."""

import re
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gsbids.bids.names import derivative_path, resolution_label, resolution_words
from gsbids.bids.task import ReconstructionTask
from gsbids.config import Config
from gsbids.workflows.names import stack_workflow_name, task_folder
from gsbids.workflows.outputs import slice_times
from gsbids.workflows.usage import keep_usage

#: Distributions by the names of what is imported.
PACKAGES = {
    "gsbids": "gsbids",
    "nipype": "nipype",
    "bids": "pybids",
    "nibabel": "nibabel",
    "ants": "antspyx",
    "torch": "torch",
    "numba": "numba",
    "numpy": "numpy",
    "scipy": "scipy",
}


def report_inputs(config: Config, task: ReconstructionTask) -> dict:
    """Return the inputs of :class:`gsbids.interfaces.outputs.SubjectReport` that are known beforehand.

    No times, paths or names of this run but in ``made``: apart from that and from the resources of its steps, the
    report of a repeated run is the same to the bit.

    Returns
    -------
    dict
        ``content``, ``facts``, ``panels`` and ``made``.
    """
    options = config.workflow
    versions = package_versions()
    thicknesses = sorted({f"{stack.thickness:g}" for stack in task.stacks})
    content = {
        "title": task.name.replace("_", " "),
        "task": task.name,
        "summary": (
            ("Stacks", str(len(task.stacks))),
            ("Slice thickness", f"{', '.join(thicknesses)} mm"),
            ("Voxel size", f"{options.svr_resolution:g} mm isotropic"),
            ("Method", task.reason or "slice-to-volume reconstruction"),
        ),
        "warnings": task.warnings,
        "versions": versions,
        "help_page": help_page(task),
        "run": {
            "Random seed": str(options.random_seed),
            "Device": options.device,
            "Mask mode": options.mask_mode,
            "SVR method": options.svr_method,
            "Motion correction": "yes" if options.motion_correction else "no",
            "Sloppy": "yes: for testing only" if options.sloppy else "no",
        },
    }
    facts = {
        "versions": versions,
        "n_stacks": len(task.stacks),
        "plain": task.plain,
        "denoised": options.denoise,
        "bias_corrected": options.n4,
        "registered": task.poses is None,
        "posed": task.poses is not None,
        "motion_corrected": options.motion_correction,
        "method": options.svr_method,
        "resolution": (options.svr_resolution,) * 3,
        "seed": options.random_seed,
        "device": options.device,
    }
    panels = []
    for stack in task.stacks:
        rows = (("File", stack.path.name), ("Slice thickness", f"{stack.thickness:g} mm"))
        panels.append({"name": stack.label, "facts": rows, "slice_times": tuple(slice_times(stack)) or None})
    return {"content": content, "facts": facts, "panels": panels, "made": made_by(config)}


def made_by(config: Config) -> dict[str, str]:
    """Return date and command line of a run, as far as they are known."""
    date = re.match(r"(\d{4})(\d\d)(\d\d)-(\d\d)(\d\d)", config.execution.run_uuid)
    known = {"Date": "{}-{}-{} {}:{}".format(*date.groups()) if date else "", "Command": config.execution.command}
    return {name: value for name, value in known.items() if value}


def help_page(task: ReconstructionTask) -> str:
    """Return the page beside the report that says what the outputs are; empty where the files are plain ones."""
    return "" if task.plain else "README.md"


def sr_report_inputs(config: Config, task: ReconstructionTask) -> dict:
    """Return the inputs of :class:`gsbids.interfaces.super_resolve.SrReport` that are known beforehand.

    Returns
    -------
    dict
        ``content``, ``facts`` and ``made``.
    """
    options, (stack,), versions = config.workflow, task.stacks, package_versions()
    thickness = f"{stack.thickness:g} mm" if stack.thickness > 0 else "not known"
    content = {
        "title": task.name.replace("_", " "),
        "task": task.name,
        "summary": (
            ("File", stack.path.name),
            ("Slice thickness", thickness),
            ("Voxel size", resolution_words(resolution_label(task.resolution))),
            ("Method", task.reason or "super-resolution"),
        ),
        "warnings": task.warnings,
        "versions": versions,
        "help_page": help_page(task),
        "orientation": "Letters are directions of the scanner.",
        "run": {
            "Quality": options.sr_quality,
            "Random seed": str(options.random_seed),
            "Device": options.device,
            "Mask mode": options.mask_mode,
            "Denoising": "yes" if options.denoise else "no",
            "N4": "yes" if options.n4 else "no",
            "Sloppy": "yes: for testing only" if options.sloppy else "no",
        },
    }
    facts = {
        "versions": versions,
        "denoised": options.denoise,
        "bias_corrected": options.n4,
        "suffix": task.suffix,
        "resolution": task.resolution,
        "device": options.device,
    }
    return {"content": content, "facts": facts, "made": made_by(config)}


def write_crash_report(config: Config, task: ReconstructionTask, crash_files: Sequence[Path]) -> Path:
    """Write the report of a task that failed, with the files that its nodes have left.

    Parameters
    ----------
    config : Config
    task : ReconstructionTask
    crash_files : sequence of Path
        Texts that nipype wrote.

    Returns
    -------
    Path
        Report, in its usual place.
    """
    from dataclasses import replace

    from gsbids.interfaces.outputs import gather_content
    from gsbids.interfaces.super_resolve import gather_sr_content
    from gsbids.qc.report.page import write_report

    config = config.of_method(task.method)
    usage = keep_usage(config, task)
    known = {} if usage is None else {"usage": str(usage)}
    if task.method == "sr":
        content = gather_sr_content(sr_report_inputs(config, task) | left_sr_files(config, task) | known)
    else:
        content = gather_content(report_inputs(config, task) | left_files(config, task) | known)
    texts = [Path(path).read_text(encoding="utf-8", errors="replace") for path in crash_files]
    path = config.execution.output_dir / derivative_path(task.entities, "report")
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_report(path, replace(content, crashes=tuple(texts)))


def left_files(config: Config, task: ReconstructionTask) -> dict:
    """Return files in the working folder of a task, under the names of the inputs of ``SubjectReport``."""
    folder = task_folder(config, task)
    names = {
        "choice": "choose/choice.json",
        "registration": "svr_wf/register/registration.json",
        "result": "svr_wf/fit/result.npz",
        "volume": "svr_wf/sample/volume.nii.gz",
        "unmasked": "svr_wf/sample/unmasked.nii.gz",
        "coverage": "svr_wf/sample/coverage.nii.gz",
        "uncertainty": "svr_wf/sample/uncertainty.nii.gz",
        "mask": "svr_wf/sample/mask.nii.gz",
        "placement": "svr_wf/sample/placement.json",
        "template_xfm": "svr_wf/sample/template_xfm.txt",
        "metrics": "volume_outputs_wf/qc/metrics.json",
    }
    found: dict = {name: str(folder / path) for name, path in names.items() if (folder / path).is_file()}
    last = {
        (True, True): "n4/corrected.nii.gz",
        (False, True): "n4/corrected.nii.gz",
        (True, False): "denoise/denoised.nii.gz",
    }.get((config.workflow.denoise, config.workflow.n4))  # type: ignore[arg-type]
    parts = {"conformed": "conform/conformed.nii.gz", "masks": "mask/mask.nii.gz", "corrected": last}
    for name, path in parts.items():
        if path:
            files = [folder / stack_workflow_name(stack) / path for stack in task.stacks]
            found[name] = [str(file) if file.is_file() else None for file in files]
    return found


def left_sr_files(config: Config, task: ReconstructionTask) -> dict:
    """Return files in the working folder of a super-resolution, under the names of the inputs of ``SrReport``."""
    folder = task_folder(config, task)
    names = {
        "before": "volume_wf/conform/conformed.nii.gz",
        "interpolated": "super_resolve/interpolated.nii.gz",
        "volume": "super_resolve/volume.nii.gz",
        "mask": "super_resolve/mask.nii.gz",
        "model": "super_resolve/model.npz",
        "metrics": "outputs_wf/qc/metrics.json",
    }
    return {name: str(folder / path) for name, path in names.items() if (folder / path).is_file()}


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that affect the result."""
    versions = {}
    for name, distribution in PACKAGES.items():
        try:
            versions[name] = version(distribution)
        except PackageNotFoundError:
            continue
    return versions
