# SPDX-License-Identifier: Apache-2.0
"""A Gaussian field on a regular grid as a torch operation: the forward model of super-resolution."""

from typing import Any

import numpy as np
import torch

from gsbids.kernels.cpu import grid as grid_cpu
from gsbids.kernels.cpu import grid_gradient, pairs, rows
from gsbids.kernels.cpu.packed import PackedField
from gsbids.kernels.problem import DEFAULT, Array, GridGeometry, RenderOptions

KEYS = 1 << 16  # bricks at most: numpy sorts 16-bit keys in linear time
SMALLEST = 8  # voxels along half the side of the smallest bricks


class _Grid:
    """One field on one grid: what forward and backward share."""

    def __init__(self, packed: PackedField, geometry: GridGeometry, options: RenderOptions) -> None:
        self.packed, self.options, self.shape = packed, options, geometry.shape
        self.pose, self.pixels = geometry.arrays()
        self.ranges = np.empty((len(packed.table), 2), np.int32)
        grid_cpu.plane_ranges(self.pose, self.pixels[4], self.shape[0], packed.table, options.cut, self.ranges)
        self.order = _brick_order(packed.table, geometry)

    def forward(self) -> tuple[np.ndarray, np.ndarray]:
        image, weight = grid_cpu.padded(self.shape), grid_cpu.padded(self.shape)
        grid_cpu.forward(
            self.pose,
            self.pixels,
            self.packed.table,
            self.order,
            self.ranges,
            self.options.cut**2,
            np.float32(self.options.eps),
            self.options.mass_factor,
            rows.lanes(),
            image,
            weight,
        )
        return image, weight

    def backward(self, grad: np.ndarray, image: np.ndarray, weight: np.ndarray) -> tuple[np.ndarray, ...]:
        h, k = grid_cpu.padded(self.shape), grid_cpu.padded(self.shape)
        grid_gradient.cotangents(grad, image, weight, h, k)
        total = np.empty((len(self.packed.table), 11), np.float32)
        grid_gradient.backward(
            self.pose,
            self.pixels,
            self.packed.table,
            self.order,
            self.ranges,
            self.options.cut**2,
            self.options.mass_factor,
            rows.lanes(),
            h,
            k,
            total,
        )
        return self.packed.gradients(total, self.options)


def _inside(padded: Array, geometry: GridGeometry) -> Array:
    """Return the volume without its padding: a view."""
    return padded[:, : geometry.shape[1], : geometry.shape[2]]


def _brick_order(table: np.ndarray, geometry: GridGeometry) -> np.ndarray:
    """Order Gaussians brick by brick, so that neighbours in time are neighbours in memory.

    The last one is repeated.
    """
    side, bricks = SMALLEST, (1, 1, 1)
    while side == SMALLEST or np.prod(bricks) > KEYS:
        side *= 2
        bricks = tuple(-(-n // side) for n in geometry.shape)  # type: ignore[assignment]
    keys = np.empty(len(table), np.uint16)
    turn, origin, spacing = (np.asarray(a, float) for a in (geometry.rotation, geometry.origin, geometry.spacing))
    grid_cpu.brick_keys(table, origin, np.ascontiguousarray(turn / (side * spacing)), np.array(bricks), keys)
    order = np.argsort(keys, kind="stable")
    return np.concatenate([order, np.repeat(order[-1:], pairs.WIDEST)]).astype(np.int32)


def render_grid(
    mean: Array,
    log_scale: Array,
    quaternion: Array,
    intensity: Array,
    log_weight: Array,
    geometry: GridGeometry,
    options: RenderOptions = DEFAULT,
) -> tuple[np.ndarray, ...]:
    """Render a field on a grid without gradients.

    ``I(x) = sum_j w_j c_j / D``, ``D = sum_j w_j + eps``, ``w_j = exp(l_j - E_j(x) / 2)``, where
    ``E_j < cut ** 2``; the field and its PSF as in :func:`gsbids.kernels.reference.render_slices`.

    Parameters
    ----------
    mean, log_scale, quaternion, intensity, log_weight : array, (J, 3), (J, 3), (J, 4), (J,), (J,)
        Field; ``log_weight`` is the relaxation proxy of super-resolution, 0 elsewhere.
    geometry : GridGeometry
    options : RenderOptions
        ``mass_factor`` matters only with a PSF, or as a weight by volume.

    Returns
    -------
    image, weight : ndarray, (P, X, Y), float32
        I and D; views, not contiguous.
    """
    packed = PackedField.as_given(mean, log_scale, quaternion, intensity, log_weight, options)
    return tuple(_inside(a, geometry) for a in _Grid(packed, geometry, options).forward())


class GridRender(torch.autograd.Function):
    """The operation :func:`render_grid` with gradients.

    ``GridRender.apply(*field, geometry, options)`` gives I, (P, X, Y).
    """

    @staticmethod
    def forward(
        ctx: Any,
        mean: torch.Tensor,
        log_scale: torch.Tensor,
        quaternion: torch.Tensor,
        intensity: torch.Tensor,
        log_weight: torch.Tensor,
        geometry: GridGeometry,
        options: RenderOptions,
    ) -> torch.Tensor:
        """Render the field on the grid, and keep what the backward pass needs."""
        packed = PackedField.as_given(mean, log_scale, quaternion, intensity, log_weight, options)
        ctx.grid = _Grid(packed, geometry, options)
        image, weight = (torch.from_numpy(a) for a in ctx.grid.forward())
        ctx.save_for_backward(image, weight)
        return _inside(image, geometry)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients with respect to the field."""
        image, weight = (a.detach().numpy() for a in ctx.saved_tensors)
        gradients = ctx.grid.backward(np.ascontiguousarray(grad, np.float32), image, weight)
        return *(torch.from_numpy(a) for a in gradients), None, None
