# SPDX-License-Identifier: Apache-2.0
"""The report of a task: what is known when the workflow is built, and what is left after a crash."""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from gsbids.bids.names import derivative_path
from gsbids.bids.task import ReconstructionTask
from gsbids.config import Config
from gsbids.workflows.names import stack_workflow_name, task_folder
from gsbids.workflows.outputs import slice_times

#: Distributions by the names of what is imported.
PACKAGES = {"gsbids": "gsbids", "nipype": "nipype", "bids": "pybids", "nibabel": "nibabel", "ants": "antspyx",
            "torch": "torch", "numba": "numba", "numpy": "numpy", "scipy": "scipy"}


def report_inputs(config: Config, task: ReconstructionTask) -> dict:
    """Inputs of :class:`gsbids.interfaces.outputs.SubjectReport` that are known beforehand.

    No times, paths or names of this run: the report of a repeated run is the same to the bit.

    Returns
    -------
    dict
        ``content``, ``facts`` and ``panels``.
    """
    options = config.workflow
    versions = package_versions()
    thicknesses = sorted({f"{stack.thickness:g}" for stack in task.stacks})
    content = {
        "title": task.name.replace("_", " "),
        "task": task.name,
        "summary": (("Stacks", str(len(task.stacks))), ("Slice thickness", f"{', '.join(thicknesses)} mm"),
                    ("Voxel size", f"{options.output_resolution:g} mm isotropic")),
        "warnings": task.warnings,
        "versions": versions,
        "run": {"Random seed": str(options.random_seed), "Device": options.device,
                "Mask mode": options.mask_mode, "SVR method": options.svr_method,
                "Motion correction": "yes" if options.motion_correction else "no",
                "Sloppy": "yes: for testing only" if options.sloppy else "no"},
    }
    facts = {"versions": versions, "n_stacks": len(task.stacks), "denoised": options.denoise,
             "bias_corrected": options.n4, "registered": True, "motion_corrected": options.motion_correction,
             "method": options.svr_method,
             "resolution": (options.output_resolution,) * 3, "seed": options.random_seed,
             "device": options.device}
    panels = []
    for stack in task.stacks:
        rows = (("File", stack.path.name), ("Slice thickness", f"{stack.thickness:g} mm"))
        panels.append({"name": stack.label, "facts": rows, "slice_times": tuple(slice_times(stack)) or None})
    return {"content": content, "facts": facts, "panels": panels}


def write_crash_report(config: Config, task: ReconstructionTask, crash_files: Sequence[Path]) -> Path:
    """Write the report of a task that failed, with what its nodes have left.

    Parameters
    ----------
    config : Config
    task : ReconstructionTask
    crash_files : sequence of Path
        Texts that nipype wrote.

    Returns
    -------
    Path
        The report, in its usual place.
    """
    from dataclasses import replace

    from gsbids.interfaces.outputs import gather_content
    from gsbids.qc.report import write_report

    content = gather_content(report_inputs(config, task) | left_files(config, task))
    texts = [Path(path).read_text(encoding="utf-8", errors="replace") for path in crash_files]
    path = config.execution.output_dir / derivative_path(task.entities, "report")
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_report(path, replace(content, crashes=tuple(texts)))


def left_files(config: Config, task: ReconstructionTask) -> dict:
    """Files in the working folder of a task, under the names of the inputs of ``SubjectReport``."""
    folder = task_folder(config, task)
    names = {"registration": "svr_wf/register/registration.json", "result": "svr_wf/fit/result.npz",
             "volume": "svr_wf/sample/volume.nii.gz", "unmasked": "svr_wf/sample/unmasked.nii.gz",
             "coverage": "svr_wf/sample/coverage.nii.gz", "uncertainty": "svr_wf/sample/uncertainty.nii.gz",
             "mask": "svr_wf/sample/mask.nii.gz", "metrics": "volume_outputs_wf/qc/metrics.json"}
    found: dict = {name: str(folder / path) for name, path in names.items() if (folder / path).is_file()}
    last = {(True, True): "n4/corrected.nii.gz", (False, True): "n4/corrected.nii.gz",
            (True, False): "denoise/denoised.nii.gz"}.get((config.workflow.denoise, config.workflow.n4))
    parts = {"conformed": "conform/conformed.nii.gz", "masks": "mask/mask.nii.gz", "corrected": last}
    for name, path in parts.items():
        if path:
            files = [folder / stack_workflow_name(stack) / path for stack in task.stacks]
            found[name] = [str(file) if file.is_file() else None for file in files]
    return found


def package_versions() -> dict[str, str]:
    """Versions of the packages that have a part in the result."""
    versions = {}
    for name, distribution in PACKAGES.items():
        try:
            versions[name] = version(distribution)
        except PackageNotFoundError:
            continue
    return versions
