# SPDX-License-Identifier: Apache-2.0
"""Misregistered stacks: other poses of whole stacks are tried, and compared by the agreement of the stacks."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.imaging.stack import Stack, centred, seen_from
from gsbids.recon.fitting import outliers
from gsbids.recon.fitting.poses import mean_correction
from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.fitting.stage import FitState
from gsbids.recon.motion import RigidMotion
from gsbids.recon.registration.isotropic import Volume, isotropic_volume
from gsbids.recon.registration.register import about, correlation, likely_places, mean_volume, refine, search_step

SURE = 0.85  # agreement of a stack from which on no other pose of it is searched
LESS, HOPELESS = 0.1, 4  # of agreement, by which a stack agrees less in so many other places that no more are tried
GAIN, GAIN_OF_HALF_TURN = 0.01, 0.02  # of agreement, that a stack moves for; and more, by the angle that it is turned
TRIALS = 12  # other poses that are fitted, of all stacks together
PLACES = 6  # tried for every stack
TURNS = 16  # rotations of the cover that are refined
REREGISTERED = 15.0  # degrees by which a stack is turned against the others to be called re-registered
ELSEWHERE = 25.0  # degrees by which another place is turned, at least
LESS_ALIKE = 0.03  # of similarity as scanned, by which a place that is tried may look worse than the present one
LEAST_SHARED = 0.7  # of the smaller brain, that stacks must share: agreement in less counts in proportion
SPREAD = 0.8  # voxels: standard deviation with which a pixel fills the image
HOLE = 0.25  # weight of a voxel, over that of the usual one, under which it shows nothing
LEAST_WEIGHT = 0.05  # of a slice in that image


def stack_similarity(slices: SliceSet, state: FitState) -> np.ndarray:
    """Return the normalised cross-correlation of acquired and simulated slices with their outlines, by stack, (N,).

    The median of the slices with much brain; NaN for a stack without.
    """
    ncc = outliers.slice_ncc(slices.values, slices.values - state.residual(slices), slices.region)
    pixels = slices.mask.sum((1, 2))
    large = pixels >= np.median(pixels) / 4
    chosen = (ncc[large & (slices.stack_index == k)] for k in range(slices.stack_index.max() + 1))
    return np.array([np.median(each) if len(each) else np.nan for each in chosen])


def stack_agreement(slices: SliceSet, state: FitState, step: float, left_out: int | None = None) -> np.ndarray:
    """Return the normalised cross-correlation of every stack's brain with that of the others at the slice poses, (N,).

    The fitted field has no part in it: one that has fitted two brains laid across each other explains both, and is
    similar to all slices; the stacks themselves do not agree then.

    Parameters
    ----------
    slices : SliceSet
    state : FitState
        Registered slices.
    step : float
        Voxel size (mm) of the images that are compared.
    left_out : int, optional
        Stack that counts among the others of none.

    Returns
    -------
    ndarray, (N,)
        NaN for a lone stack, and for the one left out.
    """
    brain = replace(slices, region=slices.mask)
    count = int(slices.stack_index.max()) + 1
    found, counted = np.full(count, np.nan), slices.stack_index != (-1 if left_out is None else left_out)
    stacks = np.unique(slices.stack_index[counted])
    for k in stacks if len(stacks) > 1 else ():
        own = slices.stack_index == k
        one, other = (image_of(brain, state, chosen, state.pose.motion, step) for chosen in (own, ~own & counted))
        found[k] = _agreement(one, other)
    return found


def _agreement(one: Volume, other: Volume) -> float:
    """Return the correlation where both images have data, reduced where they share little of the smaller one."""
    points = one.points
    shared = other.sample(other.weight, points) > 0.5
    share = shared.sum() / max(min(len(points), np.sum(other.weight > 0.5)), 1)
    value = correlation(one.value[one.weight > 0.5], other.sample(other.value, points), shared.astype(float))
    return value * min(1.0, share / LEAST_SHARED)


@dataclass(frozen=True)
class Placed:
    """Slices as they were registered from given starts.

    Attributes
    ----------
    slices : SliceSet
    state : FitState
    agreement : ndarray, (N,)
        See :func:`stack_agreement`.
    transforms : ndarray, (N, 4, 4)
        World, scanner -> common space: start poses of the stacks.
    runner_up : float
        Largest mean agreement of other poses that were tried; 0 where none was.
    rival : Placed, optional
        Other result in which the stacks agree most.
    """

    slices: SliceSet
    state: FitState
    agreement: np.ndarray
    transforms: np.ndarray
    runner_up: float = 0.0
    rival: "Placed | None" = None

    @property
    def mean(self) -> float:
        """Mean agreement; 1 for a lone stack."""
        return float(np.nanmean(self.agreement)) if np.isfinite(self.agreement).any() else 1.0

    @property
    def margin(self) -> float:
        """Difference of agreement to the best other result that was tried; NaN where none was."""
        return self.mean - self.runner_up if self.runner_up > 0 else np.nan

    @property
    def means(self) -> np.ndarray:
        """World transforms scanner -> common space, (N, 4, 4), of the stacks by the mean of their slice poses."""
        return settled(self.slices, self.state, range(len(self.transforms))).starts

    def apart(self, other: "Placed") -> float:
        """Return the largest angle (degrees) of a stack's pose against the first one, to that in another result."""
        return turned_apart(self.means, other.means)

    def better(self, other: "Placed") -> "Placed":
        """Return the result in which the stacks agree more, clearly so if rotated far; the other is its runner-up."""
        angle = self.apart(other)
        lead = GAIN + GAIN_OF_HALF_TURN * angle / 180
        best, rest = (other, self) if other.mean > self.mean + lead else (self, other)
        tried = rest.mean if angle > ELSEWHERE else 0.0  # what slides back is no other place
        others = [
            each
            for each in (best.rival, rest.rival, replace(rest, rival=None))
            if each is not None and best.apart(each) > ELSEWHERE
        ]
        return replace(
            best,
            runner_up=max(best.runner_up, rest.runner_up, tried),
            rival=max(others, key=lambda each: each.mean, default=None),
        )


def settled(slices: SliceSet, state: FitState, stacks: Iterable[int]) -> SliceSet:
    """Return slices whose stacks (numbers) start from the mean of their slice poses.

    The gauge of the fit follows the starts.
    """
    start = slices.start
    for stack in stacks:
        own = slices.stack_index == stack
        pixels = slices.mask[own].sum((1, 2)).astype(float)
        moved = slices.nominal.moved(mean_correction(state.pose.motion[own], slices.nominal[own], pixels))
        start = RigidMotion(
            np.where(own[:, None, None], moved.rotation, start.rotation),
            np.where(own[:, None], moved.translation, start.translation),
        )
    return replace(slices, start=start)


def look_again(stacks: list[Stack], first: Placed, place: Callable[[np.ndarray], Placed]) -> Placed:
    """Try other poses for stacks that do not agree with the others, the worst first.

    Parameters
    ----------
    stacks : list of Stack
    first : Placed
    place : callable
        ``place(transforms)`` registers all slices from other starts of the stacks.

    Returns
    -------
    Placed
        Result with the best agreement.
    """
    best, left, images = first, TRIALS, None
    for k in np.argsort(first.agreement)[: 1 if len(stacks) == 2 else None]:
        if np.nanmin(best.agreement, initial=1.0) >= SURE:
            break
        if not best.agreement[k] < SURE:
            continue
        images = images or StackImages.of(stacks)
        worse = 0
        for transform in images.other_places(best.transforms, int(k))[: min(PLACES, left)]:
            left -= 1
            starts = best.transforms.copy()
            starts[k] = transform
            tried = place(starts)
            worse = worse + 1 if tried.agreement[k] < best.agreement[k] - LESS else 0
            best = best.better(tried)
            if best.agreement.min() >= SURE or worse >= HOPELESS:
                break
    return best


@dataclass(frozen=True)
class StackImages:
    """Stacks as acquired, on isotropic grids, for the search of their poses.

    Attributes
    ----------
    coarse, fine : list of Volume
        Volumes of every stack.
    origin : ndarray, (3,)
        World RAS+ mm that is 0 in them.
    """

    coarse: list[Volume]
    fine: list[Volume]
    origin: np.ndarray

    @classmethod
    def of(cls, stacks: list[Stack]) -> "StackImages":
        """Blur and sample stacks."""
        (stacks, origin), step = centred(stacks), search_step(stacks)
        return cls(
            [isotropic_volume(stack, 2 * step, 3 * step) for stack in stacks],
            [isotropic_volume(stack, step) for stack in stacks],
            origin,
        )

    def other_places(self, transforms: np.ndarray, k: int) -> list[np.ndarray]:
        """Find other poses in which a stack is about as similar to the rest as where it is, the best first.

        All rotations are searched, and, as brains look alike upside down, those by 180 degrees about the long axes of
        the stack's brain where it is.

        Parameters
        ----------
        transforms : ndarray, (N, 4, 4)
            World, scanner -> common space, of all stacks.
        k : int
            Number of the stack.

        Returns
        -------
        list of ndarray, (4, 4)
            World, scanner -> common space; each rotated by more than :data:`ELSEWHERE` against the others and the
            present pose of the stack.
        """
        here = seen_from(transforms, self.origin)
        coarse, fine = (mean_volume(each, here, skip=k) for each in (self.coarse, self.fine))
        starts = likely_places(coarse, self.coarse[k], TURNS)
        points = self.coarse[k].points
        starts += [refine(coarse, self.coarse[k], turn @ np.linalg.inv(here[k]))[0] for turn in half_turns(points)]
        found = sorted((refine(fine, self.fine[k], start) for start in starts), key=lambda pair: pair[1], reverse=True)
        now = refine(fine, self.fine[k], np.linalg.inv(here[k]))[1]
        different = [here[k]]
        for place, alike in found:
            back = np.linalg.inv(place)
            if alike >= now - LESS_ALIKE and all(_apart(back, other) > ELSEWHERE for other in different):
                different.append(back)
        return [seen_from(place, -self.origin) for place in different[1:]]


def _apart(one: np.ndarray, other: np.ndarray) -> float:
    """Return the angle (degrees) between two transforms."""
    return float(np.degrees(Rotation.from_matrix(one[:3, :3].T @ other[:3, :3]).magnitude()))


def turned_apart(one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest angle (degrees) between a stack's pose against the first one in two arrangements (N, 4, 4)."""
    mine, others = (np.linalg.inv(each[0]) @ each for each in (one, other))
    return max(_apart(a, b) for a, b in zip(mine, others, strict=True))


def turned_elsewhere(now: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return which stacks are rotated by more than :data:`REREGISTERED` against most others since before.

    An array (N,) of bool.
    """
    change = now @ np.linalg.inv(before)
    apart = np.array([[_apart(one, other) for other in change] for one in change])
    return apart[np.argmin(np.median(apart, axis=1))] > REREGISTERED


def half_turns(points: np.ndarray) -> list[np.ndarray]:
    """Return rotations (4, 4) by 180 degrees about the principal axes of points (P, 3) through their middle."""
    middle = points.mean(0)
    axes = np.linalg.eigh(np.cov((points - middle).T))[1].T
    return [about(Rotation.from_rotvec(np.pi * axis).as_matrix(), middle, middle) for axis in axes]


def image_of(slices: SliceSet, state: FitState, chosen: np.ndarray, motion: RigidMotion, step: float) -> Volume:
    """Average slices with their outlines on a grid, at given poses.

    Parameters
    ----------
    slices : SliceSet
    state : FitState
        State with gains and weights.
    chosen : ndarray, (S,), bool
    motion : RigidMotion
        S poses.
    step : float
        Voxel size, mm.

    Returns
    -------
    Volume
        Volume in the space of the poses.
    """
    row, i, j = np.nonzero(slices.region & chosen[:, None, None])
    local = slices.in_plane(row, np.stack([i, j], 1))
    points = np.einsum("nij,nj->ni", motion.rotation[row, :, :2], local) + motion.translation[row]
    low = np.floor(points.min(0) / step) - 2
    shape = tuple((np.ceil(points.max(0) / step) - low + 3).astype(int))
    voxel = np.ravel_multi_index(np.rint(points / step - low).astype(int).T, shape)
    weight = np.maximum(state.slice_weight[row], LEAST_WEIGHT)
    value = state.restored(slices).values[row, i, j] / state.gain[row]

    def spread(array: np.ndarray) -> np.ndarray:
        return ndimage.gaussian_filter(np.bincount(voxel, array, np.prod(shape)).reshape(shape), SPREAD)

    seen, total = spread(weight), spread(weight * value)
    value = total / np.maximum(seen, 1e-6)
    usual = np.median(value[value > np.percentile(value, 99) / 3]) if value.any() else 1.0
    shown = seen > HOLE * np.median(seen[seen > 0.05 * seen.max()])
    return Volume(value / usual * shown, shown.astype(float), low * step, step)
