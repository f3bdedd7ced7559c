#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The picture of the README, from what ``make demo`` left: ``demo_figure.py demo docs/images/demo.png``."""

import argparse
import tempfile
from pathlib import Path

from common import only
from figures import aligned_rows, draw_planes, on_grid

from gsbids.imaging.nifti import load_image, save_image
from gsbids.simulate.compare import average_of_stacks


def main() -> None:
    """Draw an acquired stack, the plain average, the reconstruction and the truth."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("demo", type=Path, help="folder that make demo made")
    parser.add_argument("png", type=Path, help="picture to write")
    args = parser.parse_args()
    bids, truth_folder = args.demo / "bids", args.demo / "bids" / "derivatives" / "truth"
    truth = only(truth_folder, "*_desc-truth_T2w.nii.gz")
    mask = only(truth_folder, "*_desc-brain_mask.nii.gz")
    stacks = sorted((bids / "sub-01" / "anat").glob("*_T2w.nii.gz"))
    masks = sorted((bids / "derivatives" / "masks").rglob("*_mask.nii.gz"))
    with tempfile.TemporaryDirectory() as folder:
        average = save_image(Path(folder) / "average.nii.gz", *average_of_stacks(stacks, masks, 0.8))
        volumes = {
            "stacks averaged": average,
            "gsbids": only(args.demo / "out", "*_rec-gsvr_*_desc-preproc_T2w.nii.gz"),
        }
        rows = {"one stack": on_grid(stacks[0], truth)} | aligned_rows(volumes, truth, mask)
    brain = load_image(mask)[0] > 0.5
    rows["truth"] = load_image(truth)[0] * brain
    draw_planes(args.png, rows, brain)


if __name__ == "__main__":
    main()
