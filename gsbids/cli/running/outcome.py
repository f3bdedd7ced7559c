# SPDX-License-Identifier: Apache-2.0
"""After the run: which tasks have their outputs, which crashed, which volumes not to use, and the messages about it."""

import json
import logging
import re
from collections.abc import Sequence
from pathlib import Path

from gsbids.bids.description import FILE
from gsbids.bids.names import derivative_path, log_folder, sidecar_path
from gsbids.bids.task import ReconstructionTask
from gsbids.config import Config
from gsbids.errors import NOT_TO_BE_USED
from gsbids.qc.report.crashes import crash_summary
from gsbids.qc.verdict import DO_NOT_USE, LOOK, Verdict, verdict_of_fields
from gsbids.workflows.names import registry_folder, volume_path, workflow_name

LOGGER = logging.getLogger("gsbids.cli")

#: Exit code of a run in which something failed.
FAILED = 1


def report_outcome(config: Config, tasks: Sequence[ReconstructionTask], finished: bool, refused: int = 0) -> int:
    """Log the outcome of every task and the verdict on its volume; write the report of those that crashed.

    Parameters
    ----------
    config : Config
    tasks : sequence of ReconstructionTask
    finished : bool
        Whether nipype ended without an error.
    refused : int
        Number of tasks that were not begun.

    Returns
    -------
    int
        Exit code: ``FAILED`` where any task failed or was not begun, else ``NOT_TO_BE_USED`` where a volume is not
        to be used, else 0.
    """
    done = [task for task in tasks if _report_task(config, task)]
    spoilt = sum(tell_verdict(task.name, find_verdict(config, task)) for task in done)
    LOGGER.info(
        "%d of %d reconstructions done%s; results in %s",
        len(done),
        len(tasks) + refused,
        f", {spoilt} of them not to be used" if spoilt else "",
        config.execution.output_dir,
    )
    if not finished and len(done) == len(tasks):
        LOGGER.error("a step failed that belongs to no subject; run again with -vv to see which")
    if refused or not finished or len(done) < len(tasks):
        return FAILED
    return NOT_TO_BE_USED if spoilt else 0


def find_verdict(config: Config, task: ReconstructionTask) -> Verdict | None:
    """Return the verdict on the volume of a task, from its sidecar; None where there is none (super-resolution)."""
    return verdict_of_fields(_sidecar(config, task))


def _sidecar(config: Config, task: ReconstructionTask) -> dict:
    """Read the sidecar of a volume; empty where it cannot be read."""
    path = sidecar_path(config.execution.output_dir / volume_path(config, task))
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def volume_line(path: Path, fields: dict) -> str:
    """Describe where a volume is, what it was made of, and its verdict.

    Examples
    --------
    >>> volume_line(Path("out/a.nii.gz"), {"NumberOfStacksUsed": 3, "NumberOfSlicesUsed": 60, "Verdict": "usable"})
    'volume in out/a.nii.gz, of 3 stacks and 60 slices: usable'
    """
    known = fields.get("NumberOfStacksUsed"), fields.get("NumberOfSlicesUsed")
    made = ", of {} stacks and {} slices".format(*known) if all(isinstance(n, int) for n in known) else ""
    verdict = verdict_of_fields(fields)
    return f"volume in {path}{made}{f': {verdict.level}' if verdict else ''}"


def tell_verdict(name: str, verdict: Verdict | None) -> bool:
    """Log the verdict on a volume, unless it is usable; return whether it is not to be used."""
    reasons = " ".join(verdict.reasons) if verdict else ""
    if verdict and verdict.level == DO_NOT_USE:
        LOGGER.error("%s: do not use this volume: %s", name, reasons)
        return True
    if verdict and verdict.level == LOOK:
        LOGGER.warning("%s: look at this volume before you use it: %s", name, reasons)
    return False


def find_crashes(config: Config, task: ReconstructionTask) -> list[Path]:
    """List the crash files of a task in this run.

    Tasks of one subject share a folder; each file says which node it is about.
    """
    folder = config.execution.output_dir / log_folder(task.entities, config.execution.run_uuid)
    name = f".{workflow_name(task)}."
    found = []
    for path in sorted(folder.glob("crash-*")):
        node = re.search(r"^Node: (\S+)", path.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
        if node is None or name in f".{node[1]}.":
            found.append(path)
    return found


def _report_task(config: Config, task: ReconstructionTask) -> bool:
    """Log the outcome of a task; return whether it has succeeded."""
    output_dir = config.execution.output_dir
    crashes = find_crashes(config, task)
    for path in crashes:
        node, line = crash_summary(path.read_text(encoding="utf-8", errors="replace"))
        LOGGER.error("%s: step %s failed: %s; details in %s", task.name, node, line, path)
    report = output_dir / derivative_path(task.entities, "report")
    if crashes:
        _write_report(config, task, crashes)
    else:
        missing = [path for path in (output_dir / volume_path(config, task), report) if not path.is_file()]
        gone = [path for path in _written(config, task) if not path.is_file()]
        if not missing and not gone:
            line = volume_line(output_dir / volume_path(config, task), _sidecar(config, task))
            LOGGER.info("%s: %s", task.name, line)
            LOGGER.info("%s: report in %s", task.name, report)
            return True
        if gone:
            LOGGER.error(
                "%s: outputs that were written are gone (%d), as %s; was the output removed meanwhile? The "
                "same command writes them again",
                task.name,
                len(gone),
                gone[0],
            )
        else:
            LOGGER.error("%s: not finished, %s is missing", task.name, missing[0])
    return False


def _written(config: Config, task: ReconstructionTask) -> list[Path]:
    """List the files that this run has recorded as written for the subject of a task, and the description with them."""
    root, subject = config.execution.output_dir, f"sub-{task.entities['sub']}"
    notes = sorted(registry_folder(config).glob(f"{subject}[_.]*"))
    return [root.joinpath(*note.name.split("__")) for note in notes] + ([root / FILE] if notes else [])


def _write_report(config: Config, task: ReconstructionTask, crashes: Sequence[Path]) -> None:
    try:
        from gsbids.workflows.report import write_crash_report

        path = write_crash_report(config, task, crashes)
    except Exception as error:
        # The subject has failed already; that its report failed too must not hide the others.
        LOGGER.error("%s: the report could not be written (%s: %s)", task.name, type(error).__name__, error)
        LOGGER.debug("report of a crash", exc_info=True)
    else:
        LOGGER.info("%s: report with the errors in %s", task.name, path)
