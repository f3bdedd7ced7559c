# SPDX-License-Identifier: Apache-2.0
"""Slice splatting on the GPU, backward: moments, their chain to Gaussians and poses, and the pose solver's parts.

Every sum is gathered, none scattered: moments by one warp per pair (slice, Gaussian), Gaussians over the list of
their pairs, poses over the pairs of a slice, each in a fixed order. Twins of :mod:`gsbids.kernels.cpu.splat`;
layouts: :mod:`gsbids.kernels.cuda.formulas`.
"""

import math

from numba import float32, int32, uint32

from gsbids.kernels.cuda import runtime
from gsbids.kernels.cuda.formulas import (
    ALIGNED,
    FOUR,
    HALF,
    LN2,
    LOG2E,
    ONE,
    TILE,
    TWO,
    ZERO,
    chain,
    project,
    rotation_of,
)

cuda = runtime.numba_cuda()

WARP, PADDED = 32, 33  # lanes, and lanes with one more against bank conflicts
PAIRS = 4  # pairs, so warps, a block in moments
MOMENTS, PARTS, GRADIENTS = 7, 20, 11  # columns: moments, of a pair (17 used), of a Gaussian
STAGED = 12  # float32 of a staged entry: 8 of its record, 4 of its depth
POSE_BLOCK = 192  # 6 columns x 32 rows
NORMAL, NORMAL_BLOCK, GROUPS = 27, 128, 4  # 21 + 6 entries; pixels staged at a time; groups of 32 of them


@cuda.jit(fastmath=True)
def moments(record, box, pairs, rows, columns, h, k_image, out):
    """Compute ``S0, S1 (2), S2 (3)`` of ``W = w (c h - k)`` about the centre, and ``sum w h``; one warp per pair.

    Lanes stride over the box of the pair; the 7 sums of the 32 lanes meet in shared memory.

    Parameters
    ----------
    record, box, pairs : (n, 8), (n, 4), (n, 2)
    rows, columns : int
        X, Y.
    h, k_image : (S X Y,), flat: fewer registers
        ``h = g / D`` (0 where nothing is rendered) and ``k = h I``.
    out : (n, 7)
        Moments in pixels: ``1, di, dj, di^2, di dj, dj^2`` and the sum for the intensity.
    """
    shared = cuda.shared.array((PAIRS, MOMENTS, PADDED), float32)
    lane, warp = uint32(cuda.threadIdx.x % WARP), uint32(cuda.threadIdx.x // WARP)
    n = uint32(cuda.blockIdx.x * PAIRS + cuda.threadIdx.x // WARP)
    s0, si, sj, sii, sij, sjj, gc = ZERO, ZERO, ZERO, ZERO, ZERO, ZERO, ZERO
    if n < uint32(pairs.shape[0]):
        s = uint32(max(pairs[n, 0], int32(0)))  # the box of a pair that only fills the list up is empty
        i0, j0, width = uint32(box[n, 0]), uint32(box[n, 2]), uint32(box[n, 3] - box[n, 2])
        base = uint32((s * uint32(rows) + i0) * uint32(columns) + j0)
        pi, pj = float32(i0) - record[n, 0], float32(j0) - record[n, 1]  # from the first pixel of the box
        kii, kij, kjj = record[n, 2], record[n, 3], record[n, 4]
        k0, intensity, limit = record[n, 5], record[n, 6], record[n, 7]
        count = uint32((box[n, 1] - box[n, 0]) * (box[n, 3] - box[n, 2]))
        inverse = ONE / float32(max(width, uint32(1)))
        q = lane
        while q < count:  # a counter of 32 bits, unsigned: range's has 64
            row = uint32((float32(q) + HALF) * inverse)  # q // width, exact under 2^21 pixels a box
            column = uint32(q - row * width)
            pixel = uint32(base + row * uint32(columns) + column)
            di, dj = float32(row) + pi, float32(column) + pj
            e = k0 + kjj * dj * dj + di * (kii * di + kij * dj)
            w = math.exp2(e) if e > limit else ZERO
            g = w * h[pixel]
            t = intensity * g - w * k_image[pixel]
            s0 += t
            gc += g
            u = t * di
            v = t * dj
            si += u
            sj += v
            sii += u * di
            sij += u * dj
            sjj += v * dj
            q = uint32(q + uint32(WARP))
    shared[warp, 0, lane] = s0
    shared[warp, 1, lane] = si
    shared[warp, 2, lane] = sj
    shared[warp, 3, lane] = sii
    shared[warp, 4, lane] = sij
    shared[warp, 5, lane] = sjj
    shared[warp, 6, lane] = gc
    cuda.syncthreads()
    if lane < uint32(MOMENTS) and n < uint32(pairs.shape[0]):
        total = ZERO
        for q in range(uint32(WARP)):
            total += shared[warp, lane, q]
        out[n, lane] = total


@cuda.jit(fastmath=True)
def chain_pairs(frame, gauss, pairs, moment, mass_factor, part):
    """Compute what each pair adds to the gradients of its Gaussian and of its slice's pose; a thread per pair.

    ``part`` (n, 20): gradients with respect to the mean (3) and covariance (6, off-diagonals count both entries)
    in the world, intensity, log-weight; then to the tangents omega (3) and tau (3) of the pose in the slice frame.
    """
    n = cuda.grid(1)
    if n >= pairs.shape[0] or pairs[n, 0] < 0:
        return
    f, g, m, out = frame[pairs[n, 0]], gauss[pairs[n, 1]], moment[n], part[n]
    p = project(f, g)
    hi, hj = f[15], f[16]
    gu, gv, gz, uu, uv, uz, vv, vz, zz = chain(
        p, m[0], m[1] * hi, m[2] * hj, m[3] * hi * hi, m[4] * hi * hj, m[5] * hj * hj, mass_factor
    )
    for a in range(3):
        out[a] = f[3 * a] * gu + f[3 * a + 1] * gv + f[3 * a + 2] * gz
    k = 3
    for a in range(3):
        pu = f[3 * a] * uu + f[3 * a + 1] * uv + f[3 * a + 2] * uz
        pv = f[3 * a] * uv + f[3 * a + 1] * vv + f[3 * a + 2] * vz
        pz = f[3 * a] * uz + f[3 * a + 1] * vz + f[3 * a + 2] * zz
        for b in range(a, 3):
            value = pu * f[3 * b] + pv * f[3 * b + 1] + pz * f[3 * b + 2]
            out[k] = value if a == b else TWO * value
            k += 1
    out[9], out[10] = m[6], m[0]
    # g_m x m, and twice the upper part of G S - S G with S without the PSF.
    suu, suv, suz, svv, svz, szz = p[3] - f[12], p[4], p[5], p[6] - f[13], p[7], p[8] - f[14]
    out[11] = gv * p[2] - gz * p[1] + TWO * (uv * suz + vv * svz + vz * szz - suv * uz - svv * vz - svz * zz)
    out[12] = gz * p[0] - gu * p[2] + TWO * (uz * suu + vz * suv + zz * suz - suz * uu - svz * uv - szz * uz)
    out[13] = gu * p[1] - gv * p[0] + TWO * (uu * suv + uv * svv + uz * svz - suu * uv - suv * vv - suz * vz)
    out[14], out[15], out[16] = -gu, -gv, -gz


@cuda.jit(fastmath=True)
def reduce_gaussians(part, list_start, pair_list, grad, add):
    """Sum the first 11 columns over the pairs of each Gaussian; a thread per (Gaussian, column).

    ``grad`` (J, 11) receives the sums, or, with ``add``, is raised by them.
    """
    t = uint32(cuda.grid(1))
    j, column = uint32(t // uint32(GRADIENTS)), uint32(t % uint32(GRADIENTS))
    if j >= uint32(grad.shape[0]):
        return
    total = ZERO
    for k in range(uint32(list_start[j]), uint32(list_start[j + uint32(1)])):
        total += part[uint32(pair_list[k]), column]
    grad[j, column] = grad[j, column] + total if add else total


@cuda.jit(fastmath=True)
def reduce_poses(part, slice_start, pose):
    """Sum the last 6 columns over the pairs of each slice, ``pose`` (S, 6); a block of 192 per slice."""
    shared = cuda.shared.array(POSE_BLOCK, float32)
    t, s = uint32(cuda.threadIdx.x), cuda.blockIdx.x
    column, row = uint32(t % uint32(6)), uint32(t // uint32(6))
    total = ZERO
    for n in range(uint32(slice_start[s]) + row, uint32(slice_start[s + 1]), uint32(WARP)):
        total += part[n, uint32(GRADIENTS) + column]
    shared[t] = total
    cuda.syncthreads()
    if t < uint32(6):
        total = ZERO
        for k in range(uint32(WARP)):
            total += shared[k * uint32(6) + t]
        pose[s, t] = total


@cuda.jit(fastmath=True)
def unpack_gradient(log_scale, quaternion, grad, mass_factor, grad_scale, grad_quaternion):
    """Carry the gradient from the covariance to log-scale (J, 3) and quaternion (J, 4).

    Formulas: :func:`gsbids.kernels.cpu.covariance.covariances_backward`.
    """
    j = cuda.grid(1)
    if j >= grad.shape[0]:
        return
    w, x, y, z = quaternion[j, 0], quaternion[j, 1], quaternion[j, 2], quaternion[j, 3]
    n = ONE / math.sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w * n, x * n, y * n, z * n
    a, b, c, d, e, f, g, h, i = rotation_of(w, x, y, z)
    xx, xy, xz = grad[j, 3], HALF * grad[j, 4], HALF * grad[j, 5]
    yy, yz, zz = grad[j, 6], HALF * grad[j, 7], grad[j, 8]
    k0, k1, k2 = xx * a + xy * d + xz * g, xy * a + yy * d + yz * g, xz * a + yz * d + zz * g
    l0, l1, l2 = xx * b + xy * e + xz * h, xy * b + yy * e + yz * h, xz * b + yz * e + zz * h
    m0, m1, m2 = xx * c + xy * f + xz * i, xy * c + yy * f + yz * i, xz * c + yz * f + zz * i
    p = math.exp2(TWO * LOG2E * log_scale[j, 0])
    q = math.exp2(TWO * LOG2E * log_scale[j, 1])
    r = math.exp2(TWO * LOG2E * log_scale[j, 2])
    mass = grad[j, 10] if mass_factor else ZERO  # d(log det Sigma) / 2 = sum of the log-scales
    grad_scale[j, 0] = TWO * p * (a * k0 + d * k1 + g * k2) + mass
    grad_scale[j, 1] = TWO * q * (b * l0 + e * l1 + h * l2) + mass
    grad_scale[j, 2] = TWO * r * (c * m0 + f * m1 + i * m2) + mass
    s = FOUR * (q - r) * (b * m0 + e * m1 + h * m2) * n
    t = FOUR * (r - p) * (c * k0 + f * k1 + i * k2) * n
    u = FOUR * (p - q) * (a * l0 + d * l1 + g * l2) * n
    grad_quaternion[j, 0] = -x * s - y * t - z * u
    grad_quaternion[j, 1] = w * s + y * u - z * t
    grad_quaternion[j, 2] = w * t + z * s - x * u
    grad_quaternion[j, 3] = w * u + x * t - y * s


@cuda.jit(fastmath=True)
def project_depth(frame, gauss, pairs, depth):
    """Fill ``depth`` (n, 4) with ``(z0, zi, zj, 0)``.

    The derivative of -E/2 along the normal is ``z0 + zi di + zj dj`` per mm.
    """
    n = cuda.grid(1)
    if n >= pairs.shape[0] or pairs[n, 0] < 0:
        return
    f = frame[pairs[n, 0]]
    p = project(f, gauss[pairs[n, 1]])
    tu, tv = p[5] / p[8], p[7] / p[8]
    depth[n, 0] = p[2] / p[8]
    depth[n, 1] = (p[11] * tu + p[12] * tv) * f[15]
    depth[n, 2] = (p[12] * tu + p[13] * tv) * f[16]
    depth[n, 3] = ZERO


@cuda.jit(fastmath=True)
def image_gradient_tiles(frame, record, depth, tile_start, tile_list, extent, image, weight, out):
    """Compute dI/dX (S, X, Y, 3) per mm along row, column and normal: ``sum w (c - I) grad(-E/2) / D``.

    Grid (tiles along j, tiles along i, S), block 64, a thread per pixel; records staged as in ``render_tiles``.
    """
    stage = cuda.shared.array((WARP, STAGED), float32, ALIGNED)
    lane, s = uint32(cuda.threadIdx.x), cuda.blockIdx.z
    tile = (s * cuda.gridDim.y + cuda.blockIdx.y) * cuda.gridDim.x + cuda.blockIdx.x
    i = int32(cuda.blockIdx.y * TILE + cuda.threadIdx.x // TILE)
    j = int32(cuda.blockIdx.x * TILE + cuda.threadIdx.x % TILE)
    seen = i < image.shape[1] and j < image.shape[2]
    if seen:
        seen = extent[s, i, 0] <= j < extent[s, i, 1]
    value = image[s, i, j] if seen else ZERO
    fi, fj = float32(i), float32(j)
    gi, gj, gz = ZERO, ZERO, ZERO
    start, stop = uint32(tile_start[tile]), uint32(tile_start[tile + 1])
    while start < stop:
        count = min(uint32(WARP), uint32(stop - start))
        for k in range(uint32(6)):
            e = uint32(k * uint32(64) + lane)
            q, part = uint32(e // uint32(STAGED)), uint32(e % uint32(STAGED))
            if q < count:
                n = uint32(tile_list[start + q])
                stage[q, part] = record[n, part] if part < uint32(8) else depth[n, part - uint32(8)]
        cuda.syncthreads()
        q = uint32(0)
        while q < count:
            di, dj = fi - stage[q, 0], fj - stage[q, 1]
            kii, kij, kjj = stage[q, 2], stage[q, 3], stage[q, 4]
            e = stage[q, 5] + kjj * dj * dj + di * (kii * di + kij * dj)
            w = math.exp2(e) if e > stage[q, 7] else ZERO
            t = w * (stage[q, 6] - value)
            gi += t * (TWO * kii * di + kij * dj)
            gj += t * (TWO * kjj * dj + kij * di)
            gz += t * (stage[q, 8] + stage[q, 9] * di + stage[q, 10] * dj)
            q = uint32(q + uint32(1))
        cuda.syncthreads()
        start = uint32(start + uint32(WARP))
    if i < image.shape[1] and j < image.shape[2]:
        scale = ONE / weight[s, i, j] if seen else ZERO
        out[s, i, j, 0] = LN2 * gi * scale / frame[s, 15]
        out[s, i, j, 1] = LN2 * gj * scale / frame[s, 16]
        out[s, i, j, 2] = gz * scale


@cuda.jit(fastmath=True)
def normal_equations(frame, gradient, residual, weight, gain, entry, out):
    """Build the Gauss-Newton system of each slice's pose.

    ``out`` (S, 27) = upper part of J^T W J, then J^T W r.

    J is the derivative of ``gain I`` with respect to the tangents (omega, tau): ``gain (x cross g, g)`` at pixel
    position x with image gradient g. A block of 128 per slice stages the rows of 128 pixels; a thread then adds
    one of the 27 entries over 32 of them.

    Parameters
    ----------
    frame : (S, 20)
    gradient : (S, X, Y, 3)
    residual, weight : (S, X, Y)
        Acquired minus simulated, and the weight of each pixel.
    gain : (S,)
    entry : int32, (27, 2)
        Columns (0 to 5, 6 is the residual) that each entry multiplies.
    """
    row = cuda.shared.array((NORMAL_BLOCK, 8), float32)
    lane, s = uint32(cuda.threadIdx.x), cuda.blockIdx.x
    column, group = uint32(lane % uint32(NORMAL)), uint32(lane // uint32(NORMAL))
    a, b = uint32(entry[column, 0]), uint32(entry[column, 1])
    width = uint32(residual.shape[2])
    count = uint32(residual.shape[1]) * width
    total, base = ZERO, uint32(0)
    while base < count:
        q = uint32(base + lane)
        row[lane, 7] = ZERO
        if q < count:
            i, j = uint32(q // width), uint32(q % width)
            u, v = (float32(i) - frame[s, 17]) * frame[s, 15], (float32(j) - frame[s, 18]) * frame[s, 16]
            gu, gv, gz = (
                gain[s] * gradient[s, i, j, 0],
                gain[s] * gradient[s, i, j, 1],
                gain[s] * gradient[s, i, j, 2],
            )
            row[lane, 0], row[lane, 1], row[lane, 2] = v * gz, -u * gz, u * gv - v * gu
            row[lane, 3], row[lane, 4], row[lane, 5] = gu, gv, gz
            row[lane, 6], row[lane, 7] = residual[s, i, j], weight[s, i, j]
        cuda.syncthreads()
        if group < uint32(GROUPS):
            for k in range(group * uint32(WARP), (group + uint32(1)) * uint32(WARP)):
                if row[k, 7] != ZERO:
                    total += row[k, 7] * row[k, a] * row[k, b]
        cuda.syncthreads()
        base = uint32(base + uint32(NORMAL_BLOCK))
    row[lane, 0] = total
    cuda.syncthreads()
    if lane < uint32(NORMAL):
        out[s, lane] = (
            row[lane, 0]
            + row[lane + uint32(NORMAL), 0]
            + row[lane + uint32(2 * NORMAL), 0]
            + row[lane + uint32(3 * NORMAL), 0]
        )
