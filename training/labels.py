#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Draw intracranial masks of the real stacks: the atlas is laid on the reconstructed head, and its mask carried back.

    python training/labels.py work/labels

Inside is the intracranial space: brain and the fluid around it up to the skull, down to the foramen magnum; no skull,
no eyes. The manual masks of the data set go about 3 mm around the fluid, over the eyes and the base of the skull.
The folder gets the head with its mask, a mask for every stack, and pictures of both.
"""

import argparse
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from evaluate import draw_stack
from scipy import ndimage
from sources import atlas_files, stack_files

from gsbids.errors import InputError
from gsbids.imaging.geometry import conform, slice_axis
from gsbids.imaging.masks import largest_region, resample_mask
from gsbids.imaging.nifti import load_image, save_image
from gsbids.imaging.stack import Stack
from gsbids.masking.shape_prior import lay_atlas
from gsbids.masking.template import load_template
from gsbids.recon.svr.result import SvrResult
from gsbids.recon.volume.coverage import reproject_mask
from gsbids.recon.volume.template import align_to_template

RUNS, WEEKS = (1, 2, 3, 4, 5, 6), (22, 25, 28)
THICKNESS = 3.0  # mm, of the slices of these runs
AROUND = 2.0  # mm around the masks that the affine registration of the atlas sees
GENTLY = (5.0, 1.0)  # standard deviations (voxels) of the update and of the whole deformation
FIRST, LATER = (9.0, 1.0), (6.0, 2.0)  # mm within and beyond the outline of the atlas between which the skull is
FARTHEST = 3.0  # mm beyond the manual masks: the flood from the outside starts there
SMOOTH = 0.6  # mm: standard deviation of the image in which the skull is looked for
SPURS = 4.0, 2.0  # mm: what is narrower than twice this is cut off, before and after the atlas has been laid on again


def main() -> None:
    """Draw the masks."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("output", type=Path)
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    args = parser.parse_args()
    os.environ.setdefault("ANTS_RANDOM_SEED", "1")
    try:
        draw_masks(args.output, args.data)
    except InputError as error:
        parser.error(str(error))


def draw_masks(folder: Path, data: Path) -> None:
    """Write the head with its intracranial mask, and a mask for every stack.

    Parameters
    ----------
    folder : Path
        Keeps what is made; a reconstruction that lies there is taken.
    data : Path
        Holds both data sets.

    Raises
    ------
    gsbids.errors.InputError
        The data are not there, or gsbids failed.
    """
    files, given = stack_files(data / "fetal-stacks-mialsrtk", RUNS)
    head = reconstructed(files, given, folder)
    (image, affine), wide = load_image(head["unmasked"]), load_image(head["mask"])[0] > 0
    templates = [load_template(*atlas_files(data / "fetal-atlas-spinabifida", week)[:2]) for week in WEEKS]
    inside = intracranial(Stack("head", image, wide, affine, float(np.linalg.norm(affine[:3, 0]))), templates)
    save_image(folder / "head_mask.nii.gz", inside, affine, "uint8")
    for axis in range(3):
        draw_stack(
            folder / f"head-{'xyz'[axis]}.png",
            np.moveaxis(image, axis, 2),
            np.moveaxis(wide, axis, 2),
            np.moveaxis(inside, axis, 2),
            2,
        )
    result = SvrResult.load(head["model"])
    for number, path in enumerate(files):
        acquired, own = load_image(path)
        slices, grid = conform(acquired, own, slice_axis(acquired.shape, own))
        back = reproject_mask(inside, affine, Stack(path.name, slices, slices > 0, grid, THICKNESS), number, result)
        mask = resample_mask(back, grid, own, acquired.shape)
        save_image(folder / given[number].name, mask, own, "uint8")
        draw_stack(folder / f"run-{RUNS[number]}.png", acquired, load_image(given[number])[0] > 0, mask)


def reconstructed(stacks: list[Path], masks: list[Path], folder: Path) -> dict[str, Path]:
    """What ``gsbids reconstruct`` makes of the stacks: volume, mask, volume with surroundings, model."""
    folder.mkdir(parents=True, exist_ok=True)
    out = {name: folder / f"all_{name}.nii.gz" for name in ("volume", "mask", "unmasked")}
    out["model"] = folder / "all_model.npz"
    if not all(path.exists() for path in out.values()):
        command = [
            sys.executable,
            "-m",
            "gsbids",
            "reconstruct",
            "--input-stacks",
            *stacks,
            "--input-masks",
            *masks,
            "-w",
            folder / "work",
        ]
        for name, path in out.items():
            command += [f"--output-{name}", path]
        if subprocess.run([str(word) for word in command]).returncode:
            raise InputError(f"{folder}: gsbids did not reconstruct the head there, for the reason above")
    return out


def intracranial(head: Stack, templates: list[Stack]) -> np.ndarray:
    """The intracranial space of a head.

    The skull is a dark layer between fluid and scalp: of a flood from the inside and one from the outside, which go
    through dark voxels last, it is where they meet. Where to start them, and where the base of the skull and the eyes
    are, the templates tell: laid on the whole head first, and, by what most of them say, on what has been found so.

    Parameters
    ----------
    head : Stack
        Isotropic, with a mask that holds more than the intracranial space.
    templates : list of Stack
        Brains with masks of the intracranial space, of other ages.

    Returns
    -------
    ndarray, (X, Y, Z), bool
    """
    outlines = [laid(head, template, gently=False) for template in templates]
    first = np.any([within_skull(head, outline, *FIRST) for outline in outlines], axis=0)
    core = replace(head, mask=without_spurs(first, head.spacing, SPURS[0]))
    outlines = [laid(core, template, gently=True) for template in templates]
    found = [without_spurs(within_skull(head, outline, *LATER), head.spacing, SPURS[1]) for outline in outlines]
    return ndimage.binary_fill_holes(np.mean(found, axis=0) > 0.5) & head.mask


def laid(head: Stack, template: Stack, gently: bool) -> np.ndarray:
    """The mask of a template laid on a head: rigid, scaled, affine, and with ``gently`` deformed a little.

    Returns
    -------
    ndarray, (X, Y, Z), bool
        On the grid of the head.
    """
    start = align_to_template(head, template).laid(template)
    return lay_atlas(head, template, start, 0.0 if gently else AROUND, GENTLY if gently else None) > 0.5


def within_skull(head: Stack, outline: np.ndarray, within: float, beyond: float) -> np.ndarray:
    """What a flood from the inside reaches; it starts ``within`` mm in an outline, the other one ``beyond`` it."""
    import SimpleITK as sitk  # one of the test requirements

    image = ndimage.gaussian_filter(head.image, SMOOTH / head.spacing)
    depth, height, far = (
        ndimage.distance_transform_edt(each, head.spacing) for each in (outline, ~outline, ~head.mask)
    )
    start = np.zeros(image.shape, np.uint8)
    start[depth > within] = 1
    start[(height > beyond) | (far > FARTHEST) | (head.image <= 0)] = 2
    flooded = sitk.MorphologicalWatershedFromMarkers(
        sitk.GetImageFromArray(-image), sitk.GetImageFromArray(start), markWatershedLine=False
    )
    return sitk.GetArrayFromImage(flooded) == 1


def without_spurs(mask: np.ndarray, spacing, width: float) -> np.ndarray:
    """The largest part of a mask, opened by a ball of a radius (mm)."""
    core = ndimage.distance_transform_edt(mask, spacing) > width
    return largest_region(mask & (ndimage.distance_transform_edt(~core, spacing) <= width))


if __name__ == "__main__":
    main()
