# SPDX-License-Identifier: Apache-2.0
"""Quality metrics of one reconstruction: one row of the QC table."""

import warnings
from collections.abc import Callable
from itertools import combinations

import numpy as np
from scipy import ndimage

from gsbids.imaging.stack import Stack
from gsbids.qc.agreement import agreement_metrics, coverage_metrics
from gsbids.qc.displacement import SliceDisplacement, slice_displacement
from gsbids.recon.svr.result import SvrResult


def column(name: str, units: str, description: str) -> dict[str, str]:
    """Return the BIDS description of a column."""
    return {"LongName": name, "Units": units, "Description": description}


#: BIDS description of every column of the QC table (``LongName``, ``Units``, ``Description``).
METRIC_DESCRIPTIONS: dict[str, dict[str, str]] = {
    "n_stacks": column("Stacks", "count", "Stacks with at least one slice in the fit"),
    "n_slices": column("Slices", "count", "Slices with brain in their mask: the slices of the fit"),
    "slices_used": column("Slices used", "count", "Slices of the fit whose robust weight is at least 0.1"),
    "slices_rejected": column(
        "Slices rejected", "fraction", "Share of the slices of the fit whose robust weight is below 0.1"
    ),
    "ncc_median": column(
        "Similarity, median",
        "arbitrary",
        "Median over all slices of the fit, rejected ones included, of the normalised "
        "cross-correlation of the acquired and the simulated slice inside the mask",
    ),
    "ncc_p10": column(
        "Similarity, 10th percentile",
        "arbitrary",
        "10th percentile over all slices of the fit of the normalised cross-correlation",
    ),
    "ncc_worst_stack": column(
        "Similarity, worst stack", "arbitrary", "Lowest of the stacks' median normalised cross-correlations"
    ),
    "stack_agreement": column(
        "Agreement of stacks, median",
        "arbitrary",
        "Median over all pairs of stacks of the normalised cross-correlation of their brains "
        "after motion correction, blurred by the slice thickness; the fitted volume has no part "
        "in it",
    ),
    "stack_agreement_worst": column(
        "Agreement of stacks, worst", "arbitrary", "Lowest of the stacks' median agreements with the others"
    ),
    "placing_agreement": column(
        "Agreement at placing, worst stack",
        "arbitrary",
        "Lowest of the stacks' agreements with all others, as coarse images of the brain, when "
        "their slices had been placed and no detail was fitted yet",
    ),
    "placing_margin": column(
        "Lead of the chosen places",
        "arbitrary",
        "Mean of these agreements less that of the best other place that was tried for a stack; "
        "n/a where all stacks agreed at once",
    ),
    "crossing_angle": column(
        "Crossing of the stacks",
        "degree",
        "Largest angle between the slices of two stacks, in the anatomy: stacks that are nearly "
        "parallel leave detail across their slices unresolved",
    ),
    "mask_lost": column(
        "Taken from masks, most",
        "fraction",
        "Largest share of a stack's mask that did not move with the head and was left out of the fit",
    ),
    "residual_median": column(
        "Residual, median",
        "fraction",
        "Median over slices of the mean absolute difference of acquired and simulated "
        "slice inside the mask, over the 99th percentile of the intensities",
    ),
    "motion_mean": column(
        "Motion within stacks, mean",
        "mm",
        "Mean over used slices of the displacement from the mean pose of the slice's "
        "stack, at the point of the slice nearest the middle of the brain",
    ),
    "motion_max": column("Motion within stacks, largest", "mm", "Largest of these displacements"),
    "rotation_mean": column(
        "Rotation within stacks, mean",
        "degree",
        "Mean over used slices of the rotation from the mean pose of the slice's stack",
    ),
    "rotation_max": column("Rotation within stacks, largest", "degree", "Largest of these rotations"),
    "motion_neighbour_mean": column(
        "Motion between neighbours, mean",
        "mm",
        "Mean displacement between used slices that lie next to one another in a stack",
    ),
    "motion_neighbour_max": column(
        "Motion between neighbours, largest", "mm", "Largest displacement between neighbouring used slices"
    ),
    "rotation_neighbour_mean": column(
        "Rotation between neighbours, mean", "degree", "Mean rotation between neighbouring used slices"
    ),
    "coverage_mean": column(
        "Coverage, mean",
        "slices",
        "Mean over the brain mask of the number of used slices within whose thickness a voxel lies",
    ),
    "not_covered": column(
        "Not covered",
        "fraction",
        "Share of the brain mask that fewer than half a slice saw: its values come from their neighbours",
    ),
    "mask_volume": column("Brain mask volume", "mL", "Volume of the brain mask of the reconstruction"),
    "sharpness": column(
        "Sharpness",
        "1/mm",
        "Mean gradient magnitude inside the mask (two voxels from its edge), over the "
        "range of intensities from the 5th to the 95th percentile; compare at one "
        "resolution only, and beside the noise, which raises it",
    ),
    "noise": column(
        "Noise",
        "fraction",
        "Standard deviation of the noise from the product of second differences along the "
        "three axes (median absolute deviation inside the mask), over the same range of "
        "intensities; fine structure counts as noise, neighbouring voxels that share theirs "
        "hide it",
    ),
    "gain_spread": column(
        "Spread of slice gains",
        "fraction",
        "Standard deviation over used slices of the natural logarithm of the slice gain",
    ),
}


def reconstruction_metrics(
    result: SvrResult,
    volume: np.ndarray,
    mask: np.ndarray,
    spacing: np.ndarray,
    coverage: np.ndarray | None = None,
    stacks: list[Stack] | None = None,
) -> dict[str, float]:
    """Compute the row of quality metrics of a reconstruction.

    Parameters
    ----------
    result : SvrResult
    volume : ndarray, (X, Y, Z)
        Reconstructed volume, masked or not.
    mask : ndarray, (X, Y, Z)
        Brain mask on the same grid (non-zero is brain).
    spacing : array_like, (3,)
        Voxel size in mm.
    coverage : ndarray, (X, Y, Z), optional
        Number of slices that cover each voxel.
    stacks : list of Stack, optional
        Fitted stacks, in the order of ``result.stack_names``.

    Returns
    -------
    dict of str to float
        One value for every key of ``METRIC_DESCRIPTIONS``, in that order; NaN where it cannot be computed.
    """
    mask = np.asarray(mask) > 0
    if mask.shape != np.shape(volume):
        raise ValueError(f"the mask is {mask.shape}, the volume {np.shape(volume)}: they must share a grid")
    spacing = np.broadcast_to(np.asarray(spacing, float), 3)
    row = slice_metrics(result) | placing_metrics(result) | motion_metrics(result, slice_displacement(result))
    row |= image_metrics(np.asarray(volume, np.float32), mask, spacing)
    if coverage is not None:
        row |= coverage_metrics(coverage, mask)
    if stacks is not None:
        row |= agreement_metrics(result, stacks)
    used = ~result.rejected & (result.gain > 0)
    row["gain_spread"] = _summary(np.std, np.log(result.gain[used]))
    return {name: float(row.get(name, np.nan)) for name in METRIC_DESCRIPTIONS}


def slice_metrics(result: SvrResult) -> dict[str, float]:
    """Compute counts of slices, similarity and residual (see ``METRIC_DESCRIPTIONS``)."""
    stacks = [result.ncc[result.stack_index == stack] for stack in np.unique(result.stack_index)]
    medians = [_summary(np.median, values) for values in stacks]
    return {
        "n_stacks": len(stacks),
        "n_slices": len(result.weight),
        "slices_used": int((~result.rejected).sum()),
        "slices_rejected": _summary(np.mean, result.rejected.astype(float)),
        "ncc_median": _summary(np.median, result.ncc),
        "ncc_p10": _summary(lambda values: np.percentile(values, 10), result.ncc),
        "ncc_worst_stack": _summary(np.min, np.array(medians)),
        "residual_median": _summary(np.median, result.residual),
    }


def placing_metrics(result: SvrResult) -> dict[str, float]:
    """Compute the reliability of the registration of the stacks (see ``METRIC_DESCRIPTIONS``)."""
    found = np.array([np.nan if value is None else value for value in result.settings.get("agreement", [])], float)
    margin = result.settings.get("placing_margin")
    lost = [change["lost"] for change in result.settings.get("mask_changes", {}).values()]
    return {
        "placing_agreement": _summary(np.min, found),
        "placing_margin": np.nan if margin is None else margin,
        "crossing_angle": crossing_angle(result),
        "mask_lost": _summary(np.max, np.array(lost)),
    }


def crossing_angle(result: SvrResult) -> float:
    """Return the largest angle (degrees, up to 90) between the mean slice normals of two stacks; else NaN."""
    normals = []
    for stack in np.unique(result.stack_index):
        each = result.motion.rotation[result.stack_index == stack][:, :, 2]
        normals.append(np.linalg.svd(each, full_matrices=False)[2][0])
    alike = [abs(float(a @ b)) for a, b in combinations(normals, 2)]
    return float(np.degrees(np.arccos(min(min(alike), 1.0)))) if alike else float("nan")


def motion_metrics(result: SvrResult, moved: SliceDisplacement) -> dict[str, float]:
    """Compute the motion within stacks and between neighbouring slices (see ``METRIC_DESCRIPTIONS``)."""
    shift = np.linalg.norm(moved.shift[~result.rejected], axis=1)
    turn = np.linalg.norm(moved.turn[~result.rejected], axis=1)
    return {
        "motion_mean": _summary(np.mean, shift),
        "motion_max": _summary(np.max, shift),
        "rotation_mean": _summary(np.mean, turn),
        "rotation_max": _summary(np.max, turn),
        "motion_neighbour_mean": _summary(np.mean, moved.step_shift),
        "motion_neighbour_max": _summary(np.max, moved.step_shift),
        "rotation_neighbour_mean": _summary(np.mean, moved.step_turn),
    }


def image_metrics(volume: np.ndarray, mask: np.ndarray, spacing: np.ndarray) -> dict[str, float]:
    """Compute the volume of the mask, sharpness and noise (see ``METRIC_DESCRIPTIONS``)."""
    row = {"mask_volume": mask.sum() * np.prod(spacing) / 1000.0, "sharpness": np.nan, "noise": np.nan}
    inside = ndimage.binary_erosion(mask, iterations=2) if mask.any() else mask
    if not inside.any() or min(mask.shape) < 3:
        return row
    low, high = np.percentile(volume[mask], (5, 95))
    if high <= low:
        return row
    gradient = np.sqrt(sum(np.gradient(volume, step, axis=axis) ** 2 for axis, step in enumerate(spacing)))
    row["sharpness"] = gradient[inside].mean() / (high - low)
    detail = volume
    for axis in range(3):
        detail = ndimage.correlate1d(detail, [1.0, -2.0, 1.0], axis=axis, mode="nearest")
    values = detail[inside]
    # White noise of variance 1 comes out with variance (1 + 4 + 1)^3.
    row["noise"] = 1.4826 * np.median(np.abs(values - np.median(values))) / 6**1.5 / (high - low)
    return row


def _summary(function: Callable[[np.ndarray], float], values: np.ndarray) -> float:
    """Apply ``function`` to the finite values; NaN when there are none."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return float(function(finite))
