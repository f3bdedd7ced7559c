# SPDX-License-Identifier: Apache-2.0
"""The renderer as torch operations: slices of a Gaussian field, forward and backward.

A volume on a grid is a stack of slices without a PSF, so the same operation renders both.
"""

from dataclasses import dataclass

import numpy as np
import torch

from gsbids.kernels import geometry as chain
from gsbids.kernels import rows, splat_cpu


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
class _Field:
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
        return columns, self.mean, self.cov, self.intensity, self.amplitude

    def gradients(self, parts, options):
        """Gradients of the five parameters from those of the parts (P, J, 11)."""
        total = parts.sum(0)
        scale, turn = chain.covariances_backward(self.log_scale, self.quaternion, np.ascontiguousarray(total[:, 3:9]))
        if options.mass_factor:  # d(log det Sigma)/2 = sum of the log-scales
            scale += total[:, 10:]
        return tuple(np.ascontiguousarray(a) for a in (total[:, :3], scale, turn, total[:, 9], total[:, 10]))


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
    splat_cpu.forward(*geometry.arrays(), field.arrays(), options.cut**2, np.float32(options.eps),
                      options.mass_factor, rows.lanes(), image, weight)
    return image, weight


def step_slices(mean, log_scale, quaternion, intensity, log_weight, geometry, acquired, options=RenderOptions()):
    """Forward, Charbonnier loss and all gradients in one pass: a slice is projected, compared and taken back at once.

    ``loss_s = sum_p w_p (sqrt(r_p^2 + d^2) - d)``, ``r = a_s I - y``. The same numbers as :class:`SliceRender` with
    that loss gives, at less than the cost of its two passes.

    Parameters
    ----------
    mean ... geometry, options
        As for :func:`render`.
    acquired : Acquired

    Returns
    -------
    Step
    """
    field = _Field.pack(mean, log_scale, quaternion, intensity, log_weight, options)
    slices = len(geometry.rotation)
    image, loss = np.empty((slices, *geometry.shape), np.float32), np.empty(slices)
    parts, pose = np.empty((splat_cpu.PARTS, len(field.mean), 11), np.float32), np.empty((slices, 6))
    gain = np.ones(slices) if acquired.gain is None else acquired.gain
    splat_cpu.step(*geometry.arrays(), field.arrays(), options.cut**2, np.float32(options.eps), options.mass_factor,
                   rows.lanes(), np.ascontiguousarray(acquired.values, np.float32),
                   np.ascontiguousarray(acquired.weight, np.float32), np.asarray(gain, np.float32),
                   np.float32(acquired.delta), image, loss, parts, pose)
    return Step(loss, image, field.gradients(parts, options), pose)


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
    splat_cpu.image_gradient(*geometry.arrays(), field.arrays(), options.cut**2, options.mass_factor, rows.lanes(),
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
        field = _Field.pack(mean, log_scale, quaternion, intensity, log_weight, options)
        image = np.empty((len(geometry.rotation), *geometry.shape), np.float32)
        weight = np.empty_like(image)
        splat_cpu.forward(*geometry.arrays(), field.arrays(), options.cut**2, np.float32(options.eps),
                          options.mass_factor, rows.lanes(), image, weight)
        ctx.problem = (field, geometry, options)
        image = torch.from_numpy(image)
        ctx.save_for_backward(image, torch.from_numpy(weight))
        return image

    @staticmethod
    def backward(ctx, grad):
        field, geometry, options = ctx.problem
        image, weight = (a.detach().numpy() for a in ctx.saved_tensors)
        parts = np.empty((splat_cpu.PARTS, len(field.mean), 11), np.float32)
        pose = np.empty((len(geometry.rotation), 6))
        splat_cpu.backward(*geometry.arrays(), field.arrays(), options.cut**2, options.mass_factor, rows.lanes(),
                           np.ascontiguousarray(grad, np.float32), image, weight, parts, pose)
        pose = torch.from_numpy(pose.astype(np.float32))
        gradients = (torch.from_numpy(a) for a in field.gradients(parts, options))
        return *gradients, pose[:, :3], pose[:, 3:], None, None
