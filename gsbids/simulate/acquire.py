# SPDX-License-Identifier: Apache-2.0
"""Simulated acquisition of thick slices from a moving phantom.

A slice voxel at the scanner position x sees the anatomy at ``T_s x``, integrated against a Gaussian
point spread function that turns with the slice: full width at half maximum ``1.2 * in_plane`` in the
plane and ``thickness`` across it. ``T_s`` is a rigid world transform, scanner -> anatomy, as in the
reconstruction's own motion tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.simulate.phantom import FWHM_TO_SIGMA, Phantom

IN_PLANE_FWHM = 1.2  # of single-shot fast spin echo, in pixels

# Row, column and slice directions of an untilted stack, world RAS+.
ORIENTATIONS = {
    "axial": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "coronal": ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
    "sagittal": ((0, 1, 0), (0, 0, 1), (1, 0, 0)),
}


@dataclass(frozen=True)
class Acquisition:
    """Settings of the acquisition, the same for all stacks of a scan.

    Attributes
    ----------
    in_plane, thickness, spacing : float
        Pixel size, slice thickness (FWHM of the profile) and distance between slice centres, mm.
    interleave : int
        Number of passes: 2 takes the even slices first, then the odd ones.
    noise : float
        Standard deviation of the Rician noise over the signal of fluid.
    gain_sd : float
        Standard deviation of the logarithm of each slice's intensity factor.
    drop : float
        Part of the slices with brain that lose most of their signal.
    bias : float
        Amplitude of the receive field, fixed in the scanner: 0.2 is 20 % brighter at one corner.
    """

    in_plane: float = 1.1
    thickness: float = 3.0
    spacing: float = 3.3
    interleave: int = 2
    noise: float = 0.02
    gain_sd: float = 0.03
    drop: float = 0.05
    bias: float = 0.2


@dataclass(frozen=True)
class AcquiredStack:
    """One simulated stack with its true motion, gains and dropped slices.

    Attributes
    ----------
    image : ndarray, (X, Y, Z), float32
    mask : ndarray, (X, Y, Z), bool
        Voxels in which at least half of the signal comes from the brain.
    affine : ndarray, (4, 4)
        Scanner geometry, slices on the third axis.
    transforms : ndarray, (Z, 4, 4)
        True motion of every slice, world RAS+ scanner -> anatomy.
    time_index : ndarray, (Z,), int
        Position of every slice in time, within its stack.
    gain : ndarray, (Z,)
        Intensity factor of every slice.
    dropped : ndarray, (Z,), bool
        Slices that lost most of their signal.
    """

    image: np.ndarray
    mask: np.ndarray
    affine: np.ndarray
    transforms: np.ndarray
    time_index: np.ndarray
    gain: np.ndarray
    dropped: np.ndarray


def stack_grid(
    orientation: str, acquisition: Acquisition, extent: Sequence[float] | np.ndarray, tilt: Rotation | None = None
) -> tuple[np.ndarray, tuple[int, ...]]:
    """Return the grid of a stack that covers a box about world 0.

    Parameters
    ----------
    orientation : str
        ``axial``, ``coronal`` or ``sagittal``.
    acquisition : Acquisition
    extent : array_like, (3,)
        Size of the box along the world axes, mm.
    tilt : Rotation, optional
        Obliqueness, applied to the three directions.

    Returns
    -------
    affine : ndarray, (4, 4)
    shape : tuple of 3 int
    """
    axes = np.array(ORIENTATIONS[orientation], dtype=float).T
    if tilt is not None:
        axes = tilt.as_matrix() @ axes
    step = np.array([acquisition.in_plane, acquisition.in_plane, acquisition.spacing])
    shape = np.ceil(np.abs(axes.T) @ np.asarray(extent, float) / step).astype(int) + 1
    affine = np.eye(4)
    affine[:3, :3] = axes * step
    affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2)
    return affine, tuple(int(n) for n in shape)


def acquisition_order(slices: int, interleave: int) -> np.ndarray:
    """Return the time index of every slice, (Z,): ``interleave`` passes, each ascending.

    >>> acquisition_order(5, 2).tolist()
    [0, 3, 1, 4, 2]
    """
    sequence = np.concatenate([np.arange(first, slices, interleave) for first in range(interleave)])
    return np.argsort(sequence)


def draw_motion(slices: int, angle: float, shift: float, smooth: float, rng: np.random.Generator) -> np.ndarray:
    """Draw rigid motion smooth in time: a low-passed random walk, clipped at its limits.

    Parameters
    ----------
    slices : int
        Number of slices of the whole examination, in order of time.
    angle, shift : float
        Largest rotation about (degrees) and shift along (mm) each axis; half of it is the standard deviation.
    smooth : float
        Standard deviation of the low-pass, in slices.
    rng : numpy.random.Generator

    Returns
    -------
    parameters : ndarray, (slices, 6)
        Rotation vectors (rad), then shifts (mm).
    """
    pad = int(np.ceil(4 * smooth))
    walk = ndimage.gaussian_filter1d(rng.standard_normal((slices + 2 * pad, 6)), smooth, axis=0)
    walk = walk[pad : pad + slices]
    walk /= np.maximum(walk.std(axis=0), 1e-12)
    return np.clip(walk / 2, -1, 1) * np.array([np.radians(angle)] * 3 + [shift] * 3)


def rigid_about(centre: np.ndarray, rotation_vector: np.ndarray, shift: np.ndarray) -> np.ndarray:
    """Return world transforms that rotate about ``centre`` and then shift, (..., 4, 4).

    Parameters
    ----------
    centre, rotation_vector, shift : ndarray, (..., 3)
        mm, rad, mm.
    """
    turn = Rotation.from_rotvec(rotation_vector).as_matrix()
    transform = np.zeros((*turn.shape[:-2], 4, 4))
    transform[..., :3, :3], transform[..., 3, 3] = turn, 1
    transform[..., :3, 3] = centre + shift - np.einsum("...ij,...j->...i", turn, centre)
    return transform


class Scanner:
    """Simulated scanner of one phantom with one acquisition.

    The PSF's covariance is ``a I + (b - a) n n^T`` with the slice normal n. Its first part does not
    depend on the motion: the phantom is blurred by it once. The rest is a line integral along the
    turned normal, done by the trapezoidal rule, which converges at once for so smooth an integrand.

    Parameters
    ----------
    phantom : Phantom
    acquisition : Acquisition
    """

    def __init__(self, phantom: Phantom, acquisition: Acquisition) -> None:
        self.phantom, self.acquisition = phantom, acquisition
        in_plane = IN_PLANE_FWHM * acquisition.in_plane * FWHM_TO_SIGMA
        through = acquisition.thickness * FWHM_TO_SIGMA
        if through < in_plane:
            raise ValueError(f"thickness {acquisition.thickness} mm is thinner than the PSF in the plane")
        blurred = ndimage.gaussian_filter(phantom.image, in_plane / phantom.voxel, truncate=5, mode="nearest")
        self._spline = ndimage.spline_filter(blurred, order=3, output=np.float32)
        self._mask = ndimage.gaussian_filter(phantom.mask.astype(np.float32), in_plane / phantom.voxel)
        rest = np.sqrt(through**2 - in_plane**2)
        step = min(rest / 1.5, max(in_plane, phantom.voxel))
        nodes = max(1, int(np.ceil(3.5 * rest / step))) if rest > 1e-6 else 0
        self._offsets = np.arange(-nodes, nodes + 1) * (step if nodes else 1.0)
        weight = np.exp(-0.5 * (self._offsets / max(rest, 1e-6)) ** 2)
        self._weights = weight / weight.sum()

    def ideal_slices(
        self, affine: np.ndarray, shape: Sequence[int], transforms: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Simulate slices without noise, gain or signal loss.

        Parameters
        ----------
        affine : ndarray, (4, 4)
        shape : tuple of 3 int
        transforms : ndarray, (Z, 4, 4)
            World RAS+ scanner -> anatomy.

        Returns
        -------
        image : ndarray, (X, Y, Z), float32
        mask : ndarray, (X, Y, Z), bool
        """
        image = np.zeros(shape, np.float32)
        mask = np.zeros(shape, bool)
        normal = affine[:3, 2] / np.linalg.norm(affine[:3, 2])
        first, step = self._offsets[0], self._offsets[-1] - self._offsets[0]
        step = step / (len(self._offsets) - 1) if len(self._offsets) > 1 else 1.0
        for k in range(shape[2]):
            # Voxels (i, j) of the slice and nodes m along its normal are one affine grid.
            slab = np.eye(4)
            slab[:3, :2] = affine[:3, :2]
            slab[:3, 2] = normal * step
            slab[:3, 3] = affine[:3, :3] @ [0, 0, k] + affine[:3, 3] + normal * first
            index = np.linalg.inv(self.phantom.affine) @ transforms[k] @ slab
            where = {
                "matrix": index[:3, :3],
                "offset": index[:3, 3],
                "output_shape": (*shape[:2], len(self._offsets)),
                "prefilter": False,
                "mode": "nearest",
            }
            image[:, :, k] = ndimage.affine_transform(self._spline, order=3, **where) @ self._weights
            mask[:, :, k] = ndimage.affine_transform(self._mask, order=1, **where) @ self._weights >= 0.5
        return np.clip(image, 0, None), mask

    def acquire(
        self, affine: np.ndarray, shape: Sequence[int], transforms: np.ndarray, rng: np.random.Generator
    ) -> AcquiredStack:
        """Acquire one stack with its receive field, slice gains, dropped slices and Rician noise.

        Parameters
        ----------
        affine, shape, transforms
            As in :meth:`ideal_slices`.
        rng : numpy.random.Generator
        """
        settings = self.acquisition
        image, mask = self.ideal_slices(affine, shape, transforms)
        gain = np.exp(settings.gain_sd * rng.standard_normal(shape[2]))
        dropped = _draw_dropped(mask, settings.drop, rng)
        image *= (receive_field(affine, shape, settings.bias) * gain).astype(np.float32)
        for k in np.flatnonzero(dropped):
            image[:, :, k] *= _signal_loss(shape[:2], rng)
        sd = settings.noise * 1000
        real, imaginary = rng.standard_normal((2, *shape), dtype=np.float32) * np.float32(sd)
        image = np.hypot(image + real, imaginary)
        order = acquisition_order(shape[2], settings.interleave)
        return AcquiredStack(image, mask, np.asarray(affine), np.asarray(transforms), order, gain, dropped)


def receive_field(affine: np.ndarray, shape: Sequence[int], amplitude: float) -> np.ndarray:
    """Return a smooth intensity field fixed in the scanner, (X, Y, Z), mean about 1.

    Parameters
    ----------
    affine : ndarray, (4, 4)
    shape : tuple of 3 int
    amplitude : float
        Largest deviation from 1 at about 60 mm from world 0.
    """
    index = np.indices(shape).reshape(3, -1)
    x, y, z = (affine[:3, :3] @ index + affine[:3, 3:]) / 60
    field = 1 + amplitude * np.tanh(0.5 * x + 0.7 * y - 0.4 * z + 0.3 * (x * y - z * z))
    return field.reshape(shape)


def _draw_dropped(mask: np.ndarray, part: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the slices that lose their signal, among those with brain."""
    dropped = np.zeros(mask.shape[2], bool)
    candidates = np.flatnonzero(mask.any(axis=(0, 1)))
    count = rng.binomial(len(candidates), part) if part > 0 else 0
    dropped[rng.choice(candidates, count, replace=False)] = True
    return dropped


def _signal_loss(shape: Sequence[int], rng: np.random.Generator) -> np.ndarray:
    """Return the factor on a slice hit by motion during its readout: lost all over, or on one side of a soft line."""
    left = rng.uniform(0.05, 0.4)
    if rng.random() < 0.5:
        return np.full(shape, left, np.float32)
    angle = rng.uniform(0, 2 * np.pi)
    u, v = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    line = np.cos(angle) * u + np.sin(angle) * v - rng.uniform(-0.2, 0.2)
    return (left + (1 - left) / (1 + np.exp(-line / 0.08))).astype(np.float32)
