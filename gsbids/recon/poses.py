# SPDX-License-Identifier: Apache-2.0
"""Poses of the slices by Levenberg-Marquardt: six unknowns a slice, all slices at once."""

from dataclasses import dataclass

import numpy as np

from gsbids.kernels import ops
from gsbids.recon.field import GaussianField
from gsbids.recon.motion import RigidMotion
from gsbids.recon.slices import SliceSet

MAX_TURN = 0.08  # rad in one step
MAX_SHIFT = 2.0  # mm in one step
LOWER, RAISE = 0.25, 6.0  # damping after a step that was kept, and one that was not
DAMPING_LIMITS = (1e-6, 1e4)
CHARBONNIER = 0.03  # residual, in units of the intensity range, from which on the cost grows linearly


@dataclass(frozen=True)
class PoseState:
    """Poses and the damping of their next step.

    Attributes
    ----------
    motion : RigidMotion
    damping : ndarray, (S,)
    """

    motion: RigidMotion
    damping: np.ndarray


def robust_cost(residual, weight) -> np.ndarray:
    """Charbonnier cost of every slice, (S,): ``sum weight (sqrt(r^2 + d^2) - d)``."""
    return (weight * (np.sqrt(residual**2 + CHARBONNIER**2) - CHARBONNIER)).sum((1, 2), dtype=float)


def pose_step(state: PoseState, field: GaussianField, slices: SliceSet, weight, gain,
              options: ops.RenderOptions) -> tuple[PoseState, np.ndarray]:
    """One Levenberg-Marquardt step of every slice against a fixed field.

    Solves ``(J^T W J + damping diag) delta = J^T W r`` with the weights of the Charbonnier cost, and keeps the
    step of a slice only where its own cost falls.

    Parameters
    ----------
    state : PoseState
    field : GaussianField
    slices : SliceSet
    weight : ndarray, (S, X, Y)
        Weight of each pixel; 0 outside the mask.
    gain : ndarray, (S,)
    options : RenderOptions

    Returns
    -------
    PoseState
    kept : ndarray, (S,), bool
    """
    parameters = (field.mean, field.log_scale, field.quaternion, field.intensity, field.log_weight)
    geometry = slices.geometry(state.motion)
    rendered = ops.render(*parameters, geometry, options)
    residual = slices.values - gain[:, None, None].astype(np.float32) * rendered[0]
    gradient = ops.image_gradient(*parameters, geometry, rendered, options)
    robust = weight / np.sqrt(residual**2 + CHARBONNIER**2)
    matrix, vector = ops.pose_normal_equations(geometry, gradient, residual, robust.astype(np.float32), gain)
    omega, tau = _solve(matrix, vector, state.damping)
    moved = state.motion.step(omega, tau)
    image, _ = ops.render(*parameters, slices.geometry(moved), options)
    trial = slices.values - gain[:, None, None].astype(np.float32) * image
    kept = robust_cost(trial, weight) < robust_cost(residual, weight)
    motion = RigidMotion(np.where(kept[:, None, None], moved.rotation, state.motion.rotation),
                         np.where(kept[:, None], moved.translation, state.motion.translation))
    damping = np.clip(np.where(kept, LOWER, RAISE) * state.damping, *DAMPING_LIMITS)
    return PoseState(motion, damping), kept


def try_neighbours(state: PoseState, field: GaussianField, slices: SliceSet, weight, gain,
                   options: ops.RenderOptions, steps: int = 2) -> tuple[PoseState, np.ndarray]:
    """Let every slice try the motion of its neighbours in the stack: brings lost slices back.

    A slice whose own pose went astray (a small one at the end of the stack, most often) is started again from
    the motion of the slices one and two places away, refined by ``steps`` steps, and keeps the best by its own
    cost. Neighbours two places away are the ones acquired next in interleaved stacks.

    Parameters and returns as for :func:`pose_step`; ``kept`` are the slices that changed to a neighbour's motion.
    """
    def refined(candidate):
        for _ in range(steps):
            candidate, _ = pose_step(candidate, field, slices, weight, gain, options)
        return candidate

    def cost_of(candidate):
        image, _ = ops.render(field.mean, field.log_scale, field.quaternion, field.intensity, field.log_weight,
                              slices.geometry(candidate.motion), options)
        return robust_cost(slices.values - gain[:, None, None].astype(np.float32) * image, weight)

    corrections = state.motion.as_affines(slices.start)
    best = refined(state)
    cost = cost_of(best)
    changed = np.zeros(len(slices), bool)
    for offset in (-2, -1, 1, 2):
        other = slices.neighbour(offset)
        candidate = refined(PoseState(slices.start.moved(corrections[other]), np.full(len(slices), 1e-2)))
        trial = cost_of(candidate)
        better = trial < 0.99 * cost
        best = PoseState(RigidMotion(np.where(better[:, None, None], candidate.motion.rotation, best.motion.rotation),
                                     np.where(better[:, None], candidate.motion.translation, best.motion.translation)),
                         np.where(better, candidate.damping, best.damping))
        cost, changed = np.where(better, trial, cost), changed | better
    return best, changed


def _solve(matrix, vector, damping):
    """Damped steps, no longer than the limits; slices without evidence stay."""
    diagonal = np.einsum("saa->sa", matrix)
    floor = 1e-9 + 1e-6 * diagonal.max(axis=1, keepdims=True)
    system = matrix + np.einsum("sa,ab->sab", damping[:, None] * diagonal + floor, np.eye(6))
    delta = np.linalg.solve(system, vector[..., None])[..., 0]
    turn = np.linalg.norm(delta[:, :3], axis=1, keepdims=True) / MAX_TURN
    shift = np.linalg.norm(delta[:, 3:], axis=1, keepdims=True) / MAX_SHIFT
    delta /= np.maximum(1.0, np.maximum(turn, shift))
    return delta[:, :3], delta[:, 3:]


def mean_correction(motion: RigidMotion, start: RigidMotion, weight: np.ndarray) -> np.ndarray:
    """Rigid transform (4, 4) that best carries the start poses onto the present ones: the gauge.

    Found over the corners of the slices' frames (Kabsch), 30 mm out, weighted by ``weight`` (S,).
    """
    corners = 30.0 * np.array([[0, 0, 0], [1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0]])

    def points(poses):
        return (np.einsum("sij,kj->ski", poses.rotation, corners) + poses.translation[:, None]).reshape(-1, 3)

    weights = np.repeat(weight, len(corners)) / (len(corners) * weight.sum())
    a, b = points(start), points(motion)
    ca, cb = weights @ a, weights @ b
    u, _, vt = np.linalg.svd(((a - ca) * weights[:, None]).T @ (b - cb))
    turn = vt.T @ np.diag([1, 1, np.sign(np.linalg.det(vt.T @ u.T))]) @ u.T
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = turn, cb - turn @ ca
    return transform
