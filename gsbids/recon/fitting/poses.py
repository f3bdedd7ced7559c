# SPDX-License-Identifier: Apache-2.0
"""Poses of the slices by Levenberg-Marquardt: six unknowns a slice, all slices at once."""

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from gsbids.kernels import backend, ops
from gsbids.kernels.problem import Array, FieldArrays
from gsbids.recon.field import GaussianField
from gsbids.recon.fitting.neighbours import OFFSETS, Pull, lengths, pull_of, tangents
from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.motion import RigidMotion, best_rigid

if TYPE_CHECKING:
    from gsbids.kernels.cuda.plan import DeviceGeometry

MAX_TURN = 0.08  # rad in one step
MAX_SHIFT = 2.0  # mm in one step
LOWER, RAISE = 0.25, 6.0  # damping after a step that was kept, and one that was not
DAMPING_LIMITS = (1e-6, 1e4)  # Levenberg-Marquardt, over the diagonal of the normal matrix
FIRST_DAMPING = 1e-2  # of the first step
ASTRAY, LEAST_ASTRAY = 3.0, 1.5  # times the median, and mm: further from their neighbours, slices are moved back
NO_WORSE = 2.0  # times the cost, to which they are moved back: the field has been fitted to them where they are
BETTER = 0.99  # of a slice's cost: above that it keeps its pose
CHARBONNIER = 0.03  # residual, in units of the intensity range, from which on the cost grows linearly


@dataclass(frozen=True)
class PoseState:
    """Poses, and the damping and information that their next step needs.

    Attributes
    ----------
    motion : RigidMotion
    damping : ndarray, (S,)
    information : ndarray, (6,)
        Information of the median slice on each unknown: diagonal of J^T W J at the last step; 0 before.
    """

    motion: RigidMotion
    damping: np.ndarray
    information: np.ndarray = field(default_factory=lambda: np.zeros(6))

    def where(self, chosen: np.ndarray, other: "PoseState") -> "PoseState":
        """Return these poses where ``chosen`` (S,), the others elsewhere."""
        turn = np.where(chosen[:, None, None], self.motion.rotation, other.motion.rotation)
        shift = np.where(chosen[:, None], self.motion.translation, other.motion.translation)
        return PoseState(RigidMotion(turn, shift), np.where(chosen, self.damping, other.damping), self.information)


@dataclass(frozen=True)
class PoseProblem:
    """Slices and the field that they are registered to, on the device of the options.

    Attributes
    ----------
    parameters : tuple of array
        mean, log_scale, quaternion, intensity, log_weight of the field.
    slices : SliceSet
        Slices, whose ``values`` are on the device.
    weight : array, (S, X, Y)
        Weight of each pixel; 0 outside the region.
    gain : array, (S,)
    options : RenderOptions
    tie : float
        Pull to the neighbours' motion, as a share of the information of the median slice.
    """

    parameters: FieldArrays
    slices: SliceSet
    weight: np.ndarray
    gain: np.ndarray
    options: ops.RenderOptions
    tie: float = 0.0

    @classmethod
    def of(
        cls,
        field: GaussianField,
        slices: SliceSet,
        weight: Array,
        gain: Array,
        options: ops.RenderOptions,
        tie: float = 0.0,
    ) -> "PoseProblem":
        """Build the problem of registering ``slices`` to ``field``.

        Arrays and tensors are moved to the device of the options.
        """
        *parameters, values, weight, gain = (
            backend.to_device(a, options.device)
            for a in (*field.parameters, slices.values, weight, np.asarray(gain, np.float32))
        )
        return cls(tuple(parameters), slices.with_values(values), weight, gain, options, tie)

    def geometry(self, motion: RigidMotion) -> "ops.SliceGeometry | DeviceGeometry":
        """Return the geometry of the slices under given poses, for the renderer."""
        return self.slices.geometry(motion, self.options.device)

    def residual(self, image: Array) -> Array:
        """Return acquired minus simulated, (S, X, Y)."""
        return self.slices.values - self.gain[:, None, None] * image

    def cost(self, motion: RigidMotion, pull: Pull) -> np.ndarray:
        """Return the Charbonnier cost of every slice with its pull, (S,)."""
        return self.data_cost(motion) + pull.cost(motion)

    def data_cost(self, motion: RigidMotion) -> np.ndarray:
        """Return the Charbonnier cost of every slice, (S,)."""
        image, _ = ops.render(*self.parameters, self.geometry(motion), self.options)
        return robust_cost(self.residual(image), self.weight)

    def with_means(self, mean: np.ndarray) -> "PoseProblem":
        """Return the same problem with the Gaussians at other positions (N, 3)."""
        return replace(self, parameters=(backend.to_device(mean, self.options.device), *self.parameters[1:]))

    def pull(self, state: PoseState) -> Pull:
        """Return the pull to the neighbours as they are now."""
        return pull_of(state.motion, self.slices, self.tie * state.information)


def robust_cost(residual: Array, weight: Array) -> np.ndarray:
    """Return the Charbonnier cost of every slice, (S,) array: ``sum weight (sqrt(r^2 + d^2) - d)``."""
    cost = weight * (backend.sqrt(residual**2 + CHARBONNIER**2) - CHARBONNIER)
    return backend.to_host(cost.sum((1, 2), dtype=float))


def linearised(problem: PoseProblem, motion: RigidMotion) -> tuple[np.ndarray, np.ndarray, Array, Array, Array]:
    """Linearise the simulated values of the slices in the poses, the field fixed.

    Returns
    -------
    matrix, vector : ndarray, (S, 6, 6), (S, 6)
        ``J^T W J`` and ``J^T W r`` with the weights of the Charbonnier cost.
    gradient : array, (S, X, Y, 3)
        See :func:`gsbids.kernels.ops.image_gradient`.
    robust : array, (S, X, Y)
        W.
    residual : array, (S, X, Y)
        r.
    """
    geometry = problem.geometry(motion)
    lists = ops.plan(problem.parameters, geometry, problem.options)
    rendered = ops.render(*problem.parameters, geometry, problem.options, lists)
    residual = problem.residual(rendered[0])
    gradient = ops.image_gradient(*problem.parameters, geometry, rendered, problem.options, lists)
    robust = backend.as_float32(problem.weight / backend.sqrt(residual**2 + CHARBONNIER**2))
    matrix, vector = backend.to_host(ops.pose_normal_equations(geometry, gradient, residual, robust, problem.gain))
    return matrix, vector, gradient, robust, residual


def pose_step(problem: PoseProblem, state: PoseState, pull: Pull | None = None) -> tuple[PoseState, np.ndarray]:
    """Take one Levenberg-Marquardt step of every slice against a fixed field.

    Solves ``(J^T W J + P + damping diag) delta = J^T W r + P step`` with the weights of the Charbonnier cost and the
    pull P to the neighbours, and keeps the step of a slice only where its own cost falls.

    Parameters
    ----------
    problem : PoseProblem
    state : PoseState
    pull : Pull, optional
        Pull to the neighbours; to where they are in ``state`` if left out.

    Returns
    -------
    PoseState
    kept : ndarray, (S,), bool
    """
    pull = pull or problem.pull(state)
    matrix, vector, _, _, residual = linearised(problem, state.motion)
    prior, towards = pull.normal_equations(state.motion)
    delta = _solve(matrix + prior, vector + towards, state.damping)
    moved = state.motion.step(delta[:, :3], delta[:, 3:])
    kept = problem.cost(moved, pull) < robust_cost(residual, problem.weight) + pull.cost(state.motion)
    damping = np.clip(np.where(kept, LOWER, RAISE) * state.damping, *DAMPING_LIMITS)
    information = np.median(np.einsum("saa->sa", matrix), axis=0)
    tried = PoseState(moved, damping, information)
    return tried.where(kept, PoseState(state.motion, damping)), kept


def try_neighbours(problem: PoseProblem, state: PoseState, steps: int = 2) -> tuple[PoseState, np.ndarray]:
    """Let every slice try the motion of its neighbours in the stack, which recovers misregistered slices.

    A slice whose own pose is wrong (a small one at the end of the stack, most often) is started again from the motion
    of the slices one and two places away, refined by ``steps`` steps, and keeps the best by its own cost. Neighbours
    two places away are the ones acquired next in interleaved stacks. Slices that are much further from their
    neighbours' motion than others are moved back to it, unless that costs twice as much or more: a field that was
    fitted to a misregistered slice matches it where it is.

    Parameters and returns as for :func:`pose_step`; ``kept`` are the slices that changed to a neighbour's motion.
    """
    pull, slices = problem.pull(state), problem.slices

    def refined(candidate: PoseState) -> PoseState:
        for _ in range(steps):
            candidate, _ = pose_step(problem, candidate, pull)
        return candidate

    corrections = state.motion.as_affines(slices.start)
    best = refined(state)
    cost = problem.cost(best.motion, pull)
    changed = np.zeros(len(slices), bool)
    for offset in OFFSETS:
        other = slices.neighbour(offset)
        candidate = refined(PoseState(slices.start.moved(corrections[other]), np.full(len(slices), FIRST_DAMPING)))
        trial = problem.cost(candidate.motion, pull)
        better = trial < BETTER * cost
        best, cost, changed = candidate.where(better, best), np.where(better, trial, cost), changed | better
    expected = problem.pull(best).expected
    back = refined(PoseState(expected, np.full(len(slices), FIRST_DAMPING)))
    far = astray(best.motion, expected, slices) & (problem.cost(back.motion, pull) < NO_WORSE * cost)
    return back.where(far, best), changed | far


def astray(motion: RigidMotion, expected: RigidMotion, slices: SliceSet) -> np.ndarray:
    """Return which slices are much further from their neighbours' motion than others are from theirs, (S,), bool."""
    size = lengths(tangents(motion, expected))
    pixels = slices.mask.sum((1, 2))
    typical = np.median(size[pixels >= np.median(pixels)])
    return (size > max(ASTRAY * typical, LEAST_ASTRAY)) & (pixels >= np.median(pixels) / 4)


def _solve(matrix: np.ndarray, vector: np.ndarray, damping: np.ndarray) -> np.ndarray:
    """Return damped steps (S, 6), no longer than the limits; slices without evidence stay."""
    diagonal = np.einsum("saa->sa", matrix)
    floor = 1e-9 + 1e-6 * diagonal.max(axis=1, keepdims=True)
    system = matrix + np.einsum("sa,ab->sab", damping[:, None] * diagonal + floor, np.eye(6))
    delta = np.linalg.solve(system, vector[..., None])[..., 0]
    turn = np.linalg.norm(delta[:, :3], axis=1, keepdims=True) / MAX_TURN
    shift = np.linalg.norm(delta[:, 3:], axis=1, keepdims=True) / MAX_SHIFT
    return delta / np.maximum(1.0, np.maximum(turn, shift))


def mean_correction(motion: RigidMotion, start: RigidMotion, weight: np.ndarray) -> np.ndarray:
    """Find the rigid transform (4, 4) that best carries the start poses onto the present ones: the gauge.

    Found over the corners of the slices' frames (Kabsch), 30 mm out, weighted by ``weight`` (S,).
    """
    corners = 30.0 * np.array([[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])

    def points(poses: RigidMotion) -> np.ndarray:
        return (np.einsum("sij,kj->ski", poses.rotation, corners) + poses.translation[:, None]).reshape(-1, 3)

    return best_rigid(points(start), points(motion), np.repeat(weight, len(corners)))
