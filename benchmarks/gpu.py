# SPDX-License-Identifier: Apache-2.0
"""Everything about the CUDA renderer that needs a GPU, in one go: correctness, rates, 500 epochs, launches, graphs.

``benchmarks/gpu.sh OUT.json`` runs it on a machine that has only torch, numba and numba-cuda. Each part that fails
is written down with its error and the others go on; the exit code is 1 if any failed. ``--smoke`` runs tiny sizes
on the CPU in the simulator (``GSBIDS_BACKEND=sim``), which checks the script and measures nothing.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import gpu_problem
import numba
import numpy as np
import paper_torch
import torch

from gsbids.kernels import adjoint_cuda, device, grid_cuda, ops, ops_cuda, ops_grid_cuda, plan_cuda, splat_cuda

TESTS = Path(__file__).resolve().parents[1] / "tests"
NAMES = ("mean", "log_scale", "quaternion", "intensity", "log_weight", "omega", "tau")
OPTIONS = ops.RenderOptions()
REBUILD, MARGIN = 10, 0.5  # epochs between lists, and how far beyond the cut they reach
MILLION = (28, 148, 30000)  # slices a stack, pixels along an edge, Gaussians: 1.005 M pixels in the ball


@dataclass(frozen=True)
class Run:
    """Sizes and device of this run."""

    target: torch.device
    smoke: bool

    def pick(self, real, tiny):
        """The real size, or the tiny one of a smoke run."""
        return tiny if self.smoke else real

    def wait(self):
        """Until the device has done all."""
        if self.target.type == "cuda":
            torch.cuda.synchronize(self.target)

    def seconds(self, work: Callable, repeats: int = 5) -> float:
        """Shortest of several runs, after one that compiles."""
        work()
        shortest = float("inf")
        for _ in range(self.pick(repeats, 1)):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            shortest = min(shortest, time.perf_counter() - start)
        return shortest

    def tensors(self, arrays, **options):
        return [torch.tensor(a, device=self.target, **options) for a in arrays]


def relative(a, b) -> float:
    a, b = (x.detach().cpu().numpy() if isinstance(x, torch.Tensor) else np.asarray(x) for x in (a, b))
    return float(np.abs(a - b).max() / np.abs(b).max())


def small_cases(run: Run) -> dict:
    """The cases of the simulator's test, on this device."""
    done = subprocess.run([sys.executable, str(TESTS / "cuda_sim_cases.py"), "--device", run.target.type],
                          capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def gradients(operation, field, geometry):
    """Image and all gradients of the sum of squares."""
    leaves = [a.clone().requires_grad_() for a in field]
    leaves += [torch.zeros(len(geometry.rotation), 3, device=field[0].device, requires_grad=True) for _ in range(2)]
    image = operation.apply(*leaves, geometry, OPTIONS)
    (image**2).sum().backward()
    return [image.detach(), *(a.grad for a in leaves)]


def correctness(run: Run) -> dict:
    """Largest error against the CPU kernels, relative to the largest number, at real sizes."""
    problem = gpu_problem.make(*run.pick((8, 148, 30000), (1, 10, 20)))
    ours = gradients(ops_cuda.SliceRenderCuda, run.tensors(problem.field), problem.geometry)
    theirs = gradients(ops.SliceRender, [torch.tensor(a) for a in problem.field], problem.geometry)
    errors = {name: relative(a, b) for name, a, b in zip(("image", *NAMES), ours, theirs, strict=True)}
    far = (ours[0].cpu() - theirs[0]).double()
    errors["image_rms"] = float(far.square().mean().sqrt() / theirs[0].double().std())  # the largest is at the cut
    again = gradients(ops_cuda.SliceRenderCuda, run.tensors(problem.field), problem.geometry)
    errors["same_bits"] = all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    rendered = ops.render(*problem.field, problem.geometry, OPTIONS)
    expected = ops.image_gradient(*problem.field, problem.geometry, rendered, OPTIONS)
    found = ops_cuda.image_gradient(*run.tensors(problem.field), problem.geometry, run.tensors(rendered), OPTIONS)
    errors["image_gradient"] = relative(found, expected)
    weight = problem.mask().astype(np.float32)
    parts = (expected, problem.values - rendered[0], weight, np.ones(len(weight), np.float32))
    systems = ops.pose_normal_equations(problem.geometry, *parts)
    found = ops_cuda.pose_normal_equations(problem.geometry, *run.tensors(parts))
    errors["matrix"], errors["vector"] = (relative(a, b) for a, b in zip(found, systems, strict=True))
    return errors


def grid(run: Run) -> dict:
    """The brick renderer: against slices of the CPU at one size, its rate at another."""
    size, gaussians = run.pick((96, 20000), (9, 10))
    rng = np.random.default_rng(0)
    field = [rng.uniform(0, size, (gaussians, 3)), rng.normal(0.2, 0.2, (gaussians, 3)),
             rng.normal(size=(gaussians, 4)), rng.random(gaussians), rng.normal(0, 0.3, gaussians)]
    field = [a.astype(np.float32) for a in field]
    options = ops.RenderOptions(mass_factor=False)
    voxels = ops_grid_cuda.VoxelGrid((size,) * 3, (1.0,) * 3, (0.0,) * 3)
    planes = ops.SliceGeometry(np.tile(np.eye(3), (size, 1, 1)), np.arange(size)[:, None] * np.array([[0, 0, 1.0]]),
                               np.zeros((size, 3)), np.ones((size, 2)), np.zeros((size, 2)),
                               ops.full_extent(size, (size, size)), (size, size))
    leaves = [run.tensors(field, requires_grad=True), [torch.tensor(a, requires_grad=True) for a in field]]
    ours = ops_grid_cuda.GridRenderCuda.apply(*leaves[0], voxels, options)
    zero = torch.zeros(size, 3)
    theirs = ops.SliceRender.apply(*leaves[1], zero, zero, planes, options).permute(1, 2, 0)
    for image in (ours, theirs):
        (image**2).sum().backward()
    result = {"image": relative(ours, theirs)}
    result |= {name: relative(a.grad, b.grad) for name, a, b in zip(NAMES, *leaves, strict=False)}
    return result | {"rate": grid_rate(run, options)}


def grid_rate(run: Run, options) -> dict:
    """Milliseconds of an iteration: 256^3 voxels, 470 k Gaussians of 1.2 voxel."""
    size, gaussians = run.pick((256, 470000), (9, 10))
    rng = np.random.default_rng(1)
    field = run.tensors([a.astype(np.float32) for a in (
        rng.uniform(0, size, (gaussians, 3)), np.full((gaussians, 3), np.log(1.2)), rng.normal(size=(gaussians, 4)),
        rng.random(gaussians), np.zeros(gaussians))], requires_grad=True)
    voxels = ops_grid_cuda.VoxelGrid((size,) * 3, (1.0,) * 3, (0.0,) * 3)
    lists = ops_grid_cuda.plan_grid(field, voxels, options)

    def iteration():
        for leaf in field:
            leaf.grad = None
        (ops_grid_cuda.GridRenderCuda.apply(*field, voxels, options, lists) ** 2).sum().backward()

    with torch.no_grad():
        forward = run.seconds(lambda: ops_grid_cuda.render_grid(*field, voxels, options, lists))
        lists_s = run.seconds(lambda: ops_grid_cuda.plan_grid(field, voxels, options))
    return {"size": size, "gaussians": gaussians, "forward_ms": 1e3 * forward, "lists_ms": 1e3 * lists_s,
            "iteration_ms": 1e3 * run.seconds(iteration)}


def rates(run: Run) -> dict:
    """Time of each stage, and per pair (pixel, Gaussian) within the cut."""
    problem = gpu_problem.make(*run.pick(MILLION, (1, 16, 64)))
    field = run.tensors(problem.field)
    geometry = ops_cuda.on_device(problem.geometry, run.target)
    lists = ops_cuda.plan(field, geometry, OPTIONS)
    gauss = plan_cuda.pack_field(*field, OPTIONS.mass_factor)
    record, box = plan_cuda.project(gauss, geometry, lists.pairs, OPTIONS.cut, OPTIONS.mass_factor)
    useful = gpu_problem.useful_pairs(record, box, geometry.inside, lists.pairs[:, 0])
    image, weight = ops_cuda.render(*field, geometry, OPTIONS, lists)
    h = torch.where(geometry.inside, image / weight, 0.0)
    k, moment = h * image, gauss.new_empty((len(record), adjoint_cuda.MOMENTS))
    warps = device.blocks(len(record), adjoint_cuda.PAIRS), adjoint_cuda.PAIRS * adjoint_cuda.WARP
    tiles = lists.tiles[1], lists.tiles[0], len(geometry)
    stages = {
        "lists": lambda: ops_cuda.plan(field, geometry, OPTIONS),
        "project": lambda: plan_cuda.project(gauss, geometry, lists.pairs, OPTIONS.cut, OPTIONS.mass_factor),
        "render": lambda: device.launch(splat_cuda.render_tiles, tiles, splat_cuda.WARP, record, lists.tile_start,
                                        lists.tile_list, geometry.extent, OPTIONS.eps, image, weight),
        "moments": lambda: device.launch(adjoint_cuda.moments, *warps, record, box, lists.pairs, *geometry.shape,
                                         h.reshape(-1), k.reshape(-1), moment),
        "forward": lambda: ops_cuda.render(*field, geometry, OPTIONS, lists),
        "backward": lambda: ops_cuda.gradients(gauss, geometry, OPTIONS, lists, h, k),
        "image_gradient": lambda: ops_cuda.image_gradient(*field, geometry, (image, weight), OPTIONS, lists),
    }
    took = {name: run.seconds(work, 20) for name, work in stages.items()}
    return {"pixels": problem.pixels, "gaussians": len(gauss), "pairs_of_slices": len(record), "useful_pairs": useful,
            "tile_pairs": 64 * len(lists.tile_list), "ms": {name: 1e3 * s for name, s in took.items()},
            "ns_per_useful_pair": {name: 1e9 * s / useful for name, s in took.items()}}


class Fit:
    """A fit of the field alone: Charbonnier loss, Adam, lists rebuilt every 10 epochs."""

    def __init__(self, run: Run, problem: gpu_problem.Problem, capturable: bool):
        self.run = run
        self.geometry = ops_cuda.on_device(problem.geometry, run.target)
        self.leaves = run.tensors(problem.field, requires_grad=True)
        self.zero = torch.zeros(len(self.geometry), 3, device=run.target)
        self.values, self.weight = run.tensors((problem.values, problem.mask().astype(np.float32) / problem.pixels))
        more = {"capturable": capturable, "fused": True} if run.target.type == "cuda" else {}
        self.optimiser = torch.optim.Adam(self.leaves[:4], lr=5e-3, eps=1e-15, **more)
        self.loss = torch.zeros((), device=run.target)

    def lists(self):
        """Lists that hold for the next epochs."""
        return ops_cuda.plan(self.leaves, self.geometry, OPTIONS, MARGIN)

    def epoch(self, lists) -> None:
        """One step; nothing in it waits for the device."""
        self.optimiser.zero_grad(set_to_none=True)
        image = ops_cuda.SliceRenderCuda.apply(*self.leaves, self.zero, self.zero, self.geometry, OPTIONS, lists)
        loss = (self.weight * torch.sqrt((image - self.values) ** 2 + 1e-6)).sum()
        loss.backward()
        self.optimiser.step()
        self.loss.copy_(loss.detach())

    def plain(self, count: int) -> None:
        """Epochs launched one by one."""
        for epoch in range(count):
            if epoch % REBUILD == 0:
                lists = self.lists()
            self.epoch(lists)

    def graph(self, count: int) -> None:
        """One plain epoch after each rebuild (also the warm-up), then replays of a captured one."""
        side, pool = torch.cuda.Stream(self.run.target), torch.cuda.graph_pool_handle()
        for _ in range(count // REBUILD):
            lists = self.lists()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                self.epoch(lists)
            torch.cuda.current_stream().wait_stream(side)
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured, pool=pool, stream=side):
                self.epoch(lists)
            for _ in range(REBUILD - 1):
                captured.replay()
            self.run.wait()  # the graph and its lists go now


def epochs(run: Run) -> dict:
    """500 epochs, plainly and by CUDA graphs; both should end at the same loss."""
    problem = gpu_problem.make(*run.pick(MILLION, (1, 8, 10)))
    count = run.pick(500, 2)
    result = {"pixels": problem.pixels, "gaussians": len(problem.field[0]), "count": count, "rebuild": REBUILD}
    for name in run.pick(("plain", "graph"), ("plain",)):
        warm, fit = (Fit(run, problem, name == "graph") for _ in range(2))
        try:
            getattr(warm, name)(run.pick(REBUILD, 1))
            run.wait()
            start = time.perf_counter()
            getattr(fit, name)(count)
            run.wait()
        except Exception:
            result[name] = {"failed": traceback.format_exc()[-1500:]}
            continue
        result[name] = {"seconds": time.perf_counter() - start, "loss": float(fit.loss)}
    return result


def paper(run: Run) -> dict:
    """Epochs of the paper's top-K rendering in torch on the same problem and device, K = 32, one index."""
    problem = gpu_problem.make(*run.pick(MILLION, (1, 8, 10)))
    mask, neighbours = problem.mask(), run.pick(32, 4)
    points, values, rotation, psf = run.tensors([a.astype(np.float32) for a in (
        gpu_problem.positions(problem.geometry)[mask], problem.values[mask], problem.geometry.rotation,
        problem.geometry.psf)])
    owner = torch.tensor(np.nonzero(mask)[0], device=run.target)
    leaves = run.tensors(problem.field, requires_grad=True)
    optimiser = torch.optim.Adam(leaves[:4], lr=5e-3, eps=1e-15)
    index_s = run.seconds(lambda: paper_torch.nearest(points, leaves[0].detach(), neighbours), 1)
    index = paper_torch.nearest(points, leaves[0].detach(), neighbours)

    def epoch():
        optimiser.zero_grad(set_to_none=True)
        image = paper_torch.render(points, owner, index, leaves, rotation, psf, OPTIONS.eps)
        torch.sqrt((image - values) ** 2 + 1e-6).mean().backward()
        optimiser.step()

    return {"neighbours": neighbours, "index_s": index_s, "epoch_s": run.seconds(epoch, 10)}


def launches(run: Run) -> dict:
    """Microseconds of a launch with its tensors' allocation: 5 tensors and 4 numbers, and 6 tensors and 1 number."""
    problem = gpu_problem.make(*run.pick((1, 16, 64), (1, 16, 64)))
    field = run.tensors(problem.field)
    geometry = ops_cuda.on_device(problem.geometry, run.target)
    lists, gauss = ops_cuda.plan(field, geometry, OPTIONS), plan_cuda.pack_field(*field, True)
    count = run.pick(2000, 1)

    def many(work):
        return lambda: [work() for _ in range(count)]

    project = many(lambda: plan_cuda.project(gauss, geometry, lists.pairs, OPTIONS.cut, True))
    pack = many(lambda: plan_cuda.pack_field(*field, True))
    return {"project_us": 1e6 * run.seconds(project, 3) / count, "pack_us": 1e6 * run.seconds(pack, 3) / count}


def registers(run: Run) -> dict:
    """Registers of each kernel as it was compiled for this device, by signature."""
    kernels = [k for m in (splat_cuda, adjoint_cuda, grid_cuda) for k in vars(m).values()
               if hasattr(k, "get_regs_per_thread") and not k.targetoptions.get("device")]
    return {k.py_func.__name__: sorted(k.get_regs_per_thread().values()) for k in kernels if k.overloads}


def machine(run: Run) -> dict:
    """What it ran on."""
    import numba_cuda

    gpu = torch.cuda.get_device_name(run.target) if run.target.type == "cuda" else None
    commit = subprocess.run(["git", "-C", str(TESTS), "describe", "--always", "--dirty"], capture_output=True,
                            text=True, check=False).stdout.strip()
    return {"date": date.today().isoformat(), "gpu": gpu, "cores": os.cpu_count(), "python": platform.python_version(),
            "torch": torch.__version__, "cuda": torch.version.cuda, "numba": numba.__version__,
            "numba_cuda": numba_cuda.__version__, "commit": commit}


def ratio_to_paper(result: dict) -> float | None:
    """Time of an epoch of the paper's rendering in torch, over that of the faster of our two; None if not measured."""
    parts = [result["epochs"].get(name, {}) for name in ("plain", "graph")]
    seconds = [part["seconds"] for part in parts if "seconds" in part]
    if not seconds or "epoch_s" not in result["paper"]:
        return None
    return result["paper"]["epoch_s"] / (min(seconds) / result["epochs"]["count"])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU, in the simulator")
    options = parser.parse_args()
    run = Run(torch.device("cpu" if options.smoke else "cuda"), options.smoke)
    device.check_device(run.target)
    result = {"machine": machine(run)}

    def write():
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")

    parts = (small_cases, correctness, rates, epochs, paper, launches, grid, registers)
    failed = False
    for part in parts[1:-1] if run.smoke else parts:
        start = time.perf_counter()
        try:
            result[part.__name__] = part(run)
        except Exception:
            failed = True
            result[part.__name__] = {"failed": traceback.format_exc()[-3000:]}
        print(f"{part.__name__}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
        write()
    if not run.smoke:
        result["ratio_vs_paper_in_torch"] = ratio_to_paper(result)
        write()
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
