# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a task's steps: beside the steps, and as a table in the log of the run."""

from pathlib import Path

from nipype.pipeline.engine import Node, Workflow

from gsbids.atomic import write_atomic
from gsbids.bids.names import log_folder, subject_folder
from gsbids.bids.task import ReconstructionTask
from gsbids.config import Config
from gsbids.interfaces.base import NodeInterface
from gsbids.interfaces.outputs import SaveLog
from gsbids.interfaces.usage import USAGE_FILE, gather_usage
from gsbids.qc.report.usage import format_usage
from gsbids.workflows.names import task_folder


def usage_path(config: Config, task: ReconstructionTask) -> Path:
    """Return the path of the table of a run; beside its settings, as it is no result and never the same twice."""
    execution = config.execution
    return execution.output_dir / log_folder(task.entities, execution.run_uuid) / f"{task.name}_usage.tsv"


def connect_usage(workflow: Workflow, report: Node, config: Config, task: ReconstructionTask) -> None:
    """Pass the names of the steps in the workflow so far to the report of a task, and save the table."""
    nodes = {name: workflow.get_node(name) for name in workflow.list_node_names()}
    report.inputs.steps = [
        name
        for name, node in nodes.items()
        if node is not report and isinstance(node.interface, NodeInterface) and not node.run_without_submitting
    ]
    report.inputs.work_folder = str(task_folder(config, task))
    save = Node(SaveLog(out_file=str(usage_path(config, task))), "save_usage", run_without_submitting=True, mem_gb=0.1)
    workflow.connect(report, "usage", save, "in_file")


def keep_usage(config: Config, task: ReconstructionTask) -> Path | None:
    """Write the table of all steps with a record in the working folder, as after a crash; None if there is none."""
    folder = task_folder(config, task)
    found = (path.parent.relative_to(folder) for path in folder.rglob(USAGE_FILE))
    steps = gather_usage(folder, [".".join(path.parts) for path in found if path.name != "report"])
    if not steps:
        return None
    path = usage_path(config, task)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, format_usage(steps).encode())
    return path


def kept_usage(config: Config, task: ReconstructionTask) -> Path | None:
    """Return the table of the last run that has left one."""
    logs = config.execution.output_dir / subject_folder(task.entities) / "log"
    return max(logs.glob(f"*/{task.name}_usage.tsv"), default=None)
