# SPDX-License-Identifier: Apache-2.0
"""Initial registration of slices before the fit proper: the best of several start poses for the stacks.

Slices are registered by blurred images and outlines (:mod:`gsbids.recon.svr.place_search`), other poses are tried for
stacks that do not agree with the others (:mod:`gsbids.recon.svr.misplaced`), and the best results are continued with
more detail. Once slices are roughly registered, the stacks show which tissue in the masks moves with the head
(:mod:`gsbids.recon.svr.consensus`): the masks can follow that, and the slices are re-registered.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from gsbids.imaging.stack import Stack, centred, seen_from
from gsbids.recon.fitting.options import SvrOptions
from gsbids.recon.fitting.poses import PoseState
from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.fitting.stage import FitState
from gsbids.recon.svr.arrangements import try_arrangements
from gsbids.recon.svr.misplaced import ELSEWHERE, Placed, look_again, settled, turned_elsewhere
from gsbids.recon.svr.place_search import INNER, RIM, Search, inside
from gsbids.recon.svr.refine_masks import gathered_again, refine_masks

BRAIN = 58.5  # mm: cube root of the volume for which the sizes of the search are stated
TRUSTED = 0.75  # mean agreement from which on places are good enough to say what moves with the head
WORSE = 0.02  # of agreement, by which masks that follow that may be worse
ENOUGH = 0.9  # agreement of all stacks from which on they are not looked for in inner parts of the masks
CLOSE = 0.05  # of mean agreement, by which another place may have less and is still carried on with more detail
ROUNDS = 2  # of stacks in other places and masks that follow


@dataclass(frozen=True)
class Placing:
    """Registered slices, and how reliable their poses are.

    Attributes
    ----------
    stacks : list of Stack
        Stacks with the masks that are fitted: those given, refined by what moves with the head.
    slices : SliceSet
        Slices of these, with the fitted rim; ``start`` has other poses for stacks that had been misregistered.
    pose : PoseState
    agreement : ndarray, (N,)
        Agreement of every stack's brain with the others, see :func:`gsbids.recon.svr.misplaced.stack_agreement`.
    rest : float
        Least agreement of the other stacks with one another where the one that agrees least is left out; NaN for two.
    margin : float
        Difference of agreement to the best other result that was tried; NaN where none was.
    """

    stacks: list[Stack]
    slices: SliceSet
    pose: PoseState
    agreement: np.ndarray
    rest: float
    margin: float


def place_slices(
    stacks: list[Stack], transforms: np.ndarray, options: SvrOptions, watch: Callable[[FitState, dict], None]
) -> Placing:
    """Register all slices by outlines and coarse features, level by level, and refine the masks if asked for.

    Parameters
    ----------
    stacks : list of Stack
    transforms : ndarray, (N, 4, 4)
        Transforms from the co-registration of the stacks.
    options : SvrOptions
    watch : callable
        See :func:`gsbids.recon.fitting.stage.fit_stage`.

    Returns
    -------
    Placing
    """
    given = stacks
    stacks, corner = centred(stacks)
    transforms = np.round(seen_from(transforms, corner), 9)  # nothing depends on where the scanner's origin is
    search = Search(SliceSet.from_stacks(stacks, transforms).volume ** (1 / 3) / BRAIN, options, watch)
    begun_with = stacks
    first, margin = search.from_starts(stacks, transforms), np.nan
    best = first
    for share in INNER if np.nanmin(best.agreement, initial=1.0) < ENOUGH else ():
        best = search.from_inside(stacks, best, share)
    best = try_arrangements([inside(stack, INNER[0]) for stack in stacks], best, partial(search.from_starts, stacks))
    for _ in range(ROUNDS):
        before = best.transforms
        inner = [inside(stack, INNER[0]) for stack in stacks]
        best = look_again(inner, best, partial(search.from_starts, stacks))
        moved = [k for k in range(len(stacks)) if not np.array_equal(best.transforms[k], before[k])]
        best = replace(best, slices=settled(best.slices, best.state, moved))
        margin = np.fmin(margin, best.margin)
        if not options.refine_masks or best.mean < TRUSTED:
            break
        refined, fine, state = refine_masks(stacks, best.slices, best.state, RIM * search.size)
        after = best if refined is stacks else search.placed(fine, state)
        if refined is stacks or after.mean < best.mean - WORSE:
            break
        stacks, best = refined, after
    rivals = _rivals(best, first) if stacks is begun_with else [best]
    if any(each is best.rival for each in rivals):  # more detail says how close it is
        margin = np.nan
    best, *rest = search.carried_on([search.placed_again(stacks, each) for each in rivals])
    margin = np.fmin(margin, best.mean - rest[0].mean if rest else np.nan)
    state = best.state
    following = refine_masks if options.refine_masks and best.mean >= TRUSTED else gathered_again
    stacks, fine, state = following(stacks, best.slices, state, options.rim)
    fine, state = anchored(fine, state, transforms, best.transforms)
    return Placing(
        [replace(old, mask=new.mask) for old, new in zip(given, stacks, strict=True)],
        replace(fine, origin=fine.origin + corner),
        state.pose,
        *search.agreement_of_rest(fine, state),
        float(margin),
    )


def _rivals(best: Placed, first: Placed) -> list[Placed]:
    """Return the best result, and others that are rotated against it.

    The first one, and one in which the stacks agree as much but for :data:`CLOSE`.
    """
    found = [best]
    if first.apart(best) > ELSEWHERE:
        found.append(first)
    close = best.rival
    if close is not None and close.mean > best.mean - CLOSE and first.apart(close) > ELSEWHERE:
        found.append(close)
    return found


def anchored(slices: SliceSet, state: FitState, transforms: np.ndarray, begun: np.ndarray) -> tuple[SliceSet, FitState]:
    """Move all slices so that stacks start where the co-registration put them (``transforms``).

    Those that were registered from elsewhere (``begun``) start from the mean of their slice poses. The gauge of the fit
    follows the starts.
    """
    means = settled(slices, state, range(len(transforms))).starts
    stayed = ~turned_elsewhere(begun, transforms)
    kept = int(np.argmin(np.where(stayed, np.abs(transforms - np.eye(4)).sum((1, 2)), np.inf)))
    back = transforms[kept] @ np.linalg.inv(means[kept])
    starts = np.where(stayed[:, None, None], transforms, back @ means)
    start = slices.nominal.moved(seen_from(starts, slices.origin)[slices.stack_index])
    pose = replace(state.pose, motion=state.pose.motion.moved(seen_from(back, slices.origin)))
    return replace(slices, start=start), replace(state, pose=pose)
