# SPDX-License-Identifier: Apache-2.0
"""Quality metrics of one super-resolved volume: one row of the QC table."""

import math

import numpy as np

from gsbids.qc.metrics import column, image_metrics
from gsbids.qc.spectrum import energy_above

FOREGROUND = 0.1  # of the 99th percentile, where there is no mask

_WHERE = "inside the mask, without one where the interpolated input is above a tenth of its 99th percentile"

#: BIDS description of every column of the QC table (``LongName``, ``Units``, ``Description``).
SR_METRIC_DESCRIPTIONS: dict[str, dict[str, str]] = {
    "hidden_gain": column(
        "Gain at hidden voxels",
        "dB",
        "How much better than the cubic B-spline voxels of the input were predicted that a trial on "
        "its middle had hidden; what is predicted are coarse voxels, so it is no gain in PSNR of the "
        "fine volume",
    ),
    "hidden_error": column(
        "Error at hidden voxels",
        "fraction",
        "Root mean squared error of that prediction, over the range of the intensities",
    ),
    "hidden_error_bspline": column(
        "Error of the B-spline at hidden voxels", "fraction", "The same of the cubic B-spline"
    ),
    "data_misfit": column(
        "Misfit of the data",
        "fraction",
        "Root mean squared difference of the input and the volume sampled as the input was, over "
        "the range of the intensities; noisy data are not matched in full",
    ),
    "energy_above": column(
        "Fine detail (above half Nyquist)",
        "fraction",
        "Share of the volume's energy (mean apart) at frequencies above half its Nyquist frequency along some axis",
    ),
    "energy_above_bspline": column(
        "Fine detail (above half Nyquist), B-spline",
        "fraction",
        "The same of the input interpolated by cubic B-splines",
    ),
    "sharpness": column(
        "Sharpness",
        "1/mm",
        f"Mean gradient magnitude {_WHERE}, two voxels from its edge, over the "
        "range of intensities from the 5th to the 95th percentile",
    ),
    "sharpness_bspline": column("Sharpness, B-spline", "1/mm", "The same of the interpolated input"),
    "noise": column(
        "Noise",
        "fraction",
        "Standard deviation of the noise from the product of second differences along "
        f"the three axes {_WHERE}, over the same range; fine structure counts as noise",
    ),
    "share_gaussians": column(
        "Share of the Gaussians", "fraction", "Their weight in the blend with the linear solutions"
    ),
    "n_fields": column("Fields of Gaussians", "count", "Members of the ensemble"),
    "n_gaussians": column("Gaussians", "count", "Of all fields"),
    "mask_volume": column("Brain mask volume", "mL", "Volume of the brain mask, if there is one"),
}


def super_resolution_metrics(
    volume: np.ndarray, interpolated: np.ndarray, affine: np.ndarray, mask: np.ndarray | None, known: dict
) -> dict[str, float]:
    """Compute the row of quality metrics of a super-resolved volume.

    Parameters
    ----------
    volume, interpolated : ndarray, (X, Y, Z)
        Volume, and the cubic B-spline of its input on the same grid.
    affine : ndarray, (4, 4)
    mask : ndarray, (X, Y, Z), bool, optional
    known : dict
        Values from the fit: ``hidden_gain``, ``hidden_error``, ``hidden_error_bspline``, ``data_misfit``, ``Blend``,
        ``NumberOfFields``, ``NumberOfGaussians``.

    Returns
    -------
    dict of str to float
        One value for every key of ``SR_METRIC_DESCRIPTIONS``, in that order; NaN where it cannot be computed.
    """
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    inside = foreground(interpolated) if mask is None or not mask.any() else mask
    ours, theirs = (image_metrics(np.asarray(image, np.float32), inside, spacing) for image in (volume, interpolated))
    row = {
        name: known.get(name, math.nan)
        for name in ("hidden_gain", "hidden_error", "hidden_error_bspline", "data_misfit")
    }
    row |= {
        "energy_above": energy_above(volume),
        "energy_above_bspline": energy_above(interpolated),
        "sharpness": ours["sharpness"],
        "sharpness_bspline": theirs["sharpness"],
        "noise": ours["noise"],
        "share_gaussians": known.get("Blend", {}).get("gaussians", 0.0),
        "n_fields": known.get("NumberOfFields", 0),
        "n_gaussians": known.get("NumberOfGaussians", 0),
        "mask_volume": math.nan if mask is None else ours["mask_volume"],
    }
    return {name: float(row[name]) for name in SR_METRIC_DESCRIPTIONS}


def foreground(image: np.ndarray) -> np.ndarray:
    """Return the voxels above a tenth of the 99th percentile of an image, or all where 0 is no background."""
    low, high = np.percentile(image, (1, 99))
    return image > FOREGROUND * high if low > -FOREGROUND * high else np.ones(image.shape, bool)
