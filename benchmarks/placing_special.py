# SPDX-License-Identifier: Apache-2.0
"""Inputs that cannot come right as they are, or only if something is noticed: each ends right or says why not."""

from dataclasses import replace

import numpy as np
from placing_scenes import (
    MARGIN,
    ORIENTATIONS,
    WEEKS,
    MovingHead,
    Scene,
    Volume,
    acquired,
    atlas,
    lies,
    made_head,
    made_mother,
)
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.imaging.masks import resample_mask
from gsbids.simulate.acquire import Acquisition

KINDS = ("parallel", "half", "twins", "stranger-of-3", "stranger-of-2")
TURN = 40  # degrees between stacks
APART = 78.0  # mm between the brains of twins
GRID = 1.6, 240.0  # mm: voxels and side of a mother with a second fetus


def special(kind: str, seed: int) -> Scene:
    """A scene of a kind.

    ``parallel``: two stacks of one orientation. ``half``: two stacks, the second of which ends in the middle of the
    head. ``twins``: three stacks with a second head beside the first, which the mask of the second stack holds as
    well. ``stranger-of-3``, ``stranger-of-2``: the last of three or two stacks shows another subject.
    """
    rng = np.random.default_rng((24, KINDS.index(kind), seed))
    brains = atlas()
    head = made_head(rng, brains[seed % len(WEEKS)])
    behind, twin = made_mother(rng, head), None
    if kind == "twins":
        behind, twin = with_twin(rng, behind, made_head(rng, brains[seed % len(WEEKS)]))
    count = 3 if kind in ("twins", "stranger-of-3") else 2
    how = Acquisition(in_plane=1.15, thickness=3.0, spacing=3.3, noise=0.02)
    extent = np.ptp(np.argwhere(head.brain), axis=0).max() + 2 * MARGIN
    orientations = ["axial"] * 2 if kind == "parallel" else list(rng.permutation(ORIENTATIONS)[:count])
    whole = lies(rng, orientations, TURN) if kind != "parallel" else [Rotation.identity()] * 2
    stacks, faces, transforms = [], [], []
    for n, (orientation, lie) in enumerate(zip(orientations, whole, strict=True)):
        stranger = kind.startswith("stranger") and n == count - 1
        seen = made_head(rng, brains[(seed + 1) % len(WEEKS)]) if stranger else head
        stack, side, moved = acquired(rng, seen, behind, how, (orientation, extent), (lie, np.zeros(3)), f"run-{n + 1}")
        stacks.append(stack)
        faces.append(side)
        transforms.append(moved if seen is head else np.full_like(moved, np.nan))
    given = None
    if kind == "half":
        stacks[1], faces[1], transforms[1] = ended(stacks[1], faces[1], transforms[1])
    if twin:
        brain, affine = twin
        given = [
            stack.mask | (resample_mask(brain, affine, stack.affine, stack.mask.shape) if n == 1 else False)
            for n, stack in enumerate(stacks)
        ]
    return Scene(
        f"{kind}_seed-{seed}", TURN, 3.0, Volume(head.image, head.affine), head.brain, stacks, faces, transforms, given
    )


def ended(stack, side: np.ndarray, moved: np.ndarray):
    """A stack that ends a little behind the middle of the head."""
    last = int(np.flatnonzero(stack.mask.any((0, 1))).mean()) + 2
    return (replace(stack, image=stack.image[..., :last], mask=stack.mask[..., :last]), side[..., :last], moved[:last])


def with_twin(rng, behind: Volume, twin: MovingHead) -> tuple[Volume, tuple[np.ndarray, np.ndarray]]:
    """A mother with a second head beside the place of the first; the brain of that one and its affine."""
    place = np.eye(4)
    place[:3, :3] = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    way = rng.standard_normal(3)
    place[:3, 3] = APART * way / np.linalg.norm(way)
    voxel, side = GRID
    affine = np.diag([voxel] * 3 + [1.0])
    affine[:3, 3] = -side / 2
    shape = (int(side / voxel),) * 3

    def seen(array, own, mode="constant"):
        index = np.linalg.inv(own) @ affine
        return ndimage.affine_transform(array, index[:3, :3], index[:3, 3], shape, order=1, mode=mode)

    lies_at = place @ twin.affine
    image = seen(twin.image, lies_at) + (1 - seen(twin.cover, lies_at)) * seen(behind.image, behind.affine, "mirror")
    return Volume(image, affine), (twin.brain, lies_at)
