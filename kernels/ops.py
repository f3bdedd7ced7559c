# SPDX-License-Identifier: Apache-2.0
"""The renderer as torch operations: slices of a Gaussian field, forward and backward, and its volume on a grid."""

import numpy as np
import torch

from gsbids.kernels import rows, splat_cpu
from gsbids.kernels.grid import GridGeometry, GridRender, render_grid
from gsbids.kernels.problem import DEFAULT, Acquired, PackedField, RenderOptions, SliceGeometry, Step, full_extent

__all__ = ["Acquired", "GridGeometry", "GridRender", "RenderOptions", "SliceGeometry", "SliceRender", "Step",
           "full_extent", "image_gradient", "pose_normal_equations", "render", "render_grid", "step_slices"]


def render(mean, log_scale, quaternion, intensity, log_weight, geometry, options=DEFAULT):
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
    field = PackedField.pack(mean, log_scale, quaternion, intensity, log_weight, options)
    image = np.empty((len(geometry.rotation), *geometry.shape), np.float32)
    weight = np.empty_like(image)
    splat_cpu.forward(*geometry.arrays(), field.arrays(), options.cut**2, np.float32(options.eps),
                      options.mass_factor, rows.lanes(), image, weight)
    return image, weight


def step_slices(mean, log_scale, quaternion, intensity, log_weight, geometry, acquired, options=DEFAULT):
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
    field = PackedField.pack(mean, log_scale, quaternion, intensity, log_weight, options)
    slices = len(geometry.rotation)
    image, loss = np.empty((slices, *geometry.shape), np.float32), np.empty(slices)
    total, pose = np.empty((len(field.table), 11), np.float32), np.empty((slices, 6))
    gain = np.ones(slices) if acquired.gain is None else acquired.gain
    splat_cpu.step(*geometry.arrays(), field.arrays(), options.cut**2, np.float32(options.eps), options.mass_factor,
                   rows.lanes(), np.ascontiguousarray(acquired.values, np.float32),
                   np.ascontiguousarray(acquired.weight, np.float32), np.asarray(gain, np.float32),
                   np.float32(acquired.delta), image, loss, total, pose)
    return Step(loss, image, field.gradients(total, options), pose)


def image_gradient(mean, log_scale, quaternion, intensity, log_weight, geometry, rendered, options=DEFAULT):
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
    field = PackedField.pack(mean, log_scale, quaternion, intensity, log_weight, options)
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
        field = PackedField.pack(mean, log_scale, quaternion, intensity, log_weight, options)
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
        total = np.empty((len(field.table), 11), np.float32)
        pose = np.empty((len(geometry.rotation), 6))
        splat_cpu.backward(*geometry.arrays(), field.arrays(), options.cut**2, options.mass_factor, rows.lanes(),
                           np.ascontiguousarray(grad, np.float32), image, weight, total, pose)
        pose = torch.from_numpy(pose.astype(np.float32))
        gradients = (torch.from_numpy(a) for a in field.gradients(total, options))
        return *gradients, pose[:, :3], pose[:, 3:], None, None
