# SPDX-License-Identifier: Apache-2.0
"""Slice-to-volume reconstruction: field, poses, gains and weights fitted together."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import numba
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from gsbids.errors import InputError
from gsbids.imaging.stack import Stack
from gsbids.kernels import ops
from gsbids.recon import outliers, poses
from gsbids.recon.field import GaussianField
from gsbids.recon.initialise import initial_field
from gsbids.recon.motion import RigidMotion
from gsbids.recon.options import SvrOptions
from gsbids.recon.result import SvrResult
from gsbids.recon.slices import SliceSet

PARAMETERS = ("mean", "log_scale", "quaternion", "intensity")
REWEIGHT_EVERY = 10
ROBUST_FROM = 0.25  # share of the iterations after which outliers lose weight: before, all is misplaced
FINAL_RATE = 0.05  # of the learning rate, at the end of the cosine


@dataclass
class FitState:
    """What changes from one iteration to the next."""

    parameters: dict[str, torch.Tensor]
    optimiser: torch.optim.Optimizer
    pose: poses.PoseState
    gain: np.ndarray
    slice_weight: np.ndarray
    pixel_weight: np.ndarray

    def field(self, origin) -> GaussianField:
        """The field as arrays (views of the parameters)."""
        arrays = {k: v.detach().numpy() for k, v in self.parameters.items()}
        return GaussianField(log_weight=np.zeros(len(arrays["mean"]), np.float32), origin=origin, **arrays)


def fit_svr(stacks: list[Stack], transforms: np.ndarray, options: SvrOptions = SvrOptions(),  # noqa: B008
            progress: Callable[[int, int, dict], None] | None = None,
            observe: Callable[[int, Callable[[], SvrResult]], None] | None = None) -> SvrResult:
    """Reconstruct a field of Gaussians from stacks of slices that moved.

    Minimises ``sum_p w_p rho(a_s I_s(p) - y_p)`` over the pixels p of the masks and a rim around them, with the
    forward model of :func:`gsbids.kernels.reference.render_slices` (GSVR paper, Eq. 5 and 7), rho the Charbonnier
    loss. The field goes by Adam, the poses by Levenberg-Marquardt (:mod:`gsbids.recon.poses`), gains and robust
    weights by their closed forms (:mod:`gsbids.recon.outliers`).

    Parameters
    ----------
    stacks : list of Stack
        Masked stacks, bias corrected.
    transforms : ndarray, (N, 4, 4) or (N, Z, 4, 4)
        World rigid transforms scanner -> common space from the co-registration of the stacks, or of every slice.
    options : SvrOptions
    progress : callable, optional
        Called as ``progress(iteration, iterations, record)`` after every iteration; ``record`` has ``loss`` and
        ``held_out``.
    observe : callable, optional
        Called as ``observe(iteration, result)`` after every iteration; ``result()`` is the state then.

    Returns
    -------
    SvrResult

    Raises
    ------
    gsbids.errors.InputError
        A mask is empty, or there is no brain to reconstruct.
    """
    numba.set_num_threads(min(options.threads, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(1)  # its sums change with the threads; its share of the time is small
    slices = SliceSet.from_stacks(stacks, transforms, options.rim)
    if len(slices) < 2:
        raise InputError("a slice-to-volume reconstruction needs slices with brain in them: check the masks")
    render = ops.RenderOptions(cut=options.cut, mass_factor=options.mass_factor)
    state = _start(slices, options)
    train, held = _split_pixels(slices, options)
    history = {"iteration": [], "loss": [], "held_out": [], "poses_kept": []}
    result = partial(_finish, state, slices, stacks, np.asarray(transforms, float), history, options, render)
    for iteration in range(options.iterations):
        kept = float("nan")
        if options.motion_correction and _is_pose_turn(iteration, options):
            weight = train * state.slice_weight[:, None, None] * state.pixel_weight
            turn = (iteration - options.pose_start) // options.pose_every
            step = poses.try_neighbours if turn in options.neighbour_turns else poses.pose_step
            state.pose, moved = step(state.pose, state.field(slices.origin), slices,
                                     weight.astype(np.float32), state.gain, render)
            kept = float(moved.mean())
        record, image = _field_step(state, slices, train, held, iteration, options, render)
        if iteration % REWEIGHT_EVERY == REWEIGHT_EVERY - 1:
            _reweigh(state, slices, image, train, iteration >= ROBUST_FROM * options.iterations)
        for key, value in {"iteration": iteration, **record, "poses_kept": kept}.items():
            history[key].append(value)
        if progress:
            progress(iteration + 1, options.iterations, record)
        if observe:
            observe(iteration + 1, result)
        if _has_settled(history["held_out"], options.patience):
            break
    return result()


def _start(slices: SliceSet, options: SvrOptions) -> FitState:
    """Initial field at the start poses; every slice with gain 1 and full weight."""
    count = options.n_gaussians or max(500, round(slices.region.sum() / options.pixels_per_gaussian))
    field = initial_field(slices, count, options.edge_share, options.seed)
    parameters = {k: torch.tensor(getattr(field, k), requires_grad=True) for k in PARAMETERS}
    # Adam without weight decay: positions and poses must not depend on where the origin is.
    optimiser = torch.optim.Adam(parameters.values(), lr=options.learning_rate, eps=1e-15)
    ones = np.ones(len(slices))
    return FitState(parameters, optimiser, poses.PoseState(slices.start, 1e-2 * ones), ones, ones,
                    np.ones(slices.values.shape, np.float32))


def _split_pixels(slices: SliceSet, options: SvrOptions) -> tuple[np.ndarray, np.ndarray]:
    """Pixels that are fitted, and pixels that are held out; both (S, X, Y) bool."""
    draw = np.random.default_rng(options.seed + 1).random(slices.region.shape)
    held = slices.region & (draw < options.held_out)
    return slices.region & ~held, held


def _is_pose_turn(iteration: int, options: SvrOptions) -> bool:
    since = iteration - options.pose_start
    return since >= 0 and since % options.pose_every == 0


def _field_step(state, slices, train, held, iteration, options, render) -> tuple[dict, np.ndarray]:
    """One Adam step of the field; returns the record and the simulated slices (before gain)."""
    rate = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * iteration / options.iterations))
    for group in state.optimiser.param_groups:
        group["lr"] = options.learning_rate * rate
    state.optimiser.zero_grad(set_to_none=True)
    p, field = state.parameters, state.field(slices.origin)
    weight = (train * state.slice_weight[:, None, None] * state.pixel_weight).astype(np.float32)
    total = float(weight.sum(dtype=float))
    step = ops.step_slices(field.mean, field.log_scale, field.quaternion, field.intensity, field.log_weight,
                           slices.geometry(state.pose.motion),
                           ops.Acquired(slices.values, weight, poses.CHARBONNIER, state.gain), render)
    for name, gradient in zip(PARAMETERS, step.gradients, strict=False):  # the log-weights stay
        p[name].grad = torch.from_numpy(gradient / np.float32(total))
    narrow = torch.relu(math.log(options.scale_floor) - p["log_scale"])
    (options.scale_weight * (narrow**2).mean()).backward()
    state.optimiser.step()
    with torch.no_grad():
        p["quaternion"] /= p["quaternion"].norm(dim=1, keepdim=True)
    seen = held * state.slice_weight[:, None, None]
    residual = np.abs(state.gain[:, None, None] * step.image - slices.values)
    return {"loss": float(step.loss.sum() / total),
            "held_out": float((residual * seen).sum() / max(seen.sum(), 1e-9))}, step.image


def _reweigh(state: FitState, slices: SliceSet, image, train, robust: bool) -> None:
    """Gains, and, once the volume is more than a blur, weights of slices and pixels."""
    weight = train * state.slice_weight[:, None, None] * state.pixel_weight
    state.gain = outliers.slice_gains(slices.values, image, weight)
    if robust:
        residual = slices.values - state.gain[:, None, None] * image
        state.slice_weight = outliers.slice_weights(residual, train & slices.mask)
        state.pixel_weight = outliers.pixel_weights(residual, train).astype(np.float32)


def _has_settled(held_out: list[float], patience: int) -> bool:
    """Whether the held-out residual has not fallen by 0.1 % for ``patience`` iterations."""
    if not patience or len(held_out) <= 2 * patience:
        return False
    return min(held_out[-patience:]) > 0.999 * min(held_out[:-patience])


def _finish(state, slices, stacks, transforms, history, options, render) -> SvrResult:
    """Fix the gauge, return to the world, and measure every slice."""
    field, motion = state.field(slices.origin), state.pose.motion
    image, _ = ops.render(field.mean, field.log_scale, field.quaternion, field.intensity, field.log_weight,
                          slices.geometry(motion), render)
    simulated = state.gain[:, None, None] * image
    back = np.linalg.inv(poses.mean_correction(motion, slices.start, slices.mask.sum((1, 2)).astype(float)))
    scale = float(np.median(slices.stack_scale))
    return SvrResult(
        field=move_field(field, back), stack_names=tuple(stack.name for stack in stacks),
        stack_index=slices.stack_index, slice_index=slices.slice_index,
        nominal=_at(slices.nominal, slices.origin), motion=_at(motion.moved(back), slices.origin),
        stack_affine=transforms, gain=state.gain * slices.stack_scale[slices.stack_index] / scale,
        weight=state.slice_weight, ncc=outliers.slice_ncc(slices.values, simulated, slices.mask),
        residual=outliers.slice_residuals(slices.values - simulated, slices.mask), psf=slices.psf,
        intensity_scale=scale, history={key: list(column) for key, column in history.items()},
        settings={**_plain(options), "gaussians": len(field),
                  "pixels": int(slices.region.sum()), "slices": len(slices), "eps": render.eps})


def move_field(field: GaussianField, transform: np.ndarray) -> GaussianField:
    """Field carried along by a rigid transform (4, 4) about its own origin."""
    turn = Rotation.from_matrix(transform[:3, :3])
    quaternion = (turn * Rotation.from_quat(field.quaternion[:, [1, 2, 3, 0]])).as_quat()[:, [3, 0, 1, 2]]
    mean = field.mean @ transform[:3, :3].T + transform[:3, 3]
    return field.replace(mean=mean.astype(np.float32), quaternion=quaternion.astype(np.float32),
                         log_scale=field.log_scale.copy(), intensity=field.intensity.copy())


def _plain(options: SvrOptions) -> dict:
    """Options as JSON knows them, without what does not change the result."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items() if k != "threads"}


def _at(motion: RigidMotion, origin: np.ndarray) -> RigidMotion:
    return RigidMotion(motion.rotation, motion.translation + origin)
