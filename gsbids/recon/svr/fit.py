# SPDX-License-Identifier: Apache-2.0
"""Slice-to-volume reconstruction: poses with a coarse field, then detail, then an ensemble of fields."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numba
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from gsbids.errors import InputError
from gsbids.imaging.stack import Stack, common_offset
from gsbids.kernels import backend, ops
from gsbids.recon.field import GaussianField
from gsbids.recon.fitting import outliers, poses
from gsbids.recon.fitting.neighbours import lengths, tangents
from gsbids.recon.fitting.options import SvrOptions
from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.fitting.stack_bias import StackBias
from gsbids.recon.fitting.stage import FitProblem, FitState, Stage, fit_stage
from gsbids.recon.fitting.strain import settle_strains
from gsbids.recon.motion import RigidMotion
from gsbids.recon.svr.exclude import apart_from_all, outlying_stacks, with_excluded
from gsbids.recon.svr.misplaced import stack_similarity, turned_elsewhere
from gsbids.recon.svr.place import Placing, place_slices
from gsbids.recon.svr.place_search import LEVELS
from gsbids.recon.svr.result import SvrResult

ROBUST_FROM = 0.25  # share of the coarse stage after which outliers lose weight: before, all is misplaced
BIAS_FROM = 0.5  # the same for the stacks' bias: slices are in their places by then
LEAST_GAUSSIANS = 500  # of a field
SETTLING, SETTLED = 3, 0.2  # fields of the first detail at most, and mm that slices must have moved for another
# Held-out residual of a field over that of one half as dense, under which it is taken, and a denser one tried.
DENSER_IF, DENSER_AGAIN_IF = 0.99, 0.9


def fit_svr(
    stacks: list[Stack],
    transforms: np.ndarray,
    options: SvrOptions = SvrOptions(),  # noqa: B008
    progress: Callable[[int, int, dict], None] | None = None,
    observe: Callable[[int, Callable[[], SvrResult]], None] | None = None,
) -> SvrResult:
    """Reconstruct a field of Gaussians from stacks of slices that moved.

    Minimises ``sum_p w_p rho(a_s I_s(p) - y_p)`` over the pixels p of the masks and a rim around them, with the
    forward model of :func:`gsbids.kernels.reference.render_slices` (GSVR paper, Eq. 5 and 7), rho the Charbonnier
    loss. The field goes by Adam, the poses by Levenberg-Marquardt (:mod:`gsbids.recon.fitting.poses`), gains and robust
    weights by their closed forms (:mod:`gsbids.recon.fitting.outliers`). First a coarse field finds the poses; then
    fields of twice as many Gaussians are tried as long as they predict the pixels held out better; then others like the
    best one are fitted from other starts. All of these together are the result: their weighted mean is one field
    again, with less noise than each. A stack that looks like no part of what the others show is left out
    (:mod:`gsbids.recon.svr.exclude`).

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
        Called as ``observe(iteration, result)`` after every iteration that follows the search for the slices'
        places, counted from 1; ``result()`` is the state then.

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
    given, slices = stacks, SliceSet.from_stacks(stacks, transforms, options.rim)
    if len(slices) < 2:
        raise InputError("a slice-to-volume reconstruction needs slices with brain in them: check the masks")
    log, pose, notes = _Log(options, progress, observe), None, {"placed_anew": []}  # type: ignore[var-annotated]
    fit = partial(fit_svr, options=options, progress=progress)
    if options.motion_correction and options.place and np.ndim(transforms) == 3:  # else every slice has its place
        placed = place_slices(stacks, transforms, options, lambda now, record: log.add(record, None))
        if (out := apart_from_all(placed.agreement, placed.rest)).any():
            return _without(out, given, transforms, fit, observe)
        stacks, slices, pose, notes = placed.stacks, placed.slices, placed.pose, _notes(placed, given, transforms)
    problem = FitProblem.pose(slices, options)

    def result(state: FitState, fields: list[GaussianField]) -> SvrResult:
        return _finish(problem, state, fields, stacks, notes | {"history": log.history})

    def stage_of(before: Iterable[GaussianField], state: FitState, stage: Stage) -> FitState:
        return fit_stage(
            problem,
            state,
            stage,
            lambda now, record: log.add(record, lambda: result(now, [*before, now.field(slices.origin)])),
        )

    def with_loss(state: FitState, stage: Stage) -> tuple[FitState, float]:
        return stage_of((), state, stage), log.history["loss"][-1]

    state, coarse = FitState.start(slices), _coarse_stage(slices, options)
    state.pose = pose or state.pose
    state = stage_of((), state, coarse)
    if options.motion_correction and (out := outlying_stacks(stack_similarity(slices, state))).any():
        return _without(out, given, transforms, fit, observe)
    if options.motion_correction and options.free_strains and not _first_look(options):
        state, notes["strain"] = settle_strains(slices, state, coarse, with_loss)  # type: ignore[assignment]
    state, count = _densify(problem, state, coarse.gaussians, lambda *stage: stage_of((), *stage))
    fields = [state.field(slices.origin)]
    for member in range(1, options.members):
        state = stage_of(fields, state, _detail_stage(count, options, options.seed + member, with_poses=False))
        fields.append(state.field(slices.origin))
    return result(state, fields)


def _without(
    out: np.ndarray,
    stacks: list[Stack],
    transforms: np.ndarray,
    fit: Callable[..., SvrResult],
    observe: Callable[[int, Callable[[], SvrResult]], None] | None,
) -> SvrResult:
    """Run :func:`fit_svr` (``fit``) on all stacks but some (``out``, (N,), bool); return it as a result of all."""
    kept = np.flatnonzero(~out)
    starts, names = transforms.reshape(len(stacks), -1, 4, 4)[:, 0], tuple(stack.name for stack in stacks)

    def of_all(fewer: SvrResult) -> SvrResult:
        return with_excluded(fewer, names, starts, out)

    watch = observe and (lambda iteration, now: observe(iteration, lambda: of_all(now())))
    return of_all(fit([stacks[k] for k in kept], transforms[kept], observe=watch))


def _coarse_stage(slices: SliceSet, options: SvrOptions) -> Stage:
    """Return the stage of few Gaussians and many steps of the poses."""
    count = options.n_gaussians or max(LEAST_GAUSSIANS, round(slices.region.sum() / options.pixels_per_gaussian))
    turns = range(options.pose_start, options.iterations, options.pose_every) if options.motion_correction else ()
    neighbours = (options.pose_start + options.pose_every * turn for turn in options.neighbour_turns)
    return Stage(  # type: ignore[call-arg]
        count,
        options.iterations,
        options.learning_rate,
        options.seed,
        frozenset(turns),
        frozenset(neighbours),
        *(int(share * options.iterations) for share in (ROBUST_FROM, BIAS_FROM)),  # type: ignore[arg-type]
        _together(turns, options),
    )


def _detail_stage(gaussians: int, options: SvrOptions, seed: int, with_poses: bool = True) -> Stage:
    """Return a stage of full detail; the poses are nearly right, and take their last steps when it is no blur."""
    last = options.detail_iterations
    turns = range(last // 4, last, options.detail_pose_every) if with_poses and options.motion_correction else ()
    return Stage(
        gaussians, last, options.detail_learning_rate, seed, frozenset(turns), together=_together(turns, options)
    )


def _together(turns: Any, options: SvrOptions) -> frozenset[int]:
    """Return the iterations at which all slices and the field move at once: among those at which slices move."""
    shares = options.together if turns else ()
    return frozenset(int(share * turns.stop) for share in shares if share * turns.stop >= turns.start)


def _densify(
    problem: FitProblem, state: FitState, count: int, run: Callable[[FitState, Stage], FitState]
) -> tuple[FitState, int]:
    """Fit fields of twice as many Gaussians each, as long as that predicts the held-out pixels better.

    The useful number depends on the noise. The first field has as many as the coarse one, so that fine fields are
    compared with one another, and is fitted again while slices still move. A field that gained little over the one
    before is the last.

    Returns
    -------
    FitState, int
        State with the best field, and its number of Gaussians.
    """
    options = problem.options
    if _first_look(options):
        return state, count
    for _ in range(SETTLING if options.motion_correction else 1):
        before = state.pose.motion
        state = run(state, _detail_stage(count, options, options.seed))
        if moved(problem.slices, before, state.pose.motion) < SETTLED:
            break
    for _ in range(0 if options.n_gaussians else options.doublings):
        denser = run(state, _detail_stage(2 * count, options, options.seed))
        ratio = _held_out_ratio(problem, denser, state)
        if ratio > DENSER_IF:
            break
        state, count = denser, 2 * count
        if ratio > DENSER_AGAIN_IF:
            break
    return state, count


def _first_look(options: SvrOptions) -> bool:
    """Return whether the coarse field alone is wanted."""
    return options.doublings == 0 and options.members == 1


def moved(slices: SliceSet, before: RigidMotion, after: RigidMotion) -> float:
    """Return how far (mm, rotations counted 20 mm out) the median slice has moved, without the common motion."""
    pixels = slices.mask.sum((1, 2)).astype(float)
    common = poses.mean_correction(after, before, pixels)
    return float(np.median(lengths(tangents(before.moved(common), after))))


def _held_out_ratio(problem: FitProblem, one: FitState, other: FitState) -> float:
    """Return the ratio of two states' residuals on the held-out pixels, in slices that both give full weight."""
    whole = [(state.kept_signal == 1).all((1, 2)) * state.slice_weight for state in (one, other)]
    seen = problem.held * np.minimum(*whole)[:, None, None]
    mine, others = ((np.abs(state.residual(problem.slices)) * seen).sum(dtype=float) for state in (one, other))
    return mine / max(others, 1e-12)


class _Log:
    """History of a fit, and the callbacks that watch it."""

    def __init__(
        self,
        options: SvrOptions,
        progress: Callable[[int, int, dict], None] | None,
        observe: Callable[[int, Callable[[], SvrResult]], None] | None,
    ) -> None:
        self.history: dict[str, list] = {"iteration": [], "loss": [], "held_out": [], "poses_kept": []}
        self.progress, self.observe, self.observed = progress, observe, 0
        places = sum(level.iterations for level in LEVELS) if options.motion_correction and options.place else 0
        self.expected = places + options.iterations + options.detail_iterations * options.members

    def add(self, record: dict, result: Callable[[], SvrResult] | None) -> None:
        """Record one iteration."""
        count = len(self.history["loss"]) + 1
        for key, value in {"iteration": count - 1, **record}.items():
            self.history[key].append(value)
        if self.progress:
            self.progress(count, max(self.expected, count), record)
        if self.observe and result:
            self.observed += 1
            self.observe(self.observed, result)


def _notes(placed: Placing, given: list[Stack], transforms: np.ndarray) -> dict:
    """Return what the initial registration of the slices has changed, and how reliable it is."""
    starts = placed.slices.starts
    moved = [stack.name for stack, turned in zip(given, turned_elsewhere(starts, transforms), strict=True) if turned]
    changes = {}
    for old, new in zip(given, placed.stacks, strict=True):
        size = max(int(old.mask.sum()), 1)
        lost, won = (old.mask & ~new.mask).sum() / size, (new.mask & ~old.mask).sum() / size
        changes[old.name] = {"lost": round(float(lost), 4), "won": round(float(won), 4)}
    agreement = [None if np.isnan(value) else round(float(value), 4) for value in placed.agreement]
    margin = None if np.isnan(placed.margin) else round(placed.margin, 4)
    return {"placed_anew": moved, "mask_changes": changes, "agreement": agreement, "placing_margin": margin}


def merge_fields(fields: list[GaussianField]) -> GaussianField:
    """Merge the fields of an ensemble: the mean of their images, weighted by ``D = sum_j w_j`` of each."""
    return GaussianField(  # type: ignore[misc]
        *(np.concatenate(a) for a in zip(*(f.parameters for f in fields), strict=True)), origin=fields[0].origin
    )


def _finish(
    problem: FitProblem, state: FitState, fields: list[GaussianField], stacks: list[Stack], notes: dict[str, Any]
) -> SvrResult:
    """Fix the gauge, return to the world, and measure every slice."""
    slices, options, render, state = problem.slices, problem.options, problem.render, state.at(backend.CPU)
    field, motion = merge_fields(fields), state.pose.motion
    image, _ = ops.render(*field.parameters, slices.geometry(motion), render)
    simulated = state.simulated(image)
    back = np.linalg.inv(poses.mean_correction(motion, slices.start, slices.mask.sum((1, 2)).astype(float)))
    scale = float(np.median(slices.stack_scale))
    nominal = _at(slices.nominal, slices.origin)
    return SvrResult(
        field=move_field(field, back),
        stack_names=tuple(stack.name for stack in stacks),
        stack_index=slices.stack_index,
        slice_index=slices.slice_index,
        nominal=nominal,
        motion=_at(motion.moved(back), slices.origin),
        stack_affine=slices.starts,
        gain=state.gain * slices.stack_scale[slices.stack_index] / scale,
        weight=state.slice_weight,
        ncc=outliers.slice_ncc(slices.values, simulated, slices.mask),
        residual=outliers.slice_residuals(slices.values - simulated, slices.mask),
        psf=slices.psf,
        bias=_bias_at(state.stack_bias(problem.nodes), slices.origin),
        intensity_scale=scale,
        intensity_offset=common_offset(stacks, slices.stack_scale),
        masks=tuple(stack.mask for stack in stacks),
        history={key: list(column) for key, column in notes.pop("history").items()},
        settings={
            **_plain(options),
            **notes,
            "excluded": [],
            "gaussians": len(field),
            "gaussians_of_members": [len(f) for f in fields],
            "pixels": int(slices.region.sum()),
            "slices": len(slices),
            "eps": render.eps,
        },
    )


def move_field(field: GaussianField, transform: np.ndarray) -> GaussianField:
    """Move a field by a rigid transform (4, 4) about its own origin."""
    turn = Rotation.from_matrix(transform[:3, :3])
    quaternion = (turn * Rotation.from_quat(field.quaternion[:, [1, 2, 3, 0]])).as_quat()[:, [3, 0, 1, 2]]
    mean = field.mean @ transform[:3, :3].T + transform[:3, 3]
    return field.replace(
        mean=mean.astype(np.float32),
        quaternion=quaternion.astype(np.float32),
        log_scale=field.log_scale.copy(),
        intensity=field.intensity.copy(),
    )


def _plain(options: SvrOptions) -> dict:
    """Convert options for JSON, without those that do not change the result, and with the device by its name."""
    plain = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(options).items() if k != "threads"}
    return plain | {"device": backend.describe(options.device)}


def _bias_at(bias: StackBias | None, origin: np.ndarray) -> StackBias | None:
    return bias and replace(bias, nodes=bias.nodes + origin)


def _at(motion: RigidMotion, origin: np.ndarray) -> RigidMotion:
    return RigidMotion(motion.rotation, motion.translation + origin)
