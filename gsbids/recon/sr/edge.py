# SPDX-License-Identifier: Apache-2.0
"""The edge of a volume that was cut out by a mask: what the voxels between tissue and nothing most likely were.

Super-resolution makes a ramp of a cut, and most of its squared error lies there. What stood where there is a ramp is
learned from the volume itself: its edge is made a cut, the cut volume is put aside by single fine voxels, so that the
coarse voxels divide it otherwise, made coarse, and solved for linearly. What comes of it beside what it was made of
teaches how to tell a voxel from its surroundings (:mod:`gsbids.recon.sr.edge_model`).
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
DIVIDED = (0.05, 0.95)  # shares of tissue in the coarse voxels that tell how bright the outermost voxels are
LEAST_VOXELS = 2000  # on the ramp of a copy: with less there is nothing to learn from
ENOUGH_VOXELS = 300_000  # on the ramps of all copies: no more are made
BRIGHTEST = 1.5  # of the tissue nearby
# How much worse than its copy a volume may be explained by a sharp edge. Cut volumes have 1.0 to 1.4, with soft ends
# 1.9 to 2.9.
MOST_MISFIT = 1.65


@dataclass(frozen=True)
class CutCopy:
    """The volume with an edge that is a cut, put aside and made coarse as it was.

    Attributes
    ----------
    problem : SrProblem
        To make a fine volume again of what was made coarse.
    truth : ndarray, fine shape of the problem, float32
        What should come out.
    """

    problem: SrProblem
    truth: np.ndarray


def at_edge(problem: SrProblem) -> tuple[np.ndarray, np.ndarray]:
    """Intensity of the tissue nearby, and which fine voxels may be on the ramp: both of the fine shape."""
    deep = ndimage.binary_erosion(problem.filled, border_value=1)
    share = ndimage.gaussian_filter(deep.astype(np.float32), NEAR)
    total = ndimage.gaussian_filter(np.where(deep, problem.coarse, 0).astype(np.float32), NEAR)
    level = interpolate(total / np.maximum(share, 1e-6), problem.axes, "linear")
    known = interpolate(share, problem.axes, "linear") > LEAST_NEAR
    well_inside = interpolate(deep.astype(np.float32), problem.axes, "nearest") > 0.5
    return np.maximum(level, 1e-3), problem.fine_inside & ~well_inside & known


def cut_copies(problem: SrProblem, fine: np.ndarray) -> list[CutCopy]:
    """Copies of a volume whose edge is a cut; none where it has no background, or too little edge.

    None either where the profile is narrow: coarse voxels are then samples of single fine ones, and do not tell how
    much of what is around them is tissue.

    Parameters
    ----------
    problem : SrProblem
        Nothing hidden.
    fine : ndarray
        Its fine volume, true to the data.
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
    """The fine volume with nothing on its ramp but tissue and background.

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
    """How bright the outermost voxels of the tissue nearby are, by the coarse voxels that they fill in part."""
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
    """What a voxel on the ramp is, learned from copies.

    Parameters
    ----------
    copies : list of CutCopy
    linear : list of ndarray
        Linear solutions of their problems: they cost little, and the ramp of an elaborate one tells no more.
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
    """The volume with the expected values on its ramp.

    Parameters
    ----------
    problem : SrProblem
    fine, linear : ndarray
        The volume, and the linear solution, which the model knows.
    model : EdgeModel
    """
    level, edge = at_edge(problem)
    out = fine.copy()
    out[edge] = level[edge] * np.clip(model(describe(problem, linear, level, edge)), 0, BRIGHTEST)
    return out


def explains(problem: SrProblem, sharp: np.ndarray, copy: CutCopy, its: np.ndarray) -> bool:
    """Whether a volume with a sharp edge explains its data about as well as a copy, which has such an edge, does.

    Parameters
    ----------
    problem : SrProblem
    sharp : ndarray
        From :func:`sharpen_edge`.
    copy : CutCopy
    its : ndarray
        The same of the copy.
    """
    return _misfit(problem, sharp) < MOST_MISFIT * _misfit(copy.problem, its)


def _shifts(problem: SrProblem, draw: np.random.Generator) -> list[tuple[int, int, int]]:
    """Fine voxels to put a copy aside by: all that divide it otherwise, in random order."""
    phases = [range(1 if axis.step == 1 else max(2, round(1 / axis.step))) for axis in problem.axes]
    shifts = [shift for shift in product(*phases) if any(shift)]
    return [shifts[i] for i in draw.permutation(len(shifts))]


def _put_aside(volume: np.ndarray, shift: tuple[int, int, int]) -> np.ndarray:
    """The volume moved by whole voxels; its first planes are repeated."""
    return volume[np.ix_(*(np.maximum(np.arange(n) - s, 0) for n, s in zip(volume.shape, shift, strict=True)))]


def _misfit(problem: SrProblem, fine: np.ndarray) -> float:
    """Root mean squared residual at the coarse voxels next to the background, over their root mean square."""
    rim = problem.filled & ~ndimage.binary_erosion(problem.filled, border_value=1)
    miss = (problem.operator(fine) - problem.coarse)[rim]
    return float(np.sqrt(np.mean(miss**2) / np.mean(problem.coarse[rim] ** 2)))
