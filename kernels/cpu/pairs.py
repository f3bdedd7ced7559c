# SPDX-License-Identifier: Apache-2.0
"""Pairs of a slice and a Gaussian: their search, what the rows need of them, and their chain rule.

As many Gaussians as there are float64 lanes go side by side: their projections
(:mod:`gsbids.kernels.cpu.projection`) and chain rules cost a fraction of one by one. A table (J, 16) float32 holds the
Gaussians, a row of one cache line each; its columns: mean (3), covariance (6), intensity, amplitude.
"""

import numba as nb
import numpy as np

from gsbids.kernels.cpu import rows
from gsbids.kernels.cpu.lanes import (
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
    scatter,
    spread,
    store,
    total,
    totals,
    width,
)
from gsbids.kernels.cpu.packed import TABLE
from gsbids.kernels.cpu.projection import chain, project, to_pose, to_world
from gsbids.kernels.cpu.rows import HALF_LOG2E

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
    """Fill ``index`` with the Gaussians that may reach a slice; return their number.

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


@nb.njit(error_model="numpy", forceinline=True)
def fill(index, count):
    """Repeat the last entry, so that lanes behind it read what there is."""
    if count:
        index[count : count + WIDEST] = index[count - 1]


@nb.njit(error_model="numpy", forceinline=True)
def fetch(table, index, start, lanes):
    """Load mean (3), covariance (6), intensity and amplitude of the Gaussians index[start], index[start + 1], ..."""
    a, b = gather(table, TABLE, index, start, 0, lanes), gather(table, TABLE, index, start, 8, lanes)
    return (a[0], a[1], a[2]), (a[3], a[4], a[5], a[6], a[7], b[0]), b[1], b[2]


@nb.njit(error_model="numpy", forceinline=True)
def peak(p, amplitude, mass_factor):
    """Return the peak weight: ``amplitude``, over sqrt(det S) with the mass factor."""
    if mass_factor:
        return amplitude * root(positive(p[11] * p[13] - p[12] * p[12]) * p[17])
    return amplitude


@nb.njit(error_model="numpy")
def _write_group(table, index, start, pose, pixels, cut2, mass_factor, centres, group, lanes):
    """Write the records of Gaussians side by side, to addresses.

    ``centres`` (2, lanes) float64, ``group`` (lanes, RECORD) float32.
    """
    mean, cov, intensity, amplitude = fetch(table, index, start, lanes)
    p = project(pose[0], pose[1], pose[2], mean, cov)
    spacing, centre = pixels
    store(centres, 0, p[9] * (1.0 / spacing[0]) + centre[0])
    store(centres, width(lanes), p[10] * (1.0 / spacing[1]) + centre[1])
    f, g = rows.fit(p, spacing, cut2), rows.slopes(p, spacing)
    scatter(group, rows.RECORD, (f[0], f[0], f[0], f[1], f[2], f[3], f[4], f[5]))
    scatter(group + 32, rows.RECORD, (peak(p, amplitude, mass_factor), intensity, g[0], g[1], g[2], g[3], g[4], g[5]))


@nb.njit(error_model="numpy", forceinline=True)
def _write_record(record, place, xi, xj, group, bounds, extent):
    """Write record and place of one of the group; return whether it reaches pixels. All by address."""
    i0, i1, j0, j1 = rows.box(
        xi, xj, np.float64(load(group, 6, PLAIN)), np.float64(load(group, 7, PLAIN)), bounds, extent
    )
    for k in range(rows.RECORD):
        store(record, k, load(group, k, PLAIN))
    store(record, 0, np.float32(i0 - xi))
    store(record, 1, np.float32(j0 - xj))
    store(place, 0, np.int32(i0))
    store(place, 1, np.int32(i1))
    store(place, 2, np.int32(j0))
    store(place, 3, np.int32(j1))
    return i0 < i1 and j0 < j1


@nb.njit(error_model="numpy")
def records(table, index, count, pose, pixels, extent, bounds, cut2, mass_factor, record, place, lanes):
    """Fill ``record`` (J, RECORD) and ``place`` (J, 4) of the Gaussians that have pixels; return their number.

    ``index`` keeps those Gaussians.

    Everything but ``pose``, ``pixels`` and ``bounds``, which are tuples of numbers, is given by address.
    """
    wide = width(doubles(lanes))
    space = np.empty((2 + rows.RECORD, wide))
    centres, least = address(space), np.float32(HALF_LOG2E * cut2)
    groups = centres + 16 * wide
    kept = 0
    for start in range(0, count, wide):
        _write_group(table, index, start, pose, pixels, cut2, mass_factor, centres, groups, doubles(lanes))
        for lane in range(min(wide, count - start)):
            group = groups + 4 * rows.RECORD * lane
            if load(group, 5, PLAIN) > least and _write_record(
                record + 4 * rows.RECORD * kept,
                place + 16 * kept,
                load(centres, lane, DOUBLE),
                load(centres, wide + lane, DOUBLE),
                group,
                bounds,
                extent,
            ):
                store(index, kept, load(index, start + lane, INTEGER))
                kept += 1
    space[0, 0] = 0.0  # it lives until here
    return kept


@nb.njit(error_model="numpy", forceinline=True)
def put(sums, lane, m, lanes):
    """Store the moments of the Gaussian or plane ``lane`` where :func:`centred` looks for them."""
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
    """Return moments about the centre, in mm and with the peak weight ``top``, from those of :func:`rows.moments`.

    ``ratio`` is C_uv / C_vv. Returns S0, S1 (2), S2 (uu, uv, vv), ``sum w h``.
    """
    n, a, b = width(doubles(lanes)) * STRIDE * 4, spacing[0], spacing[1]
    s0, d, e = top * totals(sums, lanes), (top * a) * totals(sums + n, lanes), (top * b) * totals(sums + 2 * n, lanes)
    dd, de = (top * (a * a)) * totals(sums + 3 * n, lanes), (top * (a * b)) * totals(sums + 4 * n, lanes)
    ee, gc = (top * (b * b)) * totals(sums + 5 * n, lanes), top * totals(sums + 6 * n, lanes)
    ue = de + ratio * ee
    return s0, d + ratio * e, e, dd + ratio * (de + ue), ue, ee, gc


@nb.njit(error_model="numpy", forceinline=True)
def put_gradient(group, world, intensity, log_weight):
    """Store the eleven gradients of Gaussians side by side at the address ``group``: (lanes, TABLE) float32."""
    scatter(group, TABLE, (world[0], world[1], world[2], world[3], world[4], world[5], world[6], world[7]))
    none = intensity * 0.0
    scatter(group + 32, TABLE, (world[8], intensity, log_weight, none, none, none, none, none))


@nb.njit(error_model="numpy")
def _group_gradient(table, kept, start, pose, pixels, mass_factor, sums, group, lanes):
    """Store the gradients of Gaussians side by side at the address ``group``; return those of the pose by lane."""
    mean, cov, _, amplitude = fetch(table, kept, start, doubles(lanes))
    p = project(pose[0], pose[1], pose[2], mean, cov)
    m = centred(sums, pixels[0], p[15] * (1.0 / p[16]), peak(p, amplitude, mass_factor), lanes)
    g = chain(p, m, mass_factor)
    put_gradient(group, to_world(pose[0], g), m[6], m[0])
    return to_pose(p, pose[2], g)


@nb.njit(error_model="numpy", forceinline=True)
def _add_row(grad, row, seen, lanes):
    """Add a row of gradients, or store it where the Gaussian was not seen before (its place is not cleared)."""
    for c in range(0, TABLE, width(lanes)):
        if seen:
            store(grad, c, load(grad, c, lanes) + load(row, c, lanes))
        else:
            store(grad, c, load(row, c, lanes))


@nb.njit(error_model="numpy")
def gradients(table, kept, count, pose, pixels, cut2, mass_factor, record, place, images, grad, touched, lanes):
    """Add the gradients of one slice to ``grad`` (J, TABLE) and return that of its pose, omega and tau.

    Rows of ``grad`` are undefined where ``touched`` (J,) is 0.

    The first eleven columns count. ``kept``, ``record``, ``place``: what :func:`records` left. ``images``: the
    cotangents h and k, and their stride.
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
            _add_row(grad + 4 * TABLE * j, group + 4 * TABLE * lane, touched[j], lanes)
            touched[j] = 1
    space[0, 0] = 0.0  # it lives until here
    return total(o0), total(o1), total(o2), total(o3), total(o4), total(o5)
