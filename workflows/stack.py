# SPDX-License-Identifier: Apache-2.0
"""Preparation of one stack."""

from pathlib import Path

from nipype.interfaces.utility import IdentityInterface
from nipype.pipeline.engine import Node, Workflow

from gsbids.bids.task import StackFile
from gsbids.config import TAKES_MASKS
from gsbids.interfaces.stack import ConformStack, CorrectBias, DenoiseStack, MaskStack
from gsbids.workflows.names import stack_workflow_name


def init_stack_prep_wf(
    *,
    stack: StackFile,
    mask_mode: str,
    mask_weights: str | Path | None = None,
    denoise: bool | None = True,
    n4: bool | None = True,
    name: str | None = None,
    waits: bool = False,
) -> Workflow:
    """Conform, mask, denoise and bias-correct one stack.

    Workflow Graph
        .. workflow::
            :graph2use: orig
            :simple_form: yes

            from gsbids.bids.task import StackFile
            from gsbids.workflows.stack import init_stack_prep_wf
            stack = StackFile("sub-01_run-1_T2w.nii.gz", {"sub": "01", "run": "1", "suffix": "T2w"})
            wf = init_stack_prep_wf(stack=stack, mask_mode="auto")

    Parameters
    ----------
    stack : StackFile
    mask_mode : {"auto", "derivatives", "network", "nonzero", "otsu", "none"}
    mask_weights : path-like, optional
        Weights of the network, in the place of those of the package.
    denoise, n4 : bool
        Whether the step is included.
    name : str, optional
        Name of the workflow; that of the stack if left out.
    waits : bool
        Denoising and bias correction wait for the input ``after``, the output of a step that goes first.

    Outputs
    -------
    conformed
        Stack with its slices along the third axis.
    prepared
        The same, denoised and corrected: the input of the reconstruction.
    mask
        Brain mask on that grid; empty where none was found.
    reason, method, mask_facts
        Origin of the mask, as text and as a mode; both, and why it is doubtful, for the sidecar of the mask.
    """
    workflow = Workflow(name=name or stack_workflow_name(stack))
    outputs = ["conformed", "prepared", "mask", "reason", "method", "mask_facts"]
    outputnode = Node(IdentityInterface(outputs), "outputnode")
    conform = Node(ConformStack(in_file=str(stack.path)), "conform", mem_gb=0.3)
    direction = stack.metadata.get("SliceEncodingDirection")
    if direction:
        conform.inputs.slice_encoding_direction = str(direction)
    mask = Node(MaskStack(mode=mask_mode, may_be_empty=True, of_slices=True), "mask", mem_gb=0.6)
    if mask_weights:
        mask.inputs.weights = str(mask_weights)
    if stack.mask is not None and mask_mode in TAKES_MASKS:
        mask.inputs.mask_file = str(stack.mask)
    workflow.connect(
        [
            (conform, mask, [("out_file", "in_file")]),
            (conform, outputnode, [("out_file", "conformed")]),
            (
                mask,
                outputnode,
                [("out_mask", "mask"), ("reason", "reason"), ("method", "method"), ("facts", "mask_facts")],
            ),
        ]
    )
    last = conform
    for wanted, interface, step in ((denoise, DenoiseStack, "denoise"), (n4, CorrectBias, "n4")):
        if wanted:
            node = Node(interface(), step, mem_gb=0.6)
            workflow.connect([(last, node, [("out_file", "in_file")]), (mask, node, [("out_mask", "in_mask")])])
            if waits and last is conform:
                workflow.connect(Node(IdentityInterface(["after"]), "inputnode"), "after", node, "after")
            last = node
    workflow.connect(last, "out_file", outputnode, "prepared")
    return workflow
