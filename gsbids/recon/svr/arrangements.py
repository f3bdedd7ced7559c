# SPDX-License-Identifier: Apache-2.0
"""Arrangements of three or more stacks at once, found from the similarity of each pair of them.

Where two of three stacks are rotated wrongly, no single one can be corrected against the mean of the others: that mean
shows nothing. Each pair has a few likely poses; the arrangements that most pairs agree on are tried as wholes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from gsbids.imaging.stack import Stack, seen_from
from gsbids.recon.registration.register import likely_places, refine, similarity
from gsbids.recon.svr.misplaced import ELSEWHERE, LESS_ALIKE, SURE, TURNS, Placed, StackImages, turned_apart

SURE_OF_THREE = 0.92  # agreement of all of three stacks from which on no other arrangement of them is tried
PLACES = 8  # of a pair that are kept, the most alike ones
ALL_PAIRS = 4  # stacks, with more of which only pairs with the largest are looked at
BEAM = 12  # incomplete arrangements that are gone on with
TRIED = 4  # complete ones that are tried


@dataclass(frozen=True)
class _Arrangement:
    """Poses of some stacks.

    Attributes
    ----------
    places : dict of int to ndarray, (4, 4)
        Pose of each stack: scanner -> common space.
    alike : float
        Sum of the similarities of all pairs.
    """

    places: dict[int, np.ndarray]
    alike: float

    def as_transforms(self) -> np.ndarray:
        """Return the poses of all stacks, (N, 4, 4)."""
        return np.array([self.places[k] for k in sorted(self.places)])


def try_arrangements(stacks: list[Stack], first: Placed, place: Callable[[np.ndarray], Placed]) -> Placed:
    """Register the slices from other arrangements of the stacks, where some stack does not agree with the others.

    Parameters
    ----------
    stacks : list of Stack
    first : Placed
    place : callable
        ``place(transforms)`` registers all slices from other starts of the stacks.

    Returns
    -------
    Placed
        Result in which the stacks agree most.
    """
    sure = SURE_OF_THREE if len(stacks) == 3 else SURE  # one of more that is turned stands out against the others
    if len(stacks) < 3 or np.nanmin(first.agreement, initial=1.0) >= sure:
        return first
    best, images = first, StackImages.of(stacks)
    for transforms in likely_arrangements(images, first.transforms):
        best = best.better(place(transforms))
    return best


def likely_arrangements(images: StackImages, transforms: np.ndarray) -> list[np.ndarray]:
    """Find the arrangements in which all pairs of stacks are most similar, but for the present one and worse ones.

    Stacks are added one by one where they are similar to one of those that have a pose already; the similarity with all
    of these decides which arrangements are continued.

    Parameters
    ----------
    images : StackImages
    transforms : ndarray, (N, 4, 4)
        World, scanner -> common space: the present arrangement.

    Returns
    -------
    list of ndarray, (N, 4, 4)
        World, scanner -> common space, the best first.
    """
    here = seen_from(transforms, images.origin)
    largest = int(np.argmax([len(volume.points) for volume in images.fine]))
    pairs = {
        (a, b): _places_of_pair(images, a, b)
        for a, b in combinations(range(len(here)), 2)
        if len(here) <= ALL_PAIRS or largest in (a, b)
    }
    closeness = np.zeros(len(here))
    for pair, found in pairs.items():
        closeness[list(pair)] += max((alike for _, alike in found), default=0.0)
    order = [int(k) for k in np.argsort(-closeness, kind="stable")]
    beam = [_Arrangement({order[0]: here[order[0]]}, 0.0)]
    for k in order[1:]:
        grown = [_with(images, each, k, place) for each in beam for place in _places_of(k, each, pairs)]
        beam = _different(grown)[:BEAM]
    now = sum(
        refine(images.fine[a], images.fine[b], np.linalg.inv(here[b]) @ here[a])[1]
        for a, b in combinations(range(len(here)), 2)
    )
    others = [each.as_transforms() for each in beam if each.alike >= now - LESS_ALIKE]
    return [seen_from(each, -images.origin) for each in others if turned_apart(each, here) > ELSEWHERE][:TRIED]


def _places_of_pair(images: StackImages, a: int, b: int) -> list[tuple[np.ndarray, float]]:
    """Return likely transforms (4, 4) of points of stack a to stack b, with their similarity, the best first."""
    starts = likely_places(images.coarse[a], images.coarse[b], TURNS)
    found = [refine(images.fine[a], images.fine[b], start) for start in starts]
    return sorted(found, key=lambda pair: pair[1], reverse=True)[:PLACES]


def _places_of(k: int, arrangement: _Arrangement, pairs: dict) -> list[np.ndarray]:
    """Return poses (4, 4) for stack k, by each of the stacks that have one."""
    places = []
    for a, there in arrangement.places.items():
        forth = pairs.get((min(a, k), max(a, k)), ())
        places += [there @ (np.linalg.inv(change) if a < k else change) for change, _ in forth]
    return places


def _with(images: StackImages, arrangement: _Arrangement, k: int, place: np.ndarray) -> _Arrangement:
    """Return an arrangement with one more stack."""
    back = np.linalg.inv(place)
    alike = sum(similarity(images.fine[a], images.fine[k], back @ there) for a, there in arrangement.places.items())
    return _Arrangement(arrangement.places | {k: place}, arrangement.alike + alike)


def _different(found: list[_Arrangement]) -> list[_Arrangement]:
    """Return arrangements that are rotated against one another, the most similar first."""
    kept: list[_Arrangement] = []
    for each in sorted(found, key=lambda each: each.alike, reverse=True):
        if all(turned_apart(each.as_transforms(), other.as_transforms()) > ELSEWHERE for other in kept):
            kept.append(each)
    return kept
