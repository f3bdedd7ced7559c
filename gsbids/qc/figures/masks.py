# SPDX-License-Identifier: Apache-2.0
"""Pictures of the brain masks of stacks: slices with the outline of the mask, cropped with a margin around it."""

import numpy as np

from gsbids.qc.figures.panels import Frame, StackView, middle_slices, plane_tile, square_box
from gsbids.qc.figures.tiles import Tile

AROUND = 18.0  # mm shown beyond the mask, so that brain which it misses is seen
SHARES = (0.2, 0.5, 0.8)  # of the extent of the mask through the slices
PIXELS = 200


def mask_tiles(view: StackView, depth: int) -> tuple[Tile, ...]:
    """Draw three slices of a stack as acquired, with the outline of the mask and its surroundings.

    Parameters
    ----------
    view : StackView
        Images of the stack.
    depth : int
        Number of slices of the stack.

    Returns
    -------
    tuple of Tile
    """
    mask = None if view.mask is None else np.moveaxis(view.mask, view.axis, 2)
    if mask is not None and view.image.flipped[view.axis]:
        mask = mask[:, :, ::-1]
    box = square_box(view.mask, view.image, view.axis, AROUND)
    frame = Frame(box, view.own_limits, round(PIXELS * view.detail))
    return tuple(
        plane_tile(
            view.image,
            view.plane_of(k),
            frame,
            f"Slice {k}",
            f"slice {k} as acquired, mask outlined",
            view.mask,
        )
        for k in middle_slices(mask, depth, SHARES)
    )
