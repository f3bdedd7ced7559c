# SPDX-License-Identifier: Apache-2.0
"""Choice of the settings of SR by hidden voxels: schedule, blend with the linear solutions, and smoothing.

A trial on a part of the volume hides a share of the coarse voxels, does everything with the others, and takes the
settings that predict the hidden ones best. Nothing but the data at hand is used.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from scipy import ndimage, optimize

from gsbids.kernels.nonlocal_means import nonlocal_means
from gsbids.recon.sr.interpolation import interpolate
from gsbids.recon.sr.member import fit_member, render_fine
from gsbids.recon.sr.options import EXACT_SCHEDULES, NARROW_SCHEDULES, Schedule
from gsbids.recon.sr.problem import SrProblem, central_box
from gsbids.recon.sr.sobolev import bridge, sobolev

EXPERTS = ("gaussians", "sobolev", "bspline")
LEAST_HELD = 200  # hidden voxels that are too few to choose by
NOISES = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)  # of the Sobolev solution
# Noise of the Sobolev solution from which on the data count as noisy, and are trusted less still: the hidden voxels are
# predicted worse than the others, so that the noise's share comes out too small.
NOISY, NOISY_FACTOR = 0.1, 3.0
UNTRIED = (0.5, 0.5, 0.0)  # blend where nothing can be chosen
STRENGTHS = (0.0, 0.02, 0.03, 0.045, 0.07, 0.1)  # of non-local means, in [0, 1] of the data
PLAUSIBLE = 0.997  # of the error of the simpler setting: a more elaborate one must be below
NARROW_SHARE = 0.45  # of the strength that hidden voxels choose, where the profile is narrow
HOPELESS = 1.02  # of the least error
DEEP = 3  # coarse voxels from the background, from where on it has no influence


@dataclass(frozen=True)
class Deep:
    """Settings far from the background; attributes as of :class:`SrChoice`."""

    blend: tuple[float, float, float]
    smoothing: float


@dataclass(frozen=True)
class SrChoice:
    """Settings of the fit of one volume.

    Attributes
    ----------
    schedule : Schedule
    blend : tuple of float
        Weights of Gaussians, Sobolev solution and cubic B-spline; they sum to 1.
    smoothing : float
        Strength of non-local means, in [0, 1] of the data; 0: none.
    noise : float
        Noise parameter of the Sobolev solution, see :func:`gsbids.recon.sr.sobolev.sobolev`.
    noise_ratio : float
        Ratio for the projection, see :meth:`gsbids.recon.sr.sampling_operator.SamplingOperator.project`.
    errors : dict
        Root mean squared error of every candidate at the hidden voxels, in [0, 1] of the data.
    edge : bool
        Whether the edge was sharpened, see :mod:`gsbids.recon.sr.edge`.
    deep : Deep or None
        Blend and smoothing far from the background, where there is one: near it the edge asks for others.
    """

    schedule: Schedule | None
    blend: tuple[float, float, float]
    smoothing: float
    noise: float
    noise_ratio: float
    errors: dict
    edge: bool = False
    deep: Deep | None = None

    def settings(self) -> dict:
        """Return the settings as plain numbers, for files."""
        named = asdict(self) | {"blend": dict(zip(EXPERTS, self.blend, strict=True))}
        if self.deep:
            named["deep"] = asdict(self.deep) | {"blend": dict(zip(EXPERTS, self.deep.blend, strict=True))}
        return named

    @property
    def weights(self) -> tuple[float, float, float]:
        """Largest weight that each expert has anywhere."""
        return tuple(map(max, self.blend, self.deep.blend)) if self.deep else self.blend  # type: ignore[return-value]


def candidates(problem: SrProblem) -> tuple[Schedule, ...]:
    """Return the schedules to choose among."""
    if problem.options.schedules is not None:
        return problem.options.schedules
    return NARROW_SCHEDULES if problem.forward_model()[1] is None else EXACT_SCHEDULES


def choose(problem: SrProblem) -> SrChoice:
    """Choose the settings for a volume, by a trial on its middle.

    Returns
    -------
    SrChoice
        If no voxels are to be hidden, the first schedule and its Gaussians alone; if too few can be, half of them
        and half of the Sobolev solution.
    """
    first = SrChoice(candidates(problem)[0], (1.0, 0.0, 0.0), 0.0, 0.0, 0.0, {})
    if not problem.options.held_out:
        return first
    trial = problem.part(central_box(problem.filled, problem.options.trial_voxels))[0].hide()
    if trial.held.sum() < LEAST_HELD:
        return replace(first, blend=UNTRIED)
    errors: dict[str, float] = {}
    narrow = trial.forward_model()[1] is None
    # Under a narrow profile a hidden voxel leaves a gap twice as wide as those of the real task: it would ask for more
    # smoothing than these need.
    noise = 0.0 if narrow else _best_noise(trial, errors)
    linear = linear_solution(trial, noise)
    known = bridge(trial.coarse, trial.held, noise)
    experts: list[Any] = [None, linear, bspline_solution(trial)]
    schedule, best = first.schedule, np.inf
    for candidate in candidates(problem):
        fine = render_fine(trial, fit_member(trial, known, candidate, problem.options.seed).field)
        error = held_error(trial, fine)
        errors[f"gaussians {candidate.width:g} {candidate.rate:g} {candidate.iterations}"] = error
        if error < best:
            schedule, best, experts[0] = candidate, error, fine
        elif error > HOPELESS * best and not narrow:
            break  # they are in the order of their cost, and this is where it is high
    blend = _best_blend(trial, experts)
    mixed = mix(experts, blend)
    errors |= {name: held_error(trial, expert) for name, expert in zip(EXPERTS, experts, strict=True)}
    errors["blend"] = held_error(trial, mixed)
    ratio = _noise_ratio(trial, errors["blend"]) if problem.options.noise_aware else 0.0
    ratio *= NOISY_FACTOR if noise >= NOISY else 1.0
    smoothing = _best_smoothing(trial, mixed, ratio, errors)
    share = NARROW_SHARE if narrow else 1
    among, deep = trial.held & deep_inside(trial), None
    if LEAST_HELD <= among.sum() < trial.held.sum():
        found: dict[str, float]
        weights, found = _best_blend(trial, experts, among), {}
        deep = Deep(weights, share * _best_smoothing(trial, mix(experts, weights), ratio, found, among))
        errors |= {f"deep {name}": error for name, error in found.items()}
    return SrChoice(schedule, blend, smoothing * share, noise, ratio, errors, deep=deep)


def choose_linear(problem: SrProblem) -> SrChoice:
    """Choose the settings of the Sobolev solution alone: the noise of the data, by a trial on their middle."""
    plain = SrChoice(None, (0.0, 1.0, 0.0), 0.0, 0.0, 0.0, {})
    if not problem.options.held_out or problem.forward_model()[1] is None:
        return plain
    trial = problem.part(central_box(problem.filled, problem.options.trial_voxels))[0].hide()
    if trial.held.sum() < LEAST_HELD:
        return plain
    errors: dict[str, float] = {}
    noise = _best_noise(trial, errors)
    if noise < NOISY:  # what is hidden is predicted better by a little; the fine volume is not
        return plain
    ratio = _noise_ratio(trial, errors[f"sobolev noise {noise:g}"]) if problem.options.noise_aware else 0.0
    return replace(plain, noise=noise, noise_ratio=ratio * NOISY_FACTOR, errors=errors)


def deep_inside(problem: SrProblem) -> np.ndarray:
    """Return the coarse voxels that are far from the background."""
    return ndimage.binary_erosion(problem.filled, iterations=DEEP, border_value=1)


def held_error(problem: SrProblem, fine: np.ndarray, among: np.ndarray | None = None) -> float:
    """Return the root mean squared error at the hidden voxels, or at some of them."""
    miss = (problem.operator(fine) - problem.coarse)[problem.held if among is None else among]
    return float(np.sqrt(np.mean(miss.astype(float) ** 2)))


def linear_solution(problem: SrProblem, noise: float) -> np.ndarray:
    """Compute the Sobolev solution; hidden voxels are bridged in its way."""
    return sobolev(bridge(problem.coarse, problem.held, noise), problem.operator, noise)


def bspline_solution(problem: SrProblem) -> np.ndarray:
    """Interpolate by cubic B-splines; hidden voxels are bridged as a spline would, by the least curvature."""
    return interpolate(bridge(problem.coarse, problem.held, exponent=2.0), problem.axes, "bspline")


def mix(experts: Sequence[Any], blend: Sequence[float]) -> np.ndarray:
    """Return the weighted mean of the experts that have a weight."""
    return sum(np.float32(w) * e for w, e in zip(blend, experts, strict=True) if w > 0)


def refine(problem: SrProblem, fine: np.ndarray, choice: SrChoice) -> np.ndarray:
    """Project on the data, smooth by non-local means, and clip the background and values below 0.

    Parameters
    ----------
    problem : SrProblem
    fine : ndarray
        Blend of the experts.
    choice : SrChoice

    Returns
    -------
    ndarray, float32
    """
    inside = problem.fine_inside

    def project(x: np.ndarray) -> np.ndarray:
        x = np.where(inside, np.maximum(x, 0), 0)
        miss = problem.seen_only(problem.coarse - problem.operator(x))
        return np.where(inside, x + problem.operator.correction(miss, choice.noise_ratio), 0)

    fine = project(fine)
    for _ in range(problem.options.nonlocal_steps if choice.smoothing else 0):
        fine = project(nonlocal_means(fine, choice.smoothing, inside))
    return np.maximum(fine, 0)


def noise_level(coarse: np.ndarray, filled: np.ndarray) -> float:
    """Estimate the standard deviation of the noise from the highest frequencies along all axes (Coupe et al. 2010).

    Median absolute deviation of the product of second-order differences over the voxels well inside; anatomy has
    little there, yet what it has counts as noise.
    """
    well = ndimage.binary_erosion(filled, iterations=2, border_value=1)
    axes = [axis for axis in range(3) if coarse.shape[axis] > 4]
    if well.sum() < LEAST_HELD or not axes:
        return 0.0
    detail = coarse.astype(np.float32)
    for axis in axes:
        detail = ndimage.correlate1d(detail, np.array([1, -2, 1]) / np.sqrt(6), axis=axis, mode="nearest")
    values = detail[well]
    return float(1.4826 * np.median(np.abs(values - np.median(values))))


def _best_noise(trial: SrProblem, errors: dict) -> float:
    """Choose the noise of the Sobolev solution: 0 unless another predicts clearly better."""
    found = {noise: held_error(trial, linear_solution(trial, noise)) for noise in NOISES}
    errors |= {f"sobolev noise {noise:g}": error for noise, error in found.items()}
    best = min(found, key=found.get)  # type: ignore[arg-type]
    return best if found[best] < PLAUSIBLE * found[0.0] else 0.0


def _best_blend(
    trial: SrProblem, experts: Sequence[np.ndarray], among: np.ndarray | None = None
) -> tuple[float, float, float]:
    """Find the convex weights that predict the hidden voxels best, or some of them."""
    among = trial.held if among is None else among
    predictions = np.stack([trial.operator(expert)[among] for expert in experts], 1).astype(float)
    truth = trial.coarse[among].astype(float)
    heavy = 1e3 * np.sqrt(len(truth)) * max(np.abs(truth).max(), 1e-3)  # makes the weights sum to 1
    weights, _ = optimize.nnls(np.vstack([predictions, np.full(3, heavy)]), np.append(truth, heavy))
    return tuple(float(w) for w in np.round(weights / weights.sum(), 4))  # type: ignore[return-value]


def _noise_ratio(trial: SrProblem, error: float) -> float:
    """Estimate the variance of the noise over that of the error of a fine voxel, by the error at the hidden voxels."""
    noise = noise_level(trial.coarse, trial.filled) ** 2
    return trial.operator.energy * noise / max(error**2 - noise, 0.05 * error**2, 1e-12)


def _best_smoothing(
    trial: SrProblem, mixed: np.ndarray, ratio: float, errors: dict, among: np.ndarray | None = None
) -> float:
    """Choose the strength of non-local means: 0 unless another predicts clearly better."""
    if not trial.options.nonlocal_steps:
        return 0.0
    found = {}
    for strength in STRENGTHS:
        choice = SrChoice(None, (1, 0, 0), strength, 0.0, ratio, {})
        found[strength] = held_error(trial, refine(trial, mixed, choice), among)
        if found[strength] > HOPELESS * min(found.values()):
            break
    errors |= {f"smoothing {strength:g}": error for strength, error in found.items()}
    best = min(found, key=found.get)  # type: ignore[arg-type]
    return best if found[best] < PLAUSIBLE * found[0.0] else 0.0
