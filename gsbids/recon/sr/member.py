# SPDX-License-Identifier: Apache-2.0
"""One fit of normalised Gaussians to one coarse volume: 12 numbers a Gaussian, Adam, D(render) against the data."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.kernels import backend, ops
from gsbids.recon.field import GaussianField
from gsbids.recon.sr.options import Schedule, SrOptions
from gsbids.recon.sr.problem import SrProblem

FINAL_RATE = 0.05  # of the learning rate, at the end of the cosine


@dataclass(frozen=True)
class MemberFit:
    """Field and history of one fit.

    Attributes
    ----------
    field : GaussianField
        Field in coarse voxels of the problem.
    history : dict of str to list
        ``loss`` and ``held_out``: mean squared residuals of every iteration.
    """

    field: GaussianField
    history: dict


def start_field(problem: SrProblem, known: np.ndarray, width: float, seed: int) -> GaussianField:
    """Place a round Gaussian at every voxel of ``inside``, on a shifted lattice with jitter.

    Parameters
    ----------
    problem : SrProblem
    known : ndarray, (A, B, C)
        Data, with guesses for the hidden voxels: the amplitudes, interpolated.
    width : float
        Sigma, coarse voxels.
    seed : int
        Seed of shift and jitter.
    """
    rng = np.random.default_rng(seed)
    index = np.argwhere(problem.inside)
    jitter = problem.options.jitter * np.clip(rng.standard_normal(index.shape), -3, 3)
    mean = index + rng.uniform(-0.5, 0.5, 3) + jitter
    amplitude = ndimage.map_coordinates(known, mean.T, order=3, mode="nearest")
    if not problem.options.amplitude:
        amplitude = np.ones(len(index))
    quaternion = np.zeros((len(index), 4), np.float32)
    quaternion[:, 0] = 1
    return GaussianField(
        mean.astype(np.float32),
        np.full((len(index), 3), math.log(width), np.float32),
        quaternion,
        np.clip(amplitude, known.min(), known.max() if problem.options.amplitude else 1).astype(np.float32),
        np.zeros(len(index), np.float32),
        np.zeros(3),
    )


def fit_member(problem: SrProblem, known: np.ndarray, schedule: Schedule, seed: int) -> MemberFit:
    """Fit a field to the voxels that are not hidden.

    Parameters
    ----------
    problem : SrProblem
    known : ndarray, (A, B, C)
        As for :func:`start_field`.
    schedule : Schedule
    seed : int

    Returns
    -------
    MemberFit
    """
    options = problem.options
    field = start_field(problem, known, schedule.width, seed)
    parameters = {
        k: torch.tensor(getattr(field, k), device=backend.torch_device(options.device), requires_grad=True)
        for k in GaussianField.PARAMETERS
    }
    optimiser, rates = _optimiser(parameters, options)
    floor = math.log(options.scale_floor * min(a.step for a in problem.axes))
    grid, operator = problem.forward_model()
    coarse, held = (backend.to_device(a, options.device) for a in (problem.coarse, problem.held))
    history: dict[str, list] = {"loss": [], "held_out": []}
    for iteration in range(schedule.iterations):
        fall = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * iteration / schedule.iterations))
        for group, full in zip(optimiser.param_groups, rates, strict=True):
            group["lr"] = schedule.rate * fall * full
        optimiser.zero_grad(set_to_none=True)
        image = ops.GridRender.apply(*parameters.values(), grid, problem.render_options)
        rendered = backend.to_device(image.contiguous(), options.device)
        miss = (operator(rendered) if operator else rendered) - coarse
        history["held_out"].append(float((miss[held] ** 2).mean()) if problem.held.any() else None)
        miss[held] = 0
        history["loss"].append(float((miss**2).mean()))
        miss = miss * np.float32(2 / problem.coarse.size)
        image.backward(torch.as_tensor(operator.transpose(miss) if operator else miss))
        optimiser.step()
        with torch.no_grad():
            parameters["quaternion"] /= parameters["quaternion"].norm(dim=1, keepdim=True)
            parameters["log_scale"].clamp_(min=floor)
    arrays = {k: backend.to_host(v) for k, v in parameters.items()}
    return MemberFit(GaussianField(origin=np.zeros(3), **arrays), history)


def render_fine(problem: SrProblem, field: GaussianField) -> np.ndarray:
    """Render the field at the fine voxels, float32."""
    return np.ascontiguousarray(ops.render_grid(*field.parameters, problem.fine_grid, problem.render_options)[0])


def _optimiser(parameters: dict[str, torch.Tensor], options: SrOptions) -> tuple[torch.optim.Optimizer, list[float]]:
    """Return Adam, and the full rate of each of its groups."""
    rates = {
        "mean": options.mean_rate,
        "log_scale": options.scale_rate,
        "quaternion": options.scale_rate,
        "intensity": options.amplitude_rate,
        "log_weight": options.proxy_rate,
    }
    if not options.geometry:
        rates |= dict.fromkeys(("mean", "log_scale", "quaternion"), 0.0)
    if not options.proxy:
        rates["log_weight"] = 0.0
    if not options.amplitude:
        rates["intensity"] = 0.0
    groups = [{"params": [tensor], "lr": rates[name]} for name, tensor in parameters.items()]
    return torch.optim.Adam(groups, eps=1e-15), [rates[name] for name in parameters]


def to_world(field: GaussianField, affine: np.ndarray) -> GaussianField:
    """Transform a field to world coordinates: ``mu' = A mu + t``, ``Sigma' = A Sigma A^T``.

    Parameters
    ----------
    field : GaussianField
        Field in voxels of some volume.
    affine : ndarray, (4, 4)
        Voxel indices of that volume to world RAS+ mm; any linear part that can be inverted.

    Returns
    -------
    GaussianField
        Origin in the middle of the means.
    """
    linear = np.asarray(affine, float)[:3, :3]
    middle = field.mean.mean(0).astype(float)
    turned = Rotation.from_quat(field.quaternion, scalar_first=True).as_matrix()
    root = np.einsum("ij,njk,nk->nik", linear, turned, np.exp(field.log_scale.astype(float)))
    axes, scale, _ = np.linalg.svd(root)  # Sigma' = root root^T
    axes[:, :, 2] *= np.linalg.det(axes)[:, None]  # right-handed
    return field.replace(
        mean=((field.mean - middle) @ linear.T).astype(np.float32),
        log_scale=np.log(np.maximum(scale, 1e-30)).astype(np.float32),
        quaternion=Rotation.from_matrix(axes).as_quat(scalar_first=True).astype(np.float32),
        origin=linear @ middle + np.asarray(affine, float)[:3, 3],
    )
