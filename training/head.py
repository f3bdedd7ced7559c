# SPDX-License-Identifier: Apache-2.0
"""The real head with what lies around it as one sharp volume: stacks of the training, reconstructed by gsbids itself.

Stacks are sharp in their planes only; cut across, their faces and necks are blurred as no stack shows them. The
surroundings do not move as the head does and are blurred instead, the more the farther they are.
"""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from scipy import ndimage
from sources import REAL, Scene, as_bytes, is_brain, read_stack, real_stacks, scene_of, stack_files, surrounded

from gsbids.errors import InputError
from gsbids.imaging.masks import resample_mask
from gsbids.imaging.nifti import load_image, read_header, save_image
from gsbids.simulate.compare import align_rigid

MARGIN = 30.0  # mm around the masks that are reconstructed
SHOWN = 24.0  # mm around the mask that are shown: farther out few slices tell of a voxel
VOXEL = 1.2  # mm


def head_volume(stacks: list[Path], masks: list[Path], folder: Path, options=()) -> tuple[Path, Path]:
    """The volume and its brain mask; made by gsbids, in minutes, unless they lie in the folder.

    The brain is reconstructed by itself, too: its mask, rigidly aligned, becomes that of the volume.

    Parameters
    ----------
    stacks, masks : list of Path
    folder : Path
        What is made is kept there.
    options : sequence of str
        More words for ``gsbids reconstruct``.

    Returns
    -------
    volume, mask : Path

    Raises
    ------
    gsbids.errors.InputError
        gsbids failed, and has said why.
    """
    volume, mask = folder / "head.nii.gz", folder / "head_mask.nii.gz"
    if not mask.exists():
        folder.mkdir(parents=True, exist_ok=True)
        wide = [_widened(path, folder / f"wide-{k}.nii.gz") for k, path in enumerate(masks)]
        brain = _reconstruct(stacks, masks, folder / "brain", options)
        head = _reconstruct(stacks, wide, folder / "wide", options)
        image, affine = load_image(brain["volume"])
        inside = load_image(brain["mask"])[0] > 0
        shape, wanted = read_header(head["unmasked"])
        moving = save_image(folder / "moving.nii.gz", (np.maximum(image, 0) + 1) * inside, affine)  # 0: not brain
        near = save_image(folder / "near.nii.gz", resample_mask(inside, affine, wanted, shape), wanted, "uint8")
        _, filled = align_rigid(moving, head["unmasked"], near)
        head["unmasked"].replace(volume)
        save_image(mask, filled, wanted, "uint8")
    return volume, mask


def _widened(mask: Path, out: Path) -> Path:
    """A mask with a margin around it."""
    inside, affine = load_image(mask)
    near = ndimage.distance_transform_edt(inside == 0, np.linalg.norm(affine[:3, :3], axis=0)) <= MARGIN
    return save_image(out, near, affine, "uint8")


def _reconstruct(stacks: list[Path], masks: list[Path], folder: Path, options) -> dict[str, Path]:
    """What ``gsbids reconstruct`` makes of stacks."""
    out = {name: folder / f"{name}.nii.gz" for name in ("volume", "mask", "unmasked")}
    folder.mkdir(exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "gsbids",
        "reconstruct",
        "--input-stacks",
        *stacks,
        "--input-masks",
        *masks,
        "--output-resolution",
        str(VOXEL),
        "-w",
        folder / "work",
        *options,
    ]
    for name, path in out.items():
        command += [f"--output-{name}", path]
    # 3: made, and not to be used: wide masks hold what does not move with the head, which is wanted here.
    if subprocess.run([str(word) for word in command]).returncode not in (0, 3):
        raise InputError(f"{folder}: gsbids did not reconstruct the head there, for the reason above")
    return out


def head_scene(volume: Path, mask: Path) -> tuple[Scene, np.ndarray]:
    """The head as a scene of its own, and its affine."""
    image, affine = load_image(volume)
    inside = load_image(mask)[0] > 0
    image = image / np.percentile(image[inside], 99.5)
    scene = scene_of("head", as_bytes(image), np.where(inside, REAL, 0).astype(np.uint8), (VOXEL,) * 3, True)
    return scene, affine


def filled_up(scene: Scene) -> Scene:
    """A surrounded head; where it knows nothing lies what its surroundings show, the brain of both as bright."""
    head, spacing = scene.inner, np.array(scene.spacing)
    inside = is_brain(head.labels)
    to_scene = np.diag(head.spacing / spacing)
    far = ndimage.affine_transform(scene.image, to_scene, head.start / spacing, head.labels.shape, order=1)
    known = (ndimage.distance_transform_edt(~inside, head.spacing) < SHOWN) & (head.image > 0)
    gain = scene.image[is_brain(scene.labels)].mean() / head.image[inside].mean()
    image = np.where(known, np.rint(np.clip(head.image * gain, 0, 255)), far).astype(np.uint8)
    return replace(scene, inner=replace(head, image=image))


def real_scenes(folder: Path, told: dict, head: Path, labels: Path | None = None) -> list[Scene]:
    """The stacks of the real subject; and, where the configuration says so, its head as a sharp volume, surrounded by
    each kind of stack that there is. With the manual masks, or, where it says ``intracranial``, with those of
    ``labels``."""
    labels = labels if told.get("intracranial") else None
    stacks, masks = stack_files(folder, told["runs"], labels)
    read = [read_stack(*pair) for pair in zip(stacks, masks, strict=True)]
    out = real_stacks(read)
    if told.get("heads"):
        own = head / f"runs-{'-'.join(map(str, told['runs']))}{'-intracranial' if labels else ''}"
        volume = head_scene(*head_volume(stacks, masks, own))
        out += [filled_up(surrounded(*volume, *read[told["runs"].index(run)])) for run in told["heads"]]
    return out
