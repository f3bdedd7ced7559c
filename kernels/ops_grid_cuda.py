# SPDX-License-Identifier: Apache-2.0
"""The grid renderer as a torch operation on tensors of a GPU: a field on voxels, with gradients."""

from dataclasses import dataclass

import torch

from gsbids.errors import DeviceError
from gsbids.kernels import adjoint_cuda, device, grid_cuda, plan_cuda
from gsbids.kernels.grid_cuda import BRICK
from gsbids.kernels.splat_cuda import THREADS

BYTES_PER_ENTRY = 64  # of a list of bricks: key and Gaussian, before and after the sort, and its scratch


@dataclass(frozen=True)
class VoxelGrid:
    """Where voxels are: voxel (i, j, k) lies at ``origin + spacing * (i, j, k)``, mm.

    Attributes
    ----------
    shape : tuple of int
        (X, Y, Z).
    spacing, origin : tuple of float
    """

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]
    origin: tuple[float, float, float]

    @property
    def bricks(self) -> tuple[int, ...]:
        """Bricks along each axis."""
        return tuple(device.blocks(n, BRICK) for n in self.shape)


@dataclass(frozen=True)
class BrickList:
    """Gaussians of each brick of the layers ``first`` to ``last - 1``, in the order of the Gaussians."""

    first: int
    last: int
    start: torch.Tensor
    gaussians: torch.Tensor


def _project(gauss, grid: VoxelGrid, cut: float):
    """Records (J, 12), boxes (J, 6), and the grid's place (6,)."""
    place = torch.tensor([*grid.origin, *grid.spacing], dtype=torch.float32, device=gauss.device)
    record = gauss.new_empty((len(gauss), grid_cuda.RECORD3))
    box = gauss.new_empty((len(gauss), 6), dtype=torch.int32)
    device.launch(grid_cuda.project_grid, device.blocks(len(gauss), THREADS), THREADS, gauss, place, cut**2,
                  *grid.shape, record, box)
    return record, box, place


def brick_lists(record, box, grid: VoxelGrid):
    """Lists for all layers of bricks, as many layers at a time as fit into memory; yields :class:`BrickList`.

    Raises
    ------
    gsbids.errors.DeviceError
        One layer alone does not fit.
    """
    todo = [(0, grid.bricks[0])]
    while todo:
        first, last = todo.pop(0)
        start = torch.zeros(len(record), dtype=torch.int32, device=record.device)
        none = start.new_empty(1)
        _bin(record, box, grid, first, last, start, none, none, False)
        total = int(start.sum(dtype=torch.int64))
        available = device.free_bytes(record.device)
        if total * BYTES_PER_ENTRY > available or total >= 2**31:
            if last - first == 1:
                raise DeviceError(f"a layer of {BRICK} voxels needs {total * BYTES_PER_ENTRY / 1e9:.2f} GB of device "
                                  f"memory and {available / 1e9:.2f} GB are free: use fewer Gaussians, or --device cpu")
            middle = (first + last) // 2
            todo = [(first, middle), (middle, last), *todo]
            continue
        start = plan_cuda.starts(start)
        keys = start.new_empty(total)
        values = torch.empty_like(keys)
        _bin(record, box, grid, first, last, start, keys, values, True)
        keys, order = torch.sort(keys, stable=True)
        bricks = (last - first) * grid.bricks[1] * grid.bricks[2]
        yield BrickList(first, last, plan_cuda.first_places(keys, bricks), values[order])


def _bin(record, box, grid, first, last, start, keys, values, write):
    device.launch(grid_cuda.bin_bricks, device.blocks(len(record), THREADS), THREADS, record, box, first, last,
                  *grid.bricks[1:], start, keys, values, write)


def _forward(gauss, grid: VoxelGrid, options, lists):
    """Image and weight (X, Y, Z)."""
    if not bool(torch.isfinite(gauss).all()):
        raise FloatingPointError(plan_cuda.DIVERGED)
    record, box, place = _project(gauss, grid, options.cut)
    image = gauss.new_empty(grid.shape)
    weight = torch.empty_like(image)
    for part in brick_lists(record, box, grid) if lists is None else lists:
        device.launch(grid_cuda.render_bricks, (*grid.bricks[:0:-1], part.last - part.first), grid_cuda.BLOCK, record,
                      part.start, part.gaussians, part.first, options.eps, image, weight)
    return image, weight, (record, box, place)


def plan_grid(field, grid: VoxelGrid, options, margin: float = 0.0) -> list[BrickList]:
    """Lists of bricks for several renderings of Gaussians that move little; ``margin`` in standard deviations."""
    device.check_device(field[0].device)
    gauss = plan_cuda.pack_field(*field, False)
    record, box, _ = _project(gauss, grid, options.cut + margin)
    return list(brick_lists(record, box, grid))


def render_grid(mean, log_scale, quaternion, intensity, log_weight, grid: VoxelGrid, options, lists=None):
    """Field on a grid without gradients: ``I = sum w A / D``, ``D = sum w + eps``, ``w = exp(l - E / 2)``.

    Parameters
    ----------
    mean, log_scale, quaternion, intensity, log_weight : tensor, (J, 3), (J, 3), (J, 4), (J,), (J,)
        Amplitude A is ``intensity``, the relaxation proxy l is ``log_weight``.
    grid : VoxelGrid
    options : RenderOptions
        Gaussians end at ``cut`` standard deviations; there is no PSF, so the mass factor is 1.
    lists : list of BrickList, optional
        From :func:`plan_grid`.

    Returns
    -------
    image, weight : tensor, (X, Y, Z), float32

    Raises
    ------
    gsbids.errors.DeviceError
    FloatingPointError
        A parameter is not finite.
    """
    device.check_device(mean.device)
    gauss = plan_cuda.pack_field(mean, log_scale, quaternion, intensity, log_weight, False)
    return _forward(gauss, grid, options, lists)[:2]


class GridRenderCuda(torch.autograd.Function):
    """A field on a grid with gradients: ``GridRenderCuda.apply(*field, grid, options, lists)``, see render_grid.

    dI/dA_j = w_j / D, and dI/dtheta_j = (A_j - I) / D dw_j/dtheta_j for all others.
    """

    @staticmethod
    def forward(ctx, mean, log_scale, quaternion, intensity, log_weight, grid, options, lists=None):
        device.check_device(mean.device)
        gauss = plan_cuda.pack_field(mean, log_scale, quaternion, intensity, log_weight, False)
        image, weight, projected = _forward(gauss, grid, options, lists)
        ctx.grid = grid
        log_scale, quaternion = (a.float().contiguous() for a in (log_scale, quaternion))
        ctx.save_for_backward(log_scale, quaternion, gauss, image, weight, *projected)
        return image

    @staticmethod
    def backward(ctx, grad):
        log_scale, quaternion, gauss, image, weight, record, box, place = ctx.saved_tensors
        grid, h = ctx.grid, (grad / weight).contiguous()
        moment = gauss.new_empty((len(gauss), grid_cuda.MOMENTS3))
        device.launch(grid_cuda.moments_grid, device.blocks(len(gauss), grid_cuda.WARPS), grid_cuda.BLOCK, record, box,
                      *grid.shape[1:], h.reshape(-1), (h * image).reshape(-1), moment)
        total = torch.empty_like(moment)
        threads = device.blocks(len(gauss), THREADS), THREADS
        device.launch(grid_cuda.chain_grid, *threads, gauss, place, moment, total)
        scale, turn = torch.empty_like(log_scale), torch.empty_like(quaternion)
        device.launch(adjoint_cuda.unpack_gradient, *threads, log_scale, quaternion, total, False, scale, turn)
        return total[:, :3], scale, turn, total[:, 9], total[:, 10], None, None, None
