# SPDX-License-Identifier: Apache-2.0
"""Noise of magnitude images: its estimation from air, and the removal of its mean from the result.

A magnitude m of a signal S with Gaussian noise of sigma in both channels has a Rice distribution. Where there is no
signal that is Rayleigh's: mean 1.253 sigma, standard deviation 0.655 sigma; averaging does not take that mean away.
"""

import numpy as np
from scipy import ndimage, special

from gsbids.kernels.nonlocal_means import nonlocal_means

MEAN, DEVIATION = np.sqrt(np.pi / 2), np.sqrt(2 - np.pi / 2)  # of Rayleigh's distribution, in sigma
PATCH = 5  # voxels along an edge of the patches that are taken for air or not
ALIKE = (0.8, 1.25)  # deviation over mean of a patch of air, over that of Rayleigh's distribution
LEAST_SHARE = 0.01  # of the patches, that must be air
LEAST_PURE = 0.7  # of the patches with air's mean, that must have its deviation too
WHITE = 0.3  # of a patch's variance, half the mean squared difference of neighbours; noise has 1, folds 0.1
STEPS = 1.1  # ratio of neighbouring bins of the mean
DARK = 4.0  # sigma; below this the bias is more than an eighth of sigma
TABLE = np.linspace(0, 8, 2001)  # signals, in sigma


def rician_mean(signal: np.ndarray) -> np.ndarray:
    """Return the mean magnitude of a signal in noise, both in units of the noise (Rice 1945).

    ``sqrt(pi / 2) L(-S^2 / 2)``, L the Laguerre function of order 1/2, by Bessel functions of S^2 / 4.
    """
    a = np.square(signal) / 4
    return MEAN * ((1 + 2 * a) * special.ive(0, a) + 2 * a * special.ive(1, a))


def signal_of(mean: np.ndarray) -> np.ndarray:
    """Return the signal that has a mean magnitude, in units of the noise; 0 below the mean of noise alone.

    By a table up to 8 sigma, by ``sqrt(m^2 - 1)`` beyond, where the two differ by less than 0.001.
    """
    return np.where(
        mean < TABLE[-1], np.interp(mean, rician_mean(TABLE), TABLE), np.sqrt(np.maximum(np.square(mean) - 1, 0))
    )


def noise_of_air(volume: np.ndarray) -> float:
    """Estimate sigma of the noise of a magnitude image, from patches of air.

    Patches whose deviation and mean are as Rayleigh's distribution has them, and rough as noise, vote for a mean; the
    darkest on which many agree, and which few other patches have, is that of air.

    Parameters
    ----------
    volume : ndarray, (A, B, C)

    Returns
    -------
    float
        Sigma in the unit of the volume; 0 where no air with such noise is found: masked, cropped away, or filtered.
    """
    if min(volume.shape) < PATCH:
        return 0.0
    volume = np.asarray(volume, np.float64)
    inner = (slice(PATCH // 2, -(PATCH // 2)),) * 3
    mean = ndimage.uniform_filter(volume, PATCH)[inner]
    variance = ndimage.uniform_filter(volume**2, PATCH)[inner] - mean**2
    change = sum(np.diff(volume, axis=axis, append=np.take(volume, [-1], axis)) ** 2 for axis in range(3)) / 6
    change = ndimage.uniform_filter(change, PATCH)[inner]
    whole = ndimage.minimum_filter(volume, PATCH)[inner] > 0  # no part of a patch was set to 0
    mean, variance, change = mean[whole], np.maximum(variance[whole], 1e-30), change[whole]
    ratio = np.sqrt(variance) / mean / (DEVIATION / MEAN)
    alike = (ratio > ALIKE[0]) & (ratio < ALIKE[1]) & (change > WHITE * variance)
    least = LEAST_SHARE * volume.size
    if alike.sum() < least:
        return 0.0
    level = np.log(mean[alike]) / np.log(STEPS)
    level = np.floor(level - level.min()).astype(int)
    votes = np.convolve(np.bincount(level), np.ones(3), "same")
    for peak in np.flatnonzero(votes >= least):  # the darkest first: folds of tissue may vary as air does
        sigma = np.median(mean[alike][np.abs(level - peak) <= 1]) / MEAN
        near = np.abs(mean / sigma - MEAN) < 4 * DEVIATION / PATCH**1.5
        if near.sum() >= least and alike[near].mean() >= LEAST_PURE:
            return float(np.median(mean[near])) / MEAN
    return 0.0


def without_bias(fine: np.ndarray, sigma: float) -> np.ndarray:
    """Convert mean magnitudes to the signals that have them: remove the Rician bias.

    The noise that is left in the volume would make signals of air, by the curve of :func:`signal_of`; so the bias is
    that of the mean of voxels that look alike, as far as they are dark.

    Parameters
    ----------
    fine : ndarray, (A, B, C)
    sigma : float
        Sigma of the noise, in the unit of the volume.

    Returns
    -------
    ndarray, float32
    """
    if sigma <= 0:
        return fine
    dark = ndimage.gaussian_filter(fine, 1.0) < DARK * sigma
    mean = nonlocal_means(fine, sigma, dark)
    signal = sigma * signal_of(mean / np.float32(sigma))
    return np.maximum(fine - mean + signal, 0).astype(np.float32)
