# SPDX-License-Identifier: Apache-2.0
"""Point spread function (PSF) of a slice, as a Gaussian."""

from collections.abc import Sequence

import numpy as np

FWHM_TO_SIGMA = 1.0 / (2.0 * np.sqrt(2.0 * np.log(2.0)))  # standard deviation over full width at half maximum
IN_PLANE_FACTOR = 1.2  # in-plane FWHM over pixel size (Kuklisova-Murgasova 2012; GSVR paper)


def slice_psf(spacing: Sequence[float] | np.ndarray, thickness: float) -> np.ndarray:
    """Return the variances of the slice PSF.

    In the plane the full width at half maximum (FWHM) is 1.2 pixels, across it the slice thickness.

    Parameters
    ----------
    spacing : sequence of float
        Pixel size (mm) along the two in-plane axes.
    thickness : float
        Slice thickness, mm.

    Returns
    -------
    ndarray, (3,)
        Variances (mm2) along row, column and normal.
    """
    width = np.array([IN_PLANE_FACTOR * spacing[0], IN_PLANE_FACTOR * spacing[1], thickness])
    return (width * FWHM_TO_SIGMA) ** 2
