# SPDX-License-Identifier: Apache-2.0
"""Render a Gaussian field at arbitrary points, also in the top-K way of the papers.

    I(x) = sum_j w_j c_j / (sum_j w_j + eps),  w_j = exp(l_j - E_j / 2),  E_j = (x - mu_j)^T S_j^-1 (x - mu_j),

S_j = Sigma_j + P_f with the PSF covariance P_f of the point's frame f. The sum goes over a list of Gaussians that
belongs to the point: all that come within the cut (:func:`within_cut`), or the K nearest by Euclidean distance
(:func:`nearest`, the reference configuration of the GSVR paper: an index that is rebuilt every n epochs and is
stale in between). A 3 x 3 inverse a pair: 3 to 8 times the cost of the splat, and the choice only where the points
lie on no slice and no grid, or where the papers are to be repeated.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numba as nb
import numpy as np
import torch
from scipy.spatial import cKDTree

from gsbids.kernels.cpu.packed import PackedField
from gsbids.kernels.problem import DEFAULT, Array, RenderOptions

PARTS = 16  # parts of the points, each with its own gradient buffer: the bits do not depend on the threads
PLAIN = RenderOptions(mass_factor=False)


@dataclass(frozen=True)
class PointSet:
    """Points, their frames, and the Gaussians that each of them sees.

    Attributes
    ----------
    position : ndarray, (N, 3)
        mm, in the field's frame.
    start, stop : ndarray, (N,), int64
        Each point sees ``members[start:stop]``; points may share a list.
    members : ndarray, int32
    cut : float
        Gaussians of the list contribute where their Mahalanobis distance is under ``cut``; infinite for top-K.
    psf : ndarray, (F, 6)
        PSF covariances (xx, xy, xz, yy, yz, zz, mm2) of the frames.
    frame : ndarray, (N,), int
    """

    position: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    members: np.ndarray
    cut: float
    psf: np.ndarray
    frame: np.ndarray

    def arrays(self) -> tuple[np.ndarray, ...]:
        """Return the arrays in the order of the kernels."""
        return (
            np.ascontiguousarray(self.position, np.float64),
            self.start,
            self.stop,
            self.members,
            np.ascontiguousarray(self.psf, np.float64),
            np.ascontiguousarray(self.frame, np.int64),
        )


def _frames(count: int, psf: np.ndarray | None, frame: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if psf is None:
        return np.zeros((1, 6)), np.zeros(count, np.int64)
    return np.asarray(psf, float), np.zeros(count, np.int64) if frame is None else np.asarray(frame, np.int64)


def nearest(
    mean: np.ndarray, position: np.ndarray, count: int, psf: np.ndarray | None = None, frame: np.ndarray | None = None
) -> PointSet:
    """Give every point the ``count`` Gaussians whose means are nearest (Euclidean), as in the papers.

    Parameters
    ----------
    mean : ndarray, (J, 3)
    position : ndarray, (N, 3)
    count : int
        K; at most J are taken.
    psf, frame : ndarray, (F, 6) and (N,), optional
        See :class:`PointSet`; no PSF if left out.

    Returns
    -------
    PointSet
        Valid as an index for as long as it is kept; its positions may be exchanged with ``dataclasses.replace``.
    """
    count = min(count, len(mean))
    index = cKDTree(mean).query(position, k=np.arange(1, count + 1))[1] if count else np.empty((len(position), 0))
    start = np.arange(len(position), dtype=np.int64) * count
    return PointSet(
        position, start, start + count, index.ravel().astype(np.int32), math.inf, *_frames(len(position), psf, frame)
    )


def within_cut(
    field: Sequence[np.ndarray],
    position: np.ndarray,
    cut: float = DEFAULT.cut,
    psf: np.ndarray | None = None,
    frame: np.ndarray | None = None,
    cell: float = 4.0,
) -> PointSet:
    """Give every point all Gaussians that come within the cut, by cubic cells of ``cell`` mm with shared lists.

    Parameters
    ----------
    field : tuple of array
        mean (J, 3), log_scale (J, 3) and whatever follows.
    position, psf, frame
        As for :func:`nearest`.
    cut : float
        Mahalanobis distance at which contributions end.
    cell : float

    Returns
    -------
    PointSet
    """
    psf, frame = _frames(len(position), psf, frame)
    widest = np.linalg.eigvalsh(psf[:, [[0, 1, 2], [1, 3, 4], [2, 4, 5]]])[:, -1].max()
    reach = cut * np.sqrt(np.exp(2 * np.asarray(field[1], float).max(1, initial=-np.inf)) + widest)
    corner = position.min(0, initial=np.inf)
    keys = np.floor((position - corner) / cell).astype(np.int64)
    shape = keys.max(0, initial=0) + 1
    cells, of_point = np.unique(np.ravel_multi_index(tuple(keys.T), shape), return_inverse=True)
    centres = corner + (np.stack(np.unravel_index(cells, shape), 1) + 0.5) * cell
    mean = np.asarray(field[0], float)
    lengths = np.zeros(len(cells) + 1, np.int64)
    _members(centres, cell / 2, mean, reach, lengths, np.empty(0, np.int32))
    members = np.empty(lengths[-1], np.int32)
    _members(centres, cell / 2, mean, reach, lengths, members)
    return PointSet(position, lengths[of_point], lengths[of_point + 1], members, cut, psf, frame)


@nb.njit(cache=True)
def _members(centres, half, mean, reach, offsets, members):
    """Fill the offsets of the lists of the cells (cumulative) and, where there is room, the Gaussians of each cell."""
    count = 0
    for a in range(len(centres)):
        offsets[a] = count
        for j in range(len(mean)):
            distance = 0.0
            for k in range(3):
                distance += max(abs(mean[j, k] - centres[a, k]) - half, 0.0) ** 2
            if distance < reach[j] ** 2:
                if len(members):
                    members[count] = j
                count += 1
    offsets[len(centres)] = count


@nb.njit(error_model="numpy")
def _solve(x, mean, cov, psf):
    """Return ``S^-1 d`` (3) and ``E = d^T S^-1 d`` for d = x - mean."""
    a, b, c = cov[0] + psf[0], cov[1] + psf[1], cov[2] + psf[2]
    d, e, f = cov[3] + psf[3], cov[4] + psf[4], cov[5] + psf[5]
    u, v, w = x[0] - mean[0], x[1] - mean[1], x[2] - mean[2]
    aa, bb, cc = d * f - e * e, c * e - b * f, b * e - c * d
    scale = 1.0 / (a * aa + b * bb + c * cc)
    p = (aa * u + bb * v + cc * w) * scale
    q = (bb * u + (a * f - c * c) * v + (b * c - a * e) * w) * scale
    r = (cc * u + (b * c - a * e) * v + (a * d - b * b) * w) * scale
    return p, q, r, u * p + v * q + w * r


@nb.njit(parallel=True, cache=True, error_model="numpy")
def _forward(position, start, stop, members, psf, frame, mean, cov, intensity, amplitude, cut2, eps, image, weight):
    for n in nb.prange(len(position)):
        total, top = eps, 0.0
        for m in range(start[n], stop[n]):
            j = members[m]
            _, _, _, energy = _solve(position[n], mean[j], cov[j], psf[frame[n]])
            if energy < cut2:
                w = amplitude[j] * math.exp(-0.5 * energy)
                total += w
                top += w * intensity[j]
        weight[n], image[n] = total, top / total


@nb.njit(parallel=True, cache=True, error_model="numpy")
def _backward(
    position,
    start,
    stop,
    members,
    psf,
    frame,
    mean,
    cov,
    intensity,
    amplitude,
    cut2,
    grad_image,
    image,
    weight,
    grad,
    grad_place,
):
    for part in nb.prange(PARTS):
        out = grad[part]
        out[:] = 0.0
        for n in range(part * len(position) // PARTS, (part + 1) * len(position) // PARTS):
            grad_place[n] = 0.0
            h = grad_image[n] / weight[n]
            if h == 0.0:
                continue
            for m in range(start[n], stop[n]):
                j = members[m]
                p, q, r, energy = _solve(position[n], mean[j], cov[j], psf[frame[n]])
                if energy >= cut2:
                    continue
                w = amplitude[j] * math.exp(-0.5 * energy) * h
                t = w * (intensity[j] - image[n])
                # Of the mean and of Sigma; the position moves against the mean, the PSF adds to Sigma.
                grads = (
                    t * p,
                    t * q,
                    t * r,
                    0.5 * t * p * p,
                    t * p * q,
                    t * p * r,
                    0.5 * t * q * q,
                    t * q * r,
                    0.5 * t * r * r,
                    w,
                    t,
                )
                for k in range(11):
                    out[j, k] += grads[k]
                for k in range(9):
                    grad_place[n, k] += grads[k]


def _columns(packed: PackedField) -> tuple[np.ndarray, ...]:
    """Split the table into mean, covariance, intensity and amplitude."""
    table = packed.table
    return tuple(np.ascontiguousarray(a) for a in (table[:, :3], table[:, 3:9], table[:, 9], table[:, 10]))


def render_points(
    mean: Array,
    log_scale: Array,
    quaternion: Array,
    intensity: Array,
    log_weight: Array,
    points: PointSet,
    eps: float = DEFAULT.eps,
) -> tuple[np.ndarray, np.ndarray]:
    """Render the field at points, without gradients.

    Parameters
    ----------
    mean, log_scale, quaternion, intensity, log_weight : array, (J, 3), (J, 3), (J, 4), (J,), (J,)
    points : PointSet
    eps : float
        Weight of the background 0.

    Returns
    -------
    image, weight : ndarray, (N,), float32
        I and D of the module's formula; the papers leave the mass factor out, and so does this.
    """
    packed = PackedField.as_given(mean, log_scale, quaternion, intensity, log_weight, PLAIN)
    image, weight = np.empty((2, len(points.position)), np.float32)
    _forward(*points.arrays(), *_columns(packed), points.cut**2, eps, image, weight)
    return image, weight


class PointRender(torch.autograd.Function):
    """The operation :func:`render_points` with gradients.

    ``PointRender.apply(*field, position, points, eps[, psf])`` gives I, (N,). ``position`` (N, 3) takes the place of
    the positions of ``points``, ``psf`` (F, 6) that of its PSF covariances. Both have gradients too: that is how poses
    get theirs. Without ``psf`` that of ``points`` is held fixed.
    """

    @staticmethod
    def forward(
        ctx: Any,
        mean: torch.Tensor,
        log_scale: torch.Tensor,
        quaternion: torch.Tensor,
        intensity: torch.Tensor,
        log_weight: torch.Tensor,
        position: torch.Tensor,
        points: PointSet,
        eps: float,
        psf: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Render the field at the points, and keep what the backward pass needs."""
        packed = PackedField.as_given(mean, log_scale, quaternion, intensity, log_weight, PLAIN)
        _, *lists, fixed, frame = points.arrays()
        arrays = (
            position.detach().numpy().astype(np.float64),
            *lists,
            fixed if psf is None else psf.detach().numpy().astype(np.float64),
            frame,
            *_columns(packed),
            points.cut**2,
        )
        image: Any
        image, weight = np.empty((2, len(position)), np.float32)
        _forward(*arrays, eps, image, weight)
        ctx.problem = packed, arrays, None if psf is None else (frame, psf.dtype)
        image = torch.from_numpy(image)
        ctx.save_for_backward(image, torch.from_numpy(weight))
        return image

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients with respect to field, positions and PSF."""
        packed, arrays, moved = ctx.problem
        image, weight = (a.detach().numpy() for a in ctx.saved_tensors)
        parts = np.empty((PARTS, len(packed.table), 11), np.float32)
        grad_place = np.empty((len(image), 9), np.float32)
        _backward(*arrays, np.ascontiguousarray(grad, np.float32), image, weight, parts, grad_place)
        gradients = (torch.from_numpy(a) for a in packed.gradients(parts.sum(0), PLAIN))
        grad_psf = None
        if moved is not None:
            frame, dtype = moved
            sums = [np.bincount(frame, column, len(arrays[4])) for column in grad_place[:, 3:].T]
            grad_psf = torch.from_numpy(np.stack(sums, 1)).to(dtype)
        return *gradients, torch.from_numpy(-grad_place[:, :3]), None, None, grad_psf
