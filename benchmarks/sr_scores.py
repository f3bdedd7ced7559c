# SPDX-License-Identifier: Apache-2.0
"""How near a volume is to the truth, in names that say which variant of each score is meant."""

import resource

import numpy as np
from scipy import ndimage
from skimage.metrics import structural_similarity

HFEN_SIGMA = 1.5  # voxels, of the Laplacian of Gaussian


def scores(image: np.ndarray, truth: np.ndarray) -> dict:
    """Scores of a volume in [0, 1] after clipping.

    Returns
    -------
    dict
        ``psnr``: dB, range 1, all voxels. ``psnr_inside``: the same where the truth is above 0.02. ``ssim``: 3D,
        skimage's default window (uniform, 7^3), range 1. ``ssim_slices``: 2D, mean over the third axis's slices that
        are not empty. ``nrmse``: over the root mean square of the truth. ``hfen``: norm of the difference of the
        Laplacians of Gaussian over that of the truth's. ``peak_gb``: memory of this process so far.
    """
    image = np.clip(image, 0, 1).astype(np.float32)
    truth = truth.astype(np.float32)
    miss = (image - truth).astype(float)
    inside = truth > 0.02
    sharp = [ndimage.gaussian_laplace(a, HFEN_SIGMA) for a in (image, truth)]
    slices = [
        structural_similarity(image[..., k], truth[..., k], data_range=1.0)
        for k in range(truth.shape[2])
        if inside[..., k].any()
    ]
    return {
        "psnr": _psnr(miss),
        "psnr_inside": _psnr(miss[inside]),
        "ssim": float(structural_similarity(image, truth, data_range=1.0)),
        "ssim_slices": float(np.mean(slices)),
        "nrmse": float(np.sqrt(np.mean(miss**2) / np.mean(truth.astype(float) ** 2))),
        "hfen": float(np.linalg.norm(sharp[0] - sharp[1]) / np.linalg.norm(sharp[1])),
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9,
    }


def energy_above(volume: np.ndarray, share: float) -> float:
    """Share of the energy (mean apart) at frequencies above ``share`` of the Nyquist frequency along some axis."""
    power = np.abs(np.fft.rfftn(volume - volume.mean())) ** 2
    full = [np.abs(np.fft.fftfreq(n)) for n in volume.shape[:2]] + [np.fft.rfftfreq(volume.shape[2])]
    high = np.any(np.stack(np.meshgrid(*(f > 0.5 * share for f in full), indexing="ij")), axis=0)
    double = np.ones(power.shape[2])
    double[1 : (volume.shape[2] + 1) // 2] = 2
    return float((power * double)[high].sum() / (power * double).sum())


def _psnr(miss: np.ndarray) -> float:
    return float(-10 * np.log10(max(np.mean(miss**2), 1e-12)))
