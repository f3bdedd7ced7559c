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
from gsbids.recon.fitting.options import SvrOptions
from gsbids.recon.registration.register import register_stacks
from gsbids.recon.svr.fit import fit_svr
from gsbids.recon.svr.result import SvrResult
from gsbids.recon.svr_paper.fit import PaperOptions, fit_paper
from gsbids.recon.volume.coverage import shown_region, vote_mask
from gsbids.recon.volume.motion_table import slice_transforms
from gsbids.recon.volume.sample import output_grid, sample_result
from gsbids.simulate.compare import average_of_stacks

RESOLUTION = 0.8  # mm
METHODS = ("default", "known", "paper", "nomotion", "average")


SNAPSHOTS = (4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 120, 150, 200, 250, 300, 400, 500)


@dataclass(frozen=True)
class Fitted:
    """A result and what it took.

    Attributes
    ----------
    result : SvrResult
    seconds, cpu_seconds : float
        Of the fit alone, without what a :class:`Watch` took: on the clock, and of this process on the CPU.
    register_seconds : float
        Of the co-registration of the stacks before it.
    load : float
        Of the machine before all this; above about 0.5 the times are not to be trusted.
    """

    result: SvrResult
    seconds: float
    cpu_seconds: float
    register_seconds: float
    load: float

    def cost(self) -> dict:
        """For the record."""
        return {
            "fit_s": round(self.seconds, 2),
            "fit_cpu_s": round(self.cpu_seconds, 2),
            "register_s": round(self.register_seconds, 2),
            "load_before": self.load,
        }


class Watch:
    """Keeps states of a fit on the way, and the time that the fit itself has taken until then."""

    def __init__(self):
        self.states: list[tuple[int, float, SvrResult]] = []
        self.paused = self.paused_cpu = 0.0
        self._begun = time.perf_counter()

    def begin(self) -> None:
        """The fit begins now."""
        self._begun = time.perf_counter()

    def __call__(self, iteration: int, result: Callable[[], SvrResult]) -> None:
        now, cpu = time.perf_counter(), time.process_time()
        if iteration in SNAPSHOTS:
            self.states.append((iteration, now - self._begun - self.paused, result()))
            self.paused += time.perf_counter() - now
            self.paused_cpu += time.process_time() - cpu

    def scored(self, fitted: Fitted, stacks: list[Stack], case: Case, folder: Path) -> list[dict]:
        """PSNR and SSIM of every state and of the end, in the whole field of view."""
        folder.mkdir(parents=True, exist_ok=True)
        affine, shape = output_grid(stacks, fitted.result, RESOLUTION)
        curve = []
        for iteration, seconds, result in [
            *self.states,
            (len(fitted.result.history["loss"]), fitted.seconds, fitted.result),
        ]:
            path = save_image(folder / f"{iteration}.nii.gz", sample_result(result, affine, shape), affine)
            score = run_tool("score.py", path, *by_truth(case))
            curve.append(
                {"iteration": iteration, "seconds": round(seconds, 3)}
                | {key: score[key] for key in ("psnr", "ssim", "psnr_core", "ssim_core")}
            )
        return curve


def options_for(method: str, threads: int, changes: dict) -> SvrOptions | PaperOptions:
    """Options of a method; ``changes`` are fields that differ from their defaults."""
    if method == "paper":
        return PaperOptions(threads=threads, **changes)
    return replace(SvrOptions(threads=threads), motion_correction=method not in ("nomotion", "known"), **changes)


def fit(
    method: str, case: Case, threads: int, changes: dict | None = None, watch: Watch | None = None
) -> tuple[Fitted, list[Stack]]:
    """Fit a case; also the stacks, which volumes are sampled for.

    Parameters
    ----------
    method : {"default", "known", "paper", "nomotion"}
        ``nomotion``: stacks move as wholes only. ``known``: the default fit at the simulator's own poses.
    case : Case
    threads : int
    changes : dict, optional
        Options that differ from their defaults.
    watch : Watch, optional
    """
    stacks, load = case.stacks(), os.getloadavg()[0]
    begun = time.perf_counter()
    transforms = case.true_transforms() if method == "known" else registered(case.folder, threads)
    run = fit_paper if method == "paper" else fit_svr
    if watch:
        watch.begin()
    ready, cpu = time.perf_counter(), time.process_time()
    result = run(stacks, transforms, options_for(method, threads, changes or {}), observe=watch)
    seconds, cpu = time.perf_counter() - ready, time.process_time() - cpu
    if watch:
        seconds, cpu = seconds - watch.paused, cpu - watch.paused_cpu
    if method == "known":  # one transform per stack is what slices without brain fall back to
        result = replace(result, stack_affine=np.tile(np.eye(4), (len(stacks), 1, 1)))
    return Fitted(result, seconds, cpu, ready - begun, load), stacks


def warm_up(method: str, case: Case, threads: int) -> None:
    """Run a method for a moment, so that no compilation is counted later."""
    fit(method, case, threads, {"iterations": 2 if method == "paper" else 16})
    registered.cache_clear()


@cache
def registered(folder: Path, threads: int) -> np.ndarray:
    """Transforms (N, 4, 4) of the co-registration of a case's stacks; every method starts from the same."""
    return register_stacks(Case("", folder, 0).stacks(), threads).transforms


def volume_files(work: Path, case: Case, method: str) -> dict[str, Path]:
    """Where the volumes of a method are: as delivered, in the whole field of view, and aligned to the truth."""
    folder = work / "volumes" / f"{case.name}_seed-{case.seed}" / method
    folder.mkdir(parents=True, exist_ok=True)
    return {name: folder / f"{name}.nii.gz" for name in ("volume", "unmasked", "aligned")}


def save_volumes(result: SvrResult, stacks: list[Stack], files: dict[str, Path]) -> None:
    """Write the volume that a user gets (brain and rim), and the same in the whole field of view."""
    affine, shape = output_grid(stacks, result, RESOLUTION)
    image = sample_result(result, affine, shape)
    mask, coverage = vote_mask(stacks, result, affine, shape)
    shown = shown_region(mask, coverage, affine, result.settings["rim"])
    save_image(files["volume"], image * shown, affine, "float32")
    save_image(files["unmasked"], image, affine, "float32")


def score_fit(result: SvrResult, stacks: list[Stack], case: Case, files: dict[str, Path]) -> dict:
    """Scores of ``score.py``: the delivered volume with the slices' poses, and the whole field of view."""
    save_volumes(result, stacks, files)
    motion = [
        write_motion(
            files["volume"].with_name(f"run-{n + 1}_motion.tsv"), slice_transforms(result, n, stack.image.shape[2])
        )
        for n, stack in enumerate(stacks)
    ]
    score = run_tool(
        "score.py",
        files["volume"],
        *by_truth(case),
        "--true-transforms",
        *case.true_motion,
        "--est-transforms",
        *motion,
        "--slice-masks",
        *case.true_masks,
        "--save-aligned",
        files["aligned"],
    )
    whole = run_tool("score.py", files["unmasked"], *by_truth(case))
    return score | {
        "unmasked": whole,
        "gaussians": len(result.field),
        "iterations": len(result.history["loss"]),
        "pixels": result.settings["pixels"],
        "slices_rejected": int(result.rejected.sum()),
    }


def by_truth(case: Case) -> tuple:
    """Arguments of ``score.py`` that name the truth."""
    return "--truth", case.truth[0], "--mask", case.truth[1]


def run_method(method: str, case: Case, work: Path, threads: int, changes: dict | None = None) -> dict:
    """One method on one case: scores, costs, and where the volume is."""
    files = volume_files(work, case, method)
    if method == "average":
        path = save_image(files["volume"], *average_of_stacks(case.images, case.masks, RESOLUTION))
        score = run_tool("score.py", path, *by_truth(case), "--save-aligned", files["aligned"])
        return {"score": score, "volume": str(path)}
    fitted, stacks = fit(method, case, threads, changes)
    return {
        "score": score_fit(fitted.result, stacks, case, files),
        "cost": fitted.cost(),
        "volume": str(files["volume"]),
    }
