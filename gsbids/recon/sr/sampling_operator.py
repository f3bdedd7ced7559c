# SPDX-License-Identifier: Apache-2.0
"""Sampling of a fine volume to a coarse one: one small matrix per axis, its pseudo-inverse, and the projection.

Coordinates along an axis are counted in coarse voxels: coarse voxel i is centred at i, fine voxel j at
``start + step * j``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from gsbids.errors import InputError
from gsbids.kernels import backend
from gsbids.kernels.problem import Array
from gsbids.recon.psf import FWHM_TO_SIGMA

PROFILES = ("trilinear", "box", "gaussian", "kspace")
REACH = 3.0  # standard deviations at which a Gaussian profile ends
WEAKEST = 1e-3  # singular values under this share of the largest are not inverted


@dataclass(frozen=True)
class AxisGrid:
    """Fine voxels along one axis of a coarse grid.

    Attributes
    ----------
    coarse, fine : int
        Number of voxels.
    start, step : float
        Coordinate of fine voxel 0, and the distance of two, in coarse voxels.
    """

    coarse: int
    fine: int
    start: float
    step: float

    @classmethod
    def same_extent(cls, coarse: int, fine: int) -> "AxisGrid":
        """Return fine voxels that fill the same field of view, half-pixel aligned (torch: ``align_corners=False``)."""
        step = coarse / fine
        return cls(coarse, fine, 0.5 * step - 0.5, step)

    @property
    def positions(self) -> np.ndarray:
        """Coordinates of the fine voxels, (fine,)."""
        return self.start + self.step * np.arange(self.fine)


def profile_matrix(axis: AxisGrid, profile: str, width: float = 1.0) -> np.ndarray:
    """Return the weights of fine voxels in coarse ones along one axis.

    Parameters
    ----------
    axis : AxisGrid
    profile : str
        ``trilinear``: linear interpolation at the centres of the coarse voxels, without anti-aliasing, as
        ``torch.nn.functional.interpolate(mode="trilinear", align_corners=False)``; ``box``: mean over the coarse
        voxel; ``gaussian``: slice profile of that full width at half maximum; ``kspace``: k-space cut at the
        coarse Nyquist frequency (a periodic sinc).
    width : float
        Width of ``box`` and ``gaussian`` in coarse voxels: slice thickness over slice distance.

    Returns
    -------
    ndarray, (coarse, fine), float64
        Rows sum to 1.

    Raises
    ------
    gsbids.errors.InputError
        There is no such profile.
    """
    centre, fine = np.arange(axis.coarse)[:, None], axis.positions[None]
    if profile == "trilinear":
        return _linear(axis)
    if profile == "box":
        half, own = 0.5 * width, 0.5 * axis.step
        matrix = np.clip(np.minimum(centre + half, fine + own) - np.maximum(centre - half, fine - own), 0, None)
    elif profile == "gaussian":
        distance = (fine - centre) / (width * FWHM_TO_SIGMA)
        matrix = np.where(np.abs(distance) <= REACH, np.exp(-0.5 * distance**2), 0.0)
    elif profile == "kspace":
        matrix = _periodic_sinc((fine - centre) / (axis.step * axis.fine), min(axis.coarse, axis.fine))
    else:
        raise InputError(f"the sampling profile is {profile!r}; give one of {', '.join(PROFILES)}")
    total = matrix.sum(1, keepdims=True)
    # Coarse voxels that no fine one reaches are interpolated.
    return np.where(total > 1e-6, matrix / np.where(total > 1e-6, total, 1), _linear(axis))


def _linear(axis: AxisGrid) -> np.ndarray:
    at = np.clip((np.arange(axis.coarse) - axis.start) / axis.step, 0, axis.fine - 1)
    return np.clip(1 - np.abs(np.arange(axis.fine)[None] - at[:, None]), 0, None)


def _periodic_sinc(turns: np.ndarray, count: int) -> np.ndarray:
    """Sum ``count`` cosines of the lowest frequencies, the Nyquist frequency of an even count halved."""
    highest = count // 2
    share = np.ones(highest + 1)
    share[1:] = 2
    if count % 2 == 0:
        share[-1] = 1
    return np.cos(2 * np.pi * turns[..., None] * np.arange(highest + 1)) @ share


@dataclass(frozen=True)
class SamplingOperator:
    """Linear map D from fine to coarse volumes, separable: ``y = (D0 x D1 x D2) x``.

    Attributes
    ----------
    matrices : tuple of ndarray, (coarse, fine), float32
        One per axis.
    """

    matrices: tuple[np.ndarray, np.ndarray, np.ndarray]

    @classmethod
    def of(
        cls, axes: Sequence[AxisGrid], profiles: Sequence[str], widths: Sequence[float] = (1.0, 1.0, 1.0)
    ) -> "SamplingOperator":
        """Build the operator of three :class:`AxisGrid`, with a profile and a width for each.

        See :func:`profile_matrix`.
        """
        return cls(
            tuple(profile_matrix(*given).astype(np.float32) for given in zip(axes, profiles, widths, strict=True))  # type: ignore[arg-type]
        )

    @property
    def fine_shape(self) -> tuple[int, int, int]:
        """Shape of the fine volume."""
        return tuple(m.shape[1] for m in self.matrices)

    @property
    def energy(self) -> float:
        """Mean of the diagonal of ``D D^T``: the variance that white noise of variance 1 has after D."""
        return float(np.prod([np.mean((m**2).sum(1)) for m in self.matrices]))

    @property
    def spread(self) -> np.ndarray:
        """Variance of each axis's profile in fine voxels squared: mean and largest over coarse voxels, (2, 3)."""
        out = []
        for m in self.matrices:
            at = np.arange(m.shape[1], dtype=float) - m.shape[1] / 2
            middle = m.astype(float) @ at
            variance = np.maximum(m.astype(float) @ at**2 - middle**2, 0.0)
            out.append((variance.mean(), variance.max()))
        return np.array(out).T

    def __call__(self, fine: np.ndarray) -> np.ndarray:
        """Return ``D x``."""
        return along_axes(self.matrices, fine)

    def transpose(self, coarse: np.ndarray) -> np.ndarray:
        """Return ``D^T y``."""
        return along_axes(tuple(m.T for m in self.matrices), coarse)

    def inverse(self, coarse: np.ndarray) -> np.ndarray:
        """Return ``D^+ y``, the shortest x with ``D x = y``."""
        return along_axes(self._inverses, coarse)

    def project(self, fine: np.ndarray, coarse: np.ndarray, noise_ratio: float = 0.0) -> np.ndarray:
        """Project ``fine`` on the data, or, where the data are noisy, find a compromise of both.

        ``argmin |x - fine|^2 / e^2 + |D x - y|^2 / sigma^2 = fine + D^T (D D^T + r)^-1 (y - D fine)``. With
        ``r = 0`` the projection on ``{x: D x = y}``: it cannot take ``fine`` farther from any x that is true to y.

        Parameters
        ----------
        fine, coarse : ndarray
            x and y.
        noise_ratio : float
            r: variance of the noise of y over that of the error of ``fine`` (each per voxel).
        """
        return fine + self.correction(coarse - self(fine), noise_ratio)

    def correction(self, miss: np.ndarray, noise_ratio: float = 0.0) -> np.ndarray:
        """Return ``D^T (D D^T + r)^-1 miss``: what :meth:`project` adds for residuals ``y - D x``."""
        if noise_ratio <= 0:
            return self.inverse(miss)
        turns, values = zip(*self._modes, strict=True)
        back = along_axes(tuple(t.T for t in turns), miss)
        scale = values[0][:, None, None] * values[1][:, None] * values[2]
        return self.transpose(along_axes(turns, back / (scale + np.float32(noise_ratio))))

    @cached_property
    def _inverses(self) -> tuple[np.ndarray, ...]:
        return tuple(np.linalg.pinv(m.astype(float), rcond=WEAKEST).astype(np.float32) for m in self.matrices)

    @cached_property
    def _modes(self) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
        """Eigenvectors of ``D D^T`` in columns, and their values, per axis."""
        found = (np.linalg.eigh(m.astype(float) @ m.T.astype(float)) for m in self.matrices)
        return tuple(
            (vectors.astype(np.float32), np.maximum(values, 0).astype(np.float32)) for values, vectors in found
        )


def along_axes(matrices: Sequence[np.ndarray], volume: Array) -> Array:
    """Apply a matrix along each of the three axes, float32; a tensor of a GPU gives a tensor there."""
    if torch.is_tensor(volume):
        first, second, third = (backend.like(np.ascontiguousarray(m), volume) for m in matrices)
        out = (first @ volume.reshape(len(volume), -1)).reshape(len(first), *volume.shape[1:])
        return second @ out @ third.T
    out = np.ascontiguousarray(volume, np.float32)
    first, second, third = (np.ascontiguousarray(m, np.float32) for m in matrices)
    out = (first @ out.reshape(len(out), -1)).reshape(len(first), *out.shape[1:])
    out = np.matmul(second, out)
    return np.matmul(out, third.T)
