# SPDX-License-Identifier: Apache-2.0
"""The workflow of a run: one sub-workflow for every reconstruction."""

from collections.abc import Sequence
from copy import deepcopy

from nipype.pipeline.engine import Workflow

from gsbids.bids.names import log_folder
from gsbids.bids.task import ReconstructionTask
from gsbids.config import Config
from gsbids.errors import WorkflowError
from gsbids.workflows.names import TOP, working_folder
from gsbids.workflows.sr import init_sr_task_wf
from gsbids.workflows.task import init_task_wf


def init_gsbids_wf(*, config: Config, tasks: Sequence[ReconstructionTask]) -> Workflow:
    """Build the workflow of all tasks.

    Workflow Graph
        .. workflow::
            :graph2use: colored
            :simple_form: yes

            from pathlib import Path
            from gsbids.bids.task import ReconstructionTask, StackFile
            from gsbids.config import Config, Execution
            from gsbids.workflows.base import init_gsbids_wf
            stacks = tuple(StackFile(Path(f"/data/sub-01/anat/sub-01_run-{n}_T2w.nii.gz"),
                                     {"sub": "01", "run": str(n), "suffix": "T2w"}, thickness=3.0)
                           for n in (1, 2))
            task = ReconstructionTask("01", None, "T2w", {"sub": "01", "suffix": "T2w"}, stacks)
            config = Config(Execution(Path("/data"), Path("/out"), Path("/work")))
            wf = init_gsbids_wf(config=config, tasks=[task])

    Parameters
    ----------
    config : Config
    tasks : sequence of ReconstructionTask

    Returns
    -------
    nipype.pipeline.engine.Workflow
        Workflow whose crash files go to the log folder of the subject of each task.

    Raises
    ------
    gsbids.errors.WorkflowError
        Two tasks have one name.
    """
    workflow = Workflow(name=TOP, base_dir=str(working_folder(config)))
    names = [task.name for task in tasks]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise WorkflowError(f"two reconstructions are called {sorted(twice)[0]}; rename one of their sources")
    for task in tasks:
        init = init_sr_task_wf if task.method == "sr" else init_task_wf
        task_wf = init(config=config.of_method(task.method), task=task)
        folder = config.execution.output_dir / log_folder(task.entities, config.execution.run_uuid)
        task_wf.config["execution"] = {"crashdump_dir": str(folder)}
        for node in task_wf._get_all_nodes():
            node.config = deepcopy(task_wf.config)
        workflow.add_nodes([task_wf])
    return workflow
