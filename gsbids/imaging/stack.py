# SPDX-License-Identifier: Apache-2.0
"""A stack of slices in memory, on which every step after the reading of files works."""

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class Stack:
    """One stack of 2D slices, slices along the third array axis.

    Attributes
    ----------
    name : str
        Short name for messages and tables, for example ``run-1``.
    image : ndarray, (X, Y, Z), float32
        Finite, non-negative intensities: those of the file less ``offset``.
    mask : ndarray, (X, Y, Z), bool
        Brain mask on the same grid.
    affine : ndarray, (4, 4), float64
        Voxel indices to world RAS+ millimetres.
    thickness : float
        Slice thickness in mm: full width at half maximum of the slice profile.
    offset : float
        Intensity of the file that is 0 in ``image``; 0 unless the brain has negative ones.
    empty : tuple of int
        Slices without information, which have no part in any fit whatever their mask.
    """

    name: str
    image: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    thickness: float
    offset: float = 0.0
    empty: tuple[int, ...] = ()

    @property
    def spacing(self) -> np.ndarray:
        """Distances between neighbouring voxels along the three array axes, (3,), mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)


def common_offset(stacks: list[Stack], scales: np.ndarray) -> float:
    """Return the intensity that is zero signal in the volume of N stacks: that of the stack of median scale.

    Parameters
    ----------
    stacks : list of Stack
    scales : ndarray, (N,)
        Intensity that stands for 1 in each of them; the volume has their median.
    """
    return stacks[int(np.argmin(np.abs(scales - np.median(scales))))].offset


def centred(stacks: list[Stack]) -> tuple[list[Stack], np.ndarray]:
    """Shift stacks so that positions are relative to the first voxel of the first one, to 0.01 mm.

    Headers hold positions in float32, which rounds them differently wherever the scanner's origin is. A fit takes
    another turn after the smallest difference: computed from these stacks, it does not depend on the origin.

    Parameters
    ----------
    stacks : list of Stack

    Returns
    -------
    list of Stack
    origin : ndarray, (3,)
        World RAS+ mm of their origin.
    """
    origin = np.array(stacks[0].affine[:3, 3], float)

    def moved(stack: Stack) -> Stack:
        affine = np.array(stack.affine, float)
        affine[:3, 3] = np.round(affine[:3, 3] - origin, 2)
        return replace(stack, affine=affine)

    return [moved(stack) for stack in stacks], origin


def seen_from(transforms: np.ndarray, origin: np.ndarray) -> np.ndarray:
    """Convert rigid transforms (..., 4, 4) of the world to positions that are relative to ``origin`` (3,) mm."""
    found = np.array(transforms, float)
    found[..., :3, 3] += found[..., :3, :3] @ origin - origin
    return found
