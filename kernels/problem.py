# SPDX-License-Identifier: Apache-2.0
"""Options, geometry and results of the renderer, and the acquired slices it is compared with."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

Array = Any  # np.ndarray on the CPU, torch.Tensor on a GPU: what they share (operators, methods) no union can state
FieldArrays = tuple[Array, Array, Array, Array, Array]  # mean, log_scale, quaternion, intensity, log_weight


@dataclass(frozen=True)
class RenderOptions:
    """Options of rendering a field.

    Attributes
    ----------
    cut : float
        Gaussians contribute where their Mahalanobis distance is under ``cut``.
    eps : float
        Weight of the background (intensity 0) in the normalisation.
    mass_factor : bool
        Weigh by ``sqrt(det Sigma / det Sigma_obs)``: a Gaussian keeps its mass when the PSF widens it.
    device : str
        Device of fields that are given as arrays: ``cpu``, ``cuda`` or ``cuda:N``. Tensors of a GPU are
        rendered where they are.
    """

    cut: float = 3.5
    eps: float = 1e-3
    mass_factor: bool = True
    device: str = "cpu"


DEFAULT = RenderOptions()


@dataclass(frozen=True)
class SliceGeometry:
    """Pose, pixel size and PSF of S slices of X x Y pixels.

    Attributes
    ----------
    rotation, translation : ndarray, (S, 3, 3), (S, 3)
        Poses: pixel (u, v, 0) mm lies at ``rotation @ (u, v, 0) + translation``.
    psf : ndarray, (S, 3)
        Variances (mm2) of the PSF along row, column and normal.
    spacing, centre : ndarray, (S, 2)
        Pixel size in mm, and pixel index of the slice origin.
    extent : ndarray, (S, X, 2), int32
        First and one-past-last pixel of each row that is rendered; the rest is left 0.
    shape : tuple of int
        (X, Y).
    """

    rotation: np.ndarray
    translation: np.ndarray
    psf: np.ndarray
    spacing: np.ndarray
    centre: np.ndarray
    extent: np.ndarray
    shape: tuple[int, int]

    def arrays(self) -> tuple[np.ndarray, ...]:
        """Return the arrays in the order and types of the kernels."""
        flat = (self.rotation, self.translation, self.psf, self.spacing, self.centre)
        return (*(np.ascontiguousarray(a, np.float64) for a in flat), np.ascontiguousarray(self.extent, np.int32))


@dataclass(frozen=True)
class Acquired:
    """Acquired slices that the rendered ones are compared with.

    Attributes
    ----------
    values, weight : ndarray, (S, X, Y)
        Acquired intensities, and the weight of each pixel: 0 where there is nothing to compare.
    delta : float
        Residual from which on the Charbonnier loss grows linearly.
    gain : ndarray, (S,), or None
        Factor of each slice that the simulated intensities are multiplied by; 1 if left out.
    """

    values: np.ndarray
    weight: np.ndarray
    delta: float
    gain: np.ndarray | None = None


@dataclass(frozen=True)
class GridGeometry:
    """Position and size of the voxels of a grid.

    Voxel (a, b, c) lies at ``origin + rotation @ (spacing * (a, b, c))``.

    Attributes
    ----------
    shape : tuple of int
        (P, X, Y).
    spacing, origin : ndarray, (3,)
        Voxel size, and position of voxel (0, 0, 0), in the unit of the field.
    rotation : ndarray, (3, 3)
        Columns: directions of the three axes, orthonormal and right-handed.
    psf : ndarray, (3,)
        Variances that widen every Gaussian along the three axes; 0 to sample the field itself.
    """

    shape: tuple[int, int, int]
    spacing: np.ndarray
    origin: np.ndarray
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))
    psf: np.ndarray = field(default_factory=lambda: np.zeros(3))

    def arrays(self) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], np.ndarray]:
        """Return pose and pixels in the order of :mod:`gsbids.kernels.cpu.grid`: rows on axis 1."""
        given = (self.rotation, self.origin, self.psf, self.spacing)
        turn, origin, psf, spacing = (np.asarray(a, float) for a in given)
        pose = (np.ascontiguousarray(turn[:, [1, 2, 0]]), np.ascontiguousarray(origin), psf[[1, 2, 0]])
        return pose, np.array([spacing[1], spacing[2], 0.0, 0.0, spacing[0]])


@dataclass(frozen=True)
class Step:
    """Loss, rendered slices and gradients, as :func:`gsbids.kernels.ops.step_slices` returns them.

    Attributes
    ----------
    loss : ndarray, (S,)
        Loss of each slice.
    image : ndarray, (S, X, Y), float32
        Simulated slices, before their gain.
    gradients : tuple of ndarray, float32
        Gradients of the sum of the losses, with respect to mean (J, 3), log_scale (J, 3), quaternion (J, 4), intensity
        (J,) and log_weight (J,).
    pose : ndarray, (S, 6)
        Gradient with respect to the slice-frame tangents omega and tau.
    """

    loss: np.ndarray
    image: np.ndarray
    gradients: tuple[Array, ...]
    pose: np.ndarray


def full_extent(slices: int, shape: tuple[int, int]) -> np.ndarray:
    """Return extents (S, X, 2) that cover every pixel."""
    return np.tile(np.array([0, shape[1]], np.int32), (slices, shape[0], 1))
