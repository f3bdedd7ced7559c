# SPDX-License-Identifier: Apache-2.0
"""Target grid and sampling profile of super-resolution: thick slices or not, profile of the voxels, grid."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gsbids.imaging.masks import check_overlap
from gsbids.recon.sr.grid import SrGrid, grid_by_factor, grid_by_spacing, grid_like

THICK = 1.5  # times the other voxel sides: slices, not an isotropic acquisition
WIDTHS = (0.1, 3.0)  # of slice profiles, in slice distances


@dataclass(frozen=True)
class SrTarget:
    """The target grid, given in one of three ways; if in none, :func:`default_spacing`, or factor 2.

    Attributes
    ----------
    factor : tuple of float
        Factor by which it is finer, one number or one for each array axis.
    spacing : tuple of float
        Voxel size in mm, one number or one for each array axis.
    like : tuple of (shape, affine), or None
        Shape and affine of another image.
    """

    factor: tuple[float, ...] = ()
    spacing: tuple[float, ...] = ()
    like: tuple | None = None


def is_thick(spacing: Sequence[float] | np.ndarray, thickness: float | None = None) -> bool:
    """Return whether voxels are thick slices: 1.5 times as long along one side, or slices of such thickness.

    Parameters
    ----------
    spacing : array_like, (3,)
        Voxel size in mm.
    thickness : float, optional
        Slice thickness in mm (slices may overlap); NaN where it is not known.

    Examples
    --------
    >>> is_thick((1, 1, 3)), is_thick((1, 1, 1.2)), is_thick((0.8, 0.8, 0.8), 1.6)
    (True, False, True)
    """
    longest = max(float(np.max(spacing)), thickness if thickness and np.isfinite(thickness) else 0.0)
    return longest > THICK * float(np.median(spacing))


def voxel_profile(
    spacing: Sequence[float] | np.ndarray, thickness: float | None = None, profile: str = "auto"
) -> tuple[tuple[str, str, str], tuple[float, float, float]]:
    """Return the sampling profile of a voxel along every axis: names of profiles and their widths in voxels.

    Parameters
    ----------
    spacing : array_like, (3,)
        Voxel size in mm.
    thickness : float, optional
        Slice thickness in mm; without it (or with NaN) slices are as thick as they are apart.
    profile : str
        Profile for all axes; ``auto``: the mean over the voxel, and across thick slices a Gaussian slice profile.
    """
    spacing = np.asarray(spacing, float)
    names, widths = ["box" if profile == "auto" else profile] * 3, [1.0, 1.0, 1.0]
    if is_thick(spacing, thickness):
        across = int(np.argmax(spacing)) if np.ptp(spacing) > 1e-3 * spacing.max() else 2
        if profile == "auto":
            names[across] = "gaussian"
        if thickness and np.isfinite(thickness):
            widths[across] = float(np.clip(thickness / spacing[across], *WIDTHS))
    return tuple(names), tuple(widths)  # type: ignore[return-value]


def default_spacing(spacing: Sequence[float] | np.ndarray) -> tuple[float, ...]:
    """Return the default voxel size: thick slices as fine as in their plane, else half of the input.

    Examples
    --------
    >>> default_spacing((1, 1, 4)), default_spacing((1, 1, 1))
    ((1.0, 1.0, 1.0), (0.5, 0.5, 0.5))
    """
    spacing = np.asarray(spacing, float)
    wanted = np.minimum(spacing, np.median(spacing)) if is_thick(spacing) else spacing / 2
    return tuple(float(s) for s in wanted)


def target_grid(shape: Sequence[int], affine: np.ndarray, target: SrTarget) -> tuple[SrGrid, tuple | None]:
    """Return the grid to compute on, and the one to sample the result on, where that is another.

    The latter is given by its shape and affine.

    Parameters
    ----------
    shape, affine
        Shape and affine of the volume.
    target : SrTarget

    Raises
    ------
    gsbids.errors.InputError
        No axis would become finer, the volume would be too large, or the other image lies elsewhere.
    """
    if target.like is not None:
        check_overlap(target.like, (shape, affine), ("the grid of --like", "the image"))
        grid = grid_like(shape, affine, *target.like)
        same = grid.shape == tuple(target.like[0]) and np.allclose(grid.affine, target.like[1], atol=1e-3)
        return grid, None if same else target.like
    if target.spacing:
        return grid_by_spacing(shape, affine, target.spacing), None
    if target.factor:
        return grid_by_factor(shape, affine, target.factor), None
    own = np.linalg.norm(np.asarray(affine)[:3, :3], axis=0)
    if is_thick(own):
        return grid_by_spacing(shape, affine, default_spacing(own)), None
    return grid_by_factor(shape, affine, 2), None
