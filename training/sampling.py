# SPDX-License-Identifier: Apache-2.0
"""The inner loop of cutting slices: labels and image of a scene along planes, averaged over a slice's thickness."""

import numba
import numpy as np

NO_INNER = (np.zeros((0, 0, 0), np.uint8), np.zeros((0, 0, 0), np.uint8), np.zeros(3), np.zeros(3))


@numba.njit(cache=True)
def sample(outer, inner, matrices, colours, side):
    """Brightness and share of brain of thick slices.

    Parameters
    ----------
    outer : tuple of ndarray
        Image and labels, (X, Y, Z), uint8.
    inner : tuple of ndarray
        Image and labels, (U, V, W), uint8, that are seen where they lie: at voxel ``ratio * outer voxel + shift``,
        both (3,), which follow. :data:`NO_INNER` where there is none.
    matrices : ndarray, (slices, planes, 3, 3)
        Per plane: voxel steps along the first and second pixel axis, and the voxel of pixel (0, 0), as columns.
    colours : tuple of ndarray
        Offset and gain, (labels,), float32, of the brightness ``offset + gain * image``; and whether it is brain, bool.
    side : int
        Pixels along an edge of a slice.

    Returns
    -------
    values, shares : ndarray, (slices, side, side), float32
    """
    slices, planes = matrices.shape[:2]
    offsets, gains, brain = colours
    values = np.zeros((slices, side, side), np.float32)
    shares = np.zeros((slices, side, side), np.float32)
    for k in range(slices):
        for p in range(planes):
            m = matrices[k, p]
            for i in range(side):
                for j in range(side):
                    x = m[0, 0] * i + m[0, 1] * j + m[0, 2]
                    y = m[1, 0] * i + m[1, 1] * j + m[1, 2]
                    z = m[2, 0] * i + m[2, 1] * j + m[2, 2]
                    label, seen = _seen(outer, inner, x, y, z)
                    values[k, i, j] += max(offsets[label] + gains[label] * seen, 0.0)
                    shares[k, i, j] += brain[label]
    return values / planes, shares / planes


@numba.njit(cache=True)
def _within(volume, x, y, z):
    """Whether a place lies between the voxels of a volume."""
    nx, ny, nz = volume.shape
    return x >= 0 and y >= 0 and z >= 0 and x <= nx - 1 and y <= ny - 1 and z <= nz - 1


@numba.njit(cache=True)
def _seen(outer, inner, x, y, z):
    """Label (nearest) and image (linear) at a place; 0 and 0 outside of everything."""
    image, labels, ratio, shift = inner
    u, v, w = ratio[0] * x + shift[0], ratio[1] * y + shift[1], ratio[2] * z + shift[2]
    if _within(labels, u, v, w):
        return labels[int(u + 0.5), int(v + 0.5), int(w + 0.5)], _linear(image, u, v, w)
    image, labels = outer
    if _within(labels, x, y, z):
        return labels[int(x + 0.5), int(y + 0.5), int(z + 0.5)], _linear(image, x, y, z)
    return np.uint8(0), 0.0


@numba.njit(cache=True)
def _linear(image, x, y, z):
    """Trilinear value of a volume at a place inside it."""
    nx, ny, nz = image.shape
    a, b, c = int(x), int(y), int(z)
    u, v, w = x - a, y - b, z - c
    a1, b1, c1 = min(a + 1, nx - 1), min(b + 1, ny - 1), min(c + 1, nz - 1)
    low = (1 - v) * ((1 - w) * image[a, b, c] + w * image[a, b, c1]) + v * (
        (1 - w) * image[a, b1, c] + w * image[a, b1, c1]
    )
    high = (1 - v) * ((1 - w) * image[a1, b, c] + w * image[a1, b, c1]) + v * (
        (1 - w) * image[a1, b1, c] + w * image[a1, b1, c1]
    )
    return (1 - u) * low + u * high
