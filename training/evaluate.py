#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Score a mask network on what its training has left out.

    python training/evaluate.py training/config.toml WEIGHTS.safetensors --json OUT.json --figures DIR

Real stacks by their manual masks; brains of atlas ages that were left out, in made-up surroundings; and where nothing
should be found: such surroundings without a brain, and the parts of real stacks that hold none. With --validate nothing
of that, but the same of the runs and the ages of the training, to choose by.
"""

import argparse
import json
import platform
import time
import tomllib
from dataclasses import dataclass
from datetime import date
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from generator import PIXEL, Mixture, Plane, acquired, cut, palette
from phantom import phantom
from scipy import ndimage
from scipy.spatial.transform import Rotation
from sources import brains, stack_files

from gsbids.errors import InputError
from gsbids.imaging.nifti import load_image
from gsbids.masking.found import DOUBTFUL
from gsbids.masking.networks import load_network, segment_stack

SLICES = 24
SCORED, VALIDATION = 10_000, 770_000  # seeds
BOXES = 8  # narrow fields of view without a brain in a real stack


@dataclass(frozen=True)
class Kind:
    """A kind of made-up stacks.

    Attributes
    ----------
    count : int
        How many there are.
    odd : float
        Chance that any tissue has any brightness, instead of one near to that of T2-weighted images.
    empty : bool
        Whether there is no brain.
    seen : str
        "all"; "box", what a field of view close around the brain shows, or one somewhere where there is none; "head",
        what lies within 10 mm of the brain.
    """

    count: int
    odd: float = 0.0
    empty: bool = False
    seen: str = "all"


SIMULATED = {
    "simulated, T2-weighted": Kind(40),
    "simulated, any contrast": Kind(20, odd=1.0),
    "simulated, narrow field of view": Kind(12, seen="box"),
    "simulated, head alone": Kind(12, seen="head"),
    "no brain, simulated": Kind(12, empty=True),
    "no brain, simulated, narrow field of view": Kind(24, empty=True, seen="box"),
}


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
    parser.add_argument("--validate", action="store_true", help="other stacks, to choose by")
    parser.add_argument("--all-runs", action="store_true", help="the runs of the training as well")
    parser.add_argument(
        "--labels",
        type=Path,
        help="folder of intracranial masks (labels.py), in the place of the manual masks of the real stacks",
    )
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    try:
        score(args)
    except InputError as error:
        parser.error(str(error))


def score(args: argparse.Namespace) -> None:
    """Segment all stacks, and say and keep how well."""
    told = tomllib.loads(args.config.read_text())
    network = load_network(args.weights)
    part, seed = ("train", VALIDATION) if args.validate else ("evaluate", SCORED)
    also = told["train"]["runs"] if args.all_runs and not args.validate else []
    kind = "trained on" if args.validate else "left out"
    stacks = chain(
        real(args.data, told[part]["runs"], kind, True, args.labels),
        real(args.data, also, "trained on", False, args.labels),
        made_up(args.data, told[part]["weeks"], seed),
    )
    rows = []
    for name, kind, image, affine, truth in stacks:
        start = time.process_time()
        found = segment_stack(image, affine, network)
        rows.append(
            {
                "stack": name,
                "kind": kind,
                "dice": dice(found.mask, truth),
                "volume_over_true": float(found.mask.sum() / truth.sum()) if truth.any() else None,
                "found": centre_inside(found.mask, truth),
                "empty": not found.mask.any(),
                "confidence": found.confidence,
                "cpu_s": time.process_time() - start,
            }
        )
        print(rows[-1], flush=True)
        if args.figures:
            draw_stack(args.figures / f"{name}.png", image, found.mask, truth)
    result = {
        "weights": args.weights.name,
        "date": date.today().isoformat(),
        "machine": platform.platform(),
        "threads": args.threads,
        "config": told,
        "rows": rows,
        "summary": summary(rows),
    }
    print(json.dumps(result["summary"], indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


def real(data: Path, runs, kind: str, without: bool, labels: Path | None):
    """Name, kind, image, affine and true mask of real stacks and, if wanted, of parts of them without a brain."""
    for number, image, mask in zip(runs, *stack_files(data / "fetal-stacks-mialsrtk", runs, labels), strict=True):
        (image, affine), (truth, _) = load_image(image), load_image(mask)
        truth = truth > 0
        yield f"run-{number}", kind, image, affine, truth
        if without:
            yield from brainless(f"run-{number}", image, affine, truth)
            yield from boxes(np.random.default_rng((BOXES, number)), f"run-{number}", image, affine, truth)


def made_up(data: Path, weeks, seed: int):
    """As :func:`real`, stacks of brains of the atlas of some ages in made-up surroundings."""
    atlas = brains(data / "fetal-atlas-spinabifida", weeks)
    for name, kind in SIMULATED.items():
        for number in range(kind.count):
            image, truth, gap = simulated(np.random.default_rng((seed, number)), atlas, kind)
            label = f"{name.replace(', ', '-').replace(' ', '-')}-{number}"
            yield label, name, image, np.diag([PIXEL, PIXEL, gap, 1]), truth


def brainless(name: str, image, affine, truth):
    """What lies beside the brain in a real stack, on the sides where more than 80 mm are left."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    for axis in np.flatnonzero(spacing < spacing.max()):
        lit = np.flatnonzero(truth.any(tuple(a for a in range(3) if a != axis)))
        margin = int(np.ceil(8 / spacing[axis]))
        for side, part in (("low", slice(0, max(0, lit[0] - margin))), ("high", slice(lit[-1] + margin, None))):
            box = tuple(part if a == axis else slice(None) for a in range(3))
            if image[box].shape[axis] * spacing[axis] > 80:
                yield f"{name}-{'xyz'[axis]}-{side}", "no brain, real", image[box], affine, truth[box]


def boxes(rng, name: str, image, affine, truth):
    """Narrow fields of view, 60 to 170 mm wide, anywhere beside the brain where there is more than air."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    plane = np.flatnonzero(spacing < spacing.max())
    lit, found = image > 0.05 * np.percentile(image, 99), 0
    for _ in range(400):
        box = [slice(None)] * 3
        for axis in plane:
            size = min(int(rng.uniform(60, 170) / spacing[axis]), image.shape[axis])
            start = rng.integers(0, image.shape[axis] - size + 1)
            box[axis] = slice(start, start + size)
        box = tuple(box)
        if found < BOXES and not truth[box].any() and lit[box].mean() >= 0.5:
            found += 1
            yield f"{name}-box-{found}", "no brain, real, narrow field of view", image[box], affine, truth[box]


def summary(rows: list[dict]) -> dict:
    """Medians by kind."""
    out = {}
    for kind in dict.fromkeys(row["kind"] for row in rows):
        those = [row for row in rows if row["kind"] == kind]
        sure = [row for row in those if row["confidence"] >= DOUBTFUL]
        out[kind] = {"stacks": len(those), "sure": len(sure)}
        if kind.startswith("no brain"):
            out[kind]["empty"] = float(np.mean([r["empty"] for r in those]))
        else:
            out[kind] |= {
                "dice_median": float(np.median([r["dice"] for r in those])),
                "dice_least": min(r["dice"] for r in those),
                "volume_median": float(np.median([r["volume_over_true"] for r in those])),
                "dice_least_sure": min((r["dice"] for r in sure), default=None),
                "found": float(np.mean([r["found"] for r in those])),
            }
    return out


def simulated(rng, atlas, kind: Kind) -> tuple[np.ndarray, np.ndarray, float]:
    """A stack of a brain of an atlas in made-up surroundings, its mask, and the distance of its slices, mm."""
    scene = phantom(rng, atlas, kind.empty)
    frame = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    gap = float(max(rng.uniform(2.5, 5), 2.5 * scene.radius / SLICES))
    middle = scene.middle * np.array(scene.spacing) + frame @ rng.uniform(-20, 20, 3)
    plane = Plane(frame, middle, gap, gap, 1.0)
    images, shares = cut(rng, scene, palette(rng, Mixture(odd=kind.odd)), plane, SLICES)
    image, truth = np.moveaxis(acquired(rng, images), 0, 2), np.moveaxis(shares > 0.5, 0, 2)
    if kind.seen == "head":
        image = image * (ndimage.distance_transform_edt(~truth, (PIXEL, PIXEL, gap)) <= 10)
    if kind.seen == "box":
        if kind.empty:
            box = somewhere(rng, image)
        else:
            box = tuple(
                slice(max(0, one.start - int(rng.integers(3, 12))), one.stop + int(rng.integers(3, 12)))
                for one in ndimage.find_objects(truth.astype(np.uint8))[0][:2]
            )
        image, truth = image[box], truth[box]
    return image, truth, gap


def somewhere(rng, image: np.ndarray) -> tuple[slice, slice]:
    """A narrow field of view, 60 to 160 mm wide, that shows more than air."""
    lit = image.max(2) > 0.1 * image.max()
    for _ in range(100):
        size = rng.integers(60, 160, 2) // int(PIXEL)
        corner = rng.integers(0, np.array(lit.shape) - size)
        box = tuple(slice(a, a + n) for a, n in zip(corner, size, strict=True))
        if lit[box].mean() > 0.7:
            break
    return box


def draw_stack(path: Path, image: np.ndarray, found: np.ndarray, truth: np.ndarray, across: int | None = None) -> None:
    """A PNG of six slices with both masks, found in red, true in green; across the axis of fewest voxels, or one."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    across = int(np.argmin(image.shape)) if across is None else across
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
