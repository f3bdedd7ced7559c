# SPDX-License-Identifier: Apache-2.0
"""How far a reconstruction is from the known poses of its slices, and from the known volume."""

import numpy as np
from scipy import ndimage

from gsbids.imaging.stack import Stack
from gsbids.recon.motion import best_rigid
from gsbids.recon.svr.result import SvrResult
from gsbids.recon.volume.sample import sample_result

POINTS = 60  # of the brain in a slice, at which its error is measured
ROUNDS = 8  # of the robust alignment of all slices
NEAR = 2.0  # mm: errors from which on a slice loses its say in it


def slice_errors(
    result: SvrResult, transforms: list[np.ndarray], masks: list[np.ndarray], affines: list[np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Distances of slices from where they should be, after one rigid alignment of all.

    Parameters
    ----------
    result : SvrResult
    transforms : list of ndarray, (Z, 4, 4)
        True poses of every stack, scanner -> anatomy; NaN where they are not known.
    masks : list of ndarray, (X, Y, Z)
        Brain in which errors are measured.
    affines : list of ndarray, (4, 4)
        Of the stacks.

    Returns
    -------
    errors : ndarray, (S,)
        Mean distance (mm) over the brain in each slice of the fit; NaN where there is none or no truth.
    align : ndarray, (4, 4)
        Rigid, anatomy of the result -> true anatomy.
    """
    rng = np.random.default_rng(0)
    moves = result.motion.as_affines(result.nominal)
    row, found, true = [], [], []
    for s, (n, k) in enumerate(zip(result.stack_index, result.slice_index, strict=True)):
        index = np.argwhere(masks[n][:, :, k])
        if not len(index) or not np.isfinite(transforms[n][k]).all():
            continue
        index = index[rng.integers(len(index), size=POINTS)]
        world = np.c_[index, np.full(POINTS, k), np.ones(POINTS)] @ affines[n].T
        row += [s] * POINTS
        found.append((world @ moves[s].T)[:, :3])
        true.append((world @ transforms[n][k].T)[:, :3])
    row, found, true = np.array(row), np.concatenate(found), np.concatenate(true)
    weight, best = np.ones(len(row)), None
    starts = [np.ones(len(row))] + [(result.stack_index[row] == n).astype(float) for n in np.unique(result.stack_index)]
    for weight in starts:
        for _ in range(ROUNDS):
            if not weight.sum():
                break
            align = best_rigid(found, true, weight)
            away = np.linalg.norm(found @ align[:3, :3].T + align[:3, 3] - true, axis=1)
            errors = np.full(len(result.weight), np.nan)
            errors[np.unique(row)] = away.reshape(-1, POINTS).mean(1)
            weight = 1 / (1 + (errors[row] / NEAR) ** 2)
            merit = np.nanmedian(errors)
            if best is None or merit < best[0]:
                best = merit, errors, align
    return best[1], best[2]


def volume_in_truth(result: SvrResult, align: np.ndarray, affine: np.ndarray, shape) -> np.ndarray:
    """The volume of a result on the grid of the truth: the field is sampled there, nothing is interpolated."""
    return sample_result(result, np.linalg.inv(align) @ affine, shape)


def psnr(volume: np.ndarray, truth: np.ndarray, brain: np.ndarray, blur: float = 0.4) -> float:
    """Peak signal to noise (dB) in the brain, intensities fitted by a line; the peak is the truth's 99th percentile."""
    inside = ndimage.binary_erosion(brain, iterations=2)
    a, b = volume[inside].astype(float), ndimage.gaussian_filter(truth, blur)[inside].astype(float)
    slope, offset = np.polyfit(a, b, 1)
    error = np.mean((slope * a + offset - b) ** 2)
    return float(10 * np.log10(np.percentile(b, 99) ** 2 / max(error, 1e-12)))


def masked(stack: Stack, mask: np.ndarray) -> Stack:
    """A stack with another mask."""
    return Stack(stack.name, stack.image, mask, stack.affine, stack.thickness)
