# SPDX-License-Identifier: Apache-2.0
"""Rows of the SVR benchmark on real data: the stack that was left out, and the whole command with all stacks.

Six HASTE stacks of one fetus (``data/fetal-stacks-mialsrtk``). In turn one run is left out with
``--bids-filter-file``, ``gsbids`` reconstructs from the other five, and ``tools/score_heldout_stack.py``, which
knows nothing of gsbids, scores the volume by the stack that it has not seen. Beside it: the plain average of the
same five stacks, and the volume of SVRTK (``data/peer-volumes-svrtk``). Then all six stacks: wall clock, CPU,
memory, and how alike acquired and simulated slices are.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path

from common import gsbids_command, heldout_medians, only, run_measured, say, shared_folder, slice_ncc
from figures import aligned_rows, draw_planes, on_grid, upright

from gsbids.imaging.nifti import load_image, save_image
from gsbids.simulate.compare import average_of_stacks

SUBJECT = "sub-01"
ALL_RUNS = (1, 2, 3, 4, 5, 6)
LEFT_OUT = (2, 4, 6)
COMMANDS = {"default": (), "paper": ("--svr-method", "paper"), "nomotion": ("--no-motion-correction",)}


def heldout_row(suite) -> None:
    """Every method, the average and SVRTK by the stacks that were left out."""
    data = shared_folder() / "data" / "fetal-stacks-mialsrtk"
    for run in LEFT_OUT:
        leave_out(run, data, suite)


def command_row(suite) -> None:
    """Cost and similarity with all six stacks, from start to report."""
    data = shared_folder() / "data" / "fetal-stacks-mialsrtk"
    out, entry = reconstruct(data, "all-runs", ALL_RUNS, "default", suite)
    volumes = {
        "average": average(data, ALL_RUNS, suite.work / "real" / "all-runs"),
        "default": only(out, "*_rec-gsvr_*_desc-preproc_T2w.nii.gz"),
        "SVRTK": peer("all-runs"),
    }
    suite.record({"row": "real-command", "case": "real, 6 stacks", "method": "default", **entry})
    draw("all-runs", volumes, data, suite)


def reconstruct(
    data: Path, name: str, runs: tuple[int, ...], method: str, suite, options: tuple[str, ...] | None = None
) -> tuple[Path, dict]:
    """gsbids on some runs, from nothing; the output folder and the cost.

    ``options`` stand in the place of those of the method.
    """
    folder = suite.work / "real" / name / method
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    out, filters = folder / "out", folder / "filter.json"
    filters.write_text(json.dumps({"stacks": {"run": list(runs)}}))
    masks = data / "derivatives" / "manual_masks"
    command = gsbids_command(
        data,
        out,
        folder / "work",
        "-d",
        f"masks={masks}",
        "--bids-filter-file",
        filters,
        "--nprocs",
        suite.threads,
        *(COMMANDS[method] if options is None else options),
    )
    say(f"{name}: gsbids, {method}")
    cost = run_measured(command, folder / "gsbids.log")
    return out, {"cost": asdict(cost), **slice_ncc(out)}


def leave_out(run: int, data: Path, suite) -> None:
    """Scores of all methods, the average and SVRTK by one stack."""
    runs = tuple(r for r in ALL_RUNS if r != run)
    name = f"without-run-{run}"
    volumes, more = {}, {}
    for method in suite.methods_or("default"):
        if method in COMMANDS:
            out, more[method] = reconstruct(data, name, runs, method, suite)
            volumes[method] = only(out, "*_rec-gsvr_*_desc-preproc_T2w.nii.gz")
    volumes |= {"average": average(data, runs, suite.work / "real" / name), "SVRTK": peer(name)}
    for method, volume in volumes.items():
        scores = heldout_medians(volume, stack_file(data, run), mask_file(data, run))
        suite.record(
            {
                "row": "heldout",
                "case": f"run-{run}",
                "method": method,
                "heldout": scores,
                "volume": str(volume),
                **more.get(method, {}),
            }
        )
    draw(name, volumes, data, suite)


def average(data: Path, runs, folder: Path) -> Path:
    """The plain average of some runs, as a file."""
    folder.mkdir(parents=True, exist_ok=True)
    stacks, masks = [stack_file(data, r) for r in runs], [mask_file(data, r) for r in runs]
    return save_image(folder / "average.nii.gz", *average_of_stacks(stacks, masks, 1.0))


def draw(name: str, volumes: dict[str, Path], data: Path, suite) -> None:
    """Mid-planes of an acquired stack and of the volumes, all in SVRTK's place."""
    if not suite.figures:
        return
    reference, mask = upright(volumes["SVRTK"], suite.work / "real" / name)
    rows = {"acquired (run-3)": on_grid(stack_file(data, 3), reference)}
    rows |= aligned_rows({who: file for who, file in volumes.items() if who != "SVRTK"}, reference, mask)
    rows["SVRTK"] = load_image(reference)[0]
    draw_planes(suite.figures / f"real_{name}.png", rows, load_image(mask)[0] > 0.5)


def stack_file(data: Path, run: int) -> Path:
    """An acquired stack."""
    return data / SUBJECT / "anat" / f"{SUBJECT}_run-{run}_T2w.nii.gz"


def mask_file(data: Path, run: int) -> Path:
    """Its manual mask."""
    folder = data / "derivatives" / "manual_masks" / SUBJECT / "anat"
    return folder / f"{SUBJECT}_run-{run}_T2w_desc-brain_mask.nii.gz"


def peer(which: str) -> Path:
    """SVRTK's volume."""
    return shared_folder() / "data" / "peer-volumes-svrtk" / f"svrtk_{which}_T2w.nii.gz"
