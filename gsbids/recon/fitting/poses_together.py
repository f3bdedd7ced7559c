# SPDX-License-Identifier: Apache-2.0
"""One step of the poses of all slices at once, as if the field went along with them.

Slices that shift smoothly along with those that cross them stay consistent with one another: every slice alone is
held in its position by a field that has been fitted to all of them where they are, and steps slice by slice
(:func:`gsbids.recon.fitting.poses.pose_step`) correct the shift by a few per cent at a time. Where the field shows the
mean of the slices that pass through a point, it moves by their mean displacement; with that in the derivative, one
step goes nearly the whole way.
"""

from dataclasses import dataclass, replace

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import LinearOperator, cg

from gsbids.kernels import backend
from gsbids.recon.fitting.poses import MAX_SHIFT, MAX_TURN, PoseProblem, PoseState, linearised, robust_cost
from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.motion import RigidMotion

PIXELS = 20_000  # drawn at random, from which the slices' say in one another is found
DAMPINGS = (1e-3, 4e-3, 1.6e-2, 6.4e-2)  # of the diagonal, the first by which the cost does not rise
NO_WORSE = 1.002  # times the cost: the field, carried along, has still to settle
LEAST_TRUST = 1e-3  # of a slice in the mean
TOLERANCE, ROUNDS = 1e-2, 200  # of conjugate gradients


def step_together(
    problem: PoseProblem, state: PoseState, trust: np.ndarray, rng: np.random.Generator
) -> tuple[PoseState, np.ndarray]:
    """Take a Gauss-Newton step of all poses, the field moved by the mean displacement of the slices at every point.

    Parameters
    ----------
    problem : PoseProblem
    state : PoseState
    trust : ndarray, (S,)
        Weight of each slice in the mean.
    rng : numpy.random.Generator
        Draws the pixels.

    Returns
    -------
    PoseState
    shift : ndarray, (N, 3), float32
        Shift of the N Gaussians of the field, mm.
    """
    matrix, vector, gradient, robust, residual = linearised(problem, state.motion)
    cost = robust_cost(residual, problem.weight).sum()
    near = _Nearby(problem.slices, state.motion, trust)
    gradient, robust, gain, mean = backend.to_host((gradient, robust, problem.gain, problem.parameters[0]))
    system = _System(matrix, vector, *_jacobian(near, gradient, robust, gain, rng))
    passing = near.through(mean.astype(float))
    for damping in DAMPINGS:
        step = system.solution(damping)
        moved, shift = state.motion.step(step[:, :3], step[:, 3:]), near.displacement(passing, len(mean), step)
        if problem.with_means(mean + shift).data_cost(moved).sum() < NO_WORSE * cost:
            return replace(state, motion=moved), shift
    return state, np.zeros_like(mean)


@dataclass(frozen=True)
class _System:
    """Normal equations of all poses: their own blocks, and the derivative that couples them."""

    matrix: np.ndarray
    vector: np.ndarray
    jacobian: sparse.csr_matrix
    weight: np.ndarray

    def solution(self, damping: float) -> np.ndarray:
        """Solve for steps of the slice frames (S, 6) by conjugate gradients; none longer than for a slice alone."""
        diagonal = np.einsum("saa->sa", self.matrix)
        added = damping * (diagonal + np.median(diagonal, axis=0)) + 1e-9
        inverse = np.linalg.inv(self.matrix + np.eye(6) * added[:, None])
        size = (added.size, added.size)
        system = LinearOperator(
            size, lambda step: self.jacobian.T @ (self.weight * (self.jacobian @ step)) + added.ravel() * step
        )
        alone = LinearOperator(size, lambda step: np.einsum("sab,sb->sa", inverse, step.reshape(-1, 6)).ravel())
        step = cg(system, self.vector.ravel(), rtol=TOLERANCE, maxiter=ROUNDS, M=alone)[0].reshape(-1, 6)
        turn, shift = (np.linalg.norm(step[:, a : a + 3], axis=1) / most for a, most in ((0, MAX_TURN), (3, MAX_SHIFT)))
        return step / np.maximum(1.0, np.maximum(turn, shift))[:, None]


class _Nearby:
    """The slices that pass through a point."""

    def __init__(self, slices: SliceSet, motion: RigidMotion, trust: np.ndarray) -> None:
        self.slices, self.motion, self.trust = slices, motion, np.maximum(trust, LEAST_TRUST)

    def through(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Find the slices in whose region points (P, 3) lie, within the distance of slices.

        Returns
        -------
        point, row : ndarray, (M,), int
        local : ndarray, (M, 3)
            Points in the frames of the slices, mm.
        share : ndarray, (M,)
            Share of the slice in the mean at the point; those of a point sum to 1.
        """
        slices, motion = self.slices, self.motion
        frames = zip(motion.rotation, motion.translation, slices.slice_gap, strict=True)
        near = [1 - abs((points - centre) @ frame[:, 2]) / gap for frame, centre, gap in frames]
        close = [np.flatnonzero(each > 0) for each in near]
        row, point = np.repeat(np.arange(len(slices)), [len(each) for each in close]), np.concatenate(close)
        near = np.concatenate([each[at] for each, at in zip(near, close, strict=True)])
        local = np.einsum("nij,ni->nj", motion.rotation[row], points[point] - motion.translation[row])
        pixel = np.rint(local[:, :2] / slices.spacing[row] + slices.centre[row]).astype(int)
        seen = ((pixel >= 0) & (pixel < slices.region.shape[1:])).all(1)
        seen[seen] = slices.region[row[seen], pixel[seen, 0], pixel[seen, 1]]
        point, row, local = point[seen], row[seen], local[seen]
        share = self.trust[row] * near[seen]
        return point, row, local, share / np.maximum(np.bincount(point, share, len(points)), 1e-9)[point]

    def displacement(self, passing: tuple, count: int, step: np.ndarray) -> np.ndarray:
        """Return the mean displacement (mm) of the slices at points by steps (S, 6) of their frames, (P, 3), float32.

        ``passing``: of :meth:`through` for the points; ``count``: P.
        """
        point, row, local, share = passing
        each = np.einsum("nij,nj->ni", self.motion.rotation[row], np.cross(step[row, :3], local) + step[row, 3:])
        mean = [np.bincount(point, share * each[:, a], count) for a in range(3)]
        return np.stack(mean, 1).astype(np.float32)


def _jacobian(
    near: _Nearby, gradient: np.ndarray, robust: np.ndarray, gain: np.ndarray, rng: np.random.Generator
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return the derivative of pixels with respect to all poses, (P, 6 S), and the weights (P,) for all pixels."""
    slices, motion = near.slices, near.motion
    pixels = np.flatnonzero(robust)
    drawn = np.sort(rng.choice(pixels, min(PIXELS, len(pixels)), replace=False))
    row, i, j = np.unravel_index(drawn, robust.shape)
    local = np.zeros((len(row), 3))
    local[:, :2] = slices.in_plane(row, np.stack([i, j], 1))
    slope = gain[row, None] * gradient[row, i, j].astype(float)
    world = np.einsum("nij,nj->ni", motion.rotation[row], slope)
    point, other, at_other, share = near.through(
        np.einsum("nij,nj->ni", motion.rotation[row], local) + motion.translation[row]
    )
    theirs = np.einsum("nij,ni->nj", motion.rotation[other], world[point]) * -share[:, None]
    values = np.concatenate([np.c_[np.cross(local, slope), slope], np.c_[np.cross(at_other, theirs), theirs]])
    pixel, where = np.r_[np.arange(len(row)), point], np.r_[row, other]
    columns = 6 * where[:, None] + np.arange(6)
    matrix = sparse.csr_matrix((values.ravel(), (np.repeat(pixel, 6), columns.ravel())), (len(row), 6 * len(slices)))
    return matrix, robust[row, i, j].astype(float) * len(pixels) / max(len(row), 1)
