# SPDX-License-Identifier: Apache-2.0
"""Robust weights of slices and pixels, and the gain of every slice.

Images (S, X, Y) are arrays of numpy or tensors of a GPU, and so are those that come back; numbers of slices (S,) are
always arrays.
"""

import numpy as np
from scipy import ndimage

from gsbids.kernels import backend
from gsbids.kernels.problem import Array

MAD_TO_SIGMA = 1.4826  # standard deviation over median absolute deviation of a normal distribution
SLICE_TOLERANCE = 3.0  # robust standard deviations before a slice loses weight
LEAST_SPREAD = 0.3  # of the median: slices that are all alike must not reject one another
PIXEL_TOLERANCE = 4.0  # robust standard deviations at which a pixel keeps 0.6 of its weight
GAIN_LIMITS = (0.05, 5.0)  # gain of a slice
SIGNAL_LIMITS = (0.05, 3.0)  # local signal of a slice, over the expected one
TRUSTED = 0.5  # weight of a slice that is like others
GAIN_SPREAD = 0.3  # standard deviation of gains as expected: the pull to 1
ALIKE = 50.0  # pixels whose residuals go together: less evidence than their number says
SIGNAL_PRIOR = 1e-4  # pull of the kept signal to 1, as a share of the slice's median evidence


def slice_gains(values: Array, simulated: Array, weight: Array) -> np.ndarray:
    """Estimate the gain of every slice, ``values ~ gain * simulated``, by least squares with a pull to 1.

    The pull is that of a normal prior, as strong as the residuals leave the gain open; it fades as the volume gets
    sharp: then small and deep drops are real.

    Parameters
    ----------
    values, simulated, weight : ndarray, (S, X, Y)

    Returns
    -------
    ndarray, (S,)
        Gains with geometric mean 1 over the slices, weighted by their evidence.
    """
    cross = backend.to_host((weight * values * simulated).sum((1, 2), dtype=float))
    power = backend.to_host((weight * simulated * simulated).sum((1, 2), dtype=float))
    own = backend.like((cross / np.maximum(power, 1e-12))[:, None, None].astype(np.float32), values)
    misfit, total = backend.to_host(((weight * (values - own * simulated) ** 2).sum((1, 2)), weight.sum((1, 2))))
    misfit = misfit / np.maximum(total, 1e-12)
    prior = ALIKE * np.median(misfit) / GAIN_SPREAD**2 + 1e-12
    gain = np.clip((cross + prior) / (power + prior), *GAIN_LIMITS)
    return gain / np.exp(np.average(np.log(gain), weights=power + 1e-12))


def slice_residuals(residual: Array, mask: Array) -> np.ndarray:
    """Return the mean absolute residual of every slice inside its mask, (S,)."""
    total = backend.to_host((abs(residual) * mask).sum((1, 2), dtype=float))
    return total / np.maximum(backend.to_host(mask.sum((1, 2))), 1)


def slice_weights(residual: Array, mask: Array) -> np.ndarray:
    """Return Welsch weights of slices by how far their residuals are outliers, (S,) in [0, 1].

    ``w = exp(-(max(z, 0) / tolerance)^2 / 2)``, z the slice's mean absolute residual in robust standard deviations
    (median absolute deviation) above the median of all slices. At least half of the slices keep their weight.
    """
    level = slice_residuals(residual, mask)
    pixels = backend.to_host(mask.sum((1, 2)))
    large = pixels >= np.median(pixels) / 4  # small end slices do not set the scale
    middle = np.median(level[large])
    spread = max(MAD_TO_SIGMA * np.median(np.abs(level[large] - middle)), LEAST_SPREAD * middle, 1e-6)
    excess = np.maximum((level - middle) / spread, 0.0)
    weight = np.exp(-0.5 * (excess / SLICE_TOLERANCE) ** 2)
    return weight if np.median(weight) > 0.1 else np.ones_like(weight)


def kept_signal_and_weights(
    values: Array, simulated: Array, mask: Array, width: np.ndarray
) -> tuple[Array, np.ndarray]:
    """Estimate local signal loss (spin history, motion during readout), and the slices' weights after its correction.

    An outlying slice is compared with its expected values in averages of some millimetres:
    ``kept_signal = sum w y I / sum w I^2``. If with this smooth factor it is no outlier, it keeps it; if it still is,
    it is rejected.

    Parameters
    ----------
    values, simulated, mask : ndarray, (S, X, Y)
        Simulated slices with their gains.
    width : ndarray, (S, 2)
        Standard deviation of the averages, pixels.

    Returns
    -------
    kept_signal : ndarray, (S, X, Y), float32
        Share of the signal that a slice has kept.
    weight : ndarray, (S,)
        See :func:`slice_weights`.
    """
    kept_signal = np.ones(tuple(values.shape), np.float32)
    weight = slice_weights(values - simulated, mask)
    doubtful = np.flatnonzero(weight < TRUSTED)
    for s in doubtful:
        inside, acquired, expected = backend.to_host((mask[s], values[s], simulated[s]))
        cross, power = (ndimage.gaussian_filter(inside * a * expected, width[s]) for a in (acquired, expected))
        prior = SIGNAL_PRIOR * np.median(power[inside])
        kept_signal[s] = np.clip((cross + prior) / (power + prior), *SIGNAL_LIMITS)
    with_kept = slice_weights(values - backend.like(kept_signal, values) * simulated, mask)
    helped = (weight < TRUSTED) & (with_kept >= TRUSTED)
    kept_signal[~helped] = 1
    return backend.like(kept_signal, values), np.where(helped, with_kept, weight)


def pixel_weights(residual: Array, mask: Array) -> Array:
    """Return Welsch weights of pixels, (S, X, Y) in [0, 1].

    The scale is each slice's robust deviation, but never under that of the typical slice.
    """
    scale = MAD_TO_SIGMA * backend.medians(abs(residual), mask)
    scale = np.maximum(scale, max(np.median(scale), 1e-6))[:, None, None]  # type: ignore[call-overload]
    return backend.exp(-0.5 * (residual / backend.like(PIXEL_TOLERANCE * scale, residual)) ** 2)


def slice_ncc(values: np.ndarray, simulated: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return the normalised cross-correlation of every slice inside its mask, (S,); 0 where either is flat."""
    count = np.maximum(mask.sum((1, 2), keepdims=True), 1)
    a = (values - (values * mask).sum((1, 2), keepdims=True) / count) * mask
    b = (simulated - (simulated * mask).sum((1, 2), keepdims=True) / count) * mask
    norm = np.sqrt((a.astype(float) ** 2).sum((1, 2)) * (b.astype(float) ** 2).sum((1, 2)))
    cross = (a.astype(float) * b).sum((1, 2))
    return np.divide(cross, norm, out=np.zeros(len(cross)), where=norm > 1e-12)
