# SPDX-License-Identifier: Apache-2.0
"""Prior of slice poses from neighbouring slices: slices with little brain in them are tied to them."""

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.motion import RigidMotion

OFFSETS = (-2, -1, 1, 2)  # places away; in interleaved stacks those two places away were acquired next in time
ARM = 20.0  # mm: rotations count as the shift of a point so far from the slice's origin
LEAST_VARIANCE = 0.01  # mm2


def tangents(motion: RigidMotion, other: RigidMotion) -> np.ndarray:
    """Return the steps (omega, tau) of the slice frames from ``motion`` to ``other``, (S, 6): rad and mm."""
    back = np.swapaxes(motion.rotation, 1, 2)
    omega = Rotation.from_matrix(back @ other.rotation).as_rotvec()
    return np.concatenate([omega, np.einsum("sij,sj->si", back, other.translation - motion.translation)], 1)


def lengths(steps: np.ndarray) -> np.ndarray:
    """Return the lengths (mm) of steps (S, 6), rotations counted at the end of the arm, (S,)."""
    return np.hypot(ARM * np.linalg.norm(steps[:, :3], axis=1), np.linalg.norm(steps[:, 3:], axis=1))


@dataclass(frozen=True)
class Pull:
    """Prior of the poses: ``(xi - step)^T P (xi - step) / 2``, P diagonal, xi a step of the slice frame.

    Attributes
    ----------
    expected : RigidMotion
        Poses that slices would have by their neighbours.
    stiffness : ndarray, (6,)
        Diagonal of P, the same for all slices: those full of brain hardly feel it, slivers go with their neighbours.
    """

    expected: RigidMotion
    stiffness: np.ndarray

    def normal_equations(self, motion: RigidMotion) -> tuple[np.ndarray, np.ndarray]:
        """Return P (6, 6) and P step (S, 6), to be added to those of the data."""
        return np.diag(self.stiffness), self.stiffness * tangents(motion, self.expected)

    def cost(self, motion: RigidMotion) -> np.ndarray:
        """Return the value of the prior, (S,)."""
        return (self.stiffness * tangents(motion, self.expected) ** 2).sum(1) / 2


def pull_of(motion: RigidMotion, slices: SliceSet, stiffness: np.ndarray) -> Pull:
    """Return the pull of every slice to the mean motion of its neighbours as they are now.

    Neighbours one and two places away count by how alike the motion of large slices so far apart is: in interleaved
    stacks the second is closer in time than the first. A slice without neighbours is left where it is.
    """
    corrections = motion.as_affines(slices.start)
    large = slices.mask.sum((1, 2)) >= np.median(slices.mask.sum((1, 2)))
    steps, weights = [], []
    for offset in OFFSETS:
        row = slices.neighbour(offset)
        step = tangents(motion, slices.start.moved(corrections[row]))
        there = row != np.arange(len(slices))
        size = ((ARM * step[:, :3]) ** 2 + step[:, 3:] ** 2).sum(1)
        typical = np.median(size[there & large]) if (there & large).any() else np.inf
        steps.append(step)
        weights.append(there / (typical + LEAST_VARIANCE))
    weights = np.array(weights)[..., None]  # type: ignore[assignment]
    step = (weights * np.array(steps)).sum(0) / np.maximum(weights.sum(0), 1e-12)  # type: ignore[attr-defined]
    return Pull(motion.step(step[:, :3], step[:, 3:]), stiffness)
