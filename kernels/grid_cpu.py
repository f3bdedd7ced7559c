# SPDX-License-Identifier: Apache-2.0
"""Gaussians on a regular grid: every plane of the grid is a slice with the same axes.

Axis 0 of the volume is the normal of the planes, so that rows and columns lie in memory as an image does. What
:mod:`gsbids.kernels.projection` calculates for a pair (slice, Gaussian) belongs to the Gaussian alone here; along
the planes only the centre and the peak move. Contributions end where ``E >= cut ** 2``.

Forward: parts are slabs of planes. Backward: parts are Gaussians, each of which gathers from all its planes
(moments about its mean, in three dimensions), so that no sum is shared: the bits never depend on the threads.
"""

import math

import numba as nb
import numpy as np

from gsbids.kernels import rows
from gsbids.kernels.lanes import FAST
from gsbids.kernels.projection import add_to_gaussian, project
from gsbids.kernels.rows import HALF_LOG2E, PADDING
from gsbids.kernels.splat_cpu import peak

SLAB = 16  # planes of a part
BLOCK = 1024  # Gaussians of a part


def padded(shape: tuple[int, int, int]) -> np.ndarray:
    """New float32 volume with room for strips that overrun, and no power of 2 from plane to plane (cache sets)."""
    return np.empty((shape[0], shape[1] + 1, shape[2] + PADDING), np.float32)


@nb.njit(parallel=True, cache=True, error_model="numpy")
def plane_ranges(pose, spacing, planes, mean, cov, cut, ranges):
    """Fill ``ranges`` (J, 2) with the first and one-past-last plane that each Gaussian reaches."""
    rotation, origin, psf = pose
    for j in nb.prange(len(mean)):
        a, b, c = rotation[0, 2], rotation[1, 2], rotation[2, 2]
        z = a * (mean[j, 0] - origin[0]) + b * (mean[j, 1] - origin[1]) + c * (mean[j, 2] - origin[2])
        variance = (a * (a * cov[j, 0] + 2 * (b * cov[j, 1] + c * cov[j, 2]))
                    + b * (b * cov[j, 3] + 2 * c * cov[j, 4]) + c * c * cov[j, 5] + psf[2])
        half = cut * math.sqrt(variance)
        ranges[j, 0] = rows.ceiling((z - half) / spacing, 0, planes)
        ranges[j, 1] = rows.ceiling((z + half) / spacing, 0, planes)


@nb.njit(inline="always")
def _on_plane(p, z):
    """The projection ``p`` onto the plane at height z (mm) above the one it was calculated for."""
    mz = p[2] - z
    return (p[0], p[1], mz, p[3], p[4], p[5], p[6], p[7], p[8], p[0] - p[5] * mz / p[8], p[1] - p[7] * mz / p[8],
            p[11], p[12], p[13], p[14], p[15], p[16])


@nb.njit(error_model="numpy")
def _splat_slab(pose, pixels, extent, field, order, ranges, first, cut2, mass_factor, numerator, weight, lanes):
    """Sums of ``w c`` and ``w`` on the planes [first, first + len(weight))."""
    mean, cov, intensity, amplitude = field
    bounds = (0, len(extent), 0, np.int64(extent[0, 1]))
    last = first + len(weight)
    for j in order:
        z0, z1 = max(first, ranges[j, 0]), min(last, ranges[j, 1])
        if z0 >= z1:
            continue
        p = project(pose[0], pose[1], pose[2], mean[j], cov[j])
        top = peak(p, amplitude[j], mass_factor)
        for z in range(z0, z1):
            f = rows.fit(_on_plane(p, z * pixels[2]), pixels[0], pixels[1], cut2)
            place = rows.box(f, bounds, extent)
            if place[0] < place[1]:
                rows.splat(numerator[z - first], weight[z - first], f, top, intensity[j], HALF_LOG2E * cut2, place,
                           lanes)


@nb.njit(fastmath=FAST, error_model="numpy")
def _divide(numerator, weight, eps):
    """Sums to I and D, in place."""
    for i in range(len(weight)):
        d = weight[i] + eps
        weight[i] = d
        numerator[i] = numerator[i] / d


@nb.njit(parallel=True, cache=True, error_model="numpy")
def forward(pose, pixels, extent, field, order, ranges, cut2, eps, mass_factor, lanes, image, weight):
    """Fill ``image`` = I and ``weight`` = D, both from :func:`padded`; rubbish in the padding.

    ``pose``: rotation (3, 3) with the axes of row, column and plane, position of voxel (0, 0, 0), PSF variances.
    ``pixels``: spacing (2), centre (2) of a plane, and the distance of planes. ``field``: mean, covariance (J, 6),
    intensity, amplitude. ``order``: the Gaussians, neighbours one after the other. ``ranges``:
    :func:`plane_ranges`.
    """
    for part in nb.prange((len(image) + SLAB - 1) // SLAB):
        first = part * SLAB
        last = min(first + SLAB, len(image))
        n, d = image[first:last], weight[first:last]
        n[:] = 0.0
        d[:] = 0.0
        _splat_slab(pose, pixels, extent, field, order, ranges, first, cut2, mass_factor, n, d, lanes)
        _divide(n.reshape(-1), d.reshape(-1), eps)


@nb.njit(parallel=True, cache=True)
def cotangents(grad, image, weight, h, k):
    """Fill ``h = g / D`` and ``k = h I``, 0 in the padding; ``grad`` has none."""
    for z in nb.prange(len(grad)):
        h[z] = 0.0
        k[z] = 0.0
        for i in range(grad.shape[1]):
            for j in range(grad.shape[2]):
                h[z, i, j] = grad[z, i, j] / weight[z, i, j]
                k[z, i, j] = h[z, i, j] * image[z, i, j]


@nb.njit(error_model="numpy")
def _add_plane(sums, m, p):
    """Add the moments of one plane, about its centre there, to the ten about the mean, and ``sum w h``."""
    u, v, z = p[9] - p[0], p[10] - p[1], -p[2]
    s0, su, sv = m[0], m[1] + u * m[0], m[2] + v * m[0]
    sums[0] += s0
    sums[1] += su
    sums[2] += sv
    sums[3] += z * s0
    sums[4] += m[3] + u * (m[1] + su)
    sums[5] += m[4] + u * m[2] + v * su
    sums[6] += z * su
    sums[7] += m[5] + v * (m[2] + sv)
    sums[8] += z * sv
    sums[9] += z * z * s0
    sums[10] += m[6]


@nb.njit(error_model="numpy")
def _chain(p, m, mass_factor):
    """Gradients with respect to mean (3) and S (6): P M1, and (P M2 P - mass M0 P) / 2, P = S^-1."""
    szz = p[8]
    a, b, d = p[11], p[12], p[13]
    c, e = -(a * p[5] + b * p[7]) / szz, -(b * p[5] + d * p[7]) / szz
    f = (1.0 - c * p[5] - e * p[7]) / szz
    k0, k1, k2 = a * m[4] + b * m[5] + c * m[6], a * m[5] + b * m[7] + c * m[8], a * m[6] + b * m[8] + c * m[9]
    l0, l1, l2 = b * m[4] + d * m[5] + e * m[6], b * m[5] + d * m[7] + e * m[8], b * m[6] + d * m[8] + e * m[9]
    n0, n1, n2 = c * m[4] + e * m[5] + f * m[6], c * m[5] + e * m[7] + f * m[8], c * m[6] + e * m[8] + f * m[9]
    s = m[0] if mass_factor else 0.0
    return (a * m[1] + b * m[2] + c * m[3], b * m[1] + d * m[2] + e * m[3], c * m[1] + e * m[2] + f * m[3],
            0.5 * (k0 * a + k1 * b + k2 * c - s * a), 0.5 * (k0 * b + k1 * d + k2 * e - s * b),
            0.5 * (k0 * c + k1 * e + k2 * f - s * c), 0.5 * (l0 * b + l1 * d + l2 * e - s * d),
            0.5 * (l0 * c + l1 * e + l2 * f - s * e), 0.5 * (n0 * c + n1 * e + n2 * f - s * f))


@nb.njit(error_model="numpy")
def _moments_block(pose, pixels, extent, field, order, ranges, cut2, mass_factor, h, k, grad, lanes):
    """Gradients of the Gaussians of ``order``, gathered from all their planes."""
    mean, cov, intensity, amplitude = field
    bounds = (0, len(extent), 0, np.int64(extent[0, 1]))
    sums = np.empty(11)
    for j in order:
        sums[:] = 0.0
        p = project(pose[0], pose[1], pose[2], mean[j], cov[j])
        top = peak(p, amplitude[j], mass_factor)
        for z in range(ranges[j, 0], ranges[j, 1]):
            q = _on_plane(p, z * pixels[2])
            f = rows.fit(q, pixels[0], pixels[1], cut2)
            place = rows.box(f, bounds, extent)
            if place[0] < place[1]:
                _add_plane(sums, rows.moments(h[z], k[z], f, pixels[0], top, intensity[j], HALF_LOG2E * cut2, place,
                                              lanes), q)
        g = _chain(p, sums, mass_factor)
        add_to_gaussian(grad[j], pose[0], g, (sums[0], 0.0, 0.0, 0.0, 0.0, 0.0, sums[10]))


@nb.njit(parallel=True, cache=True, error_model="numpy")
def backward(pose, pixels, extent, field, order, ranges, cut2, mass_factor, lanes, h, k, grad):
    """Fill ``grad`` (J, 11), columns as in :func:`gsbids.kernels.splat_cpu.backward`, from ``h`` and ``k``."""
    for part in nb.prange((len(order) + BLOCK - 1) // BLOCK):
        block = order[part * BLOCK:(part + 1) * BLOCK]
        for j in block:
            grad[j] = 0.0
        _moments_block(pose, pixels, extent, field, block, ranges, cut2, mass_factor, h, k, grad, lanes)
