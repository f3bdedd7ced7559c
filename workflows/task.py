# SPDX-License-Identifier: Apache-2.0
"""Workflow of one reconstruction: from the stacks of a task to its volume and its report."""

from nipype.interfaces.utility import Merge
from nipype.pipeline.engine import Node, Workflow

from gsbids.bids.task import ReconstructionTask
from gsbids.config import Config
from gsbids.interfaces.masks import ChooseStacks
from gsbids.interfaces.outputs import SaveDerivative, SubjectReport
from gsbids.workflows.names import registry_folder, workflow_name
from gsbids.workflows.outputs import VOLUME_IMAGES, init_stack_outputs_wf, init_volume_outputs_wf
from gsbids.workflows.preview import early_preview_node, fit_preview_settings, needs_early_preview
from gsbids.workflows.report import report_inputs
from gsbids.workflows.stack import init_stack_prep_wf
from gsbids.workflows.svr import fit_options, init_svr_wf, sampling_inputs
from gsbids.workflows.usage import connect_usage

#: Images of the volume that the report takes; the brain is the volume in the mask.
REPORTED = tuple(field for field in VOLUME_IMAGES if field != "brain")


def init_task_wf(*, config: Config, task: ReconstructionTask) -> Workflow:
    """Build the workflow of one reconstruction, from the stacks of a task to its files in the output.

    Every stack has its own sub-workflow; ``Merge`` nodes join them in the order of the task.

    Parameters
    ----------
    config : Config
    task : ReconstructionTask
        Task with a thickness for every stack.
    """
    options = config.workflow
    workflow = Workflow(name=workflow_name(task))
    names = [stack.label for stack in task.stacks]
    early = needs_early_preview(config)
    preps = [
        init_stack_prep_wf(
            stack=stack,
            mask_mode=options.mask_mode,
            mask_weights=options.mask_weights,
            denoise=options.denoise,
            n4=options.n4,
            waits=early,
        )
        for stack in task.stacks
    ]
    svr_wf = init_svr_wf(
        names=names,
        thicknesses=[stack.thickness for stack in task.stacks],
        sampling=sampling_inputs(options),
        options=fit_options(options, bool(task.poses)),
        omp_nthreads=config.nipype.omp_nthreads,
        preview=fit_preview_settings(config, task),
        poses=str(task.poses) if task.poses else None,
    )
    choose = Node(ChooseStacks(names=names), "choose", mem_gb=0.3)
    report = Node(SubjectReport(**report_inputs(config, task)), "report", mem_gb=1.5)
    _connect_fit(workflow, preps, choose, svr_wf)
    _connect_stacks(workflow, preps, choose, svr_wf, config, task)
    _connect_volume(workflow, svr_wf, init_volume_outputs_wf(config=config, task=task))
    _connect_report(workflow, choose, svr_wf, report)
    workflow.connect(report, "out_file", _save_report(config, task), "in_file")
    if options.denoise or options.n4:
        workflow.connect(workflow.get_node("join_prepared"), "out", report, "corrected")
    if early:
        first = early_preview_node(config, task)
        for prep in preps:
            workflow.connect(first, "done", prep, "inputnode.after")
    connect_usage(workflow, report, config, task)
    return workflow


def _connect_fit(workflow: Workflow, preps: list[Workflow], choose: Node, svr_wf: Workflow) -> None:
    """Connect the prepared stacks to the fit."""
    joined = {
        field: _join(workflow, preps, field)
        for field in ("conformed", "prepared", "mask", "reason", "method", "mask_facts")
    }
    workflow.connect(
        [
            (joined["mask"], choose, [("out", "in_masks")]),
            (joined["mask_facts"], choose, [("out", "facts")]),
            (choose, svr_wf, [("out_file", "inputnode.choice")]),
            (joined["prepared"], svr_wf, [("out", "inputnode.in_files")]),
            (joined["mask"], svr_wf, [("out", "inputnode.in_masks")]),
        ]
    )


def _connect_stacks(
    workflow: Workflow, preps: list[Workflow], choose: Node, svr_wf: Workflow, config: Config, task: ReconstructionTask
) -> None:
    """Connect the fit to the files of every stack."""
    all_outputs = [init_stack_outputs_wf(config=config, task=task, index=k) for k in range(len(preps))]
    for k, (prep, outputs) in enumerate(zip(preps, all_outputs, strict=True)):
        workflow.connect(
            [
                (prep, outputs, [("outputnode.prepared", "inputnode.prepared")]),
                (prep, outputs, [("outputnode.mask", "inputnode.mask")]),
                (choose, outputs, [(("facts", _item, k), "inputnode.mask_facts")]),
                (svr_wf, outputs, [(f"outputnode.{name}", f"inputnode.{name}") for name in ("result", "template_xfm")]),
            ]
        )
    _join(workflow, all_outputs, "simulated")


def _connect_volume(workflow: Workflow, svr_wf: Workflow, outputs: Workflow) -> None:
    """Connect the fit to the files of the volume."""
    fields = (*VOLUME_IMAGES, "template_xfm", "scanner_xfm", "space", "mask_facts", "result", "facts")
    workflow.connect(
        [
            (workflow.get_node("join_prepared"), outputs, [("out", "inputnode.in_files")]),
            (workflow.get_node("join_mask"), outputs, [("out", "inputnode.in_masks")]),
            (svr_wf, outputs, [(f"outputnode.{field}", f"inputnode.{field}") for field in fields]),
        ]
    )


def _connect_report(workflow: Workflow, choose: Node, svr_wf: Workflow, report: Node) -> None:
    """Connect everything to the report."""
    stacks = {"conformed": "conformed", "mask": "masks", "reason": "mask_reasons", "method": "mask_methods"}
    fitted = (*REPORTED, "result", "registration", "placement", "template_xfm")
    workflow.connect(
        [
            (choose, report, [("out_file", "choice")]),
            *((workflow.get_node(f"join_{field}"), report, [("out", name)]) for field, name in stacks.items()),
            (workflow.get_node("join_simulated"), report, [("out", "simulated")]),
            (svr_wf, report, [(f"outputnode.{field}", field) for field in fitted]),
            (workflow.get_node("volume_outputs_wf"), report, [("outputnode.metrics", "metrics")]),
        ]
    )


def _save_report(config: Config, task: ReconstructionTask) -> Node:
    """Write the report into the output."""
    return Node(
        SaveDerivative(
            output_dir=str(config.execution.output_dir),
            kind="report",
            entities=task.entities,
            registry=str(registry_folder(config)),
        ),
        "save_report",
        run_without_submitting=True,
        mem_gb=0.1,
    )


def _item(values: list, number: int) -> object:
    """Return one item of a list; nipype runs this on the way from a node to the next."""
    return values[number]


def _join(workflow: Workflow, parts: list[Workflow], field: str) -> Node:
    """Return a node whose ``out`` lists one output of several workflows."""
    merge = Node(Merge(len(parts)), f"join_{field}", run_without_submitting=True, mem_gb=0.1)
    for number, part in enumerate(parts, start=1):
        workflow.connect(part, f"outputnode.{field}", merge, f"in{number}")
    return merge
