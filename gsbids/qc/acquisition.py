# SPDX-License-Identifier: Apache-2.0
"""Acquisition order of the slices of a stack: by their times, or as their motion suggests."""

from dataclasses import dataclass

import numpy as np

MOST_PASSES = 4  # of an interleaved order that are looked for in the motion
CLEARER = 0.7  # of the steps in array order: an interleaved order is presumed where its steps are smaller
MOVED = 0.3  # mm: where slices hardly move, motion tells no order
LEVER = 0.5  # mm that a degree moves the brain by, about
LEAST_SLICES = 4  # of a pass: fewer show no pattern


@dataclass(frozen=True)
class SliceOrder:
    """Order of the K slices of a stack.

    Attributes
    ----------
    moment : ndarray, (K,)
        Time of acquisition of each: seconds, or its place in the order.
    passes : ndarray, (K,), int
        Pass of the interleaving that each belongs to, from 0.
    label : str
        Label of ``moment``, for an axis.
    words : str
        Origin of the order.
    known : bool
        Whether it comes from ``SliceTiming``.
    """

    moment: np.ndarray
    passes: np.ndarray
    label: str
    words: str
    known: bool = False

    @property
    def interleaved(self) -> bool:
        """Whether slices that follow one another in time are no neighbours."""
        return bool(self.passes.any())

    @property
    def sequence(self) -> np.ndarray:
        """Places (K,) of the slices in the order of their acquisition."""
        return np.argsort(self.moment, kind="stable")


def slice_order(
    index: np.ndarray, used: np.ndarray, motion: np.ndarray, times: tuple[float, ...] | None = None
) -> SliceOrder:
    """Return the order of a stack's slices.

    Parameters
    ----------
    index : ndarray, (K,), int
        Slice indices, ascending.
    used : ndarray, (K,), bool
        Slices whose motion is reliable.
    motion : ndarray, (K, 6)
        Shift (mm) and rotation (degrees) of every slice.
    times : tuple of float, optional
        Acquisition time (s) by slice index. Without, slices that lie n apart are taken for neighbours in time where
        their motion is much smoother so: breathing and the child move on between the passes of an interleaved stack.
    """
    if times is not None and len(times) > max(index, default=0):
        moment = np.array([times[k] for k in index], float)
        passes = _passes_of(index, moment)
        words = "from SliceTiming" + (f", {passes.max() + 1} passes" if passes.any() else "")
        return SliceOrder(moment, passes, "acquisition time (s)", words, known=True)
    count = presumed_passes(index, used, motion)
    passes = (index - index.min(initial=0)) % count
    moment = np.empty(len(index))
    moment[np.lexsort((index, passes))] = np.arange(len(index))
    if count == 1:
        return SliceOrder(
            moment,
            passes,
            "slice (position in the stack)",
            "no SliceTiming, and the motion shows no interleaving: order of position",
        )
    return SliceOrder(
        moment,
        passes,
        "presumed place in time",
        f"presumed: no SliceTiming, but the motion is smoothest in {count} passes",
    )


def presumed_passes(index: np.ndarray, used: np.ndarray, motion: np.ndarray) -> int:
    """Return the number of passes of an interleaved acquisition as the motion suggests it; 1 where it suggests none."""
    place = np.asarray(motion, float) * [1, 1, 1, LEVER, LEVER, LEVER]
    where = {int(k): p for k, p, good in zip(index, place, used, strict=True) if good}

    def step(apart: int) -> float:
        sizes = [np.linalg.norm(where[k + apart] - p) for k, p in where.items() if k + apart in where]
        return float(np.median(sizes)) if len(sizes) >= LEAST_SLICES else np.inf

    own = step(1)
    if not MOVED < own < np.inf:
        return 1
    # A slice far away has moved on: of two that are about as near, the one of fewer passes is meant.
    steps = {n: step(n) for n in range(2, MOST_PASSES + 1) if len(where) >= n * LEAST_SLICES}
    best = min(steps, key=lambda n: (round(steps[n] / own, 1), n), default=1)
    return best if best > 1 and steps[best] < CLEARER * own else 1


def _passes_of(index: np.ndarray, moment: np.ndarray) -> np.ndarray:
    """Return the passes of known times: one ends where the order turns back."""
    times, group = np.unique(moment, return_inverse=True)  # slices acquired at once belong together
    first = np.full(len(times), np.iinfo(int).max)
    np.minimum.at(first, group, index)
    steps = np.sign(np.diff(first))
    forward = -1 if (steps < 0).sum() > (steps > 0).sum() else 1
    return np.concatenate([[0], np.cumsum(steps == -forward)]).astype(int)[group]
