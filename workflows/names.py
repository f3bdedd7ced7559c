# SPDX-License-Identifier: Apache-2.0
"""Names of workflows, and the folders that they work in."""

import hashlib
import re
from pathlib import Path

from gsbids import __version__
from gsbids.bids.names import derivative_path
from gsbids.bids.task import ReconstructionTask, StackFile
from gsbids.config import TEMPLATE, Config, WorkflowOptions

TOP = "gsbids_wf"


def workflow_name(task: ReconstructionTask) -> str:
    """Return the name of a task's workflow, as ``sub_01_ses_01_T2w_wf``, or ``sub_01_T1w_sr_wf`` of super-resolution.

    Two tasks never share one: a ``+``, which BIDS allows in labels, becomes two underscores.
    """
    method = "_sr" if task.method == "sr" else ""
    return task.name.replace("-", "_").replace("+", "__") + f"{method}_wf"


def stack_workflow_name(stack: StackFile) -> str:
    """Return the name of a stack's workflow, for example ``run_1_wf``."""
    return re.sub(r"\W", "_", stack.label.replace("+", "__")) + "_wf"


def volume_extra(options: WorkflowOptions) -> dict[str, str | float]:
    """Return the entities that all images of a volume of SVR have: its resolution, and the space of a template."""
    return {"res": options.svr_resolution} | ({"space": TEMPLATE} if options.template_file else {})


def volume_path(config: Config, task: ReconstructionTask) -> Path:
    """Return the path of the volume of a task, below the output folder."""
    if task.method == "sr":
        return derivative_path(task.entities, "sr_volume", res=task.resolution)
    return derivative_path(task.entities, "volume", **volume_extra(config.workflow))


def working_folder(config: Config) -> Path:
    """Return the folder below the work folder that belongs to this input, this output and this version.

    Two data sets may share one scratch folder: their subjects have the same names. Another version
    computes other things from the same inputs.
    """
    execution = config.execution
    named = f"{execution.bids_dir}\n{execution.output_dir}\n{__version__}"
    key = hashlib.sha256(named.encode()).hexdigest()[:8]
    return execution.work_dir / f"{execution.bids_dir.name}-{key}"


def task_folder(config: Config, task: ReconstructionTask) -> Path:
    """Return the folder where the nodes of a task work."""
    return working_folder(config) / TOP / workflow_name(task)


def registry_folder(config: Config) -> Path:
    """Return the folder where the processes of one run record the source of every output."""
    return working_folder(config) / "written" / (config.execution.run_uuid or "run")
