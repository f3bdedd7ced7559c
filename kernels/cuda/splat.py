# SPDX-License-Identifier: Apache-2.0
"""Slice splatting on the GPU, forward: pack, cull, project, bin, render.

Twins of :mod:`gsbids.kernels.cpu.splat`. Pairs of (slice, Gaussian) are listed once; slices are cut into tiles of
8 x 8 pixels, each with the list of its pairs; one warp renders a tile, two pixels a thread, with the records of 32
pairs at a time in shared memory. No atomics anywhere: the same bits at every run.
Layouts: :mod:`gsbids.kernels.cuda.formulas`.
"""

import math

from numba import float32, int32, uint32

from gsbids.kernels.cuda import runtime
from gsbids.kernels.cuda.formulas import (
    ALIGNED,
    FOUR,
    HALF,
    HALF_LOG2E,
    LOG2E,
    ONE,
    RECORD,
    TEN,
    TILE,
    TWO,
    ZERO,
    bounds,
    peak,
    project,
    reaches,
    rotation_of,
)

cuda = runtime.numba_cuda()

# The simulator pays for every thread, used or not; with small blocks a tiny problem has several of them.
CULL_BLOCK = 8 if runtime.is_simulator() else 128
THREADS = 32 if runtime.is_simulator() else 128  # a block, where a thread has a pair or a Gaussian to itself
WARP = 32  # lanes


@cuda.jit(fastmath=True)
def pack_field(mean, log_scale, quaternion, intensity, log_weight, mass_factor, gauss):
    """Fill rows of ``gauss``: ``Sigma = R(q) diag(exp(2 s)) R(q)^T``, and the log-amplitude ``l`` (+ sum s).

    A thread per Gaussian; arrays (J, 3), (J, 3), (J, 4), (J,), (J,) -> (J, 12). With the mass factor the
    log-amplitude has ``log(det Sigma) / 2``, the sum of the log-scales.
    """
    j = cuda.grid(1)
    if j >= gauss.shape[0]:
        return
    w, x, y, z = quaternion[j, 0], quaternion[j, 1], quaternion[j, 2], quaternion[j, 3]
    n = ONE / math.sqrt(w * w + x * x + y * y + z * z)
    a, b, c, d, e, f, g, h, i = rotation_of(w * n, x * n, y * n, z * n)
    s0, s1, s2 = log_scale[j, 0], log_scale[j, 1], log_scale[j, 2]
    p, q, r = math.exp2(TWO * LOG2E * s0), math.exp2(TWO * LOG2E * s1), math.exp2(TWO * LOG2E * s2)
    for k in range(3):
        gauss[j, k] = mean[j, k]
    gauss[j, 3] = a * a * p + b * b * q + c * c * r
    gauss[j, 4] = a * d * p + b * e * q + c * f * r
    gauss[j, 5] = a * g * p + b * h * q + c * i * r
    gauss[j, 6] = d * d * p + e * e * q + f * f * r
    gauss[j, 7] = d * g * p + e * h * q + f * i * r
    gauss[j, 8] = g * g * p + h * h * q + i * i * r
    gauss[j, 9] = intensity[j]
    gauss[j, 10] = log_weight[j] + (s0 + s1 + s2 if mass_factor else ZERO)
    gauss[j, 11] = ZERO


@cuda.jit(fastmath=True)
def cull(frame, gauss, window, cut2, rows, columns, start, pairs, write):
    """List the pairs (slice, Gaussian) whose footprint meets the window of the slice; count first, then list.

    Block (chunk, slice) tests ``CULL_BLOCK`` Gaussians and numbers those that stay by a scan in shared memory, so
    that the list is sorted by slice and then by Gaussian.

    Parameters
    ----------
    frame, gauss : (S, 20), (J, 12)
    window : int32, (S, 4)
        First and one-past-last row, and column, of the slice that is rendered.
    cut2 : float
        Squared cut of the list (at least that of the rendering).
    rows, columns : int
    start : int32, (S, chunks)
        ``write=0``: receives the number of each block; ``write=1``: has the first place of each block.
    pairs : int32, (n, 2)
        Receives slice and Gaussian with ``write=1``.
    """
    scan = cuda.shared.array(CULL_BLOCK, int32)
    lane = int32(cuda.threadIdx.x)
    s, j = cuda.blockIdx.y, int32(cuda.blockIdx.x * CULL_BLOCK + lane)
    keep = int32(0)
    if j < gauss.shape[0] and reaches(frame[s], gauss[j], cut2):
        i0, i1, j0, j1 = bounds(project(frame[s], gauss[j]), frame[s], cut2, rows, columns)
        if max(i0, window[s, 0]) < min(i1, window[s, 1]) and max(j0, window[s, 2]) < min(j1, window[s, 3]):
            keep = int32(1)
    scan[lane] = keep
    cuda.syncthreads()
    step = int32(1)
    while step < CULL_BLOCK:
        before = scan[lane - step] if lane >= step else int32(0)
        cuda.syncthreads()
        scan[lane] += before
        cuda.syncthreads()
        step *= int32(2)
    if write == 0:
        if lane == CULL_BLOCK - 1:
            start[s, cuda.blockIdx.x] = scan[lane]
    elif keep == 1:
        place = start[s, cuda.blockIdx.x] + scan[lane] - int32(1)
        pairs[place, 0] = s
        pairs[place, 1] = j


@cuda.jit(fastmath=True)
def project_pairs(frame, gauss, pairs, cut2, mass_factor, rows, columns, record, box):
    """Fill record (n, 8) and box (n, 4: i0, i1, j0, j1) of every pair; a thread per pair.

    With the mass factor the exponent has ``-log(det S) / 2``, S the observed covariance. Pairs that only fill the
    list up (slice -1) get an empty box, and no record: no tile lists them.
    """
    n = cuda.grid(1)
    if n >= pairs.shape[0]:
        return
    if pairs[n, 0] < 0:
        for k in range(4):
            box[n, k] = int32(0)
        return
    f, g = frame[pairs[n, 0]], gauss[pairs[n, 1]]
    p = project(f, g)
    i0, i1, j0, j1 = bounds(p, f, cut2, rows, columns)
    box[n, 0], box[n, 1], box[n, 2], box[n, 3] = i0, i1, j0, j1
    hi, hj = f[15], f[16]
    ez = p[2] * p[2] / p[8]
    amplitude = g[10]
    if mass_factor:  # det S = S_zz det C, and det C = 1 / det Q = C_uu / Q_vv
        amplitude -= HALF * math.log(p[8] * p[14] / p[13])
    record[n, 0] = p[9] / hi + f[17]
    record[n, 1] = p[10] / hj + f[18]
    record[n, 2] = -HALF_LOG2E * p[11] * hi * hi
    record[n, 3] = -LOG2E * p[12] * hi * hj
    record[n, 4] = -HALF_LOG2E * p[13] * hj * hj
    k0 = LOG2E * amplitude - HALF_LOG2E * ez
    record[n, 5] = k0
    record[n, 6] = g[9]
    record[n, 7] = k0 + min(-HALF_LOG2E * (cut2 - ez), ZERO)


@cuda.jit(fastmath=True)
def bin_tiles(record, box, pairs, span, tiles_j, start, keys, values, write):
    """List the tiles that each pair reaches; count first, then list. A thread per pair.

    Parameters
    ----------
    record, box, pairs : (n, 8), (n, 4), (n, 2)
    span : int32, (S, tiles along i, 2)
        First and one-past-last column that is rendered in each row of tiles.
    tiles_j : int
        Tiles along j.
    start : int32, (n,)
        ``write=0``: receives the number of tiles; ``write=1``: has the pair's first place.
    keys, values : int32
        Receive the tile and the pair with ``write=1``.
    """
    n = cuda.grid(1)
    if n >= pairs.shape[0]:
        return
    s, r = pairs[n, 0], record[n]
    found, place = int32(0), start[n]
    limit = r[7] - r[5] - float32(1e-6) * (TEN + abs(r[5]) + abs(r[7]))  # generous: the pixel's own test decides
    i0, i1, j0, j1 = box[n, 0], box[n, 1], box[n, 2], box[n, 3]
    for ti in range(i0 // TILE, (i1 + TILE - 1) // TILE):
        first, last = max(j0, span[s, ti, 0]), min(j1, span[s, ti, 1])
        if last <= first:
            continue
        for tj in range(first // TILE, (last + TILE - 1) // TILE):
            i, j = int32(ti * TILE), int32(tj * TILE)
            if peak(r, i, i + TILE - 1, j, j + TILE - 1) > limit:
                if write:
                    keys[place + found] = (s * span.shape[1] + ti) * tiles_j + tj
                    values[place + found] = n
                found += int32(1)
    if not write:
        start[n] = found


@cuda.jit(device=True, fastmath=True)
def tile_sums(record, tile_list, start, stop, lane, fi, fj):
    """Sum ``w c`` and ``w`` over the list of a tile, at the pixels (fi, fj) and (fi + 4, fj) of this lane."""
    stage = cuda.shared.array((WARP, RECORD), float32, ALIGNED)
    n0, n1, d0, d1 = ZERO, ZERO, ZERO, ZERO
    while start < stop:
        count = min(uint32(WARP), uint32(stop - start))
        # Lanes share the reading of each record: 4 records of 32 bytes at a time.
        for k in range(uint32(RECORD)):
            q, part = uint32(k * uint32(4) + lane // uint32(8)), lane % uint32(8)
            if q < count:
                stage[q, part] = record[uint32(tile_list[start + q]), part]
        cuda.syncthreads()
        q = uint32(0)
        while q < count:  # a counter of 32 bits, unsigned: range's has 64
            di, dj = fi - stage[q, 0], fj - stage[q, 1]
            kii, b, c = stage[q, 2], stage[q, 3] * dj, stage[q, 5] + stage[q, 4] * dj * dj
            intensity, limit = stage[q, 6], stage[q, 7]
            e0 = c + di * (kii * di + b)
            di += FOUR
            e1 = c + di * (kii * di + b)
            w0 = math.exp2(e0) if e0 > limit else ZERO
            w1 = math.exp2(e1) if e1 > limit else ZERO
            d0 += w0
            d1 += w1
            n0 += w0 * intensity
            n1 += w1 * intensity
            q = uint32(q + uint32(1))
        cuda.syncthreads()
        start = uint32(start + uint32(WARP))
    return n0, n1, d0, d1


@cuda.jit(fastmath=True)
def render_tiles(record, tile_start, tile_list, extent, eps, image, weight):
    """Render ``I = sum w c / D`` and ``D = sum w + eps``, both (S, X, Y); a warp per tile of 8 x 8 pixels.

    Grid (tiles along j, tiles along i, S), block 32: a thread has the pixels (i, j) and (i + 4, j). Outside of
    the rows' extents the image is 0 and the weight eps.

    Parameters
    ----------
    record : (n, 8)
    tile_start, tile_list : int32
        First entry of every tile, and pairs in the order of the tiles.
    extent : int32, (S, X, 2)
    eps : float
    image, weight : (S, X, Y)
    """
    lane, s = uint32(cuda.threadIdx.x), cuda.blockIdx.z
    tile = (s * cuda.gridDim.y + cuda.blockIdx.y) * cuda.gridDim.x + cuda.blockIdx.x
    i = int32(cuda.blockIdx.y * TILE + cuda.threadIdx.x // TILE)
    j = int32(cuda.blockIdx.x * TILE + cuda.threadIdx.x % TILE)
    n0, n1, d0, d1 = tile_sums(
        record, tile_list, uint32(tile_start[tile]), uint32(tile_start[tile + 1]), lane, float32(i), float32(j)
    )
    if j < image.shape[2]:
        for half in range(2):
            row = i + 4 * half
            if row < image.shape[1]:
                inside = extent[s, row, 0] <= j < extent[s, row, 1]
                total = (d1 if half else d0) + eps
                image[s, row, j] = (n1 if half else n0) / total if inside else ZERO
                weight[s, row, j] = total if inside else eps


@cuda.jit(fastmath=True)
def step_tiles(record, tile_start, tile_list, extent, eps, delta, gain, target, importance, image, h, k_image, loss):
    """Compute forward, Charbonnier loss and the cotangents of the backward; grid and block of ``render_tiles``.

    ``loss = sum_p v_p (sqrt(r_p^2 + d^2) - d)`` of the tile with ``r = a_s I - y``; ``h = a v r / (sqrt(r^2 + d^2) D)``
    and ``k = h I``, 0 outside of the rows' extents.

    Parameters
    ----------
    record ... eps
        As for :func:`render_tiles`.
    delta : float
        d.
    gain : (S,)
        a.
    target, importance : (S, X, Y)
        y and v.
    image, h, k_image : (S, X, Y)
    loss : (S, tiles)
    """
    losses = cuda.shared.array(WARP, float32)
    lane, s = uint32(cuda.threadIdx.x), cuda.blockIdx.z
    place = cuda.blockIdx.y * cuda.gridDim.x + cuda.blockIdx.x
    tile = s * cuda.gridDim.y * cuda.gridDim.x + place
    i = int32(cuda.blockIdx.y * TILE + cuda.threadIdx.x // TILE)
    j = int32(cuda.blockIdx.x * TILE + cuda.threadIdx.x % TILE)
    n0, n1, d0, d1 = tile_sums(
        record, tile_list, uint32(tile_start[tile]), uint32(tile_start[tile + 1]), lane, float32(i), float32(j)
    )
    lost, scale = ZERO, gain[s]
    if j < image.shape[2]:
        for half in range(2):
            row = i + 4 * half
            if row < image.shape[1]:
                value, back = ZERO, ZERO
                if extent[s, row, 0] <= j < extent[s, row, 1]:
                    total = (d1 if half else d0) + eps
                    value = (n1 if half else n0) / total
                    r, v = scale * value - target[s, row, j], importance[s, row, j]
                    root = math.sqrt(r * r + delta * delta)
                    lost += v * (r * r / (root + delta))  # no difference of two near numbers
                    back = scale * v * r / (root * total)
                image[s, row, j] = value
                h[s, row, j] = back
                k_image[s, row, j] = back * value
    losses[lane] = lost
    cuda.syncthreads()
    if lane == uint32(0):
        lost = ZERO
        for q in range(uint32(WARP)):
            lost += losses[q]
        loss[s, place] = lost
