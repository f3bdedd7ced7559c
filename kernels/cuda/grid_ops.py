# SPDX-License-Identifier: Apache-2.0
"""The grid renderer on tensors of a GPU, with gradients; the twin of :mod:`gsbids.kernels.cpu.grid_ops`."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from gsbids.errors import DeviceError
from gsbids.kernels.cuda import grid as grid_cuda
from gsbids.kernels.cuda import plan as plan_cuda
from gsbids.kernels.cuda import runtime
from gsbids.kernels.cuda.grid import BRICK
from gsbids.kernels.cuda.passes import field_gradients
from gsbids.kernels.cuda.splat import THREADS
from gsbids.kernels.problem import DEFAULT, FieldArrays, GridGeometry, RenderOptions

BYTES_PER_ENTRY = 64  # of a list of bricks: key and Gaussian, before and after the sort, and its scratch


@dataclass(frozen=True)
class BrickList:
    """Gaussians of each brick of the layers ``first`` to ``last - 1``, in the order of the Gaussians."""

    first: int
    last: int
    start: torch.Tensor
    gaussians: torch.Tensor


def bricks(shape: Sequence[int]) -> tuple[int, ...]:
    """Return the number of bricks along each axis of a grid."""
    return tuple(runtime.blocks(n, BRICK) for n in shape)


@dataclass(frozen=True)
class DeviceGrid:
    """A :class:`gsbids.kernels.problem.GridGeometry` on the device: its shape, and ``frame`` (18,) for the kernels."""

    frame: torch.Tensor
    shape: tuple[int, int, int]


def on_device(geometry: GridGeometry | DeviceGrid, target: torch.device) -> DeviceGrid:
    """Copy the geometry to the device if it is not there yet (a captured graph can copy nothing)."""
    runtime.check_device(target)
    if isinstance(geometry, DeviceGrid):
        return geometry
    parts = (geometry.rotation, geometry.origin, geometry.psf, geometry.spacing)
    frame = np.concatenate([np.ravel(a) for a in parts]).astype(np.float32)
    return DeviceGrid(torch.from_numpy(frame).to(target), tuple(geometry.shape))  # type: ignore[arg-type]


def _project(gauss: torch.Tensor, grid: DeviceGrid, cut: float, mass_factor: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Return records (J, 12) and boxes (J, 6) of the Gaussians."""
    record = gauss.new_empty((len(gauss), grid_cuda.RECORD3))
    box = gauss.new_empty((len(gauss), 6), dtype=torch.int32)
    runtime.launch(
        grid_cuda.project_grid,
        runtime.blocks(len(gauss), THREADS),
        THREADS,
        gauss,
        grid.frame,
        cut**2,
        mass_factor,
        *grid.shape,
        record,
        box,
    )
    return record, box


def brick_lists(
    record: torch.Tensor, box: torch.Tensor, shape: tuple[int, int, int], available: int
) -> Iterator[BrickList]:
    """Yield a :class:`BrickList` for all layers of bricks, as many layers at a time as fit.

    Parameters
    ----------
    record, box : tensor, (J, 12), (J, 6)
    shape : tuple of int
        Voxels along each axis.
    available : int
        Bytes that a list and its making may take.

    Raises
    ------
    gsbids.errors.DeviceError
        One layer alone does not fit.
    """
    todo = [(0, bricks(shape)[0])]
    while todo:
        first, last = todo.pop(0)
        counts = torch.zeros(len(record), dtype=torch.int32, device=record.device)
        none = counts.new_empty(1)
        _bin(record, box, shape, (first, last), counts, none, none, False)
        total = int(counts.sum(dtype=torch.int64))
        if total * BYTES_PER_ENTRY > available or total >= 2**31:
            if last - first == 1:
                raise DeviceError(
                    f"a layer of {BRICK} voxels needs {total * BYTES_PER_ENTRY / 1e9:.2f} GB of device "
                    f"memory and {available / 1e9:.2f} GB are free: use fewer Gaussians, or --device cpu"
                )
            middle = (first + last) // 2
            todo = [(first, middle), (middle, last), *todo]
            continue
        keys = counts.new_empty(total)
        values = torch.empty_like(keys)
        _bin(record, box, shape, (first, last), plan_cuda.starts(counts), keys, values, True)
        keys, order = torch.sort(keys, stable=True)
        _, along, across = bricks(shape)
        yield BrickList(first, last, plan_cuda.first_places(keys, (last - first) * along * across), values[order])


def _bin(
    record: torch.Tensor,
    box: torch.Tensor,
    shape: tuple[int, int, int],
    layers: tuple[int, int],
    start: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    write: bool,
) -> None:
    runtime.launch(
        grid_cuda.bin_bricks,
        runtime.blocks(len(record), THREADS),
        THREADS,
        record,
        box,
        *layers,
        *bricks(shape)[1:],
        start,
        keys,
        values,
        write,
    )


def _forward(
    gauss: torch.Tensor, grid: DeviceGrid, options: RenderOptions, lists: list[BrickList] | None
) -> tuple[torch.Tensor, ...]:
    """Return image and weight (P, X, Y), records and boxes.

    Fewer layers are rendered at a time when memory runs out.
    """

    def work(available: int) -> tuple[torch.Tensor, ...]:
        record, box = _project(gauss, grid, options.cut, options.mass_factor)
        image = gauss.new_empty(grid.shape)
        weight = torch.empty_like(image)
        for part in brick_lists(record, box, grid.shape, available) if lists is None else lists:
            runtime.launch(
                grid_cuda.render_bricks,
                (*bricks(grid.shape)[:0:-1], part.last - part.first),
                grid_cuda.BLOCK,
                record,
                part.start,
                part.gaussians,
                part.first,
                options.eps,
                image,
                weight,
            )
        return image, weight, record, box

    if lists is not None:
        return work(0)
    plan_cuda.check_finite(gauss)
    return runtime.with_smaller_chunks(work, gauss.device)


def plan_grid(
    field: FieldArrays,
    geometry: GridGeometry | DeviceGrid,
    options: RenderOptions = DEFAULT,
    margin: float = 0.0,
) -> list[BrickList] | None:
    """List the bricks for several renderings of Gaussians that move little; ``margin`` in standard deviations.

    None, which :func:`render_grid` takes for "make them in turn", if they do not fit into the memory all at once.
    Parameters and errors as for :func:`render_grid`.
    """
    grid = on_device(geometry, field[0].device)
    gauss = plan_cuda.pack_field(*field, False)
    plan_cuda.check_finite(gauss)

    def make(available: int) -> list[BrickList] | None:
        record, box = _project(gauss, grid, options.cut + margin, False)
        kept, held = [], 0
        for part in brick_lists(record, box, grid.shape, available):
            kept.append(part)
            held += 4 * (len(part.gaussians) + len(part.start))
            if 2 * held > available and part.last - part.first < bricks(grid.shape)[0]:
                return None
        return kept

    return runtime.with_smaller_chunks(make, gauss.device)


def render_grid(
    mean: torch.Tensor,
    log_scale: torch.Tensor,
    quaternion: torch.Tensor,
    intensity: torch.Tensor,
    log_weight: torch.Tensor,
    geometry: GridGeometry | DeviceGrid,
    options: RenderOptions = DEFAULT,
    lists: list[BrickList] | None = None,
) -> tuple[torch.Tensor, ...]:
    """Render a field on a grid without gradients: ``I = sum w c / D``, ``D = sum w + eps``, ``w = exp(l - E / 2)``.

    The field is turned into the grid's axes and widened by its PSF, Gaussian by Gaussian; what is left is a field on
    an upright grid.

    Parameters
    ----------
    mean, log_scale, quaternion, intensity, log_weight : tensor, (J, 3), (J, 3), (J, 4), (J,), (J,)
        ``log_weight`` is the relaxation proxy of super-resolution.
    geometry : GridGeometry or DeviceGrid
    options : RenderOptions
    lists : list of BrickList, optional
        Lists from :func:`plan_grid`.

    Returns
    -------
    image, weight : tensor, (P, X, Y), float32

    Raises
    ------
    gsbids.errors.DeviceError
        The device cannot be used, or one layer of bricks alone does not fit into its memory.
    FloatingPointError
        A parameter is not finite (looked at when lists are made).
    """
    grid = on_device(geometry, mean.device)
    gauss = plan_cuda.pack_field(mean, log_scale, quaternion, intensity, log_weight, options.mass_factor)
    return _forward(gauss, grid, options, lists)[:2]


class GridRenderCuda(torch.autograd.Function):
    """The operation :func:`render_grid` with gradients: ``GridRenderCuda.apply(*field, geometry, options, lists)``.

    dI/dc_j = w_j / D, and dI/dtheta_j = (c_j - I) / D dw_j/dtheta_j for all others.
    """

    @staticmethod
    def forward(
        ctx: Any,
        mean: torch.Tensor,
        log_scale: torch.Tensor,
        quaternion: torch.Tensor,
        intensity: torch.Tensor,
        log_weight: torch.Tensor,
        geometry: GridGeometry | DeviceGrid,
        options: RenderOptions,
        lists: list[BrickList] | None = None,
    ) -> torch.Tensor:
        """Render the field on the grid, and keep what the backward pass needs."""
        grid = on_device(geometry, mean.device)
        gauss = plan_cuda.pack_field(mean, log_scale, quaternion, intensity, log_weight, options.mass_factor)
        ctx.problem = grid, options.mass_factor
        tensors = _forward(gauss, grid, options, lists)
        ctx.save_for_backward(log_scale, quaternion, gauss, *tensors)
        return tensors[0]

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients with respect to the field."""
        log_scale, quaternion, gauss, image, weight, record, box = ctx.saved_tensors
        grid, mass_factor = ctx.problem
        h = (grad / weight).contiguous()
        moment = gauss.new_empty((len(gauss), grid_cuda.MOMENTS3))
        blocks = runtime.blocks(len(gauss), grid_cuda.WARPS)
        runtime.launch(
            grid_cuda.moments_grid,
            blocks,
            grid_cuda.BLOCK,
            record,
            box,
            *grid.shape[1:],
            h.reshape(-1),
            (h * image).reshape(-1),
            moment,
        )
        total = torch.empty_like(moment)
        runtime.launch(
            grid_cuda.chain_grid,
            runtime.blocks(len(gauss), THREADS),
            THREADS,
            gauss,
            grid.frame,
            moment,
            mass_factor,
            total,
        )
        return *field_gradients(log_scale, quaternion, total, mass_factor), None, None, None
