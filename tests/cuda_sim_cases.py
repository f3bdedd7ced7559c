# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels on tiny problems against the CPU kernels and the oracle; errors as JSON.

``python cuda_sim_cases.py [--device cuda] [CASE ...]``. Run by test_cuda_sim.py with ``GSBIDS_BACKEND=sim`` (the
simulator is chosen when numba is imported), and with ``--device cuda`` on a machine with a GPU. The same functions of
``ops`` get tensors for the CUDA kernels and arrays for the CPU's.
"""

import argparse
import json
import os
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch

from gsbids.errors import DeviceError
from gsbids.kernels import ops, reference
from gsbids.kernels.cpu import grid_ops as grid
from gsbids.kernels.cuda import graph as graph_cuda
from gsbids.kernels.cuda import grid_ops as ops_grid_cuda
from gsbids.kernels.cuda import kept_lists as verlet_cuda
from gsbids.kernels.cuda import ops as ops_cuda
from gsbids.kernels.cuda import plan as plan_cuda

NAMES = ("mean", "log_scale", "quaternion", "intensity", "log_weight", "omega", "tau")
DEVICE = "cpu"  # or what --device says


def scene(seed, gaussians, slices=2, shape=(9, 13)):
    """A small random field seen by a few oblique slices with different pixel sizes."""
    rng = np.random.default_rng(seed)
    field = [
        rng.normal(0, 4, (gaussians, 3)),
        rng.normal(0.3, 0.3, (gaussians, 3)),
        rng.normal(size=(gaussians, 4)),
        rng.uniform(0.2, 1, gaussians),
        rng.normal(0, 0.3, gaussians),
    ]
    geometry = ops.SliceGeometry(
        rotation=reference.quaternion_matrix(torch.tensor(rng.normal(size=(slices, 4)))).numpy(),
        translation=rng.normal(0, 1.5, (slices, 3)),
        psf=rng.uniform(0.2, 2, (slices, 3)),
        spacing=rng.uniform(0.7, 1.3, (slices, 2)),
        centre=(np.array(shape) - 1) / 2 + rng.normal(0, 1, (slices, 2)),
        extent=ops.full_extent(slices, shape),
        shape=shape,
    )
    return [a.astype(np.float32) for a in field], geometry


def oracle(field, geometry, options):
    """Image and weight by the dense oracle, float64, without a cut."""
    mean, log_scale, quaternion, intensity, log_weight = (torch.tensor(a, dtype=torch.float64) for a in field)
    flat = [
        torch.as_tensor(getattr(geometry, k), dtype=torch.float64)
        for k in ("rotation", "translation", "psf", "spacing", "centre")
    ]
    return reference.render_slices(
        mean,
        reference.covariance(log_scale, quaternion),
        intensity,
        log_weight,
        (*flat, geometry.shape),
        eps=options.eps,
        mass_factor=options.mass_factor,
    )


def relative(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())


def host(tensor):
    return tensor.detach().cpu().numpy()


def tensors(field, **options):
    return [torch.tensor(a, device=DEVICE, **options) for a in field]


def tiny(seed, gaussians=14):
    """Two slices, of no whole number of tiles, one with rows cut short and one row left out."""
    field, geometry = scene(seed, gaussians=gaussians)
    extent = geometry.extent.copy()
    extent[0, :, 0], extent[0, :, 1], extent[1, 5] = 3, 11, 0
    return field, replace(geometry, extent=extent)


@contextmanager
def memory(count):
    """Let the renderer think that it has so many bytes."""
    os.environ["GSBIDS_DEVICE_BYTES"] = str(count)
    try:
        yield
    finally:
        del os.environ["GSBIDS_DEVICE_BYTES"]


def gradients(operation, leaves, *more):
    """Image, and the gradients of its sum of squares, as arrays."""
    for leaf in leaves:
        leaf.requires_grad_()
    image = operation.apply(*leaves, *more)
    (image**2).sum().backward()
    return [host(image), *(host(a.grad) for a in leaves)]


def slice_gradients(field, geometry, options, *lists, cpu=False):
    """Image and the seven gradients of slices, by the CUDA kernels or the CPU's."""
    target, operation = ("cpu", ops.SliceRenderCpu) if cpu else (DEVICE, ops.SliceRender)
    leaves = [torch.tensor(a, device=target) for a in field]
    leaves += [torch.zeros(len(geometry.rotation), 3, device=target) for _ in range(2)]
    return gradients(operation, leaves, geometry, options, *lists)


def compared(names, ours, theirs, suffix="") -> dict:
    return {
        f"{name}{suffix}": relative(host(a) if torch.is_tensor(a) else a, b)
        for name, a, b in zip(names, ours, theirs, strict=True)
    }


def slices() -> dict:
    """Forward and backward of slices, with cut and extents."""
    errors = {}
    for seed, cut, mass_factor in ((0, 3.5, True), (1, 8.0, False)):
        field, geometry = tiny(seed)
        options = ops.RenderOptions(cut=cut, mass_factor=mass_factor)
        ours, theirs = (slice_gradients(field, geometry, options, cpu=cpu) for cpu in (False, True))
        errors |= compared(("image", *NAMES), ours, theirs, f" at cut {cut}")
    return errors


def acquired(geometry, seed=0) -> ops.Acquired:
    """Values, weights (some 0) and gains, at random."""
    rng = np.random.default_rng(seed)
    values, weight = rng.uniform(0, 1, (2, len(geometry.rotation), *geometry.shape)).astype(np.float32)
    return ops.Acquired(values, weight * (weight > 0.3), 0.03, rng.uniform(0.5, 2, len(values)).astype(np.float32))


def flat(step) -> list:
    return [step.loss, step.image, *step.gradients, step.pose]


def pose_solver() -> dict:
    """The fused step with its loss, the image gradient, the normal equations and the weight."""
    field, geometry = tiny(2)
    options, target = ops.RenderOptions(), acquired(geometry)
    names = ("loss", "image", *NAMES[:5], "pose")
    expected = flat(ops.step_slices(*field, geometry, target, options))
    found = ops.step_slices(*tensors(field), geometry, target, options)
    errors = compared(names, flat(found), expected, " of the step")
    kinds = [a.dtype for a in flat(found)] == [torch.from_numpy(a).dtype for a in expected]
    errors["other types than the CPU's"] = float(not kinds)
    rendered = ops.render(*field, geometry, options)
    gradient = ops.image_gradient(*field, geometry, rendered, options)
    residual, weight = target.values - rendered[0], target.weight
    system = ops.pose_normal_equations(geometry, gradient, residual, weight, target.gain)
    ours = ops.render(*tensors(field), geometry, options)
    errors |= compared(("image", "weight"), ours, rendered)
    there = ops_cuda.on_device(geometry, torch.device(DEVICE))
    errors["image gradient"] = relative(host(ops.image_gradient(*tensors(field), there, ours, options)), gradient)
    found = ops.pose_normal_equations(there, *tensors((gradient, residual, weight, target.gain)))
    return errors | compared(("matrix", "vector"), found, system)


def against_oracle() -> dict:
    """Forward against the dense float64 oracle, without a cut."""
    field, geometry = scene(2, gaussians=12, slices=2, shape=(9, 7))
    options = ops.RenderOptions(cut=8.0)
    return compared(
        ("image", "weight"), ops.render(*tensors(field), geometry, options), oracle(field, geometry, options)
    )


def odd_gaussians() -> dict:
    """Needles, a huge one, one outside of everything; none at all; a NaN."""
    field, geometry = tiny(3, gaussians=6)
    field[1][0], field[1][1], field[0][2] = (2.5, -2, -2), 3, 500
    options = ops.RenderOptions()
    ours, theirs = (slice_gradients(field, geometry, options, cpu=cpu) for cpu in (False, True))
    errors = compared(("image", *NAMES), ours, theirs)
    none = tensors([a[:0] for a in field])
    image, weight = ops.render(*none, geometry, options)
    errors["no Gaussians"] = float(abs(image).max() + abs(weight - options.eps).max())
    step = ops.step_slices(*none, geometry, acquired(geometry), options)
    errors["no Gaussians in the step"] = float(abs(step.image).max() + abs(step.pose).max())
    field[1][3, 0] = np.nan
    for name, call in (
        ("slices", lambda: ops.render(*tensors(field), geometry, options)),
        ("grid", lambda: ops.render_grid(*tensors(field), small_grid(), options)),
    ):
        try:
            call()
            errors[f"NaN passes in {name}"] = 1.0
        except FloatingPointError as error:
            errors[f"NaN passes in {name}"] = float("diverged" not in str(error))
    return errors


def largest(field, geometry) -> int:
    """Pairs of the slice that has most."""
    geometry = ops_cuda.on_device(geometry, torch.device(DEVICE))
    return int(plan_cuda.count_pairs(plan_cuda.pack_field(*tensors(field), True), geometry, 3.5).sum(1).max())


def little_memory() -> dict:
    """Slices one after the other give the same by every path, lists kept in pieces too; what cannot fit is refused."""
    field, geometry = scene(4, gaussians=7, shape=(7, 9))
    options, target = ops.RenderOptions(), acquired(geometry)

    def everything(lists=None):
        step = ops.step_slices(*tensors(field), geometry, target, options, lists)
        rendered = ops.render(*tensors(field), geometry, options, lists)
        gradient = ops.image_gradient(*tensors(field), geometry, rendered, options, lists)
        return [host(a) for a in (*flat(step), *rendered, gradient)]

    names = ("loss", "image", *NAMES[:5], "pose", "rendered", "weight", "image gradient")
    whole, again = everything(), everything()
    errors = {"other bits at the second run": float(sum((a != b).sum() for a, b in zip(whole, again, strict=True)))}
    with memory(largest(field, geometry) * plan_cuda.BYTES_PER_PAIR):
        errors |= compared(names, everything(), whole, " of chunks")
        kept = ops.plan(tensors(field), geometry, options)
        errors["lists in one piece"] = float(len(kept) != 2)
        errors |= compared(names, everything(kept), whole, " of kept chunks")
        errors |= compared(
            ("image", *NAMES),
            slice_gradients(field, geometry, options),
            slice_gradients(field, geometry, options, kept),
            " by autograd",
        )
    many, planes = scene(8, gaussians=6, slices=16, shape=(5, 5))
    with memory(largest(many, planes) * plan_cuda.BYTES_PER_PAIR):
        errors["lists that do not fit are kept"] = float(ops.plan(tensors(many), planes, options) is not None)
    with memory(100):
        for name, call in (
            ("render", lambda: ops.render(*tensors(field), geometry, options)),
            ("step", lambda: ops.step_slices(*tensors(field), geometry, target, options)),
            ("plan", lambda: ops.plan(tensors(field), geometry, options)),
            ("grid", lambda: ops.render_grid(*tensors(field), small_grid(), options)),
        ):
            try:
                call()
                errors[f"too little memory passes: {name}"] = 1.0
            except DeviceError as error:
                errors[f"too little memory passes: {name}"] = float("device memory" not in str(error))
    return errors


def small_grid(turned=False, shape=(9, 7, 10)) -> ops.GridGeometry:
    """A grid of no whole number of bricks about the origin; turned, and with a PSF."""
    spacing = np.array([0.9, 1.1, 1.3])
    if not turned:
        return ops.GridGeometry(shape, spacing, -spacing * (np.array(shape) - 1) / 2)
    turn = reference.quaternion_matrix(torch.tensor([[0.8, 0.3, -0.4, 0.2]], dtype=torch.float64))[0].numpy()
    return ops.GridGeometry(
        shape, spacing, -turn @ (spacing * (np.array(shape) - 1)) / 2, turn, np.array([0.3, 0.6, 0.9])
    )


def grids() -> dict:
    """The brick renderer against the CPU's: upright, turned with a PSF and the mass factor, and in layers."""
    field, _ = scene(5, gaussians=12)
    field[0] *= np.float32(0.6)
    errors = {}
    for turned, layers in ((False, False), (True, False), (True, True)):
        geometry, options = small_grid(turned), ops.RenderOptions(mass_factor=turned)
        expected = gradients(grid.GridRender, [torch.tensor(a) for a in field], geometry, options)
        kind = f"{', turned' if turned else ''}{', in layers' if layers else ''}"
        with memory(1600 if layers else 10**9):
            found = gradients(ops.GridRender, tensors(field), geometry, options)
            pieces = len(ops_grid_cuda.plan_grid(tensors(field), geometry, options))
            errors[f"pieces of lists{kind}"] = float(pieces != (2 if layers else 1))
        errors |= compared(("image", *NAMES[:5]), found, expected, kind)
    weight = ops.render_grid(*field, geometry, options)[1]
    errors["weight"] = relative(host(ops.render_grid(*tensors(field), geometry, options)[1]), weight)
    kept = ops_grid_cuda.plan_grid(tensors(field), geometry, options, 0.3)
    moved = [field[0] + np.float32(0.05), *field[1:]]
    pair = [host(ops.render_grid(*tensors(moved), geometry, options, lists)[0]) for lists in (kept, None)]
    errors["bits of kept lists"] = float((pair[0] != pair[1]).sum())
    return errors


def kept_lists() -> dict:
    """Lists with a margin give the very bits of new ones while they are said to hold, through moves of everything."""
    field, geometry = tiny(6)
    options, rng = ops.RenderOptions(), np.random.default_rng(0)
    lists = verlet_cuda.KeptLists(options, margin=0.6)
    lists.current(tensors(field), geometry)
    errors, used, held = {}, [], lists.plans
    for turn in range(3):
        scale = np.float32(0.02 * (turn + 1))
        field = [a + scale * rng.normal(size=a.shape).astype(np.float32) for a in field]
        small = torch.tensor(rng.normal(0, 0.005, (2, 2, 3)))
        turned, shifted = reference.retract(torch.tensor(geometry.rotation), torch.tensor(geometry.translation), *small)
        geometry = replace(geometry, rotation=turned.numpy(), translation=shifted.numpy())
        before = lists.rebuilds
        plans = lists.current(tensors(field), geometry)
        used.append(float(lists.used))
        fresh = ops.render(*tensors(field), geometry, options)
        kept = ops.render(*tensors(field), geometry, options, plans)
        errors[f"other bits, turn {turn}"] = float(sum((a != b).sum() for a, b in zip(fresh, kept, strict=True)))
        errors[f"a rebuild without need, turn {turn}"] = float(lists.rebuilds > before and used[-1] > 0)
    errors["never used, never rebuilt"] = float(not (max(used) > 0.1 and lists.rebuilds > 1))
    errors["lists not in their old place"] = float(lists.plans is not held)
    far = [field[0] + np.float32(2), *field[1:]]
    lists.measure(tensors(far), ops_cuda.on_device(geometry, torch.device(DEVICE)))
    errors["2 mm pass"] = float(not lists.outdated())
    return errors


def margin_bound() -> dict:
    """No pixel from beyond ``cut + margin_used`` comes within the cut, wherever it was: at random, in float64."""
    rng, cut, count = np.random.default_rng(9), 3.5, 48
    (field, geometry), (step, _) = scene(9, gaussians=count, slices=3), scene(10, gaussians=count)
    moved = [a + np.float32(0.05) * b for a, b in zip(field, step, strict=True)]
    turned, shifted = reference.retract(
        torch.tensor(geometry.rotation),
        torch.tensor(geometry.translation),
        *torch.tensor(rng.normal(0, 0.01, (2, 3, 3))),
    )
    later = replace(geometry, rotation=turned.numpy(), translation=shifted.numpy())
    lists = verlet_cuda.KeptLists(ops.RenderOptions(cut=cut))
    lists.remember(tensors(field), ops_cuda.on_device(geometry, torch.device(DEVICE)))
    lists.measure(tensors(moved), ops_cuda.on_device(later, torch.device(DEVICE)))
    reach, sigma = (
        cut + float(lists.used),
        [reference.covariance(*(torch.tensor(a).double() for a in f[1:3])).numpy() for f in (field, moved)],
    )
    closest = np.inf
    for s in range(3):
        before, after = (
            c + g.rotation[s] @ np.diag(geometry.psf[s]) @ g.rotation[s].T
            for c, g in zip(sigma, (geometry, later), strict=True)
        )
        pixel = (rng.integers(0, geometry.shape, (400, 2)) - geometry.centre[s]) * geometry.spacing[s]
        pixel = np.pad(pixel, ((0, 0), (0, 1)))
        away = rng.normal(size=(count, 400, 3))
        away *= reach / np.sqrt(np.einsum("jpa,jab,jpb->jp", away, np.linalg.inv(before), away))[..., None]
        drift = (
            pixel @ (later.rotation[s] - geometry.rotation[s]).T
            + later.translation[s]
            - geometry.translation[s]
            - (moved[0] - field[0]).astype(float)[:, None]
        )
        now = np.sqrt(np.einsum("jpa,jab,jpb->jp", away + drift, np.linalg.inv(after), away + drift))
        closest = min(closest, now.min())
    return {
        "within the cut": float(max(cut - closest, 0)),
        "a bound far from what happens": float(closest > cut + 2),
        "nothing moved": float(reach < cut + 0.1),
    }


def epochs() -> dict:
    """Epochs of the fused step and Adam through CapturedWork end where plain ones end, by a graph if there is a GPU."""
    _, geometry = tiny(7)
    there, target = ops_cuda.on_device(geometry, torch.device(DEVICE)), acquired(geometry)
    target = replace(target, **{k: tensors([getattr(target, k)])[0] for k in ("values", "weight", "gain")})
    results = []
    for captured in (True, False):
        leaves = tensors(tiny(7)[0])
        adam = torch.optim.Adam(leaves[:4], lr=5e-3, capturable=DEVICE != "cpu")
        lists = verlet_cuda.KeptLists()
        lists.current(leaves, there)

        def epoch(leaves=leaves, adam=adam, lists=lists):
            step = ops.step_slices(*leaves, there, target, ops.RenderOptions(), lists.plans)
            for leaf, gradient in zip(leaves[:4], step.gradients, strict=False):
                leaf.grad = gradient
            adam.step()
            lists.measure(leaves, there)

        work = graph_cuda.CapturedWork(epoch, torch.device(DEVICE), warm_up=1) if captured else epoch
        for _ in range(2 if DEVICE == "cpu" else 5):
            work()
        results.append([host(a) for a in (*leaves, lists.used)])
        if captured and DEVICE != "cpu":
            failed = float(work.failure is not None or work.replays != 4)
    errors = {"other bits by the graph": float(sum((a != b).sum() for a, b in zip(*results, strict=True)))}
    return errors | ({} if DEVICE == "cpu" else {"no graph": failed})


CASES = {
    case.__name__: case
    for case in (
        slices,
        pose_solver,
        against_oracle,
        odd_gaussians,
        little_memory,
        grids,
        kept_lists,
        margin_bound,
        epochs,
    )
}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("cases", nargs="*")
    arguments = parser.parse_args()
    DEVICE = arguments.device
    print(json.dumps({name: CASES[name]() for name in arguments.cases or CASES}))
