# SPDX-License-Identifier: Apache-2.0
"""Number of worker processes, and memory for steps, that fit into ``--mem``."""

import logging
import math
from collections.abc import Iterable
from dataclasses import dataclass

from gsbids.config import NipypeOptions
from gsbids.errors import InputError

LOGGER = logging.getLogger("gsbids.cli")

#: Memory (GB) of the main process, and of a worker that waits for its next step with all libraries loaded: measured
#: by benchmarks/resources.py.
MAIN_GB, WAITING_GB = 0.4, 0.6


@dataclass(frozen=True)
class Budget:
    """Worker processes and memory that a run is planned with.

    Attributes
    ----------
    workers : int
        Number of processes.
    memory_gb : float
        Memory for the steps that run at one time.
    """

    workers: int
    memory_gb: float


def plan_budget(options: NipypeOptions, nodes: Iterable) -> Budget:
    """Divide the memory between the main process, workers that wait, and steps.

    Parameters
    ----------
    options : NipypeOptions
    nodes : iterable of nipype.pipeline.engine.Node

    Returns
    -------
    Budget
        As many workers as there may be threads, or fewer, where the memory of those that wait would be missing in the
        largest step.

    Raises
    ------
    gsbids.errors.InputError
        The largest step does not fit, even alone.
    """
    largest = max(nodes, key=lambda node: node.mem_gb)
    least = MAIN_GB + largest.mem_gb
    if options.memory_gb < least:
        raise InputError(
            f"--mem {options.memory_gb:g}G: is too little: step {largest.name} needs about "
            f"{largest.mem_gb:g} GB, and {MAIN_GB:g} GB more are for the program itself; give at least "
            f"--mem {math.ceil(least * 10) / 10:g}G"
        )
    waiting = math.floor((options.memory_gb - least) / WAITING_GB + 1e-9)
    workers = min(options.nprocs, 1 + waiting)
    if workers < options.nprocs:
        LOGGER.info(
            "--mem %gG: is enough for %d process%s at a time, not for %d",
            options.memory_gb,
            workers,
            "es" if workers > 1 else "",
            options.nprocs,
        )
    return Budget(workers, options.memory_gb - MAIN_GB - (workers - 1) * WAITING_GB)
