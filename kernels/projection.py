# SPDX-License-Identifier: Apache-2.0
"""A Gaussian in a slice: its projection onto the plane, and the chain rule back.

A Gaussian of covariance ``Sigma``, blurred by the point spread function (PSF) of a slice and written in the
slice's own axes, has ``S = R^T Sigma R + diag(psf)`` and mean ``m = R^T (mu - t)``. On the plane z = 0

    E(x) = m_z^2 / S_zz + (x - xbar)^T C^-1 (x - xbar),
    xbar = m_b - s m_z / S_zz,   C = S_bb - s s^T / S_zz,   s = S_bz,

so that S and its inverse belong to the pair (slice, Gaussian), and a pixel costs one exponential. Derivation:
DESIGN section 3; the backward needs seven moments per pair.
"""

import numba as nb


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
def project(rotation, translation, psf, mean, cov):
    """Mean and covariance in the slice frame, and the conditional 2D Gaussian.

    Returns m (3), S (6, with PSF), xbar (2), Q = C^-1 (3), C (uu, uv, vv).
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
            cvv / det, -cuv / det, cuu / det, cuu, cuv, cvv)


@nb.njit(error_model="numpy")
def chain(p, m, mass_factor):
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


@nb.njit(error_model="numpy")
def add_to_gaussian(out, r, g, m):
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


@nb.njit(error_model="numpy")
def add_to_pose(out, p, psf, g):
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
