#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make the fetal templates of the package: the atlas brains, cut out, on a grid of 1 mm, as bytes.

    python training/atlas.py gsbids/masking/atlas

Each keeps the frame of the atlas, so that the world of a file is that of the original.
"""

import argparse
from pathlib import Path

import numpy as np
from scipy import ndimage
from sources import atlas_files

from gsbids.errors import InputError
from gsbids.imaging.nifti import load_image, save_image

WEEKS = (22, 25, 28)
VOXEL = 1.0  # mm
MARGIN = 2.0  # mm around the brain
BRIGHTEST = 99.9  # percentile of the brain that becomes 255


def packaged(image: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A brain on a coarser grid along the same axes, 0 outside of it and at least 1 inside.

    Parameters
    ----------
    image, mask : ndarray, (X, Y, Z)
    affine : ndarray, (4, 4)

    Returns
    -------
    image : ndarray, (x, y, z), uint8
    affine : ndarray, (4, 4)
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    inside, ratio = np.argwhere(mask), VOXEL / spacing
    start = inside.min(0) - MARGIN / spacing
    shape = tuple(np.ceil((inside.max(0) - start) / ratio + MARGIN / VOXEL).astype(int) + 1)
    brain, image = (
        ndimage.affine_transform(each.astype(np.float32), np.diag(ratio), start, shape, order=1)
        for each in (mask, image * mask)
    )
    brain = brain >= 0.5
    level = np.rint(image / np.percentile(image[brain], BRIGHTEST) * 255)
    own = affine @ np.block([[np.diag(ratio), start[:, None]], [np.zeros((1, 3)), 1]])
    return np.where(brain, np.clip(level, 1, 255), 0).astype(np.uint8), own


def main() -> None:
    """Write a file for each age."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    try:
        for week in WEEKS:
            (image, affine), (mask, _), _ = map(load_image, atlas_files(args.data / "fetal-atlas-spinabifida", week))
            image, affine = packaged(image, mask > 0.5, affine)
            save_image(args.output / f"fetal_{week}_weeks.nii.gz", image, affine, "uint8")
    except InputError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
