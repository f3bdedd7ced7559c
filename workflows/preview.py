# SPDX-License-Identifier: Apache-2.0
"""Previews: a quick volume before the stacks are prepared, and intermediate states of the fit."""

from nipype.pipeline.engine import Node

from gsbids.bids.task import ReconstructionTask
from gsbids.config import Config
from gsbids.interfaces.base import where
from gsbids.interfaces.preview import EarlyPreview
from gsbids.workflows.outputs import common_fields, stack_uris

FINEST = 1.0  # mm: a finer grid costs time and shows no more
FIRST = 8  # iteration of the first volume of all
FIRST_AFTER_EARLY = 40  # the early one ends with as many: before, there is nothing better to show


def needs_early_preview(config: Config) -> bool:
    """Return whether denoising or N4 would delay the fit."""
    return config.execution.preview and (config.workflow.denoise or config.workflow.n4)  # type: ignore[return-value]


def preview_settings(config: Config, task: ReconstructionTask, first: int) -> dict:
    """Return the settings of :class:`gsbids.interfaces.preview.PreviewFile`."""
    return {
        "output_dir": str(config.execution.output_dir),
        "entities": dict(task.entities),
        "resolution": max(FINEST, config.workflow.svr_resolution),
        "first": first,
        "sidecar": {"Sources": stack_uris(config, task.stacks)} | common_fields(task.stacks),
    }


def fit_preview_settings(config: Config, task: ReconstructionTask) -> dict | None:
    """Return the settings of the previews of the fit; None without ``--preview``."""
    if not config.execution.preview:
        return None
    return preview_settings(config, task, FIRST_AFTER_EARLY if needs_early_preview(config) else FIRST)


def early_preview_node(config: Config, task: ReconstructionTask) -> Node:
    """Return the node that reconstructs the stacks as acquired, before they are denoised and corrected."""
    options, threads, stacks = config.workflow, config.nipype.omp_nthreads, task.stacks
    given = options.takes_masks
    interface = EarlyPreview(
        in_files=[str(stack.path) for stack in stacks],
        mask_files=[str(stack.mask) if given and stack.mask is not None else "" for stack in stacks],
        directions=[str(stack.metadata.get("SliceEncodingDirection") or "") for stack in stacks],
        names=[stack.label for stack in stacks],
        thicknesses=[stack.thickness for stack in stacks],
        mask_mode=options.mask_mode,
        mask_weights=str(options.mask_weights or ""),
        preview=preview_settings(config, task, FIRST),
        options={"seed": options.random_seed, "motion_correction": options.motion_correction},
        num_threads=threads,
        **where(options.device),
    )
    return Node(interface, "early_preview", n_procs=threads, mem_gb=1.0)
