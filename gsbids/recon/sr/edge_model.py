# SPDX-License-Identifier: Apache-2.0
"""Prediction of a voxel at the edge of tissue from its surroundings, by boosted trees."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from gsbids.recon.sr.problem import SrProblem

AROUND = tuple(product((-1, 0, 1), repeat=3))  # offsets in voxels: the voxel and its 26 neighbours
BEYOND = tuple(tuple(int(s) for s in way) for way in 2 * np.vstack([np.eye(3), -np.eye(3)]).astype(int))
REACH = 2  # voxels, of the farthest of these
TREES, RATE, LEAST_LEAF, PULL = 100, 0.15, 40, 1.0  # boosted trees, learning rate, voxels of a leaf, L2 penalty


@dataclass(frozen=True)
class EdgeModel:
    """Model of the expected share of the tissue nearby that a voxel has.

    Attributes
    ----------
    trees : sklearn.ensemble.HistGradientBoostingRegressor
    threads : int
    """

    trees: Any
    threads: int

    def __call__(self, seen: np.ndarray) -> np.ndarray:
        """Return the expected shares, of rows of :func:`describe`."""
        with _at_most(self.threads):
            return self.trees.predict(seen).astype(np.float32)


def describe(problem: SrProblem, fine: np.ndarray, level: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """Describe the surroundings of the voxels of an edge, as shares of the tissue nearby.

    Surroundings are mirrored, so that the middle of the coarse voxel always lies on the same side: 27 fine voxels, six
    two voxels away, the 27 coarse ones, and the distance of the voxel from the middle of its own.

    Parameters
    ----------
    problem : SrProblem
    fine, level : ndarray, fine shape
    edge : ndarray of bool, fine shape

    Returns
    -------
    ndarray, (voxels of the edge, 63), float32
    """
    at = np.argwhere(edge)
    places = [axis.positions[index] for axis, index in zip(problem.axes, at.T, strict=True)]
    own = np.stack(
        [
            np.clip(np.rint(place), 0, axis.coarse - 1).astype(int)
            for place, axis in zip(places, problem.axes, strict=True)
        ],
        1,
    )
    aside = np.stack(places, 1) - own
    side = np.where(aside < -1e-6, -1, 1)
    around = [_values(fine, at, side, AROUND + BEYOND), _values(problem.coarse, own, side, AROUND)]
    return np.hstack([np.concatenate(around, 1) / level[edge][:, None], np.abs(aside)]).astype(np.float32)


def train(seen: np.ndarray, true: np.ndarray, weight: np.ndarray, seed: int, threads: int) -> EdgeModel:
    """Train boosted trees for the weighted squared error.

    Parameters
    ----------
    seen : ndarray, (N, 63)
        Rows of :func:`describe`.
    true, weight : ndarray, (N,)
        Shares, and the weight of an error of each.
    seed, threads : int
    """
    from sklearn.ensemble import HistGradientBoostingRegressor  # not on a bare GPU machine, which fits no edges

    trees = HistGradientBoostingRegressor(
        max_iter=TREES,
        learning_rate=RATE,
        min_samples_leaf=LEAST_LEAF,
        l2_regularization=PULL,
        early_stopping=False,
        random_state=seed,
    )
    with _at_most(threads):
        return EdgeModel(trees.fit(seen, true, sample_weight=weight), threads)


def _at_most(threads: int) -> Any:
    from threadpoolctl import threadpool_limits  # comes with scikit-learn

    return threadpool_limits(threads)


def _values(volume: np.ndarray, at: np.ndarray, side: np.ndarray, offsets: Sequence[tuple[int, ...]]) -> np.ndarray:
    """Return values at offsets from voxels, each axis mirrored by its side, (N, offsets)."""
    padded = np.pad(volume, REACH, mode="edge")
    return np.stack([padded[tuple((at + REACH + side * np.array(offset)).T)] for offset in offsets], 1)
