# SPDX-License-Identifier: Apache-2.0
"""One reconstruction: from the stacks of a task to its volume and its report."""

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
    """Everything between the stacks of one task and its files in the output.

    Every stack has its own sub-workflow; ``Merge`` nodes join them in the order of the task.

    Parameters
    ----------
    config : Config
    task : ReconstructionTask
        With a thickness for every stack.
    """
    options = config.workflow
    workflow = Workflow(name=workflow_name(task))
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
        names=[stack.label for stack in task.stacks],
        thicknesses=[stack.thickness for stack in task.stacks],
        sampling=sampling_inputs(options),
        options=fit_options(options, bool(task.poses)),
        omp_nthreads=config.nipype.omp_nthreads,
        preview=fit_preview_settings(config, task),
        poses=str(task.poses) if task.poses else None,
    )
    volume_outputs_wf = init_volume_outputs_wf(config=config, task=task)
    stack_outputs = [init_stack_outputs_wf(config=config, task=task, index=k) for k in range(len(task.stacks))]
    report = Node(SubjectReport(**report_inputs(config, task)), "report", mem_gb=1.5)
    save_report = Node(
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

    joined = {
        field: _join(workflow, preps, field)
        for field in ("conformed", "prepared", "mask", "reason", "method", "mask_facts")
    }
    choose = Node(ChooseStacks(names=[stack.label for stack in task.stacks]), "choose", mem_gb=0.3)
    simulated = _join(workflow, stack_outputs, "simulated")
    images = [f"outputnode.{field}" for field in (*REPORTED, "result")]
    workflow.connect(
        [
            (joined["mask"], choose, [("out", "in_masks")]),
            (joined["mask_facts"], choose, [("out", "facts")]),
            (choose, svr_wf, [("out_file", "inputnode.choice")]),
            (choose, report, [("out_file", "choice")]),
            (joined["prepared"], svr_wf, [("out", "inputnode.in_files")]),
            (joined["mask"], svr_wf, [("out", "inputnode.in_masks")]),
            (joined["prepared"], volume_outputs_wf, [("out", "inputnode.in_files")]),
            (joined["mask"], volume_outputs_wf, [("out", "inputnode.in_masks")]),
            (
                svr_wf,
                volume_outputs_wf,
                [
                    (f"outputnode.{field}", f"inputnode.{field}")
                    for field in (*VOLUME_IMAGES, "template_xfm", "scanner_xfm", "space", "result", "facts")
                ],
            ),
            (joined["conformed"], report, [("out", "conformed")]),
            (joined["mask"], report, [("out", "masks")]),
            (joined["reason"], report, [("out", "mask_reasons")]),
            (joined["method"], report, [("out", "mask_methods")]),
            (simulated, report, [("out", "simulated")]),
            (svr_wf, report, [(image, image.partition(".")[2]) for image in images]),
            (svr_wf, report, [(f"outputnode.{name}", name) for name in ("registration", "placement", "template_xfm")]),
            (volume_outputs_wf, report, [("outputnode.metrics", "metrics")]),
            (report, save_report, [("out_file", "in_file")]),
        ]
    )
    if options.denoise or options.n4:
        workflow.connect(joined["prepared"], "out", report, "corrected")
    if early:
        first = early_preview_node(config, task)
        for prep in preps:
            workflow.connect(first, "done", prep, "inputnode.after")
    for k, (prep, outputs) in enumerate(zip(preps, stack_outputs, strict=True)):
        workflow.connect(
            [
                (prep, outputs, [("outputnode.prepared", "inputnode.prepared")]),
                (prep, outputs, [("outputnode.mask", "inputnode.mask")]),
                (choose, outputs, [(("facts", _item, k), "inputnode.mask_facts")]),
                (svr_wf, outputs, [(f"outputnode.{name}", f"inputnode.{name}") for name in ("result", "template_xfm")]),
            ]
        )
    connect_usage(workflow, report, config, task)
    return workflow


def _item(values, number):
    """One of a list; nipype runs this on the way from a node to the next."""
    return values[number]


def _join(workflow: Workflow, parts: list[Workflow], field: str) -> Node:
    """A node whose ``out`` lists one output of several workflows."""
    merge = Node(Merge(len(parts)), f"join_{field}", run_without_submitting=True, mem_gb=0.1)
    for number, part in enumerate(parts, start=1):
        workflow.connect(part, f"outputnode.{field}", merge, f"in{number}")
    return merge
