# SPDX-License-Identifier: Apache-2.0
"""Masks as arrays on grids: resampling by affine, comparing grids, regions, bounding boxes."""

from itertools import product

import numpy as np
from scipy import ndimage

from gsbids.errors import InputError

NECK = 0.2  # of the radius of a ball of the mask's volume; what hangs on the brain by less than twice that is cut off


def same_grid(shape, affine: np.ndarray, other_shape, other_affine: np.ndarray,
              tolerance: float = 0.01) -> bool:
    """Whether two grids have the same shape and put their corners in the same places.

    Parameters
    ----------
    shape, other_shape : tuple of int
    affine, other_affine : ndarray, (4, 4)
    tolerance : float
        Largest distance between corresponding corners, mm.
    """
    if tuple(shape) != tuple(other_shape):
        return False
    corners = np.array([(*c, 1.0) for c in product(*((0.0, n - 1.0) for n in shape))])
    apart = (corners @ (np.asarray(affine) - np.asarray(other_affine)).T)[:, :3]
    return bool(np.linalg.norm(apart, axis=1).max() <= tolerance)


def resample_mask(mask: np.ndarray, mask_affine: np.ndarray, affine: np.ndarray, shape) -> np.ndarray:
    """A mask on another grid, through the two affines: linear interpolation, at least one half.

    Parameters
    ----------
    mask : ndarray, (A, B, C)
        Inside where positive.
    mask_affine : ndarray, (4, 4)
        Of ``mask``.
    affine : ndarray, (4, 4)
        Of the grid wanted.
    shape : tuple of int
        (X, Y, Z) of the grid wanted.

    Returns
    -------
    ndarray, (X, Y, Z), bool
    """
    inside = np.asarray(mask) > 0
    if same_grid(inside.shape, mask_affine, shape, affine):
        return inside
    to_mask = np.linalg.inv(mask_affine) @ affine
    # Half a voxel beyond the outermost centres still belongs to the mask: hence the padding by the edge.
    padded = np.pad(inside.astype(np.float32), 1, mode="edge")
    value = ndimage.affine_transform(padded, to_mask[:3, :3], to_mask[:3, 3] + 1.0, tuple(shape), order=1)
    reach = _inside_grid(to_mask, shape, inside.shape)
    return (value >= 0.5) & reach


def largest_region(mask: np.ndarray, corners: bool = False) -> np.ndarray:
    """The largest connected region of a mask; of equal ones the first.

    Parameters
    ----------
    mask : ndarray of bool
    corners : bool
        Voxels that share a corner belong together; else those that share a face.

    Returns
    -------
    ndarray of bool
        The mask itself where it is empty.
    """
    regions, count = ndimage.label(mask, np.ones((3,) * mask.ndim) if corners else None)
    return regions == 1 + np.argmax(np.bincount(regions.ravel())[1:]) if count else mask


def without_appendages(mask: np.ndarray, spacing: tuple[float, float, float]) -> np.ndarray:
    """A mask without what hangs on its largest part by a neck; a morphological opening in mm, its width by volume.

    Parameters
    ----------
    mask : ndarray, (X, Y, Z), bool
    spacing : tuple of float
        Voxel size, mm.

    Returns
    -------
    ndarray, (X, Y, Z), bool
        The mask itself where nothing of it is wide enough.
    """
    radius = NECK * np.cbrt(mask.sum() * np.prod(spacing) * 0.75 / np.pi)
    core = largest_region(ndimage.distance_transform_edt(mask, spacing) > radius)
    if not core.any():
        return mask
    return mask & (ndimage.distance_transform_edt(~core, spacing) <= radius)


def bounding_box(mask: np.ndarray, margin=0) -> tuple[slice, slice, slice]:
    """Smallest box around a mask, grown by a margin and cut at the borders of the grid.

    Parameters
    ----------
    mask : ndarray, (X, Y, Z), bool
    margin : int or sequence of int
        Voxels added on both sides, for all axes or per axis.

    Raises
    ------
    gsbids.errors.InputError
        The mask is empty.
    """
    if not np.any(mask):
        raise InputError("the mask is empty (all zero): give a mask with the brain in it")
    margins = np.broadcast_to(margin, mask.ndim)
    box = []
    for axis in range(mask.ndim):
        filled = np.flatnonzero(mask.any(axis=tuple(k for k in range(mask.ndim) if k != axis)))
        box.append(slice(max(int(filled[0]) - int(margins[axis]), 0),
                         min(int(filled[-1]) + 1 + int(margins[axis]), mask.shape[axis])))
    return tuple(box)


def _inside_grid(to_mask: np.ndarray, shape, mask_shape) -> np.ndarray:
    """Voxels of a grid that lie within the half-voxel border of the mask's grid."""
    inside = np.ones(shape, dtype=bool)
    i, j, k = np.ogrid[tuple(slice(n) for n in shape)]
    for axis in range(3):
        a, b, c, d = to_mask[axis]
        place = a * i + b * j + c * k + d
        inside &= (place >= -0.5) & (place <= mask_shape[axis] - 0.5)
    return inside
