# SPDX-License-Identifier: Apache-2.0
"""Strains of the brain that slices of few directions cannot tell from motion, and a search along them.

A uniform strain E of the brain (symmetric, 3 x 3) is followed exactly by slices that stay rigid where E changes no
length within their planes. The slices of two stacks with normals a and b leave one such strain, ``a b^T + b a^T``: the
angle between the stacks can change, and each slice still meets all those of the other stack. Parallel stacks leave
three. Only the tilts of single slices and their thickness determine it, so that a fit may end anywhere along a flat
valley of the cost: here that valley is searched.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.fitting.stage import FitState, Stage
from gsbids.recon.motion import RigidMotion, best_rigid

FREE = 0.05  # mean square change of length in the planes of the slices, for a strain of norm 1, under which it is free
STEP = 0.03  # norm of the strains that are tried on both sides
LONGEST = 0.06  # norm of a step
SETTLED = 0.004  # norm of a step after which no other is tried
ROUNDS = 4  # steps at most
ITERATIONS = 60  # of the field that is fitted for each trial
POSE_TURNS = frozenset(range(20, 36, 4))  # the slices' other motion follows


def free_strains(slices: SliceSet, motion: RigidMotion) -> list[np.ndarray]:
    """Find the strains that the slices leave free.

    Parameters
    ----------
    slices : SliceSet
    motion : RigidMotion
        S poses.

    Returns
    -------
    list of ndarray, (3, 3)
        Symmetric, of norm 1, orthogonal to one another, the freest first; none for stacks of three directions.
    """
    basis = []
    for i, j in zip(*np.triu_indices(3), strict=True):
        one = np.zeros((3, 3))
        one[i, j] = one[j, i] = 1.0 if i == j else np.sqrt(0.5)
        basis.append(one)
    planes, pixels = motion.rotation[:, :, :2], slices.mask.sum((1, 2)).astype(float)
    within = np.einsum("sia,kij,sjb->skab", planes, np.array(basis), planes).reshape(len(planes), 6, 4)
    change, strains = np.linalg.eigh(np.einsum("s,ska,sla->kl", pixels / pixels.sum(), within, within))
    return [np.tensordot(strains[:, k], basis, 1) for k in np.flatnonzero(change < FREE)]


def strained(slices: SliceSet, motion: RigidMotion, strain: np.ndarray) -> RigidMotion:
    """Let every slice follow a strain of the brain as well as it can while it stays rigid.

    Parameters
    ----------
    slices : SliceSet
    motion : RigidMotion
        S poses.
    strain : ndarray, (3, 3)
        Strain about the middle of all slices; dimensionless.

    Returns
    -------
    RigidMotion
        S poses.
    """
    pixels = slices.mask.sum((1, 2)).astype(float)
    middle = pixels @ motion.translation / pixels.sum()
    rotation, translation = motion.rotation.copy(), motion.translation.copy()
    for s in np.flatnonzero(pixels):
        local = np.zeros((int(pixels[s]), 3))
        local[:, :2] = slices.in_plane(s, np.argwhere(slices.mask[s]))
        points = local @ motion.rotation[s].T + motion.translation[s]
        pose = best_rigid(local, points + (points - middle) @ strain.T)
        rotation[s], translation[s] = pose[:3, :3], pose[:3, 3]
    return RigidMotion(rotation, translation)


def settle_strains(
    slices: SliceSet, state: FitState, coarse: Stage, run: Callable[[FitState, Stage], tuple[FitState, float]]
) -> tuple[FitState, float]:
    """Search along the one strain that the slices leave free for where a field explains the slices best.

    Fields are fitted to the slices as they are and strained to both sides, while the slices follow; the parabola
    through the three losses says how far to go, until that is hardly anywhere.

    Parameters
    ----------
    slices : SliceSet
    state : FitState
        State after the coarse stage.
    coarse : Stage
        Coarse stage; fields like its own are fitted for the trials.
    run : callable
        ``run(state, stage)`` fits a stage, and returns its state and its last loss.

    Returns
    -------
    FitState
        State that was given where no strain is free, or more than one.
    amount : float
        Norm of the sum of all strains that were taken; 0 where none was.
    """
    stage = Stage(coarse.gaussians, ITERATIONS, coarse.learning_rate, coarse.seed, POSE_TURNS)
    total = np.zeros((3, 3))
    for _ in range(ROUNDS):
        free = free_strains(slices, state.pose.motion)
        if len(free) != 1:  # or slices have turned, and tell more
            break
        (strain,) = free
        tried = [run(_followed(slices, state, way * STEP * strain), stage) for way in (-1, 0, 1)]
        way = lowest(*(loss for _, loss in tried))
        nearest = int(np.clip(np.rint(way), -1, 1))
        state = _followed(slices, tried[1 + nearest][0], (way - nearest) * STEP * strain)
        total += way * STEP * strain
        if abs(way) * STEP < SETTLED:
            break
    return state, float(np.linalg.norm(total))


def _followed(slices: SliceSet, state: FitState, strain: np.ndarray) -> FitState:
    """Return a state whose slices follow a strain."""
    return replace(state, pose=replace(state.pose, motion=strained(slices, state.pose.motion, strain)))


def lowest(before: float, here: float, after: float) -> float:
    """Return where a parabola through values at -1, 0 and 1 is lowest, within the longest step.

    Its lower side if it has no minimum.

    Examples
    --------
    >>> lowest(4.0, 1.0, 0.0), lowest(3.0, 2.0, 1.0), lowest(2.0, 1.0, 2.0)
    (1.0, 2.0, 0.0)
    """
    longest, bend = LONGEST / STEP, before + after - 2 * here
    if bend <= 0:
        return longest * float(np.sign(before - after))
    return float(np.clip((before - after) / (2 * bend), -longest, longest))
