# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on tiny problems against the CPU kernels and the oracle; errors as JSON.

Run by test_cuda_sim.py with ``GSBIDS_BACKEND=sim`` (the simulator is chosen when numba is imported), and with
``--device cuda`` on a machine with a GPU.
"""

import json
import os
import sys
from dataclasses import replace

import numpy as np
import torch

from gsbids.errors import DeviceError
from gsbids.kernels import ops, ops_cuda, ops_grid_cuda, reference

DEVICE = sys.argv[sys.argv.index("--device") + 1] if "--device" in sys.argv else "cpu"
NAMES = ("mean", "log_scale", "quaternion", "intensity", "log_weight", "omega", "tau")


def scene(seed, gaussians, slices=2, shape=(13, 15)):
    """A small random field seen by a few oblique slices with different pixel sizes."""
    rng = np.random.default_rng(seed)
    field = [rng.normal(0, 4, (gaussians, 3)), rng.normal(0.3, 0.3, (gaussians, 3)), rng.normal(size=(gaussians, 4)),
             rng.uniform(0.2, 1, gaussians), rng.normal(0, 0.3, gaussians)]
    geometry = ops.SliceGeometry(
        rotation=reference.quaternion_matrix(torch.tensor(rng.normal(size=(slices, 4)))).numpy(),
        translation=rng.normal(0, 1.5, (slices, 3)), psf=rng.uniform(0.2, 2, (slices, 3)),
        spacing=rng.uniform(0.7, 1.3, (slices, 2)), centre=(np.array(shape) - 1) / 2 + rng.normal(0, 1, (slices, 2)),
        extent=ops.full_extent(slices, shape), shape=shape)
    return [a.astype(np.float32) for a in field], geometry


def oracle(field, geometry, options):
    """Image and weight by the dense oracle, float64, without a cut."""
    mean, log_scale, quaternion, intensity, log_weight = (torch.tensor(a, dtype=torch.float64) for a in field)
    flat = [torch.as_tensor(getattr(geometry, k), dtype=torch.float64)
            for k in ("rotation", "translation", "psf", "spacing", "centre")]
    return reference.render_slices(mean, reference.covariance(log_scale, quaternion), intensity, log_weight,
                                   (*flat, geometry.shape), eps=options.eps, mass_factor=options.mass_factor)


def relative(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())


def host(tensor):
    return tensor.detach().cpu().numpy()


def tensors(field, **options):
    return [torch.tensor(a, device=DEVICE, **options) for a in field]


def tiny(seed, gaussians=24):
    """Two slices, of no whole number of tiles, one with rows cut short and one row left out."""
    field, geometry = scene(seed, gaussians=gaussians)
    extent = geometry.extent.copy()
    extent[0, :, 0], extent[0, :, 1], extent[1, 5] = 3, 12, 0
    return field, replace(geometry, extent=extent)


def gradients(operation, field, geometry, options, *more):
    """Image, and the gradients of its sum of squares."""
    target = DEVICE if operation is not ops.SliceRender else "cpu"
    leaves = [torch.tensor(a, device=target, requires_grad=True) for a in field]
    leaves += [torch.zeros(len(geometry.rotation), 3, device=target, requires_grad=True) for _ in range(2)]
    image = operation.apply(*leaves, geometry, options, *more)
    (image**2).sum().backward()
    return [host(image), *(host(a.grad) for a in leaves)]


def against_cpu() -> dict:
    """Forward and backward of slices, with cut and extents, and the parts of the pose solver."""
    errors = {}
    for seed, cut, mass_factor in ((0, 3.5, True), (1, 8.0, False)):
        field, geometry = tiny(seed)
        options = ops.RenderOptions(cut=cut, mass_factor=mass_factor)
        ours, theirs = (gradients(o, field, geometry, options) for o in (ops_cuda.SliceRenderCuda, ops.SliceRender))
        for name, a, b in zip(("image", *NAMES), ours, theirs, strict=True):
            errors[f"{name} at cut {cut}"] = relative(a, b)
    rendered = ops.render(*field, geometry, options)
    expected = ops.image_gradient(*field, geometry, rendered, options)
    gradient = ops_cuda.image_gradient(*tensors(field), geometry, tensors(rendered), options)
    errors["weight"] = relative(host(ops_cuda.render(*tensors(field), geometry, options)[1]), rendered[1])
    errors["image gradient"] = relative(host(gradient), expected)
    residual, weight = np.random.default_rng(0).normal(size=(2, *rendered[0].shape)).astype(np.float32) ** 2
    gain = np.array([0.5, 2.0], np.float32)
    system = ops.pose_normal_equations(geometry, expected, residual, weight, gain)
    found = ops_cuda.pose_normal_equations(geometry, *tensors((expected, residual, weight, gain)))
    errors["matrix"], errors["vector"] = (relative(host(a), b) for a, b in zip(found, system, strict=True))
    return errors


def against_oracle() -> dict:
    """Forward against the dense float64 oracle, without a cut."""
    field, geometry = scene(2, gaussians=12, slices=2, shape=(9, 7))
    options = ops.RenderOptions(cut=8.0)
    ours = ops_cuda.render(*tensors(field), geometry, options)
    exact = oracle(field, geometry, options)
    return {f"{name} of the oracle": relative(host(a), b)
            for name, a, b in zip(("image", "weight"), ours, exact, strict=True)}


def odd_gaussians() -> dict:
    """Needles, a huge one, one outside of everything; none at all; a NaN."""
    field, geometry = tiny(3, gaussians=6)
    field[1][0], field[1][1], field[0][2] = (2.5, -2, -2), 3, 500
    options = ops.RenderOptions()
    ours, theirs = (gradients(o, field, geometry, options) for o in (ops_cuda.SliceRenderCuda, ops.SliceRender))
    errors = {f"{name} of odd Gaussians": relative(a, b)
              for name, a, b in zip(("image", *NAMES), ours, theirs, strict=True)}
    image, weight = ops_cuda.render(*tensors([a[:0] for a in field]), geometry, options)
    errors["no Gaussians"] = float(abs(image).max() + abs(weight - options.eps).max())
    field[1][3, 0] = np.nan
    try:
        ops_cuda.render(*tensors(field), geometry, options)
        errors["NaN passes"] = 1.0
    except FloatingPointError as error:
        errors["NaN passes"] = float("diverged" not in str(error))
    return errors


def plans_and_chunks() -> dict:
    """A kept plan serves moved Gaussians; slices one after the other give the same; what cannot fit is refused."""
    field, geometry = tiny(4)
    options = ops.RenderOptions()
    lists = ops_cuda.plan(tensors(field), geometry, options, margin=0.5)
    moved = [field[0] + np.float32(0.1), *field[1:]]
    whole = gradients(ops_cuda.SliceRenderCuda, moved, geometry, options)
    kept = gradients(ops_cuda.SliceRenderCuda, moved, geometry, options, lists)
    errors = {"image of a kept plan": relative(kept[0], whole[0]), "mean of a kept plan": relative(kept[1], whole[1])}
    again = gradients(ops_cuda.SliceRenderCuda, moved, geometry, options)
    errors["other bits at the second run"] = float(sum((a != b).sum() for a, b in zip(whole, again, strict=True)))
    os.environ["GSBIDS_DEVICE_BYTES"] = str(30 * ops_cuda.plan_cuda.BYTES_PER_PAIR)
    parts = gradients(ops_cuda.SliceRenderCuda, moved, geometry, options)
    errors["image of chunks"], errors["mean of chunks"] = (relative(parts[k], whole[k]) for k in (0, 1))
    errors["pose of chunks"] = relative(parts[6], whole[6])
    os.environ["GSBIDS_DEVICE_BYTES"] = "1000"
    try:
        ops_cuda.render(*tensors(field), geometry, options)
        errors["too little memory passes"] = 1.0
    except DeviceError as error:
        errors["too little memory passes"] = float("device memory" not in str(error))
    del os.environ["GSBIDS_DEVICE_BYTES"]
    return errors


def grid() -> dict:
    """The brick renderer against slices without a PSF, on a grid of no whole number of bricks, whole and in layers."""
    field, _ = scene(5, gaussians=20)
    field[0] *= np.float32(0.6)
    voxels = ops_grid_cuda.VoxelGrid((9, 11, 10), (0.9, 1.1, 1.3), (-4.0, -5.0, -6.0))
    count, (hi, hj, hk), (x, y, z) = voxels.shape[2], voxels.spacing, voxels.origin
    planes = ops.SliceGeometry(
        np.tile(np.eye(3), (count, 1, 1)), np.array([(x, y, z + hk * k) for k in range(count)]), np.zeros((count, 3)),
        np.tile((hi, hj), (count, 1)), np.zeros((count, 2)), ops.full_extent(count, voxels.shape[:2]), voxels.shape[:2])
    options = ops.RenderOptions(mass_factor=False)
    expected = gradients(ops.SliceRender, field, planes, options)
    expected[0] = expected[0].transpose(1, 2, 0)
    errors = {}
    for kind, memory in (("", ""), (" in layers", "5600")):
        os.environ["GSBIDS_DEVICE_BYTES"] = memory
        leaves = tensors(field, requires_grad=True)
        image = ops_grid_cuda.GridRenderCuda.apply(*leaves, voxels, options)
        (image**2).sum().backward()
        for name, a, b in zip(("image", *NAMES), (image, *(a.grad for a in leaves)), expected, strict=False):
            errors[f"{name} of the grid{kind}"] = relative(host(a), b)
    del os.environ["GSBIDS_DEVICE_BYTES"]
    return errors


if __name__ == "__main__":
    cases = (against_cpu, against_oracle, odd_gaussians, plans_and_chunks, grid)
    print(json.dumps({case.__name__: case() for case in cases}))
