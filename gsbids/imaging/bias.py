# SPDX-License-Identifier: Apache-2.0
"""Noise and bias field of stacks (antspyx), worked out in a box around the mask."""

import os

import numpy as np

from gsbids.imaging.masks import bounding_box

# Room around the mask, mm: the filters see some of what surrounds the brain.
MARGIN = 10.0


def load_ants():
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
    """Adaptive non-local means within each slice.

    Patches stay in the plane, because neighbouring slices have moved: on simulated fetal stacks
    with motion and 2 % of noise the error in the brain falls from 20 to 13.5 (99th percentile of the
    intensities: 1000), and to 17 with patches that reach into the neighbouring slices. Gaussian
    noise, because the Rician correction left a bias of 3.

    Parameters
    ----------
    image : ndarray, (X, Y, Z), float32
        Slices along the third axis.
    mask : ndarray, (X, Y, Z), bool
    affine : ndarray, (4, 4)

    Returns
    -------
    ndarray, (X, Y, Z), float32
        Denoised in the box around the mask, as given elsewhere; never negative.

    References
    ----------
    J. V. Manjon et al., Adaptive non-local means denoising of MR images with spatially varying
    noise levels, J. Magn. Reson. Imaging 31 (2010).
    """
    ants = load_ants()
    box = _box(mask, affine)
    part = ants.from_numpy(np.ascontiguousarray(image[box], dtype=np.float32), spacing=_spacing(affine))
    clean = ants.denoise_image(part, p="1x1x0", r="1x1x0", noise_model="Gaussian").numpy()
    return _pasted(image, np.where(np.isfinite(clean), clean, image[box]), box)


def correct_bias(image: np.ndarray, mask: np.ndarray, affine: np.ndarray,
                 iterations: tuple[int, ...] = (50, 50, 50)) -> np.ndarray:
    """N4 bias field correction, fitted in the mask and applied in the box around it.

    Parameters
    ----------
    image : ndarray, (X, Y, Z), float32
    mask : ndarray, (X, Y, Z), bool
    affine : ndarray, (4, 4)
    iterations : tuple of int
        Most iterations at each level; every level halves the spacing of the B-spline's knots, which
        starts as the size of the box.

    Returns
    -------
    ndarray, (X, Y, Z), float32
        The median in the mask is that of ``image``; voxels outside the box are as given.

    References
    ----------
    N. J. Tustison et al., N4ITK: improved N3 bias correction, IEEE Trans. Med. Imaging 29 (2010).
    """
    ants = load_ants()
    box = _box(mask, affine)
    spacing = _spacing(affine)
    part = np.ascontiguousarray(image[box], dtype=np.float32)
    # The logarithm of the image is fitted: zeros have none.
    inside = mask[box] & (part > 0)
    if not inside.any():
        return np.array(image, dtype=np.float32)
    shrink = int(np.clip(min(part.shape) // 4, 1, 3))
    bias = ants.n4_bias_field_correction(
        ants.from_numpy(part, spacing=spacing),
        mask=ants.from_numpy(inside.astype(np.float32), spacing=spacing), shrink_factor=shrink,
        convergence={"iters": list(iterations), "tol": 1e-6}, spline_param=[1, 1, 1],
        return_bias_field=True).numpy()
    # Outside the mask the splines extrapolate: no voxel there shall be scaled beyond reason.
    usual = np.median(bias[inside])
    bias = np.clip(np.where(np.isfinite(bias), bias, usual), usual / 4, usual * 4)
    corrected = part / bias
    corrected *= np.median(part[inside]) / np.median(corrected[inside])
    return _pasted(image, corrected, box)


def _box(mask: np.ndarray, affine: np.ndarray) -> tuple[slice, slice, slice]:
    margin = np.ceil(MARGIN / np.linalg.norm(affine[:3, :3], axis=0)).astype(int)
    return bounding_box(mask, margin)


def _spacing(affine: np.ndarray) -> tuple[float, ...]:
    return tuple(float(step) for step in np.linalg.norm(affine[:3, :3], axis=0))


def _pasted(image: np.ndarray, part: np.ndarray, box) -> np.ndarray:
    whole = np.array(image, dtype=np.float32)
    whole[box] = np.maximum(part, 0.0)
    return whole
