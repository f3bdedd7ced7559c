# SPDX-License-Identifier: Apache-2.0
"""Simulated cases made harder: stacks that start turned apart, masks with errors, stacks of another size."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation
from svr_cases import Case, read_motion, write_motion

from gsbids.imaging.nifti import load_image, save_image


def turned_apart(case: Case, degrees: float) -> Case:
    """The case with every stack but the first turned about the world's origin, by up to ``degrees``.

    Axes are random and angles uniform, by the seed of the case. A stack that lies at ``T x`` and not at ``x`` has
    the true motion ``M T^-1``.
    """
    rng = np.random.default_rng(1000 + case.seed)
    changed = _copy(case, f"{case.name}-turned")
    for n, (image, mask, motion) in enumerate(zip(changed.images, changed.masks, changed.true_motion, strict=True)):
        turn = np.eye(4)
        axis, angle = rng.normal(size=3), np.radians(rng.uniform(0, degrees))
        if n:
            turn[:3, :3] = Rotation.from_rotvec(angle * axis / np.linalg.norm(axis)).as_matrix()
        for path, dtype in ((image, "int16"), (mask, "uint8")):
            data, affine = load_image(path)
            save_image(path, data, turn @ affine, dtype)
        write_motion(motion, read_motion(motion) @ np.linalg.inv(turn))
    return changed


def with_masks(
    case: Case, name: str, change: Callable[[np.ndarray], np.ndarray], ends: tuple[int, int] = (1, 0)
) -> Case:
    """The case with masks dilated or eroded in the plane by ``change``, and end slices of each left out.

    ``ends`` are the numbers of slices of brain left out, first and last. They are not counted among the slices either:
    nobody can place them.
    """
    changed = _copy(case, f"{case.name}-{name}")
    for path in changed.masks:
        mask, affine = load_image(path)
        mask = mask > 0
        lit = np.flatnonzero(mask.any((0, 1)))
        mask[:, :, lit[: ends[0]]] = False
        mask[:, :, lit[len(lit) - ends[1] :]] = False
        true = changed.folder / "derivatives" / "truemasks" / path.name
        true.parent.mkdir(parents=True, exist_ok=True)
        save_image(true, mask, affine, "uint8")
        save_image(path, np.stack([change(mask[:, :, k]) for k in range(mask.shape[2])], 2), affine, "uint8")
    return changed


def spilled(case: Case, name: str, radius: float = 14.0) -> Case:
    """The case with a ball (mm) of extra mask beside the brain in every stack, three to nine slices of it.

    Its middle lies a third of the radius outside the mask, in a random direction in the plane of a random slice of the
    middle third; seeded by the case.
    """
    rng, changed = np.random.default_rng(2000 + case.seed), _copy(case, f"{case.name}-{name}")
    for path in changed.masks:
        mask, affine = load_image(path)
        mask, spacing = mask > 0, np.linalg.norm(affine[:3, :3], axis=0)
        lit = np.flatnonzero(mask.any((0, 1)))
        k = int(rng.choice(lit[len(lit) // 3 : 2 * len(lit) // 3]))
        edge = np.argwhere(mask[:, :, k] & ~ndimage.binary_erosion(mask[:, :, k]))
        outwards = (edge - np.argwhere(mask[:, :, k]).mean(0)) * spacing[:2]
        outwards /= np.linalg.norm(outwards, axis=1)[:, None]
        angle = rng.uniform(0, 2 * np.pi)
        n = int(np.argmax(outwards @ [np.cos(angle), np.sin(angle)]))
        middle = np.append(edge[n] + outwards[n] * radius / 3 / spacing[:2], k)
        ball = radius**2 > (((np.indices(mask.shape).T - middle) * spacing) ** 2).sum(-1).T
        save_image(path, mask | ball, affine, "uint8")
    return changed


def dilated(mask: np.ndarray) -> np.ndarray:
    """A slice's mask wider by two pixels."""
    return ndimage.binary_dilation(mask, iterations=2)


def eroded(mask: np.ndarray) -> np.ndarray:
    """A slice's mask narrower by two pixels."""
    return ndimage.binary_erosion(mask, iterations=2)


def resized(case: Case, shape: tuple[int, int, int]) -> Case:
    """The case with zeros around the stacks, or their outermost slices cut off, until they have ``shape``."""
    changed = _copy(case, f"{case.name}-{'x'.join(map(str, shape))}")
    for path, dtype in [*((p, "int16") for p in changed.images), *((p, "uint8") for p in changed.masks)]:
        data, affine = load_image(path)
        out, affine = np.zeros(shape, data.dtype), affine.copy()
        before = [(n - m) // 2 for n, m in zip(shape, data.shape, strict=True)]
        into = tuple(slice(max(b, 0), max(b, 0) + min(n, m)) for b, n, m in zip(before, shape, data.shape, strict=True))
        taken = tuple(
            slice(max(-b, 0), max(-b, 0) + min(n, m)) for b, n, m in zip(before, shape, data.shape, strict=True)
        )
        out[into] = data[taken]
        affine[:3, 3] -= affine[:3, :3] @ before
        save_image(path, out, affine, dtype)
    return changed


def _copy(case: Case, name: str) -> Case:
    """Another folder with the same files, to be changed."""
    folder = case.folder.with_name(f"{name}_seed-{case.seed}")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(case.folder, folder)
    (Path(folder) / "changed.json").write_text(json.dumps({"from": case.name}))
    return replace(case, name=name, folder=folder)
