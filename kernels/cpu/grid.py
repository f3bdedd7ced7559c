# SPDX-License-Identifier: Apache-2.0
"""Gaussians on a regular grid: every plane of the grid is a slice with the same axes.

Axis 0 of the volume is the normal of the planes, so that rows and columns lie in memory as an image does. What
:mod:`gsbids.kernels.cpu.projection` calculates for a pair (slice, Gaussian) belongs to the Gaussian alone here; along
the planes only the centre and the peak move. Contributions end where ``E >= cut ** 2``.

Forward: parts are slabs of planes. Backward: parts are Gaussians, each of which gathers from all its planes
(moments about its mean, in three dimensions), so that no sum is shared: the bits never depend on the threads.
"""

import math

import numba as nb
import numpy as np

from gsbids.kernels.cpu import pairs, rows
from gsbids.kernels.cpu.lanes import (
    DOUBLE,
    FAST,
    INTEGER,
    PLAIN,
    address,
    doubles,
    load,
    positive,
    ramp,
    root,
    spread,
    store,
    total,
    width,
)
from gsbids.kernels.cpu.projection import pose_of, project, to_world
from gsbids.kernels.cpu.rows import HALF_LOG2E, PADDING

SLAB = 16  # planes of a part
BLOCK = 1024  # Gaussians of a part
SHARED = 16  # what all planes of a Gaussian share


def padded(shape: tuple[int, int, int]) -> np.ndarray:
    """New float32 volume with room for strips that overrun, and no power of 2 from plane to plane (cache sets)."""
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
    """Fill ``keys`` with the number of the brick that each mean lies in, or nearest; ``axes``: columns, per brick."""
    for j in nb.prange(len(keys)):
        x, y, z = table[j, 0] - origin[0], table[j, 1] - origin[1], table[j, 2] - origin[2]
        key = 0
        for k in range(3):
            place = np.int64(min(max(x * axes[0, k] + y * axes[1, k] + z * axes[2, k], 0.0), bricks[k] - 1.0))
            key = key * bricks[k] + place
        keys[j] = key


@nb.njit(error_model="numpy")
def _share(table, order, start, pose, pixels, mass_factor, shared, lanes):
    """Project Gaussians side by side; what their planes share goes to ``shared`` (SHARED, lanes).

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
def _column(shared, lane, step):
    """What :func:`_share` wrote of one Gaussian."""
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
def _planes(gaussian, first, height, cut2, values, lanes):
    """Planes first, first + 1, ... of one Gaussian: centre, constant and half sizes to ``values`` (5, lanes)."""
    mz = gaussian[4] - (ramp(lanes) + first) * height
    energy = mz * mz * gaussian[5]
    room, n = positive(cut2 - energy), width(lanes)
    store(values, 0, gaussian[0] - mz * gaussian[2])
    store(values, n, gaussian[1] - mz * gaussian[3])
    store(values, 2 * n, energy * HALF_LOG2E)
    store(values, 3 * n, root(room * gaussian[6]))
    store(values, 4 * n, root(room * gaussian[7]))


@nb.njit(error_model="numpy", forceinline=True)
def _place(gaussian, values, lane, step, plane, shape):
    """Record of one plane, and its place in the volume as rows one below the other."""
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
    """Add ``w c`` and ``w`` on the planes of ``slab``, [first, last). ``volumes``: addresses of both, and stride."""
    wide, least = width(doubles(lanes)), np.float32(HALF_LOG2E * cut2)
    space = np.empty((SHARED + 5, wide))
    shared = address(space)
    values = shared + 8 * SHARED * wide
    for start in range(0, count, wide):
        _share(table, order, start, pose, pixels, mass_factor, shared, doubles(lanes))
        for lane in range(min(wide, count - start)):
            j = np.int64(load(order, start + lane, INTEGER))
            gaussian = _column(shared, lane, wide)
            first = max(slab[0], np.int64(load(ranges, 2 * j, INTEGER)))
            last = min(slab[1], np.int64(load(ranges, 2 * j + 1, INTEGER)))
            for z0 in range(first, last, wide):
                _planes(gaussian, z0, pixels[2], cut2, values, doubles(lanes))
                for z in range(z0, min(z0 + wide, last)):
                    f, place = _place(gaussian, values, z - z0, wide, z, shape)
                    if place[0] < place[1]:
                        rows.splat(volumes[0], volumes[1], volumes[2], f, least, place, lanes)
    space[0, 0] = 0.0  # it lives until here


@nb.njit
def _reaching(order, ranges, first, last):
    """The Gaussians of ``order`` that reach the planes [first, last), and their number."""
    index = np.empty(len(order) + 1, order.dtype)
    count = 0
    for j in order[: len(order) - pairs.WIDEST]:
        index[count] = j
        count += ranges[j, 0] < last and ranges[j, 1] > first
    pairs.fill(index, count)
    return index, count


@nb.njit(fastmath=FAST, error_model="numpy")
def _divide(numerator, weight, eps):
    """Sums to I and D, in place."""
    for i in range(len(weight)):
        d = weight[i] + eps
        weight[i] = d
        numerator[i] = numerator[i] / d


@nb.njit(parallel=True, cache=True, error_model="numpy")
def forward(pose, pixels, table, order, ranges, cut2, eps, mass_factor, lanes, image, weight):
    """Fill ``image`` = I and ``weight`` = D, both from :func:`padded`; rubbish in the padding.

    ``pose``: rotation (3, 3) with the axes of row, column and plane, position of voxel (0, 0, 0), PSF variances.
    ``pixels`` (5,): spacing (2), centre (2) of a plane, and the distance of planes. ``table``: see
    :mod:`gsbids.kernels.cpu.pairs`. ``order``: the Gaussians, neighbours one after the other. ``ranges``:
    :func:`plane_ranges`.
    """
    for part in nb.prange((len(image) + SLAB - 1) // SLAB):
        frame, lattice = _tuples(pose, pixels)
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
def _tuples(pose, pixels):
    """Pose and pixels as tuples of numbers."""
    return pose_of(pose[0], pose[1], pose[2]), ((pixels[0], pixels[1]), (pixels[2], pixels[3]), pixels[4])


@nb.njit(fastmath=FAST, error_model="numpy")
def _cotangents_row(grad, image, weight, h, k):
    for j in range(len(grad)):
        h[j] = grad[j] / weight[j]
        k[j] = h[j] * image[j]
    h[len(grad) :] = 0.0
    k[len(grad) :] = 0.0


@nb.njit(parallel=True, cache=True, error_model="numpy")
def cotangents(grad, image, weight, h, k):
    """Fill ``h = g / D`` and ``k = h I``, 0 in the padding; ``grad`` has none."""
    for z in nb.prange(len(grad)):
        for i in range(grad.shape[1]):
            _cotangents_row(grad[z, i], image[z, i], weight[z, i], h[z, i], k[z, i])
        h[z, grad.shape[1]] = 0.0
        k[z, grad.shape[1]] = 0.0


@nb.njit(error_model="numpy", forceinline=True)
def _about_mean(m, gaussian, first, pixels, lanes):
    """The ten moments about the mean, and ``sum w h``, of planes side by side, from those about their own centres."""
    z = (ramp(lanes) + first) * pixels[2] - gaussian[4]
    u, v = z * (gaussian[2] * pixels[0][0]), z * (gaussian[3] * pixels[0][1])
    s0, su, sv = m[0], m[1] + u * m[0], m[2] + v * m[0]
    return (
        s0,
        su,
        sv,
        z * s0,
        m[3] + u * (m[1] + su),
        m[4] + u * m[2] + v * su,
        z * su,
        m[5] + v * (m[2] + sv),
        z * sv,
        z * z * s0,
        m[6],
    )


@nb.njit(error_model="numpy")
def _chain(p, m, mass_factor):
    """Gradients with respect to mean (3) and S (6): P M1, and (P M2 P - mass M0 P) / 2, P = S^-1."""
    a, b, d = p[11], p[12], p[13]
    c, e = -(a * p[5] + b * p[7]) * p[17], -(b * p[5] + d * p[7]) * p[17]
    f = (1.0 - c * p[5] - e * p[7]) * p[17]
    k0, k1, k2 = a * m[4] + b * m[5] + c * m[6], a * m[5] + b * m[7] + c * m[8], a * m[6] + b * m[8] + c * m[9]
    l0, l1, l2 = b * m[4] + d * m[5] + e * m[6], b * m[5] + d * m[7] + e * m[8], b * m[6] + d * m[8] + e * m[9]
    n0, n1, n2 = c * m[4] + e * m[5] + f * m[6], c * m[5] + e * m[7] + f * m[8], c * m[6] + e * m[8] + f * m[9]
    s = m[0] * (1.0 if mass_factor else 0.0)
    return (
        a * m[1] + b * m[2] + c * m[3],
        b * m[1] + d * m[2] + e * m[3],
        c * m[1] + e * m[2] + f * m[3],
        0.5 * (k0 * a + k1 * b + k2 * c - s * a),
        0.5 * (k0 * b + k1 * d + k2 * e - s * b),
        0.5 * (k0 * c + k1 * e + k2 * f - s * c),
        0.5 * (l0 * b + l1 * d + l2 * e - s * d),
        0.5 * (l0 * c + l1 * e + l2 * f - s * e),
        0.5 * (n0 * c + n1 * e + n2 * f - s * f),
    )


@nb.njit(error_model="numpy", forceinline=True)
def _gather_planes(pixels, shape, gaussian, reach, cut2, images, space, lanes):
    """Moments of one Gaussian from the planes ``reach``. ``space``: addresses of (5, lanes) and of the moments."""
    wide, least = width(doubles(lanes)), np.float32(HALF_LOG2E * cut2)
    ratio = gaussian[8] * pixels[0][0] / pixels[0][1]
    zero = spread(0.0, doubles(lanes))
    a = b = c = d = e = f = g = h = i = j = k = zero
    for z0 in range(reach[0], reach[1], wide):
        _planes(gaussian, z0, pixels[2], cut2, space[0], doubles(lanes))
        for lane in range(wide):
            record, place = _place(gaussian, space[0], lane, wide, z0 + lane, shape)
            if z0 + lane >= reach[1]:
                place = place[0], place[0], place[2], place[2]  # nothing, and so no moments
            pairs.put(space[1], lane, rows.moments(images[0], images[1], images[2], record, least, place, lanes), lanes)
        m = pairs.centred(space[1], pixels[0], ratio, gaussian[11], lanes)
        m = _about_mean(m, gaussian, z0, pixels, doubles(lanes))
        a, b, c, d, e, f = a + m[0], b + m[1], c + m[2], d + m[3], e + m[4], f + m[5]
        g, h, i, j, k = g + m[6], h + m[7], i + m[8], j + m[9], k + m[10]
    return (
        total(a),
        total(b),
        total(c),
        total(d),
        total(e),
        total(f),
        total(g),
        total(h),
        total(i),
        total(j),
        total(k),
    )


@nb.njit(error_model="numpy", forceinline=True)
def _exchange(at, lane, m, step):
    """Store the eleven numbers ``m`` of one Gaussian where :func:`_moments_of` reads them side by side."""
    store(at, lane, m[0])
    store(at, step + lane, m[1])
    store(at, 2 * step + lane, m[2])
    store(at, 3 * step + lane, m[3])
    store(at, 4 * step + lane, m[4])
    store(at, 5 * step + lane, m[5])
    store(at, 6 * step + lane, m[6])
    store(at, 7 * step + lane, m[7])
    store(at, 8 * step + lane, m[8])
    store(at, 9 * step + lane, m[9])
    store(at, 10 * step + lane, m[10])


@nb.njit(error_model="numpy", forceinline=True)
def _moments_of(at, lanes):
    n = width(lanes)
    return (
        load(at, 0, lanes),
        load(at, n, lanes),
        load(at, 2 * n, lanes),
        load(at, 3 * n, lanes),
        load(at, 4 * n, lanes),
        load(at, 5 * n, lanes),
        load(at, 6 * n, lanes),
        load(at, 7 * n, lanes),
        load(at, 8 * n, lanes),
        load(at, 9 * n, lanes),
        load(at, 10 * n, lanes),
    )


@nb.njit(error_model="numpy")
def _moments_block(pose, pixels, shape, table, order, count, ranges, cut2, mass_factor, images, grad, lanes):
    """Gradients of the first ``count`` Gaussians of ``order``, gathered from all their planes; all by address."""
    wide = width(doubles(lanes))
    space, moments = np.zeros((SHARED + 5 + 11, wide)), np.zeros((8 * wide, pairs.STRIDE), np.float32)
    shared, sums = address(space), address(moments)
    values, gathered = shared + 8 * SHARED * wide, shared + 8 * (SHARED + 5) * wide
    group = sums + 4 * 7 * wide * pairs.STRIDE
    for start in range(0, count, wide):
        p = _share(table, order, start, pose, pixels, mass_factor, shared, doubles(lanes))
        many = min(wide, count - start)
        for lane in range(many):
            at = 2 * np.int64(load(order, start + lane, INTEGER))
            reach = np.int64(load(ranges, at, INTEGER)), np.int64(load(ranges, at + 1, INTEGER))
            _exchange(
                gathered,
                lane,
                _gather_planes(pixels, shape, _column(shared, lane, wide), reach, cut2, images, (values, sums), lanes),
                wide,
            )
        m = _moments_of(gathered, doubles(lanes))
        pairs.put_gradient(group, to_world(pose[0], _chain(p, m, mass_factor)), m[10], m[0])
        for lane in range(many):
            at = 11 * np.int64(load(order, start + lane, INTEGER))
            for c in range(11):
                store(grad, at + c, load(group, pairs.TABLE * lane + c, PLAIN))
    space[0, 0], moments[0, 0] = 0.0, 0.0  # they live until here


@nb.njit(parallel=True, cache=True, error_model="numpy")
def backward(pose, pixels, table, order, ranges, cut2, mass_factor, lanes, h, k, grad):
    """Fill ``grad`` (J, 11), columns as in :func:`gsbids.kernels.cpu.splat.backward`, from ``h`` and ``k``."""
    for part in nb.prange((len(grad) + BLOCK - 1) // BLOCK):
        frame, lattice = _tuples(pose, pixels)
        shape = h.shape[1] - 1, h.shape[2] - PADDING
        _moments_block(
            frame,
            lattice,
            shape,
            address(table),
            address(order) + 4 * part * BLOCK,
            min(BLOCK, len(grad) - part * BLOCK),
            address(ranges),
            cut2,
            mass_factor,
            (address(h), address(k), h.shape[2]),
            address(grad),
            lanes,
        )
