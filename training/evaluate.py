#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Score a mask network on what its training has left out.

    python training/evaluate.py training/config.toml WEIGHTS.safetensors --json OUT.json --figures DIR

Real stacks by their manual masks; brains of atlas ages that were left out, in made-up surroundings; and such
surroundings without any brain, where nothing should be found.
"""

import argparse
import json
import time
import tomllib
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from generator import Mixture, acquired, body, brain_slice, placed
from sources import PIXEL, brains

from gsbids.masking.network import load_network, segment, segment_stack

SLICES = 22


def dice(found: np.ndarray, truth: np.ndarray) -> float:
    """Overlap of two masks, 0 to 1."""
    return float(2 * (found & truth).sum() / max(found.sum() + truth.sum(), 1))


def centre_inside(found: np.ndarray, truth: np.ndarray) -> bool:
    """Whether the middle of what was found lies in the true mask."""
    if not found.any():
        return False
    return bool(truth[tuple(np.rint(np.argwhere(found).mean(0)).astype(int))])


def main() -> None:
    """Score and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("weights", type=Path)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--figures", type=Path)
    parser.add_argument("--all-runs", action="store_true", help="the runs of the training as well")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    told = tomllib.loads(args.config.read_text())
    network, shape = load_network(args.weights)
    runs = told["evaluate"]["runs"] + (told["train"]["runs"] if args.all_runs else [])
    rows = []
    for run in runs:
        folder = args.data / "fetal-stacks-mialsrtk"
        loaded = nib.load(folder / "sub-01" / "anat" / f"sub-01_run-{run}_T2w.nii.gz")
        mask = folder / "derivatives" / "manual_masks" / "sub-01" / "anat"
        truth = np.asarray(nib.load(mask / f"sub-01_run-{run}_T2w_desc-brain_mask.nii.gz").dataobj) > 0
        image = np.asarray(loaded.dataobj, np.float32)
        start = time.process_time()
        found = segment_stack(image, loaded.affine, network, shape)
        rows.append({"stack": f"run-{run}", "kind": "left out" if run in told["evaluate"]["runs"] else "trained on",
                     "dice": dice(found.mask, truth), "found": centre_inside(found.mask, truth),
                     "confidence": found.confidence, "cpu_s": time.process_time() - start})
        print(rows[-1], flush=True)
        if args.figures:
            draw_stack(args.figures / f"run-{run}.png", image, found.mask, truth)
    atlas = brains(args.data / "fetal-atlas-spinabifida", told["evaluate"]["weeks"])
    for number in range(20):
        image, truth = simulated(np.random.default_rng(10_000 + number), atlas, number % 5 == 4)
        found = segment(image, (PIXEL, PIXEL, 3.5), network, shape)
        rows.append({"stack": f"simulated {number}", "kind": "simulated" if truth.any() else "no brain",
                     "dice": dice(found.mask, truth), "found": centre_inside(found.mask, truth),
                     "empty": not found.mask.any(), "confidence": found.confidence})
        print(rows[-1], flush=True)
        if args.figures:
            draw_stack(args.figures / f"simulated-{number}.png", image, found.mask, truth)
    result = {"config": told, "rows": rows, "summary": summary(rows)}
    print(json.dumps(result["summary"], indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


def summary(rows: list[dict]) -> dict:
    """Medians by kind."""
    out = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        those = [row for row in rows if row["kind"] == kind]
        out[kind] = ({"empty": float(np.mean([r["empty"] for r in those]))} if kind == "no brain" else
                     {"dice_median": float(np.median([r["dice"] for r in those])),
                      "dice_least": min(r["dice"] for r in those),
                      "found": float(np.mean([r["found"] for r in those]))}) | {"stacks": len(those)}
    return out


def simulated(rng, atlas, empty: bool) -> tuple[np.ndarray, np.ndarray]:
    """A stack of a brain of an atlas in made-up surroundings, and its mask."""
    ground = body(rng)
    seed = int(rng.integers(2**31))
    images, masks = [], []
    for k in range(SLICES):
        here = np.random.default_rng(seed)  # one brain, one skull, one fluid for all slices
        image, mask = ground, np.zeros(ground.shape)
        if not empty:
            depth = 3.5 * (k - (SLICES - 1) / 2)
            image, mask = placed(here, ground, mask, *brain_slice(here, atlas, Mixture(), depth))
        images.append(acquired(np.random.default_rng(seed + 1), image))
        masks.append(mask > 0.5)
    return np.stack(images, 2), np.stack(masks, 2)


def draw_stack(path: Path, image: np.ndarray, found: np.ndarray, truth: np.ndarray) -> None:
    """A PNG of six slices with both masks: found in red, true in green."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    across = int(np.argmin(image.shape))
    image, found, truth = (np.moveaxis(a, across, 0) for a in (image, found, truth))
    lit = np.flatnonzero((truth | found).any((1, 2)))
    chosen = np.linspace(lit[0], lit[-1], 6).astype(int) if len(lit) else np.arange(6)
    figure, axes = plt.subplots(1, 6, figsize=(18, 3.2))
    for axis, k in zip(axes, chosen, strict=True):
        axis.imshow(image[k], cmap="gray", vmax=np.percentile(image, 99.5))
        for mask, colour in ((truth, "lime"), (found, "red")):
            if mask[k].any():
                axis.contour(mask[k], [0.5], colors=colour, linewidths=0.8)
        axis.set_axis_off()
    figure.tight_layout(pad=0.1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=60)
    plt.close(figure)


if __name__ == "__main__":
    main()
