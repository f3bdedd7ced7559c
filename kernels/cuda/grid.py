# SPDX-License-Identifier: Apache-2.0
"""A field of Gaussians on a voxel grid on the GPU: bricks of 8 x 8 x 8 voxels, forward and backward.

A block renders a brick with the records of 64 Gaussians at a time in shared memory; each of its warps has 4 x 4 x 8
voxels and passes over a Gaussian by one test of ellipsoid against box. The backward gathers moments with one warp
per Gaussian. No atomics: the same bits at every run.

``frame`` (18,): rotation (9, row-major), position of voxel (0, 0, 0), PSF variances (3), spacing (3). ``record``
(J, 12), in voxels and powers of 2: ``(pi, pj, pk, kii, kij, kik, kjj, kjk, kkk, k0, c, emin)`` with
``e = k0 + sum_{a<=b} k_ab d_a d_b`` and ``w = 2^e`` where ``e > emin``. ``gauss``: as in
:mod:`gsbids.kernels.cuda.formulas`.
"""

import math

from numba import float32, int32, uint32

from gsbids.kernels.cuda import runtime
from gsbids.kernels.cuda.formulas import (
    ALIGNED,
    HALF,
    HALF_LOG2E,
    LOG2E,
    ONE,
    TWO,
    ZERO,
    ceil_between,
    floor_between,
    rotated,
)

cuda = runtime.numba_cuda()

# Voxels along a brick's edge; threads of a block; lanes of a warp, and one more against bank conflicts; warps.
BRICK, BLOCK, WARP, PADDED, WARPS = 8, 128, 32, 33, 4
BATCH, RECORD3, MOMENTS3 = 64, 12, 11  # Gaussians staged at a time, numbers in a record, moments
SUB, LONG = float32(1.5), float32(3.5)  # half the distance of the outermost of 4 and 8 voxels


@cuda.jit(device=True, fastmath=True)
def in_grid(f, g):
    """Return mean (3) and covariance with the PSF of row ``g`` of ``gauss`` along the axes of the grid.

    Covariance: xx, xy, xz, yy, yz, zz.
    """
    y0, y1, y2 = g[0] - f[9], g[1] - f[10], g[2] - f[11]
    return (
        f[0] * y0 + f[3] * y1 + f[6] * y2,
        f[1] * y0 + f[4] * y1 + f[7] * y2,
        f[2] * y0 + f[5] * y1 + f[8] * y2,
        rotated(f[0], f[3], f[6], g, f[0], f[3], f[6]) + f[12],
        rotated(f[0], f[3], f[6], g, f[1], f[4], f[7]),
        rotated(f[0], f[3], f[6], g, f[2], f[5], f[8]),
        rotated(f[1], f[4], f[7], g, f[1], f[4], f[7]) + f[13],
        rotated(f[1], f[4], f[7], g, f[2], f[5], f[8]),
        rotated(f[2], f[5], f[8], g, f[2], f[5], f[8]) + f[14],
    )


@cuda.jit(device=True, fastmath=True)
def inverse(p):
    """Return the inverse of the covariance p[3:9] (xx, xy, xz, yy, yz, zz), and 1 / det."""
    xx, xy, xz = p[6] * p[8] - p[7] * p[7], p[5] * p[7] - p[4] * p[8], p[4] * p[7] - p[5] * p[6]
    scale = ONE / (p[3] * xx + p[4] * xy + p[5] * xz)
    return (
        xx * scale,
        xy * scale,
        xz * scale,
        (p[3] * p[8] - p[5] * p[5]) * scale,
        (p[4] * p[5] - p[3] * p[7]) * scale,
        (p[3] * p[6] - p[4] * p[4]) * scale,
        scale,
    )


@cuda.jit(device=True, fastmath=True)
def misses(r, i, j, k, bi, bj, bk):
    """Return whether no voxel of the box about (i, j, k) with half edges b can lie within the cut of record ``r``.

    With E = k0 - e = |y|^2 in whitened coordinates and y0 the centre of the box, no point of the box is nearer to the
    Gaussian's centre than ``(|y0|^2 - sum_a b_a |K d0|_a) / |y0|``: safe, and seldom wrong by much.
    """
    x, y, z = i - r[0], j - r[1], k - r[2]
    gx = r[3] * x + HALF * (r[4] * y + r[5] * z)
    gy = r[6] * y + HALF * (r[4] * x + r[7] * z)
    gz = r[8] * z + HALF * (r[5] * x + r[7] * y)
    energy = -(gx * x + gy * y + gz * z)
    nearest = energy - bi * abs(gx) - bj * abs(gy) - bk * abs(gz)
    return nearest > ZERO and nearest * nearest > float32(1.0001) * (r[9] - r[11]) * energy


@cuda.jit(fastmath=True)
def project_grid(gauss, frame, cut2, mass_factor, ni, nj, nk, record, box):
    """Fill records (J, 12) and boxes (J, 6: i0, i1, j0, j1, k0, k1) of Gaussians; a thread per Gaussian.

    With the mass factor the exponent has ``-log(det S) / 2``, S the covariance with the PSF.
    """
    n = cuda.grid(1)
    if n >= gauss.shape[0]:
        return
    g, hi, hj, hk = gauss[n], frame[15], frame[16], frame[17]
    p = in_grid(frame, g)
    pi, pj, pk = p[0] / hi, p[1] / hj, p[2] / hk
    xx, xy, xz, yy, yz, zz, scale = inverse(p)
    height = g[10]
    if mass_factor:
        height += HALF * math.log(scale)
    record[n, 0], record[n, 1], record[n, 2] = pi, pj, pk
    record[n, 3], record[n, 4], record[n, 5] = -HALF_LOG2E * xx * hi * hi, -LOG2E * xy * hi * hj, -LOG2E * xz * hi * hk
    record[n, 6], record[n, 7] = -HALF_LOG2E * yy * hj * hj, -LOG2E * yz * hj * hk
    record[n, 8] = -HALF_LOG2E * zz * hk * hk
    record[n, 9], record[n, 10], record[n, 11] = LOG2E * height, g[9], LOG2E * height - HALF_LOG2E * cut2
    di, dj, dk = math.sqrt(cut2 * p[3]) / hi, math.sqrt(cut2 * p[6]) / hj, math.sqrt(cut2 * p[8]) / hk
    box[n, 0], box[n, 1] = ceil_between(pi - di, ni), floor_between(pi + di, ni - 1) + int32(1)
    box[n, 2], box[n, 3] = ceil_between(pj - dj, nj), floor_between(pj + dj, nj - 1) + int32(1)
    box[n, 4], box[n, 5] = ceil_between(pk - dk, nk), floor_between(pk + dk, nk - 1) + int32(1)


@cuda.jit(fastmath=True)
def bin_bricks(record, box, first, last, bricks_j, bricks_k, start, keys, values, write):
    """List the bricks of the layers ``first`` to ``last - 1`` that each Gaussian reaches; count first, then list.

    A thread per Gaussian; ``start``, ``keys``, ``values``, ``write`` as in :func:`gsbids.kernels.cuda.splat.bin_tiles`,
    bricks numbered from the first layer on.
    """
    n = cuda.grid(1)
    if n >= record.shape[0]:
        return
    r, found, place = record[n], int32(0), start[n]
    if box[n, 1] > box[n, 0] and box[n, 3] > box[n, 2] and box[n, 5] > box[n, 4]:
        for bi in range(max(box[n, 0] // BRICK, first), min((box[n, 1] + BRICK - 1) // BRICK, last)):
            for bj in range(box[n, 2] // BRICK, (box[n, 3] + BRICK - 1) // BRICK):
                for bk in range(box[n, 4] // BRICK, (box[n, 5] + BRICK - 1) // BRICK):
                    if not misses(
                        r,
                        float32(bi * BRICK) + LONG,
                        float32(bj * BRICK) + LONG,
                        float32(bk * BRICK) + LONG,
                        LONG,
                        LONG,
                        LONG,
                    ):
                        if write:
                            keys[place + found] = ((bi - first) * bricks_j + bj) * bricks_k + bk
                            values[place + found] = n
                        found += int32(1)
    if not write:
        start[n] = found


@cuda.jit(fastmath=True, **runtime.launch_bounds(BLOCK, 8))
def render_bricks(record, brick_start, brick_list, first, eps, image, weight):
    """Render ``I = sum w A / D``, ``D = sum w + eps`` (X, Y, Z); a block of 128 per brick, 4 voxels along k a thread.

    Grid (bricks along k, along j, layers from ``first`` on).
    """
    stage = cuda.shared.array((BATCH, RECORD3), float32, ALIGNED)
    hit = cuda.shared.array((WARPS, BATCH), int32)
    t = uint32(cuda.threadIdx.x)
    warp, lane = uint32(t // uint32(WARP)), uint32(t % uint32(WARP))
    brick = (cuda.blockIdx.z * cuda.gridDim.y + cuda.blockIdx.y) * cuda.gridDim.x + cuda.blockIdx.x
    i0, j0, k0 = (cuda.blockIdx.z + first) * BRICK, cuda.blockIdx.y * BRICK, cuda.blockIdx.x * BRICK
    i, j, k = i0 + warp // 2 * 4 + lane // 8, j0 + warp % 2 * 4 + lane // 2 % 4, k0 + lane % 2 * 4
    fi, fj, fk = float32(i), float32(j), float32(k)
    n0, n1, n2, n3, d0, d1, d2, d3 = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    start, stop = uint32(brick_start[brick]), uint32(brick_start[brick + 1])
    while start < stop:
        count = min(uint32(BATCH), uint32(stop - start))
        for m in range(uint32(BATCH * RECORD3 // BLOCK)):
            e = uint32(m * uint32(BLOCK) + t)
            q, part = uint32(e // uint32(RECORD3)), uint32(e % uint32(RECORD3))
            if q < count:
                stage[q, part] = record[uint32(brick_list[start + q]), part]
        cuda.syncthreads()
        for m in range(uint32(WARPS * BATCH // BLOCK)):
            e = uint32(m * uint32(BLOCK) + t)
            w, q = uint32(e // uint32(BATCH)), uint32(e % uint32(BATCH))
            if q < count:
                ci, cj = float32(i0 + w // 2 * 4) + SUB, float32(j0 + w % 2 * 4) + SUB
                hit[w, q] = int32(0) if misses(stage[q], ci, cj, float32(k0) + LONG, SUB, SUB, LONG) else int32(1)
        cuda.syncthreads()
        q = uint32(0)
        while q < count:
            if hit[warp, q] != 0:
                di, dj, dk = fi - stage[q, 0], fj - stage[q, 1], fk - stage[q, 2]
                a = stage[q, 9] + di * (stage[q, 3] * di + stage[q, 4] * dj) + stage[q, 6] * dj * dj
                b, c = stage[q, 5] * di + stage[q, 7] * dj, stage[q, 8]
                amplitude, limit = stage[q, 10], stage[q, 11]
                e0 = a + dk * (b + c * dk)
                dk += ONE
                e1 = a + dk * (b + c * dk)
                dk += ONE
                e2 = a + dk * (b + c * dk)
                dk += ONE
                e3 = a + dk * (b + c * dk)
                w0 = math.exp2(e0) if e0 > limit else ZERO
                w1 = math.exp2(e1) if e1 > limit else ZERO
                w2 = math.exp2(e2) if e2 > limit else ZERO
                w3 = math.exp2(e3) if e3 > limit else ZERO
                d0 += w0
                d1 += w1
                d2 += w2
                d3 += w3
                n0 += w0 * amplitude
                n1 += w1 * amplitude
                n2 += w2 * amplitude
                n3 += w3 * amplitude
            q = uint32(q + uint32(1))
        cuda.syncthreads()
        start = uint32(start + uint32(BATCH))
    if i < image.shape[0] and j < image.shape[1]:
        for m in range(4):
            if k + m < image.shape[2]:
                d = (d0 if m == 0 else d1 if m == 1 else d2 if m == 2 else d3) + eps
                image[i, j, k + m] = (n0 if m == 0 else n1 if m == 1 else n2 if m == 2 else n3) / d
                weight[i, j, k + m] = d


@cuda.jit(fastmath=True)
def moments_grid(record, box, rows, columns, h, k_image, out):
    """Compute moments of ``W = w (A h - k)`` about each Gaussian's centre and ``sum w h``; one warp per Gaussian.

    ``out`` (J, 11), in voxels: 1, di, dj, dk, di^2, di dj, di dk, dj^2, dj dk, dk^2, and the intensity's.
    ``h = g / D`` and ``k = h I``, (X Y Z,) of ``rows`` = Y and ``columns`` = Z: flat, which takes fewer registers.
    """
    shared = cuda.shared.array((WARPS, MOMENTS3, PADDED), float32)
    lane, warp = uint32(cuda.threadIdx.x % WARP), uint32(cuda.threadIdx.x // WARP)
    n = uint32(cuda.blockIdx.x * WARPS + cuda.threadIdx.x // WARP)
    s, si, sj, sk, g = ZERO, ZERO, ZERO, ZERO, ZERO
    sii, sij, sik, sjj, sjk, skk = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    if n < uint32(record.shape[0]):
        j0, k0, width = uint32(box[n, 2]), uint32(box[n, 4]), uint32(max(box[n, 5] - box[n, 4], int32(0)))
        plane = uint32(max(box[n, 3] - box[n, 2], int32(0))) * width
        shrink = ONE / float32(max(width, uint32(1)))
        # From the first voxel of the box.
        pi, pj, pk = record[n, 0], float32(j0) - record[n, 1], float32(k0) - record[n, 2]
        kii, kij, kik = record[n, 3], record[n, 4], record[n, 5]
        kjj, kjk, kkk = record[n, 6], record[n, 7], record[n, 8]
        height, amplitude, limit = record[n, 9], record[n, 10], record[n, 11]
        i, last = uint32(box[n, 0]), uint32(box[n, 1])
        while i < last:  # 32-bit counters: those of range have 64
            di = float32(i) - pi
            base = uint32((i * uint32(rows) + j0) * uint32(columns) + k0)
            q = lane
            while q < plane:
                row = uint32((float32(q) + HALF) * shrink)  # q // width, exact under 2^21 voxels a plane
                column = uint32(q - row * width)
                voxel = uint32(base + row * uint32(columns) + column)
                dj, dk = float32(row) + pj, float32(column) + pk
                e = height + di * (kii * di + kij * dj) + kjj * dj * dj + dk * (kik * di + kjk * dj + kkk * dk)
                w = math.exp2(e) if e > limit else ZERO
                x = w * h[voxel]
                t = amplitude * x - w * k_image[voxel]
                g += x
                s += t
                u, v, z = t * di, t * dj, t * dk
                si += u
                sj += v
                sk += z
                sii += u * di
                sij += u * dj
                sik += u * dk
                sjj += v * dj
                sjk += v * dk
                skk += z * dk
                q = uint32(q + uint32(WARP))
            i = uint32(i + uint32(1))
    part = shared[warp]
    part[0, lane], part[1, lane], part[2, lane], part[3, lane] = s, si, sj, sk
    part[4, lane], part[5, lane], part[6, lane], part[7, lane] = sii, sij, sik, sjj
    part[8, lane], part[9, lane], part[10, lane] = sjk, skk, g
    cuda.syncthreads()
    if lane < uint32(MOMENTS3) and n < uint32(record.shape[0]):
        total = ZERO
        for q in range(uint32(WARP)):
            total += part[lane, q]
        out[n, lane] = total


@cuda.jit(fastmath=True)
def chain_grid(gauss, frame, moment, mass_factor, grad):
    """Carry moments to gradients of mean and covariance in the world; a thread per Gaussian.

    ``G_m = P S1``, ``G_S = (P S2 P - mass S0 P) / 2`` with P = S^-1. ``grad`` (J, 11): columns as in
    :func:`gsbids.kernels.cpu.splat.backward`, off-diagonals count both entries.
    """
    n = cuda.grid(1)
    if n >= gauss.shape[0]:
        return
    m, out = moment[n], grad[n]
    hi, hj, hk = frame[15], frame[16], frame[17]
    a, b, c, d, e, f, _ = inverse(in_grid(frame, gauss[n]))
    x, y, z = m[1] * hi, m[2] * hj, m[3] * hk
    gx, gy, gz = a * x + b * y + c * z, b * x + d * y + e * z, c * x + e * y + f * z
    xx, xy, xz = m[4] * hi * hi, m[5] * hi * hj, m[6] * hi * hk
    yy, yz, zz = m[7] * hj * hj, m[8] * hj * hk, m[9] * hk * hk
    # Rows of P S2, then (P S2) P.
    p0, p1, p2 = a * xx + b * xy + c * xz, a * xy + b * yy + c * yz, a * xz + b * yz + c * zz
    q0, q1, q2 = b * xx + d * xy + e * xz, b * xy + d * yy + e * yz, b * xz + d * yz + e * zz
    r0, r1, r2 = c * xx + e * xy + f * xz, c * xy + e * yy + f * yz, c * xz + e * yz + f * zz
    mass = m[0] if mass_factor else ZERO
    gxx, gxy, gxz = (
        HALF * (p0 * a + p1 * b + p2 * c - mass * a),
        HALF * (p0 * b + p1 * d + p2 * e - mass * b),
        HALF * (p0 * c + p1 * e + p2 * f - mass * c),
    )
    gyy, gyz, gzz = (
        HALF * (q0 * b + q1 * d + q2 * e - mass * d),
        HALF * (q0 * c + q1 * e + q2 * f - mass * e),
        HALF * (r0 * c + r1 * e + r2 * f - mass * f),
    )
    k = 3
    for i in range(3):
        u, v, w = frame[3 * i], frame[3 * i + 1], frame[3 * i + 2]
        out[i] = u * gx + v * gy + w * gz
        tu, tv, tw = u * gxx + v * gxy + w * gxz, u * gxy + v * gyy + w * gyz, u * gxz + v * gyz + w * gzz
        for j in range(i, 3):
            value = tu * frame[3 * j] + tv * frame[3 * j + 1] + tw * frame[3 * j + 2]
            out[k] = value if i == j else TWO * value
            k += 1
    out[9], out[10] = m[10], m[0]
