# SPDX-License-Identifier: Apache-2.0
"""A stack of slices in memory: what every step after the files works on."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stack:
    """One stack of 2D slices, slices along the third array axis.

    Attributes
    ----------
    name : str
        Short name for messages and tables, for example ``run-1``.
    image : ndarray, (X, Y, Z), float32
        Finite, non-negative intensities.
    mask : ndarray, (X, Y, Z), bool
        Brain mask on the same grid.
    affine : ndarray, (4, 4), float64
        Voxel indices to world RAS+ millimetres.
    thickness : float
        Slice thickness in mm: full width at half maximum of the slice profile.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    thickness: float

    @property
    def spacing(self) -> np.ndarray:
        """Distances between neighbouring voxels along the three array axes, (3,), mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)
