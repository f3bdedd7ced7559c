# SPDX-License-Identifier: Apache-2.0
"""The inner loop of cutting slices: labels and image of a scene along planes, averaged over a slice's thickness."""

import numba
import numpy as np


@numba.njit(cache=True)
def _mirrored(x, size):
    """A coordinate, mirrored at the first and last voxel until it lies within."""
    last = size - 1.0
    if last <= 0:
        return 0.0
    x = abs(x) % (2 * last)
    return 2 * last - x if x > last else x


@numba.njit(cache=True)
def sample(image, labels, matrices, offsets, gains, brain, mirror, side):
    """Brightness and share of brain of thick slices.

    Parameters
    ----------
    image, labels : ndarray, (X, Y, Z), uint8
    matrices : ndarray, (slices, planes, 3, 3)
        Per plane: voxel steps along the first and second pixel axis, and the voxel of pixel (0, 0), as columns.
    offsets, gains : ndarray, (labels,), float32
        Brightness is ``offset + gain * image`` of the label.
    brain : ndarray, (labels,), bool
    mirror : bool
        Mirror the volume at its first and last slice; all else outside has label 0 and image 0.
    side : int
        Pixels along an edge of a slice.

    Returns
    -------
    values, shares : ndarray, (slices, side, side), float32
    """
    slices, planes = matrices.shape[:2]
    values = np.zeros((slices, side, side), np.float32)
    shares = np.zeros((slices, side, side), np.float32)
    nx, ny, nz = image.shape
    for k in range(slices):
        for p in range(planes):
            m = matrices[k, p]
            for i in range(side):
                for j in range(side):
                    x = m[0, 0] * i + m[0, 1] * j + m[0, 2]
                    y = m[1, 0] * i + m[1, 1] * j + m[1, 2]
                    z = m[2, 0] * i + m[2, 1] * j + m[2, 2]
                    if mirror:
                        z = _mirrored(z, nz)
                    if x < 0 or y < 0 or z < 0 or x > nx - 1 or y > ny - 1 or z > nz - 1:
                        values[k, i, j] += offsets[0]
                        continue
                    label = labels[int(x + 0.5), int(y + 0.5), int(z + 0.5)]
                    seen = _linear(image, x, y, z)
                    values[k, i, j] += max(offsets[label] + gains[label] * seen, 0.0)
                    shares[k, i, j] += brain[label]
    return values / planes, shares / planes


@numba.njit(cache=True)
def _linear(image, x, y, z):
    """Trilinear value of a volume at a place inside it."""
    nx, ny, nz = image.shape
    a, b, c = int(x), int(y), int(z)
    u, v, w = x - a, y - b, z - c
    a1, b1, c1 = min(a + 1, nx - 1), min(b + 1, ny - 1), min(c + 1, nz - 1)
    low = (1 - v) * ((1 - w) * image[a, b, c] + w * image[a, b, c1]) + v * ((1 - w) * image[a, b1, c]
                                                                            + w * image[a, b1, c1])
    high = (1 - v) * ((1 - w) * image[a1, b, c] + w * image[a1, b, c1]) + v * ((1 - w) * image[a1, b1, c]
                                                                               + w * image[a1, b1, c1])
    return (1 - u) * low + u * high
