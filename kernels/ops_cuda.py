# SPDX-License-Identifier: Apache-2.0
"""The renderer as torch operations on tensors of a GPU; the twin of :mod:`gsbids.kernels.ops`.

Same functions, same formulas; fields and images are tensors of the device, geometries are those of ``ops`` or
:class:`gsbids.kernels.plan_cuda.DeviceGeometry`. With the simulator the tensors are those of the CPU.
"""

import torch

from gsbids.kernels import adjoint_cuda, device, plan_cuda, splat_cuda
from gsbids.kernels.plan_cuda import DeviceGeometry, SlicePlan
from gsbids.kernels.splat_device import TILE


def on_device(geometry, target: torch.device) -> DeviceGeometry:
    """The geometry on the device, copied there if it is not there yet."""
    device.check_device(target)
    return geometry if isinstance(geometry, DeviceGeometry) else DeviceGeometry.pack(geometry, target)


def plan(field, geometry, options, margin: float = 0.0) -> SlicePlan:
    """Lists of pairs and tiles for several renderings; see :class:`gsbids.kernels.plan_cuda.SlicePlan`.

    Parameters
    ----------
    field : tuple of tensor
        mean, log_scale, quaternion, intensity, log_weight.
    geometry : SliceGeometry or DeviceGeometry
    options : RenderOptions
    margin : float
        Standard deviations beyond the cut that the lists cover.
    """
    geometry = on_device(geometry, field[0].device)
    gauss = plan_cuda.pack_field(*field, options.mass_factor)
    cut = options.cut + margin
    return plan_cuda.make_plan(gauss, geometry, cut, plan_cuda.count_pairs(gauss, geometry, cut))


def _parts(gauss, geometry, options, kept, available):
    """Ranges of slices that fit into ``available`` bytes, each with its plan: the kept one, or made in turn."""
    if kept is not None:
        yield 0, len(geometry), geometry, kept
        return
    counts = plan_cuda.count_pairs(gauss, geometry, options.cut)
    sizes = counts.sum(1).tolist()
    for start, stop in device.chunks(sizes, plan_cuda.BYTES_PER_PAIR, available):
        part = geometry.slices(start, stop)
        yield start, stop, part, plan_cuda.make_plan(gauss, part, options.cut, counts[start:stop])


def _grid(geometry, lists):
    return lists.tiles[1], lists.tiles[0], len(geometry)


def _fitting(work, gauss, geometry, options, kept, *more):
    """``work(..., parts)``, with smaller parts when memory runs out; a kept plan is one part, and no question."""
    if kept is not None:
        return work(gauss, geometry, options, _parts(gauss, geometry, options, kept, 0), *more)
    return device.with_smaller_chunks(
        lambda available: work(gauss, geometry, options, _parts(gauss, geometry, options, None, available), *more),
        gauss.device)


def _forward(gauss, geometry, options, parts):
    """Image and weight (S, X, Y), and the plan if one was enough."""
    image = gauss.new_empty((len(geometry), *geometry.shape))
    weight = torch.empty_like(image)
    lists, start, stop = None, 0, 0
    for start, stop, part, lists in parts:
        record, _ = plan_cuda.project(gauss, part, lists.pairs, options.cut, options.mass_factor)
        device.launch(splat_cuda.render_tiles, _grid(part, lists), splat_cuda.WARP, record, lists.tile_start,
                      lists.tile_list, part.extent, options.eps, image[start:stop], weight[start:stop])
    return image, weight, lists if stop - start == len(geometry) else None


def render(mean, log_scale, quaternion, intensity, log_weight, geometry, options, lists=None):
    """Slices without gradients; see :func:`gsbids.kernels.ops.render`.

    Parameters
    ----------
    mean, log_scale, quaternion, intensity, log_weight : tensor
    geometry : SliceGeometry or DeviceGeometry
    options : RenderOptions
    lists : SlicePlan, optional
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


def image_gradient(mean, log_scale, quaternion, intensity, log_weight, geometry, rendered, options, lists=None):
    """dI/dX (S, X, Y, 3) per mm; see :func:`gsbids.kernels.ops.image_gradient`."""
    geometry = on_device(geometry, mean.device)
    gauss = plan_cuda.pack_field(mean, log_scale, quaternion, intensity, log_weight, options.mass_factor)
    return _fitting(_image_gradient, gauss, geometry, options, lists, *(a.contiguous() for a in rendered))


def _image_gradient(gauss, geometry, options, parts, image, weight):
    out = gauss.new_empty((*image.shape, 3))
    for start, stop, part, found in parts:
        record, _ = plan_cuda.project(gauss, part, found.pairs, options.cut, options.mass_factor)
        depth = gauss.new_empty((len(found.pairs), 4))
        device.launch(adjoint_cuda.project_depth, device.blocks(len(found.pairs), splat_cuda.THREADS),
                      splat_cuda.THREADS, part.frame, gauss, found.pairs, depth)
        device.launch(adjoint_cuda.image_gradient_tiles, _grid(part, found), TILE * TILE, part.frame, record, depth,
                      found.tile_start, found.tile_list, part.extent, image[start:stop], weight[start:stop],
                      out[start:stop])
    return out


def pose_normal_equations(geometry, gradient, residual, weight, gain):
    """Gauss-Newton systems (S, 6, 6), (S, 6) of the poses, float64, summed in float32.

    See :func:`gsbids.kernels.splat_cpu.pose_normal_equations`; all arguments but the geometry are tensors.
    """
    geometry = on_device(geometry, residual.device)
    upper = torch.triu_indices(6, 6, device=residual.device)
    right = torch.stack([torch.arange(6, device=residual.device), torch.full((6,), 6, device=residual.device)])
    entry = torch.cat([upper, right], 1).T.to(torch.int32).contiguous()
    sums = residual.new_empty((len(residual), adjoint_cuda.NORMAL), dtype=torch.float32)
    device.launch(adjoint_cuda.normal_equations, len(residual), adjoint_cuda.NORMAL_BLOCK, geometry.frame,
                  *(a.float().contiguous() for a in (gradient, residual, weight, gain)), entry, sums)
    matrix = sums.new_empty((len(sums), 6, 6), dtype=torch.float64)
    matrix[:, upper[0], upper[1]] = sums[:, :21].double()
    matrix[:, upper[1], upper[0]] = sums[:, :21].double()
    return matrix, sums[:, 21:].double()


def _backward(gauss, geometry, options, parts, h, k_image):
    """Gradients with respect to Gaussians (J, 11) and poses (S, 6)."""
    grad = gauss.new_zeros((len(gauss), adjoint_cuda.GRADIENTS))
    pose = gauss.new_zeros((len(geometry), 6))
    for start, stop, part, lists in parts:
        n = len(lists.pairs)
        record, box = plan_cuda.project(gauss, part, lists.pairs, options.cut, options.mass_factor)
        moment = gauss.new_empty((n, adjoint_cuda.MOMENTS))
        device.launch(adjoint_cuda.moments, device.blocks(n, adjoint_cuda.PAIRS),
                      adjoint_cuda.PAIRS * adjoint_cuda.WARP, record, box, lists.pairs, *geometry.shape,
                      h[start:stop].reshape(-1), k_image[start:stop].reshape(-1), moment)
        given = gauss.new_empty((n, adjoint_cuda.PARTS))
        device.launch(adjoint_cuda.chain_pairs, device.blocks(n, splat_cuda.THREADS), splat_cuda.THREADS,
                      part.frame, gauss, lists.pairs, moment, options.mass_factor, given)
        share = torch.empty_like(grad)
        device.launch(adjoint_cuda.reduce_gaussians, device.blocks(share.numel(), splat_cuda.THREADS),
                      splat_cuda.THREADS, given, lists.list_start, lists.pair_list, share)
        grad += share
        device.launch(adjoint_cuda.reduce_poses, len(part), adjoint_cuda.POSE_BLOCK, given, lists.slice_start,
                      pose[start:stop])
    return grad, pose


def gradients(gauss, geometry: DeviceGeometry, options, lists, h, k_image):
    """Gradients with respect to the 11 numbers of each Gaussian, (J, 11), and to the poses, (S, 6).

    ``gauss`` (J, 12) from :func:`gsbids.kernels.plan_cuda.pack_field`; ``h = g / D``, 0 where nothing is rendered,
    and ``k = h I``, both (S, X, Y); columns as in :func:`gsbids.kernels.splat_cpu.backward`.
    """
    return _fitting(_backward, gauss, geometry, options, lists, h, k_image)


class SliceRenderCuda(torch.autograd.Function):
    """Slices with gradients, as :class:`gsbids.kernels.ops.SliceRender`, on the device.

    ``SliceRenderCuda.apply(*field, omega, tau, geometry, options, lists)``; ``lists`` is None or a kept plan.
    """

    @staticmethod
    def forward(ctx, mean, log_scale, quaternion, intensity, log_weight, omega, tau, geometry, options, lists=None):
        geometry = on_device(geometry, mean.device)
        gauss = plan_cuda.pack_field(mean, log_scale, quaternion, intensity, log_weight, options.mass_factor)
        image, weight, lists = _fitting(_forward, gauss, geometry, options, lists)
        ctx.problem = (geometry, options, lists)
        log_scale, quaternion = (a.float().contiguous() for a in (log_scale, quaternion))
        ctx.save_for_backward(log_scale, quaternion, gauss, image, weight)
        return image

    @staticmethod
    def backward(ctx, grad):
        geometry, options, lists = ctx.problem
        log_scale, quaternion, gauss, image, weight = ctx.saved_tensors
        h = torch.where(geometry.inside, grad / weight, 0.0).contiguous()
        total, pose = gradients(gauss, geometry, options, lists, h, h * image)
        scale, turn = torch.empty_like(log_scale), torch.empty_like(quaternion)
        device.launch(adjoint_cuda.unpack_gradient, device.blocks(len(gauss), splat_cuda.THREADS), splat_cuda.THREADS,
                      log_scale, quaternion, total, options.mass_factor, scale, turn)
        return (total[:, :3], scale, turn, total[:, 9], total[:, 10], pose[:, :3], pose[:, 3:], None, None, None)
