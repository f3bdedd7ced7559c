# SPDX-License-Identifier: Apache-2.0
"""The template of ``--template`` with its brain mask, and the templates of the package."""

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from gsbids.errors import InputError
from gsbids.imaging.icbm152 import icbm152_maps
from gsbids.imaging.intensity import above_background, darkest
from gsbids.imaging.nifti import load_image
from gsbids.imaging.stack import Stack
from gsbids.masking.stack_masks import is_stripped, nonzero_mask, otsu_mask, read_mask

LOGGER = logging.getLogger("gsbids.masking")

ATLAS = Path(__file__).parent / "atlas"  # made by training/atlas.py
WEEKS = (22, 25, 28)  # gestational age of the fetal templates
LARGEST_FETAL = 700.0  # ml: larger brains are compared with that of an adult alone
BRIGHTNESS = (1.0, 0.6, 0.4)  # of fluid, grey and white matter of an adult, T2-weighted

LEAST_SIDE = 8  # voxels: less is no volume
BRAIN = (1.0, 2500.0)  # ml


@dataclass(frozen=True)
class Template:
    """A brain to which others are aligned.

    Attributes
    ----------
    name : str
        Name for people.
    reference : str
        ``SpatialReference`` of an image that is aligned to it.
    brain : Stack
        Isotropic volume with its mask.
    """

    name: str
    reference: str
    brain: Stack


def fetal_templates() -> list[Template]:
    """Read the fetal brains of the package, T2-weighted, of 22, 25 and 28 weeks (Fidon et al. 2021, CC0)."""
    return [
        Template(
            f"fetal atlas of {week} weeks (Fidon et al. 2021)",
            "https://doi.org/10.5281/zenodo.5524312",
            load_template(ATLAS / f"fetal_{week}_weeks.nii.gz"),
        )
        for week in WEEKS
    ]


def adult_template(suffix: str) -> Template:
    """Make the adult brain (ICBM152 2009a, symmetric) of a contrast: T1w as it is, others as if T2-weighted."""
    grey, white, t1, affine = icbm152_maps()
    mask = ndimage.binary_fill_holes(t1 > 0.03)
    levels = (np.clip(1 - grey - white, 0, 1), grey, white)
    image = t1 if suffix == "T1w" else sum(b * part for b, part in zip(BRIGHTNESS, levels, strict=True))
    return Template(
        "ICBM152 2009a of adults",
        "MNI152NLin2009aSym",
        Stack("adult", np.where(mask, image, 0).astype(np.float32), mask, affine, 1.0),
    )


def packaged_templates(suffix: str, millilitres: float) -> list[list[Template]]:
    """Choose the templates for a brain: lists of templates, of which the next is used where none of one fits.

    Parameters
    ----------
    suffix : str
        Contrast of the stacks, as ``T2w``.
    millilitres : float
        Volume of the brain.
    """
    fetal = [fetal_templates()] if suffix == "T2w" and millilitres <= LARGEST_FETAL else []
    return [*fetal, [adult_template(suffix)]] if suffix in ("T1w", "T2w") else fetal


def load_template(path: str | Path, mask_path: str | Path | None = None) -> Stack:
    """Read a template and its brain mask.

    Parameters
    ----------
    path : path-like
        A 3D volume.
    mask_path : path-like, optional
        If left out: the voxels that are not 0, where at least 20 % are 0; else the largest bright region, with a
        warning.

    Returns
    -------
    Stack
        Template, whose ``thickness`` is the voxel size.

    Raises
    ------
    gsbids.errors.InputError
        One line: a file that cannot be used, an image that is no volume, a mask without a brain in it.
    """
    try:
        image, affine = load_image(path)
    except InputError as error:
        raise InputError(f"--template {error}".replace(" or leave it out with --bids-filter-file", "")) from error
    if min(image.shape) < LEAST_SIDE:
        raise InputError(
            f"--template {path}: the image has {' x '.join(map(str, image.shape))} voxels, and a volume "
            "is expected; give a 3D brain"
        )
    image = above_background(image)
    if not image.any():
        raise InputError(f"--template {path}: no voxel is above 0; give the image of a brain")
    mask = _mask(path, image, affine, mask_path)
    millilitres = float(mask.sum()) * abs(np.linalg.det(affine[:3, :3])) / 1000
    if not BRAIN[0] <= millilitres <= BRAIN[1]:
        what = f"--template-mask {mask_path}" if mask_path else f"--template {path}"
        raise InputError(
            f"{what}: the brain in it has {millilitres:.3g} ml, and {BRAIN[0]:g} to {BRAIN[1]:g} ml are "
            "expected; give --template-mask with the brain of the template"
        )
    offset = darkest(image, mask)
    image = np.maximum(image - np.float32(offset), 0)
    return Stack("template", image, mask, affine, float(np.linalg.norm(affine[:3, :3], axis=0).max()), offset)


def _mask(path: str | Path, image: np.ndarray, affine: np.ndarray, mask_path: str | Path | None) -> np.ndarray:
    if mask_path is not None:
        try:
            return read_mask(mask_path, affine, image.shape)[0]
        except InputError as error:
            raise InputError(
                f"--template-mask {error}".replace("its stack in the scanner's space", "the template")
                .replace("both come from one session", "both are of one space")
                .replace(" or leave the stack out with --bids-filter-file", "")
            ) from error
    if is_stripped(image, affine):
        return nonzero_mask(image)
    LOGGER.warning(
        "--template %s: its brain is not cut out, and there is no --template-mask; the largest bright "
        "region is taken for the brain",
        path,
    )
    return otsu_mask(image)
