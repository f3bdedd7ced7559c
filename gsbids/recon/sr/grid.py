# SPDX-License-Identifier: Apache-2.0
"""The fine grid of super-resolution: by factor, by voxel size, or by shape, aligned with the field of view."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from gsbids.errors import InputError
from gsbids.recon.sr.sampling_operator import AxisGrid

LARGEST_FACTOR = 16.0  # coarse voxels over fine ones, along an axis
MOST_VOXELS = 5e8  # of a volume


@dataclass(frozen=True)
class SrGrid:
    """A fine grid in the field of view of a coarse one.

    Attributes
    ----------
    axes : tuple of AxisGrid
        One per array axis.
    affine : ndarray, (4, 4), float64
        Fine voxel indices to world RAS+ mm.
    """

    axes: tuple[AxisGrid, AxisGrid, AxisGrid]
    affine: np.ndarray

    @property
    def shape(self) -> tuple[int, int, int]:
        """Number of fine voxels along each axis."""
        return tuple(axis.fine for axis in self.axes)  # type: ignore[return-value]

    @classmethod
    def of_axes(cls, axes: Sequence[AxisGrid], affine: np.ndarray) -> "SrGrid":
        """Return the grid of three axes in a coarse volume with this affine."""
        inner = np.diag([*(a.step for a in axes), 1.0])
        inner[:3, 3] = [a.start for a in axes]
        return cls(tuple(axes), np.asarray(affine, float) @ inner)  # type: ignore[arg-type]


def grid_by_shape(shape: Sequence[int], affine: np.ndarray, target: Sequence[int]) -> SrGrid:
    """Return a grid of ``target`` voxels along each axis that fill the field of view exactly (half-pixel aligned).

    Parameters
    ----------
    shape : tuple of int
        (A, B, C) of the coarse volume.
    affine : ndarray, (4, 4)
        Voxel indices of the coarse volume to world RAS+ mm.
    target : sequence of int
        Target shape; at least ``shape``.

    Raises
    ------
    gsbids.errors.InputError
        An axis would become coarser, or the volume larger than can be handled.
    """
    target = tuple(int(n) for n in target)
    factor = np.array(target) / np.array(shape)
    if (factor < 1).any():
        raise InputError(
            f"the target shape {_by(target)} is coarser than the image ({_by(shape)}) along an axis; "
            "super-resolution makes voxels smaller: give at least the image's shape"
        )
    _check_size(factor, target)
    return SrGrid.of_axes([AxisGrid.same_extent(m, n) for m, n in zip(shape, target, strict=True)], affine)


def grid_by_factor(shape: Sequence[int], affine: np.ndarray, factor: Any) -> SrGrid:
    """Return a grid of ``factor`` times as many voxels along each axis, rounded to whole voxels.

    Parameters
    ----------
    shape, affine
        As for :func:`grid_by_shape`.
    factor : float or sequence of three
        1 or more.

    Raises
    ------
    gsbids.errors.InputError
        A factor is under 1, not a number, or too large.
    """
    factor = np.broadcast_to(np.asarray(factor, float), 3)
    if not (np.isfinite(factor).all() and (factor >= 1).all() and factor.max() > 1):
        raise InputError(f"the factor is {_by(factor)}; give one number above 1, or three that are at least 1")
    if factor.max() > LARGEST_FACTOR:
        raise InputError(f"the factor is {_by(factor)}; at most {LARGEST_FACTOR:g} along an axis is supported")
    return grid_by_shape(shape, affine, np.maximum(np.rint(np.array(shape) * factor).astype(int), shape))


def grid_by_spacing(shape: Sequence[int], affine: np.ndarray, spacing: float | Sequence[float] | np.ndarray) -> SrGrid:
    """Return a grid of voxels of exactly this size, centred in the field of view.

    Axes that are finer already keep their voxels.

    Parameters
    ----------
    shape, affine
        As for :func:`grid_by_shape`.
    spacing : float or sequence of three
        mm.

    Raises
    ------
    gsbids.errors.InputError
        The size is no positive number, no axis would become finer, or the volume would be too large.
    """
    wanted = np.broadcast_to(np.asarray(spacing, float), 3)
    own = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    if not (np.isfinite(wanted).all() and (wanted > 0).all()):
        raise InputError(f"the voxel size is {_by(wanted)} mm; give one or three positive numbers")
    step = np.minimum(wanted / own, 1.0)
    step[step > 0.995] = 1.0
    if (step == 1).all():
        raise InputError(
            f"the voxel size {_by(wanted)} mm is not finer than the image's {_by(own)} mm along any "
            "axis; give a smaller one"
        )
    target = np.array([max(n, int(np.floor(n / s + 1e-3))) for n, s in zip(shape, step, strict=True)])
    _check_size(1 / step, target)
    return SrGrid.of_axes(
        [AxisGrid(m, int(n), (m - 1) / 2 - s * (n - 1) / 2, s) for m, n, s in zip(shape, target, step, strict=True)],
        affine,
    )


def _check_size(factor: np.ndarray | Sequence[float], target: np.ndarray | Sequence[float]) -> None:
    if np.max(factor) > LARGEST_FACTOR:
        raise InputError(
            f"the volume would be {_by(factor)} times finer; at most {LARGEST_FACTOR:g} along an axis is supported"
        )
    if np.prod(np.asarray(target, float)) > MOST_VOXELS:
        raise InputError(
            f"the volume would have {_by(target)} voxels; at most {MOST_VOXELS:.0e} are supported: "
            "ask for larger voxels"
        )


def _by(numbers: np.ndarray | Sequence[float]) -> str:
    return " x ".join(f"{n:.4g}" if n != int(n) else f"{int(n)}" for n in np.asarray(numbers, float))


def grid_like(shape: Sequence[int], affine: np.ndarray, like_shape: Sequence[int], like_affine: np.ndarray) -> SrGrid:
    """Return the grid of another image if it fills this field of view, else one as fine, to resample from.

    Parameters
    ----------
    shape, affine
        As for :func:`grid_by_shape`.
    like_shape, like_affine
        Shape and affine of the other image.
    """
    if (np.array(like_shape) >= shape).all():
        same = grid_by_shape(shape, affine, like_shape)
        if np.abs(same.affine - like_affine).max() < 1e-3 * np.abs(same.affine[:3, :3]).max():
            return same
    inner = np.linalg.solve(np.asarray(affine)[:3, :3], np.asarray(like_affine)[:3, :3])
    # Steps of the other grid along each axis of this one: the smallest of those that have a share in it.
    steps = np.abs(inner).max(1)
    return grid_by_spacing(shape, affine, steps * np.linalg.norm(np.asarray(affine)[:3, :3], axis=0))


def resampled(volume: np.ndarray, affine: np.ndarray, shape: Sequence[int], target: np.ndarray) -> np.ndarray:
    """Resample a volume to another grid: cubic B-spline between voxels, the nearest voxel outside, float32."""
    index = np.linalg.inv(affine) @ target
    found = ndimage.affine_transform(volume, index[:3, :3], index[:3, 3], tuple(shape), order=3, mode="nearest")
    return np.clip(found, volume.min(), volume.max()).astype(np.float32)
