# SPDX-License-Identifier: Apache-2.0
"""Where slices are before the fit proper: blurred slices and their outlines, with very few Gaussians.

A sharp field explains slices wherever they are, and holds wrong poses fast. A field of some hundred Gaussians cannot:
it sees the brain as a blob with a few features, and slices that are a centimetre and fifteen degrees astray slide
into it. Outside of the masks, within a wide rim, slices count as 0 here, so that outlines take part.

Once slices are about in their places, the stacks show which of what the masks hold moves with the head
(:mod:`gsbids.recon.consensus`): the masks follow that, and the slices are placed again.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from gsbids.imaging.stack import Stack, centred, seen_from
from gsbids.recon.fit_field import FitProblem, FitState, Stage, fit_stage
from gsbids.recon.misplaced import Placed, look_again, settled, stack_agreement
from gsbids.recon.options import SvrOptions
from gsbids.recon.poses import PoseState
from gsbids.recon.psf import FWHM_TO_SIGMA, IN_PLANE_FACTOR
from gsbids.recon.refine_masks import gathered_anew, refine_masks
from gsbids.recon.slices import SliceSet

BRAIN = 58.5  # mm: cube root of the volume for which the sizes below are stated
RIM = 6.0  # mm around the masks that count as 0
VOXEL = 0.75  # pixels of the first level: size of the voxels in which stacks are looked for
TRUSTED = 0.75  # mean agreement from which on places are good enough to say what moves with the head
WORSE = 0.02  # of agreement, by which masks that follow that may be worse
AGAIN = 2  # new coarse fields from the places found: few stacks that drift together come back slowly
TIE = 0.02  # pull to the neighbours' motion while slices are looked for, see SvrOptions.neighbour_tie
ROUNDS = 2  # of stacks in other places and masks that follow
POSE_START, POSE_EVERY, NEIGHBOURS_EVERY = 6, 2, 12


@dataclass(frozen=True)
class Level:
    """Pixel size (mm, of a fetal brain), pixels for each Gaussian, and iterations."""

    pixel: float
    pixels_per_gaussian: float
    iterations: int


LEVELS = (Level(4.0, 60.0, 100), Level(3.0, 25.0, 60))


def coarser(slices: SliceSet, factor: int) -> SliceSet:
    """Slices masked, blurred and taken at every ``factor``-th pixel; the region outside the masks is 0.

    Poses keep their meaning: the origin of a slice stays where it is.
    """
    sigma = IN_PLANE_FACTOR * np.sqrt(factor**2 - 1) * FWHM_TO_SIGMA  # pixels; the PSF becomes that of a large pixel
    blurred = ndimage.gaussian_filter(slices.values * slices.mask, (0, sigma, sigma))
    first = factor // 2
    values, mask, region = (np.ascontiguousarray(a[:, first::factor, first::factor])
                            for a in (blurred, slices.mask, slices.region))
    psf = slices.psf.copy()
    psf[:, :2] *= factor**2
    return replace(slices, values=values.astype(np.float32), mask=mask, region=region, psf=psf,
                   spacing=slices.spacing * factor, centre=(slices.centre - first) / factor)


@dataclass(frozen=True)
class Placing:
    """Slices in their places.

    Attributes
    ----------
    stacks : list of Stack
        With the masks that are fitted: those given, refined by what moves with the head.
    slices : SliceSet
        Their slices, with the rim that is fitted; ``start`` has other poses for stacks that had been in a wrong place.
    pose : PoseState
    agreement : ndarray, (N,)
        Of every stack's brain with the others, see :func:`gsbids.recon.misplaced.stack_agreement`.
    margin : float
        By how much the stacks agreed more than in the best other place that was tried for one; NaN where none was.
    """

    stacks: list[Stack]
    slices: SliceSet
    pose: PoseState
    agreement: np.ndarray
    margin: float


def place_slices(stacks: list[Stack], transforms: np.ndarray, options: SvrOptions,
                 watch: Callable[[FitState, dict], None]) -> Placing:
    """Poses of all slices from their outlines and coarse features, level by level, and masks that suit them.

    Parameters
    ----------
    stacks : list of Stack
    transforms : ndarray, (N, 4, 4)
        From the co-registration of the stacks.
    options : SvrOptions
    watch : callable
        See :func:`gsbids.recon.fit_field.fit_stage`.

    Returns
    -------
    Placing
    """
    given = stacks
    stacks, corner = centred(stacks)
    transforms = np.round(seen_from(transforms, corner), 9)  # nothing depends on where the scanner's origin is
    size = SliceSet.from_stacks(stacks, transforms).volume ** (1 / 3) / BRAIN
    step, margin = VOXEL * LEVELS[0].pixel * size, np.nan

    def coarse(fine, level=LEVELS[0]):
        return coarser(fine, max(2, round(level.pixel * size / float(np.median(fine.spacing)))))

    def fitted(fine, before, level=LEVELS[0]):
        slices = coarse(fine, level)
        problem = FitProblem.pose(slices, replace(options, patience=0, neighbour_tie=TIE))
        return fit_stage(problem, _on_pixels_of(before, slices), _stage(slices, level, options.seed), watch)

    def agreement(fine, state):
        small = coarse(fine)
        return stack_agreement(small, _on_pixels_of(state, small), step)

    def placed(fine, before):
        state = fitted(fine, before)
        return Placed(fine, state, agreement(fine, state), fine.starts)

    def from_starts(transforms):
        fine = SliceSet.from_stacks(stacks, transforms, RIM * size)
        return replace(placed(fine, FitState.start(fine)), transforms=transforms)

    best = from_starts(transforms)
    for _ in range(ROUNDS):
        before = best.transforms
        best = look_again(stacks, best, from_starts)
        moved = [k for k in range(len(stacks)) if not np.array_equal(best.transforms[k], before[k])]
        best = replace(best, slices=settled(best.slices, best.state, moved))
        margin = np.fmin(margin, best.margin)
        if not options.refine_masks or best.mean < TRUSTED:
            break
        as_before = stacks
        stacks, fine, state = refine_masks(stacks, best.slices, best.state, RIM * size)
        if stacks is as_before:
            break
        after = placed(fine, state)
        if after.mean < best.mean - WORSE:
            stacks = as_before
            break
        best = after
    state = best.state
    for _ in range(AGAIN):
        state = fitted(best.slices, state)
    state = fitted(best.slices, state, LEVELS[1])
    following = refine_masks if options.refine_masks and best.mean >= TRUSTED else gathered_anew
    stacks, fine, state = following(stacks, best.slices, state, options.rim)
    return Placing([replace(old, mask=new.mask) for old, new in zip(given, stacks, strict=True)],
                   replace(fine, origin=fine.origin + corner), state.pose, agreement(fine, state), float(margin))


def _on_pixels_of(state: FitState, slices: SliceSet) -> FitState:
    """The same poses and gains for slices of other pixels."""
    fresh = FitState.start(slices)
    fresh.pose, fresh.gain = state.pose, state.gain
    return fresh


def _stage(slices: SliceSet, level: Level, seed: int) -> Stage:
    turns = range(POSE_START, level.iterations, POSE_EVERY)
    return Stage(max(100, round(slices.region.sum() / level.pixels_per_gaussian)), level.iterations, 0.05, seed,
                 frozenset(turns), frozenset(turns[::NEIGHBOURS_EVERY // POSE_EVERY]), level.iterations // 2)
