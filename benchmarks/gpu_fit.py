# SPDX-License-Identifier: Apache-2.0
"""Epochs of a fit on the GPU benchmark's problem: ours, plain and by a CUDA graph, and the paper's in torch."""

import time

import gpu_problem
import numpy as np
import paper_torch
import torch

from gsbids.kernels import ops
from gsbids.kernels.cuda import graph as graph_cuda
from gsbids.kernels.cuda import kept_lists as verlet_cuda
from gsbids.kernels.cuda import ops as ops_cuda

OPTIONS = ops.RenderOptions()
MILLION = (28, 148, 30000)  # slices a stack, pixels along an edge, Gaussians: 1.005 M pixels in the ball
MARGIN = 0.5  # standard deviations by which the kept lists reach beyond the cut
INDEX_EPOCHS = 50  # epochs between two searches of the nearest Gaussians, in the paper
MATRICES = 1 << 23  # covariances that torch inverts at a time: fills any GPU
RATE = 5e-3


class Fit:
    """A fit of the field alone: Charbonnier loss, Adam, lists kept for as long as they hold."""

    def __init__(self, run, problem: gpu_problem.Problem):
        self.target = run.target
        self.geometry = ops_cuda.on_device(problem.geometry, run.target)
        self.leaves = run.tensors(problem.field)
        values, weight, gain = run.tensors(
            (
                problem.values,
                problem.mask().astype(np.float32) / problem.pixels,
                np.ones(len(problem.values), np.float32),
            )
        )
        self.acquired = ops.Acquired(values, weight, 1e-3, gain)
        more = {"capturable": True, "fused": True} if run.target.type == "cuda" else {}
        self.optimiser = torch.optim.Adam(self.leaves[:4], lr=RATE, eps=1e-15, **more)
        self.lists = verlet_cuda.KeptLists(OPTIONS, MARGIN)
        self.loss = torch.zeros((), device=run.target, dtype=torch.float64)

    def epoch(self) -> None:
        """One step; nothing in it waits for the device."""
        step = ops.step_slices(*self.leaves, self.geometry, self.acquired, OPTIONS, self.lists.plans)
        for leaf, gradient in zip(self.leaves[:4], step.gradients, strict=False):
            leaf.grad = gradient
        self.optimiser.step()
        self.loss.copy_(step.loss.sum())
        self.lists.measure(self.leaves, self.geometry)

    def run(self, count: int, captured: bool) -> dict:
        """Epochs, launched one by one or by a graph; what came of it."""
        self.lists.current(self.leaves, self.geometry)
        work = graph_cuda.CapturedWork(self.epoch, self.target) if captured else self.epoch
        version, longest = self.lists.version, 0.0
        for _ in range(count):
            if self.lists.outdated():
                longest = max(longest, float(self.lists.used))
                self.lists.rebuild(self.leaves, self.geometry)
            if captured and self.lists.version != version:
                work.renew()
            version = self.lists.version
            work()
        return {
            "loss": float(self.loss),
            "rebuilds": self.lists.rebuilds,
            "largest_margin_used": longest,
            **({"replays": work.replays, "no_graph": work.failure} if captured else {}),
        }


def epochs(run) -> dict:
    """500 epochs, plainly and by a CUDA graph; both should end at the same loss."""
    problem = gpu_problem.make(*run.pick(MILLION, (1, 8, 6)))
    count = run.pick(500, 2)
    result = {"pixels": problem.pixels, "gaussians": len(problem.field[0]), "count": count, "margin": MARGIN}
    for name in ("plain", "graph"):
        if not run.smoke:
            Fit(run, problem).run(20, name == "graph")  # compiles
        fit = Fit(run, problem)
        run.wait()
        start = time.perf_counter()
        more = fit.run(count, name == "graph")
        run.wait()
        result[name] = {"seconds": time.perf_counter() - start, **more}
    return result


def paper(run) -> dict:
    """An epoch of the paper's top-K rendering in torch on the same problem and device, K = 32, and its index.

    In batches of pixels that fit into the memory: their gradients add up to those of the epoch.
    """
    problem = gpu_problem.make(*run.pick(MILLION, (1, 8, 6)))
    mask, neighbours = problem.mask(), run.pick(32, 4)
    points, values, rotation, psf = run.tensors(
        [
            a.astype(np.float32)
            for a in (
                gpu_problem.positions(problem.geometry)[mask],
                problem.values[mask],
                problem.geometry.rotation,
                problem.geometry.psf,
            )
        ]
    )
    owner = torch.tensor(np.nonzero(mask)[0], device=run.target)
    leaves = run.tensors(problem.field, requires_grad=True)
    optimiser = torch.optim.Adam(leaves[:4], lr=RATE, eps=1e-15)
    index_s = run.seconds(lambda: paper_torch.nearest(points, leaves[0].detach(), neighbours), 1)
    index = paper_torch.nearest(points, leaves[0].detach(), neighbours)

    def epoch(batches):
        optimiser.zero_grad(set_to_none=True)
        for part in torch.arange(len(points), device=run.target).chunk(batches):
            image = paper_torch.render(points[part], owner[part], index[part], leaves, rotation, psf, OPTIONS.eps)
            (torch.sqrt((image - values[part]) ** 2 + 1e-6).sum() / len(points)).backward()
        optimiser.step()

    batches = 1 + len(points) * neighbours // MATRICES
    while True:
        try:
            epoch_s = run.seconds(lambda: epoch(batches), 5)  # noqa: B023
            break
        except torch.cuda.OutOfMemoryError:
            if batches > 64:
                raise
            batches *= 2
        torch.cuda.empty_cache()
    return {
        "neighbours": neighbours,
        "index_s": index_s,
        "epoch_s": epoch_s,
        "batches": batches,
        "index_every": INDEX_EPOCHS,
    }


def ratio_to_paper(result: dict) -> float:
    """Time of one epoch of the paper's rendering in torch, with its share of the index, over one of our faster way."""
    ours = min(result["epochs"][name]["seconds"] for name in ("plain", "graph")) / result["epochs"]["count"]
    theirs = result["paper"]["epoch_s"] + result["paper"]["index_s"] / result["paper"]["index_every"]
    return theirs / ours
