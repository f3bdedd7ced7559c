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
CUT, LEAST_TISSUE = 0.3, 0.6  # of the tissue nearby: voxels under the first count as outside, the others as the second
LEAST_VOXELS = 500  # on the ramp of the copy: with less there is no curve
RAMP, HALF = (0.1, 1.1), 0.5  # shares of the tissue nearby that a ramp goes through, and its lower half
# By how much more of the volume's ramp may lie in the lower half than of the copy's: an atlas that is cut out has 0.00
# and 0.06, the same with a soft end 0.14 and 0.16.
LEAST_ALIKE = 0.1


@dataclass(frozen=True)
class EdgeCurve:
    """Expected value of a voxel on the ramp, both in shares of the tissue nearby; the identity above the last.

    Attributes
    ----------
    shown, expected : ndarray, (K,)
        Ascending.
    lower_half : float
        Share of the ramp's voxels with less than half of the tissue's intensity, in the copy.
    """

    shown: np.ndarray
    expected: np.ndarray
    lower_half: float

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


def ends_at_cut(problem: SrProblem, fine: np.ndarray, curve: EdgeCurve) -> bool:
    """Whether the ramp of a volume looks like that of its cut copy: else it ends softly, or in the dark."""
    level, edge = at_edge(problem)
    return _lower_half(fine[edge] / level[edge]) < curve.lower_half + LEAST_ALIKE


def learn_edge(problem: SrProblem, reconstruct: Callable[[SrProblem], np.ndarray]) -> EdgeCurve | None:
    """The curve of a volume, from a copy of itself that is coarser by the same factors.

    Parameters
    ----------
    problem : SrProblem
        Nothing hidden.
    reconstruct : callable
        From a problem to a fine volume that is true to its data.

    Returns
    -------
    EdgeCurve or None
        None where there is no background, or too little edge.
    """
    if problem.filled.all():
        return None
    truth = _cut_copy(problem)
    axes = tuple(AxisGrid.same_extent(max(1, round(axis.coarse * axis.step)), axis.coarse) for axis in problem.axes)
    copy = SrProblem.pose(np.zeros([a.coarse for a in axes], np.float32), axes, problem.options)
    copy = SrProblem.pose(copy.operator(truth), axes, problem.options)
    if copy.filled.all() or copy.filled.sum() < LEAST_VOXELS:
        return None
    level, edge = at_edge(copy)
    if edge.sum() < LEAST_VOXELS:
        return None
    found, weight = reconstruct(copy), level[edge] ** 2
    shown = np.clip(found[edge] / level[edge], 0, RAMP[1])
    order = np.argsort(shown, kind="stable")
    expected = optimize.isotonic_regression((truth[edge] / level[edge])[order], weights=weight[order]).x
    return _in_knots(shown[order], expected, _lower_half(shown))


def _lower_half(share: np.ndarray) -> float:
    """Share of the values on the ramp that are in its lower half."""
    ramp = share[(share > RAMP[0]) & (share < RAMP[1])]
    return float((ramp < HALF).mean()) if len(ramp) else 1.0


def _in_knots(shown: np.ndarray, expected: np.ndarray, lower_half: float) -> EdgeCurve | None:
    """A curve of few knots, up to where tissue is what it seems to be: above, it has no say."""
    knots = np.linspace(0, 1, 21)
    curve = np.interp(knots, shown, ndimage.uniform_filter1d(expected, max(1, len(expected) // 200), mode="nearest"))
    above = np.flatnonzero((curve >= knots) & (knots >= CUT))
    if not len(above):
        return None
    below = np.flatnonzero((curve < knots) & (knots > knots[above[0]]))
    last = below[0] if len(below) else len(knots) - 1
    return EdgeCurve(knots[:last + 1], np.append(curve[:last], knots[last]), lower_half)


def _tissue(problem: SrProblem) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Coarse voxels without background around, the mean of those nearby, and how much of that there is."""
    deep = ndimage.binary_erosion(problem.filled, border_value=1)
    share = ndimage.gaussian_filter(deep.astype(np.float32), NEAR)
    total = ndimage.gaussian_filter(np.where(deep, problem.coarse, 0).astype(np.float32), NEAR)
    return deep, total / np.maximum(share, 1e-6), share


def _cut_copy(problem: SrProblem) -> np.ndarray:
    """The coarse volume as if it had been cut out: its edge is tissue or nothing."""
    deep, level, near = _tissue(problem)
    edge = problem.filled & ~deep & (near > LEAST_NEAR)
    share = problem.coarse / np.maximum(level, 1e-3)
    tissue = np.where(edge, np.maximum(problem.coarse, LEAST_TISSUE * level), problem.coarse)
    return np.where(problem.filled & ~(edge & (share < CUT)), tissue, 0).astype(np.float32)
