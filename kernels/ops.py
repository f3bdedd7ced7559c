# SPDX-License-Identifier: Apache-2.0
"""The renderer as torch operations: slices of a Gaussian field, forward and backward.

A volume on a grid is a stack of slices without a PSF, so the same operation renders both.
"""

from dataclasses import dataclass

import numpy as np
import torch

from gsbids.kernels import geometry as chain
from gsbids.kernels import splat_cpu


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


def full_extent(slices: int, shape: tuple[int, int]) -> np.ndarray:
    """Extents (S, X, 2) that cover every pixel."""
    return np.tile(np.array([0, shape[1]], np.int32), (slices, shape[0], 1))


@dataclass(frozen=True)
class _Field:
    """Parameters as the kernels take them."""

    mean: np.ndarray
    cov: np.ndarray
    intensity: np.ndarray
    log_amplitude: np.ndarray

    @classmethod
    def pack(cls, mean, log_scale, quaternion, intensity, log_weight, options):
        arrays = [np.ascontiguousarray(np.asarray(a), np.float32)
                  for a in (mean, log_scale, quaternion, intensity, log_weight)]
        if not all(np.isfinite(a).all() for a in arrays):
            raise FloatingPointError("a parameter of the Gaussian field is not finite: the fit has diverged")
        mean, log_scale, quaternion, intensity, log_weight = arrays
        amplitude = log_weight.astype(np.float64)
        if options.mass_factor:
            amplitude = amplitude + log_scale.sum(1, dtype=np.float64)
        return cls(mean, chain.covariances(log_scale, quaternion), intensity, amplitude)

    def arrays(self):
        return self.mean, self.cov, self.intensity, self.log_amplitude


def render(mean, log_scale, quaternion, intensity, log_weight, geometry, options=RenderOptions()):
    """Render slices without gradients.

    Parameters
    ----------
    mean, log_scale, quaternion, intensity, log_weight : array, (J, 3), (J, 3), (J, 4), (J,), (J,)
        The field; see :class:`gsbids.recon.field.GaussianField`.
    geometry : SliceGeometry
    options : RenderOptions

    Returns
    -------
    image, weight : ndarray, (S, X, Y), float32
        ``I = sum w c / D`` and ``D = sum w + eps``; formulas in :func:`gsbids.kernels.reference.render_slices`.
    """
    field = _Field.pack(mean, log_scale, quaternion, intensity, log_weight, options)
    image = np.empty((len(geometry.rotation), *geometry.shape), np.float32)
    weight = np.empty_like(image)
    splat_cpu.forward(*geometry.arrays(), *field.arrays(), options.cut**2, np.float32(options.eps),
                      options.mass_factor, image, weight)
    return image, weight


def image_gradient(mean, log_scale, quaternion, intensity, log_weight, geometry, rendered, options=RenderOptions()):
    """Derivative of the rendered slices with respect to the pixels' positions.

    Parameters
    ----------
    mean ... options
        As for :func:`render`.
    rendered : tuple of ndarray
        What :func:`render` returned for the same arguments.

    Returns
    -------
    ndarray, (S, X, Y, 3), float32
        dI/dX per mm along row, column and normal of the slice. The PSF is held fixed.
    """
    field = _Field.pack(mean, log_scale, quaternion, intensity, log_weight, options)
    out = np.empty((*rendered[0].shape, 3), np.float32)
    splat_cpu.image_gradient(*geometry.arrays(), *field.arrays(), options.cut**2, options.mass_factor,
                             *rendered, out)
    return out


def pose_normal_equations(geometry, gradient, residual, weight, gain):
    """Gauss-Newton system of every slice's pose; see :func:`gsbids.kernels.splat_cpu.pose_normal_equations`.

    Parameters
    ----------
    gradient : ndarray, (S, X, Y, 3)
        From :func:`image_gradient`.
    residual, weight : ndarray, (S, X, Y)
        Acquired minus simulated, and the weight of each pixel.
    gain : ndarray, (S,)

    Returns
    -------
    matrix, vector : ndarray, (S, 6, 6), (S, 6), float64
    """
    slices = len(residual)
    matrix, vector = np.empty((slices, 6, 6)), np.empty((slices, 6))
    _, _, _, spacing, centre, _ = geometry.arrays()
    splat_cpu.pose_normal_equations(spacing, centre, gradient, residual, weight,
                                    np.asarray(gain, np.float64), matrix, vector)
    return matrix, vector


class SliceRender(torch.autograd.Function):
    """Slices of a field with gradients: ``SliceRender.apply(*field, omega, tau, geometry, options)``.

    ``omega`` and ``tau`` (S, 3) are tangents of the poses in the slice frame (``R exp([omega]x)``, ``t + R tau``)
    and must be 0: fold every update into the geometry. They are there for their gradients.
    """

    @staticmethod
    def forward(ctx, mean, log_scale, quaternion, intensity, log_weight, omega, tau, geometry, options):
        field = _Field.pack(*(a.detach() for a in (mean, log_scale, quaternion, intensity, log_weight)), options)
        image = np.empty((len(geometry.rotation), *geometry.shape), np.float32)
        weight = np.empty_like(image)
        splat_cpu.forward(*geometry.arrays(), *field.arrays(), options.cut**2, np.float32(options.eps),
                          options.mass_factor, image, weight)
        ctx.problem = (field, geometry, options)
        ctx.save_for_backward(log_scale, quaternion, torch.from_numpy(image), torch.from_numpy(weight))
        return torch.from_numpy(image)

    @staticmethod
    def backward(ctx, grad):
        field, geometry, options = ctx.problem
        log_scale, quaternion, image, weight = ctx.saved_tensors
        h = (grad / weight).contiguous()
        parts = np.empty((splat_cpu.PARTS, len(field.mean), 11), np.float32)
        pose = np.empty((len(geometry.rotation), 6))
        splat_cpu.backward(*geometry.arrays(), *field.arrays(), options.cut**2, options.mass_factor,
                           h.numpy(), (h * image).numpy(), parts, pose)
        total = parts.sum(0)
        scale, turn = chain.covariances_backward(log_scale.detach().numpy(), quaternion.detach().numpy(),
                                                 np.ascontiguousarray(total[:, 3:9]))
        if options.mass_factor:  # d(log det Sigma)/2 = sum of the log-scales
            scale += total[:, 10:]
        pose = torch.from_numpy(pose.astype(np.float32))
        columns = [torch.from_numpy(np.ascontiguousarray(a))
                   for a in (total[:, :3], scale, turn, total[:, 9], total[:, 10])]
        return *columns, pose[:, :3], pose[:, 3:], None, None
