# SPDX-License-Identifier: Apache-2.0
"""Pairs of orthogonal stacks of the real subject, as scanned and turned; where their slices are by all six stacks."""

import json
from dataclasses import replace
from functools import cache
from itertools import combinations

import numpy as np
from common import shared_folder
from placing_scenes import Scene, Volume
from scipy.spatial.transform import Rotation
from svr_real import mask_file, stack_file

from gsbids.imaging.nifti import load_image
from gsbids.imaging.stack import Stack

RUNS = (1, 2, 3, 4, 5, 6)
VOXEL = 1.0  # mm of the volume of all six
KEPT = "placing-six-stacks.npz"
MOST_SHIFT = 40.0  # mm


@cache
def runs() -> tuple[Stack, ...]:
    """The six stacks with their manual masks."""
    data = shared_folder() / "data" / "fetal-stacks-mialsrtk"
    out = []
    for run in RUNS:
        image, affine = load_image(stack_file(data, run))
        thickness = json.loads(stack_file(data, run).with_suffix("").with_suffix(".json").read_text())["SliceThickness"]
        out.append(
            Stack(
                f"run-{run}", image, load_image(mask_file(data, run))[0] > 0, np.array(affine, float), float(thickness)
            )
        )
    return tuple(out)


def six():
    """The fit of all six stacks with manual masks: made once, in a minute, and kept beside the scenes."""
    from pathlib import Path

    from gsbids.recon.fitting.options import SvrOptions
    from gsbids.recon.registration.register import register_stacks
    from gsbids.recon.svr.fit import fit_svr
    from gsbids.recon.svr.result import SvrResult

    path = Path("work/benchmarks") / KEPT
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        stacks = list(runs())
        fit_svr(stacks, register_stacks(stacks).transforms, SvrOptions()).save(path)
    return SvrResult.load(path)


def pair(number: int) -> Scene:
    """Pair 0 to 11: two stacks as scanned; 12 to 23: the same, the second turned by 20 to 180 degrees and shifted."""
    from gsbids.recon.volume.coverage import vote_mask
    from gsbids.recon.volume.sample import output_grid, sample_result

    stacks, known = list(runs()), six()
    normal = [s.affine[:3, 2] / np.linalg.norm(s.affine[:3, 2]) for s in stacks]
    pairs = [(a, b) for a, b in combinations(range(len(stacks)), 2) if abs(normal[a] @ normal[b]) < 0.5]
    chosen = pairs[number % len(pairs)]
    affine, shape = output_grid(stacks, known, VOXEL)
    image = sample_result(known, affine, shape)
    brain, _ = vote_mask(stacks, known, affine, shape)
    moves = known.motion.as_affines(known.nominal)
    transforms = []
    for n in chosen:
        every = np.full((stacks[n].image.shape[2], 4, 4), np.nan)
        mine = known.stack_index == n
        every[known.slice_index[mine]] = moves[mine]
        transforms.append(every)
    picked, turn, shift = [stacks[n] for n in chosen], 0, 0.0
    if number >= len(pairs):
        rng = np.random.default_rng((23, number))
        turn = int(20 + 160 * (number - len(pairs)) / (len(pairs) - 1))
        axis, way = rng.standard_normal((2, 3))
        shift = float(rng.uniform(0, MOST_SHIFT))
        moved = np.eye(4)
        moved[:3, :3] = Rotation.from_rotvec(np.radians(turn) * axis / np.linalg.norm(axis)).as_matrix()
        middle = picked[1].affine[:3, :3] @ np.argwhere(picked[1].mask).mean(0) + picked[1].affine[:3, 3]
        moved[:3, 3] = middle - moved[:3, :3] @ middle + shift * way / np.linalg.norm(way)
        picked[1] = replace(picked[1], affine=moved @ picked[1].affine)
        transforms[1] = transforms[1] @ np.linalg.inv(moved)
    name = f"{picked[0].name}_{picked[1].name}_{turn}deg_{shift:.0f}mm"
    return Scene(
        name,
        turn,
        picked[0].thickness,
        Volume(image, affine),
        brain,
        picked,
        [np.zeros_like(s.mask) for s in picked],
        transforms,
    )
