# SPDX-License-Identifier: Apache-2.0
"""Methods of the SVR benchmark: fits alone, in this process, and their scores by the independent tool.

Stacks come straight from the simulated files (no denoising, no bias correction: there is no bias in them), are
co-registered by gsbids and fitted. Volumes, poses and slices lost are judged by ``tools/score.py``, which is run
on files and knows nothing of gsbids.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from common import run_tool
from svr_cases import Case, write_motion

from gsbids.imaging.nifti import save_image
from gsbids.imaging.stack import Stack
from gsbids.recon.fit_paper import PaperOptions, fit_paper
from gsbids.recon.fit_svr import fit_svr
from gsbids.recon.motion_table import slice_transforms
from gsbids.recon.options import SvrOptions
from gsbids.recon.register import register_stacks
from gsbids.recon.resample import output_grid, sample_result, shown_region, vote_mask
from gsbids.recon.result import SvrResult
from gsbids.simulate.compare import average_of_stacks

RESOLUTION = 0.8  # mm
METHODS = ("default", "known", "paper", "nomotion", "average")


@dataclass(frozen=True)
class Fitted:
    """A result and what it took.

    Attributes
    ----------
    result : SvrResult
    seconds, cpu_seconds : float
        Of the fit alone: on the clock, and of this process on the CPU.
    register_seconds : float
        Of the co-registration of the stacks before it.
    """

    result: SvrResult
    seconds: float
    cpu_seconds: float
    register_seconds: float


def options_for(method: str, threads: int, changes: dict) -> SvrOptions | PaperOptions:
    """Options of a method; ``changes`` are fields that differ from their defaults."""
    if method == "paper":
        return PaperOptions(threads=threads, **changes)
    return replace(SvrOptions(threads=threads), motion_correction=method not in ("nomotion", "known"), **changes)


def fit(method: str, case: Case, threads: int, changes: dict | None = None,
        observe: Callable | None = None) -> tuple[Fitted, list[Stack]]:
    """Fit a case; also the stacks, which volumes are sampled for.

    Parameters
    ----------
    method : {"default", "known", "paper", "nomotion"}
        ``nomotion``: stacks move as wholes only. ``known``: the default fit at the simulator's own poses.
    case : Case
    threads : int
    changes : dict, optional
        Options that differ from their defaults.
    observe : callable, optional
        Passed on to the fit.
    """
    stacks = case.stacks()
    begun = time.perf_counter()
    transforms = case.true_transforms() if method == "known" else registered(case.folder, tuple(case.masks), threads)
    ready = time.perf_counter()
    cpu = time.process_time()
    run = fit_paper if method == "paper" else fit_svr
    result = run(stacks, transforms, options_for(method, threads, changes or {}), observe=observe)
    seconds, cpu = time.perf_counter() - ready, time.process_time() - cpu
    if method == "known":  # one transform per stack is what the table of motion falls back to
        result = replace(result, stack_affine=np.tile(np.eye(4), (len(stacks), 1, 1)))
    return Fitted(result, seconds, cpu, ready - begun), stacks


@cache
def registered(folder: Path, masks: tuple[Path, ...], threads: int) -> np.ndarray:
    """Transforms (N, 4, 4) of the co-registration of a case's stacks; every method starts from the same."""
    case = Case("", folder, 0)
    assert tuple(case.masks) == masks
    return register_stacks(case.stacks(), threads).transforms


def volumes_of(result: SvrResult, stacks: list[Stack], folder: Path) -> tuple[Path, Path]:
    """The volume that a user gets (brain and rim), and the same in the whole field of view."""
    affine, shape = output_grid(stacks, result, RESOLUTION)
    image = sample_result(result, affine, shape)
    mask, coverage = vote_mask(stacks, result, affine, shape)
    shown = shown_region(mask, coverage, affine, result.settings["rim"])
    folder.mkdir(parents=True, exist_ok=True)
    return (save_image(folder / "volume.nii.gz", image * shown, affine, "float32"),
            save_image(folder / "unmasked.nii.gz", image, affine, "float32"))


def score_fit(fitted: Fitted, stacks: list[Stack], case: Case, folder: Path) -> dict:
    """Scores of ``score.py``: the delivered volume with the slices' poses, and the whole field of view."""
    volume, unmasked = volumes_of(fitted.result, stacks, folder)
    motion = [write_motion(folder / f"run-{n + 1}_motion.tsv",
                           slice_transforms(fitted.result, n, stack.image.shape[2]))
              for n, stack in enumerate(stacks)]
    score = run_tool("score.py", volume, *by_truth(case), "--true-transforms", *case.true_motion,
                     "--est-transforms", *motion, "--slice-masks", *case.true_masks)
    whole = run_tool("score.py", unmasked, *by_truth(case))
    result = fitted.result
    return score | {"unmasked": whole, "gaussians": len(result.field), "iterations": len(result.history["loss"]),
                    "pixels": result.settings["pixels"], "slices_rejected": int(result.rejected.sum())}


def by_truth(case: Case) -> tuple:
    """Arguments of ``score.py`` that name the truth."""
    return "--truth", case.truth[0], "--mask", case.truth[1]


def run_method(method: str, case: Case, work: Path, threads: int, changes: dict | None = None) -> dict:
    """One method on one case: scores, costs, and where the volume is."""
    folder = work / "volumes" / f"{case.name}_seed-{case.seed}" / method
    if method == "average":
        folder.mkdir(parents=True, exist_ok=True)
        path = save_image(folder / "volume.nii.gz", *average_of_stacks(case.images, case.masks, RESOLUTION))
        return {"score": run_tool("score.py", path, *by_truth(case)), "volume": str(path)}
    load = os.getloadavg()[0]
    fitted, stacks = fit(method, case, threads, changes)
    cost = {"fit_s": round(fitted.seconds, 2), "fit_cpu_s": round(fitted.cpu_seconds, 2),
            "register_s": round(fitted.register_seconds, 2), "load_before": load}
    return {"score": score_fit(fitted, stacks, case, folder), "cost": cost, "volume": str(folder / "volume.nii.gz")}
