# SPDX-License-Identifier: Apache-2.0
"""Whole stacks on isotropic grids, as their co-registration compares them."""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from gsbids.imaging.masks import bounding_box
from gsbids.imaging.stack import Stack
from gsbids.recon.psf import FWHM_TO_SIGMA, IN_PLANE_FACTOR

RIM = 6.0  # mm around the masks that count as 0
# Slices brighter or darker than their neighbours by more than this factor are brought to their level.
UNEVEN, NEIGHBOURS = 1.15, 7


@dataclass(frozen=True)
class Volume:
    """A masked image on an isotropic grid along the world axes, with weights 0 to 1: the mask and a rim of zeros.

    Voxel (i, j, k) lies at ``origin + step * (i, j, k)`` mm.
    """

    value: np.ndarray
    weight: np.ndarray
    origin: np.ndarray
    step: float

    @property
    def points(self) -> np.ndarray:
        """World positions of the voxels with weight, (P, 3)."""
        return np.argwhere(self.weight > 0.5) * self.step + self.origin

    @property
    def centroid(self) -> np.ndarray:
        """Middle of the voxels with weight, (3,), mm."""
        return self.points.mean(axis=0)

    def sample(self, array: np.ndarray, points: np.ndarray) -> np.ndarray:
        """Sample an array of this grid at world points (P, 3), linear, 0 outside."""
        return ndimage.map_coordinates(array, ((points - self.origin) / self.step).T, order=1)


def isotropic_volume(stack: Stack, step: float, fwhm: float | None = None) -> Volume:
    """Blur a masked stack to the same resolution along all axes, and sample it on a cubic grid.

    Parameters
    ----------
    stack : Stack
    step : float
        Grid step, mm.
    fwhm : float, optional
        Target resolution, mm; the slice thickness (at least ``step``) if left out.
    """
    spacing = stack.spacing
    box = bounding_box(stack.mask, np.ceil(8.0 / spacing).astype(int))
    affine = np.array(stack.affine, dtype=np.float64)
    affine[:3, 3] += affine[:3, :3] @ [part.start for part in box]
    mask = stack.mask[box].astype(np.float64)
    seen = (ndimage.distance_transform_edt(mask == 0, sampling=spacing) <= RIM).astype(np.float64)
    aim = max(stack.thickness, step) if fwhm is None else fwhm
    own = np.array([IN_PLANE_FACTOR * spacing[0], IN_PLANE_FACTOR * spacing[1], stack.thickness])
    sigma = np.sqrt(np.maximum(aim**2 - own**2, 0.0)) * FWHM_TO_SIGMA / spacing
    # Blur of the masked image over blur of the mask: nothing of the surroundings comes in.
    share = ndimage.gaussian_filter(mask, sigma)
    value = ndimage.gaussian_filter(mask * even_slices(stack)[box], sigma) / np.maximum(share, 1e-3)
    inside = np.argwhere(seen > 0) @ affine[:3, :3].T + affine[:3, 3]
    origin = np.floor(inside.min(axis=0) / step - 2) * step
    shape = tuple(np.ceil((inside.max(axis=0) - origin) / step).astype(int) + 3)
    back = np.linalg.inv(affine[:3, :3])
    matrix, offset = back * step, back @ (origin - affine[:3, 3])
    value = ndimage.affine_transform(value, matrix, offset, shape, order=1, mode="nearest")
    brain, weight = (ndimage.affine_transform(a, matrix, offset, shape, order=1) for a in (mask, seen))
    usual = np.median(value[brain > 0.5]) if (brain > 0.5).any() else 1.0
    return Volume(value * brain / max(usual, 1e-6), weight, origin, step)


def even_slices(stack: Stack) -> np.ndarray:
    """Scale dark and bright slices (signal loss, spin history) to the intensity level of their neighbours.

    The level of a slice is the median in its mask, that of its neighbours the running median of those.
    """
    level = np.array(
        [
            np.median(stack.image[..., k][m]) if (m := stack.mask[..., k]).any() else np.nan
            for k in range(stack.mask.shape[2])
        ]
    )
    known = np.flatnonzero(level > 0)
    factor = np.ones(len(level))
    if len(known):
        smooth = ndimage.median_filter(level[known], min(NEIGHBOURS, len(known)), mode="nearest")
        ratio = smooth / level[known]
        factor[known] = np.where(np.abs(np.log(ratio)) > np.log(UNEVEN), ratio, 1.0)
    return stack.image * factor
