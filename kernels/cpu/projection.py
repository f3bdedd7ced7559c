# SPDX-License-Identifier: Apache-2.0
"""A Gaussian in a slice: its projection onto the plane, and the chain rule back.

A Gaussian of covariance ``Sigma``, blurred by the point spread function (PSF) of a slice and written in the
slice's own axes, has ``S = R^T Sigma R + diag(psf)`` and mean ``m = R^T (mu - t)``. On the plane z = 0

    E(x) = m_z^2 / S_zz + (x - xbar)^T C^-1 (x - xbar),
    xbar = m_b - s m_z / S_zz,   C = S_bb - s s^T / S_zz,   s = S_bz,

so that S and its inverse belong to the pair (slice, Gaussian), and a pixel costs one exponential. The backward needs
seven moments per pair.

Everything here takes float64 numbers, or lanes of them (:mod:`gsbids.kernels.cpu.lanes`): Gaussians side by side.
"""

import numba as nb


@nb.njit(forceinline=True)
def pose_of(rotation, translation, psf):
    """Return rotation (3 x 3), translation and PSF variances of a slice as tuples of numbers."""
    return (
        (
            (rotation[0, 0], rotation[0, 1], rotation[0, 2]),
            (rotation[1, 0], rotation[1, 1], rotation[1, 2]),
            (rotation[2, 0], rotation[2, 1], rotation[2, 2]),
        ),
        (translation[0], translation[1], translation[2]),
        (psf[0], psf[1], psf[2]),
    )


@nb.njit
def _rotated(r, cov):
    """Return R^T Sigma R as uu, uv, uz, vv, vz, zz."""
    p0 = cov[0] * r[0][0] + cov[1] * r[1][0] + cov[2] * r[2][0]
    p1 = cov[1] * r[0][0] + cov[3] * r[1][0] + cov[4] * r[2][0]
    p2 = cov[2] * r[0][0] + cov[4] * r[1][0] + cov[5] * r[2][0]
    q0 = cov[0] * r[0][1] + cov[1] * r[1][1] + cov[2] * r[2][1]
    q1 = cov[1] * r[0][1] + cov[3] * r[1][1] + cov[4] * r[2][1]
    q2 = cov[2] * r[0][1] + cov[4] * r[1][1] + cov[5] * r[2][1]
    n0 = cov[0] * r[0][2] + cov[1] * r[1][2] + cov[2] * r[2][2]
    n1 = cov[1] * r[0][2] + cov[3] * r[1][2] + cov[4] * r[2][2]
    n2 = cov[2] * r[0][2] + cov[4] * r[1][2] + cov[5] * r[2][2]
    return (
        r[0][0] * p0 + r[1][0] * p1 + r[2][0] * p2,
        r[0][0] * q0 + r[1][0] * q1 + r[2][0] * q2,
        r[0][0] * n0 + r[1][0] * n1 + r[2][0] * n2,
        r[0][1] * q0 + r[1][1] * q1 + r[2][1] * q2,
        r[0][1] * n0 + r[1][1] * n1 + r[2][1] * n2,
        r[0][2] * n0 + r[1][2] * n1 + r[2][2] * n2,
    )


@nb.njit(error_model="numpy")
def project(rotation, translation, psf, mean, cov):
    """Return mean and covariance in the slice frame, and the conditional 2D Gaussian.

    In this order: m (3), S (6, with PSF), xbar (2), Q = C^-1 (3), C (uu, uv, vv), 1 / S_zz.
    """
    y0, y1, y2 = mean[0] - translation[0], mean[1] - translation[1], mean[2] - translation[2]
    mu = rotation[0][0] * y0 + rotation[1][0] * y1 + rotation[2][0] * y2
    mv = rotation[0][1] * y0 + rotation[1][1] * y1 + rotation[2][1] * y2
    mz = rotation[0][2] * y0 + rotation[1][2] * y1 + rotation[2][2] * y2
    suu, suv, suz, svv, svz, szz = _rotated(rotation, cov)
    suu, svv, szz = suu + psf[0], svv + psf[1], szz + psf[2]
    over = 1.0 / szz
    zu, zv = suz * over, svz * over
    cuu, cuv, cvv = suu - suz * zu, suv - suz * zv, svv - svz * zv
    scale = 1.0 / (cuu * cvv - cuv * cuv)
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
        mu - zu * mz,
        mv - zv * mz,
        cvv * scale,
        -cuv * scale,
        cuu * scale,
        cuu,
        cuv,
        cvv,
        over,
    )


@nb.njit
def chain(p, m, mass_factor):
    """Return the gradients with respect to m (3) and S (6: full symmetric entries) from the moments ``m``."""
    mz, suz, svz, over, quu, quv, qvv = p[2], p[5], p[7], p[17], p[11], p[12], p[13]
    s0, su, sv = m[0], m[1], m[2]
    xu, xv = quu * su + quv * sv, quv * su + qvv * sv  # gradient wrt xbar = Q S1
    # gradient wrt C = Q S2 Q / 2
    a, b, c, d = quu * m[3] + quv * m[4], quu * m[4] + quv * m[5], quv * m[3] + qvv * m[4], quv * m[4] + qvv * m[5]
    cuu, cuv, cvv = 0.5 * (a * quu + b * quv), 0.5 * (a * quv + b * qvv), 0.5 * (c * quv + d * qvv)
    height = mz * over
    zz = 0.5 * s0 * height * height
    if mass_factor:
        cuu, cuv, cvv = cuu - 0.5 * s0 * quu, cuv - 0.5 * s0 * quv, cvv - 0.5 * s0 * qvv
        zz = zz - 0.5 * s0 * over
    lu, lv = (cuu * suz + cuv * svz) * over, (cuv * suz + cvv * svz) * over
    sx = (suz * xu + svz * xv) * over
    gz = -sx - s0 * height
    zz = zz + sx * height + (suz * lu + svz * lv) * over
    uz, vz = -0.5 * height * xu - lu, -0.5 * height * xv - lv
    return xu, xv, gz, cuu, cuv, uz, cvv, vz, zz


@nb.njit
def to_world(r, g):
    """Return the gradients in the world: mean R g_m (3), covariance R G R^T (6: off-diagonals count twice)."""
    gu, gv, gz, uu, uv, uz, vv, vz, zz = g
    u0, u1, u2 = (
        r[0][0] * uu + r[0][1] * uv + r[0][2] * uz,
        r[1][0] * uu + r[1][1] * uv + r[1][2] * uz,
        r[2][0] * uu + r[2][1] * uv + r[2][2] * uz,
    )
    v0, v1, v2 = (
        r[0][0] * uv + r[0][1] * vv + r[0][2] * vz,
        r[1][0] * uv + r[1][1] * vv + r[1][2] * vz,
        r[2][0] * uv + r[2][1] * vv + r[2][2] * vz,
    )
    z0, z1, z2 = (
        r[0][0] * uz + r[0][1] * vz + r[0][2] * zz,
        r[1][0] * uz + r[1][1] * vz + r[1][2] * zz,
        r[2][0] * uz + r[2][1] * vz + r[2][2] * zz,
    )
    return (
        r[0][0] * gu + r[0][1] * gv + r[0][2] * gz,
        r[1][0] * gu + r[1][1] * gv + r[1][2] * gz,
        r[2][0] * gu + r[2][1] * gv + r[2][2] * gz,
        u0 * r[0][0] + v0 * r[0][1] + z0 * r[0][2],
        2.0 * (u0 * r[1][0] + v0 * r[1][1] + z0 * r[1][2]),
        2.0 * (u0 * r[2][0] + v0 * r[2][1] + z0 * r[2][2]),
        u1 * r[1][0] + v1 * r[1][1] + z1 * r[1][2],
        2.0 * (u1 * r[2][0] + v1 * r[2][1] + z1 * r[2][2]),
        u2 * r[2][0] + v2 * r[2][1] + z2 * r[2][2],
    )


@nb.njit
def to_pose(p, psf, g):
    """Return the gradient with respect to the slice-frame tangents omega (3) and tau (3)."""
    mu, mv, mz = p[0], p[1], p[2]
    uu, uv, uz, vv, vz, zz = p[3] - psf[0], p[4], p[5], p[6] - psf[1], p[7], p[8] - psf[2]
    gu, gv, gz, huu, huv, huz, hvv, hvz, hzz = g
    # g_m x m, and twice the upper part of A = G S - S G
    return (
        gv * mz - gz * mv + 2.0 * (huv * uz + hvv * vz + hvz * zz - uv * huz - vv * hvz - vz * hzz),
        gz * mu - gu * mz + 2.0 * (huz * uu + hvz * uv + hzz * uz - uz * huu - vz * huv - zz * huz),
        gu * mv - gv * mu + 2.0 * (huu * uv + huv * vv + huz * vz - uu * huv - uv * hvv - uz * hvz),
        -gu,
        -gv,
        -gz,
    )
