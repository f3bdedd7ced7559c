# SPDX-License-Identifier: Apache-2.0
"""An endless, seeded set of slices with brain masks: real, brains of an atlas in real surroundings, and all made up.

Brains come at all sizes, turns and contrasts; around them a skull, fluid, and a body. Nothing is drawn but what the
seed says.
"""

from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation
from sources import PIXEL, Brain, RealStack

from gsbids.masking.network import normalised

SIZE = 160  # pixels along an edge of a slice
KINDS = ("real", "transplanted", "synthetic")
WINDOW = 96  # pixels that hold a brain


@dataclass(frozen=True)
class Mixture:
    """How the set is mixed.

    Attributes
    ----------
    kinds : tuple of float
        Shares of :data:`KINDS`.
    empty : float
        Share of the made slices without a brain.
    labels : float
        Share of the atlas' brains whose contrast is drawn anew, tissue by tissue.
    """

    kinds: tuple[float, float, float] = (0.35, 0.4, 0.25)
    empty: float = 0.15
    labels: float = 0.4


def smooth_field(rng, shape, width: float) -> np.ndarray:
    """A random field of standard deviation 1 and of a correlation length in pixels."""
    coarse = tuple(max(4, int(np.ceil(n / width)) + 3) for n in shape)
    field = ndimage.zoom(rng.standard_normal(coarse), np.array(shape) / (np.array(coarse) - 3), order=3)
    field = field[tuple(slice(0, n) for n in shape)]
    return field / max(field.std(), 1e-6)


def draw(rng, stacks: list[RealStack], atlas: list[Brain], mixture: Mixture) -> tuple[np.ndarray, np.ndarray]:
    """A slice and its mask.

    Returns
    -------
    image, mask : ndarray, (SIZE, SIZE), float32
        Image as :func:`normalised` gives it; mask 0 or 1.
    """
    kind = rng.choice(KINDS, p=mixture.kinds)
    if kind == "real":
        image, mask = real_slice(rng, stacks)
    else:
        ground, before = real_slice(rng, stacks) if kind == "transplanted" else (body(rng), np.zeros((SIZE, SIZE)))
        brain = None if rng.random() < mixture.empty and not before.any() else brain_slice(rng, atlas, mixture)
        image, mask = (ground, before) if brain is None else placed(rng, ground, before, *brain)
    image, mask = acquired(rng, image), (mask > 0.5).astype(np.float32)
    if rng.random() < 0.25:  # a narrow field of view
        edge = rng.integers(0, 35, 4)
        for part in (image, mask):
            part[:edge[0]], part[SIZE - edge[1]:], part[:, :edge[2]], part[:, SIZE - edge[3]:] = 0, 0, 0, 0
    return normalised(image), mask


def real_slice(rng, stacks: list[RealStack]) -> tuple[np.ndarray, np.ndarray]:
    """A slice of a real stack, turned, scaled, mirrored and shifted; slices with brain are preferred."""
    stack = stacks[rng.integers(len(stacks))]
    areas = stack.masks.sum((1, 2))
    weight = np.where(areas > 0, 1.0, 0.4)
    k = rng.choice(len(areas), p=weight / weight.sum())
    scale = np.exp(rng.uniform(np.log(0.7), np.log(1.45)))
    angle = rng.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
    turn[:, 0] *= rng.choice((-1, 1))
    middle = (np.array(stack.images.shape[1:]) - 1) / 2
    target = np.argwhere(stack.masks[k] > 0.5).mean(0) if areas[k] > 0 and rng.random() < 0.7 else middle
    target = target + rng.uniform(-45, 45, 2)
    offset = target - turn @ np.full(2, (SIZE - 1) / 2)
    image = ndimage.affine_transform(stack.images[k], turn, offset, (SIZE, SIZE), order=1)
    return image, ndimage.affine_transform(stack.masks[k], turn, offset, (SIZE, SIZE), order=1)


def brain_slice(rng, atlas: list[Brain], mixture: Mixture, depth: float | None = None) -> tuple[np.ndarray, np.ndarray]:
    """A thick slice through a brain of any size, turn and contrast.

    Returns
    -------
    image, share : ndarray, (WINDOW, WINDOW)
        Intensities, and share of brain. ``depth`` (mm from its middle) is drawn where it is not given.
    """
    brain = atlas[rng.integers(len(atlas))]
    scale = np.exp(rng.uniform(np.log(0.75), np.log(1.35)))
    turn = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    half = max(brain.image.shape) / 2 * 0.8
    drawn = rng.uniform(-half, half) * brain.voxel * scale
    depth = drawn if depth is None else depth
    flat = (np.arange(WINDOW) - (WINDOW - 1) / 2) * PIXEL
    image, share = np.zeros((WINDOW, WINDOW)), np.zeros((WINDOW, WINDOW))
    level = None
    if rng.random() < mixture.labels:
        level = np.append(0, rng.uniform(0.15, 1.0, brain.labels.max()))
    planes = np.linspace(-0.5, 0.5, 3) * rng.uniform(2, 5)
    stretch = np.exp(rng.normal(0, 0.06, 3))
    for plane in planes:
        at = np.stack(np.broadcast_arrays(flat[:, None], flat[None], np.full((1, 1), depth + plane)), -1)
        index = (at @ turn) * stretch / (brain.voxel * scale) + (np.array(brain.image.shape) - 1) / 2
        index = np.moveaxis(index, -1, 0)
        labels = ndimage.map_coordinates(brain.labels, index, order=0)
        values = ndimage.map_coordinates(brain.image, index, order=1)
        if level is not None:
            values = 0.75 * level[labels] + 0.25 * values * level[labels]
        share += (labels > 0) / len(planes)
        image += np.where(labels > 0, values, 0) / len(planes)
    return image / np.maximum(share, 1e-3) * (share > 0), share


def placed(rng, ground, before, image, share) -> tuple[np.ndarray, np.ndarray]:
    """A brain with skull, skin and fluid on a ground, where a brain of the ground itself is covered."""
    if not (share > 0.5).any():
        return (ground, before)
    where = (np.argwhere(before > 0.5).mean(0) if before.any() else _in_body(rng, ground)) + rng.uniform(-4, 4, 2)
    canvas, part = _on_canvas(image, where), _on_canvas(share, where)
    brain = part > 0.5
    away = ndimage.distance_transform_edt(~brain) * PIXEL
    wobble = 1 + 0.25 * smooth_field(rng, ground.shape, 20)
    inner, skull = rng.uniform(0, 5), rng.uniform(1.5, 4.5)
    skin = rng.uniform(0.5, 5)
    fluid = rng.uniform(0, 30) if rng.random() < 0.75 else 0.0
    if before.any():  # whatever was there must not be seen
        fluid = max(fluid, float((away * (before > 0.1)).max()) + 4)
    bright = np.percentile(ground, 97) * rng.uniform(0.8, 1.3)
    edges = np.cumsum([inner, skull, skin, fluid])
    levels = bright * np.array([rng.uniform(*span) for span in ((0.6, 1.1), (0, 0.35), (0.2, 0.8), (0.5, 1.1))])
    texture = 1 + rng.uniform(0, 0.2) * smooth_field(rng, ground.shape, 4)
    out, reach = ground.copy(), away * np.clip(wobble, 0.5, 1.6)
    if before.any():
        reach = np.where(before > 0.1, np.minimum(reach, edges[-1] - 1), reach)
    for edge, level in zip(edges[::-1], levels[::-1], strict=True):
        soft = np.clip((edge - reach) / PIXEL + 0.5, 0, 1) if edge > 0 else 0
        out = out + soft * (level * texture - out)
    gain = bright * rng.uniform(0.6, 1.1) / max(np.percentile(canvas[brain], 95), 1e-3)
    return out + part * (canvas * gain - out), part


def body(rng) -> np.ndarray:
    """A made-up body: air, an outline, organs as thresholded random fields of random brightness and texture."""
    shape = (SIZE, SIZE)
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    angle = rng.uniform(0, np.pi)
    turned = np.stack([np.cos(angle) * at[0] + np.sin(angle) * at[1], np.cos(angle) * at[1] - np.sin(angle) * at[0]])
    radius = (((turned - rng.uniform(-0.3, 0.3, (2, 1, 1))) / rng.uniform(0.6, 1.6, (2, 1, 1))) ** 2).sum(0)
    inside = radius + 0.08 * smooth_field(rng, shape, 30) < 1
    image = np.zeros(shape)
    for _ in range(int(rng.integers(2, 7))):
        region = smooth_field(rng, shape, np.exp(rng.uniform(np.log(6), np.log(40)))) > rng.uniform(-1, 1.2)
        image[region] = rng.uniform(0, 1)
    for _ in range(int(rng.integers(0, 6))):  # round things that are no brains
        middle, axes = rng.uniform(-0.9, 0.9, (2, 1, 1)), rng.uniform(0.03, 0.35, (2, 1, 1))
        distance = np.sqrt((((at - middle) / axes) ** 2).sum(0)) + 0.1 * smooth_field(rng, shape, 10)
        image[distance < 1.15] = rng.uniform(0, 1)
        image[distance < 1] = rng.uniform(0, 1)
    image *= 1 + rng.uniform(0, 0.35) * smooth_field(rng, shape, np.exp(rng.uniform(np.log(2), np.log(8))))
    if rng.random() < 0.7:
        fat = inside & (radius > rng.uniform(0.75, 0.95))
        image[fat] = rng.uniform(0.5, 1.2)
    return np.where(inside, np.maximum(image, 0), 0)


def acquired(rng, image: np.ndarray) -> np.ndarray:
    """What a scanner makes of it: blur, receive field, contrast, noise."""
    image = np.maximum(image, 0)
    if rng.random() < 0.5:
        image = ndimage.gaussian_filter(image, rng.uniform(0.2, 0.8))
    image = image * np.exp(rng.uniform(0, 0.45) * smooth_field(rng, image.shape, rng.uniform(50, 120)))
    top = max(np.percentile(image, 99), 1e-6)
    image = top * np.power(np.clip(image / top, 0, 1.5), np.exp(rng.normal(0, 0.35)))
    noise = top * rng.choice((0.0, 0.01, 0.03, 0.06)) * rng.standard_normal((2, *image.shape))
    image = np.hypot(image + noise[0], noise[1]) if noise.any() else image
    return image


def _in_body(rng, ground) -> np.ndarray:
    """A place in what is not air."""
    lit = ndimage.gaussian_filter(ground, 6) > 0.15 * max(ground.mean(), 1e-6)
    lit[:25], lit[-25:], lit[:, :25], lit[:, -25:] = False, False, False, False
    places = np.argwhere(lit)
    return places[rng.integers(len(places))] if len(places) else np.full(2, SIZE / 2)


def _on_canvas(window, where) -> np.ndarray:
    """A window, its middle at a place, on an empty slice."""
    first = np.rint(np.asarray(where) - WINDOW / 2).astype(int)
    canvas = np.zeros((SIZE + 2 * WINDOW,) * 2)
    low = np.clip(first + WINDOW, 0, SIZE + WINDOW)
    canvas[low[0]:low[0] + WINDOW, low[1]:low[1] + WINDOW] = window
    return canvas[WINDOW:-WINDOW, WINDOW:-WINDOW]
