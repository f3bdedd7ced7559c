# SPDX-License-Identifier: Apache-2.0
"""Pairs of a slice and a Gaussian: which there are, what the rows need of them, and their chain rule.

As many Gaussians as there are float64 lanes go side by side: their projections
(:mod:`gsbids.kernels.projection`) and chain rules cost a fraction of one by one. A table (J, 16) float32 holds the
Gaussians, a row of one cache line each; its columns: mean (3), covariance (6), intensity, amplitude.
"""


import numba as nb
import numpy as np

from gsbids.kernels import rows
from gsbids.kernels.lanes import (
    DOUBLE,
    FAST,
    INTEGER,
    PLAIN,
    VECTOR,
    address,
    doubles,
    gather,
    load,
    positive,
    root,
    single,
    spread,
    store,
    total,
    totals,
    width,
)
from gsbids.kernels.problem import TABLE
from gsbids.kernels.projection import chain, project, to_pose, to_world
from gsbids.kernels.rows import HALF_LOG2E

WIDEST = 8  # float64 lanes at most
STRIDE = int(VECTOR)  # float32 from one Gaussian's moment to the next one's


@nb.njit(fastmath=FAST, error_model="numpy")
def _near(columns, normal, offset, thickness, cut2, near):
    """Mark the Gaussians whose widest axis, laid along the normal, would reach the plane; vectorises."""
    x, y, z, widest = columns
    a, b, c = np.float32(normal[0]), np.float32(normal[1]), np.float32(normal[2])
    d, extra, limit = np.float32(offset), np.float32(thickness), np.float32(1.0001 * cut2)
    for j in range(len(x)):
        distance = a * x[j] + b * y[j] + c * z[j] - d
        near[j] = distance * distance < limit * (widest[j] + extra)


@nb.njit(error_model="numpy")
def candidates(columns, pose, cut2, near, index):
    """Fill ``index`` with the Gaussians that may reach a slice; returns their number.

    ``columns``: x, y, z and the largest variance, (J,) each. What stands behind the last one repeats it, as far as
    lanes go.
    """
    rotation, translation, psf = pose
    normal = rotation[0][2], rotation[1][2], rotation[2][2]
    offset = normal[0] * translation[0] + normal[1] * translation[1] + normal[2] * translation[2]
    _near(columns, normal, offset, psf[2], cut2, near)
    count = 0
    for j in range(len(near)):
        index[count] = j
        count += near[j]
    fill(index, count)
    return count


@nb.njit(inline="always")
def fill(index, count):
    """Repeat the last entry, so that lanes behind it read what there is."""
    if count:
        index[count:count + WIDEST] = index[count - 1]


@nb.njit(inline="always")
def fetch(table, index, start, lanes):
    """Mean (3) and covariance (6) of the Gaussians index[start], index[start + 1], ..."""
    return ((gather(table, TABLE, index, start, 0, lanes), gather(table, TABLE, index, start, 1, lanes),
             gather(table, TABLE, index, start, 2, lanes)),
            (gather(table, TABLE, index, start, 3, lanes), gather(table, TABLE, index, start, 4, lanes),
             gather(table, TABLE, index, start, 5, lanes), gather(table, TABLE, index, start, 6, lanes),
             gather(table, TABLE, index, start, 7, lanes), gather(table, TABLE, index, start, 8, lanes)))


@nb.njit(inline="always")
def peak(p, amplitude, mass_factor):
    """Peak weight: ``amplitude``, over sqrt(det S) with the mass factor."""
    if mass_factor:
        return amplitude * root(positive(p[11] * p[13] - p[12] * p[12]) * p[17])
    return amplitude


@nb.njit(error_model="numpy")
def _write_group(table, index, start, pose, pixels, cut2, mass_factor, centres, group, lanes):
    """Records of Gaussians side by side, to addresses: centres (2, lanes) float64, group (RECORD, lanes) float32."""
    mean, cov = fetch(table, index, start, lanes)
    p = project(pose[0], pose[1], pose[2], mean, cov)
    spacing, centre = pixels
    n = width(lanes)
    store(centres, 0, p[9] * (1.0 / spacing[0]) + centre[0])
    store(centres, n, p[10] * (1.0 / spacing[1]) + centre[1])
    f, g = rows.fit(p, spacing, cut2), rows.slopes(p, spacing)
    store(group, 2 * n, single(f[0]))
    store(group, 3 * n, single(f[1]))
    store(group, 4 * n, single(f[2]))
    store(group, 5 * n, single(f[3]))
    store(group, 6 * n, single(f[4]))
    store(group, 7 * n, single(f[5]))
    store(group, 8 * n, single(peak(p, gather(table, TABLE, index, start, 10, lanes), mass_factor)))
    store(group, 9 * n, single(gather(table, TABLE, index, start, 9, lanes)))
    store(group, 10 * n, single(g[0]))
    store(group, 11 * n, single(g[1]))
    store(group, 12 * n, single(g[2]))
    store(group, 13 * n, single(g[3]))
    store(group, 14 * n, single(g[4]))
    store(group, 15 * n, single(g[5]))


@nb.njit(inline="always")
def _write_record(record, place, kept, centres, group, lane, step, bounds, extent):
    """Record and place of one of the group to row ``kept``; returns whether it reaches pixels. All by address."""
    xi, xj = load(centres, lane, DOUBLE), load(centres, step + lane, DOUBLE)
    i0, i1, j0, j1 = rows.box(xi, xj, np.float64(load(group, 6 * step + lane, PLAIN)),
                              np.float64(load(group, 7 * step + lane, PLAIN)), bounds, extent)
    at = rows.RECORD * kept
    store(record, at, np.float32(i0 - xi))
    store(record, at + 1, np.float32(j0 - xj))
    for k in range(2, rows.RECORD):
        store(record, at + k, load(group, k * step + lane, PLAIN))
    store(place, 4 * kept, np.int32(i0))
    store(place, 4 * kept + 1, np.int32(i1))
    store(place, 4 * kept + 2, np.int32(j0))
    store(place, 4 * kept + 3, np.int32(j1))
    return i0 < i1 and j0 < j1


@nb.njit(error_model="numpy")
def records(table, index, count, pose, pixels, extent, bounds, cut2, mass_factor, record, place, lanes):
    """Fill ``record`` (J, RECORD) and ``place`` (J, 4); ``index`` keeps those that have pixels; returns their number.

    Everything but ``pose``, ``pixels`` and ``bounds``, which are tuples of numbers, is given by address.
    """
    wide = width(doubles(lanes))
    space = np.empty((2 + rows.RECORD, wide))
    centres, least = address(space), np.float32(HALF_LOG2E * cut2)
    group = centres + 16 * wide
    kept = 0
    for start in range(0, count, wide):
        _write_group(table, index, start, pose, pixels, cut2, mass_factor, centres, group, doubles(lanes))
        for lane in range(min(wide, count - start)):
            if load(group, 5 * wide + lane, PLAIN) > least and _write_record(record, place, kept, centres, group, lane,
                                                                             wide, bounds, extent):
                store(index, kept, load(index, start + lane, INTEGER))
                kept += 1
    space[0, 0] = 0.0  # it lives until here
    return kept


@nb.njit(inline="always")
def put(sums, lane, m, lanes):
    """Moments of the Gaussian or plane ``lane`` to where :func:`centred` looks for them."""
    at, step = lane * STRIDE, width(doubles(lanes)) * STRIDE
    store(sums, at, m[0])
    store(sums, at + step, m[1])
    store(sums, at + 2 * step, m[2])
    store(sums, at + 3 * step, m[3])
    store(sums, at + 4 * step, m[4])
    store(sums, at + 5 * step, m[5])
    store(sums, at + 6 * step, m[6])


@nb.njit(error_model="numpy")
def centred(sums, spacing, ratio, top, lanes):
    """Moments about the centre, in mm and with the peak weight ``top``, from those of :func:`rows.moments`.

    ``ratio`` is C_uv / C_vv. Returns S0, S1 (2), S2 (uu, uv, vv), ``sum w h``.
    """
    n, a, b = width(doubles(lanes)) * STRIDE * 4, spacing[0], spacing[1]
    s0, d, e = top * totals(sums, lanes), (top * a) * totals(sums + n, lanes), (top * b) * totals(sums + 2 * n, lanes)
    dd, de = (top * (a * a)) * totals(sums + 3 * n, lanes), (top * (a * b)) * totals(sums + 4 * n, lanes)
    ee, gc = (top * (b * b)) * totals(sums + 5 * n, lanes), top * totals(sums + 6 * n, lanes)
    ue = de + ratio * ee
    return s0, d + ratio * e, e, dd + ratio * (de + ue), ue, ee, gc


@nb.njit(inline="always")
def put_gradient(group, world, intensity, log_weight, step):
    """The eleven gradients of Gaussians side by side, to the address ``group``: (11, lanes) float32."""
    store(group, 0, single(world[0]))
    store(group, step, single(world[1]))
    store(group, 2 * step, single(world[2]))
    store(group, 3 * step, single(world[3]))
    store(group, 4 * step, single(world[4]))
    store(group, 5 * step, single(world[5]))
    store(group, 6 * step, single(world[6]))
    store(group, 7 * step, single(world[7]))
    store(group, 8 * step, single(world[8]))
    store(group, 9 * step, single(intensity))
    store(group, 10 * step, single(log_weight))


@nb.njit(error_model="numpy")
def _group_gradient(table, kept, start, pose, pixels, mass_factor, sums, group, lanes):
    """Gradients of Gaussians side by side to the address ``group``, (11, lanes), and of the pose, lane by lane."""
    wide = doubles(lanes)
    p = project(pose[0], pose[1], pose[2], *fetch(table, kept, start, wide))
    top = peak(p, gather(table, TABLE, kept, start, 10, wide), mass_factor)
    m = centred(sums, pixels[0], p[15] * (1.0 / p[16]), top, lanes)
    g = chain(p, m, mass_factor)
    world = to_world(pose[0], g)
    put_gradient(group, world, m[6], m[0], width(wide))
    return to_pose(p, pose[2], g)


@nb.njit(error_model="numpy")
def gradients(table, kept, count, pose, pixels, cut2, mass_factor, record, place, images, grad, touched, lanes):
    """Add the gradients of one slice to ``grad`` (J, 11) and return that of its pose, omega and tau.

    Rows of ``grad`` are rubbish where ``touched`` (J,) is 0.

    ``kept``, ``record``, ``place``: what :func:`records` left. ``images``: the cotangents h and k, and their stride.
    All by address, but ``pose`` and ``pixels``, tuples of numbers.
    """
    wide = width(doubles(lanes))
    space = np.zeros((8 * wide, STRIDE), np.float32)
    sums, least = address(space), np.float32(HALF_LOG2E * cut2)
    group = sums + 4 * 7 * wide * STRIDE
    zero = spread(0.0, doubles(lanes))
    o0 = o1 = o2 = o3 = o4 = o5 = zero
    for start in range(0, count, wide):
        many = min(wide, count - start)
        if many < wide:
            space[:] = 0.0
        for lane in range(many):
            f, where = rows.record_of(record, place, start + lane)
            put(sums, lane, rows.moments(images[0], images[1], images[2], f, least, where, lanes), lanes)
        q = _group_gradient(table, kept, start, pose, pixels, mass_factor, sums, group, lanes)
        o0, o1, o2, o3, o4, o5 = o0 + q[0], o1 + q[1], o2 + q[2], o3 + q[3], o4 + q[4], o5 + q[5]
        for lane in range(many):
            j = np.int64(load(kept, start + lane, INTEGER))
            seen = touched[j]  # nobody has cleared the row of a Gaussian that was not seen before
            touched[j] = 1
            if seen == 0:
                for c in range(11):
                    store(grad, 11 * j + c, load(group, c * wide + lane, PLAIN))
            else:
                for c in range(11):
                    store(grad, 11 * j + c, load(grad, 11 * j + c, PLAIN) + load(group, c * wide + lane, PLAIN))
    space[0, 0] = 0.0  # it lives until here
    return total(o0), total(o1), total(o2), total(o3), total(o4), total(o5)
