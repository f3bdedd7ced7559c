# SPDX-License-Identifier: Apache-2.0
"""Reports and methods text from the files of earlier runs: nothing is computed again."""

import json
import math
from collections.abc import Sequence
from pathlib import Path

from gsbids.atomic import write_atomic
from gsbids.bids.names import derivative_path, sidecar_path, subject_folder
from gsbids.bids.task import ReconstructionTask, StackFile
from gsbids.config import Config
from gsbids.errors import InputError
from gsbids.qc.verdict import VERDICT_COLUMN
from gsbids.workflows.names import volume_extra
from gsbids.workflows.report import left_files, left_sr_files, report_inputs, sr_report_inputs
from gsbids.workflows.usage import kept_usage

#: Files of a reconstruction by their names among the inputs of ``SubjectReport``, and of its stacks.
SAVED = {
    "volume": "volume",
    "unmasked": "volume_unmasked",
    "mask": "volume_mask",
    "coverage": "coverage",
    "uncertainty": "uncertainty",
    "result": "model",
    "template_xfm": "template_xfm",
}
SAVED_STACKS = {"masks": "stack_mask", "corrected": "stack", "simulated": "simulated"}

#: The same of a super-resolution, among the inputs of ``SrReport``.
SAVED_SR = {"volume": "sr_volume", "mask": "sr_mask", "model": "sr_model"}


def settings_of_last_run(config: Config, task: ReconstructionTask) -> Config:
    """Return the settings with which the last run of this task computed; those given where no run has left any.

    A mode that was asked for by name goes first: a run in another mode is not one of this task.
    """
    mode = config.workflow.mode
    logs = config.execution.output_dir / subject_folder(task.entities) / "log"
    for path in sorted(logs.glob("*/gsbids.toml"), reverse=True):
        try:
            found = Config.from_toml(path)
        except InputError:
            continue
        if found.workflow.modality == task.suffix and (mode == "auto" or found.workflow.mode in ("auto", mode)):
            last = {"run_uuid": found.execution.run_uuid, "command": found.execution.command}
            own = Config(config.execution, found.workflow, config.nipype).replace("execution", **last)
            return own if mode == "auto" else own.replace("workflow", mode=mode)
    return config


def rewrite_report(config: Config, task: ReconstructionTask, crashes: Sequence[str], scratch: Path) -> Path | None:
    """Write the report of a task again, from its outputs and from what its working folder still holds.

    Parameters
    ----------
    config : Config
        See :func:`settings_of_last_run`.
    task : ReconstructionTask
    crashes : sequence of str
        Texts of the crashes to show.
    scratch : Path
        Empty folder for temporary files.

    Returns
    -------
    Path or None
        Report, in its usual place; None where there is nothing to report.
    """
    from dataclasses import replace

    from gsbids.interfaces.outputs import gather_content
    from gsbids.interfaces.super_resolve import gather_sr_content
    from gsbids.qc.report.page import write_report

    config, root, of_sr = config.of_method(task.method), config.execution.output_dir, task.method == "sr"
    if of_sr:
        found = left_sr_files(config, task) | saved_sr_files(config, task)
    else:
        found = _merge(left_files(config, task), saved_files(config, task, scratch))
    if not crashes and not any(name in found for name in ("result", "model", "volume")):
        return None
    metrics = root / derivative_path(task.entities, "sr_metrics" if of_sr else "metrics")
    if metrics.is_file():
        found["metrics"] = str(_metrics_json(metrics, scratch / "metrics.json"))
    if (usage := kept_usage(config, task)) is not None:
        found["usage"] = str(usage)
    if of_sr:
        content = gather_sr_content(sr_report_inputs(config, task) | _with_input(config, task, found, scratch))
    else:
        found["conformed"] = [
            file or _conform(stack, scratch / str(n))
            for n, (stack, file) in enumerate(
                zip(task.stacks, found.get("conformed", [None] * len(task.stacks)), strict=True)
            )
        ]
        content = gather_content(report_inputs(config, task) | found)
    path = root / derivative_path(task.entities, "report")
    return write_report(path, replace(content, crashes=tuple(crashes)))


def saved_sr_files(config: Config, task: ReconstructionTask) -> dict:
    """Return outputs of a super-resolution under the names of the inputs of ``SrReport``."""
    root, found = config.execution.output_dir, {}
    for name, kind in SAVED_SR.items():
        path = root / derivative_path(task.entities, kind, **({} if kind == "sr_model" else {"res": task.resolution}))
        if path.is_file():
            found[name] = str(path)
            if name == "mask" and (reason := _sidecar(path).get("MaskSource")):
                found["mask_reason"] = str(reason)
    return found


def saved_files(config: Config, task: ReconstructionTask, scratch: Path) -> dict:
    """Return outputs of a task under the names of the inputs of ``SubjectReport``; new files are in ``scratch``."""
    root, extra = config.execution.output_dir, volume_extra(config.workflow)
    found: dict = {}
    for name, kind in SAVED.items():
        needs = {"from": task.suffix} if kind == "template_xfm" else {} if kind == "model" else extra
        path = root / derivative_path(task.entities, kind, **needs)
        if path.is_file():
            found[name] = str(path)
    if "volume" in found:
        told = {name: value for name, value in _sidecar(Path(found["volume"])).items() if name.startswith("Template")}
        found["placement"] = str(scratch / "placement.json")
        Path(found["placement"]).write_text(json.dumps(told), encoding="utf-8")
    for name, kind in SAVED_STACKS.items():
        files = [root / derivative_path(stack.entities, kind) for stack in task.stacks]
        found[name] = [str(file) if file.is_file() else None for file in files]
    sidecars = [_sidecar(root / derivative_path(stack.entities, "stack_mask")) for stack in task.stacks]
    found["mask_reasons"] = [str(sidecar.get("MaskSource", "")) for sidecar in sidecars]
    found["mask_methods"] = [str(sidecar.get("MaskMode", "")) for sidecar in sidecars]
    return found


def write_boilerplate(config: Config, tasks: Sequence[ReconstructionTask]) -> str:
    """Write ``logs/CITATION.*`` for a run of these tasks.

    Returns
    -------
    str
        Text with numbered citations.
    """
    from gsbids.qc.report.boilerplate import boilerplate_files, plain_text

    paragraphs = run_paragraphs(config, tasks)
    folder = config.execution.output_dir / "logs"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in boilerplate_files(paragraphs).items():
        write_atomic(folder / name, text.encode())
    return plain_text(paragraphs)


def run_paragraphs(config: Config, tasks: Sequence[ReconstructionTask]) -> tuple[str, ...]:
    """Return the methods text of a whole run: what its tasks have in common, those of SVR first."""
    from gsbids.qc.report.methods import MethodsFacts, methods_paragraphs
    from gsbids.qc.report.methods_sr import SrMethodsFacts, sr_methods_paragraphs

    svr, volumes = ([task for task in tasks if task.method == method] for method in ("svr", "sr"))
    paragraphs: tuple[str, ...] = ()
    if svr:
        facts = report_inputs(config.of_method("svr"), svr[0])["facts"]
        counts = {len(task.stacks) for task in svr}
        mode = config.workflow.mask_mode
        if config.workflow.takes_masks:
            given = all(stack.mask is not None for task in svr for stack in task.stacks)
            mode = "derivatives" if given else ""
        paragraphs = methods_paragraphs(
            MethodsFacts(**facts | {"n_stacks": counts.pop() if len(counts) == 1 else 0, "masking": mode})
        )
    if volumes:
        facts = sr_report_inputs(config.of_method("sr"), volumes[0])["facts"]
        sizes = {task.resolution for task in volumes}
        more = sr_methods_paragraphs(
            SrMethodsFacts(
                **facts
                | {
                    "resolution": sizes.pop() if len(sizes) == 1 else (),
                    "n_volumes": len(volumes),
                    "planned": config.workflow.sr_quality,
                    "seed": config.workflow.random_seed,
                }
            )
        )
        # Both end with the same sentence about software.
        paragraphs = (*paragraphs[:-1], *more)
    return paragraphs


def _merge(left: dict, saved: dict) -> dict:
    """Merge files of the output with those of the working folder; the output goes first."""
    merged = left | saved
    for name in (*SAVED_STACKS,):
        files = left.get(name, [None] * len(saved[name]))
        merged[name] = [file or other for file, other in zip(saved[name], files, strict=True)]
    return merged


def _metrics_json(table: Path, path: Path) -> Path:
    """Write the numbers in the row of metrics of an output as the JSON of ``QcMetrics``.

    The verdict follows from them.
    """
    lines = [line.split("\t") for line in table.read_text(encoding="utf-8", errors="replace").splitlines()]
    row = {}
    for name, text in zip(*lines[:2], strict=False) if len(lines) > 1 else ():
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if name not in ("bids_name", *VERDICT_COLUMN):
            row[name] = value if math.isfinite(value) else None
    path.write_text(json.dumps(row), encoding="utf-8")
    return path


def _with_input(config: Config, task: ReconstructionTask, found: dict, scratch: Path) -> dict:
    """Add the volume that was super-resolved, and its B-spline on the fine grid, to the files of a super-resolution."""
    from gsbids.imaging.nifti import load_image, read_header, save_image
    from gsbids.recon.sr.grid import resampled

    (volume,), options = task.stacks, config.workflow
    prepared = config.execution.output_dir / derivative_path(task.entities, "stack")
    if not (options.denoise or options.n4):
        found.setdefault("before", _conform(volume, scratch / "conform", keep_as_is=True))
    elif prepared.is_file():
        found["before"] = str(prepared)
    if "interpolated" not in found and "volume" in found and "before" in found:
        shape, affine = read_header(found["volume"])
        fine = resampled(*load_image(found["before"]), shape, affine)
        found["interpolated"] = str(save_image(scratch / "interpolated.nii.gz", fine, affine))
    return found


def _conform(stack: StackFile, folder: Path, keep_as_is: bool = False) -> str:
    """Conform the acquired stack, so that slices are along the third axis, or repair a volume as it is."""
    from gsbids.interfaces.stack import ConformStack

    folder.mkdir(parents=True)
    direction = None if keep_as_is else stack.metadata.get("SliceEncodingDirection")
    given = {"slice_encoding_direction": str(direction)} if direction else {"keep_as_is": keep_as_is}
    return ConformStack(in_file=str(stack.path), **given).run(cwd=str(folder)).outputs.out_file


def _sidecar(path: Path) -> dict:
    try:
        found = json.loads(sidecar_path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
