# SPDX-License-Identifier: Apache-2.0
"""Folders of single slices, each at its pose in the anatomy, as NeSVoR, SVoRT and GSVR read and write them.

``N.nii.gz`` holds slice N (X x Y x 1); the first two columns and the origin of its affine are its pose, the length of
the third is the slice thickness. ``mask_N.nii.gz`` holds its brain mask.
"""

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from gsbids.errors import InputError
from gsbids.imaging.geometry import slice_frames
from gsbids.imaging.intensity import above_background
from gsbids.imaging.limits import THICKNESS_RANGE
from gsbids.imaging.masks import inside_of, same_grid
from gsbids.imaging.nifti import load_image, save_image
from gsbids.imaging.stack import Stack
from gsbids.recon.svr.result import SvrResult
from gsbids.recon.volume.sample import simulate_stack

TABLE = "slices.tsv"
# Another stack begins where the normal turns by more (degrees), or the slices jump by more (mm) along it.
TURN, JUMP = 45.0, 20.0
FEWEST = 3  # slices of a stack; fewer are counted to the one before


@dataclass(frozen=True)
class PlacedSlice:
    """One slice at its pose in the anatomy.

    Attributes
    ----------
    number : int
        Number N of its file.
    image, mask : ndarray, (X, Y), float32 and bool
    files : tuple of Path
        Files that it was read from.
    affine : ndarray, (4, 4)
        Pixel indices and mm along the normal to world RAS+ mm.
    thickness : float
        mm.
    """

    number: int
    image: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    thickness: float
    files: tuple[Path, ...] = ()

    @property
    def spacing(self) -> np.ndarray:
        """Pixel size, (2,), mm."""
        return np.linalg.norm(self.affine[:3, :2], axis=0)

    @property
    def pose(self) -> np.ndarray:
        """Frame of the slice (columns: row, column, normal) about its middle, (4, 4)."""
        frames, middle = slice_frames(self.affine, (*self.image.shape, 1))
        return _rigid(frames[0], middle[0])


def read_slices(folder: str | Path, thickness: float | None = None) -> list[PlacedSlice]:
    """Read all slices with brain of a folder, in the order of their numbers.

    Parameters
    ----------
    folder : path-like
    thickness : float, optional
        Slice thickness in mm, instead of what the affines say.

    Raises
    ------
    gsbids.errors.InputError
        No folder or no slices in it, a mask without its slice, an image that is not one slice, a mask of other
        pixels, no brain anywhere.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"--input-slices {folder}: there is no such folder; give one with slices N.nii.gz")
    images, masks = _numbered(folder, ""), _numbered(folder, "mask_")
    if not images:
        raise InputError(
            f"--input-slices {folder}: there are no slices in it; files N.nii.gz (0.nii.gz, ...) are "
            "expected, with masks mask_N.nii.gz"
        )
    lone = sorted(set(masks) - set(images))
    if lone:
        raise InputError(
            f"{masks[lone[0]]}: there is no slice that this mask belongs to ({lone[0]}.nii.gz); copy the "
            "folder again or remove the mask"
        )
    slices = [_read(images[n], masks.get(n), n, thickness) for n in sorted(images)]
    found = [piece for piece in slices if piece.mask.any()]
    if not found:
        raise InputError(f"--input-slices {folder}: no slice has brain in its mask; check the masks")
    return found


def group_slices(slices: list[PlacedSlice]) -> list[list[PlacedSlice]]:
    """Group slices by the stacks that they belong to, as far as their poses tell.

    Slices of one stack share a brightness and a bias, and those beside one another move alike. A folder does not say
    which belong together: a stack ends where pixels, thickness or direction change, or the slices jump back. Where
    that is guessed wrong, poses are what they were all the same.
    """
    groups: list[list[PlacedSlice]] = []
    for piece in slices:
        if groups and _goes_on(groups[-1][-1], piece):
            groups[-1].append(piece)
            continue
        before = _merge_few(groups)
        if before and _goes_on(before, piece):
            groups[-1].append(piece)
        else:
            groups.append([piece])
    _merge_few(groups)
    return groups


def _merge_few(groups: list[list[PlacedSlice]]) -> PlacedSlice | None:
    """Add a group of too few slices, which moved far, to the one before; return the last own slice of that, if so."""
    if len(groups) < 2 or len(groups[-1]) >= FEWEST or not _alike(groups[-2][-1], groups[-1][0]):
        return None
    few, before = groups.pop(), groups[-1][-1]
    groups[-1] += few
    return before


def as_stacks(groups: list[list[PlacedSlice]]) -> tuple[list[Stack], np.ndarray]:
    """Return slices as stacks of regular slices, with the transforms to their poses.

    Parameters
    ----------
    groups : list of list of PlacedSlice
        Groups from :func:`group_slices`.

    Returns
    -------
    stacks : list of Stack
        N stacks, named by the numbers of their slices.
    transforms : ndarray, (N, Z, 4, 4)
        World rigid transforms from the regular stack to the anatomy, of every slice; Z slices in the longest stack,
        the last transform repeated for the others.
    """
    stacks, moves = zip(*(_regular(group) for group in groups), strict=True)
    depth = max(len(move) for move in moves)
    padded = [np.concatenate([move, np.repeat(move[-1:], depth - len(move), axis=0)]) for move in moves]
    return list(stacks), np.array(padded)


def placed_slices(stacks: list[Stack], result: SvrResult) -> Iterator[tuple[int, PlacedSlice]]:
    """Yield the slices of a reconstruction at their poses: row of the result and slice, intensities as acquired."""
    stacks, moves = result.as_fitted(stacks), result.motion.as_affines(result.nominal)
    for number, row in enumerate(np.lexsort((result.slice_index, result.stack_index))):
        stack, k = stacks[result.stack_index[row]], int(result.slice_index[row])
        affine = moves[row] @ stack.affine
        affine[:3, 3] += k * affine[:3, 2]
        affine[:3, 2] = stack.thickness * _normal(affine)
        yield int(row), PlacedSlice(number, stack.image[:, :, k], stack.mask[:, :, k], affine, stack.thickness)


def write_slices(folder: str | Path, stacks: list[Stack], result: SvrResult, simulated: bool = False) -> Path:
    """Write the slices of a reconstruction into a folder; a former one is replaced as a whole.

    All slices of the fit are written, those that it rejected too; ``slices.tsv`` says which is which.

    Parameters
    ----------
    folder : path-like
        See :func:`check_slice_folder`.
    stacks : list of Stack
        Prepared stacks of the fit.
    result : SvrResult
    simulated : bool
        Write what the reconstruction predicts instead of what was acquired.
    """
    folder = Path(folder).resolve()
    made = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(parents=True)
    try:
        _write(made, stacks, result, simulated)
        if folder.is_dir():
            shutil.rmtree(folder)
        made.rename(folder)
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return folder


def _write(folder: Path, stacks: list[Stack], result: SvrResult, simulated: bool) -> None:
    """Write slices, masks and the table of :func:`write_slices` into an empty folder."""
    lines = ["\t".join(("file", "stack", "slice", "weight", "gain", "ncc"))]
    predicted = [simulate_stack(result, stack, n) for n, stack in enumerate(stacks)] if simulated else None
    for row, piece in placed_slices(stacks, result):
        stack, k = int(result.stack_index[row]), int(result.slice_index[row])
        image = (predicted[stack][:, :, k] if simulated else piece.image) + np.float32(stacks[stack].offset)  # type: ignore[index]
        save_image(folder / f"{piece.number}.nii.gz", image[:, :, None], piece.affine)
        save_image(folder / f"mask_{piece.number}.nii.gz", piece.mask[:, :, None], piece.affine, "uint8")
        numbers = (f"{float(column[row]):.6f}" for column in (result.weight, result.gain, result.ncc))
        lines.append("\t".join((f"{piece.number}.nii.gz", stacks[stack].name, str(k), *numbers)))
    (folder / TABLE).write_text("\n".join(lines) + "\n", encoding="utf-8")


def check_slice_folder(folder: Path, option: str) -> None:
    """Raise InputError where slices cannot be written to a folder: one with other files is never replaced."""
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{option} {folder}: is a file; give the name of a folder")
    known = re.compile(rf"(mask_)?\d+\.nii(\.gz)?|{re.escape(TABLE)}")
    strange = [path for path in folder.iterdir() if not known.fullmatch(path.name)] if folder.is_dir() else []
    if strange:
        raise InputError(
            f"{option} {folder}: holds other files than slices ({strange[0].name}); give an empty or a new folder"
        )


def _numbered(folder: Path, prefix: str) -> dict[int, Path]:
    """Return files ``<prefix>N.nii.gz`` by N."""
    found: dict[int, Path] = {}
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(rf"{prefix}(\d+)\.nii(\.gz)?", path.name)
        if match and int(match[1]) in found:
            raise InputError(
                f"{path}: is slice {int(match[1])}, and so is {found[int(match[1])].name}; remove one of them"
            )
        if match:
            found[int(match[1])] = path
    return found


def _read(path: Path, mask_path: Path | None, number: int, thickness: float | None) -> PlacedSlice:
    image, affine = load_image(path)
    if image.shape[2] != 1:
        raise InputError(f"{path}: has {image.shape[2]} slices, and one is expected; give stacks with --input-stacks")
    mask = above_background(image) != 0
    if mask_path is not None:
        inside, mask_affine = load_image(mask_path)
        if not same_grid(inside.shape, mask_affine, image.shape, affine, 0.5):
            raise InputError(f"{mask_path}: its pixels are not those of {path.name}; write both again")
        mask = inside_of(inside)[0] if inside.any() else inside > 0
    if thickness is None:
        thickness = round(float(np.linalg.norm(affine[:3, 2])), 4)
    if not THICKNESS_RANGE[0] <= thickness <= THICKNESS_RANGE[1]:
        raise InputError(
            f"{path}: a slice thickness of {thickness:g} mm is outside {THICKNESS_RANGE[0]:g} to "
            f"{THICKNESS_RANGE[1]:g} mm; give --slice-thickness MM"
        )
    try:
        slice_frames(affine, image.shape)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    files = (path, mask_path) if mask_path else (path,)
    return PlacedSlice(number, image[:, :, 0], mask[:, :, 0], affine, thickness, files)


def _alike(one: PlacedSlice, other: PlacedSlice) -> bool:
    return (
        one.image.shape == other.image.shape  # type: ignore[return-value]
        and np.allclose(one.spacing, other.spacing, rtol=0.01)
        and np.isclose(one.thickness, other.thickness, rtol=0.01)
    )


def _goes_on(one: PlacedSlice, other: PlacedSlice) -> bool:
    """Return whether two slices can be neighbours in a stack."""
    if not _alike(one, other):
        return False
    here, there = one.pose, other.pose
    turned = np.degrees(np.arccos(np.clip(here[:3, 2] @ there[:3, 2], -1, 1)))
    return turned <= TURN and abs(here[:3, 2] @ (there - here)[:3, 3]) <= max(JUMP, 5 * one.thickness)


def _regular(group: list[PlacedSlice]) -> tuple[Stack, np.ndarray]:
    """Return a regular stack in the mean direction of its slices, and the moves from it to their poses."""
    poses = np.array([piece.pose for piece in group])
    frame = Rotation.from_matrix(poses[:, :3, :3]).mean().as_matrix()
    along = (poses[:, :3, 3] - poses[0, :3, 3]) @ frame[:, 2]
    gap = float(np.median(np.diff(along))) if len(group) > 1 else 0.0
    gap = gap if abs(gap) > 0.1 * group[0].thickness else group[0].thickness
    affine = _rigid(frame, np.zeros(3)) @ np.diag([*group[0].spacing, gap, 1.0])
    shape = (*group[0].image.shape, len(group))
    affine[:3, 3] = poses[:, :3, 3].mean(0) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    frames, middle = slice_frames(affine, shape)
    moves = np.array([pose @ np.linalg.inv(_rigid(f, m)) for pose, f, m in zip(poses, frames, middle, strict=True)])
    images, masks = (np.stack([getattr(piece, name) for piece in group], axis=2) for name in ("image", "mask"))
    name = f"slices-{group[0].number}-{group[-1].number}"
    return Stack(name, images, masks, affine, group[0].thickness), moves


def _normal(affine: np.ndarray) -> np.ndarray:
    normal = np.cross(affine[:3, 0], affine[:3, 1])
    return normal / np.linalg.norm(normal)


def _rigid(rotation: np.ndarray, shift: np.ndarray) -> np.ndarray:
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = rotation, shift
    return transform
