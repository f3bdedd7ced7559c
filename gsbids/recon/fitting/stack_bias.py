# SPDX-License-Identifier: Apache-2.0
"""A smooth bias field for every stack, made of a few wide Gaussians: what bias correction left, or put in unlike."""

from dataclasses import dataclass

import numpy as np
import torch

from gsbids.kernels import backend
from gsbids.recon.motion import RigidMotion

WIDTH = 40.0  # mm: standard deviation of the Gaussians, and about their distance
CELL = 6.0  # mm: pixels are summed over cells of this size before the fit
PRIOR = 0.1  # pull to no bias, as a share of the evidence of the median Gaussian
LIMIT = 0.7  # of the logarithm of a cell's ratio
LEAST = 1e-3  # evidence of a cell, over that of the usual one, under which it says nothing
TINY = 1e-12


def lattice(nominal: RigidMotion, reach: float) -> np.ndarray:
    """Centres (M, 3), mm, of Gaussians over the places of slices in the scanner: there a coil's sensitivity stays.

    Parameters
    ----------
    nominal : RigidMotion
        Poses of the slices in the scanner.
    reach : float
        How far (mm) slices go on all sides of their origins.
    """
    low, high = nominal.translation.min(0) - reach, nominal.translation.max(0) + reach
    axes = [np.linspace(a, b, max(2, round((b - a) / WIDTH) + 1)) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


@dataclass(frozen=True)
class BiasBasis:
    """M wide Gaussians as S slices of X x Y pixels see them: ``G_m(u, v) = along_m(u) across_m(v)``.

    Attributes
    ----------
    along, across : array, (S, X, M), (S, Y, M), float32
        Of numpy, or tensors of a GPU; pixels (S, X, Y) are the same then.
    """

    along: np.ndarray
    across: np.ndarray

    @classmethod
    def seen(cls, nodes: np.ndarray, nominal: RigidMotion, spacing, centre, shape: tuple[int, int]) -> "BiasBasis":
        """From slices at given places, whose pixel ``centre`` (S, 2) is their origin; ``nodes`` (M, 3)."""
        there = np.einsum("sji,smj->smi", nominal.rotation, nodes - nominal.translation[:, None])
        local = [(np.arange(n) - centre[:, a, None]) * spacing[:, a, None] for a, n in enumerate(shape)]
        along, across = (_bell(local[a][:, :, None] - there[:, None, :, a]) for a in (0, 1))
        return cls((along * _bell(there[:, None, :, 2])).astype(np.float32), across.astype(np.float32))

    def factor(self, log_factor: np.ndarray):
        """``exp(sum_m c_m G_m / sum_m G_m)`` on every pixel, (S, X, Y), for each slice's coefficients (S, M)."""
        across = self.across.swapaxes(1, 2)
        total = (self.along @ across).clip(TINY)
        log_factor = backend.like(log_factor[:, None].astype(np.float32), across)
        return backend.exp((self.along * log_factor) @ across / total)

    def cells(self, size) -> np.ndarray:
        """Share ``G_m / sum_m G_m`` of each Gaussian in the middle of cells of ``size`` pixels, (S, X', Y', M)."""
        rows, columns = (
            backend.to_host(a[:, _middles(a.shape[1], s)]) for a, s in ((self.along, size[0]), (self.across, size[1]))
        )
        share = rows[:, :, None] * columns[:, None]
        return share / np.maximum(share.sum(-1, keepdims=True), TINY)


@dataclass(frozen=True)
class StackBias:
    """Bias fields of N stacks.

    Attributes
    ----------
    nodes : ndarray, (M, 3)
        Centres of the Gaussians, mm, in the scanner.
    log_factor : ndarray, (N, M)
        What each says of the logarithm of the factor by which the stack is brighter than the volume.
    """

    nodes: np.ndarray
    log_factor: np.ndarray

    def of_slices(self, stack: int, nominal: RigidMotion, spacing, shape: tuple[int, int]) -> np.ndarray:
        """The factor on whole slices (S, X, Y) of one stack, whose middles are at given places."""
        count = len(nominal)
        centre = np.tile((np.array(shape) - 1) / 2, (count, 1))
        basis = BiasBasis.seen(self.nodes, nominal, np.tile(spacing, (count, 1)), centre, shape)
        return basis.factor(np.tile(self.log_factor[stack], (count, 1)))


def fit_bias(basis: BiasBasis, stack_index: np.ndarray, images, spacing: np.ndarray) -> np.ndarray:
    """Logarithm of the factor by which each stack is brighter than the volume, smooth in the scanner's space.

    ``log b_k(x) = sum_m c_km G_m(x) / sum_m G_m(x)``, by least squares on the logarithm of ``sum w y I / sum w I^2``
    over small cells, each with its evidence ``sum w I^2``, with a pull to 0. What all stacks have in common stays in
    the volume: ``sum_k c_km = 0``. A field of a few wide Gaussians is what the GSVR paper names as future work.

    Parameters
    ----------
    basis : BiasBasis
        Of S slices.
    stack_index : ndarray, (S,)
    images : tuple of ndarray, (S, X, Y)
        Acquired slices y, simulated slices I with their gains, and weights w.
    spacing : ndarray, (2,)
        Pixel size, mm.

    Returns
    -------
    ndarray, (N, M)
        Coefficients ``c``.
    """
    values, simulated, weight = images
    size = np.maximum(np.rint(CELL / spacing).astype(int), 1)
    cross, power = (_cell_sums(weight * simulated * a, size) for a in (values, simulated))
    share = basis.cells(size)
    told = power > LEAST * np.median(power[power > 0]) if (power > 0).any() else power > 0
    ratio = np.clip(np.log(np.maximum(cross, TINY) / np.maximum(power, TINY)), -LIMIT, LIMIT)
    stacks = (told & (stack_index == k)[:, None, None] for k in range(stack_index.max() + 1))
    found = np.array([_solve(share[own].astype(float), ratio[own], power[own]) for own in stacks])
    return found - found.mean(0)


def _bell(distance):
    return np.exp(-0.5 * (distance / WIDTH) ** 2)


def _solve(share, ratio, power) -> np.ndarray:
    """Coefficients (M,) of one stack."""
    normal = (share * power[:, None]).T @ share
    return np.linalg.solve(
        normal + (PRIOR * np.median(np.diag(normal)) + TINY) * np.eye(len(normal)), share.T @ (power * ratio)
    )


def _middles(count: int, size: int) -> np.ndarray:
    """Index of the middle of each cell of ``size`` pixels; the last may be smaller."""
    return np.minimum(np.arange(0, count, size) + size // 2, count - 1)


def _cell_sums(image, size) -> np.ndarray:
    """Sums over cells of pixels, of each slice."""
    if torch.is_tensor(image):
        rows, columns = (-(-n // int(s)) for n, s in zip(image.shape[1:], size, strict=True))
        last = [int(count * s - n) for count, s, n in zip((rows, columns), size, image.shape[1:], strict=True)]
        padded = torch.nn.functional.pad(image, (0, last[1], 0, last[0]))
        return backend.to_host(padded.reshape(len(image), rows, int(size[0]), columns, int(size[1])).sum((2, 4)))
    rows = np.add.reduceat(image, np.arange(0, image.shape[1], size[0]), axis=1)
    return np.add.reduceat(rows, np.arange(0, image.shape[2], size[1]), axis=2)
