# SPDX-License-Identifier: Apache-2.0
"""A fetal head with a known answer, made from the ICBM152 2009a maps that nilearn ships."""

from dataclasses import dataclass
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from gsbids.errors import GsbidsError

FWHM_TO_SIGMA = 1 / np.sqrt(8 * np.log(2))

# Signals of a T2-weighted fetal brain, fluid = 1: the cortex is dark, unmyelinated white matter is not.
FLUID, GREY, WHITE = 1.0, 0.40, 0.64
# The head around the brain: outer radius of each layer (mm from the brain's surface) and its signal.
LAYERS = ((1.5, 0.95), (3.5, 0.10), (6.0, 0.50), (np.inf, 0.85))
LAYER_BLUR = 0.35  # mm, logistic width of the layers' borders


@dataclass(frozen=True)
class Phantom:
    """An isotropic head with its brain mask.

    Attributes
    ----------
    image : ndarray, (X, Y, Z), float32
        Signal of the whole head; fluid inside the brain is about 1000.
    mask : ndarray, (X, Y, Z), bool
        Brain with the fluid in it.
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
    def brain_ml(self) -> float:
        """Volume of the mask, ml."""
        return float(self.mask.sum()) * self.voxel**3 / 1000


def fetal_phantom(voxel: float = 0.5, brain_ml: float = 200.0, margin: float = 16.0) -> Phantom:
    """Fetal-sized head with T2-like contrast: brain, fluid, skull rim, scalp, amniotic fluid.

    Grey and white matter fractions and what is left of the brain as fluid are mixed with T2-like
    signals; what the T1 template says beyond them (deep nuclei) is added with its sign turned.
    Adult folds at fetal size are finer than a fetus has: a harder case, not an easier one.

    Parameters
    ----------
    voxel : float
        Voxel size, mm.
    brain_ml : float
        Volume of the brain, ml: 120 is about 24 weeks of gestation, 240 about 30.
    margin : float
        Room around the brain, mm.

    Returns
    -------
    Phantom

    Raises
    ------
    GsbidsError
        When nilearn, or the maps in it, are not there.
    """
    grey, white, t1 = _icbm152_maps()
    brain = ndimage.binary_fill_holes(t1 > 0.03)
    size = (1000 * brain_ml / brain.sum()) ** (1 / 3)  # fetal mm per template mm
    fluid = np.clip(1 - grey - white, 0, 1)
    deep = t1 - (0.25 * fluid + 0.62 * grey + 0.86 * white)
    signal = FLUID * fluid + GREY * grey + WHITE * white - 0.5 * deep * (1 - fluid)
    # Beyond its mask the brain goes on as fluid, so that no interpolation meets an edge to zero.
    signal = np.where(brain, np.clip(signal, 0.05, None), FLUID)
    inside = np.argwhere(brain)
    lo, hi = inside.min(0), inside.max(0) + 1
    box = tuple(slice(a, b) for a, b in zip(lo, hi, strict=True))
    shape = np.ceil(((hi - lo) * size + 2 * margin) / voxel).astype(int)
    signal = _rescale(signal[box], size, voxel, shape, outside=FLUID)
    mask = _rescale(brain[box].astype(np.float32), size, voxel, shape, outside=0.0) >= 0.5
    image = np.where(mask, signal, _head_around(mask, voxel))
    affine = np.diag([voxel, voxel, voxel, 1.0])
    affine[:3, 3] = -voxel * (shape - 1) / 2
    return Phantom((1000 * image).astype(np.float32), mask, affine)


def band_limited(phantom: Phantom, resolution: float) -> Phantom:
    """The phantom as an ideal scan would show it: blurred (FWHM = ``resolution``) and sampled there.

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


def _icbm152_maps() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Grey and white matter fractions and the T1 template, each 0 to 1, on the 1 mm grid."""
    spec = find_spec("nilearn")
    if spec is None:
        raise GsbidsError("The phantom needs the ICBM152 maps of the nilearn package: pip install nilearn")
    folder = Path(spec.origin).parent / "datasets" / "data"
    maps = []
    for kind in ("gm", "wm", "t1"):
        path = folder / f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
        if not path.exists():
            raise GsbidsError(f"{path}: not in this version of nilearn; install the one in constraints.txt")
        maps.append(np.asarray(nib.load(path).dataobj, dtype=np.float32) / 255)
    return tuple(maps)


def _rescale(data, size, voxel, shape, outside):
    """``data`` (grid step ``size`` mm) on a grid of ``shape`` and step ``voxel`` mm about the same middle."""
    ratio = voxel / size
    if ratio > 1:
        sigma = FWHM_TO_SIGMA * np.sqrt(ratio**2 - 1)
        data = ndimage.gaussian_filter(data, sigma, mode="constant", cval=outside)
    offset = (np.array(data.shape) - 1) / 2 - ratio * (shape - 1) / 2
    return ndimage.affine_transform(data, ratio * np.eye(3), offset, tuple(shape), order=1, cval=outside)


def _head_around(mask, voxel):
    """Signal outside the brain: thin fluid, dark skull, scalp, amniotic fluid (fluid = 1)."""
    distance = ndimage.distance_transform_edt(~mask) * voxel
    width = max(LAYER_BLUR, voxel / 4)
    signal = np.full(mask.shape, LAYERS[0][1])
    for (radius, _), (_, value) in pairwise(LAYERS):
        outside = 1 / (1 + np.exp(-np.clip((distance - radius) / width, -50, 50)))
        signal += (value - signal) * outside
    return signal
