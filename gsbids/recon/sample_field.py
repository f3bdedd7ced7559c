# SPDX-License-Identifier: Apache-2.0
"""Sampling of a field of Gaussians on any grid."""

from collections.abc import Sequence

import numpy as np

from gsbids.imaging.geometry import slice_frames
from gsbids.kernels import ops
from gsbids.recon.field import GaussianField
from gsbids.recon.psf import FWHM_TO_SIGMA

BLOCK = 32  # planes rendered at once: bounds the memory


def sample_grid(
    field: GaussianField,
    affine: np.ndarray,
    shape: Sequence[int],
    blur_fwhm: float = 0.0,
    options: ops.RenderOptions = ops.RenderOptions(),  # noqa: B008
) -> tuple[np.ndarray, np.ndarray]:
    """Render a field at the voxel centres of a grid; nothing is interpolated.

    Parameters
    ----------
    field : GaussianField
    affine : ndarray, (4, 4)
        Voxel indices to world RAS+ mm, with orthogonal axes.
    shape : tuple of int
        (X, Y, Z).
    blur_fwhm : float
        Full width at half maximum (mm) of a round PSF; 0: point samples.
    options : RenderOptions

    Returns
    -------
    image, weight : ndarray, (X, Y, Z), float32
        I in the field's units, and D = sum of the weights (see :class:`GaussianField`).
    """
    frames, middle = slice_frames(affine, shape)
    spacing = np.linalg.norm(affine[:3, :2], axis=0)
    planes = []
    for first in range(0, shape[2], BLOCK):
        part = slice(first, min(first + BLOCK, shape[2]))
        count = part.stop - part.start
        geometry = ops.SliceGeometry(
            rotation=frames[part],
            translation=middle[part] - field.origin,
            psf=np.full((count, 3), (blur_fwhm * FWHM_TO_SIGMA) ** 2),
            spacing=np.tile(spacing, (count, 1)),
            centre=np.tile((np.array(shape[:2]) - 1) / 2, (count, 1)),
            extent=ops.full_extent(count, shape[:2]),  # type: ignore[arg-type]
            shape=tuple(shape[:2]),  # type: ignore[arg-type]
        )
        planes.append(ops.render(*field.parameters, geometry, options))
    return tuple(np.ascontiguousarray(np.moveaxis(np.concatenate(p), 0, 2)) for p in zip(*planes, strict=True))  # type: ignore[return-value]
