# SPDX-License-Identifier: Apache-2.0
"""All slices of a task in one set of arrays, as the fit and the kernels take them."""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from gsbids.errors import InputError
from gsbids.imaging.geometry import slice_frames
from gsbids.imaging.masks import bounding_box
from gsbids.imaging.stack import Stack, centred, seen_from
from gsbids.kernels import ops
from gsbids.kernels.problem import Array
from gsbids.recon.motion import RigidMotion
from gsbids.recon.psf import slice_psf

if TYPE_CHECKING:
    from gsbids.kernels.cuda.plan import DeviceGeometry

REFERENCE_PERCENTILE = 99.0  # of the masked intensities of a stack: brought to 1


@dataclass(frozen=True)
class SliceSet:
    """S slices with brain in them, cropped to their masks, padded to one size X x Y.

    Positions are mm relative to ``origin``, so that nothing depends on where the scanner's own origin is.

    Attributes
    ----------
    values : ndarray, (S, X, Y), float32
        Intensities over the 99th percentile of their stack.
    mask : ndarray, (S, X, Y), bool
        Pixels of brain.
    region : ndarray, (S, X, Y), bool
        Pixels that are fitted: the mask and a rim around it, so that the edge of the brain is data and not a guess.
    nominal : RigidMotion
        Poses in the scanner.
    start : RigidMotion
        Poses after the co-registration of the stacks.
    psf, spacing, centre : ndarray, (S, 3), (S, 2), (S, 2)
        PSF variances (mm2), pixel size (mm), and pixel index of the slice origin (centroid of its mask).
    stack_index, slice_index : ndarray, (S,), int
    slice_gap : ndarray, (S,)
        Distance (mm) to the next slice of the stack.
    stack_scale : ndarray, (N,)
        Intensity that stands for 1 in each stack.
    origin : ndarray, (3,)
        World RAS+ mm.
    corner : ndarray, (S, 2), int
        Index of the crop's first pixel in the whole slice.
    """

    values: np.ndarray
    mask: np.ndarray
    region: np.ndarray
    nominal: RigidMotion
    start: RigidMotion
    psf: np.ndarray
    spacing: np.ndarray
    centre: np.ndarray
    stack_index: np.ndarray
    slice_index: np.ndarray
    slice_gap: np.ndarray
    stack_scale: np.ndarray
    origin: np.ndarray
    corner: np.ndarray

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self.values)

    def geometry(self, motion: RigidMotion, device: str = "cpu") -> "ops.SliceGeometry | DeviceGeometry":
        """Return the geometry of the pixels under given poses, rendered within the region's rows only.

        What is the same under all poses is copied to a GPU once, and stays there as long as the slices do.

        Returns
        -------
        SliceGeometry, or gsbids.kernels.cuda.plan.DeviceGeometry for a GPU
        """
        if device not in self._placed:
            here = ops.SliceGeometry(
                motion.rotation,
                motion.translation,
                self.psf,
                self.spacing,
                self.centre,
                self.extent,
                tuple(self.values.shape[1:]),
            )
            if device == "cpu":
                return here
            self._placed[device] = ops.on_device(here, device)
        return self._placed[device].moved(motion.rotation, motion.translation)

    @cached_property
    def _placed(self) -> dict:
        """Geometry on devices other than the CPU, by their names."""
        return {}

    def with_values(self, values: Array) -> "SliceSet":
        """Return the same slices with other intensities (S, X, Y), arrays or tensors.

        Cached properties are kept.
        """
        other = replace(self, values=values)
        vars(other).update(extent=self.extent, _placed=self._placed)
        return other

    @cached_property
    def extent(self) -> np.ndarray:
        """Rows of the region, see :func:`row_extent`; computed once, as every iteration needs them."""
        return row_extent(self.region)

    def in_plane(self, row: int | np.ndarray, index: np.ndarray) -> np.ndarray:
        """Return the position of pixels in the planes of their slices, mm from the slice origins.

        Parameters
        ----------
        row : int or ndarray, (P,), int
            Slice of the pixels.
        index : ndarray, (P, 2)
            Pixel indices.

        Returns
        -------
        ndarray, (P, 2)
        """
        return (index - self.centre[row]) * self.spacing[row]

    @property
    def volume(self) -> float:
        """Volume (mm3) of the region, as the median stack sees it."""
        each = self.region.sum((1, 2)) * self.spacing.prod(1) * self.slice_gap
        return float(np.median(np.bincount(self.stack_index, each)[np.unique(self.stack_index)]))

    @property
    def reach(self) -> float:
        """Largest distance (mm) of a pixel of any slice from its origin, along rows or columns."""
        ends = np.stack([self.centre, np.array(self.values.shape[1:]) - 1 - self.centre])
        return float((ends * self.spacing).max())

    @property
    def starts(self) -> np.ndarray:
        """World transforms scanner -> common space of the stacks as wholes, (N, 4, 4)."""
        first = np.unique(self.stack_index, return_index=True)[1]
        nominal, start = (
            RigidMotion(each.rotation, each.translation + self.origin)[first] for each in (self.nominal, self.start)
        )
        return start.as_affines(nominal)

    def neighbour(self, offset: int) -> np.ndarray:
        """Return the row of the slice ``offset`` places away in the same stack, (S,), int; else its own row."""
        row = {key: s for s, key in enumerate(zip(self.stack_index, self.slice_index, strict=True))}
        return np.array([row.get((n, k + offset), s) for (n, k), s in row.items()])

    @classmethod
    def from_stacks(
        cls, stacks: list[Stack], transforms: np.ndarray, rim: float = 0.0, min_pixels: int = 4
    ) -> "SliceSet":
        """Gather the slices of stacks.

        Parameters
        ----------
        stacks : list of Stack
        transforms : ndarray, (N, 4, 4) or (N, Z, 4, 4)
            World rigid transforms scanner -> common space, one per stack, or one for each of its slices (Z at
            least the slices of the longest stack), where poses are known from elsewhere.
        rim : float
            Width (mm) of the rim around the mask, in the plane of the slice, that is fitted as well.
        min_pixels : int
            Slices with fewer pixels of brain are left out, and those that are empty.

        Raises
        ------
        gsbids.errors.InputError
            A mask is empty.
        """
        stacks, corner = centred(stacks)
        parts = [_slices_of(stack, rim, min_pixels) for stack in stacks]
        shape = np.max([part["values"].shape[1:] for part in parts], axis=0)
        for part in parts:
            for key in ("values", "mask", "region"):
                grow = [(0, int(n - m)) for n, m in zip(shape, part[key].shape[1:], strict=True)]
                part[key] = np.pad(part[key], [(0, 0), *grow])
        index = np.concatenate([np.full(len(p["values"]), k) for k, p in enumerate(parts)])
        every = {key: np.concatenate([p[key] for p in parts]) for key in parts[0] if key != "scale"}
        nominal = RigidMotion(every.pop("rotation"), every.pop("translation"))
        transforms = np.round(seen_from(transforms, corner), 9)  # without what the world's origin left of rounding
        start = nominal.moved(transforms[index] if transforms.ndim == 3 else transforms[index, every["slice_index"]])
        weight = every["mask"].sum((1, 2), dtype=float)
        origin = np.average(start.translation, axis=0, weights=weight)
        return cls(
            nominal=RigidMotion(nominal.rotation, nominal.translation - origin),
            start=RigidMotion(start.rotation, start.translation - origin),
            stack_index=index,
            stack_scale=np.array([p["scale"] for p in parts]),
            origin=origin + corner,
            **every,
        )


def row_extent(mask: np.ndarray) -> np.ndarray:
    """Return the first and one-past-last masked pixel of every row, (S, X, 2), int32; empty rows give (0, 0)."""
    filled = mask.any(2)
    first = mask.argmax(2)
    last = mask.shape[2] - mask[:, :, ::-1].argmax(2)
    return np.where(filled[..., None], np.stack([first, last], -1), 0).astype(np.int32)  # type: ignore[index]


def _slices_of(stack: Stack, rim: float, min_pixels: int) -> dict:
    """Return the arrays of the slices of one stack, positions by its affine."""
    used = np.setdiff1d(np.flatnonzero(stack.mask.sum((0, 1)) >= min_pixels), stack.empty)
    if not len(used):
        raise InputError(f"{stack.name}: its mask is empty: give a mask with the brain in it, or leave the stack out")
    spacing = stack.spacing
    box = bounding_box(stack.mask, [int(np.ceil(rim / spacing[0])), int(np.ceil(rim / spacing[1])), 0])[:2]
    image = np.moveaxis(stack.image[box][:, :, used], 2, 0).astype(np.float32)
    mask = np.moveaxis(stack.mask[box][:, :, used], 2, 0)
    region = np.array([ndimage.distance_transform_edt(~m, sampling=spacing[:2]) <= rim for m in mask])
    scale = float(np.percentile(image[mask], REFERENCE_PERCENTILE))
    if scale <= 0:
        raise InputError(f"{stack.name}: every voxel inside its mask is 0: check image and mask")
    corner = np.array([b.start for b in box])
    u, v = np.arange(mask.shape[1]), np.arange(mask.shape[2])
    count = mask.sum((1, 2))
    centre = np.stack([(mask.sum(2) @ u) / count, (mask.sum(1) @ v) / count], 1)
    frames, middle = slice_frames(stack.affine, stack.image.shape)
    offset = (centre + corner - (np.array(stack.image.shape[:2]) - 1) / 2) * spacing[:2]
    position = middle[used] + np.einsum("sij,sj->si", frames[used][:, :, :2], offset)
    gap = np.linalg.norm(np.diff(middle, axis=0), axis=1).mean() if len(middle) > 1 else stack.thickness
    return {
        "values": image / scale,
        "mask": mask,
        "region": region,
        "rotation": frames[used],
        "translation": position,
        "psf": np.tile(slice_psf(spacing, stack.thickness), (len(used), 1)),
        "spacing": np.tile(spacing[:2], (len(used), 1)),
        "centre": centre,
        "slice_index": used,
        "slice_gap": np.full(len(used), gap),
        "corner": np.tile(corner, (len(used), 1)),
        "scale": scale,
    }
