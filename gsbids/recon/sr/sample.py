# SPDX-License-Identifier: Apache-2.0
"""Sampling of a super-resolved volume on any grid: Gaussians are evaluated, the remainder is interpolated."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from gsbids.imaging.masks import same_grid
from gsbids.kernels import ops, points
from gsbids.recon.field import GaussianField
from gsbids.recon.sample_field import sample_grid
from gsbids.recon.sr.grid import resampled
from gsbids.recon.sr.result import SrResult

ORTHOGONAL = 1e-3  # largest cosine of two in-plane axes of a grid that is rendered slice by slice
AT_ONCE = 1 << 17  # points


def sample_sr(result: SrResult, affine: np.ndarray, shape: Sequence[int], device: str = "cpu") -> np.ndarray:
    """Sample the volume of a result on any grid, without another fit.

    The volume is ``share`` times the mean of the fields, and a remainder (of the linear solutions, the projection on
    the data and non-local means). The fields are evaluated at the voxel centres, exactly; the remainder is
    interpolated by cubic B-splines, so that on the grid of the result itself its volume comes back as it is. The
    background is decided at every voxel as in the fit; outside the field of view is background (0; the least intensity
    of an image whose background is negative, as of CT).

    Parameters
    ----------
    result : SrResult
    affine : ndarray, (4, 4)
        Voxel indices to world RAS+ mm.
    shape : tuple of int
        (X, Y, Z).
    device : str
        Device on which the fields are rendered (sheared grids: always on the CPU).

    Returns
    -------
    ndarray, (X, Y, Z), float32
        Image in the units of the input.
    """
    shape = tuple(int(n) for n in shape)
    if same_grid(shape, affine, result.volume.shape, result.affine, 1e-4):
        return result.volume.copy()
    offset, scale = result.intensity_offset, result.intensity_scale
    level = ((result.volume - np.float64(offset)) / scale).astype(np.float32)
    options = ops.RenderOptions(cut=result.settings.get("cut", 3.0), mass_factor=False, device=device)
    remainder = level - _gaussians(result, result.affine, level.shape, options)
    image = _gaussians(result, affine, shape, options) + resampled(remainder, result.affine, shape, affine)
    image = np.where(_near_filled(result, affine, shape), np.maximum(image, 0), 0) * np.float64(scale) + offset
    return np.where(_in_view(result, affine, shape), image, result.background).astype(np.float32)


def _gaussians(result: SrResult, affine: np.ndarray, shape: tuple[int, ...], options: ops.RenderOptions) -> np.ndarray:
    """Render the Gaussians' share of a volume in [0, 1]."""
    total = np.zeros(shape, np.float32)
    for field in result.fields:
        total += _rendered(field, affine, shape, options)
    return total * np.float32(result.share / max(len(result.fields), 1))


def _rendered(
    field: GaussianField, affine: np.ndarray, shape: tuple[int, ...], options: ops.RenderOptions
) -> np.ndarray:
    """Render one field at the voxel centres: slice by slice, or point by point where the axes are sheared."""
    axes = affine[:3, :2] / np.linalg.norm(affine[:3, :2], axis=0)
    if abs(axes[:, 0] @ axes[:, 1]) <= ORTHOGONAL:
        return sample_grid(field, affine, shape, options=options)[0]
    index = np.indices(shape).reshape(3, -1)
    out = np.empty(index.shape[1], np.float32)
    for first in range(0, len(out), AT_ONCE):
        part = slice(first, first + AT_ONCE)
        at = index[:, part].T @ affine[:3, :3].T + affine[:3, 3] - field.origin
        seen = points.within_cut(field.parameters, at, options.cut)
        out[part] = points.render_points(*field.parameters, seen, options.eps)[0]
    return out.reshape(shape)


def _near_filled(result: SrResult, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the voxels with a voxel of the input that is not background less than one voxel away."""
    index = np.linalg.inv(result.coarse_affine) @ affine
    return (
        ndimage.affine_transform(
            result.filled.astype(np.float32), index[:3, :3], index[:3, 3], shape, order=1, mode="nearest"
        )
        > 1e-5
    )


def _in_view(result: SrResult, affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Return the voxels in the field of view of the input."""
    index = np.linalg.inv(result.coarse_affine) @ affine
    inside = np.ones(shape, bool)
    # Half a voxel beyond the outermost centres still is the field of view.
    a, b, c = np.ogrid[tuple(slice(n) for n in shape)]
    for row, size in zip(index[:3], result.filled.shape, strict=True):
        at = row[0] * a + row[1] * b + row[2] * c + row[3]
        inside &= (at >= -0.5 - 1e-6) & (at <= size - 0.5 + 1e-6)
    return inside
