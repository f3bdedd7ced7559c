# SPDX-License-Identifier: Apache-2.0
"""Region of the head by agreement of the stacks: what moves with the slices is head, other tissue is not.

With registered slices, every stack shows the head in one space. A region that one mask holds and the others do not, or
in which the stacks show different things though the brain between them agrees, lies still in the scanner while the head
moves: amniotic fluid, wall of the womb, the mother. It is removed from the masks. What the other stacks call brain, and
this one shows alike, is added to its mask.
"""

from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from scipy import ndimage

from gsbids.imaging.masks import bounding_box, largest_region
from gsbids.imaging.stack import Stack

STEP = 2.0  # mm: voxels in which stacks are compared
AROUND = 25.0  # mm around the masks that are compared with the other stacks
REACH = 15.0  # mm around a mask by which it can grow
BLUR = 2.5  # mm: standard deviation of the averages in which stacks are compared
SEEN = 0.1  # weight of a voxel, over that of the usual one, under which a stack shows nothing there
SPREAD = 0.75  # of the slice distance: standard deviation with which slices fill the space between them
VOTE = 0.3  # mean of the masks of those stacks that show a voxel, from which on it can be head
SHARED = 0.7  # the same, under which stacks must look alike for other masks to grow there
CORE = 0.8  # of every mask: the region that all agree on gives the usual difference of the stacks
ALIKE = 2.5  # times that difference, up to which stacks look alike
UNLIKE = 5.0  # times that difference, from which on a voxel does not move with the head
OPENING = 3.0  # mm: what hangs on the head by less than twice that is no part of it
LEAST_SHARED = 100  # voxels of the core that a stack must show to be counted
SLACK = 1.5  # mm: masks that are so near to the region that stacks agree on stay as they are
VOLUMES = (0.4, 2.0)  # of the region, over that of the usual mask, within which it is believed


@dataclass(frozen=True)
class HeadRegion:
    """A region of the anatomy.

    Attributes
    ----------
    inside : ndarray, (X, Y, Z), bool
        Voxels that may be head.
    sure : ndarray, (X, Y, Z), bool
        Voxels that masks that do not hold them should hold.
    foreign : ndarray, (X, Y, Z), bool
        Voxels where the stacks show different things: not head.
    affine : ndarray, (4, 4)
        Voxel indices to mm, in the space of the motion-corrected slices.
    """

    inside: np.ndarray
    sure: np.ndarray
    foreign: np.ndarray
    affine: np.ndarray

    @cached_property
    def depths(self) -> tuple[np.ndarray, np.ndarray]:
        """Distances (mm) from the borders of ``inside`` and ``sure``, positive inside."""
        return tuple(_depth(region, self.affine) for region in (self.inside, self.sure))  # type: ignore[return-value]

    def depths_at(self, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the depths at points (P, 3), mm; far outside of the grid they are -1000."""
        index = self._index(points)
        return tuple(ndimage.map_coordinates(depth, index, order=1, cval=-1000.0) for depth in self.depths)

    def foreign_at(self, points: np.ndarray) -> np.ndarray:
        """Return whether points (P, 3), mm, lie where the stacks show different things."""
        return ndimage.map_coordinates(self.foreign.astype(np.uint8), self._index(points), order=0) > 0

    def _index(self, points: np.ndarray) -> np.ndarray:
        to_voxel = np.linalg.inv(self.affine)
        return (points @ to_voxel[:3, :3].T + to_voxel[:3, 3]).T


def find_head(stacks: list[Stack], moves: list[np.ndarray], levels: list[np.ndarray]) -> HeadRegion | None:
    """Find the region that the stacks agree on.

    Parameters
    ----------
    stacks : list of Stack
        N stacks with their present masks.
    moves : list of ndarray, (Z, 4, 4)
        World transforms scanner -> anatomy of every slice of each stack.
    levels : list of ndarray, (Z,)
        Intensity of every slice that stands for 1; 0 for slices that are not counted.

    Returns
    -------
    HeadRegion or None
        None where the stacks do not agree on a region of a plausible size.
    """
    looks = [_look(*parts) for parts in zip(stacks, moves, levels, strict=True)]
    looks = [look for look in looks if len(look[0])]
    if len(looks) < 2:
        return None
    every = np.concatenate([points for points, *_ in looks])
    low = np.floor(every.min(0) / STEP) - 2
    shape = tuple((np.ceil(every.max(0) / STEP) - low + 3).astype(int))
    sigma = SPREAD * max(stack.spacing[2] for stack in stacks) / STEP
    seen, value, vote = (np.stack(a) for a in zip(*(_image(*look, (low, shape, sigma)) for look in looks), strict=True))
    count = seen.sum(0)
    core = (count >= 2) & ((vote > CORE) | ~seen).all(0)
    shared = np.array([(core & s).sum() for s in seen])
    if (shared >= LEAST_SHARED).sum() < 2:
        return None
    seen = seen & (shared >= LEAST_SHARED)[:, None, None, None]  # others show something else
    count, votes = seen.sum(0), (vote * seen).sum(0) / np.maximum(seen.sum(0), 1)
    value = value[shared >= LEAST_SHARED]
    seen = seen[shared >= LEAST_SHARED]
    value /= np.array([np.median(v[core & s]) for v, s in zip(value, seen, strict=True)])[:, None, None, None]
    unlike = _difference(value, seen, count)
    unlike /= max(float(np.median(unlike[core])), 1e-6)
    foreign = (unlike > UNLIKE) & (count >= 2)
    inside = _opened(ndimage.binary_closing((votes > VOTE) & ~foreign, iterations=2) & ~foreign)
    sure = _opened(inside & ((votes > SHARED) | (unlike < ALIKE)))
    usual = np.median([s.mask.sum() * abs(np.linalg.det(s.affine[:3, :3])) for s in stacks])
    if not VOLUMES[0] < inside.sum() * STEP**3 / usual < VOLUMES[1]:
        return None
    affine = np.diag([STEP] * 3 + [1.0])
    affine[:3, 3] = low * STEP
    return HeadRegion(inside, sure, foreign, affine)


def refined(stacks: list[Stack], moves: list[np.ndarray], head: HeadRegion) -> list[Stack]:
    """Return stacks whose masks follow a region, except within an uncertain distance from its border.

    Parameters
    ----------
    stacks, moves
        As for :func:`find_head`.
    head : HeadRegion
    """
    out = []
    for stack, each in zip(stacks, moves, strict=True):
        near = ndimage.distance_transform_edt(~stack.mask, stack.spacing) <= REACH
        index = np.argwhere(near)
        inside, sure = head.depths_at(places(index, stack, each))
        mask = np.zeros_like(stack.mask)
        own = stack.mask[near]
        mask[tuple(index.T)] = (own & (inside > -SLACK)) | (sure > SLACK)
        out.append(replace(stack, mask=mask))
    return out


def places(index: np.ndarray, stack: Stack, moves: np.ndarray) -> np.ndarray:
    """Return the positions of voxels (P, 3) of a stack in the anatomy, (P, 3), mm."""
    full = np.c_[index, np.ones(len(index))]
    return np.einsum("pij,pj->pi", (moves @ stack.affine)[index[:, 2], :3], full)


def _look(stack: Stack, moves: np.ndarray, level: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return positions, intensities and masks of a stack's voxels in and around its mask."""
    box = bounding_box(stack.mask, np.ceil(AROUND / stack.spacing).astype(int))
    used = np.zeros(stack.mask.shape, bool)
    used[box] = True
    used &= level > 0
    index = np.argwhere(used)
    return places(index, stack, moves), stack.image[used] / level[index[:, 2]], stack.mask[used]


def _image(
    points: np.ndarray, value: np.ndarray, mask: np.ndarray, grid: tuple[np.ndarray, tuple[int, ...], float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where a stack has data, (X, Y, Z), its mean intensity, and its mean mask."""
    low, shape, sigma = grid
    voxel = np.ravel_multi_index(np.rint(points / STEP - low).astype(int).T, shape)
    seen, total, vote = (
        ndimage.gaussian_filter(np.bincount(voxel, weights, np.prod(shape)).reshape(shape), sigma)
        for weights in (np.ones(len(value)), value, mask)
    )
    there = seen > SEEN * np.median(seen[seen > 0.05 * seen.max()])
    return there, total / np.maximum(seen, 1e-9), vote / np.maximum(seen, 1e-9)


def _difference(value: np.ndarray, seen: np.ndarray, count: np.ndarray) -> np.ndarray:
    """Return the difference of the stacks about each voxel, locally averaged; 0 where fewer than two show it."""
    mean = (value * seen).sum(0) / np.maximum(count, 1)
    both = count >= 2
    spread = (np.abs(value - mean) * seen).sum(0) / np.maximum(count - 1, 1) * both
    weight = ndimage.gaussian_filter(both.astype(float), BLUR / STEP)
    return np.where(both, ndimage.gaussian_filter(spread, BLUR / STEP) / np.maximum(weight, 1e-3), 0)


def _depth(region: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Return the distance (mm) from the border of a region, positive inside."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    within, outside = (ndimage.distance_transform_edt(a, spacing) for a in (region, ~region))
    return np.where(region, within - spacing[0] / 2, spacing[0] / 2 - outside)


def _opened(inside: np.ndarray) -> np.ndarray:
    """Return the largest region without parts that are connected by a neck only, holes filled."""
    wide = largest_region(ndimage.distance_transform_edt(inside) * STEP > OPENING)
    if not wide.any():
        return wide
    near = ndimage.distance_transform_edt(~wide) * STEP <= OPENING
    return ndimage.binary_fill_holes(largest_region(inside & near))
