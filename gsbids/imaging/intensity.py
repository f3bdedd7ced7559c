# SPDX-License-Identifier: Apache-2.0
"""Negative, shifted and empty intensities: background level, isolated bright voxels, empty slices."""

import logging
from pathlib import Path

import numpy as np

LOGGER = logging.getLogger("gsbids.imaging")

RARE = 0.01  # share of negative voxels up to which they are ringing or noise about 0
FEW = 0.1  # percent of the brain that may be darker than zero signal
AIR, CONSTANT = 1.0, 0.5  # percentile of an image that air has, and share of its faces from which on one value is none
BRIGHTEST, SPIKE = 99.9, 20.0  # percentile of what is not 0, and times it: brighter voxels are broken
TOLD = 4  # pixels of a slice from which on they may tell that it is empty; fewer have no part in a fit
EMPTY, USUAL = 0.01, 90  # share of the spread of intensities in the usual slice (percentile), below which one is empty


def darkest(image: np.ndarray, mask: np.ndarray) -> float:
    """Return the intensity that is zero signal in a brain with negative intensities; 0 where it has none.

    That is the intensity of air, where the image has any that is darker than the brain and is no constant: intensities
    were shifted then, and slices that lost signal are fainter by a factor of what lies above that. Else it is the least
    of the mask, unless it lies farther below the 0.1th percentile than this lies below the median: a few broken voxels
    do not decide.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)
    mask : ndarray, (X, Y, Z), bool
        All of the image where it is empty.

    Examples
    --------
    >>> stack = np.linspace(-2, 2, 2001).reshape(3, 23, 29)
    >>> darkest(stack, stack > -3), darkest(stack, stack > 0)
    (-2.0, 0.0)
    """
    inside = image[mask] if mask.any() else np.ravel(image)
    low, middle = (float(value) for value in np.percentile(inside, (FEW, 50)))
    if low >= 0:
        return 0.0
    faces = on_faces(image)
    air, values = float(np.percentile(image, AIR)), np.unique(faces, return_counts=True)[1]
    if air < low and values.max() < CONSTANT * len(faces):
        return air
    return max(float(inside.min()), 2 * low - middle)


def background(image: np.ndarray) -> float:
    """Return the intensity of what surrounds the object in an image: 0, or the least one.

    It is the least where more than one voxel in a hundred is negative, as of CT or after subtraction of the mean,
    unless most voxels on the faces of the field of view are exactly 0.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)
    """
    image = np.asarray(image)
    if np.mean(image < 0) <= RARE:
        return 0.0
    return 0.0 if np.mean(on_faces(image) == 0) > 0.5 else float(image.min())


def on_faces(image: np.ndarray) -> np.ndarray:
    """Return the voxels on the faces of the field of view, (P,); axes with one voxel have no faces."""
    faces = [np.take(image, (0, size - 1), axis).ravel() for axis, size in enumerate(image.shape) if size > 1]
    return np.concatenate(faces or [np.ravel(image)])


def above_background(image: np.ndarray) -> np.ndarray:
    """Subtract the background, so that only what is not background differs from 0.

    Negative voxels become 0 where they are rare; where they are not, they are tissue or the background is the least.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)

    Returns
    -------
    ndarray, (X, Y, Z), float32
    """
    image = np.asarray(image, np.float32)
    if np.mean(image < 0) <= RARE:
        return np.maximum(image, 0)
    return image - np.float32(background(image))


def without_spikes(image: np.ndarray, name: str | Path) -> np.ndarray:
    """Clip isolated voxels that are far brighter than all others to the brightest of these, and log a warning.

    Single ones come from the receiver or from a conversion, and one is enough to decide a mean or a correlation.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)
    name : str
        Name of the file, for the message.
    """
    some = image[image != 0]
    limit = SPIKE * float(np.percentile(some, BRIGHTEST)) if some.size else 0.0
    broken = image > min(limit, float(np.finfo(np.float32).max))
    if limit <= 0 or not broken.any():
        return image
    LOGGER.warning(
        "%s: %d voxels are more than %g times as bright as nearly all others (up to %.3g), and are cut off: "
        "convert the file again if they are no noise",
        name,
        broken.sum(),
        SPIKE,
        image.max(),
    )
    return np.minimum(image, image[~broken].max())


def empty_slices(image: np.ndarray, mask: np.ndarray) -> list[int]:
    """Find slices that have brain in their mask and no more than one intensity in it: lost by a conversion, say.

    That is where 98 of 100 pixels are alike to a hundredth of how much those of the other slices differ; slices with
    fewer than four pixels are left out.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)
        Slices along the third axis, as acquired: a bias field makes one intensity many.
    mask : ndarray, (X, Y, Z), bool
    """
    filled = np.flatnonzero(mask.sum((0, 1)) >= TOLD)
    if not len(filled):
        return []
    spread = np.array([np.ptp(np.percentile(image[:, :, k][mask[:, :, k]], (1, 99))) for k in filled])
    return [int(k) for k in filled[spread <= EMPTY * np.percentile(spread, USUAL)]]
