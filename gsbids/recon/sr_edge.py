# SPDX-License-Identifier: Apache-2.0
"""The edge of a volume that was cut out by a mask: what the voxels between tissue and nothing most likely were.

Super-resolution makes a ramp of a cut, and most of its squared error lies there. What a voxel on such a ramp was can
be learned from the volume itself: it is taken for a fine one that ends at a cut, made coarse, and reconstructed; how
the values on that ramp go with the truth (its expectation, given the value) is the curve for the real one.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy import ndimage, optimize

from gsbids.recon.interpolation import interpolate
from gsbids.recon.sampling_operator import AxisGrid
from gsbids.recon.sr_problem import SrProblem

NEAR = 1.0  # coarse voxels: standard deviation of the averages of the tissue next to the edge
LEAST_NEAR = 1e-3  # share of such an average that must be tissue
CUT, LEAST_TISSUE = 0.2, 0.4  # of the tissue nearby: voxels under the first count as outside, the others as the second
LEAST_VOXELS = 500  # on the ramp of the copy: with less there is no curve
RAMP, HALF = (0.1, 1.1), 0.5  # shares of the tissue nearby that a ramp goes through, and its lower half
# By how much more of the volume's ramp may lie in the lower half than of the copy's, both in the linear solution. Cut
# volumes have -0.05 to -0.02, the same with soft ends 0.03 to 0.06, a T1w brain in dark fluid 0.02 and 0.08; all gain.
MOST_APART = 0.1


@dataclass(frozen=True)
class CutCopy:
    """The coarse volume as if it were a fine one that was cut out, made coarse by the same factors.

    Attributes
    ----------
    problem : SrProblem
        To make a fine volume again of what was made coarse.
    truth : ndarray, fine shape of the problem, float32
        What should come out: its edge is tissue or nothing.
    """

    problem: SrProblem
    truth: np.ndarray


@dataclass(frozen=True)
class EdgeCurve:
    """Expected value of a voxel on the ramp, both in shares of the tissue nearby; the identity above the last.

    Attributes
    ----------
    shown, expected : ndarray, (K,)
        Ascending.
    """

    shown: np.ndarray
    expected: np.ndarray

    def __call__(self, share: np.ndarray) -> np.ndarray:
        """Expected shares."""
        return np.where(share < self.shown[-1], np.interp(share, self.shown, self.expected), share)


def at_edge(problem: SrProblem) -> tuple[np.ndarray, np.ndarray]:
    """Intensity of the tissue nearby, and which fine voxels may be on the ramp: both of the fine shape."""
    deep, level, share = _tissue(problem)
    known = interpolate(share, problem.axes, "linear") > LEAST_NEAR
    well_inside = interpolate(deep.astype(np.float32), problem.axes, "nearest") > 0.5
    return np.maximum(interpolate(level, problem.axes, "linear"), 1e-3), problem.fine_inside & ~well_inside & known


def sharpen_edge(problem: SrProblem, fine: np.ndarray, curve: EdgeCurve) -> np.ndarray:
    """The volume with the expected values on its ramp.

    Parameters
    ----------
    problem : SrProblem
    fine : ndarray
        True to the data.
    curve : EdgeCurve
    """
    level, edge = at_edge(problem)
    return np.where(edge, level * curve(np.maximum(fine, 0) / level), fine).astype(np.float32)


def cut_copy(problem: SrProblem) -> CutCopy | None:
    """The cut copy of a volume; None where it has no background, or too little edge."""
    if problem.filled.all():
        return None
    deep, level, near = _tissue(problem)
    edge = problem.filled & ~deep & (near > LEAST_NEAR)
    share = problem.coarse / np.maximum(level, 1e-3)
    tissue = np.where(edge, np.maximum(problem.coarse, LEAST_TISSUE * level), problem.coarse)
    truth = np.where(problem.filled & ~(edge & (share < CUT)), tissue, 0).astype(np.float32)
    axes = tuple(AxisGrid.same_extent(max(1, round(axis.coarse * axis.step)), axis.coarse) for axis in problem.axes)
    copy = SrProblem.pose(np.zeros([a.coarse for a in axes], np.float32), axes, problem.options)
    copy = SrProblem.pose(copy.operator(truth), axes, problem.options)
    enough = not copy.filled.all() and min(copy.filled.sum(), at_edge(copy)[1].sum()) >= LEAST_VOXELS
    return CutCopy(copy, truth) if enough else None


def ends_at_cut(problem: SrProblem, copy: CutCopy, linear: Callable[[SrProblem], np.ndarray]) -> bool:
    """Whether the ramp of a volume looks like that of its cut copy: else it ends softly, or in the dark.

    Parameters
    ----------
    problem : SrProblem
        Nothing hidden.
    copy : CutCopy
    linear : callable
        From a problem to its linear solution.
    """
    own, its = (_lower_half(_on_ramp(p, linear(p))[0]) for p in (problem, copy.problem))
    return own < its + MOST_APART


def learn_edge(copy: CutCopy, reconstruct: Callable[[SrProblem], np.ndarray]) -> EdgeCurve | None:
    """The curve of a volume, from its cut copy.

    Parameters
    ----------
    copy : CutCopy
    reconstruct : callable
        From a problem to a fine volume that is true to its data.

    Returns
    -------
    EdgeCurve or None
        None where no value on the ramp is what it seems to be.
    """
    shown, level = _on_ramp(copy.problem, reconstruct(copy.problem))
    true, _ = _on_ramp(copy.problem, copy.truth)
    order = np.argsort(shown, kind="stable")
    return _in_knots(shown[order], optimize.isotonic_regression(true[order], weights=level[order] ** 2).x)


def _on_ramp(problem: SrProblem, fine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Shares of the tissue nearby on the ramp, and the intensity of that tissue."""
    level, edge = at_edge(problem)
    return np.clip(fine[edge] / level[edge], 0, RAMP[1]), level[edge]


def _lower_half(share: np.ndarray) -> float:
    """Share of the values on the ramp that are in its lower half."""
    ramp = share[(share > RAMP[0]) & (share < RAMP[1])]
    return float((ramp < HALF).mean()) if len(ramp) else 1.0


def _in_knots(shown: np.ndarray, expected: np.ndarray) -> EdgeCurve | None:
    """A curve of few knots, up to where tissue is what it seems to be: above, it has no say."""
    knots = np.linspace(0, 1, 21)
    curve = np.interp(knots, shown, ndimage.uniform_filter1d(expected, max(1, len(expected) // 200), mode="nearest"))
    above = np.flatnonzero((curve >= knots) & (knots >= CUT))
    if not len(above):
        return None
    below = np.flatnonzero((curve < knots) & (knots > knots[above[0]]))
    last = below[0] if len(below) else len(knots) - 1
    return EdgeCurve(knots[:last + 1], np.append(np.minimum(curve[:last], knots[last]), knots[last]))


def _tissue(problem: SrProblem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coarse voxels without background around, the mean of those nearby, and how much of that there is."""
    deep = ndimage.binary_erosion(problem.filled, border_value=1)
    share = ndimage.gaussian_filter(deep.astype(np.float32), NEAR)
    total = ndimage.gaussian_filter(np.where(deep, problem.coarse, 0).astype(np.float32), NEAR)
    return deep, total / np.maximum(share, 1e-6), share
