# SPDX-License-Identifier: Apache-2.0
"""A smooth bias field for every stack, made of a few wide Gaussians: the rest that N4 left, or added."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gsbids.kernels import backend
from gsbids.kernels.problem import Array
from gsbids.recon.motion import RigidMotion

WIDTH = 40.0  # mm: standard deviation of the Gaussians, and about their distance
CELL = 6.0  # mm: pixels are summed over cells of this size before the fit
PRIOR = 0.1  # pull to no bias, as a share of the evidence of the median Gaussian
LIMIT = 0.7  # of the logarithm of a cell's ratio
LEAST = 1e-3  # evidence of a cell, over that of the usual one, under which it says nothing
TINY = 1e-12  # against division by 0


def lattice(nominal: RigidMotion, reach: float) -> np.ndarray:
    """Return the centres (M, 3), mm, of Gaussians over the positions of the slices in the scanner, where a coil stays.

    Parameters
    ----------
    nominal : RigidMotion
        Poses of the slices in the scanner.
    reach : float
        Distance (mm) that slices extend on all sides of their origins.
    """
    low, high = nominal.translation.min(0) - reach, nominal.translation.max(0) + reach
    axes = [np.linspace(a, b, max(2, round((b - a) / WIDTH) + 1)) for a, b in zip(low, high, strict=True)]
    return np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)


@dataclass(frozen=True)
class BiasBasis:
    """Basis of M wide Gaussians on S slices of X x Y pixels: ``G_m(u, v) = along_m(u) across_m(v)``.

    Attributes
    ----------
    along, across : array, (S, X, M), (S, Y, M), float32
        Numpy arrays, or tensors of a GPU; so are pixels (S, X, Y) then.
    """

    along: np.ndarray
    across: np.ndarray

    @classmethod
    def seen(
        cls, nodes: np.ndarray, nominal: RigidMotion, spacing: np.ndarray, centre: np.ndarray, shape: tuple[int, int]
    ) -> "BiasBasis":
        """Build the basis on slices with given poses, whose pixel ``centre`` (S, 2) is the origin; ``nodes`` (M, 3)."""
        there = np.einsum("sji,smj->smi", nominal.rotation, nodes - nominal.translation[:, None])
        local = [(np.arange(n) - centre[:, a, None]) * spacing[:, a, None] for a, n in enumerate(shape)]
        along, across = (_bell(local[a][:, :, None] - there[:, None, :, a]) for a in (0, 1))
        return cls((along * _bell(there[:, None, :, 2])).astype(np.float32), across.astype(np.float32))

    def factor(self, log_factor: np.ndarray) -> Array:
        """Return ``exp(sum_m c_m G_m / sum_m G_m)`` on every pixel, (S, X, Y), for each slice's coefficients (S, M)."""
        across = self.across.swapaxes(1, 2)
        total = (self.along @ across).clip(TINY)
        log_factor = backend.like(log_factor[:, None].astype(np.float32), across)
        return backend.exp((self.along * log_factor) @ across / total)

    def cells(self, size: np.ndarray) -> np.ndarray:
        """Return the share ``G_m / sum_m G_m`` of each Gaussian at the centre of cells, (S, X', Y', M).

        ``size``: pixels along the two sides of a cell.
        """
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
        Coefficient of each for the logarithm of the factor by which the stack is brighter than the volume.
    """

    nodes: np.ndarray
    log_factor: np.ndarray

    def of_slices(
        self, stack: int, nominal: RigidMotion, spacing: Sequence[float] | np.ndarray, shape: tuple[int, int]
    ) -> np.ndarray:
        """Return the factor on whole slices (S, X, Y) of one stack, whose centres are at given positions."""
        count = len(nominal)
        centre = np.tile((np.array(shape) - 1) / 2, (count, 1))
        basis = BiasBasis.seen(self.nodes, nominal, np.tile(spacing, (count, 1)), centre, shape)
        return basis.factor(np.tile(self.log_factor[stack], (count, 1)))


def fit_bias(
    basis: BiasBasis, stack_index: np.ndarray, images: tuple[Array, Array, Array], spacing: np.ndarray
) -> np.ndarray:
    """Fit the logarithm of the factor by which each stack is brighter than the volume, smooth in scanner space.

    ``log b_k(x) = sum_m c_km G_m(x) / sum_m G_m(x)``, by least squares on the logarithm of ``sum w y I / sum w I^2``
    over small cells, each with its evidence ``sum w I^2``, with a pull to 0. What all stacks have in common stays in
    the volume: ``sum_k c_km = 0``. A field of a few wide Gaussians is what the GSVR paper names as future work.

    Parameters
    ----------
    basis : BiasBasis
        Basis on S slices.
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


def _bell(distance: np.ndarray) -> np.ndarray:
    return np.exp(-0.5 * (distance / WIDTH) ** 2)


def _solve(share: np.ndarray, ratio: np.ndarray, power: np.ndarray) -> np.ndarray:
    """Return the coefficients (M,) of one stack."""
    normal = (share * power[:, None]).T @ share
    return np.linalg.solve(
        normal + (PRIOR * np.median(np.diag(normal)) + TINY) * np.eye(len(normal)), share.T @ (power * ratio)
    )


def _middles(count: int, size: int) -> np.ndarray:
    """Return the index of the middle of each cell of ``size`` pixels; the last may be smaller."""
    return np.minimum(np.arange(0, count, size) + size // 2, count - 1)


def _cell_sums(image: Array, size: np.ndarray) -> np.ndarray:
    """Sum over cells of pixels, of each slice."""
    if torch.is_tensor(image):
        rows, columns = (-(-n // int(s)) for n, s in zip(image.shape[1:], size, strict=True))
        last = [int(count * s - n) for count, s, n in zip((rows, columns), size, image.shape[1:], strict=True)]
        padded = torch.nn.functional.pad(image, (0, last[1], 0, last[0]))
        return backend.to_host(padded.reshape(len(image), rows, int(size[0]), columns, int(size[1])).sum((2, 4)))
    rows = np.add.reduceat(image, np.arange(0, image.shape[1], size[0]), axis=1)  # type: ignore[assignment]
    return np.add.reduceat(rows, np.arange(0, image.shape[2], size[1]), axis=2)
