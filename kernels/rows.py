# SPDX-License-Identifier: Apache-2.0
"""Inner loops of the splat: one conditioned Gaussian on strips of an image, as wide as there are lanes.

With a row index i and a column index j, all in pixels, and (x_i, x_j) the centre on the plane,

    E = E_0 + (j - x_j)^2 / C_jj + Q_ii (i - x_i - slope (j - x_j))^2,    slope = C_ij / C_jj,

so that along a strip of columns everything but the last term is a constant of the lane: a row costs three vector
operations for E and one ``exp2``. Both terms are squares: nothing cancels, however thin the Gaussian is.
Contributions end where ``E >= cut ** 2``. The study: ``kernels.md`` sections 2.3 and 2.5.

``GSBIDS_ROWS=plain`` chooses the same loops without vectors, ``vector`` insists on them; left out, vectors are
used where they compile.
"""

import math
import os

import numba as nb
import numpy as np

from gsbids.kernels import lanes as simd
from gsbids.kernels.lanes import FAST, exp2_above, ramp, read, spread, total, width, write

HALF_LOG2E = -0.5 * 1.4426950408889634
PADDING = int(simd.VECTOR)  # columns that a strip may reach beyond the image


def lanes():
    """Lanes of the kernels: ``lanes.VECTOR`` or ``lanes.PLAIN``, see the module."""
    choice = os.environ.get("GSBIDS_ROWS", "")
    if choice not in ("", "plain", "vector"):
        raise ValueError(f"GSBIDS_ROWS is {choice!r}: use 'plain' or 'vector', or leave it out")
    if choice == "plain" or (not choice and not simd.vectors_work()):
        return simd.PLAIN
    return simd.VECTOR


@nb.njit(inline="always")
def fit(p, spacing, centre, cut2):
    """What the strips need of a projection ``p`` (:func:`gsbids.kernels.projection.project`), in pixels.

    Returns x_i, x_j, slope, and the factors of the two squares and the constant in the exponent of 2, and the half
    sizes of the bounding box along i and j, and Q_ii.
    """
    szz, xu, xv, quu, cuu, cuv, cvv = p[8], p[9], p[10], p[11], p[14], p[15], p[16]
    energy = p[2] * p[2] / szz
    room = max(cut2 - energy, 0.0)
    slope = cuv / cvv * spacing[1] / spacing[0]
    return (xu / spacing[0] + centre[0], xv / spacing[1] + centre[1], slope,
            HALF_LOG2E * quu * spacing[0] * spacing[0], HALF_LOG2E * spacing[1] * spacing[1] / cvv,
            HALF_LOG2E * energy, math.sqrt(room * cuu) / spacing[0], math.sqrt(room * cvv) / spacing[1])


@nb.njit(inline="always")
def ceiling(x, low, high):
    """First integer >= x, within [low, high]; no call into libm, which would spill every vector register."""
    x = min(max(x, low - 0.5), high + 0.5)
    return min(max(np.int64(x + 65536.999999) - 65536, low), high)


@nb.njit(error_model="numpy")
def box(f, bounds, extent):
    """Rows [i0, i1) and columns [j0, j1) of the bounding box, within ``bounds`` (4) and where there are pixels."""
    i0, i1 = ceiling(f[0] - f[6], bounds[0], bounds[1]), ceiling(f[0] + f[6], bounds[0], bounds[1])
    j0, j1 = ceiling(f[1] - f[7], bounds[2], bounds[3]), ceiling(f[1] + f[7], bounds[2], bounds[3])
    while i0 < i1 and (extent[i0, 1] <= j0 or extent[i0, 0] >= j1):
        i0 += 1
    while i0 < i1 and (extent[i1 - 1, 1] <= j0 or extent[i1 - 1, 0] >= j1):
        i1 -= 1
    return i0, i1, j0, j1


@nb.njit(inline="always")
def strip_rows(f, least, i0, i1, j, count):
    """Rows of [i0, i1) that the Gaussian reaches on the columns [j, j + count)."""
    if f[7] > 0.5 * count:  # wider than a strip: the ellipse is shorter on most strips than its box
        first, last = j - f[1], j + count - 1 - f[1]
        tip = f[6] * f[2] * f[3] / (f[4] + f[2] * f[2] * f[3])  # column of the box's last row
        high, low = min(max(tip, first), last), min(max(-tip, first), last)
        above = max((least - f[5] - f[4] * high * high) / f[3], 0.0)
        below = max((least - f[5] - f[4] * low * low) / f[3], 0.0)
        return (ceiling(f[0] + f[2] * low - math.sqrt(below), i0, i1),
                ceiling(f[0] + f[2] * high + math.sqrt(above), i0, i1))
    return i0, i1


@nb.njit(inline="always")
def _columns(f, i, j, lanes):
    """Constants of a strip: j - x_j, its part of the exponent, and the row offset of the ridge from row i."""
    dj = ramp(lanes) + spread(np.float32(j - f[1]), lanes)
    base = spread(np.float32(f[4]), lanes) * dj * dj + spread(np.float32(f[5]), lanes)
    ridge = spread(np.float32(f[2]), lanes) * dj
    return dj, base, ridge, ridge + spread(np.float32(f[0] - i), lanes)


@nb.njit(fastmath=FAST, error_model="numpy")
def splat(numerator, weight, f, amplitude, intensity, least, place, lanes):
    """Add ``w`` and ``w c`` of one Gaussian to two images (X, Y + PADDING)."""
    i0, i1, j0, j1 = place
    factor, floor = spread(np.float32(f[3]), lanes), spread(np.float32(least), lanes)
    a, ac = spread(np.float32(amplitude), lanes), spread(np.float32(amplitude * intensity), lanes)
    one = spread(np.float32(1.0), lanes)
    for j in range(j0, j1, width(lanes)):
        first, last = strip_rows(f, least, i0, i1, j, width(lanes))
        _, base, _, ridge = _columns(f, first, j, lanes)
        row = spread(np.float32(0.0), lanes)
        for i in range(first, last):
            d = row - ridge
            w = exp2_above(factor * d * d + base, floor)
            write(weight, i, j, read(weight, i, j, lanes) + a * w)
            write(numerator, i, j, read(numerator, i, j, lanes) + ac * w)
            row = row + one


@nb.njit(fastmath=FAST, error_model="numpy")
def moments(h, k, f, spacing, amplitude, intensity, least, place, lanes):
    """S0, S1 (2), S2 (3) of ``W = w (c h - k)`` about the centre (mm), and ``sum w h``, of one Gaussian."""
    zero = spread(np.float32(0.0), lanes)
    s0 = su = sv = suu = suv = svv = gc = zero
    i0, i1, j0, j1 = place
    factor, floor = spread(np.float32(f[3]), lanes), spread(np.float32(least), lanes)
    c, one = spread(np.float32(intensity), lanes), spread(np.float32(1.0), lanes)
    for j in range(j0, j1, width(lanes)):
        first, last = strip_rows(f, least, i0, i1, j, width(lanes))
        dj, base, shift, ridge = _columns(f, first, j, lanes)
        row = q0 = q1 = q2 = zero
        for i in range(first, last):
            d = row - ridge
            w = exp2_above(factor * d * d + base, floor)
            gradient = read(h, i, j, lanes)
            gc = gc + w * gradient
            w = w * (c * gradient - read(k, i, j, lanes))
            q0 = q0 + w
            w = w * d
            q1 = q1 + w
            q2 = q2 + w * d
            row = row + one
        # From the ridge, where the row loop has its origin, to the centre.
        s0 = s0 + q0
        r1 = q1 + shift * q0
        su, sv = su + r1, sv + dj * q0
        suu, suv, svv = suu + q2 + shift * (q1 + r1), suv + dj * r1, svv + dj * dj * q0
    a, u, v = amplitude, spacing[0], spacing[1]
    return (a * total(s0), a * u * total(su), a * v * total(sv), a * u * u * total(suu), a * u * v * total(suv),
            a * v * v * total(svv), a * total(gc))


@nb.njit(fastmath=FAST, error_model="numpy")
def splat_gradient(image, out, p, f, spacing, amplitude, intensity, least, place, lanes):
    """Add ``w (c - I) grad(-E / 2)`` of one Gaussian to three images ``out`` (3, X, Y + PADDING), per mm."""
    i0, i1, j0, j1 = place
    suz, svz, szz, quu, quv, qvv = p[5], p[7], p[8], p[11], p[12], p[13]
    zu, zv = (quu * suz + quv * svz) / szz, (quv * suz + qvv * svz) / szz
    factor, floor = spread(np.float32(f[3]), lanes), spread(np.float32(least), lanes)
    a, ac = spread(np.float32(amplitude), lanes), spread(np.float32(amplitude * intensity), lanes)
    one = spread(np.float32(1.0), lanes)
    along_u, along_v = spread(np.float32(quu * spacing[0]), lanes), spread(np.float32(quv * spacing[0]), lanes)
    along_z = spread(np.float32(zu * spacing[0]), lanes)
    row_v = spread(np.float32(spacing[1] / p[16]), lanes)
    row_z = spread(np.float32((zv + zu * p[15] / p[16]) * spacing[1]), lanes)
    z0 = spread(np.float32(p[2] / szz), lanes)
    for j in range(j0, j1, width(lanes)):
        first, last = strip_rows(f, least, i0, i1, j, width(lanes))
        dj, base, _, ridge = _columns(f, first, j, lanes)
        v0, w0 = row_v * dj, row_z * dj + z0
        row = spread(np.float32(0.0), lanes)
        for i in range(first, last):
            d = row - ridge
            w = exp2_above(factor * d * d + base, floor)
            w = w * (ac - a * read(image, i, j, lanes))
            write(out[0], i, j, read(out[0], i, j, lanes) - w * (along_u * d))
            write(out[1], i, j, read(out[1], i, j, lanes) - w * (along_v * d + v0))
            write(out[2], i, j, read(out[2], i, j, lanes) + w * (along_z * d + w0))
            row = row + one
