# SPDX-License-Identifier: Apache-2.0
"""Slice-to-volume reconstruction by the method of the GSVR paper (Dannecker, Jia et al., MIDL 2026), for comparison.

What its text leaves open is taken from its public code and configuration. Where that code differs from the text by
mistake the text is followed: Gaussians start where the gradient is (the code looks the places up with indices of
another list), and positions are centred on the brain (the code's weight decay draws them to the scanner's origin).
Not carried over: half precision, and the min-max scaling of intensities over all stacks; slices are those of
:class:`gsbids.recon.fitting.slices.SliceSet`.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import numba
import numpy as np
import torch
from torch.nn import functional

from gsbids.errors import InputError
from gsbids.imaging.stack import Stack, common_offset
from gsbids.kernels import points
from gsbids.recon.field import GaussianField
from gsbids.recon.fitting import outliers, poses
from gsbids.recon.fitting.initialise import sampling_probability
from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.motion import RigidMotion
from gsbids.recon.svr.fit import move_field
from gsbids.recon.svr.result import SvrResult
from gsbids.recon.svr_paper.top_k import EPS, PixelSet, observed_psf, render_slices

LOG_SCALE_LIMITS = (-3.0, 3.0)  # logarithm of the standard deviation in mm
LEAST_MEAN_GAIN = 1e-3  # against division by 0
ROBUST_FROM = 0.25  # share of the iterations after which slices may lose weight
LEAST_DEVIATION = 0.02  # of the slice residuals, below which no slice stands out
TOLERANCE = 4.0  # robust deviations before a slice loses weight


@dataclass(frozen=True)
class PaperOptions:
    """Options of :func:`fit_paper`; the defaults are those of the paper and its configuration files.

    Attributes
    ----------
    n_gaussians : int
        Number of Gaussians (at most the pixels at which one may start).
    neighbours : int
        K: Gaussians that a pixel sees.
    iterations : int
        Epochs; each sees all pixels.
    index_every : int
        Epochs from one search for neighbours to the next, and between updates of the slice weights.
    motion_correction : bool
        Fit a pose per slice; else the poses of the co-registered stacks are kept.
    psf : bool
        Add the PSF to the covariances (Eq. 4).
    slice_gain, slice_weight : bool
        Fit an intensity factor per slice; give outlying slices less weight.
    edge_share : float
        1 - lambda_init of Eq. 6: share of the Gaussians that start where the image gradient is.
    scale_init, scale_target : float
        Logarithm of the standard deviation (mm) at the start, and of that below which it is drawn back.
    scale_weight, rotation_weight, translation_weight : float
        Weights of the penalties on log-scales (Eq. 7), on the vector part of the slices' quaternions, and on their
        translations (mm).
    field_rate, rotation_rate, translation_rate, gain_rate : float
        Learning rates of positions (mm), log-scales, quaternions and colours; of the slices' quaternions,
        translations (mm) and gains.
    final_rate : float
        Learning rate at the end of the cosine schedule, as a share of the smallest.
    weight_decay : float
        Weight decay of AdamW, on every parameter.
    rim : float
        Width (mm) of the rim around the brain in which the volume is shown; the fit sees the masks only.
    seed : int
    threads : int
        CPU threads; the result does not depend on it.
    """

    n_gaussians: int = 30_000
    neighbours: int = 64
    iterations: int = 500
    index_every: int = 50
    motion_correction: bool = True
    psf: bool = True
    slice_gain: bool = True
    slice_weight: bool = True
    edge_share: float = 1.0
    scale_init: float = 0.5
    scale_target: float = 0.05
    scale_weight: float = 0.05
    rotation_weight: float = 0.01
    translation_weight: float = 2e-4
    field_rate: float = 2.5e-2
    rotation_rate: float = 2.5e-3
    translation_rate: float = 5e-2
    gain_rate: float = 1e-3
    final_rate: float = 0.1
    weight_decay: float = 0.01
    rim: float = 2.0
    seed: int = 0
    threads: int = 1


def fit_paper(
    stacks: list[Stack],
    transforms: np.ndarray,
    options: PaperOptions = PaperOptions(),
    progress: Callable[[int, int, dict], None] | None = None,
    observe: Callable[[int, Callable[[], SvrResult]], None] | None = None,
) -> SvrResult:
    """Reconstruct a field of Gaussians with the method of the GSVR paper.

    Minimises, over 11 parameters a Gaussian, a quaternion, a translation and a gain a slice, ::

        mean_p w_s |a_s I_s(p) - y_p| + l_scale mean max(target - log sigma, 0)^2
            + l_rot mean |vec q_s|^2 + l_trans mean |t_s|^2

    (Eq. 7) with all of them in one AdamW. I_s is Eq. 5 over the K nearest Gaussians
    (:mod:`gsbids.recon.svr_paper.top_k`), colours are softplus of their parameter, gains softplus over their mean.

    Parameters
    ----------
    stacks : list of Stack
        Masked stacks, bias corrected.
    transforms : ndarray, (N, 4, 4) or (N, Z, 4, 4)
        World rigid transforms scanner -> common space from the co-registration of the stacks, or of every slice.
    options : PaperOptions
    progress : callable, optional
        Called as ``progress(iteration, iterations, record)`` after every iteration; ``record`` has ``loss``.
    observe : callable, optional
        Called as ``observe(iteration, result)`` after every iteration; ``result()`` is the state then.

    Returns
    -------
    SvrResult

    Raises
    ------
    gsbids.errors.InputError
        A mask is empty, or there is no brain to reconstruct.
    """
    numba.set_num_threads(min(options.threads, numba.config.NUMBA_NUM_THREADS))
    torch.set_num_threads(1)  # its sums change with the threads
    slices = SliceSet.from_stacks(stacks, transforms)
    if len(slices) < 2:
        raise InputError("a slice-to-volume reconstruction needs slices with brain in them: check the masks")
    model = _Model(slices, options)
    history: dict[str, list] = {"iteration": [], "loss": [], "slices_at_full_weight": []}

    def result() -> SvrResult:
        return _finish(model, stacks, np.asarray(transforms, float), history)

    for iteration in range(options.iterations):
        if iteration % options.index_every == 0:
            model.search_neighbours()
        residual, loss = model.step()
        if (
            options.slice_weight
            and iteration % options.index_every == 0
            and (iteration >= ROBUST_FROM * options.iterations)
        ):
            model.weight = torch.from_numpy(slice_weights(residual, model.pixels.place[0])).float()
        record = {"loss": loss, "slices_at_full_weight": float((model.weight > 0.5).float().mean())}
        for key, value in {"iteration": iteration, **record}.items():
            history[key].append(value)
        if progress:
            progress(iteration + 1, options.iterations, record)
        if observe:
            observe(iteration + 1, result)
    return result()


def slice_weights(residual: np.ndarray, slice_of: np.ndarray) -> np.ndarray:
    """Return uncertainty weights of slices, as in the code of the paper.

    ``w = exp(-(max(z, 0) / 4)^2 / 2)``, z the slice's mean absolute residual above the median of all slices in
    units of ``max(1.4826 MAD, 0.02)``; all 1 where more than half would fall under 0.1.

    Parameters
    ----------
    residual : ndarray, (P,)
    slice_of : ndarray, (P,), int

    Returns
    -------
    ndarray, (S,)
    """
    level = np.bincount(slice_of, np.abs(residual)) / np.maximum(np.bincount(slice_of), 1)
    middle = np.median(level)
    spread = max(outliers.MAD_TO_SIGMA * np.median(np.abs(level - middle)), LEAST_DEVIATION)
    weight = np.exp(-0.5 * (np.maximum((level - middle) / spread, 0) / TOLERANCE) ** 2)
    return np.ones_like(weight) if np.mean(weight < 0.1) > 0.5 else weight


def initial_field(slices: SliceSet, options: PaperOptions) -> GaussianField:
    """Place round Gaussians of one size at pixels drawn by Eq. 6, with the intensities of these pixels."""
    rng = np.random.default_rng(options.seed)
    probability = sampling_probability(slices, options.edge_share).ravel()
    candidates = np.flatnonzero(probability)
    count = min(options.n_gaussians, len(candidates))
    chosen = rng.choice(candidates, count, replace=False, p=probability[candidates] / probability[candidates].sum())
    s, *index = np.unravel_index(chosen, slices.values.shape)
    local = np.zeros((count, 3))
    local[:, :2] = slices.in_plane(s, np.stack(index, 1))
    mean = np.einsum("jab,jb->ja", slices.start.rotation[s], local) + slices.start.translation[s]
    return GaussianField(
        mean=mean.astype(np.float32),
        log_scale=np.full((count, 3), options.scale_init, np.float32),
        quaternion=np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1)),
        intensity=slices.values[s, index[0], index[1]],
        log_weight=np.zeros(count, np.float32),
        origin=slices.origin,
    )


class _Model:
    """Parameters of the fit, their optimiser, and one step of it."""

    def __init__(self, slices: SliceSet, options: PaperOptions) -> None:
        self.slices, self.options, self.pixels = slices, options, PixelSet.from_slices(slices)
        start = initial_field(slices, options)
        colour = torch.from_numpy(np.maximum(start.intensity, 1e-4))
        colour = colour + torch.log(-torch.expm1(-colour))  # the inverse of softplus
        mean, log_scale, quaternion = (torch.from_numpy(a) for a in (start.mean, start.log_scale, start.quaternion))
        self.field = [p.requires_grad_() for p in (mean, log_scale, quaternion, colour)]
        count = len(slices)
        self.turn = torch.tensor([1.0, 0, 0, 0]).repeat(count, 1).requires_grad_(options.motion_correction)
        self.shift = torch.zeros(count, 3, requires_grad=options.motion_correction)
        self.raw_gain = torch.zeros(count, requires_grad=options.slice_gain)
        self.weight = torch.ones(count)
        self.start = torch.from_numpy(slices.start.rotation).float(), torch.from_numpy(slices.start.translation).float()
        self.psf = torch.from_numpy(slices.psf * options.psf).float()
        groups = [{"params": self.field, "lr": options.field_rate}]
        if options.motion_correction:
            groups += [
                {"params": [self.turn], "lr": options.rotation_rate},
                {"params": [self.shift], "lr": options.translation_rate},
            ]
        if options.slice_gain:
            groups += [{"params": [self.raw_gain], "lr": options.gain_rate}]
        self.optimiser = torch.optim.AdamW(groups, weight_decay=options.weight_decay)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimiser,
            options.iterations,
            options.final_rate * min(group["lr"] for group in groups),  # type: ignore[operator, type-var]
        )
        self.index = None

    def poses(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return rotations (S, 3, 3), about the slices' own origins, and translations (S, 3) of the slices."""
        rotation, translation = self.start
        return _matrices(self.turn) @ rotation, translation + self.shift

    def gain(self) -> torch.Tensor:
        """Return the gains of the slices, of mean 1, (S,)."""
        gain = functional.softplus(self.raw_gain)
        return gain / gain.mean().clamp(min=LEAST_MEAN_GAIN)

    def rendered_parameters(self) -> tuple[torch.Tensor, ...]:
        """Return the five arrays of the kernels, with gradients."""
        mean, log_scale, quaternion, colour = self.field
        return (
            mean,
            log_scale.clamp(*LOG_SCALE_LIMITS),
            quaternion,
            functional.softplus(colour),
            torch.zeros(len(mean)),
        )

    def positions(self, rotation: torch.Tensor, translation: torch.Tensor) -> torch.Tensor:
        """Return the positions of the pixels, (P, 3)."""
        s = self.pixels.slice
        return (rotation[s] @ self.pixels.local[..., None])[..., 0] + translation[s]

    def search_neighbours(self) -> None:
        """Search the K nearest Gaussians of every pixel; the index is used until the next search."""
        with torch.no_grad():
            position = self.positions(*self.poses()).numpy()
            self.index = points.nearest(  # type: ignore[assignment]
                self.field[0].numpy(),
                position,
                self.options.neighbours,
                np.zeros((len(self.slices), 6)),
                self.pixels.place[0],
            )

    def step(self) -> tuple[np.ndarray, float]:
        """Take one step of all parameters; return the residuals (P,) and the loss before it."""
        options, s = self.options, self.pixels.slice
        self.optimiser.zero_grad(set_to_none=True)
        rotation, translation = self.poses()
        image = points.PointRender.apply(
            *self.rendered_parameters(),
            self.positions(rotation, translation),
            self.index,
            EPS,
            observed_psf(rotation, self.psf),
        )
        residual = self.gain()[s] * image - self.pixels.value
        narrow = functional.relu(options.scale_target - self.field[1])
        loss = (
            (self.weight[s] * residual.abs()).mean()
            + options.scale_weight * (narrow**2).mean()
            + options.rotation_weight * (self.turn[:, 1:] ** 2).mean()
            + options.translation_weight * (self.shift**2).mean()
        )
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        return residual.detach().numpy(), float(loss.detach())


def _matrices(quaternion: torch.Tensor) -> torch.Tensor:
    """Return the rotation matrices (S, 3, 3) of quaternions (w, x, y, z) of any length."""
    w, x, y, z = (quaternion / (quaternion.norm(dim=1, keepdim=True) + 1e-8)).unbind(1)
    rows = (
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    )
    return torch.stack(rows, 1).reshape(-1, 3, 3)


@torch.no_grad()
def _finish(model: _Model, stacks: list[Stack], transforms: np.ndarray, history: dict[str, list]) -> SvrResult:
    """Fix the gauge, return to the world, and measure every slice; the model stays as it is."""
    slices, options = model.slices, model.options
    shift = model.shift.double().numpy()
    motion = RigidMotion(
        _matrices(model.turn.double()).numpy() @ slices.start.rotation, slices.start.translation + shift
    )
    arrays = [a.numpy().copy() for a in model.rendered_parameters()]
    arrays[2] /= np.linalg.norm(arrays[2], axis=1, keepdims=True)
    field, pixels = GaussianField(*arrays, origin=slices.origin), model.pixels  # type: ignore[misc]
    simulated = np.zeros(slices.values.shape, np.float32)
    gain = model.gain().double().numpy()
    simulated[pixels.place] = gain[pixels.place[0]] * render_slices(
        field, motion, slices.psf * options.psf, pixels.local.double().numpy(), options.neighbours, pixels.place[0]
    )
    back = np.linalg.inv(poses.mean_correction(motion, slices.start, slices.mask.sum((1, 2)).astype(float)))
    scale = float(np.median(slices.stack_scale))
    settings = {k: v for k, v in asdict(options).items() if k != "threads"}

    def at_origin(given: RigidMotion) -> RigidMotion:
        return replace(given, translation=given.translation + slices.origin)

    return SvrResult(
        field=move_field(field, back),
        stack_names=tuple(stack.name for stack in stacks),
        stack_index=slices.stack_index,
        slice_index=slices.slice_index,
        nominal=at_origin(slices.nominal),
        motion=at_origin(motion.moved(back)),
        stack_affine=transforms,
        gain=gain * slices.stack_scale[slices.stack_index] / scale,
        weight=model.weight.double().numpy(),
        ncc=outliers.slice_ncc(slices.values, simulated, slices.mask),
        residual=outliers.slice_residuals(slices.values - simulated, slices.mask),
        psf=slices.psf,
        intensity_scale=scale,
        intensity_offset=common_offset(stacks, slices.stack_scale),
        history={key: list(column) for key, column in history.items()},
        settings={
            **settings,
            "method": "paper",
            "gaussians": len(field),
            "pixels": int(slices.mask.sum()),
            "slices": len(slices),
            "eps": EPS,
        },
    )
