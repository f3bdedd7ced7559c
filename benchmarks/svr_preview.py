# SPDX-License-Identifier: Apache-2.0
"""Row of the SVR benchmark on previews: how soon there is one, and how far it is from the volume in the end.

First fits alone, in this process, the short one of the early preview and the fit proper: every preview file that a
:class:`gsbids.recon.volume.preview.Previewer` writes, with the seconds on the clock and on the CPU that had passed
when it stood there (co-registration apart, the making of previews included), scored by ``tools/score.py``. Then the
whole command with ``--preview``: the output is looked at from outside, and every file that appears is kept and scored.
"""

import json
import shutil
import subprocess
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
from common import gsbids_command, only, run_tool, say
from scipy import ndimage
from skimage.metrics import structural_similarity
from svr_cases import Case, simulated
from svr_fit import RESOLUTION, by_truth, fit, warm_up

from gsbids.imaging.nifti import load_image, save_image
from gsbids.recon.fitting.options import SvrOptions
from gsbids.recon.volume.preview import Previewer, quick_options
from gsbids.recon.volume.sample import output_grid, sample_result

VOXEL = 1.0  # mm, as --preview
CLOSE = 0.05  # of SSIM
LOOK_EVERY = 0.1  # s


class _Shelf:
    """Keeps previews as files, with the seconds since ``begin``, on the clock and on the CPU."""

    paused = paused_cpu = 0.0  # as :class:`svr_fit.Watch`: nothing is left out

    def __init__(self, case: Case, folder: Path):
        self.folder, self.files = folder, []
        folder.mkdir(parents=True, exist_ok=True)
        self.previewer = Previewer(case.stacks(), VOXEL, self.show)

    def begin(self) -> None:
        """The fit begins now."""
        self.begun = time.perf_counter(), time.process_time()

    def show(self, preview) -> None:
        """Write one."""
        path = save_image(self.folder / f"{preview.iteration}.nii.gz", preview.image, preview.affine)
        now = time.perf_counter(), time.process_time()
        self.files.append((preview.iteration, *(b - a for a, b in zip(self.begun, now, strict=True)), path))

    def __call__(self, iteration, result) -> None:
        self.previewer(iteration, result)


def preview_row(suite) -> None:
    """Fits alone, then the whole command, on case A."""
    case = simulated("A", suite.seeds_or(1)[0], suite.work)
    warm_up("default", case, suite.threads)
    changes = suite.changes_of("default")
    quick = asdict(quick_options(SvrOptions(**changes)))
    quick = {name: value for name, value in quick.items() if value != asdict(SvrOptions())[name]}
    shelves = {name: _Shelf(case, suite.work / "preview" / name) for name in ("fit", "quick")}
    fits = {
        name: fit("default", case, suite.threads, change, shelves[name])
        for name, change in (("fit", changes), ("quick", quick))
    }
    fitted, stacks = fits["fit"]
    affine, shape = output_grid(stacks, fitted.result, RESOLUTION)
    final = save_image(shelves["fit"].folder / "final.nii.gz", sample_result(fitted.result, affine, shape), affine)
    for name, what in (("quick", "early fit alone"), ("fit", "fit alone")):
        _record(suite, case, what, shelves[name].files, final, fits[name][0].cost())
    files, final, seconds = _watched_command(case, suite)
    _record(suite, case, "whole command", files, final, {"wall_s": round(seconds, 1)})


def _record(suite, case: Case, what: str, files, final: Path, cost: dict) -> None:
    """Scores of every preview and of the end."""
    end = run_tool("score.py", final, *by_truth(case))
    points = []
    for label, seconds, cpu, path in files:
        score = run_tool("score.py", path, *by_truth(case))
        points.append(
            {
                "iteration": label,
                "seconds": round(seconds, 2),
                "cpu_s": cpu and round(cpu, 2),
                "ssim": score["ssim"],
                "psnr": score["psnr"],
                "ssim_to_final": round(similarity(path, final, case), 3),
            }
        )
    close = [point for point in points if point["ssim"] >= end["ssim"] - CLOSE][:1]
    suite.record(
        {
            "row": "preview",
            "case": case.name,
            "seed": case.seed,
            "method": "default",
            "change": what,
            "cost": cost,
            "final": {"ssim": end["ssim"], "psnr": end["psnr"]},
            "previews": points,
            "first_s": points[0]["seconds"],
            "close_s": close[0]["seconds"] if close else None,
            "close_cpu_s": close[0]["cpu_s"] if close else None,
        }
    )


def similarity(preview: Path, final: Path, case: Case) -> float:
    """Mean SSIM of a preview against the final volume, where both lie, in the brain (an eroded threshold of it)."""
    data, affine = load_image(final)
    other, other_affine = load_image(preview)
    index = np.linalg.inv(other_affine) @ affine
    other = ndimage.affine_transform(other, index[:3, :3], index[:3, 3], data.shape, order=3)
    brain = ndimage.binary_opening(data > 0.25 * np.percentile(data, 99.5), iterations=2)
    slope, offset = np.polyfit(other[brain], data[brain], 1)
    found = structural_similarity(
        data * brain,
        (slope * other + offset) * brain,
        data_range=float(data[brain].max()),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        full=True,
    )[1]
    return float(found[brain].mean())


def _watched_command(case: Case, suite):
    """gsbids with ``--preview`` from nothing: (label, seconds, None, file) of its previews, the volume, all seconds."""
    folder = suite.work / "preview" / "command"
    shutil.rmtree(folder, ignore_errors=True)
    kept = folder / "kept"
    kept.mkdir(parents=True)
    command = gsbids_command(
        case.folder,
        folder / "out",
        folder / "work",
        "-d",
        f"masks={case.folder / 'derivatives' / 'masks'}",
        "--nprocs",
        suite.threads,
        "--preview",
    )
    say("gsbids with --preview")
    path = folder / "out" / "sub-01" / "anat" / "sub-01_rec-gsvr_desc-preview_T2w.nii.gz"
    begun, files, seen = time.perf_counter(), [], None
    with open(folder / "gsbids.log", "w", encoding="utf-8") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
        while process.poll() is None:
            time.sleep(LOOK_EVERY)
            try:
                stamp = path.stat().st_mtime_ns
                if stamp != seen:
                    seconds = time.perf_counter() - begun
                    copy = Path(shutil.copy(path, kept / f"{len(files)}.nii.gz"))
                    fields = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
                    files.append((f"{fields['Stage']}, {fields['Iteration']}", seconds, None, copy))
                    seen = stamp
            except FileNotFoundError:  # not yet there, or gone since
                continue
    seconds = time.perf_counter() - begun
    if process.returncode:
        raise SystemExit(f"gsbids ended with code {process.returncode}: see {folder / 'gsbids.log'}")
    return files, only(folder / "out", "*_desc-unmasked_T2w.nii.gz"), seconds
