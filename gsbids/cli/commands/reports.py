# SPDX-License-Identifier: Apache-2.0
"""``--reports-only`` and ``--boilerplate-only``: reports and methods text of a run, without the run."""

import logging
import sys
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from gsbids.bids.names import subject_folder
from gsbids.cli.plan import Plan
from gsbids.cli.running.outcome import find_crashes
from gsbids.cli.running.run import environment
from gsbids.errors import InputError

if TYPE_CHECKING:
    from gsbids.bids.task import ReconstructionTask
    from gsbids.config import Config

LOGGER = logging.getLogger("gsbids.cli")


def remake_reports(plan: Plan) -> int:
    """Write the reports of all tasks again from outputs and working folders.

    Returns
    -------
    int
        0, or 1 when a task has no volume, no outputs at all, or was refused.

    Raises
    ------
    gsbids.errors.InputError
        No task has anything to report, or the output cannot be written to.
    """
    made = [_remake(plan, task) for task in plan.tasks]
    if not any(path for path, *_ in made):
        raise InputError(
            f"{plan.config.execution.output_dir}: holds no outputs of {_names(plan)}; run without --reports-only first"
        )
    for _, level, line in made:
        LOGGER.log(level, "%s", line)
    return int(bool(plan.refused) or any(level == logging.ERROR for _, level, _ in made))


def print_boilerplate(plan: Plan) -> int:
    """Write the methods text to ``logs/CITATION.*``, and print it.

    Returns
    -------
    int
        0, or 1 when a task was refused.
    """
    from gsbids.workflows.rebuild import write_boilerplate

    with environment(plan.config), redirect_stdout(sys.stderr):
        try:
            text = write_boilerplate(plan.config, plan.tasks)
        except OSError as error:
            raise _unwritable(plan, error) from error
    sys.stdout.write(text)
    LOGGER.info("methods text in %s (.md, .tex, .bib, .html)", plan.config.execution.output_dir / "logs" / "CITATION")
    return int(bool(plan.refused))


def _remake(plan: Plan, task: "ReconstructionTask") -> tuple[Path | None, int, str]:
    """Write the report of a task again; return it with the level and text of a message."""
    from gsbids.workflows.names import volume_path
    from gsbids.workflows.rebuild import rewrite_report, settings_of_last_run

    config = settings_of_last_run(plan.config, task)
    volume = config.execution.output_dir / volume_path(config, task)
    crashes = [] if volume.is_file() else _last_crashes(config, task)
    with environment(config), redirect_stdout(sys.stderr), tempfile.TemporaryDirectory(prefix="gsbids-") as scratch:
        try:
            path = rewrite_report(config, task, crashes, Path(scratch))
        except OSError as error:
            raise _unwritable(plan, error) from error
    if path is None:
        return None, logging.ERROR, f"{task.name}: no outputs and nothing in the working folder; no report is written"
    if not volume.is_file():
        return (
            path,
            logging.ERROR,
            (f"{task.name}: not finished, {volume} is missing; report of what there is in {path}"),
        )
    return path, logging.INFO, f"{task.name}: report in {path}"


def _last_crashes(config: "Config", task: "ReconstructionTask") -> list[str]:
    """Return the texts of the crashes of a task in the last run that had any."""
    logs = config.execution.output_dir / subject_folder(task.entities) / "log"
    for folder in sorted(logs.glob("*/"), reverse=True):
        run = replace(config, execution=replace(config.execution, run_uuid=folder.name))
        if found := find_crashes(run, task):
            return [path.read_text(encoding="utf-8", errors="replace") for path in found]
    return []


def _names(plan: Plan) -> str:
    names = [task.name for task in plan.tasks]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _unwritable(plan: Plan, error: OSError) -> InputError:
    return InputError(
        f"{error.filename or plan.config.execution.output_dir}: cannot be read or written "
        f"({error.strerror}); make it accessible"
    )
