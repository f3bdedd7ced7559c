# SPDX-License-Identifier: Apache-2.0
"""Scenes of the placing benchmark: a head that moves slice by slice inside a mother who does not move with it.

Each slice is integrated over its profile from two volumes: the head (brain, skull, eyes, face, neck), seen through
the pose of that slice, covers what lies behind it, the mother and the amniotic fluid, which stay where they are. The
shapes are those of the mask network's training (``training/``): this benchmark is about what a reconstruction makes
of masks that are wrong, not about how often a mask is wrong.
"""

import sys
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from common import CHECKOUT, shared_folder
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.imaging.nifti import load_image
from gsbids.imaging.stack import Stack
from gsbids.recon.psf import FWHM_TO_SIGMA
from gsbids.simulate.acquire import ORIENTATIONS as ORIENTED
from gsbids.simulate.acquire import Acquisition, acquisition_order, draw_motion, rigid_about, stack_grid

sys.path.insert(0, str(CHECKOUT / "training"))
from canvas import AIR, CANAL, EYE, FLESH, LENS, SPINE, VERTEBRA, VOXEL, blank
from generator import Mixture, palette
from mother import mother, womb
from phantom import Head, _texture, brain_in_skull, face, trunk_and_limbs
from sources import TOP, Brain, brains, is_brain, stack_files

WEEKS = (22, 25, 28)
FINE = 1.0  # mm: voxels of a head
SIDE = 190.0  # mm: field of view in the plane
MARGIN = 10.0  # mm of a stack before and behind the head's usual place
NODES = np.linspace(-1.6, 1.6, 5)  # standard deviations of the slice profile at which it is sampled
THICKNESSES = (2.0, 3.0, 4.0)
TURNS = (0, 40, 80, 110, 140, 160, 180)  # degrees between stacks
ORIENTATIONS = ("axial", "coronal", "sagittal")
MASKS = ("tight", "network", "grown-3", "grown-6", "face", "leaky", "third")
STEADY = 6.0  # mm around a real brain from which on its stack is taken for the mother
CROSSING = 50.0  # degrees between the slices of any two stacks in the head, at least


@dataclass(frozen=True)
class Volume:
    """An image with its affine, voxel indices to mm."""

    image: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class MovingHead:
    """A head in its own frame, mm, the middle of its brain at 0.

    Attributes
    ----------
    image : ndarray, (X, Y, Z), float32
        Intensities, 0 outside the head.
    cover : ndarray, (X, Y, Z), float32
        Share of the voxel that the head fills.
    brain, face : ndarray, (X, Y, Z), bool
        The brain with the fluid within the skull; and what else a careless mask would take.
    affine : ndarray, (4, 4)
    """

    image: np.ndarray
    cover: np.ndarray
    brain: np.ndarray
    face: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class Scene:
    """Stacks with known poses.

    Attributes
    ----------
    name : str
    turn : int
        Degrees by which the head lies otherwise in the second stack than in the first.
    thickness : float
    truth : Volume
        The head.
    brain : ndarray, (X, Y, Z), bool
        Brain of the truth.
    stacks : list of Stack
        With tight masks.
    faces : list of ndarray
        Masks of the face in each stack.
    transforms : list of ndarray, (Z, 4, 4)
        Scanner -> head, mm; NaN where the stack does not show this head.
    given : list of ndarray or None
        Masks that somebody has drawn; None: the tight ones.
    """

    name: str
    turn: int
    thickness: float
    truth: Volume
    brain: np.ndarray
    stacks: list[Stack]
    faces: list[np.ndarray]
    transforms: list[np.ndarray]
    given: list[np.ndarray] | None = None


def atlas() -> list[Brain]:
    """The brains that heads are made of."""
    return brains(shared_folder() / "data" / "fetal-atlas-spinabifida", WEEKS)


def made_head(rng, brain: Brain) -> MovingHead:
    """A brain of the atlas in a made-up skull, with eyes, a face and a neck."""
    canvas = blank(np.zeros(3), FINE)
    half = np.array(brain.labels.shape) / 2 * brain.voxel
    head, texture = Head(canvas, np.eye(3), np.zeros(3), half), _fine_texture(rng, canvas.labels.shape)
    _neck(rng, head)
    face(rng, head)
    brain_in_skull(rng, head, brain, np.ones(3), texture)
    labels = canvas.labels
    colours = palette(rng, Mixture(odd=0.0, labels=0.3))
    image = colours.offset[labels] + colours.gain[labels] * np.clip(texture, 0, TOP)
    cover = ndimage.gaussian_filter((labels != AIR).astype(np.float32), 0.6)
    image = ndimage.gaussian_filter(np.where(labels != AIR, image, 0).astype(np.float32), 0.5)
    inside = is_brain(labels)
    low = canvas.at[2] < -0.35 * half[2]
    rest = (labels != AIR) & ~inside & low & (canvas.at[1] > -0.2 * half[1])
    affine = np.diag([FINE, FINE, FINE, 1.0])
    affine[:3, 3] = canvas.start
    return MovingHead(image, cover, inside, rest | (labels == EYE) | (labels == LENS), affine)


def _neck(rng, head: Head) -> None:
    """A neck with a spine, which moves with the head."""
    top, width = head.point((0, -0.25, -0.7)), float(head.half[0])
    down = np.array([rng.normal(0, 0.15), rng.uniform(-0.5, 0.3), -1.0])
    end = top + down / np.linalg.norm(down) * width * 0.9
    head.canvas.capsule(FLESH, top, end, width * rng.uniform(0.35, 0.55))
    head.canvas.capsule(VERTEBRA, top, end, 0.15 * width, (FLESH, 4.0))
    head.canvas.capsule(CANAL, top, end, 0.13 * width)
    head.canvas.capsule(SPINE, top, end, 0.06 * width)


def _fine_texture(rng, shape) -> np.ndarray:
    grain = ndimage.gaussian_filter(rng.standard_normal(shape, np.float32), 1.5)
    return np.clip(0.75 + 0.2 * grain / grain.std(), 0, None)


def made_mother(rng, head: MovingHead) -> Volume:
    """A body, organs, a womb with fluid around the place of the head, and often a trunk that lies still in it."""
    canvas = blank(np.zeros(3), VOXEL)
    half = np.ptp(np.argwhere(head.brain), axis=0) / 2 * FINE
    mother(rng, canvas, 0.5)
    womb(rng, canvas, rng.uniform(-8, 8, 3), float(half.mean()) * 0.85)  # close: walls pass behind the head
    if rng.random() < 0.5:
        pose = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
        trunk_and_limbs(rng, Head(canvas, pose, pose @ (0, 0, -0.9 * half[2]), half))
    colours = palette(rng, Mixture(odd=0.0, labels=0.0))
    texture = np.clip(0.75 + 0.25 * _texture(rng), 0, TOP)
    image = colours.offset[canvas.labels] + colours.gain[canvas.labels] * texture
    affine = np.diag([VOXEL, VOXEL, VOXEL, 1.0])
    affine[:3, 3] = canvas.start
    return Volume(ndimage.gaussian_filter(image.astype(np.float32), 0.4), affine)


def real_mother(rng, run: int) -> Volume:
    """What a real stack shows around the head, the head filled with fluid; the middle of its brain comes to 0."""
    (stack,), (mask,) = stack_files(shared_folder() / "data" / "fetal-stacks-mialsrtk", [run])
    image, affine = load_image(stack)
    inside = load_image(mask)[0] > 0
    affine = np.array(affine, float)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    middle = affine[:3, :3] @ np.argwhere(inside).mean(0) + affine[:3, 3]
    affine[:3, 3] -= middle
    fluid = np.percentile(image[inside], 95)
    grain = ndimage.gaussian_filter(rng.standard_normal(image.shape), 4 / spacing)
    share = np.clip((STEADY - ndimage.distance_transform_edt(~inside, spacing)) / 3, 0, 1)
    image = image * (1 - share) + share * fluid * (1 + 0.08 * grain / grain.std())
    return Volume((image / np.percentile(image, 99)).astype(np.float32), affine)


def scene(seed: int) -> Scene:
    """One scene; everything about it follows from the seed."""
    rng = np.random.default_rng((21, seed))
    brain = atlas()[seed % len(WEEKS)]
    head = made_head(rng, brain)
    real = seed % 2 == 1
    behind = real_mother(rng, int(rng.integers(1, 7))) if real else made_mother(rng, head)
    turn, thickness = TURNS[seed % len(TURNS)], float(rng.choice(THICKNESSES))
    count = 2 + int(rng.random() < 0.35)
    how = Acquisition(
        in_plane=float(rng.uniform(1.0, 1.3)),
        thickness=thickness,
        spacing=thickness * rng.choice((1.0, 1.1)),
        noise=float(rng.uniform(0.01, 0.04)),
    )
    extent = np.ptp(np.argwhere(head.brain), axis=0).max() * FINE + 2 * MARGIN
    stacks, faces, transforms = [], [], []
    orientations = rng.permutation(ORIENTATIONS)[:count]
    for n, (orientation, whole) in enumerate(zip(orientations, lies(rng, orientations, turn), strict=True)):
        shift = rng.uniform(-8, 8, 3) if n else np.zeros(3)
        stack, side, moved = acquired(rng, head, behind, how, (orientation, extent), (whole, shift), f"run-{n + 1}")
        stacks.append(stack)
        faces.append(side)
        transforms.append(moved)
    weeks = WEEKS[seed % len(WEEKS)]
    name = f"seed-{seed}_{weeks}w_{'real' if real else 'made'}_{turn}deg_{thickness:g}mm_{count}stacks"
    return Scene(name, turn, thickness, Volume(head.image, head.affine), head.brain, stacks, faces, transforms)


def lies(rng, orientations, turn: float) -> list[Rotation]:
    """How the head lies in each stack: turned each time by an angle (degrees); their slices cross."""
    normals = [np.cross(*ORIENTED[orientation][:2]) for orientation in orientations]
    while True:
        out = [Rotation.random(random_state=int(rng.integers(2**31)))]
        for _ in orientations[1:]:
            axis = rng.standard_normal(3)
            out.append(Rotation.from_rotvec(np.radians(turn) * axis / np.linalg.norm(axis)) * out[-1])
        seen = [lie.inv().apply(normal) for lie, normal in zip(out, normals, strict=True)]
        if max(abs(a @ b) for a, b in combinations(seen, 2)) < np.cos(np.radians(CROSSING)):
            return out


def acquired(rng, head: MovingHead, behind: Volume, how: Acquisition, where, pose, name: str):
    """One stack with its tight mask; the mask of the face; and the true motion, scanner -> head.

    ``where``: orientation, and extent across the slices (mm); ``pose``: rotation head -> scanner, and shift (mm).
    """
    orientation, extent = where
    box = np.full(3, SIDE)
    affine, shape = stack_grid(orientation, how, box, Rotation.from_rotvec(np.radians(rng.uniform(-6, 6, 3))))
    depth = int(np.ceil(extent / how.spacing))
    first = (shape[2] - depth) // 2
    affine[:3, 3] += first * affine[:3, 2]
    shape = (*shape[:2], depth)
    walk = draw_motion(depth, rng.uniform(5, 15), rng.uniform(3, 10), rng.uniform(2, 6), rng)
    walk = walk[acquisition_order(depth, 2)]
    turn, shift = pose
    still = np.eye(4)
    still[:3, :3], still[:3, 3] = turn.as_matrix().T, -turn.as_matrix().T @ shift
    transforms = rigid_about(np.zeros(3), walk[:, :3], walk[:, 3:]) @ still
    image, brain, side = _slices(head, behind, affine, shape, how, transforms)
    gain = np.exp(0.03 * rng.standard_normal(depth))
    lost = rng.random(depth) < 0.2
    gain[lost] *= rng.uniform(0.4, 0.8, lost.sum())
    peak = np.percentile(image[brain], 99)
    noise = how.noise * peak * rng.standard_normal((2, *shape))
    image = np.hypot(image * gain + noise[0], noise[1]).astype(np.float32) * np.float32(1000 / peak)
    return Stack(name, image, brain, affine, how.thickness), side, transforms


def _slices(head: MovingHead, behind: Volume, affine, shape, how: Acquisition, transforms):
    """Slices without noise, and where brain and face fill half of a pixel."""
    in_plane = 1.2 * how.in_plane * FWHM_TO_SIGMA
    blurred = [
        ndimage.gaussian_filter(np.asarray(a, np.float32), in_plane / FINE)
        for a in (head.image, head.cover, head.brain, head.face)
    ]
    normal = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
    through = how.thickness * FWHM_TO_SIGMA
    weights = np.exp(-(NODES**2) / 2)
    weights /= weights.sum()
    out = np.zeros((3, *shape), np.float32)
    for k in range(shape[2]):
        slab = np.eye(4)
        slab[:3, :2] = affine[:3, :2]
        slab[:3, 2] = normal * through * (NODES[1] - NODES[0])
        slab[:3, 3] = affine[:3, :3] @ [0, 0, k] + affine[:3, 3] + normal * through * NODES[0]

        def seen(array, to_voxel, mode="constant"):
            return ndimage.affine_transform(
                array, to_voxel[:3, :3], to_voxel[:3, 3], (*shape[:2], len(NODES)), order=1, mode=mode
            )

        to_head = np.linalg.inv(head.affine) @ transforms[k] @ slab
        image, cover, brain, side = (seen(a, to_head) for a in blurred)
        mother_ = seen(behind.image, np.linalg.inv(behind.affine) @ slab, "mirror")
        out[0, :, :, k] = (image + (1 - cover) * mother_) @ weights
        out[1, :, :, k], out[2, :, :, k] = brain @ weights, side @ weights
    return out[0], out[1] > 0.5, out[2] > 0.5


def masks(found: Scene, kind: str, seed: int) -> list[np.ndarray | None]:
    """Masks of a kind for the stacks of a scene; None where none is found."""
    rng = np.random.default_rng((22, seed))
    if kind == "given":
        return found.given or [stack.mask for stack in found.stacks]
    return [_mask(rng, stack, side, kind) for stack, side in zip(found.stacks, found.faces, strict=True)]


def _mask(rng, stack: Stack, side: np.ndarray, kind: str) -> np.ndarray | None:
    tight = stack.mask
    if kind == "network":
        from gsbids.masking.stack_masks import NoBrain, network_mask

        try:
            return network_mask(stack.image, stack.affine).mask
        except NoBrain:
            return None
    if kind.startswith("grown"):
        return grown(tight, int(kind.partition("-")[2]))
    if kind == "face":
        return tight | side
    if kind == "leaky":
        return leaky(rng, stack, side)
    if kind == "third":
        index = np.argwhere(tight)
        direction = rng.standard_normal(3)
        along = index * stack.spacing @ (direction / np.linalg.norm(direction))
        left = np.zeros_like(tight)
        left[tuple(index[along < np.percentile(along, 100 * 2 / 3)].T)] = True
        return left
    return tight


def leaky(rng, stack: Stack, side: np.ndarray) -> np.ndarray:
    """A mask as networks make them of strangers: wider, with much of the face, with pieces of what lies beside the
    head and does not move with it, and without an end slice of the brain."""
    mask = grown(stack.mask, 2)
    sliced = rng.random(mask.shape[2]) < 0.6
    mask |= side & sliced
    spacing, edge = stack.spacing, np.argwhere(grown(stack.mask, 3) & ~stack.mask)
    wanted = stack.mask.sum() * rng.uniform(1.3, 1.7)
    index = np.moveaxis(np.indices(mask.shape), 0, -1)
    while mask.sum() < wanted:
        middle, radius = edge[rng.integers(len(edge))], rng.uniform(5, 14)
        axes = radius * np.array([1, 1, rng.uniform(0.5, 1.2)])
        mask |= (((index - middle) * spacing / axes) ** 2).sum(-1) < 1
    used = np.flatnonzero(stack.mask.any((0, 1)))
    mask[..., used[0] if rng.random() < 0.5 else used[-1]] = False
    return mask


def grown(mask: np.ndarray, pixels: int) -> np.ndarray:
    """A mask, so many pixels wider in the plane of its slices."""
    return np.stack(
        [
            ndimage.distance_transform_edt(~mask[..., k]) <= pixels if mask[..., k].any() else mask[..., k]
            for k in range(mask.shape[2])
        ],
        axis=2,
    )
