# SPDX-License-Identifier: Apache-2.0
"""Agreement of the stacks with one another at their registered poses, and the coverage of the brain by slices.

Similarity of acquired and simulated slices depends on the fitted field; agreement depends on the stacks alone, so that
a field which has fitted all errors does not hide that the stacks show different things.
"""

import numpy as np
from scipy import ndimage

from gsbids.imaging.geometry import slice_frames
from gsbids.imaging.stack import Stack
from gsbids.recon.motion import RigidMotion
from gsbids.recon.psf import FWHM_TO_SIGMA
from gsbids.recon.svr.result import SvrResult

STEP = 1.5  # mm: voxels of the images that are compared
SEEN = 0.2  # weight of a voxel, over that of the usual one, under which a stack shows nothing there
LEAST_VOXELS = 200  # that two stacks must share
UNSEEN = 0.5  # slices: a voxel with fewer was not seen


def agreement_metrics(result: SvrResult, stacks: list[Stack]) -> dict[str, float]:
    """Compute the agreement of the stacks (see ``METRIC_DESCRIPTIONS``).

    Parameters
    ----------
    result : SvrResult
    stacks : list of Stack
        Fitted stacks, in the order of ``result.stack_names``.
    """
    table = pairwise_agreement(result, stacks)
    known = np.isfinite(table)
    if not known.any():
        return {"stack_agreement": np.nan, "stack_agreement_worst": np.nan}
    by_stack = [np.median(row[there]) for row, there in zip(table, known, strict=True) if there.any()]
    return {
        "stack_agreement": float(np.median(table[known & np.triu(np.ones_like(known))])),
        "stack_agreement_worst": float(min(by_stack)),
    }


def coverage_metrics(coverage: np.ndarray, mask: np.ndarray) -> dict[str, float]:
    """Compute the coverage of the brain (see ``METRIC_DESCRIPTIONS``); both on the grid of the volume."""
    inside = coverage[mask]
    if not inside.size:
        return {"coverage_mean": np.nan, "not_covered": np.nan}
    return {"coverage_mean": float(inside.mean()), "not_covered": float((inside < UNSEEN).mean())}


def pairwise_agreement(result: SvrResult, stacks: list[Stack]) -> np.ndarray:
    """Compute the normalised cross-correlation of every two stacks where both have brain, (N, N); NaN on the diagonal.

    The used slices of each stack are put into the anatomy by their poses, without their gains and bias fields, as an
    image with a blur as wide as the slices are thick: then stacks of different orientations show the same.

    Parameters
    ----------
    result, stacks
        As for :func:`agreement_metrics`.
    """
    stacks, count = result.as_fitted(stacks), len(stacks)
    table = np.full((count, count), np.nan)
    if not len(result.weight):
        return table
    points = [_pixels(result, stack, n) for n, stack in enumerate(stacks)]
    filled = [where for where, _ in points if len(where)]
    if len(filled) < 2:
        return table
    low = np.floor(np.concatenate(filled).min(0) / STEP) - 2
    shape = tuple((np.ceil(np.concatenate(filled).max(0) / STEP) - low + 3).astype(int))
    sigma = max(stack.thickness for stack in stacks) * FWHM_TO_SIGMA / STEP
    images = [_image(where, value, (low, shape, sigma)) for where, value in points]
    for a in range(count):
        for b in range(a):
            if images[a] is not None and images[b] is not None:
                table[a, b] = table[b, a] = _correlation(images[a], images[b])  # type: ignore[arg-type]
    return table


def _pixels(result: SvrResult, stack: Stack, number: int) -> tuple[np.ndarray, np.ndarray]:
    """Return world positions (P, 3), mm, and intensities (P,) of the brain in the used slices of a stack."""
    rows = np.flatnonzero((result.stack_index == number) & ~result.rejected & (result.gain > 0))
    if not len(rows):
        return np.zeros((0, 3)), np.zeros(0)
    slices = result.slice_index[rows]
    image = np.moveaxis(stack.image[:, :, slices], 2, 0) / result.gain[rows][:, None, None]
    if result.bias:
        middle = slice_frames(stack.affine, stack.image.shape)[1][slices]
        nominal = RigidMotion(result.nominal.rotation[rows], middle)
        image = image / result.bias.of_slices(number, nominal, stack.spacing[:2], stack.image.shape[:2])
    row, i, j = np.nonzero(np.moveaxis(stack.mask[:, :, slices], 2, 0))
    index = np.stack([i, j, slices[row], np.ones(len(row))], 1)
    moves = result.motion.as_affines(result.nominal)[rows] @ stack.affine
    return np.einsum("pij,pj->pi", moves[row, :3], index), image[row, i, j]


def _image(
    where: np.ndarray, value: np.ndarray, grid: tuple[np.ndarray, tuple[int, ...], float]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Return the mean intensity on the grid, and where the stack has data; None without a pixel."""
    if not len(where):
        return None
    low, shape, sigma = grid
    voxel = np.ravel_multi_index(np.rint(where / STEP - low).astype(int).T, shape)
    seen, total = (
        ndimage.gaussian_filter(np.bincount(voxel, weights, np.prod(shape)).reshape(shape), sigma)
        for weights in (np.ones(len(value)), value)
    )
    return total / np.maximum(seen, 1e-9), seen > SEEN * np.median(seen[seen > 0.05 * seen.max()])


def _correlation(one: tuple[np.ndarray, np.ndarray], other: tuple[np.ndarray, np.ndarray]) -> float:
    shared = one[1] & other[1]
    if shared.sum() < LEAST_VOXELS:
        return np.nan
    a, b = (image[shared] - image[shared].mean() for image, _ in (one, other))
    power = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / power) if power > 0 else np.nan
