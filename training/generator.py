# SPDX-License-Identifier: Apache-2.0
"""An endless, seeded set of slices with brain masks, cut at any angle from real and from made-up scenes.

Contrast, size, thickness, motion, receive field and noise are drawn again for every slice. Nothing is drawn but what
the seed says.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context

import numpy as np
import torch
from canvas import (
    AIR,
    AIRWAY,
    BASE,
    BODY,
    CANAL,
    CORD,
    EYE,
    FACE,
    FAT,
    FLESH,
    FLUID,
    LABELS,
    LENS,
    LIMB,
    LIVER,
    LUNG,
    ORGAN,
    PLACENTA,
    SKIN,
    SKULL,
    SPINE,
    TRUNK,
    VERTEBRA,
    WALL,
    field,
)
from phantom import phantom
from sampling import NO_INNER, sample
from scipy import ndimage
from scipy.spatial.transform import Rotation
from sources import CSF, REAL, TOP, Brain, Scene, is_brain, transplanted

from gsbids.masking.network import normalised

SIZE = 160  # pixels along an edge of a slice
PIXEL = 2.0  # mm
BRAIN_T2 = {
    1: (0.55, 0.9),
    2: (0.8, 1.2),
    3: (0.4, 0.8),
    CSF: (0.75, 1.2),
    5: (0.35, 0.7),
    6: (0.4, 0.75),
    7: (0.4, 0.75),
    8: (0.4, 0.75),
}
BRAIN = is_brain(np.arange(LABELS))
OTHERS_T2 = {
    AIR: (0, 0),
    BODY: (0.1, 0.5),
    FAT: (0.3, 1.3),
    WALL: (0.1, 0.4),
    PLACENTA: (0.3, 0.9),
    FLUID: (0.8, 1.4),
    LIMB: (0.15, 0.5),
    CORD: (0, 0.5),
    TRUNK: (0.2, 0.55),
    LUNG: (0.5, 1.0),
    LIVER: (0.1, 0.45),
    FLESH: (0.15, 0.5),
    CANAL: (0.7, 1.2),
    SPINE: (0.4, 0.7),
    VERTEBRA: (0.1, 0.5),
    FACE: (0.2, 0.6),
    AIRWAY: (0, 1.2),
    EYE: (0.8, 1.3),
    LENS: (0.1, 0.3),
    BASE: (0.1, 0.5),
    SKIN: (0.2, 0.8),
    SKULL: (0, 0.3),
}  # brightness in T2-weighted images; of a brain's white matter 0.7


@dataclass(frozen=True)
class Mixture:
    """How the set is mixed.

    Attributes
    ----------
    real : float
        Share of slices of real stacks.
    transplanted : float
        Share of slices of real stacks that have got a brain of the atlas; the rest is made up.
    scenes : int
        Made-up scenes; there are a quarter as many stacks with a brain transplanted.
    empty : float
        Share of made-up scenes without a brain.
    labels : float
        Share of the atlas' brains whose contrast is drawn tissue by tissue.
    odd : float
        Share of slices where any tissue can have any brightness.
    narrow : float
        Share of slices of a narrow field of view.
    close : float
        Share of slices whose field of view is a box around the brain or, where there is none, anywhere.
    alone : float
        Share of slices that show little but the brain or, where there is none, something as round.
    beside : float
        Share of the boxes that lie elsewhere though there is a brain.
    decoys : float
        Share of the round things in a mother that have a rim and something folded in it, as brains do, or are pockets
        of fluid with limbs; and of the scenes without a brain that hold a body.
    away : float
        Share of the planes, but for those along the slices of stacks, that may pass the brain by far.
    lost : float
        Share of slices whose head has lost 20 to 60 % of its signal, all of it or a part.
    """

    real: float = 0.3
    transplanted: float = 0.3
    scenes: int = 300
    empty: float = 0.1
    labels: float = 0.5
    odd: float = 0.3
    narrow: float = 0.25
    close: float = 0.08
    alone: float = 0.1
    beside: float = 0.0
    decoys: float = 0.0
    away: float = 0.15
    lost: float = 0.0


@dataclass(frozen=True)
class Palette:
    """Brightness of labels: ``offset + gain * image``, both (labels,)."""

    offset: np.ndarray
    gain: np.ndarray


@dataclass(frozen=True)
class Plane:
    """Where slices lie.

    Attributes
    ----------
    frame : ndarray, (3, 3)
        Columns: the two axes in the slices, and the one across, in the scene.
    middle : ndarray, (3,)
        mm, in the scene, of the middle of the middle slice.
    gap : float
        Distance of slices, mm.
    thickness : float
        mm; 0 where the scene has thick voxels itself.
    size : float
        How much larger everything is shown than it is.
    """

    frame: np.ndarray
    middle: np.ndarray
    gap: float
    thickness: float
    size: float


def scenes(
    seed: int, stacks: list[Scene], atlas: list[Brain], mixture: Mixture, workers: int = 1
) -> dict[str, list[Scene]]:
    """The scenes of a training, by kind; made up in so many processes."""
    moved = [_moved(seed, k, stacks, atlas) for k in range(max(1, mixture.scenes // 4))]
    make, numbers = partial(_made, seed, atlas, mixture), range(mixture.scenes)
    if workers == 1:
        made = [make(k) for k in numbers]
    else:
        with ProcessPoolExecutor(workers, get_context("fork"), torch.set_num_threads, (1,)) as pool:
            made = list(pool.map(make, numbers, chunksize=4))
    return {"real": stacks, "transplanted": moved, "made up": made}


def _moved(seed: int, k: int, stacks: list[Scene], atlas: list[Brain]) -> Scene:
    rng = np.random.default_rng((seed, 1, k))
    return transplanted(rng, stacks[k % len(stacks)], atlas[rng.integers(len(atlas))])


def _made(seed: int, atlas: list[Brain], mixture: Mixture, k: int) -> Scene:
    rng = np.random.default_rng((seed, 2, k))
    return phantom(rng, atlas, rng.random() < mixture.empty, mixture.decoys)


def draw(rng, pool: dict[str, list[Scene]], mixture: Mixture, slices: int) -> tuple[np.ndarray, np.ndarray]:
    """A slice with its neighbours, and its mask.

    Returns
    -------
    image : ndarray, (slices, SIZE, SIZE), float32
        As :func:`normalised` gives it, slice by slice.
    mask : ndarray, (1, SIZE, SIZE), float32
        0 or 1, of the middle slice.
    """
    scene = drawn_scene(rng, pool, mixture)
    plane = drawn_plane(rng, scene, mixture.away)
    images, shares = cut(rng, scene, palette(rng, mixture), plane, slices)
    if mixture.lost and rng.random() < mixture.lost:
        images = images * kept_signal(rng, shares)
    images = acquired(rng, images)
    mask = (shares[slices // 2] > 0.5).astype(np.float32)
    seen = view(rng, mask > 0, mixture)
    images, mask = images * seen, mask * seen
    for k in range(slices):  # a stack ends, or a slice is lost
        if k != slices // 2 and rng.random() < 0.08:
            images[k] = 0
    return np.stack([normalised(image) for image in images]), mask[None]


def kept_signal(rng, shares: np.ndarray) -> np.ndarray:
    """What a head that moved between excitation and echo keeps of its signal, (slices, SIZE, SIZE): 0.4 to 1.

    The surroundings keep theirs; in half of the slices it fades across the head.
    """
    head = ndimage.distance_transform_edt(shares < 0.5, (1e3, PIXEL, PIXEL)) <= rng.uniform(3, 12)
    part = ndimage.gaussian_filter(head.astype(np.float32), (0, 2, 2))
    if rng.random() < 0.5:
        across = field(rng, shares.shape[1:], rng.uniform(40, 120))
        part = part / (1 + np.exp(-4 * across))
    return 1 - rng.uniform(0.2, 0.6, (len(shares), 1, 1)) * part


def drawn_scene(rng, pool: dict[str, list[Scene]], mixture: Mixture) -> Scene:
    """Any scene of a kind."""
    kind = rng.choice(list(pool), p=(mixture.real, mixture.transplanted, 1 - mixture.real - mixture.transplanted))
    return pool[kind][rng.integers(len(pool[kind]))]


def view(rng, brain: np.ndarray, mixture: Mixture, gap: float = PIXEL) -> np.ndarray:
    """What is left of a slice, (SIZE, SIZE), or of slices, (Z, SIZE, SIZE), so far (mm) apart: mostly all; a narrow
    field of view, close around the brain or anywhere else; or nothing but the brain, with what lies at most 20 mm
    around it, or but something else as round. What is left of all slices alike has but one."""
    kind = rng.random()
    if kind < mixture.alone:
        return _alone(rng, brain, gap)
    if kind < mixture.alone + mixture.close:
        flat = brain.reshape(-1, SIZE, SIZE).any(0)
        return _box(rng, flat, bool(flat.any()) and rng.random() >= mixture.beside)
    left = np.ones((SIZE, SIZE), bool)
    if kind > 1 - mixture.narrow:
        edge = rng.integers(0, 55, 4) * (rng.random(4) < 0.6)
        left[: edge[0]], left[SIZE - edge[1] :], left[:, : edge[2]], left[:, SIZE - edge[3] :] = (
            False,
            False,
            False,
            False,
        )
    return left


def _alone(rng, brain: np.ndarray, gap: float) -> np.ndarray:
    """The brain and a little around it; where there is none, an ellipse, as if that were one."""
    if brain.any():
        width = rng.choice((0.0, rng.uniform(0, 20)))
        return ndimage.distance_transform_edt(~brain, (gap, PIXEL, PIXEL)[-brain.ndim :]) <= width
    turn = Rotation.from_rotvec((0, 0, rng.uniform(0, np.pi))).as_matrix()[:2, :2]
    away = np.moveaxis(np.indices((SIZE, SIZE)), 0, -1) - rng.uniform(35, SIZE - 35, 2)
    return ((away @ turn / rng.uniform(10, 35, 2)) ** 2).sum(-1) < 1


def _box(rng, brain: np.ndarray, around: bool) -> np.ndarray:
    """A box close around the brain; or one elsewhere, mostly without the brain."""
    left = np.zeros((SIZE, SIZE), bool)
    if around:
        found, margin = ndimage.find_objects(brain.astype(np.uint8))[0], rng.integers(2, 20, 4)
        box = [
            slice(max(0, one.start - a), one.stop + b) for one, a, b in zip(found, margin[:2], margin[2:], strict=True)
        ]
        left[tuple(box)] = True
        return left
    size = rng.integers(20, 90, 2)  # what lies elsewhere can be shown as close
    for _ in range(20):
        corner = rng.integers(10, SIZE - 10 - size)
        box = tuple(slice(a, a + n) for a, n in zip(corner, size, strict=True))
        if not brain[box].any():
            break
    left[box] = True
    return left


def drawn_plane(rng, scene: Scene, away: float) -> Plane:
    """Any plane through the scene, mostly through its brain; real stacks are often cut as they were acquired."""
    frame = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    native = scene.thick and rng.random() < 0.5
    if native:
        spin = Rotation.from_rotvec((0, 0, rng.uniform(0, 2 * np.pi))).as_matrix()
        tilt = Rotation.from_rotvec(np.deg2rad(rng.normal(0, 4, 3))).as_matrix()
        frame = tilt @ spin
    frame = frame @ np.diag((rng.choice((-1, 1)), 1, 1))
    size = np.exp(rng.uniform(np.log(0.75), np.log(1.4))) if scene.real else 1.0
    spacing = scene.finest.spacing
    middle = scene.middle * np.array(scene.spacing)
    if native:
        middle[2] = scene.finest.start[2] + rng.uniform(0, scene.finest.labels.shape[2] - 1) * spacing[2]
    else:
        reach = 1.25 * scene.radius if rng.random() > away else 80
        middle = middle + frame[:, 2] * rng.uniform(-reach, reach)
    middle = middle + frame[:, :2] @ rng.uniform(-65, 65, 2)
    gap = rng.uniform(2, 6) if not native else spacing[2] * size
    thickness = 0.0 if native else gap * rng.uniform(0.6, 1.1)
    return Plane(frame, middle, gap, thickness, size)


def palette(rng, mixture: Mixture) -> Palette:
    """Brightness of every label."""
    offset, gain = np.zeros(LABELS), np.zeros(LABELS)
    offset[0], gain[0], gain[REAL] = 0, 1, np.exp(rng.normal(0, 0.15))
    others = dict.fromkeys(range(ORGAN, LABELS), (0.05, 1.1))
    odd = rng.random() < mixture.odd
    for label, (low, high) in (OTHERS_T2 | others).items():
        level = rng.uniform(0, 1.2) if odd and label != AIR else rng.uniform(low, high)
        texture = rng.uniform(0, 0.6)
        offset[label], gain[label] = level * (1 - texture), level * texture / 0.75
    shown, tissues = rng.uniform(0.75, 1.25), slice(1, REAL)
    gain[tissues] = shown
    if odd or rng.random() < mixture.labels:
        levels = np.array([rng.uniform(0.1, 1.1) if odd else rng.uniform(*BRAIN_T2[label]) for label in range(1, REAL)])
        offset[tissues], gain[tissues] = 0.7 * shown * levels, 0.35 * shown * levels
    return Palette(offset.astype(np.float32), gain.astype(np.float32))


def cut(rng, scene: Scene, colours: Palette, plane: Plane, slices: int) -> tuple[np.ndarray, np.ndarray]:
    """Thick slices of a scene; each has moved a little, at times much.

    Returns
    -------
    images, shares : ndarray, (slices, SIZE, SIZE), float32
        Intensities, and share of brain.
    """
    inner = np.array([0.0]) if plane.thickness == 0 else np.linspace(-1, 1, 3) / 3 * plane.thickness
    beside = rng.uniform(-0.8, 0.8, (2, len(inner))) * (len(inner) > 1)  # smooths edges of voxels
    severity = rng.choice((0.3, 1.0, 3.0))
    matrices = np.empty((slices, len(inner), 3, 3))
    for k in range(slices):
        turn = plane.frame @ Rotation.from_rotvec(np.deg2rad(rng.normal(0, severity, 3))).as_matrix() / plane.size
        middle = plane.middle + plane.frame @ rng.normal(0, 0.7 * severity, 3)
        for p in range(len(inner)):
            across = (k - (slices - 1) / 2) * plane.gap + inner[p]
            corner = turn @ np.append(beside[:, p] - (SIZE - 1) / 2 * PIXEL, across) + middle
            matrices[k, p] = np.stack([turn[:, 0] * PIXEL, turn[:, 1] * PIXEL, corner], 1)
    matrices /= np.array(scene.spacing)[:, None]
    inner = NO_INNER
    if scene.inner is not None:
        fine = scene.inner
        inner = (fine.image, fine.labels, np.array(scene.spacing) / fine.spacing, -fine.start / fine.spacing)
    shown = (colours.offset, colours.gain * np.float32(TOP / 255), BRAIN)
    value, share = sample((scene.image, scene.labels), inner, matrices, shown, SIZE)
    if not scene.real:
        value = ndimage.gaussian_filter(value, (0, 0.5, 0.5))
    return value, share


def acquired(rng, images: np.ndarray) -> np.ndarray:
    """What a scanner makes of slices, (slices, X, Y): blur, receive field, contrast, gains, noise."""
    if rng.random() < 0.6:
        images = ndimage.gaussian_filter(images, (0, *rng.uniform(0.2, 0.9, 2)))
    images = images * np.exp(rng.uniform(0, 0.5) * field(rng, images.shape[1:], rng.uniform(40, 120)))
    top = max(float(np.percentile(images[:, ::2, ::2], 99)), 1e-6)
    images = np.clip(images / top, 0, 1.5)
    if rng.random() < 0.12:  # another weighting altogether
        levels = rng.uniform(0, 1, 6)
        levels[0] = 0
        images = np.interp(images, np.linspace(0, 1.5, 6), levels)
    images = np.power(images, np.exp(rng.normal(0, 0.35))) * np.exp(rng.normal(0, 0.2, (len(images), 1, 1)))
    level = rng.choice((0.0, 0.01, 0.03, 0.06))
    if level:
        noise = level * rng.standard_normal((2, *images.shape), np.float32)
        images = np.hypot(images + noise[0], noise[1])
    return images.astype(np.float32)
