#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Real stacks: predict the stack that was left out, and cost and similarity with all stacks.

    python benchmarks/real_heldout.py --json OUT.json --figures DIR

Six HASTE stacks of one fetus (``data/fetal-stacks-mialsrtk``). In turn one run is left out with
``--bids-filter-file``, ``gsbids`` reconstructs from the other five, and ``tools/score_heldout_stack.py``,
which knows nothing of gsbids, scores the volume by the stack that it has not seen. Beside it: the plain
average of the same five stacks, and the volume of SVRTK (``data/peer-volumes-svrtk``). Then all six
stacks: wall clock, CPU, memory, and how alike acquired and simulated slices are.
"""

import argparse
import json
import shutil
from pathlib import Path

from common import (
    gsbids_command,
    heldout_medians,
    machine,
    only,
    run_measured,
    say,
    shared_folder,
    slice_ncc,
    write_json,
)

from gsbids.imaging.nifti import save_image
from gsbids.simulate.compare import average_of_stacks

SUBJECT = "sub-01"
ALL_RUNS = (1, 2, 3, 4, 5, 6)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, nargs="*", default=[2, 4, 6], help="runs to leave out in turn")
    parser.add_argument("--no-all", action="store_true", help="leave out the reconstruction from all six")
    parser.add_argument("--work", type=Path, default=Path("work/benchmarks/real"), help="working folder")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="last: options for gsbids")
    parser.add_argument("--json", type=Path, help="results (default: screen)")
    parser.add_argument("--figures", type=Path, help="folder for PNG mid-planes")
    args = parser.parse_args()
    data = shared_folder() / "data" / "fetal-stacks-mialsrtk"
    result = {"benchmark": "real_heldout", "machine": machine(), "options": args.options, "left_out": {}}
    for run in args.runs:
        result["left_out"][f"run-{run}"] = leave_out(run, data, args)
        write_json(args.json, result)
    if not args.no_all:
        result["all_runs"] = all_runs(data, args)
    write_json(args.json, result)


def reconstruct(data: Path, name: str, runs: tuple[int, ...], args) -> tuple[Path, dict]:
    """gsbids on some runs, from nothing; the output folder and the cost."""
    folder = args.work / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    out, filters = folder / "out", folder / "filter.json"
    filters.write_text(json.dumps({"stacks": {"run": list(runs)}}))
    masks = data / "derivatives" / "manual_masks"
    command = gsbids_command(data, out, folder / "work", "-d", f"masks={masks}",
                             "--bids-filter-file", filters, *args.options)
    say(f"{name}: gsbids")
    cost = run_measured(command, folder / "gsbids.log")
    return out, {"cost": cost, **slice_ncc(out)}


def leave_out(run: int, data: Path, args) -> dict:
    """Scores of gsbids, the average and SVRTK by the stack that was left out."""
    runs = tuple(r for r in ALL_RUNS if r != run)
    name = f"without-run-{run}"
    out, entry = reconstruct(data, name, runs, args)
    volumes = {"average": average(data, runs, args.work / name),
               "gsbids": only(out, "*_rec-gsvr_*_desc-preproc_T2w.nii.gz"),
               "SVRTK": peer(f"without-run-{run}")}
    scores = {}
    for who, volume in volumes.items():
        say(f"{name}: scoring {who}")
        scores[who] = heldout_medians(volume, stack_file(data, run), mask_file(data, run))
        say(f"{name}: {who} grad_ncc {scores[who]['grad_ncc']:.3f} hp_ncc {scores[who]['hp_ncc']:.3f}")
    draw(name, volumes, data, args)
    return entry | {"scores": scores}


def all_runs(data: Path, args) -> dict:
    """Cost and similarity with all six stacks."""
    out, entry = reconstruct(data, "all-runs", ALL_RUNS, args)
    volumes = {"average": average(data, ALL_RUNS, args.work / "all-runs"),
               "gsbids": only(out, "*_rec-gsvr_*_desc-preproc_T2w.nii.gz"), "SVRTK": peer("all-runs")}
    draw("all-runs", volumes, data, args)
    return entry


def average(data: Path, runs, folder: Path) -> Path:
    """The plain average of some runs, as a file."""
    stacks, masks = [stack_file(data, r) for r in runs], [mask_file(data, r) for r in runs]
    return save_image(folder / "average.nii.gz", *average_of_stacks(stacks, masks, 1.0))


def draw(name: str, volumes: dict[str, Path], data: Path, args) -> None:
    """Mid-planes of an acquired stack and of the volumes, all in SVRTK's place."""
    if not args.figures:
        return
    from figures import aligned_rows, draw_planes, on_grid, upright

    from gsbids.imaging.nifti import load_image

    reference, mask = upright(volumes["SVRTK"], args.work / name)
    rows = {"acquired (run-3)": on_grid(stack_file(data, 3), reference)}
    rows |= aligned_rows({who: file for who, file in volumes.items() if who != "SVRTK"}, reference, mask)
    rows["SVRTK"] = load_image(reference)[0]
    draw_planes(args.figures / f"real_{name}.png", rows, load_image(mask)[0] > 0.5)
    say(f"{name}: {args.figures / f'real_{name}.png'}")


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


if __name__ == "__main__":
    main()
