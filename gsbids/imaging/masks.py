# SPDX-License-Identifier: Apache-2.0
"""Masks as arrays on grids: resampling by affine, comparing grids, regions, bounding boxes."""

import logging
from collections.abc import Sequence
from itertools import product

import numpy as np
from scipy import ndimage

from gsbids.errors import InputError
from gsbids.imaging.intensity import on_faces

LOGGER = logging.getLogger("gsbids.imaging")

LITTLE = 0.05  # share of two grids that lies in the other, below which they hardly touch
SOFT = 0.05  # largest value of a mask of shares, up to which it shows no brain
LEVELS = 16  # whole numbers up to which a mask holds labels, however they lie
BORDER = 0.5  # share of the voxels on the faces of a grid from which on a mask holds what surrounds a brain
NECK = 0.2  # of the radius of a ball of the mask's volume; what hangs on the brain by less than twice that is cut off


def same_grid(
    shape: Sequence[int],
    affine: np.ndarray,
    other_shape: Sequence[int],
    other_affine: np.ndarray,
    tolerance: float = 0.01,
) -> bool:
    """Return whether two grids have the same shape and put their corners in the same places.

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


def dice(one: np.ndarray, other: np.ndarray) -> float:
    """Return the Dice coefficient of two masks of one grid; 1 where both are empty.

    Examples
    --------
    >>> dice(np.array([True, True, False]), np.array([False, True, True]))
    0.5
    """
    total = int(one.sum()) + int(other.sum())
    return 2 * int((one & other).sum()) / total if total else 1.0


def inside_of(values: np.ndarray) -> tuple[np.ndarray, str]:
    """Return the voxels inside a mask, and a sentence on how a soft mask was thresholded (empty for labels).

    Labels are inside where they are above 0; shares (probabilities, averages, percent) where they are at least half of
    the largest one. Whole numbers are labels where they are few, or come in regions: shares change from voxel to voxel.

    Parameters
    ----------
    values : ndarray, (X, Y, Z)

    Raises
    ------
    gsbids.errors.InputError
        No voxel is inside: what was found, without the file.

    Examples
    --------
    >>> inside_of(np.array([0, 0.2, 0.4]))
    (array([False,  True,  True]), 'the mask is soft (largest value 0.4); brain is where it is at least half of that')
    """
    top = float(np.max(values)) + 0.0  # no -0
    if top <= 0:
        raise InputError(
            "the mask is empty (all voxels are 0)"
            if not np.any(values)
            else f"the mask is empty (no voxel is above 0, the largest is {top:.3g})"
        )
    present = np.unique(values[values > 0])
    whole = np.array_equal(present, np.rint(present))
    if whole and (len(present) <= LEVELS or _in_regions(values, top)):
        return values > 0, ""
    if not whole and top <= SOFT:
        raise InputError(
            f"the mask has no value above {top:.2g}, which is too little for a share of brain (more than {SOFT:g})"
        )
    return values >= top / 2, f"the mask is soft (largest value {top:.3g}); brain is where it is at least half of that"


def _in_regions(values: np.ndarray, top: float) -> bool:
    """Return whether most neighbours within a mask have one value; pairs of the largest value do not count."""
    same = pairs = 0
    for axis in range(values.ndim):
        along = np.moveaxis(values, axis, 0)
        low, high = np.minimum(along[:-1], along[1:]), np.maximum(along[:-1], along[1:])
        inside = (low > 0) & (low < top)
        same, pairs = same + int((inside & (low == high)).sum()), pairs + int(inside.sum())
    return same > pairs / 2


def oddness(inside: np.ndarray) -> str:
    """Describe what is odd about a mask on the grid of its image, and what to do; empty where it may be a brain.

    Parameters
    ----------
    inside : ndarray, (X, Y, Z), bool
    """
    if inside.all():
        return (
            "the mask holds the whole image and shows no brain; it is taken as it is: give a mask of the brain, or "
            "another --mask-mode"
        )
    share = on_faces(inside).mean()
    if share > BORDER:
        return (
            f"the mask holds {share:.0%} of the borders of the image, so that it looks inverted; it is taken as it "
            "is: exchange 0 and 1 in it if it is"
        )
    return ""


def check_overlap(
    grid: tuple[Sequence[int], np.ndarray], other: tuple[Sequence[int], np.ndarray], names: tuple[str, str]
) -> None:
    """Refuse two grids that do not overlap; log a warning where they hardly do.

    Parameters
    ----------
    grid, other : tuple of (shape, affine)
    names : tuple of str
        Names of both, for messages.

    Raises
    ------
    gsbids.errors.InputError
        It says where both lie.
    """
    shares = [
        _inside_grid(np.linalg.inv(b[1]) @ step, count, b[0]).mean()
        for a, b in ((grid, other), (other, grid))
        for count, step in (_thinned(*a),)
    ]
    where = f"{names[0]} lies at {_extent(*grid)}, and {names[1]} at {_extent(*other)}"
    if not any(shares):
        raise InputError(
            f"{where}: they have no place in common; give a grid in the space of the image, or correct "
            "the header that is wrong"
        )
    if max(shares) < LITTLE:
        LOGGER.warning("%s: they hardly touch, and the rest is background; look whether both headers are right", where)


def _thinned(shape: Sequence[int], affine: np.ndarray) -> tuple[tuple[int, ...], np.ndarray]:
    """Return shape and affine of a grid of at most 100 voxels along a side, from border to border of another."""
    count = np.minimum(np.array(shape), 100)
    step = (np.array(shape) - 1) / np.maximum(count - 1, 1)
    return tuple(int(n) for n in count), np.asarray(affine, float) @ np.diag([*step, 1.0])


def _extent(shape: Sequence[int], affine: np.ndarray) -> str:
    """Describe the extent of a grid along x, y and z."""
    corners = np.rint([affine[:3, :3] @ c + affine[:3, 3] for c in product(*((-0.5, n - 0.5) for n in shape))]) + 0.0
    return (
        ", ".join(
            f"{axis} {low:.0f} to {high:.0f}"
            for axis, low, high in zip("xyz", corners.min(0), corners.max(0), strict=True)
        )
        + " mm"
    )


def resample_mask(mask: np.ndarray, mask_affine: np.ndarray, affine: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Resample a mask to another grid, through the two affines: linear interpolation, at least one half.

    Parameters
    ----------
    mask : ndarray, (A, B, C)
        Inside where positive.
    mask_affine : ndarray, (4, 4)
        Affine of ``mask``.
    affine : ndarray, (4, 4)
        Affine of the target grid.
    shape : tuple of int
        (X, Y, Z) of the target grid.

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
    """Return the largest connected region of a mask; of equal ones the first.

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
    """Remove from a mask what is connected to its largest part by a neck only.

    A morphological opening in mm, its width by the volume of the mask.

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


def bounding_box(mask: np.ndarray, margin: int | Sequence[int] | np.ndarray = 0) -> tuple[slice, slice, slice]:
    """Return the smallest box around a mask, grown by a margin and cut at the borders of the grid.

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
        box.append(
            slice(
                max(int(filled[0]) - int(margins[axis]), 0),
                min(int(filled[-1]) + 1 + int(margins[axis]), mask.shape[axis]),
            )
        )
    return tuple(box)  # type: ignore[return-value]


def _inside_grid(to_mask: np.ndarray, shape: Sequence[int], mask_shape: Sequence[int]) -> np.ndarray:
    """Return the voxels of a grid that lie within the half-voxel border of the mask's grid."""
    inside = np.ones(shape, dtype=bool)
    i, j, k = np.ogrid[tuple(slice(n) for n in shape)]
    for axis in range(3):
        a, b, c, d = to_mask[axis]
        place = a * i + b * j + c * k + d
        inside &= (place >= -0.5) & (place <= mask_shape[axis] - 0.5)
    return inside
