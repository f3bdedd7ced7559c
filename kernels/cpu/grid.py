# SPDX-License-Identifier: Apache-2.0
"""Render Gaussians on a regular grid: every plane of the grid is a slice with the same axes.

Axis 0 of the volume is the normal of the planes, so that rows and columns lie in memory as an image does. What
:mod:`gsbids.kernels.cpu.projection` calculates for a pair (slice, Gaussian) belongs to the Gaussian alone here; along
the planes only the centre and the peak move. Contributions end where ``E >= cut ** 2``.

Parts of the work are slabs of planes, so that no sum is shared: the bits never depend on the threads. Gradients are in
:mod:`gsbids.kernels.cpu.grid_gradient`.
"""

import math

import numba as nb
import numpy as np

from gsbids.kernels.cpu import pairs, rows
from gsbids.kernels.cpu.lanes import (
    DOUBLE,
    FAST,
    INTEGER,
    address,
    doubles,
    load,
    positive,
    ramp,
    root,
    store,
    width,
)
from gsbids.kernels.cpu.projection import pose_of, project
from gsbids.kernels.cpu.rows import HALF_LOG2E, PADDING

SLAB = 16  # planes of a part
SHARED = 16  # what all planes of a Gaussian share


def padded(shape: tuple[int, int, int]) -> np.ndarray:
    """Allocate a float32 volume with padding.

    It has room for strips that overrun, and no power of 2 from plane to plane (cache sets).
    """
    return np.empty((shape[0], shape[1] + 1, shape[2] + PADDING), np.float32)


@nb.njit(parallel=True, cache=True, error_model="numpy")
def plane_ranges(pose, spacing, planes, table, cut, ranges):
    """Fill ``ranges`` (J, 2) with the first and one-past-last plane that each Gaussian reaches."""
    rotation, origin, psf = pose
    for j in nb.prange(len(table)):
        a, b, c = rotation[0, 2], rotation[1, 2], rotation[2, 2]
        z = a * (table[j, 0] - origin[0]) + b * (table[j, 1] - origin[1]) + c * (table[j, 2] - origin[2])
        variance = (
            a * (a * table[j, 3] + 2 * (b * table[j, 4] + c * table[j, 5]))
            + b * (b * table[j, 6] + 2 * c * table[j, 7])
            + c * c * table[j, 8]
            + psf[2]
        )
        half = cut * math.sqrt(variance)
        ranges[j, 0] = rows.ceiling((z - half) / spacing, 0, planes)
        ranges[j, 1] = rows.ceiling((z + half) / spacing, 0, planes)


@nb.njit(parallel=True, cache=True, error_model="numpy")
def brick_keys(table, origin, axes, bricks, keys):
    """Fill ``keys`` with the number of the brick that each mean lies in, or of the nearest.

    ``axes``: columns, per brick.
    """
    for j in nb.prange(len(keys)):
        x, y, z = table[j, 0] - origin[0], table[j, 1] - origin[1], table[j, 2] - origin[2]
        key = 0
        for k in range(3):
            place = np.int64(min(max(x * axes[0, k] + y * axes[1, k] + z * axes[2, k], 0.0), bricks[k] - 1.0))
            key = key * bricks[k] + place
        keys[j] = key


@nb.njit(error_model="numpy")
def shared_terms(table, order, start, pose, pixels, mass_factor, shared, lanes):
    """Project Gaussians side by side; store what their planes share in ``shared`` (SHARED, lanes).

    Rows: centre at m_z = 0 along rows and columns (pixels) and its shift with m_z, m_z, 1 / S_zz, variances along
    rows and columns (pixels^2), columns 2 to 4 of the records, peak weight, intensity.
    """
    spacing, centre, _ = pixels
    mean, cov, intensity, amplitude = pairs.fetch(table, order, start, lanes)
    p = project(pose[0], pose[1], pose[2], mean, cov)
    f = rows.fit(p, spacing, 1.0)
    top = pairs.peak(p, amplitude, mass_factor)
    a, b = 1.0 / spacing[0], 1.0 / spacing[1]
    values = (
        p[0] * a + centre[0],
        p[1] * b + centre[1],
        p[5] * p[17] * a,
        p[7] * p[17] * b,
        p[2],
        p[17],
        p[14] * (a * a),
        p[16] * (b * b),
        f[0],
        f[1],
        f[2],
        top,
    )
    n = width(lanes)
    store(shared, 0, values[0])
    store(shared, n, values[1])
    store(shared, 2 * n, values[2])
    store(shared, 3 * n, values[3])
    store(shared, 4 * n, values[4])
    store(shared, 5 * n, values[5])
    store(shared, 6 * n, values[6])
    store(shared, 7 * n, values[7])
    store(shared, 8 * n, values[8])
    store(shared, 9 * n, values[9])
    store(shared, 10 * n, values[10])
    store(shared, 11 * n, values[11])
    store(shared, 12 * n, intensity)
    return p


@nb.njit(error_model="numpy", forceinline=True)
def column_of(shared, lane, step):
    """Load what :func:`shared_terms` stored of one Gaussian."""
    return (
        load(shared, lane, DOUBLE),
        load(shared, step + lane, DOUBLE),
        load(shared, 2 * step + lane, DOUBLE),
        load(shared, 3 * step + lane, DOUBLE),
        load(shared, 4 * step + lane, DOUBLE),
        load(shared, 5 * step + lane, DOUBLE),
        load(shared, 6 * step + lane, DOUBLE),
        load(shared, 7 * step + lane, DOUBLE),
        load(shared, 8 * step + lane, DOUBLE),
        load(shared, 9 * step + lane, DOUBLE),
        load(shared, 10 * step + lane, DOUBLE),
        load(shared, 11 * step + lane, DOUBLE),
        load(shared, 12 * step + lane, DOUBLE),
    )


@nb.njit(error_model="numpy", forceinline=True)
def plane_terms(gaussian, first, height, cut2, values, lanes):
    """Store centre, constant and half sizes of planes first, first + 1, ... of a Gaussian in ``values`` (5, lanes)."""
    mz = gaussian[4] - (ramp(lanes) + first) * height
    energy = mz * mz * gaussian[5]
    room, n = positive(cut2 - energy), width(lanes)
    store(values, 0, gaussian[0] - mz * gaussian[2])
    store(values, n, gaussian[1] - mz * gaussian[3])
    store(values, 2 * n, energy * HALF_LOG2E)
    store(values, 3 * n, root(room * gaussian[6]))
    store(values, 4 * n, root(room * gaussian[7]))


@nb.njit(error_model="numpy", forceinline=True)
def plane_place(gaussian, values, lane, step, plane, shape):
    """Return the record of one plane, and its place in the volume as rows one below the other."""
    xi, xj = load(values, lane, DOUBLE), load(values, step + lane, DOUBLE)
    half_i, half_j = load(values, 3 * step + lane, DOUBLE), load(values, 4 * step + lane, DOUBLE)
    i0, i1 = rows.ceiling(xi - half_i, 0, shape[0]), rows.ceiling(xi + half_i, 0, shape[0])
    j0, j1 = rows.ceiling(xj - half_j, 0, shape[1]), rows.ceiling(xj + half_j, 0, shape[1])
    below = plane * (shape[0] + 1)
    return (
        (
            np.float32(i0 - xi),
            np.float32(j0 - xj),
            np.float32(gaussian[8]),
            np.float32(gaussian[9]),
            np.float32(gaussian[10]),
            np.float32(load(values, 2 * step + lane, DOUBLE)),
            np.float32(half_i),
            np.float32(half_j),
            np.float32(gaussian[11]),
            np.float32(gaussian[12]),
        ),
        (below + i0, below + i1, j0, j1),
    )


@nb.njit(error_model="numpy")
def _splat_slab(pose, pixels, shape, table, order, count, ranges, slab, cut2, mass_factor, volumes, lanes):
    """Add ``w c`` and ``w`` on the planes of ``slab``, [first, last).

    ``volumes``: addresses of both, and stride.
    """
    wide, least = width(doubles(lanes)), np.float32(HALF_LOG2E * cut2)
    space = np.empty((SHARED + 5, wide))
    shared = address(space)
    values = shared + 8 * SHARED * wide
    for start in range(0, count, wide):
        shared_terms(table, order, start, pose, pixels, mass_factor, shared, doubles(lanes))
        for lane in range(min(wide, count - start)):
            j = np.int64(load(order, start + lane, INTEGER))
            gaussian = column_of(shared, lane, wide)
            first = max(slab[0], np.int64(load(ranges, 2 * j, INTEGER)))
            last = min(slab[1], np.int64(load(ranges, 2 * j + 1, INTEGER)))
            for z0 in range(first, last, wide):
                plane_terms(gaussian, z0, pixels[2], cut2, values, doubles(lanes))
                for z in range(z0, min(z0 + wide, last)):
                    f, place = plane_place(gaussian, values, z - z0, wide, z, shape)
                    if place[0] < place[1]:
                        rows.splat(volumes[0], volumes[1], volumes[2], f, least, place, lanes)
    space[0, 0] = 0.0  # it lives until here


@nb.njit
def _reaching(order, ranges, first, last):
    """Return the Gaussians of ``order`` that reach the planes [first, last), and their number."""
    index = np.empty(len(order) + 1, order.dtype)
    count = 0
    for j in order[: len(order) - pairs.WIDEST]:
        index[count] = j
        count += ranges[j, 0] < last and ranges[j, 1] > first
    pairs.fill(index, count)
    return index, count


@nb.njit(fastmath=FAST, error_model="numpy")
def _divide(numerator, weight, eps):
    """Convert sums to I and D, in place."""
    for i in range(len(weight)):
        d = weight[i] + eps
        weight[i] = d
        numerator[i] = numerator[i] / d


@nb.njit(parallel=True, cache=True, error_model="numpy")
def forward(pose, pixels, table, order, ranges, cut2, eps, mass_factor, lanes, image, weight):
    """Fill ``image`` = I and ``weight`` = D, both from :func:`padded`; the padding is left undefined.

    ``pose``: rotation (3, 3) with the axes of row, column and plane, position of voxel (0, 0, 0), PSF variances.
    ``pixels`` (5,): spacing (2), centre (2) of a plane, and the distance of planes. ``table``: see
    :mod:`gsbids.kernels.cpu.pairs`. ``order``: the Gaussians, neighbours one after the other. ``ranges``:
    :func:`plane_ranges`.
    """
    for part in nb.prange((len(image) + SLAB - 1) // SLAB):
        frame, lattice = as_tuples(pose, pixels)
        shape = image.shape[1] - 1, image.shape[2] - PADDING
        slab = part * SLAB, min((part + 1) * SLAB, len(image))
        n, d = image[slab[0] : slab[1]], weight[slab[0] : slab[1]]
        n[:] = 0.0
        d[:] = 0.0
        index, count = _reaching(order, ranges, slab[0], slab[1])
        _splat_slab(
            frame,
            lattice,
            shape,
            address(table),
            address(index),
            count,
            address(ranges),
            slab,
            cut2,
            mass_factor,
            (address(image), address(weight), image.shape[2]),
            lanes,
        )
        _divide(n.reshape(-1), d.reshape(-1), eps)
        index[0] = 0  # it lives until here


@nb.njit
def as_tuples(pose, pixels):
    """Return pose and pixels as tuples of numbers."""
    return pose_of(pose[0], pose[1], pose[2]), ((pixels[0], pixels[1]), (pixels[2], pixels[3]), pixels[4])
