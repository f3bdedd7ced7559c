# SPDX-License-Identifier: Apache-2.0
"""Stacks that went to a wrong place as a whole: they are looked for anew in the image of the others."""

from collections.abc import Callable
from dataclasses import replace
from itertools import islice

import numpy as np
from scipy import ndimage

from gsbids.recon import outliers
from gsbids.recon.fit_field import FitState
from gsbids.recon.isotropic import Volume
from gsbids.recon.motion import RigidMotion
from gsbids.recon.neighbours import lengths, tangents
from gsbids.recon.poses import FIRST_DAMPING, PoseState, mean_correction
from gsbids.recon.register import likely_places
from gsbids.recon.slices import SliceSet

# Similarity of acquired and simulated slices, blurred and with outlines, over which nothing is amiss; and under which
# something is, even where no slice had to go far from its start (mm).
WELL, ILL, FAR = 0.99, 0.965, 4.0
GAIN = 5e-4  # of similarity, that a stack moves for
TRIALS = 12
PLACES = 2  # tried for every stack
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


def in_doubt(slices: SliceSet, state: FitState, similarity: np.ndarray) -> bool:
    """Whether a stack may be in a wrong place: slices fit badly, and more so if they had to go far."""
    far = np.median(lengths(tangents(state.pose.motion, slices.start)))
    return np.nanmean(similarity) < (WELL if far > FAR else ILL)


def look_again(slices: SliceSet, state: FitState, step: float,
               place: Callable[[SliceSet, FitState], FitState]) -> tuple[SliceSet, FitState]:
    """Take stacks out, the worst first, and place them anew as long as all slices fit better then.

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
    SliceSet
        With the start poses that the found places have.
    FitState
    """
    similarity, left = stack_similarity(slices, state), TRIALS
    while left > 0 and in_doubt(slices, state, similarity):
        for *trial, stack in islice(_trials(slices, state, similarity, step), left):
            left -= 1
            found = place(*trial)
            now = stack_similarity(slices, found)
            if np.nanmean(now) > np.nanmean(similarity) + GAIN:
                slices, state, similarity = _start_at(slices, found, stack), found, now
                break
        else:
            break
    return slices, state


def _trials(slices: SliceSet, state: FitState, similarity: np.ndarray, step: float):
    """Slices, state and number of a stack that is in another likely place; the best place of the worst stack first."""
    worst = [k for k in np.argsort(similarity) if np.isfinite(similarity[k])] if len(similarity) > 1 else []
    places = {}
    for rank in range(PLACES):
        for k in worst:
            own = slices.stack_index == k
            if k not in places:
                there = image_of(slices, state, ~own, state.pose.motion, step)
                places[k] = likely_places(there, image_of(slices, state, own, slices.nominal, step))
            if rank < len(places[k]):
                moved = slices.nominal.moved(np.linalg.inv(places[k][rank]))
                pose = PoseState(moved, np.full(len(slices), FIRST_DAMPING)).where(own, state.pose)
                yield _from(slices, own, moved), replace(state, pose=pose), k


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
