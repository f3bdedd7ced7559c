# SPDX-License-Identifier: Apache-2.0
"""Short fits with ``device="cuda"`` against the same fits on the CPU; relative differences as JSON.

``python cuda_fit_cases.py [CASE ...]``: on a GPU, or, as test_cuda_fit.py does, with ``GSBIDS_BACKEND=sim`` in numba's
simulator. Shapes of Gaussians are compared as covariances: those that are round yet have no gradient of their
quaternions but what rounding makes, and Adam takes steps of full length along it.
"""

import argparse
import json
import os
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from gsbids.imaging.stack import Stack
from gsbids.kernels import backend, ops
from gsbids.kernels.cpu.covariance import covariances
from gsbids.recon.field import GaussianField
from gsbids.recon.fitting import outliers, poses
from gsbids.recon.fitting import stage as fit_field
from gsbids.recon.fitting.initialise import initial_field
from gsbids.recon.fitting.options import SvrOptions
from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.sr.member import fit_member, render_fine
from gsbids.recon.sr.options import Schedule, SrOptions
from gsbids.recon.sr.problem import SrProblem
from gsbids.recon.sr.sampling_operator import AxisGrid
from gsbids.recon.svr.fit import fit_svr
from gsbids.recon.volume.sample import sample_result, simulate_stack
from gsbids.recon.volume.uncertainty import predict_error

AXES = (((1, 0, 0), (0, 1, 0)), ((1, 0, 0), (0, 0, 1)))
SHORT = SvrOptions(
    n_gaussians=8,
    iterations=2,
    pose_start=1,
    pose_every=1,
    neighbour_turns=(),
    place=False,
    members=1,
    doublings=0,
    held_out=0.1,
    patience=0,
    rim=2.5,
)


@contextmanager
def backend_of_users(device):
    """The CPU is that of users: without the simulator, which takes every tensor."""
    before = os.environ.pop("GSBIDS_BACKEND", None) if device == "cpu" else None
    try:
        yield
    finally:
        if before:
            os.environ["GSBIDS_BACKEND"] = before


def relative(a, b):
    """Largest difference over the largest number."""
    a, b = (np.asarray(backend.to_host(x), float) for x in (a, b))
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-12))


def stacks(size=6, depth=2):
    """Two small stacks of a textured ball, 2 mm pixels, slices of 4 mm."""
    found = []
    for n, (row, column) in enumerate(AXES):
        frame = np.stack([row, column, np.cross(row, column)], 1).astype(float)
        affine = np.eye(4)
        affine[:3, :3] = frame * [2, 2, 4]
        affine[:3, 3] = -affine[:3, :3] @ (np.array([size - 1, size - 1, depth - 1]) / 2) + 0.3 * n
        index = np.indices((size, size, depth)).reshape(3, -1).T
        world = (index @ affine[:3, :3].T + affine[:3, 3]).reshape(size, size, depth, 3)
        x, y, z = np.moveaxis(world, -1, 0)
        image = 500 + 300 * np.sin(x / 3) * np.cos(y / 4) + 150 * np.sin(z / 2.5 + x / 7)
        found.append(Stack(f"run-{n}", image.astype(np.float32), (world**2).sum(-1) < 5.5**2, affine, 4.0))
    return found


def problem(device):
    """The slices of the stacks, to be fitted on a device."""
    slices = SliceSet.from_stacks(stacks(), np.tile(np.eye(4), (2, 1, 1)), SHORT.rim)
    return fit_field.FitProblem.pose(slices, replace(SHORT, device=device))


def shape_of(field):
    """Covariances of a field's Gaussians."""
    return covariances(*(np.ascontiguousarray(backend.to_host(a)) for a in (field["log_scale"], field["quaternion"])))


def stage() -> dict:
    """A stage: steps of the field and of the poses, gains, weights, signal losses and bias."""
    fit_field.REWEIGHT_EVERY = 2
    plan = fit_field.Stage(8, 3, 0.05, 0, frozenset({1}))
    records, states = {"cpu": [], "cuda": []}, {}
    for device, record in records.items():
        given = problem(device)
        start = fit_field.FitState.start(given.slices)
        states[device] = fit_field.fit_stage(given, start, plan, lambda _, found, record=record: record.append(found))
    ours, theirs = states["cuda"], states["cpu"]
    errors = {
        f"{key} of every iteration": relative(*([found[key] for found in record] for record in records.values()))
        for key in ("loss", "held_out")
    }
    errors |= {name: relative(ours.parameters[name], theirs.parameters[name]) for name in ("mean", "intensity")}
    errors["covariance"] = relative(shape_of(ours.parameters), shape_of(theirs.parameters))
    errors |= {
        name: relative(getattr(ours, name), getattr(theirs, name))
        for name in ("gain", "slice_weight", "pixel_weight", "kept_signal", "bias", "log_bias", "image")
    }
    errors |= {
        name: relative(getattr(ours.pose.motion, name), getattr(theirs.pose.motion, name))
        for name in ("rotation", "translation")
    }
    moved = np.abs(theirs.pose.motion.translation - given.slices.start.translation).max()
    kinds = all(isinstance(getattr(ours, name), np.ndarray) for name in ours.IMAGES)
    return errors | {
        "nothing moved": float(moved < 1e-3),
        "images are left on the device": float(not kinds),
        "bias was not looked for": float(np.abs(theirs.log_bias).max() < 1e-6),
    }


def pose_step() -> dict:
    """One Levenberg-Marquardt step of all slices, and the costs by which it is kept."""
    found = {}
    for device in ("cpu", "cuda"):
        given = problem(device)
        rng = np.random.default_rng(0)
        field = GaussianField(
            rng.normal(0, 4, (8, 3)).astype(np.float32),
            np.full((8, 3), 0.7, np.float32),
            rng.normal(size=(8, 4)).astype(np.float32),
            rng.random(8).astype(np.float32),
            np.zeros(8, np.float32),
            given.slices.origin,
        )
        one = poses.PoseProblem.of(
            field, given.slices, given.train.astype(np.float32), np.ones(len(given.slices)), given.render, 0.004
        )
        before = poses.PoseState(given.slices.start, np.full(len(given.slices), 1e-2))
        after, kept = poses.pose_step(one, before)
        found[device] = {
            "rotation": after.motion.rotation,
            "translation": after.motion.translation,
            "information": after.information,
            "kept": kept,
            "cost": one.cost(after.motion, one.pull(before)),
        }
    return {name: relative(found["cuda"][name], value) for name, value in found["cpu"].items()} | {
        "no step was kept": float(not found["cpu"]["kept"].any())
    }


def weights() -> dict:
    """Robust weights and gains of images on the device, with a slice that lost signal and one that is nothing."""
    rng = np.random.default_rng(3)
    simulated = rng.uniform(0.3, 1, (9, 9, 8)).astype(np.float32)
    values = simulated + rng.normal(0, 0.02, simulated.shape).astype(np.float32)
    values[1] *= np.linspace(0.3, 1, 9)[:, None].astype(np.float32)
    values[2] = rng.random((9, 8))
    mask = rng.random(simulated.shape) < 0.8
    mask[5] = False
    width, found = np.full((9, 2), 1.5), []
    for name in ("cpu", "cuda"):
        images = [backend.to_device(a, name) for a in (values, simulated, mask)]
        missed = images[0] - images[1]
        kept_signal, trust = outliers.kept_signal_and_weights(*images, width)
        found.append(
            (
                outliers.slice_gains(*images),
                kept_signal,
                trust,
                outliers.pixel_weights(missed, images[2]),
                backend.medians(abs(missed), images[2]),
            )
        )
    names = ("gains", "kept_signal", "trust", "pixels", "medians")
    errors = {name: relative(b, a) for name, a, b in zip(names, *found, strict=True)}
    return errors | {
        "no signal loss": float((found[0][1] == 1).all()),
        "nothing rejected": float(found[0][2].min() > 0.5),
    }


def long_gaussians(*args, **kwargs):
    """The start of a field, its Gaussians longer along one axis: of round ones rounding alone says how they turn."""
    field = initial_field(*args, **kwargs)
    return field.replace(log_scale=field.log_scale + np.array([0.3, 0, -0.2], np.float32))


def whole_fit() -> dict:
    """From stacks to field, poses, volume, simulated stack and predicted error."""
    results, images = {}, {}
    fit_field.initial_field = long_gaussians
    affine = np.diag([3.0, 3.0, 3.0, 1.0])
    affine[:3, 3] = -3
    for device in ("cpu", "cuda"):
        given = stacks()
        result = results[device] = fit_svr(given, np.tile(np.eye(4), (2, 1, 1)), replace(SHORT, device=device))
        image = sample_result(result, affine, (3, 3, 3), device)
        images[device] = (
            image,
            simulate_stack(result, given[0], 0, device),
            # One stack alone is enough: its mask as given is the one that was fitted.
            predict_error(replace(result, masks=()), given[:1], affine, image, device).sigma,
        )
    ours, theirs = results["cuda"], results["cpu"]
    errors = {
        name: relative(a, b)
        for name, a, b in zip(("volume", "simulated", "uncertainty"), images["cuda"], images["cpu"], strict=True)
    }
    errors |= {name: relative(getattr(ours.field, name), getattr(theirs.field, name)) for name in ("mean", "intensity")}
    errors["translation"] = relative(ours.motion.translation, theirs.motion.translation)
    named = theirs.settings["device"] == "cpu" and ours.settings["device"].startswith("cuda (")
    return errors | {"device is not named": float(not named)}


def arrays_that_are_elsewhere() -> dict:
    """Functions of ``ops`` move arrays to the device of their options, and bring back arrays."""
    given, rng = problem("cuda"), np.random.default_rng(1)
    field = [rng.normal(0, 4, (8, 3)), np.full((8, 3), 0.7), rng.normal(size=(8, 4)), rng.random(8), np.zeros(8)]
    field = [a.astype(np.float32) for a in field]
    geometry = given.slices.geometry(given.slices.start)
    acquired, found = ops.Acquired(given.slices.values, given.train.astype(np.float32), 0.03), []
    for options in (ops.RenderOptions(device="cuda"), ops.RenderOptions()):
        rendered = ops.render(*field, geometry, options)
        step = ops.step_slices(*field, geometry, acquired, options)
        slope = ops.image_gradient(*field, geometry, rendered, options)
        found.append((*rendered, slope, step.loss, *step.gradients[:4]))
    errors = {str(n): relative(*pair) for n, pair in enumerate(zip(*found, strict=True))}
    return errors | {"no arrays": float(not all(isinstance(a, np.ndarray) for a in found[0]))}


def sr_member() -> dict:
    """Two steps of a field fitted to a small volume through D, and in the way of narrow profiles; hidden voxels.

    The second step's quaternions are those of round Gaussians: not compared, and nothing that comes after them is.
    """
    errors, coarse = {}, np.random.default_rng(2).random((3, 4, 3)).astype(np.float32)
    axes = tuple(AxisGrid.same_extent(n, 2 * n) for n in coarse.shape)
    names = ("mean", "log_scale", "intensity", "log_weight", "loss", "held_out", "volume after one step")
    for forward in ("exact", "psf"):
        found = []
        for device in ("cuda", "cpu"):
            with backend_of_users(device):
                given = SrProblem.pose(coarse, axes, SrOptions(forward=forward, rim=0, device=device))
                given = replace(given, held=np.indices(coarse.shape).sum(0) == 3)
                one, two = (fit_member(given, coarse, Schedule(1.0, 1.0, steps), 0) for steps in (1, 2))
                found.append(
                    (
                        *(getattr(two.field, name) for name in names[:4]),
                        two.history["loss"],
                        two.history["held_out"],
                        render_fine(given, one.field),
                    )
                )
        errors |= {f"{name}, {forward}": relative(a, b) for name, a, b in zip(names, *found, strict=True)}
    return errors


CASES = {case.__name__: case for case in (stage, pose_step, weights, whole_fit, arrays_that_are_elsewhere, sr_member)}

if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("cases", nargs="*")
    print(json.dumps({name: CASES[name]() for name in parser.parse_args().cases or CASES}))
