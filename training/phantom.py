# SPDX-License-Identifier: Apache-2.0
"""Made-up scenes: a brain of the atlas in a head with face, neck and trunk, in a womb, in a body.

Nothing but the brain has been seen anywhere: shapes are ellipsoids, capsules and thresholded random fields, drawn over
one another from the outside to the inside.
"""

from dataclasses import dataclass

import numpy as np
from canvas import (
    AIRWAY,
    BASE,
    CANAL,
    EYE,
    FACE,
    FLESH,
    FLUID,
    LENS,
    LIMB,
    LIVER,
    LUNG,
    ORGAN,
    SIDE,
    SKIN,
    SKULL,
    SPINE,
    TRUNK,
    VERTEBRA,
    VOXEL,
    Canvas,
    blank,
    closer,
    field,
)
from mother import mother, womb
from scipy import ndimage
from scipy.spatial.transform import Rotation
from sources import CSF, Brain, Inner, Scene, as_bytes, scene_of


def phantom(rng, atlas: list[Brain], empty: bool = False, decoys: float = 0.0) -> Scene:
    """A scene, made up but for the brain.

    Parameters
    ----------
    rng : numpy.random.Generator
    atlas : list of Brain
        One is taken.
    empty : bool
        Leave the fetus out, or its head.
    decoys : float
        Share of the round things in the mother that are built like a brain or a pocket of fluid with limbs, and of
        the empty scenes with a body.
    """
    canvas = blank(np.zeros(3), VOXEL)
    pose = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    place = rng.uniform(-25, 25, 3)
    brain = atlas[rng.integers(len(atlas))]
    volume = np.exp(rng.uniform(np.log(45), np.log(400)))
    scale = np.cbrt(volume / brain.millilitres) * np.exp(rng.normal(0, 0.05, 3))
    half = np.array(brain.labels.shape) / 2 * brain.voxel * scale
    if empty or rng.random() < 0.92:  # the others are born
        mother(rng, canvas, decoys)
        womb(rng, canvas, place, float(half.mean()))
    texture = np.clip(0.75 + 0.25 * _texture(rng), 0, None)
    inner = None
    if empty and decoys and rng.random() < decoys:  # a body whose head lies elsewhere
        trunk_and_limbs(rng, Head(canvas, pose, place + pose @ (0, 0, rng.uniform(1.5, 3) * half[2]), half))
    if not empty:
        fine, seen = closer(canvas, texture, place, float(half.max()) + 18)
        seed = rng.integers(2**31)
        for part in (canvas, fine):
            own, head = np.random.default_rng(seed), Head(part, pose, place, half)
            if own.random() < 0.85:
                trunk_and_limbs(own, head)
            if own.random() < 0.9:
                face(own, head)
        brain_in_skull(rng, head, brain, scale, seen)
        inner = Inner(as_bytes(seen), fine.labels, fine.start - canvas.start, np.full(3, fine.voxel))
    return scene_of(f"{brain.name} made up", as_bytes(texture), canvas.labels, (VOXEL,) * 3, False, inner)


def _texture(rng) -> np.ndarray:
    shape = (SIDE,) * 3
    grain = ndimage.uniform_filter(rng.standard_normal(shape, np.float32), 2)
    return 0.5 * grain / grain.std() + 0.5 * field(rng, shape, rng.uniform(3, 8)) + 0.3 * field(rng, shape, 16)


@dataclass(frozen=True)
class Head:
    """Where a head is.

    Attributes
    ----------
    canvas : Canvas
    pose : ndarray, (3, 3)
        Columns: right, front and top of the head.
    place : ndarray, (3,)
        Middle of the brain, mm.
    half : ndarray, (3,)
        Half the extent of the brain along its axes, mm.
    """

    canvas: Canvas
    pose: np.ndarray
    place: np.ndarray
    half: np.ndarray

    def point(self, share) -> np.ndarray:
        """A place that is given in half extents of the brain from its middle."""
        return self.place + self.pose @ (np.asarray(share, float) * self.half)

    def ellipsoid(self, rng, label: int, share, axes) -> None:
        """An ellipsoid along the axes of the head, all in half extents of the brain, none of it exact."""
        axes = np.asarray(axes) * self.half * np.exp(rng.normal(0, 0.12, 3))
        self.canvas.ellipsoid(label, self.point(np.asarray(share) + rng.normal(0, 0.04, 3)), axes, self.pose)


def trunk_and_limbs(rng, head: Head) -> None:
    """A neck, bent forwards or backwards, with a spine; a chest with lungs, a heart and a liver; limbs."""
    canvas, width = head.canvas, float(head.half[0])
    bend, lean = np.deg2rad(rng.uniform(-35, 55)), rng.normal(0, 0.15)
    down = head.pose @ np.array([lean, -0.3 + np.sin(bend), -np.cos(bend)])
    down /= np.linalg.norm(down)
    ahead = head.pose[:, 1] - down * (head.pose[:, 1] @ down)
    ahead /= np.linalg.norm(ahead)
    top = head.point((0, -0.25, -0.7))
    end = top + down * width * rng.uniform(0.9, 1.6)
    axes = np.array([1.05, 0.85, 1.7]) * width * np.exp(rng.normal(0, 0.12, 3))
    frame = np.stack([np.cross(ahead, down), ahead, -down], 1)
    chest = end + down * axes[2] * 0.8 + ahead * 0.2 * width
    canvas.ellipsoid(TRUNK, chest, axes, frame)
    for side in (-1, 1):
        canvas.ellipsoid(
            LUNG, chest - down * 0.35 * axes[2] + frame[:, 0] * side * 0.5 * axes[0], axes * (0.38, 0.6, 0.35), frame
        )
    canvas.ellipsoid(ORGAN + 1, chest - down * 0.3 * axes[2] + ahead * 0.3 * axes[1], axes * (0.3, 0.35, 0.22), frame)
    canvas.ellipsoid(LIVER, chest + down * 0.25 * axes[2], axes * (0.75, 0.7, 0.3), frame)
    canvas.capsule(FLESH, top, end, width * rng.uniform(0.35, 0.6))
    tail = end + down * axes[2] * 1.5 - ahead * 0.35 * axes[1]
    for begin, stop in ((top, end), (end, tail)):
        canvas.capsule(
            VERTEBRA,
            begin + ahead * 0.22 * width,
            stop + ahead * 0.22 * width,
            0.15 * width,
            (FLESH, rng.uniform(3, 6)),
        )
        canvas.capsule(CANAL, begin, stop, width * rng.uniform(0.1, 0.17))
        canvas.capsule(SPINE, begin, stop, width * rng.uniform(0.04, 0.1))
    for _ in range(int(rng.integers(0, 6))):
        start = chest + rng.normal(0, 1, 3) * width
        bone = rng.normal(0, 1, 3)
        stop = start + bone / np.linalg.norm(bone) * width * rng.uniform(0.7, 1.6)
        canvas.capsule(LIMB, start, stop, width * rng.uniform(0.15, 0.3))
        canvas.capsule(SKULL, start, stop, width * rng.uniform(0.04, 0.1))


def face(rng, head: Head) -> None:
    """Base of the skull, soft parts, jaw, airway and eyes, under and before the brain."""
    head.ellipsoid(rng, FACE, (0, 0.75, -0.75), (0.62, 0.42, 0.7))
    head.ellipsoid(rng, FACE, (0, 0.75, -1.25), (0.5, 0.32, 0.45))
    head.ellipsoid(rng, FLESH, (0, 0.1, -0.95), (0.7, 0.65, 0.4))
    head.ellipsoid(rng, BASE, (0, 0.15, -0.75), (0.7, 0.7, 0.35))
    for _ in range(int(rng.integers(2, 7))):  # cavities, bones, muscles
        label = rng.choice((AIRWAY, BASE, FLESH, SKULL, FLUID))
        place = np.array([rng.uniform(-0.4, 0.4), rng.uniform(0, 1.0), rng.uniform(-1.4, -0.65)])
        head.ellipsoid(rng, int(label), place, rng.uniform(0.05, 0.25, 3))
    head.ellipsoid(rng, AIRWAY, (0, 0.55, -1.05), (0.12, 0.4, 0.1))
    size, apart, front, low = rng.uniform(0.14, 0.24), rng.uniform(0.35, 0.5), rng.uniform(0.8, 1.05), -0.5
    for side in (-1, 1):
        globe = head.point((side * apart, front, low))
        canvas, radius = head.canvas, size * head.half[0]
        canvas.ellipsoid(SKIN, globe, (radius * 1.25,) * 3)
        canvas.ellipsoid(EYE, globe, (radius,) * 3)
        canvas.ellipsoid(LENS, globe + head.pose[:, 1] * radius * 0.7, (radius * 0.35,) * 3)


def brain_in_skull(rng, head: Head, brain: Brain, scale, texture: np.ndarray) -> None:
    """Skin, skull, fluid and brain; the brain's image becomes the texture there."""
    canvas = head.canvas
    box = canvas.box(head.place, float(head.half.max()) + 25)
    away = canvas.at[(slice(None), *box)] - head.place[:, None, None, None].astype(np.float32)
    shape = away.shape[1:]
    wide, narrow = 35 / canvas.voxel, 25 / canvas.voxel
    bent = away + np.stack([field(rng, shape, wide) for _ in range(3)]) * rng.uniform(0, 2.5)
    own = np.tensordot(head.pose.T.astype(np.float32), bent, 1)
    index = (
        own / (brain.voxel * scale)[:, None, None, None] + ((np.array(brain.labels.shape) - 1) / 2)[:, None, None, None]
    )
    tissue = ndimage.map_coordinates(brain.labels, index, order=0)
    outside = _away_from_closed(tissue > 0, rng.uniform(6, 14), canvas.voxel)
    high = np.clip(own[2] / head.half[2], -1, 1)  # fluid gathers over the brain, bone lies close under it
    fluid = rng.uniform(0.5, 6) * np.clip(0.6 + 0.5 * high + 0.4 * field(rng, shape, 30 / canvas.voxel), 0, 2)
    skull = fluid + rng.uniform(1.5, 4) * np.clip(1 + 0.2 * field(rng, shape, narrow), 0.5, 2)
    skin = skull + rng.uniform(1, 5) * np.clip(1 + 0.3 * field(rng, shape, narrow), 0.3, 2)
    view, seen = canvas.labels[box], texture[box]
    open_below = (high < -0.55) & (view >= TRUNK) & (view <= BASE)  # the face and the neck come up to the brain
    view[(outside < skin) & ~open_below] = SKIN
    view[(outside < skull) & ~(open_below & (outside > fluid + 1.5))] = SKULL
    view[outside < fluid] = CSF
    view[tissue > 0] = tissue[tissue > 0]
    seen[tissue > 0] = ndimage.map_coordinates(brain.image, index, order=1)[tissue > 0]
    seen[(outside < fluid) & (tissue == 0)] = 1.0


def _away_from_closed(inside: np.ndarray, width: float, voxel: float) -> np.ndarray:
    """Distance (mm) from a shape whose fissures narrower than twice a width (mm) are filled; below 0 within it."""
    near = ndimage.distance_transform_edt(~inside, voxel) < width
    within = ndimage.distance_transform_edt(near, voxel)
    outside = np.where(within > width, width - within, ndimage.distance_transform_edt(within <= width, voxel))
    return ndimage.gaussian_filter(outside - voxel / 2, 1 / voxel)  # counted in voxels, its steps would be seen
