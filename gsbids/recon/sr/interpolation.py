# SPDX-License-Identifier: Apache-2.0
"""Classical interpolation as one matrix per axis: the reference for super-resolution, and its fallback."""

from collections.abc import Sequence

import numpy as np
from scipy import ndimage

from gsbids.errors import InputError
from gsbids.recon.sr.sampling_operator import AxisGrid, along_axes

KERNELS = ("nearest", "linear", "cubic", "bspline", "lanczos")
LOBES = 3  # of Lanczos' kernel
KEYS = -0.5  # slope of Keys' cubic


def interpolate(coarse: np.ndarray, axes: Sequence[AxisGrid], kernel: str = "bspline") -> np.ndarray:
    """Interpolate a coarse volume at the voxels of a fine grid.

    Parameters
    ----------
    coarse : ndarray, (A, B, C)
    axes : sequence of AxisGrid
        One per axis.
    kernel : str
        ``nearest``, ``linear``, ``cubic`` (Keys 1981, a = -0.5), ``bspline`` (cubic, interpolating) or ``lanczos``
        (3 lobes); mirrored at the edge of the outermost voxels.

    Returns
    -------
    ndarray, float32
    """
    return along_axes([interpolation_matrix(axis, kernel) for axis in axes], coarse)


def interpolation_matrix(axis: AxisGrid, kernel: str) -> np.ndarray:
    """Return the weights of the coarse voxels in each fine voxel along one axis, (fine, coarse), float64.

    Raises
    ------
    gsbids.errors.InputError
        There is no such kernel.
    """
    at = axis.positions
    if kernel == "bspline":
        return np.stack(
            [ndimage.map_coordinates(unit, [at], order=3, mode="reflect") for unit in np.eye(axis.coarse)], 1
        )
    if kernel == "nearest":
        return np.eye(axis.coarse)[np.clip(np.floor(at + 0.5).astype(int), 0, axis.coarse - 1)]
    if kernel not in KERNELS:
        raise InputError(f"the interpolation kernel is {kernel!r}; give one of {', '.join(KERNELS)}")
    reach, weight = {
        "linear": (1, lambda d: np.clip(1 - d, 0, None)),
        "cubic": (2, _keys),
        "lanczos": (LOBES, lambda d: np.sinc(d) * np.sinc(d / LOBES) * (d < LOBES)),
    }[kernel]
    matrix = np.zeros((axis.fine, axis.coarse))
    first = np.floor(at).astype(int)
    for tap in range(1 - reach, reach + 1):
        index = (first + tap) % (2 * axis.coarse)
        index = np.where(index < axis.coarse, index, 2 * axis.coarse - 1 - index)
        np.add.at(matrix, (np.arange(axis.fine), index), weight(np.abs(at - first - tap)))
    return matrix / matrix.sum(1, keepdims=True)


def _keys(distance: np.ndarray) -> np.ndarray:
    near = (KEYS + 2) * distance**3 - (KEYS + 3) * distance**2 + 1
    far = KEYS * (distance**3 - 5 * distance**2 + 8 * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
