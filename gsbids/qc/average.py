# SPDX-License-Identifier: Apache-2.0
"""The reference without motion correction: the plain average of the stacks."""

from collections.abc import Iterable

import numpy as np
from scipy import ndimage


def plain_average(
    stacks: Iterable[tuple[np.ndarray, np.ndarray, np.ndarray | None]], affine: np.ndarray, shape: tuple[int, int, int]
) -> np.ndarray:
    """Average the stacks at their scanner positions, on one grid.

    Every stack is divided by its median inside its mask, brought to the grid by linear interpolation, and counts where
    its field of view reaches.

    Parameters
    ----------
    stacks : iterable of (ndarray (X, Y, Z), ndarray (4, 4), ndarray (X, Y, Z) bool or None)
        Image, affine and brain mask of each; one stack is in memory at a time.
    affine, shape
        Affine and shape of the grid.

    Returns
    -------
    ndarray, shape, float32
        1 is a typical intensity of the brain; 0 where no stack reaches.
    """
    total, seen = np.zeros((2, *shape), np.float32)
    for image, own, mask in stacks:
        inside = image[mask] if mask is not None and mask.any() else image[image > 0]
        level = float(np.median(inside)) if inside.size else 0.0
        if level <= 0:
            continue
        index = np.linalg.inv(own) @ affine
        where = {"matrix": index[:3, :3], "offset": index[:3, 3], "output_shape": shape, "order": 1}
        total += ndimage.affine_transform(image.astype(np.float32) / level, **where)
        seen += ndimage.affine_transform(np.ones(image.shape, np.float32), **where)
    return np.divide(total, seen, out=np.zeros_like(total), where=seen > 0.5)
