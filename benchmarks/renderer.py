# SPDX-License-Identifier: Apache-2.0
"""The renderer against torch, against top-K and against float64, all on one problem in one run.

    python benchmarks/renderer.py --quick [--json FILE] [--plot FILE]

The problem is that of a fetal brain: an ellipsoid of 68 x 82 x 58 mm full of random Gaussians, seen by three
orthogonal stacks of slices of 3 mm with pixels of 0.75 mm. A *useful* pair is a pixel within the rows of the mask
and a Gaussian with ``E < cut ** 2`` there; pairs are counted one by one. Times are process times of one core, the
least of several repeats, unless they say otherwise. ``fit`` and ``grid`` are whole epochs and iterations on two
cores (:mod:`renderer_fits`), ``cuts`` what a wider cut costs and brings. The last line printed is one JSON object.
"""

import argparse
import json
import os
import platform
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numba
import numpy as np
import renderer_fits as fits
import torch
from scipy.spatial.transform import Rotation

from gsbids.kernels import ops, points, reference
from gsbids.kernels.cpu import covariance as chain
from gsbids.kernels.cpu import rows
from gsbids.kernels.cpu.lanes import FAST, ramp, spread, total

AXES = np.array([34.0, 41.0, 29.0])  # mm, of the ellipsoid
WIDTHS = {"start": 0.5, "late": 0.1}  # mean log-scales: as at the start of a fit, and as at its end
K = 32  # of top-K and torch, the papers' own
SAMPLE = 20_000  # pixels on which torch and top-K are timed in a quick run
FLOPS_FORWARD, FLOPS_BACKWARD = 13 + 20, 26 + 20  # per pair, the exponential as 20 (see research: section 2.4)


@dataclass(frozen=True)
class Problem:
    """A field, slices and what a torch renderer needs of the same pixels."""

    field: list[np.ndarray]
    geometry: ops.SliceGeometry
    mask: np.ndarray


def problem(gaussians: int, log_scale: float, pixel: float = 0.75, seed: int = 0) -> Problem:
    """Ellipsoid of ``gaussians`` seen by three stacks; see the module."""
    rng = np.random.default_rng(seed)
    mean = rng.uniform(-1, 1, (3 * gaussians + 100, 3))
    mean = mean[(mean**2).sum(1) < 1][:gaussians] * AXES
    field = [
        mean,
        rng.normal(log_scale, 0.3, (gaussians, 3)),
        rng.normal(size=(gaussians, 4)),
        rng.uniform(size=gaussians),
        np.zeros(gaussians),
    ]
    turns, places = [], []
    for axis in range(3):
        turn = np.roll(np.eye(3), axis, axis=1)
        count = int(2 * AXES[np.argmax(turn[:, 2])] / 3)
        turns += [turn] * count
        places += [turn[:, 2] * 3 * (k - (count - 1) / 2) for k in range(count)]
    rotation, translation = np.array(turns), np.array(places)
    size = int(2 * AXES.max() / pixel) + 2
    u = (np.arange(size) - (size - 1) / 2) * pixel
    plane = np.stack(np.broadcast_arrays(u[:, None], u[None], 0.0), -1)
    world = np.einsum("sab,xyb->sxya", rotation, plane) + translation[:, None, None]
    mask = ((world / AXES) ** 2).sum(-1) < 1
    keep = mask.sum((1, 2)) > 4
    mask, slices, filled = mask[keep], int(keep.sum()), mask[keep].any(2)
    extent = np.stack([mask.argmax(2), size - mask[:, :, ::-1].argmax(2)], -1)
    psf = np.array([1.2 * pixel, 1.2 * pixel, 3.0]) / 2.3548
    geometry = ops.SliceGeometry(
        rotation[keep],
        translation[keep],
        np.tile(psf**2, (slices, 1)),
        np.full((slices, 2), pixel),
        np.full((slices, 2), (size - 1) / 2),
        np.where(filled[..., None], extent, 0).astype(np.int32),
        (size, size),
    )
    return Problem([a.astype(np.float32) for a in field], geometry, mask)


@numba.njit(parallel=True, cache=True)
def _count(rotation, translation, psf, spacing, centre, extent, mean, cov, cut2):
    pairs = np.zeros(len(rotation), np.int64)
    for s in numba.prange(len(rotation)):
        r, turned = rotation[s], np.ascontiguousarray(rotation[s].T)
        for j in range(len(mean)):
            m = turned @ (mean[j] - translation[s])
            c = turned @ cov[j] @ r + np.diag(psf[s])
            if m[2] ** 2 >= cut2 * c[2, 2]:
                continue
            p = np.linalg.inv(c)
            half = np.sqrt(cut2 * c[0, 0]) / spacing[s, 0]
            middle = m[0] / spacing[s, 0] + centre[s, 0]
            for i in range(max(0, int(middle - half)), min(extent.shape[1], int(middle + half) + 2)):
                u = (i - centre[s, 0]) * spacing[s, 0] - m[0]
                for k in range(extent[s, i, 0], extent[s, i, 1]):
                    v = (k - centre[s, 1]) * spacing[s, 1] - m[1]
                    energy = (
                        u * u * p[0, 0]
                        + v * v * p[1, 1]
                        + m[2] ** 2 * p[2, 2]
                        + 2 * (u * v * p[0, 1] - u * m[2] * p[0, 2] - v * m[2] * p[1, 2])
                    )
                    pairs[s] += energy < cut2
    return pairs.sum()


def useful_pairs(case: Problem, cut: float) -> int:
    """Pairs of pixel and Gaussian within the cut, by brute force in float64."""
    cov = chain.covariances(*case.field[1:3]).astype(float)[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].reshape(-1, 3, 3)
    return int(_count(*case.geometry.arrays(), case.field[0].astype(float), np.ascontiguousarray(cov), cut**2))


def least(function, repeats: int, clock=time.process_time) -> float:
    """Seconds of the fastest of several calls; the one before them, which compiles, is not counted."""
    function()
    times = []
    for _ in range(repeats):
        start = clock()
        function()
        times.append(clock() - start)
    return min(times)


def leaves(arrays):
    return [torch.tensor(a, requires_grad=True) for a in arrays]


def time_splat(case: Problem, options: ops.RenderOptions, repeats: int, quick: bool) -> dict:
    """Seconds of forward, backward, fused step and image gradient on one core, per pass over all pixels."""
    numba.set_num_threads(1)
    target = np.random.default_rng(1).uniform(size=case.mask.shape).astype(np.float32)
    zero = torch.zeros(len(case.mask), 3)
    image = ops.SliceRender.apply(*leaves(case.field), zero, zero, case.geometry, options)
    loss = (image * torch.tensor(target)).sum()
    acquired = ops.Acquired(target, case.mask.astype(np.float32), 0.03)
    seconds = {
        "forward": least(lambda: ops.render(*case.field, case.geometry, options), repeats),
        "backward": least(lambda: loss.backward(retain_graph=True), repeats),
        "step": least(lambda: ops.step_slices(*case.field, case.geometry, acquired, options), repeats),
    }
    if not quick:
        rendered = ops.render(*case.field, case.geometry, options)
        seconds["image_gradient"] = least(
            lambda: ops.image_gradient(*case.field, case.geometry, rendered, options), repeats
        )
    return seconds


def masked_points(case: Problem, count: int):
    """Some masked pixels: positions (N, 3), frames (N,), PSF matrices of the frames (S, 3, 3)."""
    g = case.geometry
    s, i, j = (a[:: max(1, int(case.mask.sum()) // count)][:count] for a in np.nonzero(case.mask))
    plane = np.stack([(i - g.centre[s, 0]) * g.spacing[s, 0], (j - g.centre[s, 1]) * g.spacing[s, 1], 0.0 * i], -1)
    position = np.einsum("nab,nb->na", g.rotation[s], plane) + g.translation[s]
    return position, s, np.einsum("sab,sb,scb->sac", g.rotation, g.psf, g.rotation)


def torch_top_k(field, position, psf, index, eps=1e-3):
    """The papers' renderer as one writes it in torch: gather K, invert, exponentials, sum; float32, autograd."""
    mean, log_scale, quaternion, intensity, log_weight = field
    observed = reference.covariance(log_scale, quaternion)[index] + psf[:, None]
    offset = position[:, None] - mean[index]
    energy = torch.einsum("nka,nkab,nkb->nk", offset, torch.linalg.inv(observed), offset)
    weight = torch.exp(log_weight[index] - energy / 2)
    return (weight * intensity[index]).sum(1) / (weight.sum(1) + eps)


def time_top_k(case: Problem, count: int, repeats: int) -> dict:
    """Seconds per masked pixel of torch and of our own top-K, forward and backward, the search for neighbours."""
    numba.set_num_threads(1)
    position, frame, psf = masked_points(case, count)
    start = time.process_time()
    listed = points.nearest(case.field[0], position, K, psf[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]], frame)
    seconds = {"search": time.process_time() - start}
    index = torch.tensor(listed.members.reshape(-1, K)).long()
    where, matrices = torch.tensor(position, dtype=torch.float32), torch.tensor(psf[frame], dtype=torch.float32)
    renderers = {
        "torch": lambda field: torch_top_k(field, where, matrices, index),
        "top_k": lambda field: points.PointRender.apply(*field, where, listed, 1e-3),
    }
    for name, render in renderers.items():
        field = leaves(case.field)
        loss = (render(field) ** 2).sum()
        seconds[f"{name}_forward"] = least(lambda: render(leaves(case.field)), repeats)  # noqa: B023
        seconds[f"{name}_backward"] = least(lambda: loss.backward(retain_graph=True), repeats)  # noqa: B023
    return {k: v / len(position) for k, v in seconds.items()}


def accuracy(case: Problem, cut: float) -> dict:
    """Truncation at ``cut`` against none (share of the signal's deviation), and gradients against float64."""
    exact, _ = ops.render(*case.field, case.geometry, ops.RenderOptions(cut=7.0, mass_factor=False))
    image, _ = ops.render(*case.field, case.geometry, ops.RenderOptions(cut=cut, mass_factor=False))
    signal = exact[case.mask].std()
    rng = np.random.default_rng(2)
    field = [
        a.astype(np.float32)
        for a in (
            rng.normal(0, 4, (60, 3)),
            rng.normal(0.3, 0.3, (60, 3)),
            rng.normal(size=(60, 4)),
            rng.uniform(0.2, 1, 60),
            np.zeros(60),
        )
    ]
    shape, slices = (16, 20), 4
    small = ops.SliceGeometry(
        Rotation.random(slices, random_state=1).as_matrix(),
        rng.normal(0, 1, (slices, 3)),
        np.tile([0.2, 0.2, 1.6], (slices, 1)),
        np.full((slices, 2), 0.9),
        np.tile((np.array(shape) - 1) / 2, (slices, 1)),
        ops.full_extent(slices, shape),
        shape,
    )
    target = rng.uniform(size=(slices, *shape))
    doubles = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in field]
    flat = [torch.tensor(a) for a in (small.rotation, small.translation, small.psf, small.spacing, small.centre)]
    expected, _ = reference.render_slices(doubles[0], reference.covariance(*doubles[1:3]), *doubles[3:], (*flat, shape))
    (torch.sqrt((expected - torch.tensor(target)) ** 2 + 0.03**2) - 0.03).sum().backward()
    step = ops.step_slices(
        *field, small, ops.Acquired(target, np.ones_like(target), 0.03), ops.RenderOptions(cut=8.0, mass_factor=False)
    )
    errors = [
        np.abs(a - b.grad.numpy()).max() / np.abs(b.grad.numpy()).max()
        for a, b in zip(step.gradients, doubles, strict=True)
    ]
    return {
        "truncation_rms": float(np.sqrt(np.mean((image - exact)[case.mask] ** 2)) / signal),
        "gradient_error": float(max(errors)),
        "forward_error": float(np.abs(step.image - expected.detach().numpy()).max()),
    }


def halves(case: Problem) -> ops.Acquired:
    """Slices of one half everywhere to compare with, in the type that a fit keeps them in."""
    return ops.Acquired(np.full(case.mask.shape, 0.5, np.float32), case.mask.astype(np.float32), 0.03)


def cuts(case: Problem, repeats: int) -> list[dict]:
    """What a wider cut costs (fused step) and brings (truncation error)."""
    exact, _ = ops.render(*case.field, case.geometry, ops.RenderOptions(cut=7.0, mass_factor=False))
    table = []
    for cut in (3.0, 3.5, 3.65, 3.8, 4.0):
        options = ops.RenderOptions(cut=cut, mass_factor=False)
        image, _ = ops.render(*case.field, case.geometry, options)
        seconds = least(lambda: ops.step_slices(*case.field, case.geometry, halves(case), options), repeats)  # noqa: B023
        error = np.sqrt(np.mean((image - exact)[case.mask] ** 2)) / exact[case.mask].std()
        table.append({"cut": cut, "step_s": seconds, "truncation_rms": float(error)})
    return table


def thread_scaling(case: Problem, options: ops.RenderOptions, repeats: int) -> dict:
    """Wall seconds of the fused step for 1, 2, 4, ... threads; the load says whether they can be believed."""
    acquired = halves(case)
    threads, wall = 1, {}
    while threads <= numba.config.NUMBA_NUM_THREADS:
        numba.set_num_threads(threads)
        wall[threads] = least(
            lambda: ops.step_slices(*case.field, case.geometry, acquired, options), repeats, time.perf_counter
        )
        threads *= 2
    numba.set_num_threads(1)
    return wall


def peak_gflops(repeats: int = 3) -> float:
    """Fused multiply-adds of one core, in GFLOP/s, by eight independent chains of vectors: the roofline."""
    lanes, count = rows.lanes(), 1_000_000
    return 2 * 8 * int(lanes) * count / least(lambda: _chains(count, lanes), repeats) / 1e9


@numba.njit(fastmath=FAST)
def _chains(count, lanes):
    m, n = spread(np.float32(0.9999), lanes), spread(np.float32(0.0001), lanes)
    a = b = c = d = e = f = g = h = ramp(lanes)
    b, c, d, e, f, g, h = b + n, c + m, d * m, e * n, f + n + n, g * m * m, h + m + m
    for _ in range(count):
        a, b, c, d = a * m + n, b * m + n, c * m + n, d * m + n
        e, f, g, h = e * m + n, f * m + n, g * m + n, h * m + n
    return total(a + b + c + d + e + f + g + h)


def measure(quick: bool) -> dict:
    """Everything; a quick run takes fewer repeats and epochs, and leaves cuts and the size of the problem out."""
    torch.set_num_threads(1)
    repeats, options = (3, 7)[not quick], ops.RenderOptions(mass_factor=False)
    result = {
        "processor": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "rows": "vector" if int(rows.lanes()) > 1 else "plain",
        "cut": options.cut,
        "gflops_of_a_core": peak_gflops(),
        "cases": {},
    }
    for name, log_scale in WIDTHS.items():
        case = problem(30_000, log_scale)
        pairs, pixels = useful_pairs(case, options.cut), int(case.mask.sum())
        seconds, top_k = time_splat(case, options, repeats, quick), time_top_k(case, SAMPLE, 2)
        ours = seconds["forward"] + seconds["backward"]
        result["cases"][name] = {
            "pixels": pixels,
            "slices": len(case.mask),
            "gaussians": 30_000,
            "useful_pairs": pairs,
            "seconds": seconds,
            "seconds_per_pixel_k32": top_k,
            "ratio_vs_torch": pixels * (top_k["torch_forward"] + top_k["torch_backward"]) / ours,
            "ratio_vs_top_k": pixels * (top_k["top_k_forward"] + top_k["top_k_backward"]) / ours,
            "forward_ns_per_pair": 1e9 * seconds["forward"] / pairs,
            "backward_ns_per_pair": 1e9 * seconds["backward"] / pairs,
            "step_ns_per_pair": 1e9 * seconds["step"] / pairs,
            "roofline_share": 1e-9 * pairs * (FLOPS_FORWARD + FLOPS_BACKWARD) / ours / result["gflops_of_a_core"],
            **accuracy(case, options.cut),
        }
    wall = thread_scaling(case, options, repeats)
    result["wall_by_threads"] = wall
    result["thread_scaling"] = wall[1] / wall[2] if 2 in wall else 1.0
    cores = min(2, numba.config.NUMBA_NUM_THREADS)
    begin, truth = (problem(fits.GAUSSIANS, WIDTHS[k], fits.PIXEL, seed) for seed, k in enumerate(WIDTHS))
    result["fit"], fitted = fits.fit_slices(begin, truth, 30 if quick else 500, cores)
    result["grid"] = fits.iterate_grid(fits.VOXELS, fits.IN_THE_GRID, cores, 1 if quick else 5)
    numba.set_num_threads(1)
    if not quick:
        result["fit"] |= {
            "useful_pairs_first": useful_pairs(begin, options.cut),
            "useful_pairs_last": useful_pairs(replace(begin, field=fitted), options.cut),
        }
        result["cuts"] = {name: cuts(problem(30_000, scale), 5) for name, scale in WIDTHS.items()}
        result["scaling"] = [
            _size(g, p, options)
            for g, p in [(7_500, 0.75), (30_000, 0.75), (120_000, 0.75), (30_000, 1.5), (30_000, 0.5)]
        ]
    worst = result["cases"].values()
    return {
        **result,
        **{
            k: max(c[k] for c in worst)
            for k in ("forward_ns_per_pair", "backward_ns_per_pair", "truncation_rms", "gradient_error")
        },
        "ratio_vs_torch": min(c["ratio_vs_torch"] for c in worst),
        "load_after": os.getloadavg()[0],
    }


def _size(gaussians, pixel, options):
    """One fused step with other numbers of Gaussians and pixels, as large as keeps the brain covered."""
    case = problem(gaussians, 0.1 + np.log(30_000 / gaussians) / 3, pixel)
    acquired, pairs = halves(case), useful_pairs(case, options.cut)
    seconds = least(lambda: ops.step_slices(*case.field, case.geometry, acquired, options), 3)
    return {
        "gaussians": gaussians,
        "pixels": int(case.mask.sum()),
        "useful_pairs": pairs,
        "step_s": seconds,
        "step_ns_per_pair": 1e9 * seconds / pairs,
    }


def plot(result: dict, path: Path) -> None:
    """Time of one pass over all pixels, for each renderer and case."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 3), layout="constrained")
    for ax, (name, case) in zip(figure.subplots(1, 2, sharey=True), result["cases"].items(), strict=True):
        other = {k: v * case["pixels"] for k, v in case["seconds_per_pixel_k32"].items()}
        for y, (label, seconds) in enumerate(
            [
                ("torch, K = 32", [other["torch_forward"], other["torch_backward"]]),
                ("top-K, K = 32", [other["top_k_forward"], other["top_k_backward"]]),
                ("splat, all pairs", [case["seconds"]["forward"], case["seconds"]["backward"]]),
            ]
        ):
            ax.barh([y - 0.2, y + 0.2], seconds, 0.36, color=["#4878a8", "#c06c5a"])
            ax.text(seconds[1] * 1.1, y, f"{label}: {sum(seconds):.2f} s", va="center", fontsize=8)
        ax.set(
            xscale="log",
            yticks=[],
            xlim=(0.02, 50),
            title=f"{name}: {case['useful_pairs'] / case['pixels']:.0f} pairs a pixel",
            xlabel="s of one core (blue forward, red backward)",
        )
    figure.savefig(path)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--quick", action="store_true", help="within a minute on two cores")
    parser.add_argument("--json", type=Path, help="write the result here too")
    parser.add_argument("--plot", type=Path, help="write a figure here (matplotlib)")
    given = parser.parse_args()
    result = measure(given.quick)
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if given.plot:
        plot(result, given.plot)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
