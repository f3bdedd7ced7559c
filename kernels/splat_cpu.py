# SPDX-License-Identifier: Apache-2.0
"""Slice splatting on the CPU: every Gaussian is conditioned on the plane of every slice.

A Gaussian of covariance ``Sigma``, blurred by the point spread function (PSF) of a slice and written in the
slice's own axes, has ``S = R^T Sigma R + diag(psf)`` and mean ``m = R^T (mu - t)``. On the plane z = 0

    E(x) = m_z^2 / S_zz + (x - xbar)^T C^-1 (x - xbar),
    xbar = m_b - s m_z / S_zz,   C = S_bb - s s^T / S_zz,   s = S_bz,

so that S and its inverse belong to the pair (slice, Gaussian), and a pixel costs one exponential. Contributions
end where ``E >= cut ** 2``. Derivation: DESIGN section 3; the backward needs seven moments per pair.

Slices are shared out over a fixed number of parts, each with its own gradient buffer summed in order: results
have the same bits for any number of threads.
"""

import math

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

PARTS = 16  # parts the slices are shared out over; fixed, so that sums do not depend on the threads
LOG2E = 1.4426950408889634
FAST = {"contract", "reassoc", "nsz", "arcp"}


@intrinsic
def _as_float(typingctx, bits):
    """Reinterpret the bits of an int32 as float32."""
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.FloatType())
    return types.float32(types.int32), codegen


@intrinsic
def _as_bits(typingctx, value):
    """Reinterpret the bits of a float32 as int32."""
    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(32))
    return types.int32(types.float32), codegen


@nb.njit(inline="always")
def exp2(e):
    """2 ** e for float32 in [-100, 100], relative error under 2e-7 (polynomial; vectorises, unlike libm)."""
    e = max(e, np.float32(-100.0))
    n = np.int32(e + np.float32(128.5)) - np.int32(128)
    r = e - np.float32(n)
    p = np.float32(1.535336188e-4) * r + np.float32(1.339887440e-3)
    p = p * r + np.float32(9.618437357e-3)
    p = p * r + np.float32(5.550332471e-2)
    p = p * r + np.float32(2.402264791e-1)
    p = p * r + np.float32(6.931472029e-1)
    p = p * r + np.float32(1.0)
    return _as_float(_as_bits(p) + np.int32(n << 23))


@nb.njit(inline="always")
def _reaches(rotation, translation, psf, mean, cov, cut2):
    """Whether the Gaussian comes within the cut of the slice's plane at all: a cheap first test."""
    a, b, c = rotation[0, 2], rotation[1, 2], rotation[2, 2]
    z = a * (mean[0] - translation[0]) + b * (mean[1] - translation[1]) + c * (mean[2] - translation[2])
    zeta = (a * (a * cov[0] + 2 * (b * cov[1] + c * cov[2])) + b * (b * cov[3] + 2 * c * cov[4])
            + c * c * cov[5] + psf[2])
    return z * z < cut2 * zeta


@nb.njit(inline="always")
def _rotated(r, cov):
    """R^T Sigma R as uu, uv, uz, vv, vz, zz."""
    p0 = cov[0] * r[0, 0] + cov[1] * r[1, 0] + cov[2] * r[2, 0]
    p1 = cov[1] * r[0, 0] + cov[3] * r[1, 0] + cov[4] * r[2, 0]
    p2 = cov[2] * r[0, 0] + cov[4] * r[1, 0] + cov[5] * r[2, 0]
    q0 = cov[0] * r[0, 1] + cov[1] * r[1, 1] + cov[2] * r[2, 1]
    q1 = cov[1] * r[0, 1] + cov[3] * r[1, 1] + cov[4] * r[2, 1]
    q2 = cov[2] * r[0, 1] + cov[4] * r[1, 1] + cov[5] * r[2, 1]
    n0 = cov[0] * r[0, 2] + cov[1] * r[1, 2] + cov[2] * r[2, 2]
    n1 = cov[1] * r[0, 2] + cov[3] * r[1, 2] + cov[4] * r[2, 2]
    n2 = cov[2] * r[0, 2] + cov[4] * r[1, 2] + cov[5] * r[2, 2]
    return (r[0, 0] * p0 + r[1, 0] * p1 + r[2, 0] * p2, r[0, 0] * q0 + r[1, 0] * q1 + r[2, 0] * q2,
            r[0, 0] * n0 + r[1, 0] * n1 + r[2, 0] * n2, r[0, 1] * q0 + r[1, 1] * q1 + r[2, 1] * q2,
            r[0, 1] * n0 + r[1, 1] * n1 + r[2, 1] * n2, r[0, 2] * n0 + r[1, 2] * n1 + r[2, 2] * n2)


@nb.njit(inline="always")
def _project(rotation, translation, psf, mean, cov):
    """Mean and covariance in the slice frame, and the conditional 2D Gaussian.

    Returns m (3), S (6, with PSF), xbar (2), Q = C^-1 (3), C_uu.
    """
    y0, y1, y2 = mean[0] - translation[0], mean[1] - translation[1], mean[2] - translation[2]
    mu = rotation[0, 0] * y0 + rotation[1, 0] * y1 + rotation[2, 0] * y2
    mv = rotation[0, 1] * y0 + rotation[1, 1] * y1 + rotation[2, 1] * y2
    mz = rotation[0, 2] * y0 + rotation[1, 2] * y1 + rotation[2, 2] * y2
    suu, suv, suz, svv, svz, szz = _rotated(rotation, cov)
    suu += psf[0]
    svv += psf[1]
    szz += psf[2]
    cuu, cuv, cvv = suu - suz * suz / szz, suv - suz * svz / szz, svv - svz * svz / szz
    det = cuu * cvv - cuv * cuv
    return (mu, mv, mz, suu, suv, suz, svv, svz, szz, mu - suz * mz / szz, mv - svz * mz / szz,
            cvv / det, -cuv / det, cuu / det, cuu)


@nb.njit(inline="always")
def _rows(xbar, half, spacing, centre, count):
    """First and one-past-last row within ``half`` mm of ``xbar``."""
    first = math.ceil((xbar - half) / spacing + centre)
    last = math.floor((xbar + half) / spacing + centre) + 1
    return max(0, int(first)), min(count, int(last))


@nb.njit(inline="always")
def _span(vc, half, spacing, centre, extent):
    """First and one-past-last pixel of a row, within its extent."""
    first = math.ceil((vc - half) / spacing + centre)
    last = math.floor((vc + half) / spacing + centre) + 1
    return max(extent[0], int(first)), min(extent[1], int(last))


@nb.njit(fastmath=FAST)
def _splat(numerator, weight, extent, spacing, centre, p, log_amplitude, cut2, intensity):
    """Add one Gaussian (projection ``p``) to the two images of a slice."""
    szz, xu, xv, quv, qvv, cuu = p[8], p[9], p[10], p[12], p[13], p[14]
    room = cut2 - p[2] * p[2] / szz
    k = np.float32(-0.5 * LOG2E * qvv * spacing[1] * spacing[1])
    c = np.float32(intensity)
    i0, i1 = _rows(xu, math.sqrt(room * cuu), spacing[0], centre[0], weight.shape[0])
    for i in range(i0, i1):
        du = (i - centre[0]) * spacing[0] - xu
        rest = room - du * du / cuu
        if rest <= 0.0:
            continue
        vc = xv - quv / qvv * du
        j0, j1 = _span(vc, math.sqrt(rest / qvv), spacing[1], centre[1], extent[i])
        k0 = np.float32(LOG2E * (log_amplitude - 0.5 * (cut2 - rest)))
        jc = np.float32(vc / spacing[1] + centre[1])
        row_n, row_d = numerator[i], weight[i]
        for j in range(j0, j1):
            d = np.float32(j) - jc
            w = exp2(k0 + k * d * d)
            row_d[j] += w
            row_n[j] += w * c


@nb.njit(fastmath=FAST)
def _moments(h, k_image, extent, spacing, centre, p, log_amplitude, cut2, intensity):
    """S0, S1 (2), S2 (3) of ``W = w (c h - k)`` about xbar, and ``sum w h``, of one Gaussian in one slice."""
    szz, xu, xv, quv, qvv, cuu = p[8], p[9], p[10], p[12], p[13], p[14]
    room = cut2 - p[2] * p[2] / szz
    k = np.float32(-0.5 * LOG2E * qvv * spacing[1] * spacing[1])
    c = np.float32(intensity)
    s0 = su = sv = suu = suv = svv = gc = 0.0
    i0, i1 = _rows(xu, math.sqrt(room * cuu), spacing[0], centre[0], h.shape[0])
    for i in range(i0, i1):
        du = (i - centre[0]) * spacing[0] - xu
        rest = room - du * du / cuu
        if rest <= 0.0:
            continue
        shift = quv / qvv * du
        vc = xv - shift
        j0, j1 = _span(vc, math.sqrt(rest / qvv), spacing[1], centre[1], extent[i])
        k0 = np.float32(LOG2E * (log_amplitude - 0.5 * (cut2 - rest)))
        jc = np.float32(vc / spacing[1] + centre[1])
        row_h, row_k = h[i], k_image[i]
        q0, q1, q2, g = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
        for j in range(j0, j1):
            d = np.float32(j) - jc
            w = exp2(k0 + k * d * d)
            t = w * (c * row_h[j] - row_k[j])
            q0 += t
            q1 += t * d
            q2 += t * d * d
            g += w * row_h[j]
        r1, r2 = q1 * spacing[1], q2 * spacing[1] * spacing[1]
        s0 += q0
        su += du * q0
        sv += r1 - shift * q0
        suu += du * du * q0
        suv += du * (r1 - shift * q0)
        svv += r2 - 2 * shift * r1 + shift * shift * q0
        gc += g
    return s0, su, sv, suu, suv, svv, gc


@nb.njit(inline="always")
def _amplitude(p, mass_factor):
    """-log(det S) / 2 with the mass factor, else 0."""
    if mass_factor:
        return -0.5 * math.log(p[8] / (p[11] * p[13] - p[12] * p[12]))
    return 0.0


@nb.njit(parallel=True, cache=True, error_model="numpy")
def forward(rotation, translation, psf, spacing, centre, extent, mean, cov, intensity, log_amplitude,
            cut2, eps, mass_factor, image, weight):
    """Fill ``image`` = I and ``weight`` = D, both (S, X, Y) float32; see :mod:`gsbids.kernels.ops`."""
    for part in nb.prange(PARTS):
        for s in range(part, len(rotation), PARTS):
            image[s] = 0.0
            weight[s] = 0.0
            for j in range(len(mean)):
                if not _reaches(rotation[s], translation[s], psf[s], mean[j], cov[j], cut2):
                    continue
                p = _project(rotation[s], translation[s], psf[s], mean[j], cov[j])
                _splat(image[s], weight[s], extent[s], spacing[s], centre[s], p,
                       log_amplitude[j] + _amplitude(p, mass_factor), cut2, intensity[j])
            for i in range(image.shape[1]):
                for k in range(image.shape[2]):
                    weight[s, i, k] += eps
                    image[s, i, k] /= weight[s, i, k]


@nb.njit(inline="always")
def _chain(p, m, mass_factor):
    """Gradients with respect to m (3) and S (6: full symmetric entries) from the moments ``m``."""
    mz, suz, svz, szz, quu, quv, qvv = p[2], p[5], p[7], p[8], p[11], p[12], p[13]
    s0, su, sv = m[0], m[1], m[2]
    xu, xv = quu * su + quv * sv, quv * su + qvv * sv  # gradient wrt xbar = Q S1
    # gradient wrt C = Q S2 Q / 2
    a, b, c, d = quu * m[3] + quv * m[4], quu * m[4] + quv * m[5], quv * m[3] + qvv * m[4], quv * m[4] + qvv * m[5]
    cuu, cuv, cvv = 0.5 * (a * quu + b * quv), 0.5 * (a * quv + b * qvv), 0.5 * (c * quv + d * qvv)
    zz = 0.5 * s0 * mz * mz / (szz * szz)
    if mass_factor:
        cuu -= 0.5 * s0 * quu
        cuv -= 0.5 * s0 * quv
        cvv -= 0.5 * s0 * qvv
        zz -= 0.5 * s0 / szz
    lu, lv = cuu * suz + cuv * svz, cuv * suz + cvv * svz
    sx = suz * xu + svz * xv
    gz = -sx / szz - s0 * mz / szz
    zz += sx * mz / (szz * szz) + (suz * lu + svz * lv) / (szz * szz)
    uz = 0.5 * (-mz * xu / szz - 2 * lu / szz)
    vz = 0.5 * (-mz * xv / szz - 2 * lv / szz)
    return xu, xv, gz, cuu, cuv, uz, cvv, vz, zz


@nb.njit(inline="always")
def _add_to_gaussian(out, r, g, m):
    """World gradients: mean R g_m, covariance R G R^T (off-diagonals count twice), intensity, log-weight."""
    gu, gv, gz, uu, uv, uz, vv, vz, zz = g
    for a in range(3):
        out[a] += r[a, 0] * gu + r[a, 1] * gv + r[a, 2] * gz
    k = 3
    for a in range(3):
        pu = r[a, 0] * uu + r[a, 1] * uv + r[a, 2] * uz
        pv = r[a, 0] * uv + r[a, 1] * vv + r[a, 2] * vz
        pz = r[a, 0] * uz + r[a, 1] * vz + r[a, 2] * zz
        for b in range(a, 3):
            value = pu * r[b, 0] + pv * r[b, 1] + pz * r[b, 2]
            out[k] += value if a == b else 2 * value
            k += 1
    out[9] += m[6]
    out[10] += m[0]


@nb.njit(inline="always")
def _add_to_pose(out, p, psf, g):
    """Gradient with respect to the slice-frame tangents omega (3) and tau (3)."""
    mu, mv, mz = p[0], p[1], p[2]
    uu, uv, uz, vv, vz, zz = p[3] - psf[0], p[4], p[5], p[6] - psf[1], p[7], p[8] - psf[2]
    gu, gv, gz, huu, huv, huz, hvv, hvz, hzz = g
    # g_m x m, and twice the upper part of A = G S - S G
    out[0] += gv * mz - gz * mv + 2 * (huv * uz + hvv * vz + hvz * zz - uv * huz - vv * hvz - vz * hzz)
    out[1] += gz * mu - gu * mz + 2 * (huz * uu + hvz * uv + hzz * uz - uz * huu - vz * huv - zz * huz)
    out[2] += gu * mv - gv * mu + 2 * (huu * uv + huv * vv + huz * vz - uu * huv - uv * hvv - uz * hvz)
    out[3] -= gu
    out[4] -= gv
    out[5] -= gz


@nb.njit(parallel=True, cache=True, error_model="numpy")
def backward(rotation, translation, psf, spacing, centre, extent, mean, cov, intensity, log_amplitude,
             cut2, mass_factor, h, k_image, grad, grad_pose):
    """Fill ``grad`` (PARTS, J, 11) and ``grad_pose`` (S, 6) from ``h = g / D`` and ``k = h I``, (S, X, Y).

    The 11 columns: mean (3), covariance (xx, xy, xz, yy, yz, zz), intensity, log-weight.
    """
    for part in nb.prange(PARTS):
        grad[part] = 0.0
        pose = np.zeros(6)
        for s in range(part, len(rotation), PARTS):
            pose[:] = 0.0
            for j in range(len(mean)):
                if not _reaches(rotation[s], translation[s], psf[s], mean[j], cov[j], cut2):
                    continue
                p = _project(rotation[s], translation[s], psf[s], mean[j], cov[j])
                m = _moments(h[s], k_image[s], extent[s], spacing[s], centre[s], p,
                             log_amplitude[j] + _amplitude(p, mass_factor), cut2, intensity[j])
                g = _chain(p, m, mass_factor)
                _add_to_gaussian(grad[part, j], rotation[s], g, m)
                _add_to_pose(pose, p, psf[s], g)
            grad_pose[s] = pose


@nb.njit(fastmath=FAST)
def _splat_gradient(image, out, extent, spacing, centre, p, log_amplitude, cut2, intensity):
    """Add ``w (c - I) grad(-E / 2)`` of one Gaussian to the three gradient images of a slice."""
    mz, suz, svz, szz = p[2], p[5], p[7], p[8]
    xu, xv, quu, quv, qvv, cuu = p[9], p[10], p[11], p[12], p[13], p[14]
    zu, zv, z0 = (quu * suz + quv * svz) / szz, (quv * suz + qvv * svz) / szz, mz / szz
    room = cut2 - mz * mz / szz
    i0, i1 = _rows(xu, math.sqrt(room * cuu), spacing[0], centre[0], image.shape[0])
    for i in range(i0, i1):
        du = (i - centre[0]) * spacing[0] - xu
        rest = room - du * du / cuu
        if rest <= 0.0:
            continue
        vc = xv - quv / qvv * du
        j0, j1 = _span(vc, math.sqrt(rest / qvv), spacing[1], centre[1], extent[i])
        for j in range(j0, j1):
            dv = (j - centre[1]) * spacing[1] - vc
            w = exp2(np.float32(LOG2E * (log_amplitude - 0.5 * (cut2 - rest + qvv * dv * dv))))
            t = w * (np.float32(intensity) - image[i, j])
            dv -= quv / qvv * du
            out[i, j, 0] -= t * (quu * du + quv * dv)
            out[i, j, 1] -= t * (quv * du + qvv * dv)
            out[i, j, 2] += t * (z0 + zu * du + zv * dv)


@nb.njit(parallel=True, cache=True, error_model="numpy")
def image_gradient(rotation, translation, psf, spacing, centre, extent, mean, cov, intensity, log_amplitude,
                   cut2, mass_factor, image, weight, out):
    """Fill ``out`` (S, X, Y, 3) = dI/dX per mm along the slice's row, column and normal."""
    for part in nb.prange(PARTS):
        for s in range(part, len(rotation), PARTS):
            out[s] = 0.0
            for j in range(len(mean)):
                if not _reaches(rotation[s], translation[s], psf[s], mean[j], cov[j], cut2):
                    continue
                p = _project(rotation[s], translation[s], psf[s], mean[j], cov[j])
                _splat_gradient(image[s], out[s], extent[s], spacing[s], centre[s], p,
                                log_amplitude[j] + _amplitude(p, mass_factor), cut2, intensity[j])
            for i in range(image.shape[1]):
                for k in range(image.shape[2]):
                    for a in range(3):
                        out[s, i, k, a] /= weight[s, i, k]


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
