# SPDX-License-Identifier: Apache-2.0
"""The fits themselves on a GPU: a slice-to-volume fit of 1 M pixels, a super-resolution x2 to 3.4 M voxels.

They need scipy beside torch, numba and numba-cuda; nothing else that gsbids depends on.
"""

import cProfile
import json
import os
import pstats
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np

CASES = Path(__file__).resolve().parents[1] / "tests" / "cuda_fit_cases.py"
AXES = (((1, 0, 0), (0, 1, 0)), ((1, 0, 0), (0, 0, 1)), ((0, 1, 0), (0, 0, 1)))
RADIUS, THICKNESS = 37.0, 3.0  # mm
MILLION = (28, 141)  # slices of each of three stacks, and pixels along an edge: 1.0 M pixels with the rim
MUST_S, AIM_S = 5.0, 1.0  # of either fit
SHOWN = 25  # functions of the profile


def waves(seed: int = 0, count: int = 24, shortest: float = 6.0):
    """Wave vectors (count, 3), rad/mm, and phases of a texture."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(count, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    return direction * (2 * np.pi / rng.uniform(shortest, 25.0, (count, 1))), rng.uniform(0, 2 * np.pi, count)


def texture(points: np.ndarray, covariance: np.ndarray, seed: int = 0) -> np.ndarray:
    """Intensities of the texture at points (..., 3), seen through a Gaussian PSF: exact, wave by wave."""
    vectors, phases = waves(seed)
    fade = np.exp(-0.5 * np.einsum("ka,ab,kb->k", vectors, covariance, vectors))
    image = np.zeros(points.shape[:-1])
    for vector, phase, share in zip(vectors, phases, fade, strict=True):
        image += share * np.sin(points @ vector + phase)
    return 500 + 400 * image / np.sqrt(len(vectors))


def make_stacks(slices: int, size: int, motion: float = 1.0, seed: int = 0):
    """Three stacks through a ball of texture; slices moved by ``motion`` mm and 0.04 rad per mm (deviations)."""
    from scipy.spatial.transform import Rotation

    from gsbids.imaging.stack import Stack

    rng, found = np.random.default_rng(seed), []
    pixel = 2.1 * RADIUS / size
    distance = 1.9 * RADIUS / slices
    psf = (np.array([1.2 * pixel, 1.2 * pixel, THICKNESS]) / 2.3548) ** 2
    for row, column in AXES:
        frame = np.stack([row, column, np.cross(row, column)], 1).astype(float)
        affine = np.eye(4)
        affine[:3, :3] = frame * [pixel, pixel, distance]
        affine[:3, 3] = -affine[:3, :3] @ (np.array([size - 1, size - 1, slices - 1]) / 2)
        image, mask = np.zeros((size, size, slices), np.float32), np.zeros((size, size, slices), bool)
        i, j = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
        for k in range(slices):
            turn = Rotation.from_rotvec(rng.normal(0, 0.04 * motion, 3)).as_matrix()
            at = np.stack([i, j, np.full_like(i, k)], -1) @ affine[:3, :3].T + affine[:3, 3]
            at = at @ turn.T + rng.normal(0, motion, 3)
            axes = turn @ frame
            image[:, :, k] = texture(at, axes * psf @ axes.T) + rng.normal(0, 10, (size, size))
            mask[:, :, k] = (at**2).sum(-1) < RADIUS**2
        found.append(Stack("-".join(map(str, row)), image, mask, affine, THICKNESS))
    return found


def warm(device: str) -> float:
    """Compile all that the fits call; seconds of that."""
    start = time.perf_counter()
    from gsbids.recon.fitting.options import SvrOptions
    from gsbids.recon.svr.fit import fit_svr

    options = SvrOptions(
        iterations=24,
        detail_iterations=16,
        neighbour_turns=(2,),
        doublings=1,
        members=2,
        device=device,
        threads=os.cpu_count(),
    )
    fit_svr(make_stacks(9, 33), np.tile(np.eye(4), (3, 1, 1)), options)
    return time.perf_counter() - start


def svr_fit(run) -> dict:
    """``fit_svr`` with its defaults, start to end, on 1 M pixels; where its time goes."""
    from gsbids.recon.fitting.options import SvrOptions
    from gsbids.recon.svr.fit import fit_svr

    options = SvrOptions(device="cuda", threads=os.cpu_count())
    if run.smoke:
        options = replace(options, n_gaussians=6, iterations=1, place=False, members=1, doublings=0)
    compiled = 0.0 if run.smoke else warm("cuda")
    given = make_stacks(*run.pick(MILLION, (1, 7)))
    transforms = np.tile(np.eye(4), (len(given), 1, 1))
    profile = cProfile.Profile()
    run.wait()
    start = time.perf_counter()
    result = fit_svr(given, transforms, options)
    run.wait()
    seconds = time.perf_counter() - start
    if not run.smoke and seconds < 90:
        profile.runcall(fit_svr, given, transforms, options)
    return {
        "seconds": seconds,
        "must_s": MUST_S,
        "aim_s": AIM_S,
        "first_fit_of_a_process_s": compiled,
        "pixels": result.settings["pixels"],
        "device": result.settings["device"],
        "iterations": len(result.history["loss"]),
        "gaussians_of_members": result.settings["gaussians_of_members"],
        "held_out": result.history["held_out"][-1],
        "median_ncc": float(np.median(result.ncc)),
        "slices_rejected": int(result.rejected.sum()),
        "profile": most_of(profile),
    }


def most_of(profile: cProfile.Profile) -> list[str]:
    """The functions in which most of the time was spent: seconds of their own, with what they call, calls, name."""
    if not profile.getstats():
        return []
    stats = pstats.Stats(profile).stats
    ordered = sorted(stats.items(), key=lambda item: -item[1][2])[:SHOWN]
    return [
        f"{own:.3f} {whole:.3f} {calls} {Path(file).name}:{name}"
        for (file, _, name), (_, calls, own, whole, _) in ordered
    ]


def sr_fit(run) -> dict:
    """Super-resolution x2 of 75^3 voxels: one field alone, and all of it with what is computed on the CPU."""
    from gsbids.recon.sr.fit import super_resolve
    from gsbids.recon.sr.grid import grid_by_factor
    from gsbids.recon.sr.member import fit_member, render_fine
    from gsbids.recon.sr.options import EXACT_SCHEDULES, Schedule, SrOptions
    from gsbids.recon.sr.problem import SrProblem

    # Without the edge step: it needs scikit-learn.
    options = SrOptions(device="cuda", sharp_edge=False, threads=os.cpu_count())
    schedule = EXACT_SCHEDULES[2]
    if run.smoke:
        schedule = Schedule(1.0, 1.0, 1)
        options = replace(options, schedules=(schedule,), members=1, held_out=0.0, nonlocal_steps=0, rim=0)
    result = {"must_s": MUST_S, "aim_s": AIM_S, "schedule": [schedule.width, schedule.rate, schedule.iterations]}
    for size in run.pick((24, 75), (4,)):  # the first one compiles
        at = np.indices((size,) * 3).transpose(1, 2, 3, 0) - (size - 1) / 2
        volume = np.maximum(texture(at, 0.1 * np.eye(3)), 1) * ((at**2).sum(-1) < (0.48 * size) ** 2 if size > 4 else 1)
        grid = grid_by_factor(volume.shape, np.eye(4), (2.0,) * 3)
        coarse = (volume / volume.max()).astype(np.float32)
        problem = SrProblem.pose(coarse, grid.axes, options)
        run.wait()
        start = time.perf_counter()
        fit = fit_member(problem, coarse, schedule, 0)
        render_fine(problem, fit.field)
        run.wait()
        result |= {
            "voxels": int(np.prod(grid.shape)),
            "gaussians": len(fit.field),
            "one_field_s": time.perf_counter() - start,
            "loss": fit.history["loss"][-1],
        }
        start = time.perf_counter()
        whole = super_resolve(volume, np.eye(4), grid, options)
        result |= {
            "whole_s": time.perf_counter() - start,
            "fields": len(whole.fields),
            "device": whole.settings["device"],
        }
    return result


def agreement(run) -> dict:
    """The short fits of the simulator's test on this device, against the CPU; and one of a hundred thousand pixels."""
    from gsbids.recon.fitting.options import SvrOptions
    from gsbids.recon.svr.fit import fit_svr

    cases = run.pick((), ("weights",))
    done = subprocess.run([sys.executable, str(CASES), *cases], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found = json.loads(done.stdout.splitlines()[-1])
    if run.smoke:
        return found
    given, results = make_stacks(12, 96), []
    for device in ("cpu", "cuda"):
        options = SvrOptions(
            iterations=30,
            detail_iterations=20,
            members=1,
            doublings=0,
            patience=0,
            place=False,
            device=device,
            threads=os.cpu_count(),
        )
        results.append(fit_svr(given, np.tile(np.eye(4), (3, 1, 1)), options))
    here, there = results
    shift = np.linalg.norm(here.motion.translation - there.motion.translation, axis=1)
    return found | {
        "larger": {
            "pixels": here.settings["pixels"],
            "largest_shift_mm": float(shift.max()),
            "held_out": [r.history["held_out"][-1] for r in results],
            "loss_of_first_10": [r.history["loss"][:10] for r in results],
        }
    }
