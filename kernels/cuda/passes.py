# SPDX-License-Identifier: Apache-2.0
"""Forward and backward passes of the GPU renderer over ranges of slices whose lists fit into the free memory."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch

from gsbids.kernels.cuda import adjoint as adjoint_cuda
from gsbids.kernels.cuda import plan as plan_cuda
from gsbids.kernels.cuda import runtime
from gsbids.kernels.cuda import splat as splat_cuda
from gsbids.kernels.cuda.formulas import TILE
from gsbids.kernels.cuda.plan import DeviceGeometry, SlicePlan
from gsbids.kernels.cuda.splat import THREADS
from gsbids.kernels.problem import RenderOptions


def _parts(
    gauss: torch.Tensor, geometry: DeviceGeometry, options: RenderOptions, kept: list[SlicePlan] | None, available: int
) -> Iterator[tuple[DeviceGeometry, SlicePlan]]:
    """Yield ranges of slices that fit into ``available`` bytes, with their lists: the kept ones, or new ones."""
    if kept is not None:
        for lists in kept:
            yield geometry.slices(lists.start, lists.stop), lists
        return
    counts = plan_cuda.count_pairs(gauss, geometry, options.cut)
    for start, stop in runtime.chunks(counts.sum(1).tolist(), plan_cuda.BYTES_PER_PAIR, available):
        part = geometry.slices(start, stop)
        yield part, plan_cuda.make_plan(gauss, part, options.cut, counts[start:stop], start)


def fitting(
    work: Callable[..., Any],
    gauss: torch.Tensor,
    geometry: DeviceGeometry,
    options: RenderOptions,
    kept: list[SlicePlan] | None,
    *more: Any,
) -> Any:
    """Run ``work(..., parts)``, with smaller parts when memory runs out; kept lists were made to fit."""
    if kept is not None:
        return work(gauss, geometry, options, _parts(gauss, geometry, options, kept, 0), *more)
    return runtime.with_smaller_chunks(
        lambda available: work(gauss, geometry, options, _parts(gauss, geometry, options, None, available), *more),
        gauss.device,
    )


def _grid(geometry: DeviceGeometry, lists: SlicePlan) -> tuple[int, int, int]:
    return lists.tiles[1], lists.tiles[0], len(geometry)


def _threads(count: int) -> tuple[int, int]:
    return runtime.blocks(count, THREADS), THREADS


def forward(
    gauss: torch.Tensor,
    geometry: DeviceGeometry,
    options: RenderOptions,
    parts: Iterable[tuple[DeviceGeometry, SlicePlan]],
) -> tuple[torch.Tensor, torch.Tensor, list[SlicePlan] | None]:
    """Return image and weight (S, X, Y), and the lists if one range was enough."""
    image = gauss.new_empty((len(geometry), *geometry.shape))
    weight = torch.empty_like(image)
    lists: Any = None
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


def step(
    gauss: torch.Tensor,
    geometry: DeviceGeometry,
    options: RenderOptions,
    parts: Iterable[tuple[DeviceGeometry, SlicePlan]],
    acquired: tuple,
) -> tuple[torch.Tensor, ...]:
    """Return image, loss (S,), and gradients (J, 11) and (S, 6)."""
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


def image_gradient(
    gauss: torch.Tensor,
    geometry: DeviceGeometry,
    options: RenderOptions,
    parts: Iterable[tuple[DeviceGeometry, SlicePlan]],
    image: torch.Tensor,
    weight: torch.Tensor,
) -> torch.Tensor:
    """Return dI/dX (S, X, Y, 3) per mm from the rendered image and weight."""
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


def _gather(
    gauss: torch.Tensor,
    part: DeviceGeometry,
    lists: SlicePlan,
    options: RenderOptions,
    projected: tuple[torch.Tensor, torch.Tensor],
    cotangents: tuple[torch.Tensor, torch.Tensor],
    grad: torch.Tensor,
    pose: torch.Tensor,
) -> None:
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


def backward(
    gauss: torch.Tensor,
    geometry: DeviceGeometry,
    options: RenderOptions,
    parts: Iterable[tuple[DeviceGeometry, SlicePlan]],
    h: torch.Tensor,
    k_image: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients with respect to Gaussians (J, 11) and poses (S, 6)."""
    grad, pose = gauss.new_zeros((len(gauss), adjoint_cuda.GRADIENTS)), gauss.new_zeros((len(geometry), 6))
    for part, lists in parts:
        span = slice(lists.start, lists.stop)
        projected = plan_cuda.project(gauss, part, lists.pairs, options.cut, options.mass_factor)
        _gather(gauss, part, lists, options, projected, (h[span], k_image[span]), grad, pose)
    return grad, pose


def field_gradients(
    log_scale: torch.Tensor, quaternion: torch.Tensor, total: torch.Tensor, mass_factor: bool
) -> tuple[torch.Tensor, ...]:
    """Compute the gradients of the five parameters of the field from the 11 numbers (J, 11) of each Gaussian."""
    log_scale, quaternion = (a.detach().float().contiguous() for a in (log_scale, quaternion))
    scale, turn = torch.empty_like(log_scale), torch.empty_like(quaternion)
    runtime.launch(
        adjoint_cuda.unpack_gradient, *_threads(len(total)), log_scale, quaternion, total, mass_factor, scale, turn
    )
    return total[:, :3].contiguous(), scale, turn, total[:, 9].contiguous(), total[:, 10].contiguous()
