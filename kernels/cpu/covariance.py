# SPDX-License-Identifier: Apache-2.0
"""Covariances of all Gaussians from log-scales and quaternions, and the backward pass."""

import math

import numba as nb
import numpy as np


@nb.njit(error_model="numpy", forceinline=True)
def _matrix(q):
    """Return the rotation matrix (9, row-major) of a quaternion, the quaternion of length 1 (4), and 1 / length."""
    n = 1.0 / math.sqrt(q[0] * q[0] + q[1] * q[1] + q[2] * q[2] + q[3] * q[3])
    w, x, y, z = q[0] * n, q[1] * n, q[2] * n, q[3] * n
    return (
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
        w,
        x,
        y,
        z,
        n,
    )


@nb.njit(error_model="numpy", forceinline=True)
def covariance_of(log_scale, quaternion):
    """Return the covariance of one Gaussian, as :func:`covariances` does: six numbers, float64."""
    a, b, c, d, e, f, g, h, i, _, _, _, _, _ = _matrix(quaternion)
    p, q, r = math.exp(2.0 * log_scale[0]), math.exp(2.0 * log_scale[1]), math.exp(2.0 * log_scale[2])
    return (
        a * a * p + b * b * q + c * c * r,
        a * d * p + b * e * q + c * f * r,
        a * g * p + b * h * q + c * i * r,
        d * d * p + e * e * q + f * f * r,
        d * g * p + e * h * q + f * i * r,
        g * g * p + h * h * q + i * i * r,
    )


@nb.njit(error_model="numpy")
def _covariance(log_scale, quaternion, j, out):
    out[0], out[1], out[2], out[3], out[4], out[5] = covariance_of(triple(log_scale, j), quadruple(quaternion, j))


@nb.njit(parallel=True, cache=True, error_model="numpy")
def _covariances(log_scale, quaternion, out):
    for j in nb.prange(len(log_scale)):
        _covariance(log_scale, quaternion, j, out[j])


@nb.njit(error_model="numpy", forceinline=True)
def triple(array, j):
    """Return row j of an array (J, 3) as float64 numbers."""
    return np.float64(array[j, 0]), np.float64(array[j, 1]), np.float64(array[j, 2])


@nb.njit(error_model="numpy", forceinline=True)
def quadruple(array, j):
    """Return row j of an array (J, 4) as float64 numbers."""
    return np.float64(array[j, 0]), np.float64(array[j, 1]), np.float64(array[j, 2]), np.float64(array[j, 3])


def covariances(log_scale: np.ndarray, quaternion: np.ndarray) -> np.ndarray:
    """Compute covariances ``R(q) diag(exp(2 s)) R(q)^T``.

    Parameters
    ----------
    log_scale : ndarray, (J, 3), float32
        Logarithms of the standard deviations (mm).
    quaternion : ndarray, (J, 4), float32
        (w, x, y, z), of any length but 0.

    Returns
    -------
    ndarray, (J, 6), float32
        xx, xy, xz, yy, yz, zz in mm2.
    """
    out = np.empty((len(log_scale), 6), np.float32)
    _covariances(log_scale, quaternion, out)
    return out


@nb.njit(error_model="numpy", forceinline=True)
def covariance_backward_of(log_scale, quaternion, grad):
    """Return the gradients of one Gaussian, as :func:`covariances_backward` does: three and four numbers, float64."""
    a, b, c, d, e, f, g, h, i, w, x, y, z, n = _matrix(quaternion)
    xx, xy, xz, yy, yz, zz = grad[0], 0.5 * grad[1], 0.5 * grad[2], grad[3], 0.5 * grad[4], grad[5]
    # G R, column by column, then R^T G R: the gradient in the Gaussian's own axes.
    k0, k1, k2 = xx * a + xy * d + xz * g, xy * a + yy * d + yz * g, xz * a + yz * d + zz * g
    l0, l1, l2 = xx * b + xy * e + xz * h, xy * b + yy * e + yz * h, xz * b + yz * e + zz * h
    m0, m1, m2 = xx * c + xy * f + xz * i, xy * c + yy * f + yz * i, xz * c + yz * f + zz * i
    p, q, r = math.exp(2.0 * log_scale[0]), math.exp(2.0 * log_scale[1]), math.exp(2.0 * log_scale[2])
    # Tangent rotation R exp([phi]x); dq = q (0, phi) / 2, so the gradient is 2 q (0, dL/dphi).
    s = 4.0 * (q - r) * (b * m0 + e * m1 + h * m2) * n
    t = 4.0 * (r - p) * (c * k0 + f * k1 + i * k2) * n
    u = 4.0 * (p - q) * (a * l0 + d * l1 + g * l2) * n
    return (
        (2 * p * (a * k0 + d * k1 + g * k2), 2 * q * (b * l0 + e * l1 + h * l2), 2 * r * (c * m0 + f * m1 + i * m2)),
        (-x * s - y * t - z * u, w * s + y * u - z * t, w * t + z * s - x * u, w * u + x * t - y * s),
    )


@nb.njit(error_model="numpy")
def _covariance_backward(log_scale, quaternion, grad, j, grad_scale, grad_turn):
    entries = (
        np.float64(grad[0]),
        np.float64(grad[1]),
        np.float64(grad[2]),
        np.float64(grad[3]),
        np.float64(grad[4]),
        np.float64(grad[5]),
    )
    scale, turn = covariance_backward_of(triple(log_scale, j), quadruple(quaternion, j), entries)
    grad_scale[0], grad_scale[1], grad_scale[2] = scale
    grad_turn[0], grad_turn[1], grad_turn[2], grad_turn[3] = turn


@nb.njit(parallel=True, cache=True, error_model="numpy")
def _covariances_backward(log_scale, quaternion, grad, grad_scale, grad_quaternion):
    for j in nb.prange(len(log_scale)):
        _covariance_backward(log_scale, quaternion, grad[j], j, grad_scale[j], grad_quaternion[j])


def covariances_backward(
    log_scale: np.ndarray, quaternion: np.ndarray, grad: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the gradients with respect to log-scale (J, 3) and quaternion (J, 4).

    Parameters
    ----------
    log_scale, quaternion : ndarray, (J, 3), (J, 4), float32
    grad : ndarray, (J, 6), float32
        Gradient with respect to the six entries of :func:`covariances`; the off-diagonal ones count both
        symmetric entries.

    Returns
    -------
    grad_log_scale, grad_quaternion : ndarray, (J, 3), (J, 4), float32
    """
    grad_scale, grad_quaternion = np.empty_like(log_scale), np.empty_like(quaternion)
    _covariances_backward(log_scale, quaternion, grad, grad_scale, grad_quaternion)
    return grad_scale, grad_quaternion
