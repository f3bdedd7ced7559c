# SPDX-License-Identifier: Apache-2.0
"""Device functions of the slice renderer on the GPU: the formulas of :mod:`gsbids.kernels.cpu.splat` in float32.

Packed arrays, so that a launch has few arguments and a thread reads few cache lines:

- ``frame`` (S, 20): rotation (9, row-major), translation (3), PSF variances (3), spacing (2), centre (2), 0.
- ``gauss`` (J, 12): mean (3), covariance (xx, xy, xz, yy, yz, zz), intensity, log-amplitude, 0.
- ``record`` (n, 8), one a pair of slice and Gaussian, in pixels and powers of 2:
  ``(pi, pj, kii, kij, kjj, k0, c, emin)`` with ``e = k0 + kii di^2 + kij di dj + kjj dj^2``, ``w = 2^e`` where
  ``e > emin``.

Every constant is a float32: a float64 one would promote the arithmetic, which costs a GPU dearly.
"""

import math

import numpy as np
from numba import float32, int32

from gsbids.kernels.cuda import runtime

cuda = runtime.numba_cuda()

FRAME, GAUSS, RECORD = 20, 12, 8  # float32 of a slice frame, of a Gaussian, and of a pair of both
TILE = 8  # pixels along the edge of a tile
ALIGNED = None if runtime.is_simulator() else 16  # bytes, of staged records: read in fours; the simulator knows none
ZERO, HALF, ONE, TWO, FOUR, TEN = (np.float32(x) for x in (0, 0.5, 1, 2, 4, 10))
LOG2E, LN2 = np.float32(1.4426950408889634), np.float32(0.6931471805599453)
HALF_LOG2E = np.float32(0.7213475204444817)


@cuda.jit(device=True, fastmath=True)
def ceil_between(x, last):
    """Return the smallest integer not below x, within 0 and ``last``."""
    x = min(max(x, ZERO), float32(last))
    n = int32(x)
    if float32(n) < x:
        n += int32(1)
    return n


@cuda.jit(device=True, fastmath=True)
def floor_between(x, last):
    """Return the largest integer not above x, within -1 and ``last``."""
    x = min(max(x, -ONE), float32(last))
    n = int32(x)
    if float32(n) > x:
        n -= int32(1)
    return n


@cuda.jit(device=True, fastmath=True)
def reaches(f, g, cut2):
    """Return whether Gaussian ``g`` (row of ``gauss``) comes within the cut of the plane of slice ``f``."""
    a, b, c = f[2], f[5], f[8]
    z = a * (g[0] - f[9]) + b * (g[1] - f[10]) + c * (g[2] - f[11])
    zeta = a * (a * g[3] + TWO * (b * g[4] + c * g[5])) + b * (b * g[6] + TWO * c * g[7]) + c * c * g[8] + f[14]
    return z * z < cut2 * zeta


@cuda.jit(device=True, fastmath=True)
def rotated(r0, r1, r2, g, x, y, z):
    """Return ``r . (Sigma (x, y, z))`` with Sigma from row ``g``."""
    return (
        r0 * (g[3] * x + g[4] * y + g[5] * z)
        + r1 * (g[4] * x + g[6] * y + g[7] * z)
        + r2 * (g[5] * x + g[7] * y + g[8] * z)
    )


@cuda.jit(device=True, fastmath=True)
def project(f, g):
    """Return mean and covariance in the slice frame, and the conditional 2D Gaussian.

    In this order: m (3), S (uu, uv, uz, vv, vz, zz, with PSF), xbar (2), Q = C^-1 (uu, uv, vv), C_uu, C_vv.
    """
    y0, y1, y2 = g[0] - f[9], g[1] - f[10], g[2] - f[11]
    mu = f[0] * y0 + f[3] * y1 + f[6] * y2
    mv = f[1] * y0 + f[4] * y1 + f[7] * y2
    mz = f[2] * y0 + f[5] * y1 + f[8] * y2
    suu = rotated(f[0], f[3], f[6], g, f[0], f[3], f[6]) + f[12]
    suv = rotated(f[0], f[3], f[6], g, f[1], f[4], f[7])
    suz = rotated(f[0], f[3], f[6], g, f[2], f[5], f[8])
    svv = rotated(f[1], f[4], f[7], g, f[1], f[4], f[7]) + f[13]
    svz = rotated(f[1], f[4], f[7], g, f[2], f[5], f[8])
    szz = rotated(f[2], f[5], f[8], g, f[2], f[5], f[8]) + f[14]
    tu, tv = suz / szz, svz / szz
    cuu, cuv, cvv = suu - suz * tu, suv - suz * tv, svv - svz * tv
    inverse = ONE / (cuu * cvv - cuv * cuv)
    return (
        mu,
        mv,
        mz,
        suu,
        suv,
        suz,
        svv,
        svz,
        szz,
        mu - tu * mz,
        mv - tv * mz,
        cvv * inverse,
        -cuv * inverse,
        cuu * inverse,
        cuu,
        cvv,
    )


@cuda.jit(device=True, fastmath=True)
def bounds(p, f, cut2, rows, columns):
    """Return the pixels that a projection ``p`` may reach: rows i0 to i1 - 1, columns j0 to j1 - 1, or none."""
    room = cut2 - p[2] * p[2] / p[8]
    if room <= ZERO:
        return int32(0), int32(0), int32(0), int32(0)
    i, j = p[9] / f[15] + f[17], p[10] / f[16] + f[18]
    di, dj = math.sqrt(room * p[14]) / f[15], math.sqrt(room * p[15]) / f[16]
    return (
        ceil_between(i - di, rows),
        floor_between(i + di, rows - 1) + int32(1),
        ceil_between(j - dj, columns),
        floor_between(j + dj, columns - 1) + int32(1),
    )


@cuda.jit(device=True, fastmath=True)
def peak(r, i0, i1, j0, j1):
    """Return the largest ``e - k0`` (of record ``r``) over the rectangle of pixels i0..i1, j0..j1.

    It is concave with its maximum 0 at (pi, pj): outside of it the largest value lies on an edge that faces it.
    """
    x0, x1, y0, y1 = float32(i0) - r[0], float32(i1) - r[0], float32(j0) - r[1], float32(j1) - r[1]
    x, y = max(x0, ZERO) + min(x1, ZERO), max(y0, ZERO) + min(y1, ZERO)
    if x == ZERO and y == ZERO:
        return ZERO
    best = -np.float32(1e30)
    if x != ZERO:
        b = r[3] * x
        t = min(max(-b / (TWO * r[4]), y0), y1)
        best = r[2] * x * x + t * (b + r[4] * t)
    if y != ZERO:
        b = r[3] * y
        t = min(max(-b / (TWO * r[2]), x0), x1)
        best = max(best, r[4] * y * y + t * (b + r[2] * t))
    return best


@cuda.jit(device=True, fastmath=True)
def chain(p, s0, su, sv, suu, suv, svv, mass_factor):
    """Return the gradients with respect to m (3) and S (6, full symmetric entries) from the moments, in mm.

    The moments are those of ``W = w (c h - k)`` about xbar; formulas: ``gsbids.kernels.cpu.projection.chain``.
    """
    mz, suz_, svz_, szz, quu, quv, qvv = p[2], p[5], p[7], p[8], p[11], p[12], p[13]
    xu, xv = quu * su + quv * sv, quv * su + qvv * sv
    a, b, c, d = quu * suu + quv * suv, quu * suv + quv * svv, quv * suu + qvv * suv, quv * suv + qvv * svv
    cuu, cuv, cvv = HALF * (a * quu + b * quv), HALF * (a * quv + b * qvv), HALF * (c * quv + d * qvv)
    inverse = ONE / szz
    tu, tv, tz = suz_ * inverse, svz_ * inverse, mz * inverse
    zz = HALF * s0 * tz * tz
    if mass_factor:
        cuu -= HALF * s0 * quu
        cuv -= HALF * s0 * quv
        cvv -= HALF * s0 * qvv
        zz -= HALF * s0 * inverse
    lu, lv = cuu * tu + cuv * tv, cuv * tu + cvv * tv
    sx = tu * xu + tv * xv
    zz += sx * tz + tu * lu + tv * lv
    return xu, xv, -sx - s0 * tz, cuu, cuv, -HALF * tz * xu - lu, cvv, -HALF * tz * xv - lv, zz


@cuda.jit(device=True, fastmath=True)
def rotation_of(w, x, y, z):
    """Return the rotation matrix (9, row-major) of a unit quaternion."""
    return (
        ONE - TWO * (y * y + z * z),
        TWO * (x * y - w * z),
        TWO * (x * z + w * y),
        TWO * (x * y + w * z),
        ONE - TWO * (x * x + z * z),
        TWO * (y * z - w * x),
        TWO * (x * z - w * y),
        TWO * (y * z + w * x),
        ONE - TWO * (x * x + y * y),
    )
