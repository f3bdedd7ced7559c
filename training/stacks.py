# SPDX-License-Identifier: Apache-2.0
"""Whole stacks cut from scenes; places in them in a brain, where a network is mistaken for one, and anywhere else."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from generator import PIXEL, Mixture, Plane, acquired, cut, drawn_plane, drawn_scene, palette, view
from scipy import ndimage
from sources import Scene, as_bytes

from gsbids.masking.found import MaskNetwork
from gsbids.masking.network import normalised, regions

MOST = 30  # slices of a stack
SUSPECT = 0.25  # probability above which a region is looked at: lower than what is taken for a brain
LEAST = 4.0  # ml of such a region
SEEN = 0.3  # share of a brain that a stack must show to hold one
FAR = 10.0  # mm from a brain to a place that is none


@dataclass(frozen=True)
class Stack:
    """A stack and places in it, voxels.

    Attributes
    ----------
    image : ndarray, (X, Y, Z), uint8
        Intensities as the mask network sees them, 0 to :data:`sources.TOP`.
    spacing : tuple of float
        Voxel size, mm.
    brain : ndarray, (N, 3)
        Middle of the brain, and of regions of the network that hold it.
    mistaken : ndarray, (N, 3)
        Middle of regions of the network that hold none of it.
    other : ndarray, (N, 3)
        Any places outside the brain that are not black.
    """

    image: np.ndarray
    spacing: tuple[float, float, float]
    brain: np.ndarray
    mistaken: np.ndarray
    other: np.ndarray


def drawn_stack(rng, pool: dict[str, list[Scene]], mixture: Mixture, known: MaskNetwork) -> Stack:
    """A stack of any scene.

    Parameters
    ----------
    rng : numpy.random.Generator
    pool : dict of str to list of Scene
    mixture : Mixture
        ``away`` is the share of stacks, but for those along the slices of real ones, that pass the brain.
    known : MaskNetwork
        What a judge is to be trained for.
    """
    scene = drawn_scene(rng, pool, mixture)
    plane, count = stack_plane(rng, scene, mixture.away)
    images, shares = cut(rng, scene, palette(rng, mixture), plane, count)
    images, brain = acquired(rng, images), shares > 0.5
    left = view(rng, brain, mixture, plane.gap)
    images, brain = np.stack([normalised(image) for image in images * left]), np.moveaxis(brain & left, 0, 2)
    spacing = (PIXEL, PIXEL, plane.gap)
    probability = np.moveaxis(_probability(images, known.network), 0, 2)
    images = np.moveaxis(images, 0, 2)
    whole = 4 / 3 * np.pi * (scene.radius * plane.size) ** 3
    inside = places_in(rng, brain, spacing) if brain.sum() * np.prod(spacing) > SEEN * whole else []
    away = distance(brain, spacing)
    held, mistaken = places_found(probability, brain, away, spacing)
    return Stack(
        as_bytes(images),
        spacing,
        _table([*inside, *(held if inside else [])]),
        _table(mistaken),
        _table(places_out(rng, images, away)),
    )


def _table(places) -> np.ndarray:
    return np.array(places, np.float32).reshape(-1, 3)


def stack_plane(rng, scene: Scene, away: float) -> tuple[Plane, int]:
    """Where the slices of a stack lie, and how many they are."""
    plane, count = drawn_plane(rng, scene, 0.0), int(rng.integers(16, MOST + 1))
    middle = scene.middle * np.array(scene.spacing)
    if plane.thickness == 0:  # along the slices of a real stack: all of them
        near = scene.finest
        middle[2] = near.start[2] + (near.labels.shape[2] - 1) / 2 * near.spacing[2]
        count = min(near.labels.shape[2], MOST)
        return replace(plane, middle=middle + plane.frame[:, :2] @ rng.uniform(-40, 40, 2)), count
    if rng.random() < away:
        direction = rng.standard_normal(3)
        middle = middle + direction / np.linalg.norm(direction) * rng.uniform(70, 120)
    else:
        middle = middle + plane.frame @ (rng.uniform(-1, 1, 3) * (45, 45, 20))
    gap = float(np.clip(2 * plane.size * scene.radius * rng.uniform(1.1, 1.6) / count, 2, 6))
    return replace(plane, middle=middle, gap=gap, thickness=gap * rng.uniform(0.6, 1.1)), count


def _probability(images: np.ndarray, network) -> np.ndarray:
    """Of brain in slices, (Z, X, Y), by one view of each."""
    with torch.inference_mode():
        batches = torch.from_numpy(images[:, None]).split(8)
        return torch.cat([torch.sigmoid(network(batch))[:, 0] for batch in batches]).numpy()


def places_in(rng, brain: np.ndarray, spacing) -> list:
    """The middle of a brain, (X, Y, Z), bool, not exact, twice."""
    near = np.argwhere(brain).mean(0) + rng.normal(0, 5, (2, 3)) / spacing
    return [place for place in near if _inside(brain, place)]


def places_found(probability: np.ndarray, brain: np.ndarray, away: np.ndarray, spacing) -> tuple[list, list]:
    """Middles of the largest regions of a network that hold a brain, so far (mm) away, and of those that do not."""
    labels, sums = regions(probability, SUSPECT)
    voxel, held, mistaken = float(np.prod(spacing)), [], []
    for label in 1 + np.argsort(-sums)[:4]:
        region = labels == label
        if region.sum() * voxel / 1e3 < LEAST:
            continue
        middle = np.array(ndimage.center_of_mass(region))
        overlap = 2 * (region & brain).sum() / (region.sum() + brain.sum())
        if overlap > 0.3 and _inside(brain, middle):
            held.append(middle)
        elif overlap < 0.05 and away[tuple(np.rint(middle).astype(int))] > FAR:
            mistaken.append(middle)
    return held, mistaken


def places_out(rng, images: np.ndarray, away: np.ndarray) -> list:
    """Six places that are lit and not near the brain, so far (mm) away, or fewer."""
    lit = np.argwhere(images[::4, ::4] > 0.07) * (4, 4, 1)
    if not len(lit):
        return []
    return [place for place in lit[rng.integers(len(lit), size=6)] if away[tuple(place)] > FAR]


def distance(brain: np.ndarray, spacing) -> np.ndarray:
    """mm to the brain; infinite where there is none."""
    return ndimage.distance_transform_edt(~brain, spacing) if brain.any() else np.full(brain.shape, np.inf)


def _inside(brain: np.ndarray, place) -> bool:
    index = tuple(np.rint(place).astype(int))
    return all(0 <= i < n for i, n in zip(index, brain.shape, strict=True)) and bool(brain[index])
