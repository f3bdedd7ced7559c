# SPDX-License-Identifier: Apache-2.0
"""What training slices are cut from: scenes, made of real stacks with masks and of volumes of brains with labels."""

from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

REAL = 9  # label of a real brain; 1 to 8 are the tissues of the atlas, 10 and more what is no brain
CSF = 4  # label of the atlas for fluid around the brain
TOP = 1.5  # the largest intensity; images are kept as bytes
STACK_PIXEL = 1.5  # mm in the plane, of real stacks as they are kept


@dataclass(frozen=True)
class Brain:
    """A volume of a brain of the atlas, axes to the right, the front and the top.

    Attributes
    ----------
    name : str
    image : ndarray, (X, Y, Z), float32
        0 to 1.5, 99 of 100 voxels below 1.
    labels : ndarray, (X, Y, Z), uint8
        Tissues 1 to 8; 0 outside.
    voxel : float
        Side of its voxels, mm.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    voxel: float

    @property
    def millilitres(self) -> float:
        """Volume of the brain."""
        return float((self.labels > 0).sum() * self.voxel**3 / 1e3)


@dataclass(frozen=True)
class Scene:
    """A volume of everything that a field of view shows, from which slices are cut.

    Attributes
    ----------
    name : str
    image : ndarray, (X, Y, Z), uint8
        Intensity or texture, 0 to :data:`TOP`.
    labels : ndarray, (X, Y, Z), uint8
        0 is what was really acquired around a brain; 1 to 9 is brain.
    spacing : tuple of float
        Voxel size, mm.
    middle : ndarray, (3,)
        Voxel in the middle of the brain, or of the volume where there is none.
    radius : float
        mm, of a ball of the brain's volume; 40 where there is none.
    real : bool
        Whether the image is an acquired one, so that slices look best along the third axis.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, float, float]
    middle: np.ndarray
    radius: float
    real: bool


def is_brain(labels: np.ndarray) -> np.ndarray:
    """Where labels are those of brain."""
    return (labels >= 1) & (labels <= REAL)


def as_bytes(image: np.ndarray) -> np.ndarray:
    """Intensities, 0 to :data:`TOP`, in 256 steps."""
    return np.rint(np.clip(image, 0, TOP) * (255 / TOP)).astype(np.uint8)


def scene_of(name: str, image: np.ndarray, labels: np.ndarray, spacing, real: bool) -> Scene:
    """A scene, with the middle of its brain."""
    brain = is_brain(labels)
    middle, radius = (np.array(labels.shape) - 1) / 2, 40.0
    if brain.any():
        middle, radius = np.argwhere(brain).mean(0), float(np.cbrt(brain.sum() * np.prod(spacing) * 0.75 / np.pi))
    return Scene(name, image, labels, tuple(float(s) for s in spacing), middle, radius, real)


def read_stack(image: Path, mask: Path) -> Scene:
    """A real stack and its mask; its slices, those of the thickest axis, come to the third axis."""
    loaded = nib.load(image)
    data = np.asarray(loaded.dataobj, np.float32)
    inside = np.asarray(nib.load(mask).dataobj, np.float32) > 0
    zooms = np.array(loaded.header.get_zooms()[:3], float)
    across = int(np.argmax(zooms))
    order = [axis for axis in range(3) if axis != across] + [across]
    scale = (*(zooms[order[:2]] / STACK_PIXEL), 1)
    data = ndimage.zoom(np.transpose(data, order), scale, order=1, grid_mode=True, mode="nearest")
    inside = ndimage.zoom(np.transpose(inside, order).astype(np.float32), scale, order=1, grid_mode=True,
                          mode="nearest") > 0.5
    labels = np.where(inside, REAL, 0).astype(np.uint8)
    spacing = (STACK_PIXEL, STACK_PIXEL, zooms[across])
    return scene_of(image.name, as_bytes(data / np.percentile(data, 99.5)), labels, spacing, True)


def read_brain(image: Path, mask: Path, labels: Path) -> Brain:
    """A volume of the atlas, cut to its mask."""
    loaded = nib.load(image)
    data = np.asarray(loaded.dataobj, np.float32)
    inside = np.asarray(nib.load(mask).dataobj) > 0
    tissues = np.where(inside, np.rint(np.asarray(nib.load(labels).dataobj)), 0).astype(np.uint8)
    box = ndimage.find_objects(inside.astype(np.uint8))[0]
    data, tissues = data[box] / np.percentile(data[inside], 99), tissues[box]
    return Brain(image.name, np.clip(data, 0, TOP), tissues, float(loaded.header.get_zooms()[0]))


def real_stacks(folder: Path, runs) -> list[Scene]:
    """Runs of the real subject, by number."""
    masks = folder / "derivatives" / "manual_masks" / "sub-01" / "anat"
    return [read_stack(folder / "sub-01" / "anat" / f"sub-01_run-{run}_T2w.nii.gz",
                       masks / f"sub-01_run-{run}_T2w_desc-brain_mask.nii.gz") for run in runs]


def brains(folder: Path, weeks) -> list[Brain]:
    """Volumes of the atlas, by gestational age."""
    return [read_brain(*(next(folder.glob(f"GA{week}_*_{kind}.nii.gz")) for kind in ("srr", "mask", "parcellation")))
            for week in weeks]


def transplanted(rng, stack: Scene, brain: Brain) -> Scene:
    """A real stack with a brain of the atlas in the place of its own.

    The brain is turned so that its axes lie along those of the real one (either way round), and stretched to fill
    most of the mask; what is left of the mask becomes fluid.
    """
    spacing = np.array(stack.spacing)
    inside = is_brain(stack.labels)
    at = np.argwhere(inside) * spacing
    theirs = np.argwhere(brain.labels > 0) * brain.voxel
    turn, width = _axes(at)
    own_turn, own_width = _axes(theirs)
    signs = rng.choice((-1, 1), 3)
    fill = rng.uniform(0.82, 1.0) * np.exp(rng.normal(0, 0.03, 3))
    wobble = Rotation.from_rotvec(rng.normal(0, np.deg2rad(12), 3)).as_matrix()
    matrix = own_turn @ np.diag(signs * own_width / (width * fill)) @ turn.T @ wobble
    moved = (at - at.mean(0)) @ matrix.T + theirs.mean(0)
    index = (moved / brain.voxel).T
    labels, image = stack.labels.copy(), stack.image.copy()
    tissue = ndimage.map_coordinates(brain.labels, index, order=0)
    texture = ndimage.map_coordinates(brain.image, index, order=1)
    labels[inside] = np.where(tissue > 0, tissue, CSF)
    image[inside] = as_bytes(np.where(tissue > 0, texture, 1.0))
    return scene_of(f"{brain.name} in {stack.name}", image, labels, stack.spacing, True)


def _axes(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Principal axes (columns) and standard deviations along them of points, (N, 3)."""
    values, vectors = np.linalg.eigh(np.cov((points - points.mean(0)).T))
    return vectors, np.sqrt(values)
