# SPDX-License-Identifier: Apache-2.0
"""Non-local means on a CPU: voxels averaged with those around them whose surroundings look alike."""

import numba as nb
import numpy as np

SEARCH = 3  # voxels to each side in which to look for likeness


def nonlocal_means(volume: np.ndarray, strength: float, inside: np.ndarray | None = None) -> np.ndarray:
    """Average every voxel with the voxels around it, weighted by how alike their 3 x 3 x 3 surroundings are.

    ``x'(a) = (x(a) + sum_b v x(b)) / (1 + sum_b v)`` over the ``(2 SEARCH + 1)^3 - 1`` neighbours b, with
    ``v = max(0, 1 - d / (8 h^2))^8``, d the mean squared difference of the two surroundings: ``exp(-d / h^2)`` of
    finite support (Coupe et al. 2008, Manjon et al. 2010).

    Parameters
    ----------
    volume : ndarray, (A, B, C)
    strength : float
        h, in the unit of the volume.
    inside : ndarray of bool, optional
        Voxels that are averaged; the others stay as they are.

    Returns
    -------
    ndarray, float32
    """
    if strength <= 0:
        return np.array(volume, np.float32)
    edge = SEARCH + 1
    padded = np.pad(np.asarray(volume, np.float32), edge, mode="symmetric")
    inside = np.ones(volume.shape, np.uint8) if inside is None else np.ascontiguousarray(inside, np.uint8)
    out = np.array(volume, np.float32)
    _average(padded, np.float32(1 / (27 * 8 * strength**2)), inside, out)
    return out


@nb.njit(parallel=True, cache=True, fastmath=True, error_model="numpy")
def _average(x, scale, inside, out):
    edge, count = SEARCH + 1, out.shape[2]
    for a in nb.prange(out.shape[0]):
        column = np.empty(count + 2, np.float32)
        total, weight = np.empty(count, np.float32), np.empty(count, np.float32)
        for b in range(out.shape[1]):
            first, last = _extent(inside[a, b])
            if first >= last:
                continue
            for c in range(first, last):
                total[c], weight[c] = x[a + edge, b + edge, c + edge], np.float32(1)
            for i in range(-SEARCH, SEARCH + 1):
                for j in range(-SEARCH, SEARCH + 1):
                    for k in range(-SEARCH, SEARCH + 1):
                        if i != 0 or j != 0 or k != 0:
                            _add(x, a + edge, b + edge, (i, j, k), first, last, scale, column, total, weight)
            for c in range(first, last):
                if inside[a, b, c]:
                    out[a, b, c] = total[c] / weight[c]


@nb.njit(inline="always")
def _extent(row):
    """Return the first and one past the last voxel of a row that is set."""
    first, last = 0, len(row)
    while first < last and row[first] == 0:
        first += 1
    while last > first and row[last - 1] == 0:
        last -= 1
    return first, last


@nb.njit(fastmath=True, error_model="numpy")
def _add(x, a, b, shift, first, last, scale, column, total, weight):
    """Add one neighbour of each voxel of a row, weighted by the likeness of their surroundings."""
    edge, (i, j, k) = SEARCH + 1, shift
    column[first : last + 2] = 0
    for u in range(-1, 2):
        for v in range(-1, 2):
            here, there = x[a + u, b + v], x[a + i + u, b + j + v]
            for c in range(first, last + 2):
                difference = here[c + edge - 1] - there[c + edge - 1 + k]
                column[c] += difference * difference
    other = x[a + i, b + j]
    for c in range(first, last):
        like = max(np.float32(0), np.float32(1) - scale * (column[c] + column[c + 1] + column[c + 2]))
        like *= like
        like *= like
        like *= like
        total[c] += like * other[c + edge + k]
        weight[c] += like
