# SPDX-License-Identifier: Apache-2.0
"""Everything that needs a GPU, in one go: correctness, the fits themselves, rates, 500 epochs, launches, graphs.

``benchmarks/gpu.sh OUT.json`` runs it on a machine that has only torch, numba, numba-cuda and scipy (the parts
``svr_fit``, ``sr_fit`` and ``agreement`` need the latter). ``--only PART ...`` runs some parts. Each part that fails
is written down with its error and the others go on; the exit code is 1 if any failed. Parts that would begin after
seven minutes are not run, and count as failed. ``--smoke`` runs tiny sizes on the CPU in the simulator
(``GSBIDS_BACKEND=sim``), which checks the script: its times and its ratio say nothing about a GPU.
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
import torch
from gpu_fit import MILLION, OPTIONS, epochs, paper, ratio_to_paper
from gpu_recon import agreement, sr_fit, svr_fit

from gsbids.kernels import ops
from gsbids.kernels.cpu import grid_ops as grid_cpu
from gsbids.kernels.cuda import adjoint as adjoint_cuda
from gsbids.kernels.cuda import grid as grid_cuda
from gsbids.kernels.cuda import grid_ops as ops_grid_cuda
from gsbids.kernels.cuda import kept_lists as verlet_cuda
from gsbids.kernels.cuda import ops as ops_cuda
from gsbids.kernels.cuda import plan as plan_cuda
from gsbids.kernels.cuda import runtime
from gsbids.kernels.cuda import splat as splat_cuda

TESTS = Path(__file__).resolve().parents[1] / "tests"
NAMES = ("mean", "log_scale", "quaternion", "intensity", "log_weight", "omega", "tau")
TIME = 420.0  # seconds after which no part begins any more


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
    """The cases of the simulator's test, on this device; in a smoke run the shortest alone."""
    cases = run.pick((), ("against_oracle",))
    done = subprocess.run(
        [sys.executable, str(TESTS / "cuda_sim_cases.py"), "--device", run.target.type, *cases],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def gradients(operation, leaves, *more):
    """Image and all gradients of the sum of squares."""
    leaves = [a.detach().clone().requires_grad_() for a in leaves]
    image = operation.apply(*leaves, *more)
    (image**2).sum().backward()
    return [image.detach(), *(a.grad for a in leaves)]


def compared(names, ours, theirs, suffix="") -> dict:
    return {f"{name}{suffix}": relative(a, b) for name, a, b in zip(names, ours, theirs, strict=True)}


def correctness(run: Run) -> dict:
    """Largest error against the CPU kernels, relative to the largest number, at real sizes."""
    problem = gpu_problem.make(*run.pick((8, 148, 30000), (1, 8, 8)))
    field, geometry = run.tensors(problem.field), problem.geometry
    there = ops_cuda.on_device(geometry, run.target)
    tangents = [torch.zeros(len(geometry.rotation), 3, device=run.target) for _ in range(2)]
    ours = gradients(ops.SliceRender, [*field, *tangents], there, OPTIONS)
    theirs = gradients(ops.SliceRenderCpu, [a.cpu() for a in (*field, *tangents)], geometry, OPTIONS)
    errors = compared(("image", *NAMES), ours, theirs)
    far = (ours[0].cpu() - theirs[0]).double()
    errors["image_rms"] = float(far.square().mean().sqrt() / theirs[0].double().std())  # the largest is at the cut
    again = gradients(ops.SliceRender, [*field, *tangents], there, OPTIONS)
    errors["same_bits"] = all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    target = ops.Acquired(
        problem.values,
        problem.mask().astype(np.float32),
        0.03,
        np.linspace(0.8, 1.2, len(problem.values)).astype(np.float32),
    )
    steps = [ops.step_slices(*f, geometry, target, OPTIONS) for f in (field, problem.field)]
    errors |= compared(
        ("loss", "image", *NAMES[:5], "pose"),
        *((step.loss, step.image, *step.gradients, step.pose) for step in steps),
        "_of_the_step",
    )
    rendered = ops.render(*problem.field, geometry, OPTIONS)
    expected = ops.image_gradient(*problem.field, geometry, rendered, OPTIONS)
    errors["image_gradient"] = relative(ops.image_gradient(*field, there, run.tensors(rendered), OPTIONS), expected)
    parts = (expected, problem.values - rendered[0], target.weight, target.gain)
    return errors | compared(
        ("matrix", "vector"),
        ops.pose_normal_equations(there, *run.tensors(parts)),
        ops.pose_normal_equations(geometry, *parts),
    )


def grid(run: Run) -> dict:
    """The brick renderer: against the CPU's at one size, upright and turned with a PSF, and its rate at another."""
    size, gaussians = run.pick((96, 20000), (9, 8))
    rng, result = np.random.default_rng(0), {}
    field = [
        rng.uniform(0, size, (gaussians, 3)),
        rng.normal(0.2, 0.2, (gaussians, 3)),
        rng.normal(size=(gaussians, 4)),
        rng.random(gaussians),
        rng.normal(0, 0.3, gaussians),
    ]
    field = [torch.tensor(a, dtype=torch.float32) for a in field]
    angle = 0.3
    turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
    for kind, more in (("", ()), ("_turned", (turn, np.array([0.2, 0.4, 0.6])))):
        geometry = ops.GridGeometry((size,) * 3, np.ones(3), np.zeros(3), *more)
        options = ops.RenderOptions(mass_factor=bool(kind))
        ours = gradients(ops.GridRender, [a.to(run.target) for a in field], geometry, options)
        result |= compared(("image", *NAMES[:5]), ours, gradients(grid_cpu.GridRender, field, geometry, options), kind)
    return result | {"rate": grid_rate(run, ops.RenderOptions(mass_factor=False))}


def grid_rate(run: Run, options) -> dict:
    """Milliseconds of an iteration: 256^3 voxels, 470 k Gaussians of 1.2 voxel."""
    size, gaussians = run.pick((256, 470000), (9, 10))
    rng = np.random.default_rng(1)
    field = run.tensors(
        [
            a.astype(np.float32)
            for a in (
                rng.uniform(0, size, (gaussians, 3)),
                np.full((gaussians, 3), np.log(1.2)),
                rng.normal(size=(gaussians, 4)),
                rng.random(gaussians),
                np.zeros(gaussians),
            )
        ],
        requires_grad=True,
    )
    voxels = ops_grid_cuda.on_device(ops.GridGeometry((size,) * 3, np.ones(3), np.zeros(3)), run.target)
    lists = ops_grid_cuda.plan_grid(field, voxels, options)

    def iteration():
        for leaf in field:
            leaf.grad = None
        (ops.GridRender.apply(*field, voxels, options, lists) ** 2).sum().backward()

    with torch.no_grad():
        forward = run.seconds(lambda: ops_grid_cuda.render_grid(*field, voxels, options, lists))
        lists_s = run.seconds(lambda: ops_grid_cuda.plan_grid(field, voxels, options))
    return {
        "size": size,
        "gaussians": gaussians,
        "forward_ms": 1e3 * forward,
        "lists_ms": 1e3 * lists_s,
        "iteration_ms": 1e3 * run.seconds(iteration),
    }


def rates(run: Run) -> dict:
    """Time of each stage, and per pair (pixel, Gaussian) within the cut."""
    problem = gpu_problem.make(*run.pick(MILLION, (1, 8, 8)))
    field = run.tensors(problem.field)
    geometry = ops_cuda.on_device(problem.geometry, run.target)
    plans = ops_cuda.plan(field, geometry, OPTIONS)
    lists, gauss = plans[0], plan_cuda.pack_field(*field, OPTIONS.mass_factor)
    record, box = plan_cuda.project(gauss, geometry, lists.pairs, OPTIONS.cut, OPTIONS.mass_factor)
    useful = gpu_problem.useful_pairs(record, box, geometry.inside, lists.pairs[:, 0])
    image, weight = ops.render(*field, geometry, OPTIONS, plans)
    values, mask, gain = run.tensors(
        (problem.values, problem.mask().astype(np.float32), np.ones(len(problem.values), np.float32))
    )
    acquired = ops.Acquired(values, mask, 0.03, gain)
    h = torch.where(geometry.inside, image / weight, 0.0)
    k, moment = h * image, gauss.new_empty((len(record), adjoint_cuda.MOMENTS))
    warps = runtime.blocks(len(record), adjoint_cuda.PAIRS), adjoint_cuda.PAIRS * adjoint_cuda.WARP
    tiles = lists.tiles[1], lists.tiles[0], len(geometry)
    stages = {
        "lists": lambda: ops_cuda.plan(field, geometry, OPTIONS),
        "project": lambda: plan_cuda.project(gauss, geometry, lists.pairs, OPTIONS.cut, OPTIONS.mass_factor),
        "render": lambda: runtime.launch(
            splat_cuda.render_tiles,
            tiles,
            splat_cuda.WARP,
            record,
            lists.tile_start,
            lists.tile_list,
            geometry.extent,
            OPTIONS.eps,
            image,
            weight,
        ),
        "moments": lambda: runtime.launch(
            adjoint_cuda.moments,
            *warps,
            record,
            box,
            lists.pairs,
            *geometry.shape,
            h.reshape(-1),
            k.reshape(-1),
            moment,
        ),
        "forward": lambda: ops.render(*field, geometry, OPTIONS, plans),
        "backward": lambda: ops_cuda.gradients(gauss, geometry, OPTIONS, plans, h, k),
        "step": lambda: ops.step_slices(*field, geometry, acquired, OPTIONS, plans),
        "image_gradient": lambda: ops.image_gradient(*field, geometry, (image, weight), OPTIONS, plans),
    }
    took = {name: run.seconds(work, 20) for name, work in stages.items()}
    return {
        "pixels": problem.pixels,
        "gaussians": len(gauss),
        "pairs_of_slices": len(record),
        "useful_pairs": useful,
        "tile_pairs": 64 * len(lists.tile_list),
        "ms": {name: 1e3 * s for name, s in took.items()},
        "ns_per_useful_pair": {name: 1e9 * s / useful for name, s in took.items()},
    }


def launches(run: Run) -> dict:
    """Microseconds of a launch with its tensors' allocation: 5 tensors and 4 numbers, and 6 tensors and 1 number."""
    problem = gpu_problem.make(*run.pick((1, 16, 64), (1, 8, 8)))
    field = run.tensors(problem.field)
    geometry = ops_cuda.on_device(problem.geometry, run.target)
    lists, gauss = ops_cuda.plan(field, geometry, OPTIONS)[0], plan_cuda.pack_field(*field, True)
    count = run.pick(2000, 1)

    def many(work):
        return lambda: [work() for _ in range(count)]

    project = many(lambda: plan_cuda.project(gauss, geometry, lists.pairs, OPTIONS.cut, True))
    pack = many(lambda: plan_cuda.pack_field(*field, True))
    return {"project_us": 1e6 * run.seconds(project, 3) / count, "pack_us": 1e6 * run.seconds(pack, 3) / count}


def registers(run: Run) -> dict:
    """Registers of each kernel as it was compiled for this device, by signature."""
    if run.smoke:
        return {"none": "the simulator compiles nothing"}
    kernels = [
        k
        for m in (splat_cuda, adjoint_cuda, verlet_cuda, grid_cuda)
        for k in vars(m).values()
        if hasattr(k, "get_regs_per_thread") and not k.targetoptions.get("device")
    ]
    return {k.py_func.__name__: sorted(k.get_regs_per_thread().values()) for k in kernels if k.overloads}


def machine(run: Run) -> dict:
    """What it ran on."""
    import numba_cuda

    gpu = torch.cuda.get_device_name(run.target) if run.target.type == "cuda" else None
    commit = subprocess.run(
        ["git", "-C", str(TESTS), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    return {
        "date": date.today().isoformat(),
        "gpu": gpu,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "numba": numba.__version__,
        "numba_cuda": numba_cuda.__version__,
        "commit": commit,
    }


PARTS = (correctness, svr_fit, sr_fit, agreement, epochs, paper, rates, grid, launches, registers, small_cases)


def attempt(part: Callable, run: Run, late: bool) -> dict:
    """What a part found, and its seconds; or its error."""
    start = time.perf_counter()
    try:
        if late:
            raise TimeoutError(f"not begun within {TIME:.0f} s")
        found = part(run)
    except Exception:
        found = {"failed": traceback.format_exc()[-3000:]}
    found["part_s"] = time.perf_counter() - start
    print(
        f"{part.__name__}: {found['part_s']:.1f} s{', failed' if 'failed' in found else ''}",
        file=sys.stderr,
        flush=True,
    )
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="JSON file to write")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes on the CPU, in the simulator")
    parser.add_argument(
        "--only",
        nargs="+",
        choices=[part.__name__ for part in PARTS],
        metavar="PART",
        help="parts to run, of " + ", ".join(part.__name__ for part in PARTS),
    )
    options = parser.parse_args()
    parts = [part for part in PARTS if not options.only or part.__name__ in options.only]
    run = Run(torch.device("cpu" if options.smoke else "cuda"), options.smoke)
    runtime.check_device(run.target)
    result, start = {"machine": machine(run), "smoke": run.smoke}, time.perf_counter()
    for part in parts:
        result[part.__name__] = attempt(part, run, time.perf_counter() - start > TIME)
        options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    failed = [part.__name__ for part in parts if "failed" in result[part.__name__]]
    if {"epochs", "paper"} <= result.keys() - set(failed):
        result["ratio_vs_paper_torch"] = ratio_to_paper(result)
    result["failed"] = failed
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
