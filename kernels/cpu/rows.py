# SPDX-License-Identifier: Apache-2.0
"""Inner loops of the splat: one conditioned Gaussian on strips of an image, as wide as there are lanes.

With a row index i and a column index j, all in pixels, and (x_i, x_j) the centre on the plane,

    E = E_0 + (j - x_j)^2 / C_jj + Q_ii (i - x_i - slope (j - x_j))^2,    slope = C_ij / C_jj,

so that along a strip of columns everything but the last term is a constant of the lane: a row costs three vector
operations for E and one ``exp2``. Both terms are squares: nothing cancels, however thin the Gaussian is.
Contributions end where ``E >= cut ** 2``. The last strip of a Gaussian is half as wide if that is enough.

What the loops need of a pair (slice, Gaussian) is a row of a table of float32, a *record*; the columns:
0, 1 the corner of its box, from the centre; 2 the slope; 3, 4 the factors of the squares and 5 the constant, in the
exponent of 2; 6, 7 half the sizes of the bounding box; 8 peak weight; 9 intensity; 10 to 15 see :func:`slopes`.
Beside it stands its *place*, int32: rows [i0, i1) and columns [j0, j1) of the box.

``GSBIDS_ROWS=plain`` chooses the same loops without vectors, ``vector`` insists on them; left out, vectors are
used where they compile.
"""

import math
import os

import numba as nb
import numpy as np

from gsbids.kernels.cpu import lanes as simd
from gsbids.kernels.cpu.lanes import (
    FAST,
    INTEGER,
    PLAIN,
    exp2_above,
    load,
    narrow,
    positive,
    ramp,
    root,
    spread,
    store,
    widen,
    width,
)
from gsbids.kernels.cpu.probe import vectors_work

HALF_LOG2E = -0.5 * 1.4426950408889634  # energy to exponent of 2: exp(-E/2) = 2^(HALF_LOG2E E)
PADDING = int(simd.VECTOR)  # columns that a strip may reach beyond the image


def lanes() -> np.integer:
    """Return the lanes of the kernels: ``lanes.VECTOR`` or ``lanes.PLAIN``, see the module."""
    choice = os.environ.get("GSBIDS_ROWS", "")
    if choice not in ("", "plain", "vector"):
        raise ValueError(f"GSBIDS_ROWS is {choice!r}: use 'plain' or 'vector', or leave it out")
    if choice == "plain" or (not choice and not vectors_work()):
        return simd.PLAIN
    return simd.VECTOR


RECORD = 16  # columns


@nb.njit(error_model="numpy", forceinline=True)
def record_of(record, place, m):
    """Load record (columns 0 to 9) and place number m of the tables at these addresses, as tuples."""
    at = RECORD * m
    return (
        (
            load(record, at, PLAIN),
            load(record, at + 1, PLAIN),
            load(record, at + 2, PLAIN),
            load(record, at + 3, PLAIN),
            load(record, at + 4, PLAIN),
            load(record, at + 5, PLAIN),
            load(record, at + 6, PLAIN),
            load(record, at + 7, PLAIN),
            load(record, at + 8, PLAIN),
            load(record, at + 9, PLAIN),
        ),
        (
            np.int64(load(place, 4 * m, INTEGER)),
            np.int64(load(place, 4 * m + 1, INTEGER)),
            np.int64(load(place, 4 * m + 2, INTEGER)),
            np.int64(load(place, 4 * m + 3, INTEGER)),
        ),
    )


@nb.njit(error_model="numpy", forceinline=True)
def slopes_of(record, m):
    """Load columns 10 to 15 of record number m."""
    at = RECORD * m + 10
    return (
        load(record, at, PLAIN),
        load(record, at + 1, PLAIN),
        load(record, at + 2, PLAIN),
        load(record, at + 3, PLAIN),
        load(record, at + 4, PLAIN),
        load(record, at + 5, PLAIN),
    )


@nb.njit(error_model="numpy")
def fit(p, spacing, cut2):
    """Return columns 2 to 7 of the records of projections ``p`` (:func:`gsbids.kernels.cpu.projection.project`)."""
    mz, quu, cuu, cuv, cvv = p[2], p[11], p[14], p[15], p[16]
    energy = mz * mz * p[17]
    room = positive(cut2 - energy)
    inverse = 1.0 / cvv
    return (
        cuv * inverse * (spacing[1] / spacing[0]),
        quu * (HALF_LOG2E * spacing[0] * spacing[0]),
        inverse * (HALF_LOG2E * spacing[1] * spacing[1]),
        energy * HALF_LOG2E,
        root(room * cuu) * (1.0 / spacing[0]),
        root(room * cvv) * (1.0 / spacing[1]),
    )


@nb.njit(error_model="numpy")
def slopes(p, spacing):
    """Return columns 10 to 15 of the records: the parts of ``-grad E / 2`` (mm).

    What is per row and, along columns, per column, and a constant: along u and v of the ridge's distance, along z of
    it, then of a column along v and z, and z's constant.
    """
    suz, svz, over, quu, quv, qvv = p[5], p[7], p[17], p[11], p[12], p[13]
    zu, zv, inverse = (quu * suz + quv * svz) * over, (quv * suz + qvv * svz) * over, 1.0 / p[16]
    return (
        quu * spacing[0],
        quv * spacing[0],
        zu * spacing[0],
        inverse * spacing[1],
        (zv + zu * p[15] * inverse) * spacing[1],
        p[2] * over,
    )


@nb.njit(error_model="numpy", forceinline=True)
def ceiling(x, low, high):
    """Return the first integer >= x, within [low, high].

    No call into libm, which would spill every vector register.
    """
    x = min(max(x, low - 0.5), high + 0.5)
    return min(max(np.int64(x + 65536.999999) - 65536, low), high)


@nb.njit(error_model="numpy", forceinline=True)
def box(xi, xj, half_i, half_j, bounds, extent):
    """Return rows [i0, i1) and columns [j0, j1) of the bounding box, within ``bounds`` (4) and where there are pixels.

    ``extent``: address of int32, first and one-past-last column of every row.
    """
    i0, i1 = ceiling(xi - half_i, bounds[0], bounds[1]), ceiling(xi + half_i, bounds[0], bounds[1])
    j0, j1 = ceiling(xj - half_j, bounds[2], bounds[3]), ceiling(xj + half_j, bounds[2], bounds[3])
    while i0 < i1 and (load(extent, 2 * i0 + 1, INTEGER) <= j0 or load(extent, 2 * i0, INTEGER) >= j1):
        i0 += 1
    while i0 < i1 and (load(extent, 2 * i1 - 1, INTEGER) <= j0 or load(extent, 2 * i1 - 2, INTEGER) >= j1):
        i1 -= 1
    return i0, i1, j0, j1


@nb.njit(fastmath=FAST, error_model="numpy", forceinline=True)
def _rows(f, least, count, along, place):
    """Return the first and one-past-last row that the Gaussian reaches on ``count`` columns from ``along`` on."""
    rows = place[1] - place[0]
    if place[3] - place[2] > count:  # wider than a strip: the ellipse is shorter on most strips than its box
        left = f[1] + along
        right = left + (count - 1)
        tip = f[6] * f[2] * f[3] / (f[4] + f[2] * f[2] * f[3])  # column of the box's last row
        high, low = min(max(tip, left), right), min(max(-tip, left), right)
        above = max((least - f[5] - f[4] * high * high) / f[3], np.float32(0.0))
        below = max((least - f[5] - f[4] * low * low) / f[3], np.float32(0.0))
        return (
            ceiling(f[2] * low - math.sqrt(below) - f[0], 0, rows),
            ceiling(f[2] * high + math.sqrt(above) - f[0], 0, rows),
        )
    return 0, rows


@nb.njit(fastmath=FAST, error_model="numpy", forceinline=True)
def _columns(f, along, first, lanes):
    """Return the constants of a strip.

    j - x_j, its part of the exponent, and the distance of its first row from the ridge.
    """
    dj = ramp(lanes) + np.float32(f[1] + np.float32(along))
    return dj, f[4] * dj * dj + f[5], np.float32(f[0] + np.float32(first)) - f[2] * dj


@nb.njit(fastmath=FAST, error_model="numpy", forceinline=True)
def _splat_strip(numerator, weight, stride, f, least, place, j, lanes):
    """Add what :func:`splat` adds, on as many columns from j on as there are lanes."""
    first, last = _rows(f, least, width(lanes), j - place[2], place)
    _, base, start = _columns(f, j - place[2], first, lanes)
    floor, row, one = spread(least, lanes), spread(np.float32(0.0), lanes), spread(np.float32(1.0), lanes)
    factor, a, ac = spread(f[3], lanes), spread(f[8], lanes), spread(f[8] * f[9], lanes)
    at = (place[0] + first) * stride + j
    for _ in range(last - first):
        d = start + row
        w = exp2_above(factor * d * d + base, floor)
        store(weight, at, load(weight, at, lanes) + a * w)
        store(numerator, at, load(numerator, at, lanes) + ac * w)
        row = row + one
        at += stride


@nb.njit(fastmath=FAST, error_model="numpy", forceinline=True)
def splat(numerator, weight, stride, f, least, place, lanes):
    """Add ``w`` and ``w c`` of one Gaussian, by its record ``f``, to two images.

    Images: the addresses of float32, PADDING columns wider than they seem; ``stride`` from row to row.
    """
    j = place[2]
    while place[3] - j > width(narrow(lanes)):
        _splat_strip(numerator, weight, stride, f, least, place, j, lanes)
        j += width(lanes)
    if j < place[3]:
        _splat_strip(numerator, weight, stride, f, least, place, j, narrow(lanes))


@nb.njit(fastmath=FAST, error_model="numpy", forceinline=True)
def _moments_strip(h, k, stride, f, least, place, j, lanes):
    """Return the seven moments of :func:`moments`, lane by lane, on one strip."""
    first, last = _rows(f, least, width(lanes), j - place[2], place)
    dj, base, start = _columns(f, j - place[2], first, lanes)
    zero, one = spread(np.float32(0.0), lanes), spread(np.float32(1.0), lanes)
    factor, floor, c = spread(f[3], lanes), spread(least, lanes), spread(f[9], lanes)
    row = q0 = q1 = q2 = gc = zero
    at = (place[0] + first) * stride + j
    for _ in range(last - first):
        d = start + row
        w = exp2_above(factor * d * d + base, floor)
        gradient = load(h, at, lanes)
        gc = gc + w * gradient
        w = w * (c * gradient - load(k, at, lanes))
        at += stride
        q0 = q0 + w
        w = w * d
        q1 = q1 + w
        q2 = q2 + w * d
        row = row + one
    p0 = q0 * dj
    return q0, q1, p0, q2, q1 * dj, p0 * dj, gc


@nb.njit(fastmath=FAST, error_model="numpy", forceinline=True)
def moments(h, k, stride, f, least, place, lanes):
    """Return moments of ``W = w (c h - k)`` of one Gaussian, and ``sum w h``, without the peak weight and in pixels.

    Lane by lane: of 1, d, e, d d, d e, e e, with d the distance from the ridge, i - x_i - slope (j - x_j), and e the
    column, j - x_j; then ``sum w h``.
    """
    zero = spread(np.float32(0.0), lanes)
    m0 = m1 = m2 = m3 = m4 = m5 = m6 = zero
    j = place[2]
    while place[3] - j > width(narrow(lanes)):
        n0, n1, n2, n3, n4, n5, n6 = _moments_strip(h, k, stride, f, least, place, j, lanes)
        m0, m1, m2, m3, m4, m5, m6 = m0 + n0, m1 + n1, m2 + n2, m3 + n3, m4 + n4, m5 + n5, m6 + n6
        j += width(lanes)
    if j < place[3]:
        n0, n1, n2, n3, n4, n5, n6 = _moments_strip(h, k, stride, f, least, place, j, narrow(lanes))
        m0, m1, m2, m3 = m0 + widen(n0, lanes), m1 + widen(n1, lanes), m2 + widen(n2, lanes), m3 + widen(n3, lanes)
        m4, m5, m6 = m4 + widen(n4, lanes), m5 + widen(n5, lanes), m6 + widen(n6, lanes)
    return m0, m1, m2, m3, m4, m5, m6


@nb.njit(fastmath=FAST, error_model="numpy", forceinline=True)
def _gradient_strip(image, out, stride, f, g, least, place, j, lanes):
    """Add what :func:`splat_gradient` adds, on one strip."""
    first, last = _rows(f, least, width(lanes), j - place[2], place)
    dj, base, start = _columns(f, j - place[2], first, lanes)
    floor, row, one = spread(least, lanes), spread(np.float32(0.0), lanes), spread(np.float32(1.0), lanes)
    a, ac, along_v, along_z = f[8], f[8] * f[9], g[3] * dj, g[4] * dj + g[5]
    at = (place[0] + first) * stride + j
    for _ in range(last - first):
        d = start + row
        w = exp2_above(f[3] * d * d + base, floor)
        w = w * (ac - a * load(image, at, lanes))
        store(out[0], at, load(out[0], at, lanes) - w * (g[0] * d))
        store(out[1], at, load(out[1], at, lanes) - w * (g[1] * d + along_v))
        store(out[2], at, load(out[2], at, lanes) + w * (g[2] * d + along_z))
        row = row + one
        at += stride


@nb.njit(fastmath=FAST, error_model="numpy", forceinline=True)
def splat_gradient(image, out, stride, f, g, least, place, lanes):
    """Add ``w (c - I) grad(-E / 2)`` of one Gaussian to the three images ``out``, per mm."""
    j = place[2]
    while place[3] - j > width(narrow(lanes)):
        _gradient_strip(image, out, stride, f, g, least, place, j, lanes)
        j += width(lanes)
    if j < place[3]:
        _gradient_strip(image, out, stride, f, g, least, place, j, narrow(lanes))
