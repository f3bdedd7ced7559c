# SPDX-License-Identifier: Apache-2.0
"""Rows of the SVR benchmark with a known answer; each makes its cases, runs methods, and hands over records."""

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from common import gsbids_command, only, run_measured, run_tool, say
from figures import draw_convergence, draw_errors
from svr_cases import Case, simulated
from svr_change import dilated, eroded, resized, turned_apart, with_masks
from svr_fit import METHODS, RESOLUTION, Watch, by_truth, fit, options_for, run_method, volume_files, warm_up

from gsbids.recon.registration.register import register_stacks
from gsbids.recon.svr.fit import fit_svr
from gsbids.recon.volume.coverage import vote_mask
from gsbids.recon.volume.sample import output_grid, sample_result

STANDARD = {"A": ("A",), "B2": ("B2",), "B0": ("B0",), "F": ("F22", "F25", "F28"), "T": ("T28",)}
SEEDS = (1, 2, 3)
ROBUST_SEEDS = tuple(range(1, 21))
SEVERE = ("--angle", "15", "--shift", "10")
CORRUPTED = ("--drop", "0.2")
TURN = 30.0  # degrees
ORIGIN = np.array([500.0, -300.0, 200.0])  # mm
LARGE = (320, 320, 30)
PAPER_CHANGES = {
    "10 000 Gaussians": {"n_gaussians": 10_000},
    "20 000 Gaussians": {"n_gaussians": 20_000},
    "as published": {},
    "40 000 Gaussians": {"n_gaussians": 40_000},
    "K = 32": {"neighbours": 32},
    "K = 128": {"neighbours": 128},
    "no PSF": {"psf": False},
    "no scale regularisation": {"scale_weight": 0.0},
    "uniform start": {"edge_share": 0.0},
}
DEFAULT_CHANGES = {
    "as it is": {},
    "PSF without its mass factor": {"mass_factor": False},
    "no scale regularisation": {"scale_weight": 0.0},
    "uniform start": {"edge_share": 0.0},
    "no rim": {"rim": 0.0},
}


@dataclass
class Suite:
    """What all rows share: where they work, what was asked for, and where their records go.

    Attributes
    ----------
    work : Path
    threads : int
    seeds, methods : tuple or None
        As asked for; None: each row's own.
    changes : dict of str to dict
        By method, options that differ from their defaults.
    figures : Path or None
    record : callable
        Takes a dict.
    done : dict
        What was found for a case, seed and method: rows that compare with the same case do not run it again.
    """

    work: Path
    threads: int
    record: Callable[[dict], None]
    seeds: tuple[int, ...] | None = None
    methods: tuple[str, ...] | None = None
    changes: dict[str, dict] = field(default_factory=dict)
    figures: Path | None = None
    done: dict[tuple[str, int, str], dict] = field(default_factory=dict)

    def seeds_or(self, *seeds: int) -> tuple[int, ...]:
        """The seeds asked for, else the row's own."""
        return self.seeds or seeds

    def methods_or(self, *methods: str) -> tuple[str, ...]:
        """The methods asked for, else the row's own."""
        return self.methods or methods

    def changes_of(self, method: str) -> dict:
        """Options of a method that differ; the variants of the default follow it."""
        return self.changes.get("paper" if method == "paper" else "default", {})

    def run(self, row: str, case: Case, methods: tuple[str, ...], **more) -> list[dict]:
        """Run methods on a case and record them."""
        records = []
        for method in methods:
            key = (case.name, case.seed, method)
            if key not in self.done:
                self.done[key] = run_method(method, case, self.work, self.threads, self.changes_of(method))
            found = self.done[key]
            records.append({"row": row, "case": case.name, "seed": case.seed, "method": method, **found, **more})
            self.record(records[-1])
        return records


def standard_row(row: str, suite: Suite) -> None:
    """Cases as the simulator makes them, with every method beside the default and the bound."""
    for name in STANDARD[row]:
        for seed in suite.seeds_or(*SEEDS):
            case = simulated(name, seed, suite.work)
            records = suite.run(row, case, suite.methods_or(*METHODS))
            if suite.figures and seed == suite.seeds_or(*SEEDS)[0]:
                aligned = {r["method"]: volume_files(suite.work, case, r["method"])["aligned"] for r in records}
                draw_errors(suite.figures / f"svr_{name}.png", aligned, *case.truth)


def robust_row(suite: Suite) -> None:
    """Large motion, stacks turned apart; success: within 1 dB of the same method and seed with mild motion."""
    for seed in suite.seeds_or(*ROBUST_SEEDS):
        mild = simulated("A", seed, suite.work)
        severe = turned_apart(simulated("A", seed, suite.work, SEVERE, "severe"), TURN)
        run_against(suite, "robust", mild, [severe], suite.methods_or("default"))


def corrupted_row(suite: Suite) -> None:
    """One slice in five has lost signal."""
    for seed in suite.seeds_or(*SEEDS):
        run_against(
            suite,
            "corrupted",
            simulated("A", seed, suite.work),
            [simulated("A", seed, suite.work, CORRUPTED, "corrupted")],
            suite.methods_or("default"),
        )


def masks_row(suite: Suite) -> None:
    """Masks two pixels too wide or too narrow, without the first slice of brain of every stack."""
    for seed in suite.seeds_or(*SEEDS):
        case = simulated("A", seed, suite.work)
        changed = [with_masks(case, "dilated", dilated), with_masks(case, "eroded", eroded)]
        run_against(suite, "masks", case, changed, suite.methods_or("default"))


def run_against(suite: Suite, row: str, base: Case, changed: list[Case], methods) -> None:
    """Run a case and changed ones, and record the loss of PSNR: of what is delivered, and of the whole field of view.

    The two differ where masks with errors cut the brain out of the delivered volume.
    """
    for method in methods:
        start = suite.run(row, base, (method,))[0]["score"]
        for case in changed:
            found = run_method(method, case, suite.work, suite.threads, suite.changes_of(method))
            loss = {"psnr_loss": round(start["psnr"] - found["score"]["psnr"], 3)}
            if "unmasked" in start:
                loss["psnr_loss_whole"] = round(start["unmasked"]["psnr"] - found["score"]["unmasked"]["psnr"], 3)
            suite.record({"row": row, "case": case.name, "seed": case.seed, "method": method, **found, **loss})


def origin_row(suite: Suite) -> None:
    """One shift of all affines: how much the volume changes, as a share of its range in the brain.

    Both fits and both samplings are made in memory, so that no header rounds the shift away.
    """
    case = simulated("A", suite.seeds_or(*SEEDS)[0], suite.work)
    stacks, images = case.stacks(), []
    options = options_for("default", suite.threads, suite.changes_of("default"))
    affine = shape = brain = None
    for shift in (np.zeros(3), ORIGIN):
        move = np.eye(4)
        move[:3, 3] = shift
        there = [replace(stack, affine=move @ stack.affine) for stack in stacks]
        result = fit_svr(there, register_stacks(there, suite.threads).transforms, options)
        if affine is None:
            affine, shape = output_grid(there, result, RESOLUTION)
            brain = vote_mask(there, result, affine, shape)[0]
        images.append(sample_result(result, move @ affine, shape)[brain])
    difference = np.abs(images[1] - images[0]) / np.ptp(images[0])
    suite.record(
        {
            "row": "origin",
            "case": case.name,
            "seed": case.seed,
            "method": "default",
            "change": {
                "max": float(difference.max()),
                "p99.9": float(np.percentile(difference, 99.9)),
                "rms": float(np.sqrt(np.mean(difference**2))),
            },
        }
    )


def speed_row(suite: Suite) -> None:
    """Seconds of the fit, and PSNR and SSIM on the way, of the default and of the paper's method, on case A."""
    case = simulated("A", suite.seeds_or(*SEEDS)[0], suite.work)
    curves = {}
    for method in suite.methods_or("default", "paper"):
        warm_up(method, case, suite.threads)
        watch = Watch()
        fitted, stacks = fit(method, case, suite.threads, suite.changes_of(method), watch)
        curves[method] = curve = watch.scored(fitted, stacks, case, suite.work / "curves" / method)
        suite.record(
            {
                "row": "speed",
                "case": case.name,
                "seed": case.seed,
                "method": method,
                "curve": curve,
                "cost": fitted.cost(),
                "pixels": fitted.result.settings["pixels"],
            }
        )
    if suite.figures:
        draw_convergence(suite.figures / "svr_convergence.png", curves)


def memory_row(suite: Suite) -> None:
    """Largest memory of ``gsbids``, from start to report, on 12 stacks of 320 x 320 x 30."""
    seed = suite.seeds_or(*SEEDS)[0]
    twelve = ("--stacks", *(4 * ("axial", "coronal", "sagittal")))
    case = resized(simulated("A", seed, suite.work, twelve, "twelve"), LARGE)
    out = suite.work / "memory"
    say("gsbids on 12 stacks")
    command = gsbids_command(
        case.folder,
        out / "out",
        out / "work",
        "-d",
        f"masks={case.folder / 'derivatives' / 'masks'}",
        "--nprocs",
        suite.threads,
        "--clean-workdir",
    )
    suite.record(
        {
            "row": "memory",
            "case": case.name,
            "seed": seed,
            "method": "default",
            "cost": dataclasses.asdict(run_measured(command, out / "gsbids.log")),
        }
    )


def ablation_row(suite: Suite) -> None:
    """The paper's table on our data, and the same kind of table of the default; case B2, scored in its core."""
    case = simulated("B2", suite.seeds_or(*SEEDS)[0], suite.work)
    for method, changes in (("paper", PAPER_CHANGES), ("default", DEFAULT_CHANGES)):
        if method not in suite.methods_or("paper", "default"):
            continue
        known = {entry.name for entry in dataclasses.fields(options_for(method, 1, {}))}
        for label, change in changes.items():
            if not set(change) <= known:
                say(f"ablation: {method} has no option {', '.join(set(change) - known)}")
                continue
            found = run_method(method, case, suite.work, suite.threads, suite.changes_of(method) | change)
            suite.record(
                {"row": "ablation", "case": case.name, "seed": case.seed, "method": method, "change": label, **found}
            )


def whole_command_row(suite: Suite) -> None:
    """The fit within ``gsbids``, with denoising and N4, on case T: what a user gets from simulated data."""
    case = simulated("T28", suite.seeds_or(*SEEDS)[0], suite.work)
    out = suite.work / "simulated-command"
    command = gsbids_command(
        case.folder,
        out / "out",
        out / "work",
        "-d",
        f"masks={case.folder / 'derivatives' / 'masks'}",
        "--nprocs",
        suite.threads,
        "--clean-workdir",
    )
    cost = dataclasses.asdict(run_measured(command, out / "gsbids.log"))
    volume = only(out / "out", "*_rec-gsvr_*_desc-preproc_T2w.nii.gz")
    suite.record(
        {
            "row": "command",
            "case": case.name,
            "seed": case.seed,
            "method": "default",
            "cost": cost,
            "score": run_tool("score.py", volume, *by_truth(case)),
            "volume": str(volume),
        }
    )


def read_changes(words: list[str]) -> dict:
    """``name=value`` words as a dict; values are JSON."""
    return {name: json.loads(value) for name, _, value in (word.partition("=") for word in words)}
