# SPDX-License-Identifier: Apache-2.0
"""Slice splatting on the CPU: every Gaussian is conditioned on the plane of every slice it reaches.

The formulas are those of :mod:`gsbids.kernels.projection`, the loops over pixels those of
:mod:`gsbids.kernels.rows`. Contributions end where ``E >= cut ** 2``, and at the extent of the rows.

Slices are shared out over a fixed number of parts, each with its own gradient buffer summed in order: results
have the same bits for any number of threads.
"""

import math

import numba as nb
import numpy as np

from gsbids.kernels import rows
from gsbids.kernels.lanes import FAST
from gsbids.kernels.projection import add_to_gaussian, add_to_pose, chain, project
from gsbids.kernels.rows import HALF_LOG2E, PADDING

PARTS = 16  # parts the slices are shared out over; fixed, so that sums do not depend on the threads


@nb.njit(fastmath=FAST, error_model="numpy")
def _near(x, y, z, widest, normal, offset, thickness, cut2, near):
    """Mark the Gaussians whose widest axis, laid along the normal, would reach the plane; vectorises."""
    a, b, c = np.float32(normal[0]), np.float32(normal[1]), np.float32(normal[2])
    d, extra, limit = np.float32(offset), np.float32(thickness), np.float32(1.0001 * cut2)
    for j in range(len(x)):
        distance = a * x[j] + b * y[j] + c * z[j] - d
        near[j] = distance * distance < limit * (widest[j] + extra)


@nb.njit(error_model="numpy")
def _candidates(columns, rotation, translation, psf, cut2, near, index):
    """Fill ``index`` with the Gaussians that may reach a slice; returns their number."""
    normal = rotation[:, 2]
    offset = normal[0] * translation[0] + normal[1] * translation[1] + normal[2] * translation[2]
    _near(columns[0], columns[1], columns[2], columns[3], normal, offset, psf[2], cut2, near)
    count = 0
    for j in range(len(near)):
        index[count] = j
        count += near[j]
    return count


@nb.njit(error_model="numpy")
def _bounds(extent):
    """Rows [i0, i1) and columns [j0, j1) of a slice that have pixels at all."""
    i0, i1, j0, j1 = len(extent), 0, np.int64(1 << 30), np.int64(0)
    for i in range(len(extent)):
        if extent[i, 1] > extent[i, 0]:
            i0, i1 = min(i0, i), i + 1
            j0, j1 = min(j0, np.int64(extent[i, 0])), max(j1, np.int64(extent[i, 1]))
    return i0, i1, j0, j1


@nb.njit(inline="always")
def peak(p, amplitude, mass_factor):
    """Peak weight: ``amplitude``, over sqrt(det S) with the mass factor."""
    if mass_factor:
        return amplitude * math.sqrt((p[11] * p[13] - p[12] * p[12]) / p[8])
    return amplitude


@nb.njit(error_model="numpy")
def _splat_slice(pose, pixels, extent, bounds, field, index, cut2, mass_factor, numerator, weight, lanes):
    """Sums of ``w c`` and ``w`` over the Gaussians of ``index``; rubbish outside the extents."""
    numerator[:] = 0.0
    weight[:] = 0.0
    _, mean, cov, intensity, amplitude = field
    for j in index:
        p = project(pose[0], pose[1], pose[2], mean[j], cov[j])
        if p[2] * p[2] < cut2 * p[8]:
            f = rows.fit(p, pixels[0], pixels[1], cut2)
            place = rows.box(f, bounds, extent)
            if place[0] >= place[1]:
                continue
            rows.splat(numerator, weight, f, peak(p, amplitude[j], mass_factor), intensity[j],
                       HALF_LOG2E * cut2, place, lanes)


@nb.njit(error_model="numpy")
def _moments_slice(pose, pixels, extent, bounds, field, index, cut2, mass_factor, h, k, grad, grad_pose, lanes):
    """Add the gradients of one slice to ``grad`` (J, 11) and ``grad_pose`` (6)."""
    _, mean, cov, intensity, amplitude = field
    for j in index:
        p = project(pose[0], pose[1], pose[2], mean[j], cov[j])
        if p[2] * p[2] < cut2 * p[8]:
            f = rows.fit(p, pixels[0], pixels[1], cut2)
            place = rows.box(f, bounds, extent)
            if place[0] >= place[1]:
                continue
            m = rows.moments(h, k, f, pixels[0], peak(p, amplitude[j], mass_factor), intensity[j],
                             HALF_LOG2E * cut2, place, lanes)
            g = chain(p, m, mass_factor)
            add_to_gaussian(grad[j], pose[0], g, m)
            add_to_pose(grad_pose, p, pose[2], g)


@nb.njit(fastmath=FAST, error_model="numpy")
def _normalise(numerator, weight, extent, eps, image, total):
    """I and D of one slice from the sums; 0 and eps outside the extents."""
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

    ``field``: columns x, y, z, largest variance (4, J); mean (J, 3); covariance (J, 6); intensity and amplitude
    (J,). ``lanes``: see :func:`gsbids.kernels.rows.lanes`.
    """
    for part in nb.prange(PARTS):
        near, index = np.empty(len(field[1]), np.uint8), np.empty(len(field[1]) + 1, np.int64)
        n = np.empty((image.shape[1], image.shape[2] + PADDING), np.float32)
        d = np.empty_like(n)
        for s in range(part, len(rotation), PARTS):
            pose, pixels = (rotation[s], translation[s], psf[s]), (spacing[s], centre[s])
            count = _candidates(field[0], rotation[s], translation[s], psf[s], cut2, near, index)
            _splat_slice(pose, pixels, extent[s], _bounds(extent[s]), field, index[:count], cut2, mass_factor, n, d,
                         lanes)
            _normalise(n, d, extent[s], eps, image[s], weight[s])


@nb.njit(fastmath=FAST, error_model="numpy")
def _cotangents(grad, image, weight, extent, h, k):
    """``h = g / D`` and ``k = h I`` within the extents, 0 elsewhere."""
    h[:] = 0.0
    k[:] = 0.0
    for i in range(len(grad)):
        for j in range(extent[i, 0], extent[i, 1]):
            value = grad[i, j] / weight[i, j]
            h[i, j] = value
            k[i, j] = value * image[i, j]


@nb.njit(parallel=True, cache=True, error_model="numpy")
def backward(rotation, translation, psf, spacing, centre, extent, field, cut2, mass_factor, lanes, grad_image, image,
             weight, grad, grad_pose):
    """Fill ``grad`` (PARTS, J, 11) and ``grad_pose`` (S, 6) from the gradient of I, and I and D, (S, X, Y).

    The 11 columns: mean (3), covariance (xx, xy, xz, yy, yz, zz), intensity, log-weight.
    """
    for part in nb.prange(PARTS):
        grad[part] = 0.0
        near, index = np.empty(len(field[1]), np.uint8), np.empty(len(field[1]) + 1, np.int64)
        h = np.empty((image.shape[1], image.shape[2] + PADDING), np.float32)
        k = np.empty_like(h)
        for s in range(part, len(rotation), PARTS):
            pose, pixels = (rotation[s], translation[s], psf[s]), (spacing[s], centre[s])
            grad_pose[s] = 0.0
            _cotangents(grad_image[s], image[s], weight[s], extent[s], h, k)
            count = _candidates(field[0], rotation[s], translation[s], psf[s], cut2, near, index)
            _moments_slice(pose, pixels, extent[s], _bounds(extent[s]), field, index[:count], cut2, mass_factor, h, k,
                           grad[part], grad_pose[s], lanes)


@nb.njit(fastmath=FAST, error_model="numpy")
def _charbonnier(numerator, weight, extent, eps, target, importance, gain, delta, image):
    """Loss of one slice and its image; turns the sums into the cotangents k (numerator) and h (weight)."""
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
        loss += part
    return loss


@nb.njit(parallel=True, cache=True, error_model="numpy")
def step(rotation, translation, psf, spacing, centre, extent, field, cut2, eps, mass_factor, lanes, target, importance,
         gain, delta, image, loss, grad, grad_pose):
    """Forward, Charbonnier loss and backward, slice by slice; see :func:`gsbids.kernels.ops.step_slices`."""
    for part in nb.prange(PARTS):
        grad[part] = 0.0
        near, index = np.empty(len(field[1]), np.uint8), np.empty(len(field[1]) + 1, np.int64)
        n = np.empty((image.shape[1], image.shape[2] + PADDING), np.float32)
        d = np.empty_like(n)
        for s in range(part, len(rotation), PARTS):
            pose, pixels, bounds = (rotation[s], translation[s], psf[s]), (spacing[s], centre[s]), _bounds(extent[s])
            grad_pose[s] = 0.0
            count = _candidates(field[0], rotation[s], translation[s], psf[s], cut2, near, index)
            _splat_slice(pose, pixels, extent[s], bounds, field, index[:count], cut2, mass_factor, n, d, lanes)
            loss[s] = _charbonnier(n, d, extent[s], eps, target[s], importance[s], gain[s], delta, image[s])
            _moments_slice(pose, pixels, extent[s], bounds, field, index[:count], cut2, mass_factor, d, n, grad[part],
                           grad_pose[s], lanes)


@nb.njit(error_model="numpy")
def _gradient_slice(pose, pixels, extent, bounds, field, index, cut2, mass_factor, image, out, lanes):
    """Sums of ``w (c - I) grad(-E / 2)`` over the Gaussians of ``index``, (3, X, Y + PADDING)."""
    out[:] = 0.0
    _, mean, cov, intensity, amplitude = field
    for j in index:
        p = project(pose[0], pose[1], pose[2], mean[j], cov[j])
        if p[2] * p[2] < cut2 * p[8]:
            f = rows.fit(p, pixels[0], pixels[1], cut2)
            place = rows.box(f, bounds, extent)
            if place[0] >= place[1]:
                continue
            rows.splat_gradient(image, out, p, f, pixels[0], peak(p, amplitude[j], mass_factor), intensity[j],
                                HALF_LOG2E * cut2, place, lanes)


@nb.njit(parallel=True, cache=True, error_model="numpy")
def image_gradient(rotation, translation, psf, spacing, centre, extent, field, cut2, mass_factor, lanes, image, weight,
                   out):
    """Fill ``out`` (S, X, Y, 3) = dI/dX per mm along the slice's row, column and normal."""
    for part in nb.prange(PARTS):
        near, index = np.empty(len(field[1]), np.uint8), np.empty(len(field[1]) + 1, np.int64)
        padded = np.zeros((image.shape[1], image.shape[2] + PADDING), np.float32)
        sums = np.empty((3, image.shape[1], image.shape[2] + PADDING), np.float32)
        for s in range(part, len(rotation), PARTS):
            pose, pixels = (rotation[s], translation[s], psf[s]), (spacing[s], centre[s])
            padded[:, :image.shape[2]] = image[s]
            count = _candidates(field[0], rotation[s], translation[s], psf[s], cut2, near, index)
            bounds = _bounds(extent[s])
            _gradient_slice(pose, pixels, extent[s], bounds, field, index[:count], cut2, mass_factor, padded,
                            sums, lanes)
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
