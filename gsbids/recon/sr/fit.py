# SPDX-License-Identifier: Apache-2.0
"""Zero-shot super-resolution of one volume: Gaussians and linear solutions, blended as hidden voxels ask for."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numba
import numpy as np
import torch
from scipy import ndimage

from gsbids.errors import InputError
from gsbids.imaging.intensity import background
from gsbids.imaging.masks import bounding_box
from gsbids.kernels import backend
from gsbids.recon.field import GaussianField
from gsbids.recon.sr.choice import (
    SrChoice,
    bspline_solution,
    choose,
    choose_linear,
    deep_inside,
    linear_solution,
    mix,
    refine,
)
from gsbids.recon.sr.edge import cut_copies, explains, learn_edge, sharpen_edge
from gsbids.recon.sr.grid import SrGrid
from gsbids.recon.sr.interpolation import interpolate
from gsbids.recon.sr.magnitude_noise import noise_of_air, without_bias
from gsbids.recon.sr.member import fit_member, render_fine, to_world
from gsbids.recon.sr.options import SrOptions
from gsbids.recon.sr.problem import SrProblem
from gsbids.recon.sr.result import SrResult

# Fields of the ensemble: with the exact forward model, and with the PSF in the Gaussians.
MEMBERS, CHEAP_MEMBERS = 2, 12
LEAST_VOXELS = 64  # with less, there is nothing to fit Gaussians to
QUALITIES = ("full", "fast")


@dataclass(frozen=True)
class _Fit:
    """Parts of the result."""

    fine: np.ndarray | None
    fields: tuple = ()
    history: dict | None = None
    choice: SrChoice | None = None


def super_resolve(
    volume: np.ndarray,
    affine: np.ndarray,
    grid: SrGrid,
    options: SrOptions = SrOptions(),  # noqa: B008
    watch: Callable[[str], None] | None = None,
) -> SrResult:
    """Reconstruct a finer volume from one volume alone.

    Gaussians are fitted so that D(render) is the volume (:mod:`gsbids.recon.sr.member`), as an ensemble; hidden
    voxels choose how, and how the mean is mixed with the Sobolev solution and the cubic B-spline
    (:mod:`gsbids.recon.sr.choice`); the mix is projected on ``{x: D x = y}`` and smoothed by non-local means; where
    the volume was cut out by a mask, its edge is made one (:mod:`gsbids.recon.sr.edge`).

    Parameters
    ----------
    volume : ndarray, (A, B, C)
        Real numbers of any scale; trailing axes of length 1 are dropped, values that are not finite count as 0.
    affine : ndarray, (4, 4)
        Voxel indices to world RAS+ mm.
    grid : SrGrid
        Grid for this volume, from :func:`gsbids.recon.sr.grid.grid_by_factor` or the like.
    options : SrOptions
    watch : callable, optional
        Called with one line of text at every step.

    Returns
    -------
    SrResult

    Raises
    ------
    gsbids.errors.InputError
        The volume is not 3D or has no finite value, the grid is not of this volume, or there is no such quality.
    """
    say = watch or (lambda text: None)
    numba.set_num_threads(max(1, min(options.threads, numba.config.NUMBA_NUM_THREADS)))
    torch.set_num_threads(1)  # its sums change with the threads; its share of the time is small
    data = _checked(volume, grid, options)
    offset, scale = _intensities(data)
    coarse = ((data - offset) / scale).astype(np.float32)
    whole = SrProblem.pose(coarse, grid.axes, options)
    fine, fit = np.zeros(grid.shape, np.float32), _Fit(None)
    noise = noise_of_air(coarse) if options.magnitude and offset == 0 else 0.0
    if coarse.max() > 0:
        box = bounding_box(whole.filled, 3)
        problem, fine_box = whole.part(box)
        quick = options.quality == "fast" or problem.filled.sum() < LEAST_VOXELS
        fit = _fast(problem) if quick else _full(problem, say)
        fine[fine_box] = without_bias(fit.fine, noise)  # type: ignore[arg-type]
        fit = replace(fit, fields=tuple(to_world(_moved(f, box), affine) for f in fit.fields))
    settings = asdict(options) | {"factor": [1 / a.step for a in grid.axes], "device": backend.describe(options.device)}
    settings.pop("threads")  # the result does not depend on it
    if fit.choice:
        settings["choice"] = fit.choice.settings()
    if noise:
        say(f"air shows the noise of a magnitude image, sigma {noise * scale:.3g}: its mean is taken out")
        settings["magnitude_noise"] = noise
    return SrResult(
        (fine * np.float64(scale) + offset).astype(np.float32),
        grid.affine,
        fit.fields,
        offset,
        scale,
        fit.history or {},
        settings,
        fit.choice.weights[0] if fit.fields else 0.0,  # type: ignore[union-attr]
        np.array(affine, float),
        whole.filled,
        background(data),
    )


def _checked(volume: np.ndarray, grid: SrGrid, options: SrOptions) -> np.ndarray:
    data = np.asarray(volume)
    while data.ndim > 3 and data.shape[-1] == 1:
        data = data[..., 0]
    if data.ndim != 3 or 0 in data.shape:
        raise InputError(f"the image has shape {data.shape}; one volume of three axes is expected")
    if data.dtype.kind not in "iufb":
        raise InputError(f"voxels are of type {data.dtype}; real numbers are expected")
    if data.shape != tuple(axis.coarse for axis in grid.axes):
        raise InputError(
            f"the grid was made for a volume of {tuple(axis.coarse for axis in grid.axes)} voxels, the "
            f"image has {data.shape}: make it again"
        )
    if options.quality not in QUALITIES:
        raise InputError(f"the quality is {options.quality!r}; give one of {', '.join(QUALITIES)}")
    data = data.astype(np.float64)
    finite = np.isfinite(data)
    if not finite.any():
        raise InputError("no voxel of the image is a finite number; check the file")
    return np.where(finite, data, 0.0)


def _intensities(data: np.ndarray) -> tuple[float, float]:
    """Return offset and scale that bring the data to [0, 1]; 0 stays 0 where nothing is negative."""
    low = min(float(data.min()), 0.0)
    scale = float(data.max()) - low
    return low, scale if scale > 0 else 1.0


def _fast(problem: SrProblem) -> _Fit:
    """Compute the Sobolev solution, projected on the data as far as these are not noise."""
    choice = choose_linear(problem)
    return _Fit(refine(problem, linear_solution(problem, choice.noise), choice))


def _full(problem: SrProblem, say: Callable[[str], None]) -> _Fit:
    """Run trial, ensemble, blend, projection and non-local means."""
    choice = choose(problem)
    say(
        f"chosen by hidden voxels: sigma {choice.schedule.width:g} voxels, {choice.schedule.iterations} iterations, "  # type: ignore[union-attr]
        f"blend {_shares(choice.blend)}, smoothing {choice.smoothing:g}"
        + (f"; far from the background {_shares(choice.deep.blend)}, {choice.deep.smoothing:g}" if choice.deep else "")
    )
    count = problem.options.members or (CHEAP_MEMBERS if problem.forward_model()[1] is None else MEMBERS)
    mean: Any
    history: dict[str, list]
    mean, fields, history = 0.0, [], {"member": [], "iteration": [], "loss": []}
    for member in range(count if choice.weights[0] > 0 else 0):
        fit = fit_member(problem, problem.coarse, choice.schedule, problem.options.seed + member)  # type: ignore[arg-type]
        mean = mean + render_fine(problem, fit.field) / np.float32(count)
        fields.append(fit.field)
        history["member"] += [member] * len(fit.history["loss"])
        history["iteration"] += range(len(fit.history["loss"]))
        history["loss"] += fit.history["loss"]
        say(f"field {member + 1} of {count}: {len(fit.field)} Gaussians")
    fine = _blended(problem, mean, choice)
    sharp = _sharp_edged(problem, fine, choice, say) if problem.options.sharp_edge else None
    return _Fit(fine if sharp is None else sharp, tuple(fields), history, replace(choice, edge=sharp is not None))


def _blended(problem: SrProblem, mean: np.ndarray | None, choice: SrChoice) -> np.ndarray:
    """Blend the mean of the fields with the linear solutions, project on the data and smooth."""
    experts = [
        mean,
        linear_solution(problem, choice.noise) if choice.weights[1] > 0 else None,
        bspline_solution(problem) if choice.weights[2] > 0 else None,
    ]
    fine = refine(problem, mix(experts, choice.blend), choice)
    if not choice.deep:
        return fine
    inner = refine(problem, mix(experts, choice.deep.blend), replace(choice, smoothing=choice.deep.smoothing))
    share = ndimage.gaussian_filter(deep_inside(problem).astype(np.float32), 1.0)
    share = interpolate(share, problem.axes, "linear")
    return refine(problem, share * inner + (1 - share) * fine, replace(choice, smoothing=0.0))


def _sharp_edged(
    problem: SrProblem, fine: np.ndarray, choice: SrChoice, say: Callable[[str], None]
) -> np.ndarray | None:
    """Return the volume with a sharp edge; None where it was not cut out."""
    copies = cut_copies(problem, fine)
    if not copies:
        return None
    linear, *theirs = (linear_solution(p, choice.noise) for p in (problem, *(copy.problem for copy in copies)))
    model = learn_edge(copies, theirs)
    sharp = sharpen_edge(problem, fine, linear, model)
    if not explains(problem, sharp, copies[0], sharpen_edge(copies[0].problem, theirs[0], theirs[0], model)):
        return None
    say(f"the volume ends at a cut through tissue: its edge is sharpened as {len(copies)} copies of its own teach")
    return refine(problem, sharp, replace(choice, smoothing=0.0))


def _shares(blend: Sequence[float]) -> str:
    return " / ".join(f"{weight:.2f}" for weight in blend)


def _moved(field: GaussianField, box: tuple[slice, ...]) -> GaussianField:
    """Move a field of a box to the coordinates of the whole volume."""
    return field.replace(mean=field.mean + np.array([cut.start for cut in box], np.float32))
