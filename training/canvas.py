# SPDX-License-Identifier: Apache-2.0
"""Labels that are drawn on: what there is but brain, ellipsoids, capsules, and smooth random fields."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage

VOXEL = 2.5  # mm
FINE = 1.25  # mm, of the voxels around a head; larger where it is
SIDE = 128  # voxels along an edge of either
# what is no brain
(
    AIR,
    BODY,
    FAT,
    WALL,
    PLACENTA,
    FLUID,
    LIMB,
    CORD,
    TRUNK,
    LUNG,
    LIVER,
    FLESH,
    CANAL,
    SPINE,
    VERTEBRA,
    FACE,
    AIRWAY,
    EYE,
    LENS,
    BASE,
    SKIN,
    SKULL,
    ORGAN,
) = range(10, 33)
ORGANS = 8  # labels from ORGAN on
LABELS = ORGAN + ORGANS


@dataclass(frozen=True)
class Canvas:
    """Labels that are drawn on, and where their voxels are.

    Attributes
    ----------
    labels : ndarray, (SIDE, SIDE, SIDE), uint8
    at : ndarray, (3, SIDE, SIDE, SIDE), float32
        mm from the middle of the scene.
    voxel : float
        Side of the voxels, mm.
    """

    labels: np.ndarray
    at: np.ndarray
    voxel: float

    @property
    def start(self) -> np.ndarray:
        """Where the first voxel is, (3,), mm."""
        return self.at[:, 0, 0, 0].astype(float)

    def ellipsoid(self, label: int, middle, axes, turn=None, bumps=0.0) -> None:
        """Fill an ellipsoid; ``turn`` (3, 3) has its axes as columns, ``bumps`` is added to its equation."""
        middle, axes = np.asarray(middle, float), np.asarray(axes, float)
        box = self.box(middle, axes.max() * 1.15)
        away = self.at[(slice(None), *box)] - middle[:, None, None, None].astype(np.float32)
        if turn is not None:
            away = np.tensordot(np.asarray(turn, np.float32).T, away, 1)
        value = ((away / axes[:, None, None, None].astype(np.float32)) ** 2).sum(0)
        here = value + (bumps[box] if np.ndim(bumps) else bumps) < 1
        self.labels[box][here] = label

    def capsule(self, label: int, start, end, radius: float, bands: tuple[int, float] | None = None) -> None:
        """Fill a capsule; with bands (label, mm) every second piece of that length gets the other label."""
        start, end = np.asarray(start, float), np.asarray(end, float)
        length = max(np.linalg.norm(end - start), 1e-3)
        direction = ((end - start) / length).astype(np.float32)
        box = self.box((start + end) / 2, length / 2 + radius)
        away = self.at[(slice(None), *box)] - start[:, None, None, None].astype(np.float32)
        along = np.tensordot(direction, away, 1)
        beside = away - direction[:, None, None, None] * np.clip(along, 0, length)
        here = (beside**2).sum(0) < radius**2
        view = self.labels[box]
        view[here] = label
        if bands:
            view[here & (np.floor(along / bands[1]) % 2 == 0)] = bands[0]

    def box(self, middle, reach: float) -> tuple[slice, slice, slice]:
        """Voxels within a distance (mm) of a place along every axis, as far as they are there."""
        low = np.floor((middle - reach - self.start) / self.voxel).astype(int)
        high = np.ceil((middle + reach - self.start) / self.voxel).astype(int) + 1
        return tuple(slice(max(0, a), max(0, b)) for a, b in zip(low, high, strict=True))


def blank(middle, voxel: float) -> Canvas:
    """A canvas of air around a place."""
    flat = ((np.arange(SIDE) - (SIDE - 1) / 2) * voxel).astype(np.float32)
    at = np.stack(np.meshgrid(*(flat + np.float32(m) for m in middle), indexing="ij"))
    return Canvas(np.full((SIDE,) * 3, AIR, np.uint8), at, voxel)


def closer(canvas: Canvas, texture: np.ndarray, middle, reach: float) -> tuple[Canvas, np.ndarray]:
    """What is on a canvas, and its texture, in finer voxels around a place, as far as a distance (mm)."""
    fine = blank(middle, float(np.clip(2 * reach / (SIDE - 1), FINE, VOXEL)))
    ratio, shift = fine.voxel / canvas.voxel, (fine.start - canvas.start) / canvas.voxel
    index = np.rint(np.arange(SIDE) * ratio + shift[:, None]).astype(int)
    fine.labels[...] = canvas.labels[np.ix_(*np.clip(index, 0, SIDE - 1))]
    seen = ndimage.affine_transform(texture, np.diag(np.full(3, ratio)), shift, order=1, mode="nearest")
    return fine, seen


def field(rng, shape, width: float) -> np.ndarray:
    """A smooth random field of standard deviation about 1 and of a correlation length in voxels, float32."""
    coarse = rng.standard_normal([max(3, int(np.ceil(n / width)) + 2) for n in shape]).astype(np.float32)
    fine = torch.from_numpy(ndimage.zoom(coarse, 2, order=3))[None, None]
    mode = "trilinear" if len(shape) == 3 else "bilinear"
    whole = torch.nn.functional.interpolate(fine, size=tuple(shape), mode=mode, align_corners=True)[0, 0].numpy()
    return whole / max(float(whole.std()), 1e-6)
