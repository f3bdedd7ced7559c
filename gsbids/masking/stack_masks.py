# SPDX-License-Identifier: Apache-2.0
"""Brain masks of stacks: from a file, from the non-zero voxels, from a network, from a threshold."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from scipy import ndimage

from gsbids.errors import InputError
from gsbids.imaging.geometry import conform
from gsbids.imaging.intensity import above_background
from gsbids.imaging.masks import inside_of, largest_region, resample_mask, same_grid
from gsbids.imaging.nifti import load_image
from gsbids.masking.found import DOUBTFUL
from gsbids.masking.networks import load_network, segment_stack, weights_file

LOGGER = logging.getLogger("gsbids.masking")

MODES = ("auto", "derivatives", "network", "nonzero", "otsu", "none")

# A background of exact zeros this large is not acquired: somebody stripped the skull.
STRIPPED_FRACTION = 0.2
# Litres; a made mask beyond this is the mother, not the child.
LARGEST_BRAIN = 2.5
# Share of the bright intensities under which there is air; share of a side of the field of view that the body takes
# where it goes on beyond it; mm, across the head of an infant: a pregnant woman has 220 and more.
AIR, TOUCHED, SMALL_HEAD = 0.1, 0.1, 200.0


class NoBrain(InputError):  # noqa: N818 - its name says what was found
    """No mask could be made of a stack, with the finding and the remedy.

    Where there are other stacks, it may be left out.
    """

    def __init__(self, found: str, remedy: str) -> None:
        super().__init__(found, remedy)
        self.found = found

    def __str__(self) -> str:
        """Return the message: finding and remedy."""
        return "; ".join(self.args)


class MadeMask(NamedTuple):
    """A brain mask, (X, Y, Z) of bool, with its origin (for the report), the mode that made it, and its doubt."""

    mask: np.ndarray
    reason: str
    method: str
    doubt: str = ""


def make_mask(
    mode: str,
    image: np.ndarray,
    affine: np.ndarray,
    mask_file: str | Path | None = None,
    weights: str | Path | None = None,
) -> MadeMask:
    """Make the brain mask of a stack, with a sentence on its origin.

    Parameters
    ----------
    mode : {"auto", "derivatives", "network", "nonzero", "otsu", "none"}
        ``auto`` takes the mask file where there is one; else the non-zero voxels of a stack whose skull was stripped
        (:func:`is_stripped`); else the mask of the network, if its confidence is high; else the threshold of Otsu for a
        head in air (:func:`is_head_in_air`); else the doubtful mask of the network; else the threshold of Otsu.
    image : ndarray, (X, Y, Z)
        Masks are made of its difference from the background (:func:`gsbids.imaging.intensity.above_background`).
    affine : ndarray, (4, 4)
    mask_file : path-like, optional
        Mask from a derivative dataset, on any grid.
    weights : path-like, optional
        Weights of the network, in the place of those of the package.

    Returns
    -------
    MadeMask

    Raises
    ------
    NoBrain
        A mask was made and has no voxels, or more than any brain; or a network finds none.
    gsbids.errors.InputError
        ``derivatives`` without a file, a mask file without voxels or one that misses the stack, a network without
        weights.
    """
    image = above_background(image)
    chosen = choose_mode(mode, image, affine, mask_file)
    if chosen == "derivatives":
        return MadeMask(*read_mask(mask_file, affine, image.shape), chosen)  # type: ignore[arg-type]
    if chosen == "none":
        return MadeMask(full_mask(image), "No mask: the whole stack is used.", chosen)
    if chosen == "nonzero":
        zeros = f"{100 * np.mean(image == 0):.0f} % of the stack are"
        made = MadeMask(nonzero_mask(image), f"Voxels that are not zero ({zeros}).", chosen)
    elif chosen == "network":
        made = network_mask(image, affine, weights)
    elif chosen == "otsu":
        made = MadeMask(otsu_mask(image), "Largest region above the threshold of Otsu.", chosen)
    else:
        made = _found_mask(image, affine, weights)
    _check_made(made.mask, affine, mode)
    return made


def network_mask(image: np.ndarray, affine: np.ndarray, weights: str | Path | None = None) -> MadeMask:
    """Segment the brain by the network, with its doubt.

    Raises
    ------
    NoBrain
        It finds nothing.
    """
    file = weights_file(weights)
    found = segment_stack(image, affine, load_network(file))
    if not found.mask.any():
        raise NoBrain(
            "no brain was found in the stack by the network",
            "give masks with -d/--derivatives, or leave the stack out with --bids-filter-file",
        )
    reason = f"Network ({file.name}), confidence {found.confidence:.2f}, {found.millilitres(affine):.0f} ml."
    doubt = ""
    if found.confidence < DOUBTFUL:
        doubt = f"The network has low confidence ({found.confidence:.2f}, below {DOUBTFUL:.2f})."
    return MadeMask(found.mask, f"{reason} Look at this mask.", "network", doubt)


def _found_mask(image: np.ndarray, affine: np.ndarray, weights: str | Path | None) -> MadeMask:
    """Make the mask that ``auto`` chooses for a stack with its skull and without a mask file."""
    found = None
    if weights or weights_file().is_file():
        with contextlib.suppress(NoBrain):
            found = network_mask(image, affine, weights)
    if found and not found.doubt:
        return found
    otsu = MadeMask(otsu_mask(image), "Largest region above the threshold of Otsu.", "otsu")
    if is_head_in_air(image, affine):
        otsu = otsu._replace(
            reason=f"{otsu.reason} A head in air, as of a neonate, in which the network is not sure "
            "of a fetal brain; the mask may hold more than the brain."
        )
    elif found:
        return found
    else:
        otsu = otsu._replace(
            reason=f"{otsu.reason} No mask was given, and this is no brain mask: fetal stacks need "
            "one of the brain (-d/--derivatives).",
            doubt="The network found no brain in it.",
        )
    LOGGER.warning(otsu.reason)
    return otsu


def _check_made(mask: np.ndarray, affine: np.ndarray, mode: str) -> None:
    if not mask.any():
        raise NoBrain(
            f"--mask-mode {mode}: no voxel of the stack is inside the mask (is the image empty?)",
            "give masks with -d/--derivatives",
        )
    if litres(mask, affine) > LARGEST_BRAIN:
        raise NoBrain(
            f"--mask-mode {mode}: the mask made from the stack holds {litres(mask, affine):.1f} litres, more "
            "than any brain: it is the body",
            "give brain masks with -d/--derivatives",
        )


def litres(mask: np.ndarray, affine: np.ndarray) -> float:
    """Return the volume of a mask, litres."""
    return float(mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1e6)


def choose_mode(mode: str, image: np.ndarray, affine: np.ndarray, mask_file: str | Path | None) -> str:
    """Return the mode that ``auto`` stands for with this stack, ``auto`` where a mask must be made; keep others.

    Raises
    ------
    gsbids.errors.InputError
        Unknown mode, or ``derivatives`` without a file.
    """
    if mode not in MODES:
        raise InputError(f"--mask-mode {mode!r} is unknown; choose one of {', '.join(MODES)}")
    if mode == "derivatives" and mask_file is None:
        raise InputError(
            "--mask-mode derivatives: there is no mask file for this stack; give a dataset of "
            "masks with -d/--derivatives or choose --mask-mode auto"
        )
    if mode != "auto":
        return mode
    if mask_file is not None:
        return "derivatives"
    return "nonzero" if is_stripped(image, affine) else "auto"


def is_stripped(image: np.ndarray, affine: np.ndarray) -> bool:
    """Return whether the skull was stripped: a fifth of the stack is exactly 0, the rest is at most a brain.

    Scanners, too, write zeros where they see air: around a mother, who has more than 2.5 litres.
    """
    zeros = np.asarray(image) == 0
    return bool(zeros.mean() >= STRIPPED_FRACTION and litres(~zeros, affine) <= LARGEST_BRAIN)


def is_head_in_air(image: np.ndarray, affine: np.ndarray) -> bool:
    """Return whether a stack shows a small head with air around it, but for one side (the neck).

    A mother fills the field of view, or is wider than a small head.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)
        Slices along the third axis.
    affine : ndarray, (4, 4)
    """
    image = np.asarray(image, np.float32)
    body = largest_region(ndimage.uniform_filter(image, (3, 3, 1)) > AIR * np.percentile(image, 98))
    if not body.any():
        return False
    seen = body[:, :, body.any((0, 1))]
    sides = [side.mean() for side in (seen[:3], seen[-3:], seen[:, :3], seen[:, -3:])]
    lit = [np.flatnonzero(body.any(axes)) for axes in ((1, 2), (0, 2))]
    widths = [
        (places[-1] - places[0] + 1) * step
        for places, step in zip(lit, np.linalg.norm(affine[:3, :2], axis=0), strict=True)
    ]
    return bool(sum(share > TOUCHED for share in sides) <= 1 and max(widths) <= SMALL_HEAD)


def read_mask(mask_file: str | Path, affine: np.ndarray, shape: Sequence[int]) -> tuple[np.ndarray, str]:
    """Read a mask file on the grid of a stack, resampled through the affines where its grid differs.

    Parameters
    ----------
    mask_file : path-like
        See :func:`gsbids.imaging.masks.inside_of`.
    affine : ndarray, (4, 4)
        Affine of the stack.
    shape : tuple of int
        Shape of the stack.

    Returns
    -------
    mask : ndarray, (X, Y, Z), bool
    reason : str

    Raises
    ------
    gsbids.errors.InputError
        The file cannot be read, is all zero, or misses the stack.
    """
    values, mask_affine = load_image(mask_file)
    if not values.any():
        raise InputError(
            f"{mask_file}: the mask is all zero; draw the brain or leave the stack out with --bids-filter-file"
        )
    try:
        inside, soft = inside_of(values)
    except InputError as error:
        raise InputError(
            f"{mask_file}: {error}; draw the brain or leave the stack out with --bids-filter-file"
        ) from error
    reason = f"Mask file {Path(mask_file).name}{f': {soft}' if soft else ''}."
    for axis in (2, 1, 0):
        permuted, permuted_affine = conform(inside, mask_affine, axis)
        if same_grid(permuted.shape, permuted_affine, shape, affine):
            return permuted, reason
    LOGGER.info(
        "%s: the mask (%s) is not on the grid of its stack (%s) and is resampled by affine",
        mask_file,
        _size(inside.shape),
        _size(shape),
    )
    mask = resample_mask(inside, mask_affine, affine, shape)
    if not mask.any():
        raise InputError(
            f"{mask_file}: the mask does not overlap its stack in the scanner's space; "
            "check that both come from one session and that the affine is right"
        )
    return mask, f"{reason[:-1]}, resampled by affine to the grid of the stack."


def nonzero_mask(image: np.ndarray) -> np.ndarray:
    """Return the voxels that are not zero, with the holes inside every slice filled.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)

    Returns
    -------
    ndarray, (X, Y, Z), bool
    """
    return _filled(np.asarray(image) != 0)


def otsu_mask(image: np.ndarray) -> np.ndarray:
    """Return the largest connected region above the threshold of Otsu, holes filled in every slice.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)

    Returns
    -------
    ndarray, (X, Y, Z), bool
        Empty for a constant image.

    References
    ----------
    N. Otsu, A threshold selection method from gray-level histograms, IEEE Trans. SMC 9 (1979).
    """
    image = np.asarray(image, dtype=np.float64)
    low, high = np.percentile(image, (0.5, 99.5))
    if high <= low:
        return np.zeros(image.shape, dtype=bool)
    count, edges = np.histogram(np.clip(image, low, high), bins=256)
    middle = (edges[1:] + edges[:-1]) / 2
    below = np.cumsum(count)[:-1].astype(np.float64)
    above = count.sum() - below
    sums = np.cumsum(count * middle)
    between = np.zeros_like(below)
    valid = (below > 0) & (above > 0)
    gap = sums[:-1][valid] / below[valid] - (sums[-1] - sums[:-1][valid]) / above[valid]
    between[valid] = below[valid] * above[valid] * gap**2
    return _filled(largest_region(image > edges[1:-1][np.argmax(between)]))


def full_mask(image: np.ndarray) -> np.ndarray:
    """Return a mask of all voxels, (X, Y, Z), bool."""
    return np.ones(np.shape(image), dtype=bool)


def _filled(mask: np.ndarray) -> np.ndarray:
    """Fill holes inside the slices (third axis)."""
    return np.stack([ndimage.binary_fill_holes(mask[..., k]) for k in range(mask.shape[2])], axis=2)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
