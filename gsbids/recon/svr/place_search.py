# SPDX-License-Identifier: Apache-2.0
"""Coarse fits from many starts, and the agreement of the stacks in each.

A sharp field explains slices wherever they are, and keeps wrong poses. A field of some hundred Gaussians cannot: it
sees the brain as a blob with a few features, and slices that are a centimetre and fifteen degrees off slide into it.
Outside of the masks, within a wide rim, slices count as 0 here, so that outlines take part; where the stacks do not
agree then, the intensities there take part instead.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from gsbids.imaging.stack import Stack
from gsbids.recon.fitting.options import SvrOptions
from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.fitting.stage import FitProblem, FitState, Stage, fit_stage
from gsbids.recon.psf import FWHM_TO_SIGMA, IN_PLANE_FACTOR
from gsbids.recon.registration.register import register_stacks
from gsbids.recon.svr.misplaced import Placed, stack_agreement

RIM = 6.0  # mm around the masks that count as 0
VOXEL = 0.75  # pixels of the first level: size of the voxels in which stacks are compared
TIE = 0.02  # pull to the neighbours' motion during the search, see SvrOptions.neighbour_tie
SAME = 3.0  # mm: a pose so near is no other one
REPEATS, HIGHER = 3, 0.005  # times that slices are re-registered, and gain of agreement for each
DOUBTFUL = 0.75  # mean agreement below which slices are also registered without outlines
INNER = 0.8, 0.6  # of the pixels of every slice of a mask: inner parts, in which stacks are registered
POSE_START, POSE_EVERY, NEIGHBOURS_EVERY = 6, 2, 12  # iterations: first pose step, between two, with neighbours


@dataclass(frozen=True)
class Level:
    """One level of the search.

    Pixel size (mm, of a fetal brain), pixels for each Gaussian, iterations, and after which shares of these all slices
    and the field step at once.
    """

    pixel: float
    pixels_per_gaussian: float
    iterations: int
    together: tuple[float, ...] = ()


# Two levels, coarse to fine.
LEVELS = (Level(4.0, 60.0, 100), Level(3.0, 25.0, 60, (0.4, 0.6, 0.8)))


def coarser(slices: SliceSet, factor: int, outlined: bool = True) -> SliceSet:
    """Blur slices and take every ``factor``-th pixel; the region outside the masks is 0 if ``outlined``.

    Poses keep their meaning: the origin of a slice stays where it is.
    """
    sigma = IN_PLANE_FACTOR * np.sqrt(factor**2 - 1) * FWHM_TO_SIGMA  # pixels; the PSF becomes that of a large pixel
    blurred = ndimage.gaussian_filter(slices.values * slices.mask if outlined else slices.values, (0, sigma, sigma))
    first = factor // 2
    values, mask, region = (
        np.ascontiguousarray(a[:, first::factor, first::factor]) for a in (blurred, slices.mask, slices.region)
    )
    psf = slices.psf.copy()
    psf[:, :2] *= factor**2
    return replace(
        slices,
        values=values.astype(np.float32),
        mask=mask,
        region=region,
        psf=psf,
        spacing=slices.spacing * factor,
        centre=(slices.centre - first) / factor,
    )


def inside(stack: Stack, share: float) -> Stack:
    """Return a stack whose mask has, in every slice, the given share of pixels that are furthest from its edge."""
    inner = np.zeros_like(stack.mask)
    for k in np.flatnonzero(stack.mask.any((0, 1))):
        mask = stack.mask[..., k]
        depth = ndimage.distance_transform_edt(mask, sampling=stack.spacing[:2])
        inner[..., k] = mask & (depth >= np.quantile(depth[mask], 1 - share))
    return replace(stack, mask=inner)


@dataclass(frozen=True)
class Search:
    """Coarse fits of a brain of relative ``size`` (over the usual one)."""

    size: float
    options: SvrOptions
    watch: Callable[[FitState, dict], None]

    def coarse(self, fine: SliceSet, level: Level = LEVELS[0], outlined: bool = True) -> SliceSet:
        """Return slices of the level's pixels, with their outlines, or with the intensities in and around the masks."""
        return coarser(fine, max(2, round(level.pixel * self.size / float(np.median(fine.spacing)))), outlined)

    def fitted(self, slices: SliceSet, before: FitState, level: Level = LEVELS[0]) -> FitState:
        """Fit a new field of few Gaussians to coarse slices, and continue the poses."""
        problem = FitProblem.pose(slices, replace(self.options, patience=0, neighbour_tie=TIE))
        return fit_stage(problem, _on_pixels_of(before, slices), _stage(slices, level, self.options.seed), self.watch)

    def agreement(
        self, fine: SliceSet, state: FitState, left_out: int | None = None, outlined: bool = False
    ) -> np.ndarray:
        """Return the agreement of the stacks within their masks: outlines agree in wrong poses too."""
        small = self.coarse(fine, outlined=outlined)
        return stack_agreement(small, _on_pixels_of(state, small), VOXEL * LEVELS[0].pixel * self.size, left_out)

    def agreement_of_rest(self, fine: SliceSet, state: FitState) -> tuple[np.ndarray, float]:
        """Return the agreement of all stacks (N,), and the least of the others without the one that agrees least."""
        every = self.agreement(fine, state)
        if np.isfinite(every).sum() < 3:
            return every, np.nan
        return every, float(np.nanmin(self.agreement(fine, state, int(np.nanargmin(every)))))

    def placed(self, fine: SliceSet, before: FitState, outlined: bool = True) -> Placed:
        """Fit slices again, and compute the agreement of the stacks.

        The mean of the agreements with and without outlines.
        """
        state = self.fitted(self.coarse(fine, outlined=outlined), before)
        both = [self.agreement(fine, state, outlined=each) for each in (True, False)]
        return Placed(fine, state, sum(both) / 2, fine.starts)  # type: ignore[arg-type]

    def from_starts(self, stacks: list[Stack], transforms: np.ndarray) -> Placed:
        """Register slices from start poses of whole stacks: by their outlines, or, if better, by their intensities.

        Slices that are far off follow the outlines; outlines of poor masks, which differ from stack to stack, mislead.
        """
        fine = SliceSet.from_stacks(stacks, transforms, RIM * self.size)
        found = [self.placed(fine, FitState.start(fine))]
        if found[0].mean < DOUBTFUL:
            found.append(self.placed(fine, FitState.start(fine), outlined=False))
        return replace(max(found, key=lambda each: each.mean), transforms=transforms)

    def placed_again(self, stacks: list[Stack], best: Placed) -> Placed:
        """Re-register slices from the mean poses of their stacks, as long as the agreement rises."""
        for _ in range(REPEATS):
            again = self.from_starts(stacks, best.means)
            if not again.mean > best.mean + HIGHER:
                break
            best = replace(again, runner_up=best.runner_up)
        return best

    def carried_on(self, places: list[Placed]) -> list[Placed]:
        """Fit results at the second level, which has more detail; the one with the best agreement is the first."""
        after = []
        for each in places:
            small = self.coarse(each.slices, LEVELS[1], outlined=False)
            state = self.fitted(replace(small, region=small.mask), each.state, LEVELS[1])
            after.append(replace(each, state=state, agreement=self.agreement(each.slices, state)))
        return sorted(after, key=lambda each: each.mean, reverse=True)

    def from_inside(self, stacks: list[Stack], best: Placed, share: float) -> Placed:
        """Return the better of a result and one that starts from a registration of the inner parts of the masks alone.

        In masks that are too large stacks may be held by tissue around the head that does not move with it.
        """
        inner = [inside(stack, share) for stack in stacks]
        transforms = register_stacks(inner).transforms
        if displaced(stacks, transforms, best.means) < SAME:
            return best
        first = self.from_starts(inner, transforms)
        return best.better(self.from_starts(stacks, first.means))


def displaced(stacks: list[Stack], one: np.ndarray, other: np.ndarray) -> float:
    """Return the largest distance (mm) of a stack between two sets of transforms (N, 4, 4).

    Relative to the first stack.
    """
    change = np.linalg.inv(np.linalg.inv(one[0]) @ one) @ np.linalg.inv(other[0]) @ other
    away = []
    for stack, each in zip(stacks, change, strict=True):
        points = np.argwhere(stack.mask) @ stack.affine[:3, :3].T + stack.affine[:3, 3]
        away.append(np.linalg.norm(points @ each[:3, :3].T + each[:3, 3] - points, axis=1).mean())
    return max(away)


def _on_pixels_of(state: FitState, slices: SliceSet) -> FitState:
    """Return a state with the same poses and gains for slices of other pixels."""
    fresh = FitState.start(slices)
    fresh.pose, fresh.gain = state.pose, state.gain
    return fresh


def _stage(slices: SliceSet, level: Level, seed: int) -> Stage:
    turns = range(POSE_START, level.iterations, POSE_EVERY)
    return Stage(
        max(100, round(slices.region.sum() / level.pixels_per_gaussian)),
        level.iterations,
        0.05,
        seed,
        frozenset(turns),
        frozenset(turns[:: NEIGHBOURS_EVERY // POSE_EVERY]),
        level.iterations // 2,
        together=frozenset(int(share * level.iterations) for share in level.together),
    )
