# SPDX-License-Identifier: Apache-2.0
"""What lies around a made-up fetus: a body with organs, and in it a womb."""

import numpy as np
from canvas import (
    BODY,
    CANAL,
    CORD,
    FAT,
    FLESH,
    FLUID,
    LIMB,
    ORGAN,
    ORGANS,
    PLACENTA,
    SKULL,
    SPINE,
    VERTEBRA,
    WALL,
    Canvas,
    field,
)
from scipy.spatial.transform import Rotation


def mother(rng, canvas: Canvas, decoys: float) -> None:
    """A body with fat, and in it organs: regions of random fields, round things, vessels, a spine."""
    shape = canvas.labels.shape
    bumps = 0.08 * field(rng, shape, 20)
    axes = rng.uniform((110, 85, 150), (200, 150, 400))
    turn = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    middle = rng.uniform(-50, 50, 3)
    canvas.ellipsoid(FAT, middle, axes, turn, bumps)
    canvas.ellipsoid(BODY, middle, axes - rng.uniform(6, 40), turn, bumps)
    inside = canvas.labels == BODY
    for _ in range(int(rng.integers(2, 6))):
        region = _folds(rng, shape, (4, 25), (-0.3, 1.3))
        canvas.labels[region & inside] = ORGAN + rng.integers(ORGANS)
    for _ in range(int(rng.integers(2, 12))):  # round things that are no brains, some with a rim or a core
        centre, size = rng.uniform(-130, 130, 3), rng.uniform(6, 55) * np.exp(rng.normal(0, 0.3, 3))
        own = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
        if decoys and rng.random() < decoys:
            (decoy, pocket)[rng.integers(2)](rng, canvas, centre, size, own)
            continue
        for share in (1.0, rng.uniform(0.75, 0.95), rng.uniform(0.2, 0.6))[: int(rng.integers(1, 4))]:
            canvas.ellipsoid(ORGAN + rng.integers(ORGANS), centre, size * share, own)
    for _ in range(int(rng.integers(0, 8))):
        ends = rng.uniform(-160, 160, (2, 3))
        canvas.capsule(ORGAN + rng.integers(ORGANS), *ends, rng.uniform(2, 9))
    if rng.random() < 0.6:
        column = middle + turn @ np.array([rng.normal(0, 8), -0.55 * axes[1], 0])
        along = turn @ np.array([0, 0, 150])
        canvas.capsule(VERTEBRA, column - along, column + along, rng.uniform(15, 24), (ORGAN, rng.uniform(8, 25)))
        behind = column - turn @ np.array([0, rng.uniform(22, 30), 0])
        canvas.capsule(CANAL, behind - along, behind + along, rng.uniform(6, 10))
        canvas.capsule(SPINE, behind - along, behind + along, rng.uniform(2, 5))


def _folds(rng, shape, widths: tuple[float, float], levels: tuple[float, float]) -> np.ndarray:
    """Where a random field is above a level; its width (voxels) and the level lie between two each."""
    return field(rng, shape, np.exp(rng.uniform(*np.log(widths)))) > rng.uniform(*levels)


def decoy(rng, canvas: Canvas, centre, size, turn) -> None:
    """Something round with layers, a rim or a wall around it, and folds or pyramids in it, as kidneys or gut have."""
    layers = np.sort(np.append(1, rng.uniform(0.6, 0.97, rng.integers(0, 3))))[::-1]
    for share in layers:
        canvas.ellipsoid(ORGAN + rng.integers(ORGANS), centre, size * share, turn)
    box = canvas.box(np.asarray(centre), float(size.max()) * 1.2)
    shape = canvas.labels[box].shape
    if min(shape) < 4:
        return
    within = Canvas(np.zeros(shape, np.uint8), canvas.at[(slice(None), *box)], canvas.voxel)
    within.ellipsoid(1, centre, size * layers[-1] * rng.uniform(0.7, 1), turn)
    for _ in range(int(rng.integers(1, 3))):
        folds = _folds(rng, shape, (1.5, 6), (-0.3, 1))
        canvas.labels[box][folds & (within.labels > 0)] = ORGAN + rng.integers(ORGANS)


def pocket(rng, canvas: Canvas, centre, size, turn) -> None:
    """Fluid behind a wall, with limbs, cords and dark swirls in it, as a part of a womb without the head shows it."""
    size = np.maximum(size, 15)
    canvas.ellipsoid(WALL, centre, size + rng.uniform(1, 6), turn)
    canvas.ellipsoid(FLUID, centre, size, turn)
    inside, before = canvas.labels == FLUID, canvas.labels.copy()
    if rng.random() < 0.4:
        box = canvas.box(np.asarray(centre), float(size.max()) * 1.2)
        shape = canvas.labels[box].shape
        if min(shape) >= 4:
            swirls = _folds(rng, shape, (1.5, 5), (0.3, 1.5))
            canvas.labels[box][swirls] = rng.choice((CORD, FLESH))
    for _ in range(int(rng.integers(0, 6))):
        start = centre + turn @ (rng.uniform(-1, 1, 3) * size)
        along = rng.standard_normal(3)
        stop = start + along / np.linalg.norm(along) * size.mean() * rng.uniform(0.4, 1.6)
        width = size.mean() * rng.uniform(0.05, 0.25)
        canvas.capsule(int(rng.choice((LIMB, CORD, FLESH))), start, stop, width)
        if rng.random() < 0.6:
            canvas.capsule(SKULL, start, stop, 0.35 * width)
    canvas.labels[~inside] = before[~inside]


def womb(rng, canvas: Canvas, place, half: float) -> None:
    """A wall, a placenta, fluid, and cords in it; wide, or close around the head."""
    shape = canvas.labels.shape
    axes = half * rng.uniform(1.05, 1.9, 3) + rng.uniform(0, 15)
    turn = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    middle = place + rng.normal(0, 0.35, 3) * (axes - half)
    bumps = 0.12 * field(rng, shape, 14)
    canvas.ellipsoid(WALL, middle, axes + rng.uniform(2, 10), turn, bumps)
    canvas.ellipsoid(FLUID, middle, axes, turn, bumps)
    inside = canvas.labels == FLUID
    if rng.random() < 0.7:
        side = rng.standard_normal(3)
        side /= np.linalg.norm(side)
        along = np.tensordot(side.astype(np.float32), canvas.at - middle.astype(np.float32)[:, None, None, None], 1)
        canvas.labels[inside & (along + 8 * field(rng, shape, 12) > rng.uniform(0.2, 0.8) * axes.mean())] = PLACENTA
    for _ in range(int(rng.integers(0, 5))):
        point = middle + rng.uniform(-1, 1, 3) * axes
        for _ in range(4):
            nearby = point + rng.normal(0, 15, 3)
            canvas.capsule(CORD, point, nearby, rng.uniform(2, 5))
            point = nearby
