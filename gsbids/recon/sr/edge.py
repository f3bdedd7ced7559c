# SPDX-License-Identifier: Apache-2.0
"""Sharp edge of a volume that was cut out by a mask: the most likely values between tissue and background.

Super-resolution makes a ramp of a cut, and most of its squared error lies there. The values on the ramp are learned
from the volume itself: its edge is made a cut, the cut volume is shifted by single fine voxels, so that the coarse
voxels divide it otherwise, downsampled, and solved for linearly. The pairs of solution and truth train a model that
predicts a voxel from its surroundings (:mod:`gsbids.recon.sr.edge_model`).
"""

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from scipy import ndimage

from gsbids.recon.sr.edge_model import EdgeModel, describe, train
from gsbids.recon.sr.interpolation import interpolate
from gsbids.recon.sr.problem import SrProblem

NEAR = 1.0  # coarse voxels: standard deviation of the averages of the tissue next to the edge
LEAST_NEAR = 1e-3  # share of such an average that must be tissue
SHARES = (0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55)  # of the tissue nearby, from which on a voxel may be tissue
ALMOST = 1.1  # of the least misfit
BORDER = 1.5  # coarse voxels: standard deviation of the averages of the outermost voxels
DIVIDED = (0.05, 0.95)  # shares of tissue in the coarse voxels from which the brightness of the outermost is estimated
LEAST_VOXELS = 2000  # on the ramp of a copy: with less there is nothing to learn from
ENOUGH_VOXELS = 300_000  # on the ramps of all copies: no more are made
BRIGHTEST = 1.5  # of the tissue nearby
# How much worse than its copy a volume may be explained by a sharp edge. Cut volumes have 1.0 to 1.4, with soft ends
# 1.9 to 2.9.
MOST_MISFIT = 1.65


@dataclass(frozen=True)
class CutCopy:
    """The volume with an edge that is a cut, shifted and downsampled as the data were.

    Attributes
    ----------
    problem : SrProblem
        Problem of reconstructing a fine volume from the downsampled one.
    truth : ndarray, fine shape of the problem, float32
        Fine volume that should come out.
    """

    problem: SrProblem
    truth: np.ndarray


def at_edge(problem: SrProblem) -> tuple[np.ndarray, np.ndarray]:
    """Return the intensity of the tissue nearby, and which fine voxels may be on the ramp: both of the fine shape."""
    deep = ndimage.binary_erosion(problem.filled, border_value=1)
    share = ndimage.gaussian_filter(deep.astype(np.float32), NEAR)
    total = ndimage.gaussian_filter(np.where(deep, problem.coarse, 0).astype(np.float32), NEAR)
    level = interpolate(total / np.maximum(share, 1e-6), problem.axes, "linear")
    known = interpolate(share, problem.axes, "linear") > LEAST_NEAR
    well_inside = interpolate(deep.astype(np.float32), problem.axes, "nearest") > 0.5
    return np.maximum(level, 1e-3), problem.fine_inside & ~well_inside & known


def cut_copies(problem: SrProblem, fine: np.ndarray) -> list[CutCopy]:
    """Make copies of a volume whose edge is a cut; none where it has no background, or too little edge.

    None either where the profile is narrow: coarse voxels are then samples of single fine ones, and do not tell how
    much of what is around them is tissue.

    Parameters
    ----------
    problem : SrProblem
        Problem without hidden voxels.
    fine : ndarray
        Fine volume of the problem, projected on the data.
    """
    if problem.filled.all() or problem.forward_model()[1] is None:
        return []
    truth = cut_volume(problem, fine)
    # Noise that the fine volume does not follow is in the data, and so in those of the copies.
    spread = np.float32(np.std((problem.coarse - problem.operator(fine))[problem.filled]))
    draw = np.random.default_rng(problem.options.seed)
    copies, voxels = [], 0
    for shift in _shifts(problem, draw):
        moved = _put_aside(truth, shift)
        coarse = problem.operator(moved)
        filled = coarse > 0
        coarse = coarse + np.where(filled, spread * draw.standard_normal(coarse.shape, np.float32), 0)
        copy = replace(problem, coarse=coarse, filled=filled)
        on_ramp = 0 if filled.all() else int(at_edge(copy)[1].sum())
        if on_ramp < LEAST_VOXELS:
            return []
        copies.append(CutCopy(copy, moved))
        voxels += on_ramp
        if voxels >= ENOUGH_VOXELS:
            break
    return copies


def cut_volume(problem: SrProblem, fine: np.ndarray) -> np.ndarray:
    """Make a fine volume that has nothing on its ramp but tissue and background.

    What exceeds a share of the tissue nearby is tissue. Its outermost voxels are as bright as it takes to make of
    them, where they fill coarse voxels in part, what these have. Of the shares, the largest with which the data are
    explained almost as well as with the best: that one lies a little low.
    """
    level, edge = at_edge(problem)
    cuts = [_cut_at(problem, fine, share, level, edge) for share in SHARES]
    misfits = np.array([_misfit(problem, cut) for cut in cuts])
    return cuts[np.flatnonzero(misfits <= ALMOST * misfits.min())[-1]]


def _cut_at(problem: SrProblem, fine: np.ndarray, share: float, level: np.ndarray, edge: np.ndarray) -> np.ndarray:
    tissue = fine > np.where(edge, share * level, 0)
    outermost = edge & ~ndimage.binary_erosion(tissue, border_value=1)
    bright = np.where(outermost, _border_level(problem, tissue, level), fine)
    return np.where(tissue, bright, 0).astype(np.float32)


def _border_level(problem: SrProblem, tissue: np.ndarray, level: np.ndarray) -> np.ndarray:
    """Return the brightness of the outermost voxels of the tissue, by the coarse voxels that they fill in part."""
    share = problem.operator(tissue.astype(np.float32))
    divided = (share > DIVIDED[0]) & (share < DIVIDED[1])
    has, fills = (
        ndimage.gaussian_filter(np.where(divided, of * share, 0), BORDER, mode="constant")
        for of in (problem.coarse, share)
    )
    border = has / np.maximum(fills, LEAST_NEAR)
    known = interpolate(fills, problem.axes, "linear") > LEAST_NEAR
    return np.where(known, interpolate(border, problem.axes, "linear"), level)


def learn_edge(copies: list[CutCopy], linear: list[np.ndarray]) -> EdgeModel:
    """Train a model of the voxels on the ramp from copies.

    Parameters
    ----------
    copies : list of CutCopy
    linear : list of ndarray
        Linear solutions of their problems: they are fast, and more elaborate ones have much the same ramp.
    """
    seen, true, weight = [], [], []
    for copy, fine in zip(copies, linear, strict=True):
        level, edge = at_edge(copy.problem)
        seen.append(describe(copy.problem, fine, level, edge))
        true.append(copy.truth[edge] / level[edge])
        weight.append(level[edge] ** 2)
    options = copies[0].problem.options
    return train(np.concatenate(seen), np.concatenate(true), np.concatenate(weight), options.seed, options.threads)


def sharpen_edge(problem: SrProblem, fine: np.ndarray, linear: np.ndarray, model: EdgeModel) -> np.ndarray:
    """Return the volume with the expected values on its ramp.

    Parameters
    ----------
    problem : SrProblem
    fine, linear : ndarray
        Volume to sharpen, and the linear solution, on which the model was trained.
    model : EdgeModel
    """
    level, edge = at_edge(problem)
    out = fine.copy()
    out[edge] = level[edge] * np.clip(model(describe(problem, linear, level, edge)), 0, BRIGHTEST)
    return out


def explains(problem: SrProblem, sharp: np.ndarray, copy: CutCopy, its: np.ndarray) -> bool:
    """Return whether a volume with a sharp edge explains its data about as well as a copy with such an edge does.

    Parameters
    ----------
    problem : SrProblem
    sharp : ndarray
        Volume from :func:`sharpen_edge`.
    copy : CutCopy
    its : ndarray
        Sharpened volume of the copy.
    """
    return _misfit(problem, sharp) < MOST_MISFIT * _misfit(copy.problem, its)


def _shifts(problem: SrProblem, draw: np.random.Generator) -> list[tuple[int, int, int]]:
    """Return shifts in fine voxels for the copies: all that divide it otherwise, in random order."""
    phases = [range(1 if axis.step == 1 else max(2, round(1 / axis.step))) for axis in problem.axes]
    shifts = [shift for shift in product(*phases) if any(shift)]
    return [shifts[i] for i in draw.permutation(len(shifts))]


def _put_aside(volume: np.ndarray, shift: tuple[int, int, int]) -> np.ndarray:
    """Shift the volume by whole voxels; its first planes are repeated."""
    return volume[np.ix_(*(np.maximum(np.arange(n) - s, 0) for n, s in zip(volume.shape, shift, strict=True)))]


def _misfit(problem: SrProblem, fine: np.ndarray) -> float:
    """Return the root mean squared residual next to the background, over the root mean square of the data there."""
    rim = problem.filled & ~ndimage.binary_erosion(problem.filled, border_value=1)
    miss = (problem.operator(fine) - problem.coarse)[rim]
    return float(np.sqrt(np.mean(miss**2) / np.mean(problem.coarse[rim] ** 2)))
