# SPDX-License-Identifier: Apache-2.0
"""Sampling of the field: volumes on any grid, and simulated stacks in their own geometry."""

from collections.abc import Sequence

import numpy as np

from gsbids.imaging.geometry import slice_frames
from gsbids.imaging.stack import Stack
from gsbids.kernels import ops
from gsbids.recon.motion import RigidMotion
from gsbids.recon.sample_field import sample_grid
from gsbids.recon.svr.result import SvrResult
from gsbids.recon.svr_paper import top_k

GRID_MARGIN = 5.0  # mm around the brain


def sample_result(result: SvrResult, affine: np.ndarray, shape: Sequence[int], device: str = "cpu") -> np.ndarray:
    """Sample the volume of a result on any grid, rendered as it was fitted.

    Parameters
    ----------
    result : SvrResult
    affine, shape
        As for :func:`sample_grid`.
    device : str
        Device on which the field is rendered (that of the paper's method: always on the CPU).

    Returns
    -------
    ndarray, (X, Y, Z), float32
        Image in input intensities, nothing darker than ``result.intensity_offset``: magnitudes are never negative.
    """
    settings = result.settings
    if settings.get("method") == "paper":
        image = top_k.render_volume(result.field, affine, shape, settings["neighbours"], settings["psf"])
    else:
        image = sample_grid(result.field, affine, shape, options=result.render_options(device))[0]
    return np.maximum(image, 0) * result.intensity_scale + np.float32(result.intensity_offset)


def brain_points(stacks: list[Stack], result: SvrResult) -> np.ndarray:
    """Return the positions (P, 3), world mm, of all masked pixels after motion correction."""
    points, moves = [], result.motion.as_affines(result.nominal)
    for n, stack in enumerate(stacks):
        for row in np.flatnonzero(result.stack_index == n):
            k = result.slice_index[row]
            index = np.argwhere(stack.mask[:, :, k])
            world = np.c_[index, np.full(len(index), k), np.ones(len(index))] @ (moves[row] @ stack.affine).T
            points.append(world[:, :3])
    return np.concatenate(points)


def output_grid(
    stacks: list[Stack], result: SvrResult, resolution: float, transform: np.ndarray | None = None
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Return an isotropic RAS+ grid around the motion-corrected brain.

    Parameters
    ----------
    stacks : list of Stack
    result : SvrResult
    resolution : float
        Voxel size, mm; exactly the step of the returned affine.
    transform : ndarray, (4, 4), optional
        Rigid, world of the result -> another world (of a template), along whose axes the grid lies.

    Returns
    -------
    affine : ndarray, (4, 4)
        Voxel indices to that other world; ``inv(transform) @ affine`` are the same voxels in the world of the result.
    shape : tuple of int
    """
    stacks = result.as_fitted(stacks)
    points = brain_points(stacks, result)[~np.repeat(result.rejected, _pixel_counts(stacks, result))]
    if transform is not None:
        points = points @ transform[:3, :3].T + transform[:3, 3]
    low, high = points.min(0) - GRID_MARGIN, points.max(0) + GRID_MARGIN
    shape = tuple(int(n) for n in np.ceil((high - low) / resolution) + 1)
    affine = np.diag([resolution] * 3 + [1.0])
    affine[:3, 3] = (low + high) / 2 - resolution * (np.array(shape) - 1) / 2
    return affine, shape  # type: ignore[return-value]


def in_order(data: np.ndarray, affine: np.ndarray, orientation: str) -> tuple[np.ndarray, np.ndarray]:
    """Reorder the voxels of an RAS+ image; none is interpolated, and each keeps its world position.

    Parameters
    ----------
    data : ndarray, (X, Y, Z)
    affine : ndarray, (4, 4)
    orientation : {"scanner", "radiological"}
        ``scanner``: as it is; ``radiological``: the first axis runs from the right to the left.
    """
    if orientation == "scanner":
        return data, affine
    turned = np.array(affine, float)
    turned[:3, 3] += (data.shape[0] - 1) * turned[:3, 0]
    turned[:3, 0] *= -1
    return np.ascontiguousarray(data[::-1]), turned


def _pixel_counts(stacks: list[Stack], result: SvrResult) -> list[int]:
    return [int(stacks[n].mask[:, :, k].sum()) for n, k in zip(result.stack_index, result.slice_index, strict=True)]


def simulate_stack(result: SvrResult, stack: Stack, index: int, device: str = "cpu") -> np.ndarray:
    """Predict a stack from the reconstruction, on the stack's own grid, with intensities as in ``Stack.image``.

    Parameters
    ----------
    result : SvrResult
    stack : Stack
        Conformed stack ``index`` of the fit.
    index : int
        Number of the stack, 0..N-1.
    device : str
        As for :func:`sample_result`.

    Returns
    -------
    ndarray, (X, Y, Z), float32
        Zero in slices that were not part of the fit.
    """
    rows = np.flatnonzero(result.stack_index == index)
    out = np.zeros(stack.image.shape, np.float32)
    if not len(rows):
        return out
    shape, field = stack.image.shape[:2], result.field
    _, middle = slice_frames(stack.affine, stack.image.shape)
    move = result.motion.as_affines(result.nominal)[rows]
    nominal = RigidMotion(result.nominal.rotation[rows], middle[result.slice_index[rows]])
    at = nominal.moved(move)
    at = RigidMotion(at.rotation, at.translation - field.origin)
    image = _predict(result, at, result.psf[rows], (shape, stack.spacing[:2]), device)
    image *= (result.gain[rows] * result.intensity_scale)[:, None, None]
    if result.bias:
        image *= result.bias.of_slices(index, nominal, stack.spacing[:2], shape)
    out[:, :, result.slice_index[rows]] = np.moveaxis(image, 0, 2)
    return out


def _predict(
    result: SvrResult, motion: RigidMotion, psf: np.ndarray, pixels: tuple[tuple[int, int], np.ndarray], device: str
) -> np.ndarray:
    """Render whole slices (S, X, Y) about their middles, at poses relative to the field, in its units, without gains.

    ``pixels``: their number along both axes, and their size.
    """
    shape, spacing = pixels
    field, settings, count = result.field, result.settings, len(motion)
    middle = (np.array(shape) - 1) / 2
    if settings.get("method") == "paper":
        local = np.zeros((count, *shape, 3))
        local[..., :2] = (np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1) - middle) * spacing
        owner = np.repeat(np.arange(count), np.prod(shape))
        return top_k.render_slices(
            field, motion, psf * settings["psf"], local.reshape(-1, 3), settings["neighbours"], owner
        ).reshape(count, *shape)
    geometry = ops.SliceGeometry(
        rotation=motion.rotation,
        translation=motion.translation,
        psf=psf,
        spacing=np.tile(spacing, (count, 1)),
        centre=np.tile(middle, (count, 1)),
        extent=ops.full_extent(count, shape),
        shape=shape,
    )
    return ops.render(*field.parameters, geometry, result.render_options(device))[0]
