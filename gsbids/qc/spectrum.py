# SPDX-License-Identifier: Apache-2.0
"""Power of a volume at each frequency: what super-resolution added, and where."""

import numpy as np
from scipy import fft

MOST_LINES = 60000  # about so many are enough for a mean


def axis_spectrum(volume: np.ndarray, spacing: float, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """Compute the mean power of the lines along one axis, under a Hann window, with their means removed.

    Parameters
    ----------
    volume : ndarray, (X, Y, Z)
    spacing : float
        Voxel size along the axis, mm.
    axis : int

    Returns
    -------
    frequency : ndarray, (F,)
        Cycles/mm, from the first above 0 to the Nyquist frequency.
    power : ndarray, (F,)
        Power per cycles/mm: volumes of one object on grids of different voxels can be laid over one another.
    """
    lines = np.moveaxis(np.asarray(volume, np.float32), axis, -1)
    lines = lines[:: max(1, lines[..., 0].size // MOST_LINES)]
    lines = lines - lines.mean(-1, keepdims=True)
    count = lines.shape[-1]
    window = np.hanning(count + 2)[1:-1].astype(np.float32)
    power = np.abs(fft.rfft(lines * window, axis=-1)) ** 2
    density = power.reshape(-1, power.shape[-1]).mean(0, dtype=np.float64) * spacing / np.sum(window**2)
    return fft.rfftfreq(count, spacing)[1:], density[1:]


def energy_above(volume: np.ndarray, share: float = 0.5) -> float:
    """Return the share of the energy (without the mean) above ``share`` of the Nyquist frequency along some axis.

    Parameters
    ----------
    volume : ndarray, (X, Y, Z)
    share : float
    """
    volume = np.asarray(volume, np.float32)
    power = np.abs(fft.rfftn(volume - volume.mean())) ** 2
    # Of the last axis one half is there; frequencies between its ends stand for their mirror images as well.
    power[..., 1 : (volume.shape[-1] + 1) // 2] *= 2
    frequencies = [np.abs(fft.fftfreq(n)) for n in volume.shape[:2]] + [fft.rfftfreq(volume.shape[2])]
    low = [f <= share * 0.5 for f in frequencies]
    total = float(power.sum(dtype=np.float64))
    below = float(power[np.ix_(*low)].sum(dtype=np.float64))
    return 1 - below / total if total > 0 else 0.0
