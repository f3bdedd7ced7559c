# SPDX-License-Identifier: Apache-2.0
"""Slice splatting on the CPU: every Gaussian is conditioned on the plane of every slice it reaches.

The formulas are those of :mod:`gsbids.kernels.cpu.projection`, the loops over pixels those of
:mod:`gsbids.kernels.cpu.rows`. Contributions end where ``E >= cut ** 2``, and at the extent of the rows.

Slices are shared out over a fixed number of parts, each with its own gradient buffer summed in order: results
have the same bits for any number of threads.
"""

import numba as nb
import numpy as np

from gsbids.kernels.cpu import pairs, rows
from gsbids.kernels.cpu.lanes import FAST, address
from gsbids.kernels.cpu.packed import BLOCK, TABLE
from gsbids.kernels.cpu.pairs import fill
from gsbids.kernels.cpu.projection import pose_of
from gsbids.kernels.cpu.rows import HALF_LOG2E, PADDING

PARTS = 16  # parts the slices are shared out over; fixed, so that sums do not depend on the threads


@nb.njit(error_model="numpy")
def _bounds(extent):
    """Return rows [i0, i1) and columns [j0, j1) of a slice that have pixels at all."""
    i0, i1, j0, j1 = len(extent), 0, np.int64(1 << 30), np.int64(0)
    for i in range(len(extent)):
        if extent[i, 1] > extent[i, 0]:
            i0, i1 = min(i0, i), i + 1
            j0, j1 = min(j0, np.int64(extent[i, 0])), max(j1, np.int64(extent[i, 1]))
    return i0, i1, j0, j1


@nb.njit
def _shares(extent):
    """Return the first slice of every part: neighbours, which share most of their Gaussians, and about equal work."""
    work = np.zeros(len(extent) + 1)
    for s in range(len(extent)):
        area = 0
        for i in range(extent.shape[1]):
            area += max(extent[s, i, 1] - extent[s, i, 0], 0)
        work[s + 1] = work[s] + area + 200.0  # an empty slice costs a little, too
    shares = np.empty(PARTS + 1, np.int64)
    for part in range(PARTS + 1):
        shares[part] = np.searchsorted(work, work[-1] * (part / PARTS) - 0.5 * work[-1] / max(len(extent), 1))
    shares[0], shares[PARTS] = 0, len(extent)
    return shares


@nb.njit
def _add_block(parts, touched, grad, first, last):
    grad[first:last] = 0.0
    for part in range(PARTS):
        for j in range(first, last):
            if touched[part, j]:
                for c in range(11):
                    grad[j, c] += parts[part, j, c]


@nb.njit(parallel=True)
def _add_up(parts, touched, grad):
    """Sum the parts, one after the other: the same bits for any number of threads."""
    for block in nb.prange(-(-len(grad) // BLOCK)):
        _add_block(parts, touched, grad, block * BLOCK, min((block + 1) * BLOCK, len(grad)))


@nb.njit
def _scratch(gaussians):
    """Allocate the work space of :func:`_list_pairs`: marks, indices, records, places."""
    return (
        np.empty(gaussians, np.uint8),
        np.empty(gaussians + pairs.WIDEST + 1, np.int32),
        np.empty((gaussians, rows.RECORD), np.float32),
        np.empty((gaussians, 4), np.int32),
    )


@nb.njit(error_model="numpy")
def _list_pairs(geometry, s, field, cut2, mass_factor, scratch, lanes):
    """Fill ``scratch`` with the records of slice s; return its pose, its pixels and the number of records."""
    rotation, translation, psf, spacing, centre, extent = geometry
    near, index, record, place = scratch
    pose = pose_of(rotation[s], translation[s], psf[s])
    pixels = (spacing[s, 0], spacing[s, 1]), (centre[s, 0], centre[s, 1])
    count = pairs.candidates(field[0], pose, cut2, near, index)
    return (
        pose,
        pixels,
        pairs.records(
            address(field[1]),
            address(index),
            count,
            pose,
            pixels,
            address(extent[s]),
            _bounds(extent[s]),
            cut2,
            mass_factor,
            address(record),
            address(place),
            lanes,
        ),
    )


@nb.njit(error_model="numpy")
def _splat_slice(record, place, count, cut2, numerator, weight, lanes):
    """Sum ``w c`` and ``w``; the values outside the extents are undefined."""
    numerator[:] = 0.0
    weight[:] = 0.0
    _splat_all(
        address(record),
        address(place),
        count,
        np.float32(HALF_LOG2E * cut2),
        address(numerator),
        address(weight),
        weight.shape[1],
        lanes,
    )


@nb.njit(error_model="numpy")
def _splat_all(record, place, count, least, numerator, weight, stride, lanes):
    for m in range(count):
        f, where = rows.record_of(record, place, m)
        rows.splat(numerator, weight, stride, f, least, where, lanes)


@nb.njit(error_model="numpy")
def _take_back(field, scratch, count, pose, pixels, cut2, mass_factor, h, k, sums, grad_pose, lanes):
    """Add the gradients of one slice to ``sums``, (J, TABLE) and (J,), and set ``grad_pose`` (6)."""
    _, index, record, place = scratch
    fill(index, count)
    q = pairs.gradients(
        address(field[1]),
        address(index),
        count,
        pose,
        pixels,
        cut2,
        mass_factor,
        address(record),
        address(place),
        (address(h), address(k), h.shape[1]),
        address(sums[0]),
        sums[1],
        lanes,
    )
    for a in range(6):
        grad_pose[a] = q[a]


@nb.njit(fastmath=FAST, error_model="numpy")
def _normalise(numerator, weight, extent, eps, image, total):
    """Compute I and D of one slice from the sums; 0 and eps outside the extents."""
    for i in range(len(image)):
        j0, j1 = extent[i]
        image[i] = 0.0
        total[i] = eps
        for j in range(j0, j1):
            total[i, j] = weight[i, j] + eps
            image[i, j] = numerator[i, j] / total[i, j]


@nb.njit(parallel=True, cache=True, error_model="numpy")
def forward(rotation, translation, psf, spacing, centre, extent, field, cut2, eps, mass_factor, lanes, image, weight):
    """Fill ``image`` = I and ``weight`` = D, both (S, X, Y) float32; see :mod:`gsbids.kernels.ops`.

    ``field``: columns x, y, z, largest variance (4, J), and the table of :mod:`gsbids.kernels.cpu.pairs`. ``lanes``:
    see :func:`gsbids.kernels.cpu.rows.lanes`.
    """
    geometry, shares = (rotation, translation, psf, spacing, centre, extent), _shares(extent)
    for part in nb.prange(PARTS):
        scratch = _scratch(len(field[1]))
        n = np.empty((image.shape[1], image.shape[2] + PADDING), np.float32)
        d = np.empty_like(n)
        for s in range(shares[part], shares[part + 1]):
            _, _, count = _list_pairs(geometry, s, field, cut2, mass_factor, scratch, lanes)
            _splat_slice(scratch[2], scratch[3], count, cut2, n, d, lanes)
            _normalise(n, d, extent[s], eps, image[s], weight[s])


@nb.njit(fastmath=FAST, error_model="numpy")
def _cotangents(grad, image, weight, extent, h, k):
    """Compute ``h = g / D`` and ``k = h I`` within the extents, 0 elsewhere."""
    h[:] = 0.0
    k[:] = 0.0
    for i in range(len(grad)):
        for j in range(extent[i, 0], extent[i, 1]):
            value = grad[i, j] / weight[i, j]
            h[i, j] = value
            k[i, j] = value * image[i, j]


@nb.njit(parallel=True, cache=True, error_model="numpy")
def backward(
    rotation,
    translation,
    psf,
    spacing,
    centre,
    extent,
    field,
    cut2,
    mass_factor,
    lanes,
    grad_image,
    image,
    weight,
    grad,
    grad_pose,
):
    """Fill ``grad`` (J, 11) and ``grad_pose`` (S, 6) from the gradient of I, and I and D, (S, X, Y).

    The 11 columns: mean (3), covariance (xx, xy, xz, yy, yz, zz), intensity, log-weight.
    """
    geometry, shares = (rotation, translation, psf, spacing, centre, extent), _shares(extent)
    parts, touched = np.empty((PARTS, len(grad), TABLE), np.float32), np.empty((PARTS, len(grad)), np.uint8)
    for part in nb.prange(PARTS):
        touched[part] = 0
        scratch = _scratch(len(field[1]))
        h = np.empty((image.shape[1], image.shape[2] + PADDING), np.float32)
        k = np.empty_like(h)
        for s in range(shares[part], shares[part + 1]):
            pose, pixels, count = _list_pairs(geometry, s, field, cut2, mass_factor, scratch, lanes)
            _cotangents(grad_image[s], image[s], weight[s], extent[s], h, k)
            _take_back(
                field,
                scratch,
                count,
                pose,
                pixels,
                cut2,
                mass_factor,
                h,
                k,
                (parts[part], touched[part]),
                grad_pose[s],
                lanes,
            )
    _add_up(parts, touched, grad)


@nb.njit(fastmath=FAST, error_model="numpy")
def _charbonnier(numerator, weight, extent, eps, target, importance, gain, delta, image):
    """Return the loss of one slice, fill its image, turn the sums into the cotangents k (numerator) and h (weight)."""
    loss = 0.0
    for i in range(len(image)):
        j0, j1 = extent[i]
        image[i] = 0.0
        part = np.float32(0.0)
        for j in range(j0, j1):
            d = weight[i, j] + eps
            value = numerator[i, j] / d
            image[i, j] = value
            r = gain * value - target[i, j]
            root = np.sqrt(r * r + delta * delta)
            part += importance[i, j] * (root - delta)
            h = gain * importance[i, j] * r / (root * d)
            weight[i, j] = h
            numerator[i, j] = h * value
        weight[i, :j0] = 0.0
        weight[i, j1:] = 0.0
        numerator[i, :j0] = 0.0
        numerator[i, j1:] = 0.0
        loss += part  # type: ignore[assignment]
    return loss


@nb.njit(parallel=True, cache=True, error_model="numpy")
def step(
    rotation,
    translation,
    psf,
    spacing,
    centre,
    extent,
    field,
    cut2,
    eps,
    mass_factor,
    lanes,
    target,
    importance,
    gain,
    delta,
    image,
    loss,
    grad,
    grad_pose,
):
    """Compute forward, Charbonnier loss and backward by slice; see :func:`gsbids.kernels.ops.step_slices`."""
    geometry, shares = (rotation, translation, psf, spacing, centre, extent), _shares(extent)
    parts, touched = np.empty((PARTS, len(grad), TABLE), np.float32), np.empty((PARTS, len(grad)), np.uint8)
    for part in nb.prange(PARTS):
        touched[part] = 0
        scratch = _scratch(len(field[1]))
        n = np.empty((image.shape[1], image.shape[2] + PADDING), np.float32)
        d = np.empty_like(n)
        for s in range(shares[part], shares[part + 1]):
            pose, pixels, count = _list_pairs(geometry, s, field, cut2, mass_factor, scratch, lanes)
            _splat_slice(scratch[2], scratch[3], count, cut2, n, d, lanes)
            loss[s] = _charbonnier(n, d, extent[s], eps, target[s], importance[s], gain[s], delta, image[s])
            _take_back(
                field,
                scratch,
                count,
                pose,
                pixels,
                cut2,
                mass_factor,
                d,
                n,
                (parts[part], touched[part]),
                grad_pose[s],
                lanes,
            )
    _add_up(parts, touched, grad)


@nb.njit(error_model="numpy")
def _gradient_slice(record, place, count, cut2, image, out, lanes):
    """Sum ``w (c - I) grad(-E / 2)``, (3, X, Y + PADDING)."""
    out[:] = 0.0
    _gradient_all(
        address(record),
        address(place),
        count,
        np.float32(HALF_LOG2E * cut2),
        address(image),
        (address(out[0]), address(out[1]), address(out[2])),
        image.shape[1],
        lanes,
    )


@nb.njit(error_model="numpy")
def _gradient_all(record, place, count, least, image, out, stride, lanes):
    for m in range(count):
        f, where = rows.record_of(record, place, m)
        rows.splat_gradient(image, out, stride, f, rows.slopes_of(record, m), least, where, lanes)


@nb.njit(parallel=True, cache=True, error_model="numpy")
def image_gradient(
    rotation, translation, psf, spacing, centre, extent, field, cut2, mass_factor, lanes, image, weight, out
):
    """Fill ``out`` (S, X, Y, 3) = dI/dX per mm along the slice's row, column and normal."""
    geometry, shares = (rotation, translation, psf, spacing, centre, extent), _shares(extent)
    for part in nb.prange(PARTS):
        scratch = _scratch(len(field[1]))
        padded = np.zeros((image.shape[1], image.shape[2] + PADDING), np.float32)
        sums = np.empty((3, image.shape[1], image.shape[2] + PADDING), np.float32)
        for s in range(shares[part], shares[part + 1]):
            padded[:, : image.shape[2]] = image[s]
            _, _, count = _list_pairs(geometry, s, field, cut2, mass_factor, scratch, lanes)
            _gradient_slice(scratch[2], scratch[3], count, cut2, padded, sums, lanes)
            out[s] = 0.0
            for i in range(image.shape[1]):
                for j in range(extent[s, i, 0], extent[s, i, 1]):
                    for a in range(3):
                        out[s, i, j, a] = sums[a, i, j] / weight[s, i, j]


@nb.njit(parallel=True, cache=True, error_model="numpy")
def pose_normal_equations(spacing, centre, gradient, residual, weight, gain, matrix, vector):
    """Fill ``matrix`` (S, 6, 6) = J^T W J and ``vector`` (S, 6) = J^T W r, both float64.

    J is the derivative of ``gain * I`` with respect to the slice-frame tangents (omega, tau):
    ``gain (x cross g, g)`` at pixel position x with image gradient g; r = acquired - gain * I; W the weights.
    """
    for part in nb.prange(PARTS):
        row = np.zeros(6)
        for s in range(part, len(gradient), PARTS):
            matrix[s] = 0.0
            vector[s] = 0.0
            for i in range(residual.shape[1]):
                u = (i - centre[s, 0]) * spacing[s, 0]
                for j in range(residual.shape[2]):
                    w = np.float64(weight[s, i, j])
                    if w == 0.0:
                        continue
                    v = (j - centre[s, 1]) * spacing[s, 1]
                    gu, gv, gz = gradient[s, i, j, 0], gradient[s, i, j, 1], gradient[s, i, j, 2]
                    row[0], row[1], row[2] = v * gz, -u * gz, u * gv - v * gu
                    row[3], row[4], row[5] = gu, gv, gz
                    for a in range(6):
                        row[a] *= gain[s]
                    for a in range(6):
                        vector[s, a] += w * row[a] * residual[s, i, j]
                        for b in range(6):
                            matrix[s, a, b] += w * row[a] * row[b]
