# SPDX-License-Identifier: Apache-2.0
"""The renderer as torch operations on tensors of a GPU; the twin of :mod:`gsbids.kernels.ops`, which calls it.

Same functions, same formulas; fields and images are tensors of the device, geometries are those of ``ops`` or
:class:`gsbids.kernels.cuda.plan.DeviceGeometry`. With the simulator the tensors are those of the CPU.

The work (:mod:`gsbids.kernels.cuda.passes`) runs over ranges of slices that fit into the memory. ``lists``, from
:func:`plan`, are lists that were made before and still hold; with them nothing waits for the device, so that the work
may be captured in a CUDA graph, and no parameter is looked at for NaN: that is done where lists are made.
"""

from collections.abc import Sequence
from typing import Any

import torch

from gsbids.kernels.cuda import adjoint as adjoint_cuda
from gsbids.kernels.cuda import passes, runtime
from gsbids.kernels.cuda import plan as plan_cuda
from gsbids.kernels.cuda.passes import field_gradients
from gsbids.kernels.cuda.plan import DeviceGeometry, SlicePlan
from gsbids.kernels.problem import DEFAULT, Acquired, Array, FieldArrays, RenderOptions, SliceGeometry, Step


def on_device(geometry: SliceGeometry | DeviceGeometry, target: torch.device) -> DeviceGeometry:
    """Copy the geometry to the device if it is not there yet."""
    runtime.check_device(target)
    return geometry if isinstance(geometry, DeviceGeometry) else DeviceGeometry.pack(geometry, target)


def plan(
    field: FieldArrays,
    geometry: SliceGeometry | DeviceGeometry,
    options: RenderOptions = DEFAULT,
    margin: float = 0.0,
) -> list[SlicePlan] | None:
    """List pairs and tiles for several renderings; see :class:`gsbids.kernels.cuda.plan.SlicePlan`.

    Parameters
    ----------
    field : tuple of tensor
        mean, log_scale, quaternion, intensity, log_weight.
    geometry : SliceGeometry or DeviceGeometry
    options : RenderOptions
    margin : float
        Standard deviations beyond the cut that the lists cover.

    Returns
    -------
    list of SlicePlan, or None
        One for each range of slices; None, which every function takes for "make them in turn", if they do not fit
        into the memory all at once.

    Raises
    ------
    gsbids.errors.DeviceError
    FloatingPointError
        As for :func:`render`.
    """
    geometry = on_device(geometry, field[0].device)
    gauss = plan_cuda.pack_field(*field, options.mass_factor)
    cut = options.cut + margin

    def make(available: int) -> list[SlicePlan] | None:
        counts = plan_cuda.count_pairs(gauss, geometry, cut)
        sizes = counts.sum(1).tolist()
        ranges = runtime.chunks(sizes, plan_cuda.BYTES_PER_PAIR, available)
        if len(ranges) > 1 and 2 * sum(sizes) * plan_cuda.BYTES_KEPT > available:
            return None
        return [plan_cuda.make_plan(gauss, geometry.slices(a, b), cut, counts[a:b], a) for a, b in ranges]

    return runtime.with_smaller_chunks(make, gauss.device)


def render(
    mean: torch.Tensor,
    log_scale: torch.Tensor,
    quaternion: torch.Tensor,
    intensity: torch.Tensor,
    log_weight: torch.Tensor,
    geometry: SliceGeometry | DeviceGeometry,
    options: RenderOptions = DEFAULT,
    lists: list[SlicePlan] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Render slices without gradients; see :func:`gsbids.kernels.ops.render`.

    Parameters
    ----------
    mean, log_scale, quaternion, intensity, log_weight : tensor
    geometry : SliceGeometry or DeviceGeometry
    options : RenderOptions
    lists : list of SlicePlan, optional
        Lists from :func:`plan`, to be used again; made here if left out.

    Returns
    -------
    image, weight : tensor, (S, X, Y)

    Raises
    ------
    gsbids.errors.DeviceError
        The device cannot be used, or one slice alone does not fit into its memory.
    FloatingPointError
        A parameter is not finite (looked at when lists are made).
    """
    geometry = on_device(geometry, mean.device)
    gauss = plan_cuda.pack_field(mean, log_scale, quaternion, intensity, log_weight, options.mass_factor)
    return passes.fitting(passes.forward, gauss, geometry, options, lists)[:2]


def step_slices(
    mean: torch.Tensor,
    log_scale: torch.Tensor,
    quaternion: torch.Tensor,
    intensity: torch.Tensor,
    log_weight: torch.Tensor,
    geometry: SliceGeometry | DeviceGeometry,
    acquired: Acquired,
    options: RenderOptions = DEFAULT,
    lists: list[SlicePlan] | None = None,
) -> Step:
    """Compute forward, Charbonnier loss and all gradients; see :func:`gsbids.kernels.ops.step_slices`.

    One kernel renders, compares and makes the cotangents of the backward; losses are summed over the tiles of a
    slice in float64. Parameters as for :func:`render`, and ``acquired`` (of arrays or tensors).

    Returns
    -------
    Step
        Step that holds tensors.
    """
    geometry = on_device(geometry, mean.device)
    gauss = plan_cuda.pack_field(mean, log_scale, quaternion, intensity, log_weight, options.mass_factor)
    image, loss, total, pose = passes.fitting(
        passes.step, gauss, geometry, options, lists, _acquired(acquired, geometry)
    )
    return Step(loss, image, field_gradients(log_scale, quaternion, total, options.mass_factor), pose.double())


def _acquired(acquired: Acquired, geometry: DeviceGeometry) -> tuple:
    """Return delta, and gain, values and weight on the device."""
    target = geometry.frame.device
    gain = torch.ones(len(geometry), device=target) if acquired.gain is None else acquired.gain
    return (
        acquired.delta,
        *(
            torch.as_tensor(a, dtype=torch.float32, device=target).contiguous()
            for a in (gain, acquired.values, acquired.weight)
        ),
    )


def image_gradient(
    mean: torch.Tensor,
    log_scale: torch.Tensor,
    quaternion: torch.Tensor,
    intensity: torch.Tensor,
    log_weight: torch.Tensor,
    geometry: SliceGeometry | DeviceGeometry,
    rendered: Sequence[torch.Tensor],
    options: RenderOptions = DEFAULT,
    lists: list[SlicePlan] | None = None,
) -> torch.Tensor:
    """Compute dI/dX (S, X, Y, 3) per mm; see :func:`gsbids.kernels.ops.image_gradient`."""
    geometry = on_device(geometry, mean.device)
    gauss = plan_cuda.pack_field(mean, log_scale, quaternion, intensity, log_weight, options.mass_factor)
    return passes.fitting(passes.image_gradient, gauss, geometry, options, lists, *(a.contiguous() for a in rendered))


def pose_normal_equations(
    geometry: SliceGeometry | DeviceGeometry,
    gradient: torch.Tensor,
    residual: torch.Tensor,
    weight: torch.Tensor,
    gain: Array,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Build the Gauss-Newton systems (S, 6, 6), (S, 6) of the poses, float64, summed in float32.

    See :func:`gsbids.kernels.cpu.splat.pose_normal_equations`; ``gain`` may be an array, the others are tensors.
    """
    geometry = on_device(geometry, residual.device)
    gain = torch.as_tensor(gain, device=residual.device)
    upper = torch.triu_indices(6, 6, device=residual.device)
    right = torch.stack([torch.arange(6, device=residual.device), torch.full((6,), 6, device=residual.device)])
    entry = torch.cat([upper, right], 1).T.to(torch.int32).contiguous()
    sums = residual.new_empty((len(residual), adjoint_cuda.NORMAL), dtype=torch.float32)
    runtime.launch(
        adjoint_cuda.normal_equations,
        len(residual),
        adjoint_cuda.NORMAL_BLOCK,
        geometry.frame,
        *(a.float().contiguous() for a in (gradient, residual, weight, gain)),
        entry,
        sums,
    )
    matrix = sums.new_empty((len(sums), 6, 6), dtype=torch.float64)
    matrix[:, upper[0], upper[1]] = sums[:, :21].double()
    matrix[:, upper[1], upper[0]] = sums[:, :21].double()
    return matrix, sums[:, 21:].double()


def gradients(
    gauss: torch.Tensor,
    geometry: DeviceGeometry,
    options: RenderOptions,
    lists: list[SlicePlan] | None,
    h: torch.Tensor,
    k_image: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the gradients with respect to the 11 numbers of each Gaussian, (J, 11), and to the poses, (S, 6).

    ``gauss`` (J, 12) from :func:`gsbids.kernels.cuda.plan.pack_field`; ``h = g / D``, 0 where nothing is rendered,
    and ``k = h I``, both (S, X, Y); columns as in :func:`gsbids.kernels.cpu.splat.backward`.
    """
    return passes.fitting(passes.backward, gauss, geometry, options, lists, h, k_image)


class SliceRenderCuda(torch.autograd.Function):
    """Slices with gradients, as :class:`gsbids.kernels.ops.SliceRender`, on the device.

    ``SliceRenderCuda.apply(*field, omega, tau, geometry, options, lists)``; ``lists`` is None or from :func:`plan`.
    """

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
        geometry: SliceGeometry | DeviceGeometry,
        options: RenderOptions,
        lists: list[SlicePlan] | None = None,
    ) -> torch.Tensor:
        """Render the slices, and keep what the backward pass needs."""
        geometry = on_device(geometry, mean.device)
        gauss = plan_cuda.pack_field(mean, log_scale, quaternion, intensity, log_weight, options.mass_factor)
        image, weight, lists = passes.fitting(passes.forward, gauss, geometry, options, lists)
        ctx.problem = (geometry, options, lists)
        ctx.save_for_backward(log_scale, quaternion, gauss, image, weight)
        return image

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients with respect to field and poses."""
        geometry, options, lists = ctx.problem
        log_scale, quaternion, gauss, image, weight = ctx.saved_tensors
        h = torch.where(geometry.inside, grad / weight, 0.0).contiguous()
        total, pose = gradients(gauss, geometry, options, lists, h, h * image)
        return (
            *field_gradients(log_scale, quaternion, total, options.mass_factor),
            pose[:, :3],
            pose[:, 3:],
            None,
            None,
            None,
        )
