# SPDX-License-Identifier: Apache-2.0
"""Denoising and bias field correction of stacks (antspyx), computed in a box around the mask."""

import os
from types import ModuleType

import numpy as np
from scipy import ndimage

from gsbids.imaging.intensity import darkest
from gsbids.imaging.masks import bounding_box

# Room around the mask, mm: the filters see some of what surrounds the brain.
MARGIN = 10.0
# Part of the noise that the filter takes away (measured: 0.52 to 0.69), and slices that see one place.
REMOVES, SEEN = 0.6, 8.0
# Standard deviation of the logarithm of the field that N4 finds where there is none (measured: 0.01 to 0.038).
FALSE_BIAS = 0.035


def load_ants() -> ModuleType:
    """Import antspyx with one ITK thread.

    ITK adds in an order that depends on its threads, so that two runs on two threads differ in the
    last bits; the variable is read when ITK first runs, once in a process.

    Returns
    -------
    module
    """
    os.environ["ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"] = "1"
    import ants

    return ants


def denoise(image: np.ndarray, mask: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """Denoise within each slice by adaptive non-local means, as strongly as the noise calls for.

    Patches stay in the plane, because neighbouring slices have moved, and noise is taken as Gaussian,
    because the Rician correction left a bias. The filter also takes away some of the signal, the same
    in every slice, while noise averages out over the slices of a reconstruction. So the filtered image
    is blended in with the share that makes the expected error of such a mean least: on simulated fetal
    stacks a fifth at 2 % of noise (of the 99th percentile), half at 5 %, next to nothing below 1 %.

    Parameters
    ----------
    image : ndarray, (X, Y, Z), float32
        Slices along the third axis.
    mask : ndarray, (X, Y, Z), bool
    affine : ndarray, (4, 4)

    Returns
    -------
    ndarray, (X, Y, Z), float32
        Denoised in the box around the mask, as given elsewhere; nothing is darker than 0, or than the darkest
        of ``image``.

    References
    ----------
    J. V. Manjon et al., Adaptive non-local means denoising of MR images with spatially varying
    noise levels, J. Magn. Reson. Imaging 31 (2010).
    """
    if not mask.any():
        return np.array(image, dtype=np.float32)
    ants = load_ants()
    box = _box(mask, affine)
    part, inside = np.ascontiguousarray(image[box], dtype=np.float32), mask[box]
    clean = ants.denoise_image(
        ants.from_numpy(part, spacing=_spacing(affine)), p="1x1x0", r="1x1x0", noise_model="Gaussian"
    ).numpy()
    removed = np.where(np.isfinite(clean), part - clean, 0.0)
    share = blend_share(float(np.mean(removed[inside] ** 2)), noise_deviation(part, inside) ** 2)
    return _pasted(image, np.maximum(part - np.float32(share) * removed, min(0.0, float(part.min()))), box)


def blend_share(removed: float, noise: float) -> float:
    """Return the share of a denoised image in a blend whose mean over several slices has the least error.

    The filter takes the part ``REMOVES`` of the noise and a signal of variance s2 = removed -
    REMOVES^2 noise with it. A blend with share w, averaged over ``SEEN`` slices, has the expected
    error w^2 s2 + (1 - w REMOVES)^2 noise / SEEN.

    Parameters
    ----------
    removed : float
        Mean square of what the filter takes away.
    noise : float
        Variance of the noise.

    Examples
    --------
    >>> round(blend_share(removed=17.0**2, noise=20.0**2), 2), blend_share(removed=81.0, noise=0.0)
    (0.18, 0.0)
    """
    signal = max(removed - REMOVES**2 * noise, 0.0)
    averaged = noise / SEEN
    if averaged == 0.0:
        return 0.0
    return min(REMOVES * averaged / (signal + REMOVES**2 * averaged), 1.0)


def noise_deviation(image: np.ndarray, mask: np.ndarray) -> float:
    """Estimate the standard deviation of the noise from second differences within the slices.

    Median absolute deviation of the product of second differences along rows and columns, over the
    mask without its border; fine structure adds a little (0.2 % of the intensities on noise-free
    fetal stacks), correlated noise hides.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)
    mask : ndarray, (X, Y, Z), bool

    References
    ----------
    J. Immerkaer, Fast noise variance estimation, Comput. Vis. Image Underst. 64 (1996).
    """
    inside = ndimage.binary_erosion(mask, np.ones((3, 3, 1)))
    if not inside.any():
        return 0.0
    detail = image.astype(np.float64)
    for axis in (0, 1):
        detail = ndimage.correlate1d(detail, [1.0, -2.0, 1.0], axis=axis)
    values = detail[inside]
    # White noise of variance 1 comes out with variance (1 + 4 + 1)^2.
    return float(1.4826 * np.median(np.abs(values - np.median(values))) / 6)


def correct_bias(
    image: np.ndarray, mask: np.ndarray, affine: np.ndarray, iterations: tuple[int, ...] = (200,)
) -> np.ndarray:
    """Correct the bias field by N4, fitted in the mask and applied in the box around it.

    A stiff field: one cubic piece along each side of the box. On simulated fetal stacks without a bias
    it adds a standard deviation of 0.013 (logarithm), against 0.023, 0.05 and 0.08 with two, three and
    four levels, which take contrast of tissues for a bias; of a linear bias of 0.135 it leaves 0.013. On other
    anatomy even the stiff field takes contrast for a bias of 0.03 to 0.04, and a volume then has that shading. So
    the field is taken to the power :func:`trusted_share`: weak ones are left alone. Where intensities of the brain
    are negative, those above the darkest (:func:`gsbids.imaging.intensity.darkest`) are corrected.

    Parameters
    ----------
    image : ndarray, (X, Y, Z), float32
    mask : ndarray, (X, Y, Z), bool
    affine : ndarray, (4, 4)
    iterations : tuple of int
        Most iterations at each level; every further level halves the spans of the B-spline.

    Returns
    -------
    ndarray, (X, Y, Z), float32
        The median in the mask is that of ``image``; voxels outside the box are as given.

    References
    ----------
    N. J. Tustison et al., N4ITK: improved N3 bias correction, IEEE Trans. Med. Imaging 29 (2010).
    """
    if not mask.any():
        return np.array(image, dtype=np.float32)
    ants = load_ants()
    box = _box(mask, affine)
    spacing = _spacing(affine)
    dark = np.float32(darkest(image, mask))
    part = np.ascontiguousarray(image[box] - dark, dtype=np.float32)
    # The logarithm of the image is fitted: zeros have none.
    inside = mask[box] & (part > 0)
    if not inside.any():
        return np.array(image, dtype=np.float32)
    shrink = int(np.clip(min(part.shape) // 4, 1, 3))
    bias = ants.n4_bias_field_correction(
        ants.from_numpy(part, spacing=spacing),
        mask=ants.from_numpy(inside.astype(np.float32), spacing=spacing),
        shrink_factor=shrink,
        convergence={"iters": list(iterations), "tol": 1e-6},
        spline_param=[1, 1, 1],
        return_bias_field=True,
    ).numpy()
    # Outside the mask the splines extrapolate: no voxel there shall be scaled beyond reason.
    usual = np.median(bias[inside])
    bias = np.clip(np.where(np.isfinite(bias), bias, usual), usual / 4, usual * 4) / usual
    bias **= np.float32(trusted_share(float(np.log(bias[inside]).std())))
    corrected = part / bias
    corrected *= np.median(part[inside]) / np.median(corrected[inside])
    # What is darker than nothing has no bias.
    return _pasted(image, np.where(part > 0, corrected, part) + dark, box)


def trusted_share(deviation: float) -> float:
    """Return the share of a bias field (in its logarithm) that is not contrast of tissues taken for a bias.

    ``1 - (FALSE_BIAS / deviation)^2``, not below 0: the part of the variance that stacks without a bias do not have.

    Parameters
    ----------
    deviation : float
        Standard deviation of the field's logarithm in the mask.

    Examples
    --------
    >>> trusted_share(0.03), round(trusted_share(0.07), 2), round(trusted_share(0.2), 2)
    (0.0, 0.75, 0.97)
    """
    return max(0.0, 1.0 - (FALSE_BIAS / deviation) ** 2) if deviation > 0 else 0.0


def _box(mask: np.ndarray, affine: np.ndarray) -> tuple[slice, slice, slice]:
    margin = np.ceil(MARGIN / np.linalg.norm(affine[:3, :3], axis=0)).astype(int)
    return bounding_box(mask, margin)


def _spacing(affine: np.ndarray) -> tuple[float, ...]:
    return tuple(float(step) for step in np.linalg.norm(affine[:3, :3], axis=0))


def _pasted(image: np.ndarray, part: np.ndarray, box: tuple[slice, ...]) -> np.ndarray:
    whole = np.array(image, dtype=np.float32)
    whole[box] = part
    return whole
