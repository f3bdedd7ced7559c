# SPDX-License-Identifier: Apache-2.0
"""Gathering slices again with masks of what moves with the head, at the registered poses."""

from dataclasses import replace

import numpy as np

from gsbids.imaging.stack import Stack
from gsbids.recon.fitting.poses import FIRST_DAMPING, PoseState
from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.fitting.stage import FitState
from gsbids.recon.motion import RigidMotion
from gsbids.recon.svr.consensus import HeadRegion, find_head, refined

TRUSTED = 0.1  # weight of a slice under which it is not used to find the head
CHANGED = 0.03  # of the voxels of a mask: less is no change
LEAST_LEFT = 0.3  # of a mask: a stack that would lose more keeps it


def refine_masks(
    stacks: list[Stack], slices: SliceSet, state: FitState, rim: float
) -> tuple[list[Stack], SliceSet, FitState]:
    """Let the masks follow what moves with the head (:mod:`gsbids.recon.svr.consensus`).

    Parameters
    ----------
    stacks : list of Stack
    slices : SliceSet
        Slices of these stacks.
    state : FitState
        Poses, gains and weights of the slices.
    rim : float
        Width (mm) of the rim of the new slices; what is known not to be head is not part of it.

    Returns
    -------
    stacks : list of Stack
        Stacks with new masks; the same where none has changed much.
    slices : SliceSet
        Slices of these, with those that the former masks did not hold.
    state : FitState
        Poses and gains of these; new slices have those of the nearest slice of their stack.
    """
    moves, levels = _moves(stacks, slices, state), []
    for n, stack in enumerate(stacks):
        mine = slices.stack_index == n
        level = np.zeros(stack.mask.shape[2])
        level[slices.slice_index[mine]] = (state.gain * (state.slice_weight > TRUSTED))[mine] * slices.stack_scale[n]
        levels.append(level)
    head = find_head(stacks, moves, levels)
    found = refined(stacks, moves, head) if head else stacks
    found = [
        new if LEAST_LEFT * old.mask.sum() < new.mask.sum() else old for new, old in zip(found, stacks, strict=True)
    ]
    if max(change(old, new) for old, new in zip(stacks, found, strict=True)) < CHANGED:
        return gathered_again(stacks, slices, state, rim)
    stacks, slices, state = _gathered(found, moves, slices, state, rim)
    return stacks, replace(slices, region=slices.mask | (slices.region & ~_foreign(slices, state, head))), state  # type: ignore[arg-type]


def change(old: Stack, new: Stack) -> float:
    """Return the voxels that a mask has lost or won, as a share of it."""
    return float((old.mask != new.mask).sum() / max(old.mask.sum(), 1))


def gathered_again(
    stacks: list[Stack], slices: SliceSet, state: FitState, rim: float
) -> tuple[list[Stack], SliceSet, FitState]:
    """Gather the same slices with another rim; parameters and returns as for :func:`refine_masks`."""
    return _gathered(stacks, _moves(stacks, slices, state), slices, state, rim)


def _moves(stacks: list[Stack], slices: SliceSet, state: FitState) -> list[np.ndarray]:
    """Return the world transforms scanner -> anatomy of all slices of every stack, (Z, 4, 4) each."""
    every = _in_world(state.pose.motion, slices.origin).as_affines(_in_world(slices.nominal, slices.origin))
    return [every[_row(slices, n, np.arange(stack.mask.shape[2]))] for n, stack in enumerate(stacks)]


def _row(slices: SliceSet, stack: int, numbers: np.ndarray) -> np.ndarray:
    """Return rows of the slices of a stack that are nearest to others of it, given by their numbers."""
    mine = np.flatnonzero(slices.stack_index == stack)
    return mine[np.abs(numbers[:, None] - slices.slice_index[mine]).argmin(1)]


def _in_world(motion: RigidMotion, origin: np.ndarray) -> RigidMotion:
    return RigidMotion(motion.rotation, motion.translation + origin)


def _gathered(
    stacks: list[Stack], moves: list[np.ndarray], slices: SliceSet, state: FitState, rim: float
) -> tuple[list[Stack], SliceSet, FitState]:
    """Gather slices of stacks at given poses (``moves``), started from those of others of the same stacks."""
    fresh = SliceSet.from_stacks(stacks, slices.starts, rim)
    pairs = list(zip(fresh.stack_index, fresh.slice_index, strict=True))
    moved = _in_world(fresh.nominal, fresh.origin).moved(np.stack([moves[n][k] for n, k in pairs]))
    rows = np.array([_row(slices, n, np.array([k]))[0] for n, k in pairs])
    now = FitState.start(fresh)
    now.pose = PoseState(_in_world(moved, -fresh.origin), np.full(len(fresh), FIRST_DAMPING), state.pose.information)
    now.gain = state.gain[rows] * (slices.stack_scale / fresh.stack_scale)[fresh.stack_index]
    return stacks, fresh, now


def _foreign(slices: SliceSet, state: FitState, head: HeadRegion) -> np.ndarray:
    """Return pixels (S, X, Y) of the region that do not move with the head."""
    s, i, j = np.nonzero(slices.region)
    local = slices.in_plane(s, np.stack([i, j], 1))
    pose = state.pose.motion
    points = np.einsum("pij,pj->pi", pose.rotation[s, :, :2], local) + pose.translation[s] + slices.origin
    out = np.zeros(slices.region.shape, bool)
    out[s, i, j] = head.foreign_at(points)
    return out
