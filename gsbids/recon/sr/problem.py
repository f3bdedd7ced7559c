# SPDX-License-Identifier: Apache-2.0
"""The inverse problem of super-resolution: data in [0, 1], the fine grid, the operator, and the background."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from gsbids.imaging.masks import bounding_box
from gsbids.kernels import ops
from gsbids.recon.sr.options import SrOptions
from gsbids.recon.sr.sampling_operator import AxisGrid, SamplingOperator

NARROW = 0.03  # variance of a profile, in coarse voxels squared, up to which it is folded into the Gaussians
EMPTY_SHARE = 0.01  # of the voxels that must have the lowest value exactly for it to be called background


@dataclass(frozen=True)
class SrProblem:
    """Data and geometry, all in coarse voxels: nothing depends on the voxel size or the position of the volume.

    Attributes
    ----------
    coarse : ndarray, (A, B, C), float32
        Data in [0, 1]; the background, if there is one, is 0.
    axes : tuple of AxisGrid
        Fine grid along each axis.
    operator : SamplingOperator
        Operator from the fine grid to the data.
    filled : ndarray, (A, B, C), bool
        Coarse voxels that are not background.
    held : ndarray, (A, B, C), bool
        Coarse voxels that are hidden from the fit, to validate it.
    options : SrOptions
    """

    coarse: np.ndarray
    axes: tuple[AxisGrid, AxisGrid, AxisGrid]
    operator: SamplingOperator
    filled: np.ndarray
    held: np.ndarray
    options: SrOptions

    @classmethod
    def pose(cls, coarse: np.ndarray, axes: Sequence[AxisGrid], options: SrOptions) -> "SrProblem":
        """Set up the whole volume, nothing hidden; where many voxels have exactly the value 0, they are background."""
        profiles = (options.profile,) * 3 if isinstance(options.profile, str) else options.profile
        # Along an axis that stays as it is, voxels are what they are.
        profiles = tuple("trilinear" if axis.step == 1 else p for axis, p in zip(axes, profiles, strict=True))  # type: ignore[assignment]
        operator = SamplingOperator.of(axes, profiles, options.profile_width)
        filled = coarse != 0
        if (~filled).mean() < EMPTY_SHARE:
            filled = np.ones(coarse.shape, bool)
        return cls(coarse, tuple(axes), operator, filled, np.zeros(coarse.shape, bool), options)  # type: ignore[arg-type]

    @property
    def inside(self) -> np.ndarray:
        """Coarse voxels that get a Gaussian: those that are not background, and a rim."""
        return ndimage.binary_dilation(self.filled, iterations=self.options.rim) if self.options.rim else self.filled

    @property
    def fine_inside(self) -> np.ndarray:
        """Fine voxels with a coarse voxel that is not background within one voxel's distance along every axis."""
        near = self.filled.astype(np.float32)
        for axis, along in enumerate(self.axes):
            distance = np.abs(along.positions[:, None] - np.arange(along.coarse)[None])
            near = np.moveaxis(np.tensordot((distance < 1).astype(np.float32), near, (1, axis)), 0, axis)
        return near > 0

    @property
    def fine_grid(self) -> ops.GridGeometry:
        """Grid of the fine voxels, for the renderer."""
        return ops.GridGeometry(
            tuple(a.fine for a in self.axes),  # type: ignore[arg-type]
            np.array([a.step for a in self.axes]),
            np.array([a.start for a in self.axes]),
        )

    @property
    def render_options(self) -> ops.RenderOptions:
        """Options of weights without a mass factor: ``w = exp(l - E / 2)``."""
        return ops.RenderOptions(cut=self.options.cut, mass_factor=False, device=self.options.device)

    def forward_model(self) -> tuple[ops.GridGeometry, SamplingOperator | None]:
        """Return the grid on which a field is rendered, and the operator from it to coarse voxels, if any."""
        mean, largest = self.operator.spread * np.array([a.step for a in self.axes]) ** 2
        way = self.options.forward
        if way == "auto":
            way = "psf" if largest.max() <= NARROW else "exact"
        if way == "exact":
            return self.fine_grid, self.operator
        psf = mean if way == "psf" else np.zeros(3)
        return ops.GridGeometry(self.coarse.shape, np.ones(3), np.zeros(3), psf=psf), None

    def part(self, box: tuple[slice, slice, slice]) -> tuple["SrProblem", tuple[slice, slice, slice]]:
        """Return the problem of a box of coarse voxels, and the box of fine voxels that contribute to them."""
        axes, matrices, fine_box = [], [], []
        for axis, matrix, cut in zip(self.axes, self.operator.matrices, box, strict=True):
            rows = matrix[cut]
            used = np.flatnonzero(np.abs(rows).max(0) > 0)
            at = axis.positions
            near = np.flatnonzero((at > cut.start - 0.5 - 1e-6) & (at < cut.stop - 0.5 + 1e-6))
            first, last = min(used[0], near[0]), max(used[-1], near[-1]) + 1
            axes.append(AxisGrid(cut.stop - cut.start, last - first, at[first] - cut.start, axis.step))
            matrices.append(rows[:, first:last])
            fine_box.append(slice(int(first), int(last)))
        part = replace(
            self,
            coarse=np.ascontiguousarray(self.coarse[box]),
            axes=tuple(axes),  # type: ignore[arg-type]
            operator=SamplingOperator(tuple(matrices)),  # type: ignore[arg-type]
            filled=self.filled[box],
            held=self.held[box],
        )
        return part, tuple(fine_box)  # type: ignore[return-value]

    def hide(self) -> "SrProblem":
        """Hide a random share of the voxels that are not background."""
        draw = np.random.default_rng(self.options.seed + 1).random(self.coarse.shape)
        return replace(self, held=self.filled & (draw < self.options.held_out))

    def seen_only(self, miss: np.ndarray) -> np.ndarray:
        """Set residuals at the hidden voxels to 0."""
        return np.where(self.held, np.float32(0), miss)


def central_box(mask: np.ndarray, wanted: int) -> tuple[slice, slice, slice]:
    """Return a box around the middle of a mask that grows on all sides until it holds ``wanted`` of its voxels."""
    whole = bounding_box(mask, 1)
    if mask.sum() <= 1.3 * wanted:
        return whole
    middle = np.argwhere(mask).mean(0)
    low, high = np.array([s.start for s in whole]), np.array([s.stop for s in whole])
    shares = np.linspace(0.1, 1, 46)
    for share in shares:
        first = np.floor(middle - share * (middle - low)).astype(int)
        last = np.ceil(middle + share * (high - middle)).astype(int)
        box = tuple(slice(max(a, l), min(b, h)) for a, b, l, h in zip(first, last, low, high, strict=True))
        if mask[box].sum() >= wanted:
            break
    return box  # type: ignore[return-value]
