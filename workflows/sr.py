# SPDX-License-Identifier: Apache-2.0
"""Super-resolution of one volume: from its file to the finer volume, its model, metrics and report."""

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from gsbids.bids.names import derivative_path
from gsbids.bids.task import ReconstructionTask
from gsbids.config import Config, WorkflowOptions
from gsbids.interfaces.base import where
from gsbids.interfaces.outputs import SaveDerivative
from gsbids.interfaces.stack import ConformStack, CorrectBias, DenoiseStack, MaskStack
from gsbids.interfaces.super_resolve import Foreground, SrMetrics, SrReport, SuperResolve
from gsbids.workflows.names import registry_folder, workflow_name
from gsbids.workflows.outputs import common_fields, save_node, stack_uris
from gsbids.workflows.report import sr_report_inputs
from gsbids.workflows.usage import connect_usage

#: What ``--sloppy`` does to the fit: enough to see that everything runs.
SLOPPY = {"schedules": ((1.0, 1.0, 15),), "members": 1, "trial_voxels": 3000}

IMAGES = ("volume", "interpolated", "mask", "model", "facts", "quality")


def init_sr_task_wf(*, config: Config, task: ReconstructionTask) -> Workflow:
    """Build the workflow of one super-resolution, from the volume to its files in the output.

    Workflow Graph
        .. workflow::
            :graph2use: colored
            :simple_form: yes

            from pathlib import Path
            from gsbids.bids.task import ReconstructionTask, StackFile
            from gsbids.config import Config, Execution
            from gsbids.workflows.sr import init_sr_task_wf
            entities = {"sub": "01", "suffix": "T1w"}
            volume = StackFile(Path("/data/sub-01/anat/sub-01_T1w.nii.gz"), entities)
            task = ReconstructionTask("01", None, "T1w", entities, (volume,), method="sr", resolution=(0.5,) * 3)
            config = Config(Execution(Path("/data"), Path("/out"), Path("/work"))).of_method("sr")
            wf = init_sr_task_wf(config=config, task=task)

    Parameters
    ----------
    config : Config
        Settings of super-resolution (:meth:`gsbids.config.Config.of_method`).
    task : ReconstructionTask
        Task of one stack, with the size of the fine voxels.
    """
    workflow = Workflow(name=workflow_name(task))
    masked = wants_mask(config.workflow, task)
    prep_wf = init_volume_prep_wf(config=config, task=task)
    fit = fit_node(config, task)
    outputs_wf = init_sr_outputs_wf(config=config, task=task)
    report = Node(SrReport(**sr_report_inputs(config, task)), "report", mem_gb=memory_gb(task, 40))
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
    images = [name for name in IMAGES if masked or name != "mask"]
    shown = [name for name in ("volume", "interpolated", "mask", "model") if name in images]
    workflow.connect(
        [
            (prep_wf, fit, [("outputnode.prepared", "in_file")]),
            (fit, outputs_wf, [(name, f"inputnode.{name}") for name in images]),
            (prep_wf, report, [("outputnode.prepared", "before")]),
            (fit, report, [(name, name) for name in shown]),
            (outputs_wf, report, [("outputnode.metrics", "metrics")]),
            (report, save_report, [("out_file", "in_file")]),
        ]
    )
    if masked:
        workflow.connect(
            [
                (prep_wf, fit, [("outputnode.mask", "in_mask")]),
                (prep_wf, outputs_wf, [("outputnode.mask_facts", "inputnode.mask_facts")]),
                (prep_wf, report, [("outputnode.reason", "mask_reason")]),
            ]
        )
    if config.workflow.denoise or config.workflow.n4:
        workflow.connect(prep_wf, "outputnode.prepared", outputs_wf, "inputnode.prepared")
    connect_usage(workflow, report, config, task)
    return workflow


def wants_mask(options: WorkflowOptions, task: ReconstructionTask) -> bool:
    """Return whether there is a brain mask: one that was given, or one that was asked for by name."""
    if options.takes_masks:
        return task.stacks[0].mask is not None
    return options.mask_mode != "none"


def init_volume_prep_wf(*, config: Config, task: ReconstructionTask) -> Workflow:
    """Conform, mask, and on request denoise and bias-correct one volume.

    Parameters
    ----------
    config : Config
    task : ReconstructionTask

    Outputs
    -------
    prepared
        Volume, its axes as they were, finite.
    mask, reason, mask_facts
        Brain mask on its grid and its origin, if there is one.
    """
    options, (stack,) = config.workflow, task.stacks
    workflow = Workflow(name="volume_wf")
    outputnode = Node(IdentityInterface(["prepared", "mask", "reason", "mask_facts"]), "outputnode")
    conform = Node(ConformStack(in_file=str(stack.path), keep_as_is=True), "conform", mem_gb=0.5)
    region, last = None, conform
    if wants_mask(options, task):
        region = Node(MaskStack(mode=options.mask_mode), "mask", mem_gb=0.6)
        if options.mask_weights:
            region.inputs.weights = str(options.mask_weights)
        if options.takes_masks:
            region.inputs.mask_file = str(stack.mask)
        workflow.connect([(region, outputnode, [("out_mask", "mask"), ("reason", "reason"), ("facts", "mask_facts")])])
    elif options.denoise or options.n4:
        region = Node(Foreground(), "foreground", mem_gb=0.5)
    if region is not None:
        workflow.connect(conform, "out_file", region, "in_file")
    for wanted, interface, step in ((options.denoise, DenoiseStack, "denoise"), (options.n4, CorrectBias, "n4")):
        if wanted:
            node = Node(interface(), step, mem_gb=1.0)
            workflow.connect([(last, node, [("out_file", "in_file")]), (region, node, [("out_mask", "in_mask")])])
            last = node
    workflow.connect(last, "out_file", outputnode, "prepared")
    return workflow


def memory_gb(task: ReconstructionTask, bytes_a_voxel: float) -> float:
    """Return the memory to plan with for a step that holds ``bytes_a_voxel`` bytes for every fine voxel."""
    return round(0.7 + bytes_a_voxel * task.voxels / 1e9, 1)


def fit_node(config: Config, task: ReconstructionTask) -> Node:
    """Return the node that super-resolves."""
    options, threads, (stack,) = config.workflow, config.nipype.omp_nthreads, task.stacks
    interface = SuperResolve(
        factor=list(options.sr_factor),
        spacing=list(options.output_resolution),
        profile=options.sr_profile,
        options={"quality": options.sr_quality, "seed": options.random_seed, **(SLOPPY if options.sloppy else {})},
        num_threads=threads,
        **where(options.device),
    )
    if options.like is not None:
        interface.inputs.like = str(options.like)
    if stack.thickness > 0:
        interface.inputs.thickness = float(stack.thickness)
    return Node(interface, "super_resolve", n_procs=threads, mem_gb=memory_gb(task, 80))


def init_sr_outputs_wf(*, config: Config, task: ReconstructionTask) -> Workflow:
    """Measure the super-resolved volume, and save it with its mask, its model and its metrics.

    Parameters
    ----------
    config : Config
    task : ReconstructionTask

    Inputs
    ------
    volume, interpolated, mask, model, facts, quality
        As from :class:`gsbids.interfaces.super_resolve.SuperResolve`; ``mask`` only if there is one.
    prepared
        Volume after denoising and N4, if these were asked for.
    mask_facts
        Origin of the mask, if there is one.

    Outputs
    -------
    metrics
        Quality metrics (JSON).
    """
    workflow = Workflow(name="outputs_wf")
    masked = wants_mask(config.workflow, task)
    inputnode = Node(IdentityInterface([*IMAGES, "prepared", "mask_facts"]), "inputnode")
    outputnode = Node(IdentityInterface(["metrics"]), "outputnode")
    resolution = {"res": task.resolution}
    name = derivative_path(task.entities, "sr_volume", **resolution).name.partition(".")[0]
    qc = Node(SrMetrics(name=name), "qc", mem_gb=memory_gb(task, 30))
    measured = ["volume", "interpolated", "facts", "quality", *(["mask"] if masked else [])]
    sources = {"Sources": stack_uris(config, task.stacks)}
    stripped = config.workflow.mask_mode == "nonzero" or task.stacks[0].metadata.get("SkullStripped") is True
    sidecar = sources | common_fields(task.stacks) | {"SkullStripped": stripped}
    saved = {"volume": ("sr_volume", sidecar, resolution), "model": ("sr_model", sources, {})}
    if masked:
        saved["mask"] = ("sr_mask", sources, resolution)
    if config.workflow.denoise or config.workflow.n4:
        saved["prepared"] = ("stack", sidecar, {})
    for field, (kind, fields, extra) in saved.items():
        save = save_node(config, task.entities, kind, f"save_{field}", fields, extra)
        workflow.connect(inputnode, field, save, "in_file")
        if field != "prepared":
            workflow.connect(inputnode, "mask_facts" if field == "mask" else "facts", save, "more")
    save_metrics = save_node(config, task.entities, "sr_metrics", "save_metrics", {})
    workflow.connect(
        [
            (inputnode, qc, [(field, field) for field in measured]),
            (qc, outputnode, [("metrics", "metrics")]),
            (qc, save_metrics, [("table", "in_file"), ("columns", "more")]),
        ]
    )
    return workflow
