# SPDX-License-Identifier: Apache-2.0
"""Stacks that went to a wrong place as a whole: they are looked for anew in the image of the others."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.recon import outliers
from gsbids.recon.fit_field import FitState
from gsbids.recon.isotropic import Volume
from gsbids.recon.motion import RigidMotion
from gsbids.recon.poses import FIRST_DAMPING, PoseState, mean_correction
from gsbids.recon.register import about, correlation, likely_places, refine, similarity
from gsbids.recon.slices import SliceSet

# Agreement of the stacks from which on none is looked for elsewhere; brains in wrong places reach 0.85.
SURE = 0.9
GAIN = 0.01  # of agreement, that a stack moves for
TRIALS = 12
PLACES = 4  # tried for every stack
ELSEWHERE = 25.0  # degrees by which another place is turned, at least
LEAST_SHARED = 0.7  # of the smaller brain, that stacks must share: agreement in less counts in proportion
SPREAD = 0.8  # voxels: standard deviation with which a pixel fills the image
HOLE = 0.25  # weight of a voxel, over that of the usual one, under which it shows nothing
LEAST_WEIGHT = 0.05  # of a slice in that image


def stack_similarity(slices: SliceSet, state: FitState) -> np.ndarray:
    """Normalised cross-correlation of acquired and simulated slices with their outlines, by stack, (N,).

    The median of the slices with much brain; NaN for a stack without.
    """
    ncc = outliers.slice_ncc(slices.values, slices.values - state.residual(slices), slices.region)
    pixels = slices.mask.sum((1, 2))
    large = pixels >= np.median(pixels) / 4
    chosen = (ncc[large & (slices.stack_index == k)] for k in range(slices.stack_index.max() + 1))
    return np.array([np.median(each) if len(each) else np.nan for each in chosen])


def stack_agreement(slices: SliceSet, state: FitState, step: float) -> np.ndarray:
    """Normalised cross-correlation of every stack's brain with that of the others where the slices are, (N,).

    The fitted field has no part in it: one that has learnt two brains laid across each other explains both, and is
    similar to all slices; the stacks themselves do not agree then.

    Parameters
    ----------
    slices : SliceSet
    state : FitState
        Placed slices.
    step : float
        Voxel size (mm) of the images that are compared.

    Returns
    -------
    ndarray, (N,)
        NaN for a lone stack.
    """
    brain = replace(slices, region=slices.mask)
    count = int(slices.stack_index.max()) + 1
    found = np.full(count, np.nan)
    for k in range(count if count > 1 else 0):
        own = slices.stack_index == k
        one, other = (image_of(brain, state, chosen, state.pose.motion, step) for chosen in (own, ~own))
        found[k] = _agreement(one, other)
    return found


def _agreement(one: Volume, other: Volume) -> float:
    """Correlation where both images show something, less where they share little of the smaller one."""
    points = one.points
    shared = other.sample(other.weight, points) > 0.5
    share = shared.sum() / max(min(len(points), np.sum(other.weight > 0.5)), 1)
    value = correlation(one.value[one.weight > 0.5], other.sample(other.value, points), shared.astype(float))
    return value * min(1.0, share / LEAST_SHARED)


@dataclass(frozen=True)
class Found:
    """What came of looking for stacks in other places.

    Attributes
    ----------
    slices : SliceSet
        With the start poses that the found places have.
    state : FitState
    agreement : ndarray, (N,)
        See :func:`stack_agreement`.
    runner_up : float
        Largest mean agreement of another place that was tried; 0 where none was.
    """

    slices: SliceSet
    state: FitState
    agreement: np.ndarray
    runner_up: float = 0.0


def look_again(slices: SliceSet, state: FitState, step: float,
               place: Callable[[SliceSet, FitState], FitState]) -> Found:
    """Take stacks out, the worst first, and place them anew as long as the stacks agree better then.

    Parameters
    ----------
    slices : SliceSet
    state : FitState
        Placed slices.
    step : float
        Voxel size (mm) of the images in which a stack is looked for.
    place : callable
        ``place(slices, state)`` places slices from the poses of ``state``.

    Returns
    -------
    Found
    """
    best, left, moved = Found(slices, state, stack_agreement(slices, state, step)), TRIALS, True
    while moved and left > 0 and np.nanmin(best.agreement, initial=1.0) < SURE:
        moved = False
        for *trial, stack in islice(_trials(best.slices, best.state, best.agreement, step), left):
            left -= 1
            found = place(*trial)
            now = stack_agreement(slices, found, step)
            other = float(np.nanmean(now))
            if moved := other > np.nanmean(best.agreement) + GAIN:
                before = float(np.nanmean(best.agreement))
                best = Found(_start_at(best.slices, found, stack), found, now, max(best.runner_up, before))
                break
            best = replace(best, runner_up=max(best.runner_up, other))
    return best


def _trials(slices: SliceSet, state: FitState, agreement: np.ndarray, step: float):
    """Slices, state and number of a stack that is in another likely place; the best place of the worst stack first."""
    worst = [k for k in np.argsort(agreement) if agreement[k] < SURE]
    places = {}
    for rank in range(PLACES):
        for k in worst:
            own = slices.stack_index == k
            if k not in places:
                places[k] = _other_places(slices, state, own, step)
            if rank < len(places[k]):
                moved = places[k][rank]
                pose = PoseState(moved, np.full(len(slices), FIRST_DAMPING)).where(own, state.pose)
                yield _from(slices, own, moved), replace(state, pose=pose), k


def _other_places(slices: SliceSet, state: FitState, own: np.ndarray, step: float) -> list[RigidMotion]:
    """Poses that the slices of a stack would have in other places where it looks like the others, the best first.

    The stack is looked for as it was scanned, by its brain with the outline and by what is within alone, as masks may
    be wrong; and, as it has been placed, turned by 180 degrees about each of its long axes: brains look alike upside
    down.
    """
    found = []
    for seen in (slices, replace(slices, region=slices.mask)):
        there = image_of(seen, state, ~own, state.pose.motion, step)
        scanned = image_of(seen, state, own, slices.nominal, step)
        found += [(slices.nominal.moved(np.linalg.inv(place)), similarity(there, scanned, place))
                  for place in likely_places(there, scanned)[:PLACES]]
    placed = image_of(seen, state, own, state.pose.motion, step)
    for turn in half_turns(placed.points):
        place, value = refine(there, placed, turn)
        found.append((state.pose.motion.moved(np.linalg.inv(place)), value))
    different, row = [state.pose.motion], int(np.argmax(own * slices.mask.sum((1, 2))))
    for motion, _ in sorted(found, key=lambda pair: pair[1], reverse=True):
        if all(_apart(motion, other, row) > ELSEWHERE for other in different):
            different.append(motion)
    return different[1:]


def _apart(one: RigidMotion, other: RigidMotion, row: int) -> float:
    """Angle (degrees) between two poses of a slice."""
    return float(np.degrees(Rotation.from_matrix(one.rotation[row].T @ other.rotation[row]).magnitude()))


def half_turns(points: np.ndarray) -> list[np.ndarray]:
    """Rotations (4, 4) by 180 degrees about the principal axes of points (P, 3) through their middle."""
    middle = points.mean(0)
    axes = np.linalg.eigh(np.cov((points - middle).T))[1].T
    return [about(Rotation.from_rotvec(np.pi * axis).as_matrix(), middle, middle) for axis in axes]


def _from(slices: SliceSet, own: np.ndarray, moved: RigidMotion) -> SliceSet:
    """Slices, some of which (S,) start elsewhere."""
    return replace(slices, start=RigidMotion(np.where(own[:, None, None], moved.rotation, slices.start.rotation),
                                             np.where(own[:, None], moved.translation, slices.start.translation)))


def _start_at(slices: SliceSet, state: FitState, stack: int) -> SliceSet:
    """Slices, those of one stack starting from the mean of where they are: the gauge of the fit follows the starts."""
    own = slices.stack_index == stack
    pixels = slices.mask[own].sum((1, 2)).astype(float)
    mean = mean_correction(state.pose.motion[own], slices.nominal[own], pixels)
    return _from(slices, own, slices.nominal.moved(mean))


def image_of(slices: SliceSet, state: FitState, chosen: np.ndarray, motion: RigidMotion, step: float) -> Volume:
    """Weighted mean of slices with their outlines on a grid, where poses put them.

    Parameters
    ----------
    slices : SliceSet
    state : FitState
        For gains and weights.
    chosen : ndarray, (S,), bool
    motion : RigidMotion
        S poses.
    step : float
        Voxel size, mm.

    Returns
    -------
    Volume
        Its positions are those of the poses.
    """
    row, i, j = np.nonzero(slices.region & chosen[:, None, None])
    local = (np.stack([i, j], 1) - slices.centre[row]) * slices.spacing[row]
    points = np.einsum("nij,nj->ni", motion.rotation[row, :, :2], local) + motion.translation[row]
    low = np.floor(points.min(0) / step) - 2
    shape = tuple((np.ceil(points.max(0) / step) - low + 3).astype(int))
    voxel = np.ravel_multi_index(np.rint(points / step - low).astype(int).T, shape)
    weight = np.maximum(state.slice_weight[row], LEAST_WEIGHT)
    value = state.unshaded(slices).values[row, i, j] / state.gain[row]

    def spread(array):
        return ndimage.gaussian_filter(np.bincount(voxel, array, np.prod(shape)).reshape(shape), SPREAD)

    seen, total = spread(weight), spread(weight * value)
    value = total / np.maximum(seen, 1e-6)
    usual = np.median(value[value > np.percentile(value, 99) / 3]) if value.any() else 1.0
    shown = seen > HOLE * np.median(seen[seen > 0.05 * seen.max()])
    return Volume(value / usual * shown, shown.astype(float), low * step, step)
