# SPDX-License-Identifier: Apache-2.0
"""Files of the output: those of the reconstruction and of every stack."""

from collections.abc import Sequence

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from gsbids.bids.names import bids_uri, derivative_path, uri_of
from gsbids.bids.task import ReconstructionTask, StackFile
from gsbids.config import AUTO, NONE, Config
from gsbids.interfaces.base import where
from gsbids.interfaces.outputs import QcMetrics, SaveDerivative
from gsbids.interfaces.reconstruct import MotionTable, SimulateStack
from gsbids.recon.volume.uncertainty import FORMULA
from gsbids.workflows.names import registry_folder, stack_workflow_name, volume_extra

#: Fields of the raw sidecars that stay true, where all stacks agree.
PROPAGATED = (
    "Modality",
    "MagneticFieldStrength",
    "Manufacturer",
    "ManufacturersModelName",
    "MRAcquisitionType",
    "SequenceName",
    "EchoTime",
    "RepetitionTime",
    "FlipAngle",
)

#: Images of the volume by the names they have in the workflows, and their kinds of output.
VOLUME_IMAGES = {
    "volume": "volume",
    "brain": "volume_brain",
    "unmasked": "volume_unmasked",
    "mask": "volume_mask",
    "coverage": "coverage",
    "uncertainty": "uncertainty",
}


def init_volume_outputs_wf(*, config: Config, task: ReconstructionTask) -> Workflow:
    """Compute metrics and verdict of the reconstruction, and save its images, its model and its metrics.

    Parameters
    ----------
    config : Config
    task : ReconstructionTask

    Inputs
    ------
    volume, brain, unmasked, mask, coverage, uncertainty, template_xfm, scanner_xfm, space, mask_facts, result,
    facts
        As from :func:`gsbids.workflows.svr.init_svr_wf`.
    in_files, in_masks
        Prepared stacks and their masks, in the order of the task.

    Outputs
    -------
    metrics
        Quality metrics (JSON).
    """
    workflow = Workflow(name="volume_outputs_wf")
    fields = (*VOLUME_IMAGES, "template_xfm", "scanner_xfm", "space", "mask_facts", "result", "facts")
    inputnode = Node(IdentityInterface([*fields, "in_files", "in_masks"]), "inputnode")
    outputnode = Node(IdentityInterface(["metrics"]), "outputnode")
    extra, template = volume_extra(config.workflow), config.workflow.template_file
    target = derivative_path(task.entities, "volume", **extra)
    qc = Node(
        QcMetrics(name=target.name.partition(".")[0], thicknesses=[stack.thickness for stack in task.stacks]),
        "qc",
        mem_gb=1.0,
    )
    sources = {"Sources": stack_uris(config, task.stacks)}
    place = {"SpatialReference": uri_of(template, config.datasets)} if template else {}
    sidecar = sources | common_fields(task.stacks) | place
    model = bids_uri("", derivative_path(task.entities, "model"))
    own = {
        "mask": sources | place,
        "uncertainty": {"Sources": [*sources["Sources"], model], "Formula": FORMULA} | place,
    }
    workflow.connect(
        [
            (
                inputnode,
                qc,
                [(name, name) for name in ("result", "volume", "mask", "coverage", "in_files", "in_masks", "facts")],
            ),
            (qc, outputnode, [("metrics", "metrics")]),
        ]
    )
    for field, kind in VOLUME_IMAGES.items():
        save = save_node(config, task.entities, kind, f"save_{field}", own.get(field, sidecar), extra)  # type: ignore[arg-type]
        workflow.connect(inputnode, field, save, "in_file")
        if field == "volume":
            save.inputs.supersedes = "preview"  # also one that a run left that was killed
        if field in ("volume", "brain", "unmasked"):
            workflow.connect(qc, "facts", save, "more")  # no volume without its verdict
        else:
            workflow.connect(inputnode, "mask_facts" if field == "mask" else "space", save, "more")
    save_model = save_node(config, task.entities, "model", "save_model", sources)
    save_metrics = save_node(config, task.entities, "metrics", "save_metrics", {})
    for kind, end in (("template_xfm", "from"), ("scanner_xfm", "to")) if config.workflow.template != NONE else ():
        save_xfm = save_node(
            config, task.entities, kind, f"save_{kind}", {"Sources": [model, *place.values()]}, {end: task.suffix}
        )
        workflow.connect(inputnode, kind, save_xfm, "in_file")
    workflow.connect(
        [
            (inputnode, save_model, [("result", "in_file"), ("facts", "more")]),
            (qc, save_metrics, [("table", "in_file"), ("columns", "more")]),
        ]
    )
    return workflow


def init_stack_outputs_wf(*, config: Config, task: ReconstructionTask, index: int) -> Workflow:
    """Simulate one stack, list the motion of its slices, and save all that belongs to it.

    Parameters
    ----------
    config : Config
    task : ReconstructionTask
    index : int
        Number of the stack in the task.

    Inputs
    ------
    prepared, mask
        As from :func:`gsbids.workflows.stack.init_stack_prep_wf`.
    mask_facts
        Facts for the sidecar of the mask (:class:`gsbids.interfaces.masks.ChooseStacks`).
    result
        Fitted field and poses (npz).
    template_xfm
        Transform from scanner to template, if there is one.

    Outputs
    -------
    simulated
        Stack as the reconstruction predicts it.
    """
    stack = task.stacks[index]
    workflow = Workflow(name=stack_workflow_name(stack).replace("_wf", "_outputs_wf"))
    inputnode = Node(IdentityInterface(["prepared", "mask", "mask_facts", "result", "template_xfm"]), "inputnode")
    outputnode = Node(IdentityInterface(["simulated"]), "outputnode")
    threads = config.nipype.omp_nthreads
    simulate = Node(
        SimulateStack(index=index, thickness=stack.thickness, num_threads=threads, **where(config.workflow.device)),
        "simulate",
        n_procs=threads,
        mem_gb=1.0,
    )
    motion = Node(MotionTable(index=index, slice_timing=slice_times(stack)), "motion", mem_gb=0.3)
    workflow.connect(
        [
            (inputnode, simulate, [("prepared", "in_file"), ("mask", "in_mask"), ("result", "result")]),
            (inputnode, motion, [("prepared", "in_file"), ("result", "result")]),
            (simulate, outputnode, [("out_file", "simulated")]),
        ]
    )
    if config.workflow.template == AUTO:  # the volume is named as one that lies in the scanner
        workflow.connect(inputnode, "template_xfm", motion, "to_volume")
    sources = {"Sources": stack_uris(config, [stack])}
    model = {"Sources": [*sources["Sources"], bids_uri("", derivative_path(task.entities, "model"))]}
    image = common_fields([stack]) | {"SliceThickness": stack.thickness}
    saved = [
        (inputnode, "mask", "stack_mask", sources),
        (simulate, "out_file", "simulated", image | model),
        (motion, "table", "motion", {}),
        (motion, "stack_xfm", "stack_xfm", model),
        (motion, "slices_xfm", "slices_xfm", model),
    ]
    if config.workflow.n4 or config.workflow.denoise:  # what was fitted, and what the report shows
        saved.append((inputnode, "prepared", "stack", image | sources))
    for node, field, kind, sidecar in saved:
        save = save_node(config, stack.entities, kind, f"save_{kind}", sidecar)
        workflow.connect(node, field, save, "in_file")
        if kind == "motion":
            workflow.connect(motion, "columns", save, "more")
        if kind == "stack_mask":
            workflow.connect(inputnode, "mask_facts", save, "more")
    return workflow


def stack_uris(config: Config, stacks: Sequence[StackFile]) -> list[str]:
    """Return BIDS URIs of stacks and of the masks that go with them."""
    paths = [path for stack in stacks for path in stack.sources or (stack.path,)]
    if config.workflow.takes_masks:
        paths += [stack.mask for stack in stacks if stack.mask is not None and not stack.sources]
    return [uri_of(path, config.datasets) for path in paths]


def common_fields(stacks: Sequence[StackFile]) -> dict:
    """Return the fields of ``PROPAGATED`` that all sidecars have with one value."""
    first = stacks[0].metadata
    return {
        key: first[key]
        for key in PROPAGATED
        if key in first and all(stack.metadata.get(key) == first[key] for stack in stacks)
    }


def slice_times(stack: StackFile) -> list[float]:
    """Return ``SliceTiming`` of a stack by slice index, empty where it is missing or not a list of numbers.

    Where ``SliceEncodingDirection`` ends in ``-``, the first time is that of the last slice (BIDS).
    """
    times = stack.metadata.get("SliceTiming")
    if not isinstance(times, list | tuple) or not all(isinstance(time, int | float) for time in times):
        return []
    backwards = str(stack.metadata.get("SliceEncodingDirection") or "").endswith("-")
    return [float(time) for time in (reversed(times) if backwards else times)]


def save_node(config: Config, entities: dict, kind: str, name: str, sidecar: dict, extra: dict | None = None) -> Node:
    """Return a node that writes one file of a kind into the output, with the fixed fields of its sidecar."""
    interface = SaveDerivative(
        output_dir=str(config.execution.output_dir),
        kind=kind,
        entities=entities,
        sidecar=sidecar,
        extra=extra or {},
        registry=str(registry_folder(config)),
    )
    return Node(interface, name, run_without_submitting=True, mem_gb=0.1)
