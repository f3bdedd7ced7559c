# SPDX-License-Identifier: Apache-2.0
"""The renderer as torch operations on tensors of a GPU; the twin of :mod:`gsbids.kernels.ops`, which calls it.

Same functions, same formulas; fields and images are tensors of the device, geometries are those of ``ops`` or
:class:`gsbids.kernels.cuda.plan.DeviceGeometry`. With the simulator the tensors are those of the CPU.

Everything runs over ranges of slices whose lists fit into the memory that is free. ``lists``, from :func:`plan`, are
lists that were made before and still hold; with them nothing waits for the device, so that the work may be captured
in a CUDA graph, and no parameter is looked at for NaN: that is done where lists are made.
"""

import torch

from gsbids.kernels.cuda import adjoint as adjoint_cuda
from gsbids.kernels.cuda import plan as plan_cuda
from gsbids.kernels.cuda import runtime
from gsbids.kernels.cuda import splat as splat_cuda
from gsbids.kernels.cuda.formulas import TILE
from gsbids.kernels.cuda.plan import DeviceGeometry, SlicePlan
from gsbids.kernels.cuda.splat import THREADS
from gsbids.kernels.problem import DEFAULT, Step


def on_device(geometry, target: torch.device) -> DeviceGeometry:
    """The geometry on the device, copied there if it is not there yet."""
    runtime.check_device(target)
    return geometry if isinstance(geometry, DeviceGeometry) else DeviceGeometry.pack(geometry, target)


def plan(field, geometry, options=DEFAULT, margin: float = 0.0) -> list[SlicePlan] | None:
    """Lists of pairs and tiles for several renderings; see :class:`gsbids.kernels.cuda.plan.SlicePlan`.

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

    def make(available):
        counts = plan_cuda.count_pairs(gauss, geometry, cut)
        sizes = counts.sum(1).tolist()
        ranges = runtime.chunks(sizes, plan_cuda.BYTES_PER_PAIR, available)
        if len(ranges) > 1 and 2 * sum(sizes) * plan_cuda.BYTES_KEPT > available:
            return None
        return [plan_cuda.make_plan(gauss, geometry.slices(a, b), cut, counts[a:b], a) for a, b in ranges]

    return runtime.with_smaller_chunks(make, gauss.device)


def _parts(gauss, geometry, options, kept, available):
    """Ranges of slices that fit into ``available`` bytes, with their lists: the kept ones, or made in turn."""
    if kept is not None:
        for lists in kept:
            yield geometry.slices(lists.start, lists.stop), lists
        return
    counts = plan_cuda.count_pairs(gauss, geometry, options.cut)
    for start, stop in runtime.chunks(counts.sum(1).tolist(), plan_cuda.BYTES_PER_PAIR, available):
        part = geometry.slices(start, stop)
        yield part, plan_cuda.make_plan(gauss, part, options.cut, counts[start:stop], start)


def _fitting(work, gauss, geometry, options, kept, *more):
    """``work(..., parts)``, with smaller parts when memory runs out; kept lists were made to fit."""
    if kept is not None:
        return work(gauss, geometry, options, _parts(gauss, geometry, options, kept, 0), *more)
    return runtime.with_smaller_chunks(
        lambda available: work(gauss, geometry, options, _parts(gauss, geometry, options, None, available), *more),
        gauss.device,
    )


def _grid(geometry, lists):
    return lists.tiles[1], lists.tiles[0], len(geometry)


def _threads(count):
    return runtime.blocks(count, THREADS), THREADS


def _forward(gauss, geometry, options, parts):
    """Image and weight (S, X, Y), and the lists if one range was enough."""
    image = gauss.new_empty((len(geometry), *geometry.shape))
    weight = torch.empty_like(image)
    lists = None
    for part, lists in parts:
        span = slice(lists.start, lists.stop)
        record, _ = plan_cuda.project(gauss, part, lists.pairs, options.cut, options.mass_factor)
        runtime.launch(
            splat_cuda.render_tiles,
            _grid(part, lists),
            splat_cuda.WARP,
            record,
            lists.tile_start,
            lists.tile_list,
            part.extent,
            options.eps,
            image[span],
            weight[span],
        )
    whole = lists is not None and lists.stop - lists.start == len(geometry)
    return image, weight, [lists] if whole else None


def render(mean, log_scale, quaternion, intensity, log_weight, geometry, options=DEFAULT, lists=None):
    """Slices without gradients; see :func:`gsbids.kernels.ops.render`.

    Parameters
    ----------
    mean, log_scale, quaternion, intensity, log_weight : tensor
    geometry : SliceGeometry or DeviceGeometry
    options : RenderOptions
    lists : list of SlicePlan, optional
        From :func:`plan`, to be used again; made here without.

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
    return _fitting(_forward, gauss, geometry, options, lists)[:2]


def step_slices(mean, log_scale, quaternion, intensity, log_weight, geometry, acquired, options=DEFAULT, lists=None):
    """Forward, Charbonnier loss and all gradients; see :func:`gsbids.kernels.ops.step_slices`.

    One kernel renders, compares and makes the cotangents of the backward; losses are summed over the tiles of a
    slice in float64. Parameters as for :func:`render`, and ``acquired`` (of arrays or tensors).

    Returns
    -------
    Step
        Of tensors.
    """
    geometry = on_device(geometry, mean.device)
    gauss = plan_cuda.pack_field(mean, log_scale, quaternion, intensity, log_weight, options.mass_factor)
    image, loss, total, pose = _fitting(_step, gauss, geometry, options, lists, _acquired(acquired, geometry))
    return Step(loss, image, field_gradients(log_scale, quaternion, total, options.mass_factor), pose.double())


def _acquired(acquired, geometry):
    """Gain, values and weight on the device, and delta."""
    target = geometry.frame.device
    gain = torch.ones(len(geometry), device=target) if acquired.gain is None else acquired.gain
    return (
        acquired.delta,
        *(
            torch.as_tensor(a, dtype=torch.float32, device=target).contiguous()
            for a in (gain, acquired.values, acquired.weight)
        ),
    )


def _step(gauss, geometry, options, parts, acquired):
    """Image, loss (S,), and gradients (J, 11) and (S, 6)."""
    delta, gain, values, importance = acquired
    image = gauss.new_empty((len(geometry), *geometry.shape))
    loss = gauss.new_zeros(len(geometry), dtype=torch.float64)
    grad, pose = gauss.new_zeros((len(gauss), adjoint_cuda.GRADIENTS)), gauss.new_zeros((len(geometry), 6))
    for part, lists in parts:
        span = slice(lists.start, lists.stop)
        record, box = plan_cuda.project(gauss, part, lists.pairs, options.cut, options.mass_factor)
        h = torch.empty_like(image[span])
        k_image, lost = torch.empty_like(h), gauss.new_empty((len(part), lists.tiles[0] * lists.tiles[1]))
        runtime.launch(
            splat_cuda.step_tiles,
            _grid(part, lists),
            splat_cuda.WARP,
            record,
            lists.tile_start,
            lists.tile_list,
            part.extent,
            options.eps,
            delta,
            gain[span],
            values[span],
            importance[span],
            image[span],
            h,
            k_image,
            lost,
        )
        loss[span] = lost.sum(1, dtype=torch.float64)
        _gather(gauss, part, lists, options, (record, box), (h, k_image), grad, pose)
    return image, loss, grad, pose


def image_gradient(mean, log_scale, quaternion, intensity, log_weight, geometry, rendered, options=DEFAULT, lists=None):
    """dI/dX (S, X, Y, 3) per mm; see :func:`gsbids.kernels.ops.image_gradient`."""
    geometry = on_device(geometry, mean.device)
    gauss = plan_cuda.pack_field(mean, log_scale, quaternion, intensity, log_weight, options.mass_factor)
    return _fitting(_image_gradient, gauss, geometry, options, lists, *(a.contiguous() for a in rendered))


def _image_gradient(gauss, geometry, options, parts, image, weight):
    out = gauss.new_empty((*image.shape, 3))
    for part, lists in parts:
        span = slice(lists.start, lists.stop)
        record, _ = plan_cuda.project(gauss, part, lists.pairs, options.cut, options.mass_factor)
        depth = gauss.new_empty((len(lists.pairs), 4))
        runtime.launch(adjoint_cuda.project_depth, *_threads(len(lists.pairs)), part.frame, gauss, lists.pairs, depth)
        runtime.launch(
            adjoint_cuda.image_gradient_tiles,
            _grid(part, lists),
            TILE * TILE,
            part.frame,
            record,
            depth,
            lists.tile_start,
            lists.tile_list,
            part.extent,
            image[span],
            weight[span],
            out[span],
        )
    return out


def pose_normal_equations(geometry, gradient, residual, weight, gain):
    """Gauss-Newton systems (S, 6, 6), (S, 6) of the poses, float64, summed in float32.

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


def _gather(gauss, part, lists, options, projected, cotangents, grad, pose):
    """Add what the slices of a part give to ``grad`` (J, 11), and fill their rows of ``pose`` (S, 6)."""
    n, (record, box), (h, k_image) = len(lists.pairs), projected, cotangents
    moment = gauss.new_empty((n, adjoint_cuda.MOMENTS))
    runtime.launch(
        adjoint_cuda.moments,
        runtime.blocks(n, adjoint_cuda.PAIRS),
        adjoint_cuda.PAIRS * adjoint_cuda.WARP,
        record,
        box,
        lists.pairs,
        *part.shape,
        h.reshape(-1),
        k_image.reshape(-1),
        moment,
    )
    given = gauss.new_empty((n, adjoint_cuda.PARTS))
    runtime.launch(
        adjoint_cuda.chain_pairs, *_threads(n), part.frame, gauss, lists.pairs, moment, options.mass_factor, given
    )
    runtime.launch(
        adjoint_cuda.reduce_gaussians,
        *_threads(grad.numel()),
        given,
        lists.list_start,
        lists.pair_list,
        grad,
        lists.start > 0,
    )
    runtime.launch(
        adjoint_cuda.reduce_poses,
        len(part),
        adjoint_cuda.POSE_BLOCK,
        given,
        lists.slice_start,
        pose[lists.start : lists.stop],
    )


def _backward(gauss, geometry, options, parts, h, k_image):
    """Gradients with respect to Gaussians (J, 11) and poses (S, 6)."""
    grad, pose = gauss.new_zeros((len(gauss), adjoint_cuda.GRADIENTS)), gauss.new_zeros((len(geometry), 6))
    for part, lists in parts:
        span = slice(lists.start, lists.stop)
        projected = plan_cuda.project(gauss, part, lists.pairs, options.cut, options.mass_factor)
        _gather(gauss, part, lists, options, projected, (h[span], k_image[span]), grad, pose)
    return grad, pose


def gradients(gauss, geometry: DeviceGeometry, options, lists, h, k_image):
    """Gradients with respect to the 11 numbers of each Gaussian, (J, 11), and to the poses, (S, 6).

    ``gauss`` (J, 12) from :func:`gsbids.kernels.cuda.plan.pack_field`; ``h = g / D``, 0 where nothing is rendered,
    and ``k = h I``, both (S, X, Y); columns as in :func:`gsbids.kernels.cpu.splat.backward`.
    """
    return _fitting(_backward, gauss, geometry, options, lists, h, k_image)


def field_gradients(log_scale, quaternion, total, mass_factor: bool) -> tuple[torch.Tensor, ...]:
    """Gradients of the five parameters of the field from the 11 numbers (J, 11) of each Gaussian."""
    log_scale, quaternion = (a.detach().float().contiguous() for a in (log_scale, quaternion))
    scale, turn = torch.empty_like(log_scale), torch.empty_like(quaternion)
    runtime.launch(
        adjoint_cuda.unpack_gradient, *_threads(len(total)), log_scale, quaternion, total, mass_factor, scale, turn
    )
    return total[:, :3].contiguous(), scale, turn, total[:, 9].contiguous(), total[:, 10].contiguous()


class SliceRenderCuda(torch.autograd.Function):
    """Slices with gradients, as :class:`gsbids.kernels.ops.SliceRender`, on the device.

    ``SliceRenderCuda.apply(*field, omega, tau, geometry, options, lists)``; ``lists`` is None or from :func:`plan`.
    """

    @staticmethod
    def forward(ctx, mean, log_scale, quaternion, intensity, log_weight, omega, tau, geometry, options, lists=None):
        geometry = on_device(geometry, mean.device)
        gauss = plan_cuda.pack_field(mean, log_scale, quaternion, intensity, log_weight, options.mass_factor)
        image, weight, lists = _fitting(_forward, gauss, geometry, options, lists)
        ctx.problem = (geometry, options, lists)
        ctx.save_for_backward(log_scale, quaternion, gauss, image, weight)
        return image

    @staticmethod
    def backward(ctx, grad):
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
