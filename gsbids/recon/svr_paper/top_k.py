# SPDX-License-Identifier: Apache-2.0
"""Rendering as in the GSVR paper: the K Gaussians nearest to every point, its PSF added to their covariances.

    I(x) = sum_k w_k c_k / (sum_k w_k + eps),  w_k = exp(-(x - mu_k)^T (Sigma_k + P)^-1 (x - mu_k) / 2)

over the K nearest means by Euclidean distance (section 2.5, Eq. 5). No factor keeps the mass of a Gaussian that the
PSF widens; :mod:`gsbids.kernels.cpu.splat` does better on both counts, and this is what it is compared with.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from gsbids.kernels import points
from gsbids.recon.field import GaussianField
from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.motion import RigidMotion
from gsbids.recon.psf import FWHM_TO_SIGMA, IN_PLANE_FACTOR

EPS = 1e-3  # weight of the background
AT_ONCE = 1 << 17  # points rendered at once: bounds the memory
ROWS, COLUMNS = [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]  # of a symmetric matrix, in the order of the kernels


@dataclass(frozen=True)
class PixelSet:
    """The masked pixels of a :class:`SliceSet` as a flat list of P.

    Attributes
    ----------
    place : tuple of ndarray, (P,), int
        Slice, row and column in the arrays of the slice set.
    local : tensor, (P, 3)
        Position (u, v, 0) in the slice, mm.
    value : tensor, (P,)
        Intensity, in units of the slice set.
    """

    place: tuple[np.ndarray, np.ndarray, np.ndarray]
    local: torch.Tensor
    value: torch.Tensor

    @property
    def slice(self) -> torch.Tensor:
        """Slice of each pixel, (P,)."""
        return torch.from_numpy(self.place[0])

    @classmethod
    def from_slices(cls, slices: SliceSet) -> "PixelSet":
        """Gather all pixels of the masks."""
        place = np.nonzero(slices.mask)
        s, index = place[0], np.stack(place[1:], 1)
        local = np.zeros((len(s), 3), np.float32)
        local[:, :2] = slices.in_plane(s, index)
        return cls(place, torch.from_numpy(local), torch.from_numpy(slices.values[place]))  # type: ignore[arg-type]


def observed_psf(rotation: torch.Tensor, psf: torch.Tensor) -> torch.Tensor:
    """Return PSF covariances in the world, ``R diag(psf) R^T`` of Eq. 4, (S, 6): xx, xy, xz, yy, yz, zz (mm2)."""
    return (rotation @ torch.diag_embed(psf) @ rotation.mT)[:, ROWS, COLUMNS]


def render_field(
    field: GaussianField, position: np.ndarray, count: int, psf: np.ndarray, frame: np.ndarray | None = None
) -> np.ndarray:
    """Render the field at points, its ``count`` nearest Gaussians each, without gradients.

    Parameters
    ----------
    field : GaussianField
    position : ndarray, (N, 3)
        mm, relative to the field's origin.
    count : int
        K; at most all are taken.
    psf : ndarray, (F, 6)
        PSF covariances of the frames, mm2, see :func:`observed_psf`.
    frame : ndarray, (N,), optional
        Frame of each point; 0 if left out.

    Returns
    -------
    ndarray, (N,), float32
    """
    frame = np.zeros(len(position), np.int64) if frame is None else frame
    arrays = field.parameters

    def part(first: int) -> points.PointSet:
        here = slice(first, first + AT_ONCE)
        return points.nearest(field.mean, position[here], count, psf, frame[here])

    # The search has one thread a call and holds no lock; the rendering after it has threads of its own.
    with ThreadPoolExecutor(max(1, torch.get_num_threads())) as pool:
        listed = pool.map(part, range(0, len(position), AT_ONCE))
        found = [points.render_points(*arrays, each, EPS)[0] for each in listed]
    return np.concatenate(found) if found else np.empty(0, np.float32)


def render_slices(
    field: GaussianField, motion: RigidMotion, psf: np.ndarray, local: np.ndarray, count: int, slice_of: np.ndarray
) -> np.ndarray:
    """Predict pixels of slices by the forward model of the paper, before the gain (Eq. 5).

    Parameters
    ----------
    field : GaussianField
    motion : RigidMotion
        Poses (S) relative to the field's origin.
    psf : ndarray, (S, 3)
        PSF variances along row, column and normal, mm2.
    local : ndarray, (P, 3)
        Positions in the slice, mm.
    count : int
        K.
    slice_of : ndarray, (P,), int

    Returns
    -------
    ndarray, (P,), float32
    """
    position = np.einsum("pij,pj->pi", motion.rotation[slice_of], local) + motion.translation[slice_of]
    blur = observed_psf(torch.from_numpy(motion.rotation), torch.from_numpy(np.asarray(psf, float))).numpy()
    return render_field(field, position, count, blur, slice_of)


def render_volume(
    field: GaussianField, affine: np.ndarray, shape: Sequence[int], count: int, psf: bool = True
) -> np.ndarray:
    """Sample the field at voxel centres, through a round PSF of 1.2 voxels where the slices had one.

    Parameters
    ----------
    field : GaussianField
    affine : ndarray, (4, 4)
        Voxel indices to world RAS+ mm.
    shape : tuple of int
    count : int
        K.
    psf : bool

    Returns
    -------
    ndarray, shape, float32
    """
    index = np.stack(np.meshgrid(*(np.arange(n, dtype=np.float32) for n in shape), indexing="ij"), -1).reshape(-1, 3)
    position = index @ affine[:3, :3].T + (affine[:3, 3] - field.origin)
    width = IN_PLANE_FACTOR * FWHM_TO_SIGMA * float(np.linalg.norm(affine[:3, 0])) if psf else 0.0
    blur = width**2 * np.array([[1.0, 0, 0, 1, 0, 1]])
    return render_field(field, position, count, blur).reshape(shape)
