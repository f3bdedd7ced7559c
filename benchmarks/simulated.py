#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Simulated stacks with a known answer: PSNR in the brain and pose error, with and without motion correction.

    python benchmarks/simulated.py --json OUT.json --figures DIR

``tools/simulate_stacks.py`` makes moving stacks from a fetal atlas of 28 weeks, ``tools/score.py`` scores;
neither shares code with gsbids. Needs the ``bench`` extra (SimpleITK, scikit-image): ``make bench-install``.
"""

import argparse
import csv
import json
import shutil
from pathlib import Path

import numpy as np
from common import (
    gsbids_command,
    machine,
    only,
    run_measured,
    run_tool,
    say,
    shared_folder,
    slice_ncc,
    write_json,
)
from scipy.spatial.transform import Rotation

from gsbids.imaging.nifti import save_image
from gsbids.simulate.compare import average_of_stacks

SIMULATION = ("--surround", "fluid", "--inplane", "1.1", "--thickness", "3", "--spacing", "3.3", "--stacks",
              "axial", "coronal", "sagittal", "axial", "--angle", "6", "--shift", "4", "--noise", "0.04",
              "--tilt", "5")
METHODS = {"gsbids": (), "gsbids --no-motion-correction": ("--no-motion-correction",)}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seed", type=int, default=1, help="of the simulation")
    parser.add_argument("--atlas", default="GA28_operated", help="volume of fetal-atlas-spinabifida")
    parser.add_argument("--work", type=Path, default=Path("work/benchmarks/simulated"), help="working folder")
    parser.add_argument("--options", nargs=argparse.REMAINDER, default=[], help="last: options for gsbids")
    parser.add_argument("--json", type=Path, help="results (default: screen)")
    parser.add_argument("--figures", type=Path, help="folder for PNG mid-planes")
    args = parser.parse_args()
    work = args.work / f"{args.atlas}_seed-{args.seed}"
    shutil.rmtree(work, ignore_errors=True)
    bids = simulate(work / "bids", args)
    truth = bids / "derivatives" / "truth" / "sub-01" / "anat"
    known = (truth / "sub-01_res-iso_desc-truth_T2w.nii.gz", truth / "sub-01_res-iso_desc-truth_mask.nii.gz")
    stacks = sorted((bids / "sub-01" / "anat").glob("*_T2w.nii.gz"))
    masks = sorted((bids / "derivatives" / "masks").rglob("*_mask.nii.gz"))
    result = {"benchmark": "simulated", "machine": machine(), "atlas": args.atlas, "options": args.options,
              "simulation": [*SIMULATION, "--seed", args.seed], "methods": {}}
    by_truth = ("--truth", known[0], "--mask", known[1])

    volumes = {"average": save_image(work / "average.nii.gz", *average_of_stacks(stacks, masks, 0.8))}
    result["methods"]["average"] = run_tool("score.py", volumes["average"], *by_truth)
    for name, options in METHODS.items():
        out = work / ("out" if not options else "out-still")
        command = gsbids_command(bids, out, work / f"work-{out.name}", "-d",
                                 f"masks={bids / 'derivatives' / 'masks'}", *options, *args.options)
        say(name)
        cost = run_measured(command, work / f"{out.name}.log")
        volumes[name] = only(out, "*_rec-gsvr_*_desc-preproc_T2w.nii.gz")
        motion = [converted_motion(table, work / f"{out.name}_motion") for table in motion_tables(out)]
        score = run_tool("score.py", volumes[name], *by_truth,
                         "--true-transforms", *sorted(truth.glob("*_desc-motion_transforms.tsv")),
                         "--est-transforms", *motion, "--slice-masks", *masks)
        # The edge of our own mask costs PSNR in the true mask; without it, the image alone is judged.
        whole = run_tool("score.py", only(out, "*_rec-gsvr_*_desc-unmasked_T2w.nii.gz"), *by_truth)
        result["methods"][name] = score | {"unmasked": whole, "cost": cost} | slice_ncc(out)
    for name, score in result["methods"].items():
        error = score.get("slice_error", {}).get("median_mm")
        say(f"{name:<30} PSNR {score['psnr']:.2f} dB (core {score['psnr_core']:.2f})  "
            f"SSIM {score['ssim']:.3f}  slice error {error} mm")
    write_json(args.json, result)
    if args.figures:
        draw(args.figures / f"simulated_{args.atlas}.png", volumes, *known)


def simulate(bids: Path, args) -> Path:
    """Stacks from the atlas; the folder of masks made into a derivative data set."""
    atlas = shared_folder() / "data" / "fetal-atlas-spinabifida"
    say(f"simulating from {args.atlas}")
    run_tool("simulate_stacks.py", "--input", atlas / f"{args.atlas}_srr.nii.gz", "--input-mask",
             atlas / f"{args.atlas}_mask.nii.gz", *SIMULATION, "--seed", args.seed, "--out", bids)
    (bids / "derivatives" / "masks" / "dataset_description.json").write_text(json.dumps(
        {"Name": "Masks of simulated stacks", "BIDSVersion": "1.10.1", "DatasetType": "derivative",
         "GeneratedBy": [{"Name": "simulate_stacks.py"}]}))
    return bids


def motion_tables(out: Path) -> list[Path]:
    """Our motion table of every stack, by run."""
    return sorted(out.rglob("*_desc-motion_timeseries.tsv"))


def converted_motion(table: Path, folder: Path) -> Path:
    """A motion table of gsbids with the columns that ``score.py`` reads.

    Both say ``x_anatomy = R (x_scanner - c) + c + t`` in world RAS+ mm; rotations become quaternions.
    Slices without brain (``n/a``) are written as still: the score does not look at them.
    """
    columns = ("qw", "qx", "qy", "qz", "tx_mm", "ty_mm", "tz_mm", "cx_mm", "cy_mm", "cz_mm")
    rows = ["\t".join(columns)]
    with open(table, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file, delimiter="\t"):
            known = row["trans_x"] != "n/a"
            t, r, c = (np.array([float(row[f"{name}_{axis}"]) for axis in "xyz"]) if known else np.zeros(3)
                       for name in ("trans", "rot", "centre"))
            quaternion = Rotation.from_euler("xyz", r).as_quat(scalar_first=True)
            rows.append("\t".join(f"{value:.9g}" for value in (*quaternion, *t, *c)))
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / table.name
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def draw(path: Path, volumes: dict[str, Path], truth: Path, mask: Path) -> None:
    """Mid-planes of the volumes, aligned to the truth, and of the truth."""
    from figures import aligned_rows, draw_planes

    from gsbids.imaging.nifti import load_image

    brain = load_image(mask)[0] > 0.5
    rows = aligned_rows(volumes, truth, mask) | {"truth": load_image(truth)[0] * brain}
    draw_planes(path, rows, brain)
    say(str(path))


if __name__ == "__main__":
    main()
