# SPDX-License-Identifier: Apache-2.0
"""What training slices are made of: real stacks with masks, and volumes of brains with labels."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

PIXEL = 2.0  # mm, of the network's slices


@dataclass(frozen=True)
class RealStack:
    """A real stack, its pixels made those of the network.

    Attributes
    ----------
    name : str
    images : ndarray, (S, X, Y), float32
        0 to 1.
    masks : ndarray, (S, X, Y), float32
        Share of brain.
    """

    name: str
    images: np.ndarray
    masks: np.ndarray


@dataclass(frozen=True)
class Brain:
    """A volume of a brain.

    Attributes
    ----------
    name : str
    image : ndarray, (X, Y, Z), float32
        0 to 1.
    labels : ndarray, (X, Y, Z), uint8
        Tissues; 0 outside.
    voxel : float
        Side of its voxels, mm.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    voxel: float


def read_stack(image: Path, mask: Path) -> RealStack:
    """A stack and its mask; slices are those of the thickest axis."""
    loaded = nib.load(image)
    data = np.asarray(loaded.dataobj, np.float32)
    inside = np.asarray(nib.load(mask).dataobj, np.float32) > 0
    across = int(np.argmax(loaded.header.get_zooms()[:3]))
    zooms = np.delete(np.array(loaded.header.get_zooms()[:3], float), across)
    scale = (1, *(zooms / PIXEL))
    images = ndimage.zoom(np.moveaxis(data, across, 0), scale, order=1, grid_mode=True, mode="nearest")
    masks = ndimage.zoom(np.moveaxis(inside.astype(np.float32), across, 0), scale, order=1, grid_mode=True,
                         mode="nearest")
    return RealStack(image.name, np.clip(images / np.percentile(images, 99.5), 0, 1.5).astype(np.float32), masks)


def read_brain(image: Path, mask: Path, labels: Path) -> Brain:
    """A volume with its mask and labels; where the mask holds and no label does, the label is one of its own."""
    loaded = nib.load(image)
    data = np.asarray(loaded.dataobj, np.float32)
    inside = np.asarray(nib.load(mask).dataobj) > 0
    tissues = np.rint(np.asarray(nib.load(labels).dataobj)).astype(np.uint8)
    tissues = np.where(inside & (tissues == 0), tissues.max() + 1, np.where(inside, tissues, 0)).astype(np.uint8)
    box = ndimage.find_objects(inside.astype(np.uint8))[0]
    data, tissues = data[box] / np.percentile(data[inside], 99), tissues[box]
    return Brain(image.name, np.clip(data, 0, 1.5), tissues, float(loaded.header.get_zooms()[0]))


def real_stacks(folder: Path, runs) -> list[RealStack]:
    """Runs of the real subject, by number."""
    masks = folder / "derivatives" / "manual_masks" / "sub-01" / "anat"
    return [read_stack(folder / "sub-01" / "anat" / f"sub-01_run-{run}_T2w.nii.gz",
                       masks / f"sub-01_run-{run}_T2w_desc-brain_mask.nii.gz") for run in runs]


def brains(folder: Path, weeks) -> list[Brain]:
    """Volumes of the atlas, by gestational age."""
    return [read_brain(*(next(folder.glob(f"GA{week}_*_{kind}.nii.gz")) for kind in ("srr", "mask", "parcellation")))
            for week in weeks]
