# SPDX-License-Identifier: Apache-2.0
"""Geometry of stacks: the axis that counts slices, and the position of every slice in the world."""

from collections.abc import Sequence

import numpy as np

from gsbids.errors import InputError


def slice_axis(shape: Sequence[int], affine: np.ndarray, slice_encoding_direction: str | None = None) -> int:
    """Find the array axis that counts slices.

    Parameters
    ----------
    shape : tuple of int
        (X, Y, Z).
    affine : ndarray, (4, 4)
    slice_encoding_direction : str, optional
        BIDS ``SliceEncodingDirection``: ``i``, ``j`` or ``k``, with or without ``-``. Without it
        the axis of the largest spacing counts slices, and the third where spacings are alike.

    Returns
    -------
    int
        0, 1 or 2.

    Raises
    ------
    gsbids.errors.InputError
        ``slice_encoding_direction`` is not a BIDS direction.

    Examples
    --------
    >>> slice_axis((20, 256, 256), np.diag([3.0, 1.0, 1.0, 1.0]))
    0
    >>> slice_axis((20, 256, 256), np.diag([3.0, 1.0, 1.0, 1.0]), "k-")
    2
    >>> slice_axis((64, 64, 64), np.eye(4))
    2
    """
    if slice_encoding_direction is not None:
        letter = str(slice_encoding_direction).strip().lower().rstrip("-")
        if letter not in ("i", "j", "k"):
            raise InputError(
                f"SliceEncodingDirection is {slice_encoding_direction!r}; "
                "i, j or k, with or without '-', is expected: correct the sidecar"
            )
        return "ijk".index(letter)
    if shape[2] == 1:
        return 2
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    largest = int(np.argmax(spacing))
    # Converters put slices on the third axis: only a clearly larger spacing says otherwise.
    return largest if spacing[largest] > 1.1 * spacing[2] else 2


def conform(data: np.ndarray, affine: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Move the slice axis to third place by permuting axes; no voxel is interpolated.

    Parameters
    ----------
    data : ndarray, (X, Y, Z)
    affine : ndarray, (4, 4)
    axis : int
        Axis that counts slices.

    Returns
    -------
    data : ndarray
        The same voxels, contiguous, slices along the third axis.
    affine : ndarray, (4, 4)
        Affine of these voxels: every one keeps its position in the world.
    """
    order = [k for k in range(3) if k != axis] + [axis]
    permuted = np.array(affine, dtype=np.float64)
    permuted[:, :3] = affine[:, order]
    return np.ascontiguousarray(np.transpose(data, order)), permuted


def slice_frames(affine: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Return a right-handed orthonormal frame and the centre of every slice.

    Parameters
    ----------
    affine : ndarray, (4, 4)
        Voxel indices to world RAS+ mm. It may be left-handed, and its third axis may be oblique to
        the slices.
    shape : tuple of int
        (X, Y, Z), slices along the third axis.

    Returns
    -------
    rotation : ndarray, (Z, 3, 3)
        Columns: direction of array axis 0, of array axis 1, and their cross product (slice normal).
    centre : ndarray, (Z, 3)
        World position (mm) of index ((X - 1) / 2, (Y - 1) / 2, k).

    Raises
    ------
    gsbids.errors.InputError
        The two in-plane axes are more than 1 degree from orthogonal.
    """
    row, column = (affine[:3, k] / np.linalg.norm(affine[:3, k]) for k in (0, 1))
    off = np.degrees(np.arcsin(np.clip(abs(row @ column), 0.0, 1.0)))
    if off > 1.0:
        raise InputError(
            f"the in-plane axes of the affine are {off:.1f} degrees from orthogonal, at most "
            "1 is expected: correct the header or resample the stack"
        )
    # Bisectors of two unit vectors are orthogonal: turns both axes by the same small angle.
    sum_, difference = row + column, row - column
    sum_, difference = sum_ / np.linalg.norm(sum_), difference / np.linalg.norm(difference)
    row, column = (sum_ + difference) / np.sqrt(2.0), (sum_ - difference) / np.sqrt(2.0)
    frame = np.stack([row, column, np.cross(row, column)], axis=1)
    count = int(shape[2])
    index = np.empty((count, 4))
    index[:, 0], index[:, 1] = (shape[0] - 1) / 2.0, (shape[1] - 1) / 2.0
    index[:, 2], index[:, 3] = np.arange(count), 1.0
    return np.tile(frame, (count, 1, 1)), (index @ affine.T)[:, :3]
