# SPDX-License-Identifier: Apache-2.0
"""The brain mask of a reconstruction by the shape of an atlas, which is deformed until it fits."""

from typing import Any

import numpy as np
from scipy import ndimage

from gsbids.imaging.bias import load_ants
from gsbids.imaging.masks import dice, largest_region
from gsbids.imaging.stack import Stack

AROUND = 2.0  # mm around the mask that the registration sees: masks by vote end 1 to 2 mm too early
AFFINE = (500, 300, 100, 0)  # iterations of the affine registration, coarse to fine
DEFORMED = (40, 20, 0)  # and of the deformation
SMOOTHNESS = (3.0, 0.0)  # standard deviations (voxels) of the update and of the whole deformation
SEED = 1  # of ANTs, which draws the voxels that it compares
LEAST_OVERLAP = 0.8  # Dice coefficient with the mask of the head, below which the atlas has not found the brain


def mask_by_atlas(
    head: Stack, atlas: Stack, start: np.ndarray, vote: np.ndarray, known: np.ndarray, grid: np.ndarray
) -> tuple[np.ndarray, float]:
    """Find the brain mask of a reconstruction by an atlas that is laid on it.

    Parameters
    ----------
    head, atlas, start
        See :func:`lay_atlas`.
    vote, known : ndarray, (X, Y, Z), bool
        Brain by the masks of the slices, and where the volume is known, on the grid of the volume.
    grid : ndarray, (4, 4)
        Affine of that grid, in the world of the head.

    Returns
    -------
    ndarray, (X, Y, Z), bool
        Nothing beyond what is known; the vote where the registration failed.
    float
        Dice coefficient with the vote; below :data:`LEAST_OVERLAP` the atlas has not found the brain.
    """
    try:
        inside = lay_atlas(head, atlas, start)
    except RuntimeError:  # of ANTs, where the two hardly touch
        return vote, 0.0
    back = np.linalg.inv(head.affine) @ grid
    values = ndimage.affine_transform(inside, back[:3, :3], back[:3, 3], output_shape=vote.shape, order=1)
    mask = ndimage.binary_fill_holes(largest_region((values > 0.5) & known))
    return mask, dice(mask, vote)


def lay_atlas(
    head: Stack,
    atlas: Stack,
    start: np.ndarray,
    around: float = AROUND,
    smoothness: tuple[float, float] | None = SMOOTHNESS,
) -> np.ndarray:
    """Lay the brain mask of an atlas on a head: affinely, then deformed.

    Parameters
    ----------
    head : Stack
        Isotropic, its image not masked, with about the mask of the brain.
    atlas : Stack
        A brain with its mask, of the same contrast.
    start : ndarray, (4, 4)
        World RAS+ mm of the atlas -> world of the head, where it lies about right and has about the size.
    around : float
        How far around its mask the head is looked at, in mm.
    smoothness : tuple of float, optional
        Standard deviations, in voxels, of the update and of the whole deformation; None: affine alone.

    Returns
    -------
    ndarray, (X, Y, Z), float32
        From 0 outside to 1 inside, on the grid of the head.
    """
    ants = load_ants()
    ants.config.set_ants_deterministic(True, SEED)
    back = np.linalg.inv(start @ atlas.affine) @ head.affine
    image, mask = (
        _as_ants(
            ndimage.affine_transform(
                each.astype(np.float32), back[:3, :3], back[:3, 3], output_shape=head.image.shape, order=1
            ),
            head.spacing,
        )
        for each in (atlas.image * atlas.mask, atlas.mask)
    )
    near = ndimage.distance_transform_edt(~head.mask, head.spacing) <= around
    fixed = _as_ants(np.where(near, head.image, 0), head.spacing)
    found = ants.registration(fixed, image, "Affine", initial_transform="Identity", aff_iterations=AFFINE)
    if smoothness:
        found = ants.registration(
            fixed,
            image,
            "SyNOnly",
            initial_transform=found["fwdtransforms"][0],
            reg_iterations=DEFORMED,
            flow_sigma=smoothness[0],
            total_sigma=smoothness[1],
        )
    return ants.apply_transforms(fixed, mask, found["fwdtransforms"]).numpy()


def _as_ants(image: np.ndarray, spacing: np.ndarray) -> Any:
    return load_ants().from_numpy(np.ascontiguousarray(image, np.float32), spacing=list(map(float, spacing)))
