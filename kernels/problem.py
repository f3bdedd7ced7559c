# SPDX-License-Identifier: Apache-2.0
"""What the renderer takes and gives: options, geometry, and the field in the arrays of the kernels."""

from dataclasses import dataclass

import numpy as np
import torch

from gsbids.kernels import geometry as chain


@dataclass(frozen=True)
class RenderOptions:
    """How a field is rendered.

    Attributes
    ----------
    cut : float
        Gaussians contribute where their Mahalanobis distance is under ``cut``.
    eps : float
        Weight of the background (intensity 0) in the normalisation.
    mass_factor : bool
        Weigh by ``sqrt(det Sigma / det Sigma_obs)``: a Gaussian keeps its mass when the PSF widens it.
    """

    cut: float = 3.5
    eps: float = 1e-3
    mass_factor: bool = True


DEFAULT = RenderOptions()


@dataclass(frozen=True)
class SliceGeometry:
    """Where the pixels of S slices of X x Y pixels are.

    Attributes
    ----------
    rotation, translation : ndarray, (S, 3, 3), (S, 3)
        Poses: pixel (u, v, 0) mm lies at ``rotation @ (u, v, 0) + translation``.
    psf : ndarray, (S, 3)
        Variances (mm2) of the PSF along row, column and normal.
    spacing, centre : ndarray, (S, 2)
        Pixel size in mm, and pixel index of the slice origin.
    extent : ndarray, (S, X, 2), int32
        First and one-past-last pixel of each row that is rendered; the rest is left 0.
    shape : tuple of int
        (X, Y).
    """

    rotation: np.ndarray
    translation: np.ndarray
    psf: np.ndarray
    spacing: np.ndarray
    centre: np.ndarray
    extent: np.ndarray
    shape: tuple[int, int]

    def arrays(self):
        """The arrays in the order and types of the kernels."""
        flat = (self.rotation, self.translation, self.psf, self.spacing, self.centre)
        return (*(np.ascontiguousarray(a, np.float64) for a in flat),
                np.ascontiguousarray(self.extent, np.int32))


@dataclass(frozen=True)
class Acquired:
    """What the rendered slices are compared with.

    Attributes
    ----------
    values, weight : ndarray, (S, X, Y)
        Acquired intensities, and the weight of each pixel: 0 where there is nothing to compare.
    delta : float
        Residual from which on the Charbonnier loss grows linearly.
    gain : ndarray, (S,), or None
        Factor of each slice that the simulated intensities are multiplied by; 1 if left out.
    """

    values: np.ndarray
    weight: np.ndarray
    delta: float
    gain: np.ndarray | None = None


@dataclass(frozen=True)
class Step:
    """What :func:`step_slices` returns.

    Attributes
    ----------
    loss : ndarray, (S,)
        Loss of each slice.
    image : ndarray, (S, X, Y), float32
        Simulated slices, before their gain.
    gradients : tuple of ndarray, float32
        Of the sum of the losses, with respect to mean (J, 3), log_scale (J, 3), quaternion (J, 4), intensity (J,)
        and log_weight (J,).
    pose : ndarray, (S, 6)
        Gradient with respect to the slice-frame tangents omega and tau.
    """

    loss: np.ndarray
    image: np.ndarray
    gradients: tuple[np.ndarray, ...]
    pose: np.ndarray


def full_extent(slices: int, shape: tuple[int, int]) -> np.ndarray:
    """Extents (S, X, 2) that cover every pixel."""
    return np.tile(np.array([0, shape[1]], np.int32), (slices, shape[0], 1))


@dataclass(frozen=True)
class PackedField:
    """Parameters as the kernels take them."""

    log_scale: np.ndarray
    quaternion: np.ndarray
    mean: np.ndarray
    cov: np.ndarray
    intensity: np.ndarray
    amplitude: np.ndarray

    @classmethod
    def pack(cls, mean, log_scale, quaternion, intensity, log_weight, options):
        arrays = [np.ascontiguousarray(a.detach() if torch.is_tensor(a) else a, np.float32)
                  for a in (mean, log_scale, quaternion, intensity, log_weight)]
        if not all(np.isfinite(a).all() for a in arrays):
            raise FloatingPointError("a parameter of the Gaussian field is not finite: the fit has diverged")
        mean, log_scale, quaternion, intensity, log_weight = arrays
        amplitude = log_weight.astype(np.float64)
        if options.mass_factor:
            amplitude = amplitude + log_scale.sum(1, dtype=np.float64)
        return cls(log_scale, quaternion, mean, chain.covariances(log_scale, quaternion), intensity,
                   np.exp(amplitude))

    def arrays(self):
        """The tuple ``field`` of :mod:`gsbids.kernels.splat_cpu`."""
        columns = np.concatenate([self.mean.T, np.exp(2 * self.log_scale.max(1, initial=-np.inf))[None]])
        table = np.zeros((len(self.mean), 16), np.float32)
        table[:, :3], table[:, 3:9], table[:, 9], table[:, 10] = self.mean, self.cov, self.intensity, self.amplitude
        return columns, table

    def gradients(self, parts, options):
        """Gradients of the five parameters from those of the parts (P, J, 11)."""
        total = parts.sum(0) if len(parts) > 1 else parts[0]
        scale, turn = chain.covariances_backward(self.log_scale, self.quaternion, np.ascontiguousarray(total[:, 3:9]))
        if options.mass_factor:  # d(log det Sigma)/2 = sum of the log-scales
            scale += total[:, 10:]
        return tuple(np.ascontiguousarray(a) for a in (total[:, :3], scale, turn, total[:, 9], total[:, 10]))
