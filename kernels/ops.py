# SPDX-License-Identifier: Apache-2.0
"""Render a Gaussian field as torch operations: slices, forward and backward, and the volume on a grid.

The field decides where the work is done: tensors of a GPU go to the CUDA kernels (:mod:`gsbids.kernels.cuda.ops`,
:mod:`gsbids.kernels.cuda.grid_ops`) and come back as tensors of that GPU; arrays and tensors of the CPU go to the CPU
kernels, and come back as arrays (from the autograd functions, as tensors). Arrays with ``options.device`` a GPU are
moved there, and the results come back as arrays. The package numba-cuda is imported only for a GPU. ``lists`` come
from :func:`plan`; the CPU kernels keep none.
"""

from collections.abc import Iterable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gsbids.kernels import backend
from gsbids.kernels.cpu import grid_ops, rows, splat
from gsbids.kernels.cpu.packed import PackedField
from gsbids.kernels.cuda import runtime
from gsbids.kernels.problem import (
    DEFAULT,
    Acquired,
    Array,
    FieldArrays,
    GridGeometry,
    RenderOptions,
    SliceGeometry,
    Step,
    full_extent,
)

if TYPE_CHECKING:
    from gsbids.kernels.cuda.grid_ops import BrickList, DeviceGrid
    from gsbids.kernels.cuda.kept_lists import KeptLists
    from gsbids.kernels.cuda.plan import DeviceGeometry, SlicePlan

__all__ = [
    "Acquired",
    "GridGeometry",
    "GridRender",
    "RenderOptions",
    "SliceGeometry",
    "SliceRender",
    "Step",
    "full_extent",
    "image_gradient",
    "kept_lists",
    "on_device",
    "plan",
    "pose_normal_equations",
    "render",
    "render_grid",
    "step_slices",
]


def _cuda(array: Array, module: str = "ops") -> Any:
    """Return the module of the CUDA kernels if ``array`` is for them, else None."""
    return import_module(f"gsbids.kernels.cuda.{module}") if runtime.takes(array) else None


def _is_away(array: Array, options: RenderOptions) -> bool:
    """Return whether an array is to be rendered on a GPU and is not there yet."""
    return options.device != backend.CPU and not torch.is_tensor(array)


def _moved(arrays: Iterable[Array], options: RenderOptions) -> Any:
    return [backend.to_device(array, options.device) for array in arrays]


def on_device(geometry: SliceGeometry, name: str) -> "SliceGeometry | DeviceGeometry":
    """Copy slices to the device, for many renderings; :meth:`moved` gives them other poses.

    For the CPU the geometry itself is returned.
    """
    if name == backend.CPU:
        return geometry
    return import_module("gsbids.kernels.cuda.ops").on_device(geometry, backend.torch_device(name))


def kept_lists(options: RenderOptions) -> "KeptLists | None":
    """Return lists for the steps of a fit that are kept while nothing moves far; None for the CPU."""
    return None if options.device == backend.CPU else import_module("gsbids.kernels.cuda.kept_lists").KeptLists(options)


def plan(
    field: FieldArrays,
    geometry: "SliceGeometry | DeviceGeometry",
    options: RenderOptions = DEFAULT,
    margin: float = 0.0,
) -> "list[SlicePlan] | None":
    """Make lists for several renderings of slices, see :func:`gsbids.kernels.cuda.ops.plan`; None for the CPU."""
    twin = _cuda(field[0])
    return twin and twin.plan(field, geometry, options, margin)


def render(
    mean: Array,
    log_scale: Array,
    quaternion: Array,
    intensity: Array,
    log_weight: Array,
    geometry: "SliceGeometry | DeviceGeometry",
    options: RenderOptions = DEFAULT,
    lists: "list[SlicePlan] | None" = None,
) -> tuple[Array, Array]:
    """Render slices without gradients.

    Parameters
    ----------
    mean, log_scale, quaternion, intensity, log_weight : array, (J, 3), (J, 3), (J, 4), (J,), (J,)
        Field; see :class:`gsbids.recon.field.GaussianField`.
    geometry : SliceGeometry
    options : RenderOptions
    lists : optional
        Lists from :func:`plan`, while they hold.

    Returns
    -------
    image, weight : ndarray, (S, X, Y), float32
        ``I = sum w c / D`` and ``D = sum w + eps``; formulas in :func:`gsbids.kernels.reference.render_slices`.
    """
    if _is_away(mean, options):
        field: Any = _moved((mean, log_scale, quaternion, intensity, log_weight), options)
        return backend.to_host(render(*field, geometry, options, lists))  # type: ignore[call-arg]
    if twin := _cuda(mean):
        return twin.render(mean, log_scale, quaternion, intensity, log_weight, geometry, options, lists)
    field = PackedField.pack(mean, log_scale, quaternion, intensity, log_weight, options)
    image = np.empty((len(geometry.rotation), *geometry.shape), np.float32)  # type: ignore[union-attr]
    weight = np.empty_like(image)
    splat.forward(
        *geometry.arrays(),  # type: ignore[union-attr]
        field.arrays(),
        options.cut**2,
        np.float32(options.eps),
        options.mass_factor,
        rows.lanes(),
        image,
        weight,
    )
    return image, weight


def step_slices(
    mean: Array,
    log_scale: Array,
    quaternion: Array,
    intensity: Array,
    log_weight: Array,
    geometry: "SliceGeometry | DeviceGeometry",
    acquired: Acquired,
    options: RenderOptions = DEFAULT,
    lists: "list[SlicePlan] | None" = None,
) -> Step:
    """Render, compute the Charbonnier loss and all gradients in one pass over the slices.

    ``loss_s = sum_p w_p (sqrt(r_p^2 + d^2) - d)``, ``r = a_s I - y``. The same numbers as :class:`SliceRender` with
    that loss gives, at less than the cost of its two passes.

    Parameters
    ----------
    mean ... geometry, options, lists
        As for :func:`render`.
    acquired : Acquired

    Returns
    -------
    Step
    """
    if _is_away(mean, options):
        field: Any = _moved((mean, log_scale, quaternion, intensity, log_weight), options)
        return backend.to_host(step_slices(*field, geometry, acquired, options, lists))  # type: ignore[call-arg]
    if twin := _cuda(mean):
        return twin.step_slices(mean, log_scale, quaternion, intensity, log_weight, geometry, acquired, options, lists)
    field = PackedField.pack(mean, log_scale, quaternion, intensity, log_weight, options)
    slices = len(geometry.rotation)  # type: ignore[union-attr]
    image, loss = np.empty((slices, *geometry.shape), np.float32), np.empty(slices)
    total, pose = np.empty((len(field.table), 11), np.float32), np.empty((slices, 6))
    gain = np.ones(slices) if acquired.gain is None else acquired.gain
    splat.step(
        *geometry.arrays(),  # type: ignore[union-attr]
        field.arrays(),
        options.cut**2,
        np.float32(options.eps),
        options.mass_factor,
        rows.lanes(),
        np.ascontiguousarray(acquired.values, np.float32),
        np.ascontiguousarray(acquired.weight, np.float32),
        np.asarray(gain, np.float32),
        np.float32(acquired.delta),
        image,
        loss,
        total,
        pose,
    )
    return Step(loss, image, field.gradients(total, options), pose)


def image_gradient(
    mean: Array,
    log_scale: Array,
    quaternion: Array,
    intensity: Array,
    log_weight: Array,
    geometry: "SliceGeometry | DeviceGeometry",
    rendered: Sequence[Array],
    options: RenderOptions = DEFAULT,
    lists: "list[SlicePlan] | None" = None,
) -> Array:
    """Compute the derivative of the rendered slices with respect to the positions of the pixels.

    Parameters
    ----------
    mean ... options, lists
        As for :func:`render`.
    rendered : tuple of ndarray
        Images from :func:`render` for the same arguments.

    Returns
    -------
    ndarray, (S, X, Y, 3), float32
        dI/dX per mm along row, column and normal of the slice. The PSF is held fixed.
    """
    if _is_away(mean, options):
        field: Any = _moved((mean, log_scale, quaternion, intensity, log_weight), options)
        return backend.to_host(image_gradient(*field, geometry, _moved(rendered, options), options, lists))  # type: ignore[call-arg]
    if twin := _cuda(mean):
        return twin.image_gradient(
            mean, log_scale, quaternion, intensity, log_weight, geometry, rendered, options, lists
        )
    field = PackedField.pack(mean, log_scale, quaternion, intensity, log_weight, options)
    out = np.empty((*rendered[0].shape, 3), np.float32)
    splat.image_gradient(
        *geometry.arrays(),  # type: ignore[union-attr]
        field.arrays(),
        options.cut**2,
        options.mass_factor,
        rows.lanes(),
        *rendered,
        out,
    )
    return out


def pose_normal_equations(
    geometry: "SliceGeometry | DeviceGeometry", gradient: Array, residual: Array, weight: Array, gain: Array
) -> tuple[Array, Array]:
    """Build the Gauss-Newton system of the pose of every slice.

    See :func:`gsbids.kernels.cpu.splat.pose_normal_equations`.

    Parameters
    ----------
    gradient : ndarray, (S, X, Y, 3)
        Gradient from :func:`image_gradient`.
    residual, weight : ndarray, (S, X, Y)
        Acquired minus simulated, and the weight of each pixel.
    gain : ndarray, (S,)

    Returns
    -------
    matrix, vector : ndarray, (S, 6, 6), (S, 6), float64
    """
    if twin := _cuda(residual):
        return twin.pose_normal_equations(geometry, gradient, residual, weight, gain)
    slices = len(residual)
    matrix, vector = np.empty((slices, 6, 6)), np.empty((slices, 6))
    _, _, _, spacing, centre, _ = geometry.arrays()  # type: ignore[union-attr]
    splat.pose_normal_equations(
        spacing, centre, gradient, residual, weight, np.asarray(gain, np.float64), matrix, vector
    )
    return matrix, vector


class SliceRender(torch.autograd.Function):
    """Slices of a field with gradients: ``SliceRender.apply(*field, omega, tau, geometry, options, lists=None)``.

    ``omega`` and ``tau`` (S, 3) are tangents of the poses in the slice frame (``R exp([omega]x)``, ``t + R tau``)
    and must be 0: fold every update into the geometry. They are there for their gradients.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        """Render the slices, and keep what the backward pass needs."""
        cuda = _cuda(inputs[0])
        ctx.twin = cuda.SliceRenderCuda if cuda else SliceRenderCpu
        return ctx.twin.forward(ctx, *(inputs if cuda else inputs[:9]))  # the CPU keeps no lists

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients with respect to field and poses."""
        return *ctx.twin.backward(ctx, grad), None


class SliceRenderCpu(torch.autograd.Function):
    """The operation :class:`SliceRender` on the CPU kernels."""

    @staticmethod
    def forward(
        ctx: Any,
        mean: torch.Tensor,
        log_scale: torch.Tensor,
        quaternion: torch.Tensor,
        intensity: torch.Tensor,
        log_weight: torch.Tensor,
        omega: torch.Tensor,
        tau: torch.Tensor,
        geometry: SliceGeometry,
        options: RenderOptions,
    ) -> torch.Tensor:
        """Render the slices, and keep what the backward pass needs."""
        field = PackedField.pack(mean, log_scale, quaternion, intensity, log_weight, options)
        image: Any = np.empty((len(geometry.rotation), *geometry.shape), np.float32)
        weight = np.empty_like(image)
        splat.forward(
            *geometry.arrays(),
            field.arrays(),
            options.cut**2,
            np.float32(options.eps),
            options.mass_factor,
            rows.lanes(),
            image,
            weight,
        )
        ctx.problem = (field, geometry, options)
        image = torch.from_numpy(image)
        ctx.save_for_backward(image, torch.from_numpy(weight))
        return image

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients with respect to field and poses."""
        field, geometry, options = ctx.problem
        image, weight = (a.detach().numpy() for a in ctx.saved_tensors)
        total = np.empty((len(field.table), 11), np.float32)
        pose: Any = np.empty((len(geometry.rotation), 6))
        splat.backward(
            *geometry.arrays(),
            field.arrays(),
            options.cut**2,
            options.mass_factor,
            rows.lanes(),
            np.ascontiguousarray(grad, np.float32),
            image,
            weight,
            total,
            pose,
        )
        pose = torch.from_numpy(pose.astype(np.float32))
        gradients = (torch.from_numpy(a) for a in field.gradients(total, options))
        return *gradients, pose[:, :3], pose[:, 3:], None, None


def render_grid(
    mean: Array,
    log_scale: Array,
    quaternion: Array,
    intensity: Array,
    log_weight: Array,
    geometry: "GridGeometry | DeviceGrid",
    options: RenderOptions = DEFAULT,
    lists: "list[BrickList] | None" = None,
) -> tuple[Array, Array]:
    """Render a field on a grid without gradients.

    As :func:`gsbids.kernels.cpu.grid_ops.render_grid`, with its formula. ``lists``: from
    :func:`gsbids.kernels.cuda.grid_ops.plan_grid`, on a GPU only. Returns image and weight (P, X, Y).
    """
    if _is_away(mean, options):
        field: Any = _moved((mean, log_scale, quaternion, intensity, log_weight), options)
        return backend.to_host(render_grid(*field, geometry, options, lists))  # type: ignore[call-arg]
    if twin := _cuda(mean, "grid_ops"):
        return twin.render_grid(mean, log_scale, quaternion, intensity, log_weight, geometry, options, lists)
    return grid_ops.render_grid(mean, log_scale, quaternion, intensity, log_weight, geometry, options)  # type: ignore[arg-type, return-value]


class GridRender(torch.autograd.Function):
    """The operation :func:`render_grid` with gradients.

    ``GridRender.apply(*field, geometry, options, lists=None)`` gives I.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        """Render the field on the grid, and keep what the backward pass needs."""
        cuda = _cuda(inputs[0], "grid_ops")
        ctx.twin = cuda.GridRenderCuda if cuda else grid_ops.GridRender
        return ctx.twin.forward(ctx, *(inputs if cuda else inputs[:7]))

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients with respect to the field."""
        return *ctx.twin.backward(ctx, grad), None
