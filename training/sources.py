# SPDX-License-Identifier: Apache-2.0
"""What training slices are cut from: scenes, made of real stacks with masks and of volumes of brains with labels."""

from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.errors import InputError

REAL = 9  # label of a real brain; 1 to 8 are the tissues of the atlas, 10 and more what is no brain
CSF = 4  # label of the atlas for fluid around the brain
TOP = 1.5  # the largest intensity; images are kept as bytes
STACK_PIXEL = 1.5  # mm in the plane, of real stacks as they are kept
AROUND = (128, 2.5)  # voxels across the slices, and their side (mm), of what other stacks show around one


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
class Inner:
    """A finer volume within a scene, along its axes.

    Attributes
    ----------
    image, labels : ndarray, (X, Y, Z), uint8
    start : ndarray, (3,)
        mm from the scene's first voxel to its own.
    spacing : ndarray, (3,)
        Voxel size, mm.
    """

    image: np.ndarray
    labels: np.ndarray
    start: np.ndarray
    spacing: np.ndarray


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
        Whether the image is an acquired one.
    inner : Inner or None
        What is seen where a smaller, finer volume lies, in the place of the image and the labels.
    """

    name: str
    image: np.ndarray
    labels: np.ndarray
    spacing: tuple[float, float, float]
    middle: np.ndarray
    radius: float
    real: bool
    inner: Inner | None = None

    @property
    def finest(self) -> Inner:
        """What is sharpest: the inner volume, or all."""
        return self.inner or Inner(self.image, self.labels, np.zeros(3), np.array(self.spacing))

    @property
    def thick(self) -> bool:
        """Whether this is a stack, so that slices look best along its third axis."""
        return self.real and self.finest.spacing[2] > 1.5 * self.finest.spacing[0]


def is_brain(labels: np.ndarray) -> np.ndarray:
    """Where labels are those of brain."""
    return (labels >= 1) & (labels <= REAL)


def as_bytes(image: np.ndarray) -> np.ndarray:
    """Intensities, 0 to :data:`TOP`, in 256 steps."""
    return np.rint(np.clip(image, 0, TOP) * (255 / TOP)).astype(np.uint8)


def scene_of(
    name: str, image: np.ndarray, labels: np.ndarray, spacing, real: bool, inner: Inner | None = None
) -> Scene:
    """A scene, with the middle of its brain."""
    spacing = np.array(spacing, float)
    brain = is_brain(labels if inner is None else inner.labels)
    start, step = (np.zeros(3), spacing) if inner is None else (inner.start, inner.spacing)
    middle, radius = (np.array(labels.shape) - 1) / 2, 40.0
    if brain.any():
        middle = (start + np.argwhere(brain).mean(0) * step) / spacing
        radius = float(np.cbrt(brain.sum() * np.prod(step) * 0.75 / np.pi))
    return Scene(name, image, labels, tuple(spacing.tolist()), middle, radius, real, inner)


def read_stack(image: Path, mask: Path) -> tuple[Scene, np.ndarray]:
    """A real stack and its mask; its slices, those of the thickest axis, come to the third axis. And its affine."""
    loaded = nib.load(image)
    data = np.asarray(loaded.dataobj, np.float32)
    inside = np.asarray(nib.load(mask).dataobj, np.float32) > 0
    zooms = np.array(loaded.header.get_zooms()[:3], float)
    across = int(np.argmax(zooms))
    order = [axis for axis in range(3) if axis != across] + [across]
    scale = np.array([*(zooms[order[:2]] / STACK_PIXEL), 1])
    data = ndimage.zoom(np.transpose(data, order), scale, order=1, grid_mode=True, mode="nearest")
    inside = (
        ndimage.zoom(np.transpose(inside, order).astype(np.float32), scale, order=1, grid_mode=True, mode="nearest")
        > 0.5
    )
    labels = np.where(inside, REAL, 0).astype(np.uint8)
    affine = loaded.affine[:, [*order, 3]].copy()
    affine[:3, 3] += affine[:3, :3] @ (0.5 / scale - 0.5)
    affine[:3, :3] /= scale
    spacing = (STACK_PIXEL, STACK_PIXEL, zooms[across])
    return scene_of(image.name, as_bytes(data / np.percentile(data, 99.5)), labels, spacing, True), affine


def surrounded(stack: Scene, affine: np.ndarray, other: Scene, other_affine: np.ndarray) -> Scene:
    """A stack, and around it, mostly before its first and behind its last slice, what another shows there, as far as
    it does."""
    spacing, (count, step) = np.array(stack.spacing), AROUND
    shape = np.maximum(count, np.ceil(np.array(stack.labels.shape) * spacing / step)).astype(int)
    start = ((np.array(stack.labels.shape) - 1) * spacing - (shape - 1) * step) / 2
    coarse = np.array([step, step, step])
    to_other = np.linalg.inv(other_affine) @ affine @ np.diag([*(1 / spacing), 1])  # from mm along the stack's axes
    told = {
        "matrix": to_other[:3, :3] * coarse,
        "offset": to_other[:3, :3] @ start + to_other[:3, 3],
        "output_shape": tuple(shape),
    }
    image = ndimage.affine_transform(other.image, order=1, **told)
    labels = ndimage.affine_transform(other.labels, order=0, **told)
    inner = Inner(stack.image, stack.labels, -start, spacing)
    return scene_of(stack.name, image, labels, coarse, stack.real, inner)


def read_brain(image: Path, mask: Path, labels: Path) -> Brain:
    """A volume of the atlas, cut to its mask."""
    loaded = nib.load(image)
    data = np.asarray(loaded.dataobj, np.float32)
    inside = np.asarray(nib.load(mask).dataobj) > 0
    tissues = np.where(inside, np.rint(np.asarray(nib.load(labels).dataobj)), 0).astype(np.uint8)
    box = ndimage.find_objects(inside.astype(np.uint8))[0]
    data, tissues = data[box] / np.percentile(data[inside], 99), tissues[box]
    return Brain(image.name, np.clip(data, 0, TOP), tissues, float(loaded.header.get_zooms()[0]))


def _check_there(folder: Path) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such data set; give the folder that holds it as --data")


def stack_files(folder: Path, runs, labels: Path | None = None) -> tuple[list[Path], list[Path]]:
    """Runs of the real subject, by number, and their masks: those of the data set, or of ``labels`` (labels.py)."""
    _check_there(folder)
    masks = labels or folder / "derivatives" / "manual_masks" / "sub-01" / "anat"
    if labels and not labels.is_dir():
        raise InputError(f"{labels}: there are no masks; make them with training/labels.py {labels}")
    return (
        [folder / "sub-01" / "anat" / f"sub-01_run-{run}_T2w.nii.gz" for run in runs],
        [masks / f"sub-01_run-{run}_T2w_desc-brain_mask.nii.gz" for run in runs],
    )


def real_stacks(read: list[tuple[Scene, np.ndarray]]) -> list[Scene]:
    """Stacks with their affines, each surrounded by the next that crosses it."""
    out = []
    for k, (stack, affine) in enumerate(read):
        after = [*read[k + 1 :], *read[:k]]
        crossing = [(other, theirs) for other, theirs in after if abs(_normal(affine) @ _normal(theirs)) < 0.7]
        out.append(surrounded(stack, affine, *crossing[0]) if crossing else stack)
    return out


def _normal(affine: np.ndarray) -> np.ndarray:
    """Unit vector along the third axis."""
    return affine[:3, 2] / np.linalg.norm(affine[:3, 2])


def brains(folder: Path, weeks) -> list[Brain]:
    """Volumes of the atlas, by gestational age."""
    return [read_brain(*atlas_files(folder, week)) for week in weeks]


def atlas_files(folder: Path, week: int) -> list[Path]:
    """Volume, mask and labels of the atlas at a gestational age."""
    _check_there(folder)
    return [next(folder.glob(f"GA{week}_*_{kind}.nii.gz")) for kind in ("srr", "mask", "parcellation")]


def transplanted(rng, stack: Scene, brain: Brain) -> Scene:
    """A real stack with a brain of the atlas in the place of its own.

    The brain is turned so that its axes lie along those of the real one (either way round), and stretched to fill
    most of the mask; what is left of the mask becomes fluid.
    """
    near = stack.finest
    at = near.start + np.argwhere(is_brain(near.labels)) * near.spacing
    middle, (turn, width) = at.mean(0), _axes(at)
    theirs = np.argwhere(brain.labels > 0) * brain.voxel
    own_turn, own_width = _axes(theirs)
    signs = rng.choice((-1, 1), 3)
    fill = rng.uniform(0.82, 1.0) * np.exp(rng.normal(0, 0.03, 3))
    wobble = Rotation.from_rotvec(rng.normal(0, np.deg2rad(12), 3)).as_matrix()
    matrix = own_turn @ np.diag(signs * own_width / (width * fill)) @ turn.T @ wobble
    done = []
    for volume in (near, Inner(stack.image, stack.labels, np.zeros(3), np.array(stack.spacing))):
        inside = is_brain(volume.labels)
        places = volume.start + np.argwhere(inside) * volume.spacing
        index = (((places - middle) @ matrix.T + theirs.mean(0)) / brain.voxel).T
        labels, image = volume.labels.copy(), volume.image.copy()
        tissue = ndimage.map_coordinates(brain.labels, index, order=0)
        texture = ndimage.map_coordinates(brain.image, index, order=1)
        labels[inside] = np.where(tissue > 0, tissue, CSF)
        image[inside] = as_bytes(np.where(tissue > 0, texture, 1.0))
        done.append(replace(volume, image=image, labels=labels))
    near, far = done
    return scene_of(
        f"{brain.name} in {stack.name}", far.image, far.labels, stack.spacing, True, near if stack.inner else None
    )


def _axes(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Principal axes (columns) and standard deviations along them of points, (N, 3)."""
    values, vectors = np.linalg.eigh(np.cov((points - points.mean(0)).T))
    return vectors, np.sqrt(values)
