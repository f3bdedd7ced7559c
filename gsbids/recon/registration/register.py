# SPDX-License-Identifier: Apache-2.0
"""Rigid co-registration of whole stacks: start poses before slices are moved one by one.

Stacks of different orientation share no resolution, so each is blurred in the plane until it is as
soft there as through the slices, and sampled on an isotropic grid. All similarities are normalised
cross-correlations over the overlap of what the stacks show of the masks and a rim around them. The rim
counts as 0: outlines determine the position of a brain whose slices have moved apart, where its detail does not.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from gsbids.imaging.stack import Stack, centred, seen_from
from gsbids.recon.registration.isotropic import Volume, isotropic_volume

# Share of the smaller mask that must be covered: less says nothing about the brain.
LEAST_OVERLAP = 0.5
# Similarity that a rotation by 180 degrees has to be better by; smaller ones in proportion.
TURN_COST = 0.15
# Rotation (degrees) under which a stack lies about as the scanner says.
NEAR = 45.0
LOW_SIMILARITY = 0.5  # below which the report asks to look at the stack
# Voxels of the grid inside the brain: at most about this many, and at least those.
POINTS, LEAST_POINTS = 60_000, 10


@dataclass(frozen=True)
class StackRegistration:
    """Rigid transforms of N stacks into the space of one of them.

    Attributes
    ----------
    template : int
        Index of the stack that stays where it is.
    transforms : ndarray, (N, 4, 4)
        World RAS+ mm, scanner -> template (moving points).
    similarity_before, similarity_after : ndarray, (N,)
        Masked normalised cross-correlation of each stack with the mean of the others (these being
        registered), for the stack in the scanner's space and as registered; 0 where the masks hardly
        overlap, 1 for a lone stack.
    accepted : ndarray, (N,), bool
        False where registration made nothing better and the stack stays in the scanner's space.
    reason : tuple of str
        Reason as a sentence for the report.
    """

    template: int
    transforms: np.ndarray
    similarity_before: np.ndarray
    similarity_after: np.ndarray
    accepted: np.ndarray
    reason: tuple[str, ...]


def register_stacks(stacks: list[Stack], threads: int = 1) -> StackRegistration:
    """Bring stacks into one space by rigid registration.

    The template is chosen by :func:`choose_template`. Every other stack is registered to it from
    many starts (scanner space, centroids of the masks, a cover of all rotations by about 30 degrees
    about the centroids), the best one by masked similarity wins, and all are refined against the mean
    of the others. Nothing is random: the same stacks give the same bits.

    Parameters
    ----------
    stacks : list of Stack
        N stacks, masks not empty.
    threads : int
        Stacks registered at a time.

    Returns
    -------
    StackRegistration
    """
    (stacks, origin), count = centred(stacks), len(stacks)
    template = choose_template(stacks)
    step = search_step(stacks)
    fine = [isotropic_volume(stack, step) for stack in stacks]
    coarse = [isotropic_volume(stack, 2 * step, 3 * step) for stack in stacks]
    transforms = np.tile(np.eye(4), (count, 1, 1))
    others = [k for k in range(count) if k != template]

    def start(k: int) -> np.ndarray:
        return _multi_start(coarse[template], coarse[k], fine[template], fine[k])

    with ThreadPoolExecutor(max(1, threads)) as pool:
        for k, transform in zip(others, pool.map(start, others), strict=True):
            transforms[k] = transform
    for _ in range(2 if count > 2 else 0):
        for k in others:
            mean = mean_volume(fine, transforms, skip=k)
            transforms[k] = _invert(refine(mean, fine[k], _invert(transforms[k]))[0])
    found = _judged(fine, transforms, template)
    return replace(found, transforms=seen_from(found.transforms, -origin))


def search_step(stacks: list[Stack]) -> float:
    """Return the voxel size (mm) of the fine grid on which stacks are compared: at least 2, more for larger brains."""
    cubic_mm = max(float(np.sum(s.mask) * abs(np.linalg.det(s.affine[:3, :3]))) for s in stacks)
    return max(2.0, float(np.cbrt(cubic_mm / POINTS)))


def choose_template(stacks: list[Stack]) -> int:
    """Choose the stack that shows most brain with the least motion.

    Returns the index of the largest product of masked volume and agreement of neighbouring slices
    (mean normalised cross-correlation over their common mask).
    """
    merit = []
    for stack in stacks:
        volume = np.sum(stack.mask) * abs(np.linalg.det(stack.affine[:3, :3]))
        agreement = []
        for k in range(stack.mask.shape[2] - 1):
            both = (stack.mask[..., k] & stack.mask[..., k + 1]).astype(np.float64)
            if both.sum() >= 50:
                agreement.append(
                    correlation(
                        stack.image[..., k].astype(np.float64), stack.image[..., k + 1].astype(np.float64), both
                    )
                )
        merit.append(volume * (np.mean(agreement) if agreement else 0.01))
    return int(np.argmax(merit))


def mean_volume(volumes: list[Volume], transforms: np.ndarray, skip: int = -1) -> Volume:
    """Compute the weighted mean of registered volumes.

    Parameters
    ----------
    volumes : list of Volume
        N volumes of one step, each in its scanner's space.
    transforms : ndarray, (N, 4, 4)
        Scanner -> common space.
    skip : int
        Index of a volume that is left out.
    """
    used = [k for k in range(len(volumes)) if k != skip]
    step = volumes[0].step
    moved = [_apply(transforms[k], volumes[k].points) for k in used]
    low = np.floor(np.min([m.min(axis=0) for m in moved], axis=0) / step - 2)
    high = np.ceil(np.max([m.max(axis=0) for m in moved], axis=0) / step + 2)
    shape = tuple((high - low + 1).astype(int))
    points = (np.indices(shape).reshape(3, -1).T + low) * step
    total, weight = np.zeros(len(points)), np.zeros(len(points))
    for k in used:
        place = _apply(_invert(transforms[k]), points)
        share = volumes[k].sample(volumes[k].weight, place)
        total += share * volumes[k].sample(volumes[k].value, place)
        weight += share
    return Volume(
        (total / np.maximum(weight, 1e-3)).reshape(shape), np.minimum(weight, 1.0).reshape(shape), low * step, step
    )


def similarity(fixed: Volume, moving: Volume, transform: np.ndarray) -> float:
    """Compute the normalised cross-correlation over the overlap of two masks.

    Parameters
    ----------
    fixed, moving : Volume
    transform : ndarray, (4, 4)
        Fixed -> moving points, mm.

    Returns
    -------
    float
        0 where less than half of the smaller mask overlaps.
    """
    return _Pair(fixed, moving).similarity(transform)


def refine(fixed: Volume, moving: Volume, transform: np.ndarray, iterations: int = 20) -> tuple[np.ndarray, float]:
    """Register by Levenberg-Marquardt on the squared differences; a step is taken if the similarity rises.

    Parameters
    ----------
    fixed, moving : Volume
    transform : ndarray, (4, 4)
        Start, fixed -> moving points.
    iterations : int

    Returns
    -------
    transform : ndarray, (4, 4)
    similarity : float
    """
    pair = _Pair(fixed, moving)
    best, damping = pair.similarity(transform), 1e-2
    for _ in range(iterations):
        hessian, slope, centre = pair.normal_equations(transform)
        gain = 0.0
        for _ in range(5):
            step = np.linalg.solve(hessian + damping * np.diag(np.diag(hessian) + 1e-9), slope)
            trial = about(Rotation.from_rotvec(step[:3]).as_matrix(), centre, centre + step[3:]) @ transform
            value = pair.similarity(trial)
            if value > best:
                transform, gain, best, damping = trial, value - best, value, max(damping / 5, 1e-6)
                break
            damping *= 5
        if gain < 1e-6:
            break
    return transform, best


class _Pair:
    """A fixed and a moving volume, with the quantities that every evaluation needs."""

    def __init__(self, fixed: Volume, moving: Volume) -> None:
        self.moving = moving
        self.points = fixed.points
        self.value = fixed.value[fixed.weight > 0.5]
        self.smaller = min(len(self.points), int(np.sum(moving.weight > 0.5)))
        self.gradient = np.gradient(moving.value, moving.step)

    def _seen(self, transform: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        place = _apply(transform, self.points)
        moving = self.moving
        return place, moving.sample(moving.value, place), moving.sample(moving.weight, place)

    def similarity(self, transform: np.ndarray) -> float:
        """Return the normalised cross-correlation under a transform; 0 where the overlap is too small."""
        _, value, weight = self._seen(transform)
        if np.sum(weight > 0.5) < LEAST_OVERLAP * self.smaller or self.smaller < LEAST_POINTS:
            return 0.0
        return correlation(self.value, value, weight)

    def normal_equations(self, transform: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return J^T W J (6, 6) and J^T W r (6,) of a small rotation and shift about ``centre``, and ``centre``."""
        place, value, weight = self._seen(transform)
        total = max(float(weight.sum()), 1e-9)
        mean, aim = (weight * value).sum() / total, (weight * self.value).sum() / total
        spread = (weight * (value - mean) ** 2).sum()
        slope = (weight * (value - mean) * (self.value - aim)).sum() / max(float(spread), 1e-12)
        residual = self.value - aim - slope * (value - mean)
        gradient = slope * np.stack([self.moving.sample(part, place) for part in self.gradient], axis=1)
        centre = (weight[:, None] * place).sum(axis=0) / total
        rows = np.concatenate([np.cross(place - centre, gradient), gradient], axis=1)
        hessian = np.einsum("ni,nj->ij", weight[:, None] * rows, rows)
        return hessian, np.einsum("ni,n->i", rows, weight * residual), centre


def rotation_cover(degrees: float) -> np.ndarray:
    """Return rotations (K, 3, 3) that cover all rotations to about ``degrees``.

    Directions on a Fibonacci sphere, each with equally spaced rotations about it.
    """
    count = round(4 * np.pi / np.radians(degrees) ** 2)
    height = 1 - (2 * np.arange(count) + 1) / count
    angle = np.pi * (1 + 5**0.5) * (np.arange(count) + 0.5)
    lean = Rotation.from_euler("ZY", np.stack([angle, np.arccos(height)], axis=1))
    spin = Rotation.from_euler("z", np.arange(0, 360, degrees), degrees=True)
    return np.concatenate([(lean * turn).as_matrix() for turn in spin])


def likely_places(fixed: Volume, moving: Volume, turns: int = 8, target: np.ndarray | None = None) -> list[np.ndarray]:
    """Find transforms under which one volume looks like another, the best first.

    Refined from where the volumes are, from their centroids, and from the best of a cover of all rotations by
    about 30 degrees about the centroids; those within 10 degrees of a better one are left out.

    Parameters
    ----------
    fixed, moving : Volume
    turns : int
        Rotations of the cover that are refined.
    target : ndarray, (3,), optional
        Target of the middle of the fixed volume, mm; the middle of the moving one if left out.

    Returns
    -------
    list of ndarray, (4, 4)
        Fixed -> moving points; empty where either volume is too small.
    """
    pair = _Pair(fixed, moving)
    if pair.smaller < LEAST_POINTS:
        return []
    middle, target = fixed.centroid, moving.centroid if target is None else target
    cover = [about(turn, middle, target) for turn in rotation_cover(30.0)]
    promise = np.array([pair.similarity(turn) for turn in cover])
    starts = [np.eye(4), about(np.eye(3), middle, target)]
    starts += [cover[k] for k in np.argsort(-promise, kind="stable")[:turns]]
    found = sorted((refine(fixed, moving, start) for start in starts), key=_merit, reverse=True)
    different: list[np.ndarray] = []
    for transform, _ in found:
        if all(_angle(transform @ _invert(other)) > 10.0 for other in different):
            different.append(transform)
    return different


def _multi_start(coarse_fixed: Volume, coarse: Volume, fixed: Volume, moving: Volume) -> np.ndarray:
    """Return the scanner -> template transform of one stack, the best of many starts."""
    places = likely_places(coarse_fixed, coarse)
    if not places:
        return np.eye(4)
    # The best start near the scanner's word always gets its chance on the fine grid.
    chosen = places[:3] + [place for place in places[3:] if _angle(place) < NEAR][:1]
    return _invert(max((refine(fixed, moving, place) for place in chosen), key=_merit)[0])


def _merit(candidate: tuple[np.ndarray, float]) -> float:
    """Return the similarity less a penalty on large rotations: brains look alike upside down."""
    transform, value = candidate
    return value - TURN_COST * _angle(transform) / 180.0


def _judged(volumes: list[Volume], transforms: np.ndarray, template: int) -> StackRegistration:
    """Compare every stack with the mean of the others, and reset transforms that gained nothing."""
    count = len(volumes)
    before, after = np.ones(count), np.ones(count)
    accepted, reason = np.ones(count, dtype=bool), []
    transforms = transforms.copy()
    for k in range(count) if count > 1 else ():
        mean = mean_volume(volumes, transforms, skip=k)
        before[k] = similarity(mean, volumes[k], np.eye(4))
        after[k] = similarity(mean, volumes[k], _invert(transforms[k]))
        if k != template and after[k] <= before[k]:
            transforms[k], after[k], accepted[k] = np.eye(4), before[k], False
    for k in range(count):
        change = f"similarity {before[k]:.2f} -> {after[k]:.2f}"
        if k == template:
            text = "Template: the other stacks are brought into its space."
        elif accepted[k]:
            text = f"Registered: {change}, rotated by {_angle(transforms[k]):.1f} degrees."
        else:
            text = f"Left in the scanner's space: registration did not raise the similarity ({before[k]:.2f})."
        if after[k] < LOW_SIMILARITY:
            text += " The similarity is low: look at this stack."
        reason.append(text)
    return StackRegistration(template, transforms, before, after, accepted, tuple(reason))


def correlation(a: np.ndarray, b: np.ndarray, weight: np.ndarray) -> float:
    """Compute the weighted normalised cross-correlation.

    Sums without BLAS, whose order depends on its threads.
    """
    total = weight.sum()
    if total <= 0:
        return 0.0
    a, b = a - (weight * a).sum() / total, b - (weight * b).sum() / total
    norm = np.sqrt((weight * a * a).sum() * (weight * b * b).sum())
    return float((weight * a * b).sum() / norm) if norm > 0 else 0.0


def _apply(transform: np.ndarray, points: np.ndarray) -> np.ndarray:
    return np.einsum("ij,nj->ni", transform[:3, :3], points) + transform[:3, 3]


def about(turn: np.ndarray, centre: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Return the rotation about ``centre``, which goes to ``target``, as a transform (4, 4)."""
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = turn, target - turn @ centre
    return transform


def _invert(transform: np.ndarray) -> np.ndarray:
    """Invert a rigid transform, rotation kept proper to rounding."""
    turn = transform[:3, :3].T
    return about(turn, transform[:3, 3], np.zeros(3))


def _angle(transform: np.ndarray) -> float:
    """Return the rotation angle in degrees."""
    return float(np.degrees(np.linalg.norm(Rotation.from_matrix(transform[:3, :3]).as_rotvec())))
