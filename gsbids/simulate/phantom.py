# SPDX-License-Identifier: Apache-2.0
"""A fetal head with a known answer, made from the ICBM152 2009a maps that nilearn ships."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from scipy import ndimage

from gsbids.imaging.icbm152 import icbm152_maps

FWHM_TO_SIGMA = 1 / np.sqrt(8 * np.log(2))  # standard deviation over full width at half maximum

# Signals of a T2-weighted fetal brain, fluid = 1: the cortex is dark, unmyelinated white matter is not.
FLUID, GREY, WHITE = 1.0, 0.40, 0.64
FLUID_RIM = 2.0  # mm of fluid around the brain that belong to its mask: a fetus has much of it
SULCI = 1.2  # standard deviation (template mm) by which the fluid of the sulci is widened
# The head around the mask: outer radius of each layer (mm from the mask's surface) and its signal.
LAYERS = ((1.5, FLUID), (3.5, 0.12), (6.0, 0.50), (np.inf, 0.85))
LAYER_BLUR = 0.35  # mm, logistic width of the layers' borders


@dataclass(frozen=True)
class Phantom:
    """An isotropic head with its brain mask.

    Attributes
    ----------
    image : ndarray, (X, Y, Z), float32
        Signal of the whole head; fluid inside the brain is about 1000.
    mask : ndarray, (X, Y, Z), bool
        Brain with the fluid in it and a rim of fluid around it, as masks of fetal brains are drawn.
    affine : ndarray, (4, 4)
        Voxel indices to world RAS+ mm; the middle of the grid is at 0.
    """

    image: np.ndarray
    mask: np.ndarray
    affine: np.ndarray

    @property
    def voxel(self) -> float:
        """Voxel size, mm."""
        return float(self.affine[0, 0])

    @property
    def mask_ml(self) -> float:
        """Volume of the mask, ml."""
        return float(self.mask.sum()) * self.voxel**3 / 1000


def fetal_phantom(voxel: float = 0.5, brain_ml: float = 140.0, margin: float = 16.0) -> Phantom:
    """Make a fetal-sized head with T2-like contrast: brain, fluid, skull rim, scalp, amniotic fluid.

    Grey and white matter fractions and what is left of the brain as fluid are mixed with T2-like
    signals; what the T1 template says beyond them (deep nuclei) is added with its sign turned. Sulci
    are widened and the brain swims in fluid, as before birth. Adult folds at fetal size are finer
    than a fetus has: a harder case, not an easier one.

    Parameters
    ----------
    voxel : float
        Voxel size, mm.
    brain_ml : float
        Volume of the brain without the rim of fluid, ml: 120 is about 24 weeks of gestation, 240 about 30.
    margin : float
        Room around the brain, mm.

    Returns
    -------
    Phantom

    Raises
    ------
    GsbidsError
        nilearn, or the maps in it, are missing.
    """
    grey, white, t1, _ = icbm152_maps()
    brain = ndimage.binary_fill_holes(t1 > 0.03)
    inside = np.argwhere(brain)
    box = tuple(slice(a, b) for a, b in zip(inside.min(0), inside.max(0) + 1, strict=True))
    brain = brain[box]
    signal = np.where(brain, _tissue_signal(grey[box], white[box], t1[box]), FLUID).astype(np.float32)
    size = (1000 * brain_ml / brain.sum()) ** (1 / 3)  # fetal mm per template mm
    shape = np.ceil((np.array(brain.shape) * size + 2 * margin) / voxel).astype(int)
    signal = _rescale(signal, size, voxel, shape, outside=FLUID)
    brain = _rescale(brain.astype(np.float32), size, voxel, shape, outside=0.0) >= 0.5
    mask = _distance_from(brain, voxel) <= FLUID_RIM
    image = np.where(mask, signal, _head_around(mask, voxel))
    affine = np.diag([voxel, voxel, voxel, 1.0])
    affine[:3, 3] = -voxel * (shape - 1) / 2
    return Phantom((1000 * image).astype(np.float32), mask, affine)


def _tissue_signal(grey: np.ndarray, white: np.ndarray, t1: np.ndarray) -> np.ndarray:
    """Return a T2-like signal from fractions of grey and white matter and a T1-weighted image, each 0 to 1."""
    fluid = np.clip(1 - grey - white, 0, 1)
    tissue = 1 - fluid
    mixed = np.where(tissue > 1e-3, (GREY * grey + WHITE * white) / np.maximum(tissue, 1e-3), GREY)
    deep = t1 - (0.25 * fluid + 0.62 * grey + 0.86 * white)
    solid = np.clip(mixed - 0.5 * deep * tissue, 0.05, None)
    widened = np.clip(np.maximum(fluid, 1.8 * ndimage.gaussian_filter(fluid, SULCI)), 0, 1)
    return FLUID * widened + solid * (1 - widened)


def band_limited(phantom: Phantom, resolution: float) -> Phantom:
    """Blur the phantom (FWHM = ``resolution``) and sample it, as an ideal scan would show it.

    Parameters
    ----------
    phantom : Phantom
    resolution : float
        Voxel size of the result, mm; not smaller than the phantom's own is useful.
    """
    ratio = resolution / phantom.voxel
    blurred = ndimage.gaussian_filter(phantom.image, FWHM_TO_SIGMA * np.sqrt(max(ratio**2 - 1, 0)))
    shape = np.maximum(((np.array(phantom.image.shape) - 1) / ratio).astype(int) + 1, 2)
    affine = np.diag([resolution, resolution, resolution, 1.0])
    affine[:3, 3] = -resolution * (shape - 1) / 2
    offset = (np.array(phantom.image.shape) - 1) / 2 - ratio * (shape - 1) / 2
    sample = {"matrix": ratio * np.eye(3), "offset": offset, "output_shape": tuple(shape), "mode": "nearest"}
    image = ndimage.affine_transform(blurred, order=3, **sample)
    mask = ndimage.affine_transform(phantom.mask.astype(np.float32), order=1, **sample) >= 0.5
    return Phantom(np.clip(image, 0, None), mask, affine)


def _rescale(data: np.ndarray, size: float, voxel: float, shape: np.ndarray, outside: float) -> np.ndarray:
    """Resample ``data`` (grid step ``size`` mm) to a grid of ``shape`` and step ``voxel`` mm about the same centre."""
    ratio = voxel / size
    if ratio > 1:
        sigma = FWHM_TO_SIGMA * np.sqrt(ratio**2 - 1)
        data = ndimage.gaussian_filter(data, sigma, mode="constant", cval=outside)
    offset = (np.array(data.shape) - 1) / 2 - ratio * (shape - 1) / 2
    return ndimage.affine_transform(data, ratio * np.eye(3), offset, tuple(shape), order=1, cval=outside)


def _head_around(mask: np.ndarray, voxel: float) -> np.ndarray:
    """Return the signal outside the brain: thin fluid, dark skull, scalp, amniotic fluid (fluid = 1)."""
    distance = _distance_from(mask, voxel)
    width = max(LAYER_BLUR, voxel / 4)
    signal = np.full(mask.shape, LAYERS[0][1])
    for (radius, _), (_, value) in pairwise(LAYERS):
        outside = 1 / (1 + np.exp(-np.clip((distance - radius) / width, -50, 50)))
        signal += (value - signal) * outside
    return signal


def _distance_from(mask: np.ndarray, voxel: float) -> np.ndarray:
    """Return the distance (mm) of voxel centres from the mask's surface, half a voxel beyond its last centres."""
    return (ndimage.distance_transform_edt(~mask) - 0.5) * voxel
