# SPDX-License-Identifier: Apache-2.0
"""Quality of a super-resolution: its misfit to the data, and the prediction of hidden voxels."""

import math

import numpy as np

from gsbids.recon.sr.grid import SrGrid
from gsbids.recon.sr.magnitude_noise import rician_mean
from gsbids.recon.sr.options import SrOptions
from gsbids.recon.sr.problem import SrProblem
from gsbids.recon.sr.result import SrResult


def data_misfit(volume: np.ndarray, grid: SrGrid, options: SrOptions, result: SrResult) -> float:
    """Return the root mean squared difference of D x and the data over the range of the data, background excluded.

    Where the mean of the noise was taken out, that of D x with such noise is compared.

    Parameters
    ----------
    volume : ndarray, (A, B, C)
        Data.
    grid : SrGrid
    options : SrOptions
        Options with the profile that the result was made with.
    result : SrResult
        Result on that grid.
    """
    coarse = np.asarray(volume, float).reshape(result.filled.shape)
    operator = SrProblem.pose(coarse, grid.axes, options).operator
    found, noise = operator(result.volume), result.settings.get("magnitude_noise", 0.0) * result.intensity_scale
    miss = ((noise * rician_mean(found / noise) if noise else found) - coarse)[result.filled]
    return float(np.sqrt(np.mean(miss**2)) / result.intensity_scale) if miss.size else 0.0


def hidden_gain(result: SrResult) -> dict[str, float]:
    """Return the error at the hidden voxels of the trial, and the gain over the B-spline in dB.

    Errors are over the range of the data.

    Returns
    -------
    dict of str to float
        ``hidden_error``, ``hidden_error_bspline``, ``hidden_gain``; NaN where there was no trial.
    """
    choice = result.settings.get("choice", {})
    errors = choice.get("errors", {})
    ours, theirs = (float(errors.get(name, math.nan)) for name in ("blend", "bspline"))
    # Refining with the strength that was chosen is the last step of the trial.
    refined = {name: value for name, value in errors.items() if name.startswith("smoothing ")}
    if refined:
        ours = min(refined.values()) if choice["smoothing"] else refined["smoothing 0"]
    gain = 20 * math.log10(theirs / ours) if ours > 0 and theirs > 0 else math.nan
    return {"hidden_error": ours, "hidden_error_bspline": theirs, "hidden_gain": gain}


def choice_rows(result: SrResult) -> tuple[tuple[str, str], ...]:
    """List what was chosen, as labels and values for people."""
    settings, choice = result.settings, result.settings.get("choice")
    rows = [
        ("Quality", "full" if choice else "linear solution alone (fast)"),
        ("Finer by", " x ".join(f"{f:.4g}" for f in settings["factor"])),
        ("Sampling profile", ", ".join(_profile_words(settings))),
        ("Random seed", str(settings["seed"])),
    ]
    if settings.get("magnitude_noise"):
        rows.append(
            (
                "Noise of air",
                f"sigma {settings['magnitude_noise'] * result.intensity_scale:.3g}; its mean was taken out",
            )
        )
    if not choice:
        return tuple(rows)
    schedule = choice["schedule"]
    rows += [
        (
            "Fields of Gaussians",
            f"{len(result.fields)} of {', '.join(str(len(f)) for f in result.fields[:1])} Gaussians"
            if result.fields
            else "none: the linear solutions predicted better",
        ),
        ("Start width", f"sigma {schedule['width']:g} voxels"),
        ("Iterations", f"{schedule['iterations']}, rates x {schedule['rate']:g}"),
        ("Blend", _in_words(choice["blend"])),
        *([("Blend far from the background", _in_words(choice["deep"]["blend"]))] if choice.get("deep") else []),
        ("Edge", "sharpened, as of a volume that was cut out" if choice.get("edge") else "as reconstructed"),
        ("Non-local means", _strength(choice["smoothing"])),
        *([("Non-local means far from it", _strength(choice["deep"]["smoothing"]))] if choice.get("deep") else []),
        ("Noise", f"Sobolev {choice['noise']:g}, projection {choice['noise_ratio']:.3g}"),
    ]
    return tuple(rows)


def _in_words(blend: dict[str, float]) -> str:
    return ", ".join(f"{name} {share:.2f}" for name, share in blend.items())


def _strength(smoothing: float) -> str:
    return f"strength {smoothing:g}" if smoothing else "none"


def _profile_words(settings: dict) -> list[str]:
    names = settings["profile"]
    names = [names] * 3 if isinstance(names, str) else names
    return [
        f"{name}, {width:.3g} voxel{'s' if f'{width:.3g}' != '1' else ''} wide" if name in ("box", "gaussian") else name
        for name, width in zip(names, settings["profile_width"], strict=True)
    ]
