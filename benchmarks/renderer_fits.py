# SPDX-License-Identifier: Apache-2.0
"""Whole fits with the renderer on the CPU, for ``renderer.py``: epochs of slices with Adam, iterations on a grid."""

import time

import numba
import numpy as np
import torch

from gsbids.kernels import ops

GAUSSIANS, PIXEL = 30_000, 0.66  # 0.39 million pixels
VOXELS, IN_THE_GRID, SIGMA = 256, 470_000, 1.2
OPTIONS = ops.RenderOptions(mass_factor=False)


def clocks():
    """Wall and process time now."""
    return np.array([time.perf_counter(), time.process_time()])


def fit_slices(start, truth, epochs: int, threads: int) -> tuple[dict, list[np.ndarray]]:
    """Fit the field of the problem ``start`` to the slices of ``truth`` by Adam, everything but the poses.

    The truth is another field, of narrow Gaussians. The rates are those of a reconstruction: 0.025, down to a
    twentieth along a cosine. An epoch is a fused step (forward, Charbonnier loss, backward) over all pixels and an
    update of all parameters. Returns wall and process seconds and how the fit went, and the fitted field.
    """
    numba.set_num_threads(threads)
    values, _ = ops.render(*truth.field, start.geometry, OPTIONS)
    acquired = ops.Acquired(values, start.mask.astype(np.float32), 0.03)
    leaves = [torch.tensor(a, requires_grad=True) for a in start.field]
    optimiser = torch.optim.Adam(leaves[:4], eps=1e-15, fused=True)
    rates = 0.025 * (0.05 + 0.95 * 0.5 * (1 + np.cos(np.pi * np.arange(epochs) / epochs)))
    ops.step_slices(*leaves, start.geometry, acquired, OPTIONS)  # compiles
    losses, begun = [], clocks()
    for rate in rates:
        optimiser.param_groups[0]["lr"] = float(rate)
        step = ops.step_slices(*leaves, start.geometry, acquired, OPTIONS)
        for leaf, gradient in zip(leaves[:4], step.gradients, strict=False):  # the log-weights stay
            leaf.grad = torch.from_numpy(gradient)
        optimiser.step()
        losses.append(step.loss.sum() / start.mask.sum())
    wall, process = clocks() - begun
    fitted = [a.detach().numpy() for a in leaves]
    return {
        "pixels": int(start.mask.sum()),
        "gaussians": len(fitted[0]),
        "epochs": epochs,
        "threads": threads,
        "wall_s": wall,
        "process_s": process,
        "loss_first": float(losses[0]),
        "loss_last": float(losses[-1]),
        "log_scale_first": float(start.field[1].mean()),
        "log_scale_last": float(fitted[1].mean()),
    }, fitted


def grid_problem(voxels: int, gaussians: int, seed: int = 0):
    """Random Gaussians of 1.2 voxel everywhere in a cube."""
    rng = np.random.default_rng(seed)
    field = [
        rng.uniform(0, voxels - 1, (gaussians, 3)),
        np.log(SIGMA) + rng.normal(0, 0.15, (gaussians, 3)),
        rng.normal(size=(gaussians, 4)),
        rng.uniform(size=gaussians),
        np.zeros(gaussians),
    ]
    return [a.astype(np.float32) for a in field], ops.GridGeometry((voxels,) * 3, np.ones(3), np.zeros(3))


def iterate_grid(voxels: int, gaussians: int, threads: int, repeats: int) -> dict:
    """One iteration of super-resolution: forward on the whole grid, and backward from a gradient that is given."""
    numba.set_num_threads(threads)
    field, geometry = grid_problem(voxels, gaussians)
    leaves = [torch.tensor(a, requires_grad=True) for a in field]
    cotangent = torch.linspace(-1, 1, voxels).expand(voxels, voxels, voxels).contiguous()
    times = []
    for _ in range(repeats + 1):  # the first one compiles
        begun = clocks()
        image = ops.GridRender.apply(*leaves, geometry, OPTIONS)
        between = clocks()
        image.backward(cotangent)
        times.append([between - begun, clocks() - between])
    (forward, forward_cpu), (backward, backward_cpu) = np.min(times[1:], axis=0)
    return {
        "voxels": voxels**3,
        "gaussians": gaussians,
        "threads": threads,
        "wall_s": forward + backward,
        "process_s": forward_cpu + backward_cpu,
        "forward_wall_s": forward,
        "backward_wall_s": backward,
    }
