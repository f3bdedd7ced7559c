# SPDX-License-Identifier: Apache-2.0
"""Row of the SVR benchmark on the uncertainty map: predicted sigma against the true error of every voxel.

The volume of the default method and its map are sampled on the grid of the truth, through the one rigid transform
that carries the true poses onto the fitted ones (nothing is interpolated), and the intensities are fitted to the
truth's by a line inside the brain, as ``tools/score.py`` does. The constants of the map were chosen on the cases
``CALIBRATED_ON`` alone; the others judge it.
"""

import numpy as np
from figures import draw_calibration
from scipy import ndimage
from scipy.stats import spearmanr
from svr_cases import Case, simulated
from svr_fit import fit

from gsbids.imaging.nifti import load_image
from gsbids.imaging.stack import Stack
from gsbids.recon.fitting import poses
from gsbids.recon.svr.result import SvrResult
from gsbids.recon.volume.sample import sample_result
from gsbids.recon.volume.uncertainty import CALIBRATION, Uncertainty, predict_error

CALIBRATED_ON = (("F22", 31), ("F22", 32))
SCORED = ("A", "B2", "F25", "F28")
BINS = 10
NEAR = 1.5  # voxels, width of the window of a local root mean square


def uncertainty_row(suite) -> None:
    """Predicted sigma against true error, on cases that had no part in the choice of its constants."""
    _run(suite, "uncertainty", [(name, seed) for name in SCORED for seed in suite.seeds_or(1)])


def calibration_row(suite) -> None:
    """The same on the cases that its constants were chosen on."""
    _run(suite, "uncertainty-calibration", CALIBRATED_ON)


def _run(suite, row: str, cases) -> None:
    curves = {}
    for name, seed in cases:
        case = simulated(name, seed, suite.work)
        fitted, stacks = fit("default", case, suite.threads, suite.changes_of("default"))
        found = score_uncertainty(fitted.result, stacks, case)
        curves[f"{name}, seed {seed}"] = found["bins"]
        suite.record({"row": row, "case": case.name, "seed": seed, "method": "default", "uncertainty": found})
    if suite.figures:
        draw_calibration(suite.figures / f"svr_{row}.png", curves)


def score_uncertainty(result: SvrResult, stacks: list[Stack], case: Case) -> dict:
    """How well the map of a result predicts its error.

    Returns
    -------
    dict
        ``spearman``: rank correlation of sigma and absolute error over the voxels of the brain; ``spearman_core``, two
        voxels in; of the parts of sigma, each alone. ``spearman_local``: with the root mean square of the error around
        each voxel; ``spearman_oracle``: of that with the error, what a perfect map of this resolution could reach.
        ``within``: share of voxels with an error below 1 and 2 sigma (of a normal distribution 0.683, 0.954).
        ``bins``: mean sigma and RMS error in tenths of the voxels by sigma. ``calibration``: the factor k that would
        make the mean square of sigma that of the error.
    """
    truth, affine = load_image(case.truth[0])
    mask = load_image(case.truth[1])[0] > 0.5
    true = result.nominal.moved(case.true_transforms()[result.stack_index, result.slice_index])
    grid = poses.mean_correction(result.motion, true, result.weight) @ affine
    image = sample_result(result, grid, truth.shape)
    found = predict_error(result, stacks, grid, image)
    slope, offset = np.polyfit(image[mask].astype(float), truth[mask], 1)
    error = np.abs(image + (offset - truth) / slope)
    return {
        "psnr": round(float(20 * np.log10(truth[mask].max() / (slope * rms(error[mask])))), 2),
        "rms_error": round(rms(error[mask]), 2),
        "rms_sigma": round(rms(found.sigma[mask]), 2),
        **correlations(found, error, mask),
        "within": [round(float((error <= times * found.sigma)[mask].mean()), 3) for times in (1, 2)],
        "bins": binned(found.sigma[mask], error[mask]),
        "calibration": round(factor(found, error, mask), 2),
    }


def rms(values: np.ndarray) -> float:
    """Root mean square."""
    return float(np.sqrt(np.mean(np.square(values, dtype=float))))


def correlations(found: Uncertainty, error: np.ndarray, mask: np.ndarray) -> dict:
    """Rank correlations, see :func:`score_uncertainty`."""
    core = ndimage.binary_erosion(mask, iterations=2)
    local = ndimage.gaussian_filter(error**2 * mask, NEAR) / np.maximum(ndimage.gaussian_filter(mask * 1.0, NEAR), 1e-3)

    def rank(a, b, where=mask):
        return round(float(spearmanr(a[where], b[where])[0]), 3)

    return {
        "spearman": rank(found.sigma, error),
        "spearman_core": rank(found.sigma, error, core),
        "spearman_parts": {part: rank(getattr(found, part), error) for part in ("data", "members", "placement")},
        "spearman_local": rank(found.sigma, local),
        "spearman_oracle": rank(local, error),
    }


def binned(sigma: np.ndarray, error: np.ndarray) -> list[dict]:
    """RMS of sigma and of the error in tenths of the voxels by sigma, from small to large."""
    parts = np.array_split(np.argsort(sigma, kind="stable"), BINS)
    return [{"sigma": round(rms(sigma[part]), 3), "error": round(rms(error[part]), 3)} for part in parts]


def factor(found: Uncertainty, error: np.ndarray, mask: np.ndarray) -> float:
    """The k with which the mean square of sigma in the brain is that of the error."""
    left = rms(error[mask]) ** 2 - rms(found.placement[mask]) ** 2 - rms(found.data[mask]) ** 2
    return CALIBRATION * float(np.sqrt(max(left, 0.0))) / rms(found.members[mask])
