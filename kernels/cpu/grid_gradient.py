# SPDX-License-Identifier: Apache-2.0
"""Gradients of Gaussians on a regular grid, the backward pass of :mod:`gsbids.kernels.cpu.grid`.

Parts of the work are Gaussians, each of which gathers from all its planes (moments about its mean, in three
dimensions), so that no sum is shared: the bits never depend on the threads.
"""

import numba as nb
import numpy as np

from gsbids.kernels.cpu import pairs, rows
from gsbids.kernels.cpu.grid import SHARED, as_tuples, column_of, plane_place, plane_terms, shared_terms
from gsbids.kernels.cpu.lanes import FAST, INTEGER, PLAIN, address, doubles, load, ramp, spread, store, total, width
from gsbids.kernels.cpu.projection import to_world
from gsbids.kernels.cpu.rows import HALF_LOG2E, PADDING

BLOCK = 1024  # Gaussians of a part


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
    """Convert the moments of planes side by side from their own centres to the mean.

    Returns the ten moments about the mean, and ``sum w h``.
    """
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
    """Return the gradients with respect to mean (3) and S (6).

    P M1, and (P M2 P - mass M0 P) / 2, with P = S^-1.
    """
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
    """Gather the moments of one Gaussian from the planes ``reach``.

    ``space``: addresses of (5, lanes) and of the moments.
    """
    wide, least = width(doubles(lanes)), np.float32(HALF_LOG2E * cut2)
    ratio = gaussian[8] * pixels[0][0] / pixels[0][1]
    zero = spread(0.0, doubles(lanes))
    a = b = c = d = e = f = g = h = i = j = k = zero
    for z0 in range(reach[0], reach[1], wide):
        plane_terms(gaussian, z0, pixels[2], cut2, space[0], doubles(lanes))
        for lane in range(wide):
            record, place = plane_place(gaussian, space[0], lane, wide, z0 + lane, shape)
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
    """Compute the gradients of the first ``count`` Gaussians of ``order``, gathered from all their planes.

    All arrays are given by address.
    """
    wide = width(doubles(lanes))
    space, moments = np.zeros((SHARED + 5 + 11, wide)), np.zeros((8 * wide, pairs.STRIDE), np.float32)
    shared, sums = address(space), address(moments)
    values, gathered = shared + 8 * SHARED * wide, shared + 8 * (SHARED + 5) * wide
    group = sums + 4 * 7 * wide * pairs.STRIDE
    for start in range(0, count, wide):
        p = shared_terms(table, order, start, pose, pixels, mass_factor, shared, doubles(lanes))
        many = min(wide, count - start)
        for lane in range(many):
            at = 2 * np.int64(load(order, start + lane, INTEGER))
            reach = np.int64(load(ranges, at, INTEGER)), np.int64(load(ranges, at + 1, INTEGER))
            _exchange(
                gathered,
                lane,
                _gather_planes(
                    pixels, shape, column_of(shared, lane, wide), reach, cut2, images, (values, sums), lanes
                ),
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
        frame, lattice = as_tuples(pose, pixels)
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
