# SPDX-License-Identifier: Apache-2.0
"""One stage of the reconstruction: a field of Gaussians fitted to slices, with their poses, gains and weights."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from gsbids.kernels import backend, ops
from gsbids.kernels.problem import Array
from gsbids.recon.field import GaussianField
from gsbids.recon.fitting import outliers, poses
from gsbids.recon.fitting.initialise import initial_field
from gsbids.recon.fitting.options import SvrOptions
from gsbids.recon.fitting.poses_together import step_together
from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.fitting.stack_bias import BiasBasis, StackBias, fit_bias, lattice

if TYPE_CHECKING:
    from gsbids.kernels.cuda.kept_lists import KeptLists

PARAMETERS = GaussianField.PARAMETERS[:-1]  # the log-weights stay
REWEIGHT_EVERY = 10  # iterations between two updates of gains, weights and bias
SIGNAL_WIDTH = 3.0  # mm: standard deviation of the averages by which signal loss of a slice is estimated
FINAL_RATE = 0.05  # of the learning rate, at the end of the cosine


@dataclass(frozen=True)
class Stage:
    """Settings of one stage: number of Gaussians, length, learning rate, and the iterations of its steps.

    Attributes
    ----------
    gaussians : int
    iterations : int
    learning_rate : float
        Adam's step for positions (mm), log-scales, quaternions and intensities at the start; it falls as a cosine.
    seed : int
        Seed of the random start positions of the Gaussians.
    pose_turns, neighbour_turns : frozenset of int
        Iterations that begin with a step of the poses, and those of them at which slices also try their neighbours'.
    robust_from : int
        Iteration from which on outliers lose weight.
    bias_from : int
        Iteration from which on stacks have a bias; before, it would fit misregistered slices.
    together : frozenset of int
        Iterations that begin with a step of all slices and the field at once, instead.
    """

    gaussians: int
    iterations: int
    learning_rate: float
    seed: int
    pose_turns: frozenset[int] = frozenset()
    neighbour_turns: frozenset[int] = frozenset()
    robust_from: int = 0
    bias_from: int = 0
    together: frozenset[int] = frozenset()


@dataclass(frozen=True)
class FitProblem:
    """Data and options that all stages share, as numpy arrays and, with :meth:`on_device`, on the device of the fit.

    Attributes
    ----------
    slices : SliceSet
    train, held : ndarray, (S, X, Y), bool
        Pixels that are fitted, and pixels held out for validation.
    options : SvrOptions
    render : RenderOptions
    """

    slices: SliceSet
    train: np.ndarray
    held: np.ndarray
    options: SvrOptions
    render: ops.RenderOptions

    @classmethod
    def pose(cls, slices: SliceSet, options: SvrOptions) -> "FitProblem":
        """Hold out a random share of the region's pixels, the same for all stages."""
        draw = np.random.default_rng(options.seed + 1).random(slices.region.shape)
        held = slices.region & (draw < options.held_out)
        render = ops.RenderOptions(cut=options.cut, mass_factor=options.mass_factor, device=options.device)
        return cls(slices, slices.region & ~held, held, options, render)

    @cached_property
    def on_device(self) -> "DevicePixels":
        """Pixels on the device of the fit, copied once."""
        values, train, held, inner = (
            backend.to_device(a, self.options.device)
            for a in (self.slices.values, self.train, self.held, self.train & self.slices.mask)
        )
        return DevicePixels(self.slices.with_values(values), train, held, inner)

    @cached_property
    def nodes(self) -> np.ndarray:
        """Centres of the wide Gaussians of the stacks' bias, (M, 3)."""
        return lattice(self.slices.nominal, self.slices.reach)

    @cached_property
    def basis(self) -> BiasBasis:
        """Bias basis on the slices."""
        slices = self.slices
        return BiasBasis.seen(self.nodes, slices.nominal, slices.spacing, slices.centre, slices.values.shape[1:])

    @cached_property
    def basis_on_device(self) -> BiasBasis:
        """Bias basis on the device of the fit."""
        return BiasBasis(*(backend.to_device(a, self.options.device) for a in (self.basis.along, self.basis.across)))


@dataclass(frozen=True)
class DevicePixels:
    """Slices whose ``values`` are on the device, and the pixels (S, X, Y), bool, of :class:`FitProblem` on it.

    ``inner``: those that are fitted and in the mask.
    """

    slices: SliceSet
    train: np.ndarray
    held: np.ndarray
    inner: np.ndarray


@dataclass(frozen=True)
class Compared:
    """Data that the next steps are compared with, on the device: the same until gains and weights are renewed.

    Attributes
    ----------
    slices : SliceSet
        Slices corrected for signal loss and for their stacks' bias.
    acquired : ops.Acquired
        Values of the slices, weights of the pixels, and gains.
    total : float
        Sum of the weights.
    seen : array, (S, X, Y)
        Weights of the pixels held out.
    """

    slices: SliceSet
    acquired: ops.Acquired
    total: float
    seen: np.ndarray


@dataclass
class FitState:
    """State of a fit, which changes from one iteration to the next.

    Within a stage, images and parameters are on the device of the fit; between stages, images are arrays of numpy.

    Attributes
    ----------
    parameters : dict of str to tensor
        See :class:`gsbids.recon.field.GaussianField`.
    optimiser : torch.optim.Optimizer
    pose : PoseState
    gain, slice_weight : ndarray, (S,)
    pixel_weight : ndarray, (S, X, Y)
    kept_signal : ndarray, (S, X, Y), float32
        Share of the signal that a slice has kept, pixel by pixel; 1 but in slices that lost some.
    bias : ndarray, (S, X, Y), float32
        Factor by which stacks are brighter than the volume, smooth (:mod:`gsbids.recon.fitting.stack_bias`).
    log_bias : ndarray, (N, M)
        Coefficients of the bias.
    image : ndarray, (S, X, Y)
        Slices as last simulated, before gain.
    held_out : float
        Mean absolute residual on the pixels held out.
    compared : Compared or None
        See :class:`Compared`; None: to be computed.
    """

    parameters: dict[str, torch.Tensor]
    optimiser: torch.optim.Optimizer | None
    pose: poses.PoseState
    gain: np.ndarray
    slice_weight: np.ndarray
    pixel_weight: np.ndarray
    kept_signal: np.ndarray
    bias: np.ndarray
    log_bias: np.ndarray | None = None
    image: np.ndarray | None = None
    held_out: float = math.inf
    compared: Compared | None = None

    IMAGES = ("pixel_weight", "kept_signal", "bias", "image")

    @classmethod
    def start(cls, slices: SliceSet) -> "FitState":
        """Return a state without a field, slices at their start poses, with gain 1 and full weight."""
        ones = np.ones(len(slices))
        return cls(
            {},
            None,
            poses.PoseState(slices.start, poses.FIRST_DAMPING * ones),
            ones,
            ones,
            *np.ones((3, *slices.values.shape), np.float32),
        )

    def field(self, origin: np.ndarray) -> GaussianField:
        """Return the field as arrays (on the CPU, views of the parameters)."""
        arrays = {k: backend.to_host(v) for k, v in self.parameters.items()}
        return GaussianField(log_weight=np.zeros(len(arrays["mean"]), np.float32), origin=origin, **arrays)

    def at(self, device: str) -> "FitState":
        """Return the same state with its images on a device."""
        images: Any = {name: getattr(self, name) for name in self.IMAGES}
        return replace(
            self,
            compared=None,
            **{name: image if image is None else backend.to_device(image, device) for name, image in images.items()},  # type: ignore[arg-type]
        )

    def pixel_weights(self, pixels: Array) -> Array:
        """Return weights of some pixels (a mask) of the corrected slices, float32: each its own times its slice's."""
        weight = backend.like(self.slice_weight[:, None, None], self.pixel_weight) * self.pixel_weight
        return backend.as_float32(pixels * weight * (self.kept_signal * self.bias) ** 2)

    def restored(self, slices: SliceSet) -> SliceSet:
        """Return the slices corrected for signal loss and for their stacks' bias."""
        return slices.with_values(slices.values / (self.kept_signal * self.bias))

    def compare(self, pixels: DevicePixels) -> Compared:
        """Return the data that the next step is compared with."""
        if self.compared is None:
            clean, weight = self.restored(pixels.slices), self.pixel_weights(pixels.train)
            gain = backend.like(self.gain, clean.values)
            seen = pixels.held * backend.like(self.slice_weight[:, None, None], clean.values)
            acquired = ops.Acquired(clean.values, weight, poses.CHARBONNIER, gain)
            self.compared = Compared(clean, acquired, float(weight.sum(dtype=float)), seen)
        return self.compared

    def residual(self, slices: SliceSet) -> Array:
        """Return acquired minus simulated slices, (S, X, Y)."""
        return slices.values - self.kept_signal * self.simulated(self.image)

    def simulated(self, image: Array) -> Array:
        """Return rendered slices (S, X, Y) with the gains and the bias of the acquired ones."""
        return self.bias * backend.like(self.gain[:, None, None].astype(np.float32), image) * image

    def stack_bias(self, nodes: np.ndarray) -> StackBias | None:
        """Return the bias of the stacks on nodes (M, 3); None where none was fitted."""
        return None if self.log_bias is None else StackBias(nodes, self.log_bias)


def fit_stage(problem: FitProblem, before: FitState, stage: Stage, watch: Callable[[FitState, dict], None]) -> FitState:
    """Fit a new field; poses, gains and weights go on from where they are.

    Parameters
    ----------
    problem : FitProblem
    before : FitState
        Not changed.
    stage : Stage
    watch : callable
        Called as ``watch(state, record)`` after every iteration; ``record`` has ``loss``, ``held_out`` and
        ``poses_kept``.

    Returns
    -------
    FitState
    """
    state = _with_new_field(problem, before, stage)
    floor, lists = _scale_floor(problem, stage.gaussians), ops.kept_lists(problem.render)
    held_out = []
    for iteration in range(stage.iterations):
        kept = _move_slices(problem, state, stage, iteration)
        rate = FINAL_RATE + (1 - FINAL_RATE) * 0.5 * (1 + math.cos(math.pi * iteration / stage.iterations))
        loss = _field_step(problem, state, (stage.learning_rate * rate, floor), lists)
        if iteration % REWEIGHT_EVERY == REWEIGHT_EVERY - 1:
            _reweigh(problem, state, iteration >= stage.robust_from, iteration >= stage.bias_from)
        held_out.append(state.held_out)
        watch(state, {"loss": loss, "held_out": state.held_out, "poses_kept": kept})
        if _has_settled(held_out, problem.options.patience):
            break
    return state.at(backend.CPU)


def _move_slices(problem: FitProblem, state: FitState, stage: Stage, iteration: int) -> float:
    """Take a step of the poses, where one is due; return the share of slices that took it, NaN if none is due."""
    if iteration not in stage.pose_turns | stage.together:
        return math.nan
    compared = state.compare(problem.on_device)
    placing = poses.PoseProblem.of(
        state.field(problem.slices.origin),
        compared.slices,
        compared.acquired.weight,
        state.gain,
        problem.render,
        problem.options.neighbour_tie,
    )
    if iteration in stage.together:
        rng = np.random.default_rng((problem.options.seed, stage.seed, iteration))
        state.pose, shift = step_together(placing, state.pose, state.slice_weight, rng)
        with torch.no_grad():
            mean = state.parameters["mean"]
            mean += torch.as_tensor(shift, device=mean.device)
        return 1.0
    step = poses.try_neighbours if iteration in stage.neighbour_turns else poses.pose_step
    state.pose, moved = step(placing, state.pose)
    return float(moved.mean())


def _with_new_field(problem: FitProblem, before: FitState, stage: Stage) -> FitState:
    """Return a state with a field that starts from the slices at their present poses, on the device of the fit."""
    device = problem.options.device
    field = initial_field(
        before.restored(problem.slices),
        stage.gaussians,
        problem.options.edge_share,
        stage.seed,
        before.pose.motion,
        before.gain,
        before.slice_weight,
    )
    parameters = {
        k: torch.tensor(getattr(field, k), device=backend.torch_device(device), requires_grad=True) for k in PARAMETERS
    }
    # Adam without weight decay: positions and poses must not depend on where the origin is.
    optimiser = torch.optim.Adam(parameters.values(), eps=1e-15)
    return replace(before, parameters=parameters, optimiser=optimiser, image=None, held_out=math.inf).at(device)


def _scale_floor(problem: FitProblem, gaussians: int) -> float:
    """Return the logarithm of the standard deviation (mm) under which Gaussians are drawn back."""
    return math.log(problem.options.scale_floor * (problem.slices.volume / gaussians) ** (1 / 3))


def _field_step(
    problem: FitProblem, state: FitState, settings: tuple[float, float], lists: "KeptLists | None"
) -> float:
    """Take one Adam step of the field, with a rate and the floor of the log-scales; return the loss.

    Renews the simulated slices and the residual on the pixels held out. ``lists``: of :func:`ops.kept_lists`.
    """
    options, (rate, floor) = problem.options, settings
    for group in state.optimiser.param_groups:  # type: ignore[union-attr]
        group["lr"] = rate
    state.optimiser.zero_grad(set_to_none=True)  # type: ignore[union-attr]
    p, compared = state.parameters, state.compare(problem.on_device)
    field: Any = [backend.to_device(p[k], options.device) for k in PARAMETERS]
    field.append(backend.to_device(np.zeros(len(field[0]), np.float32), options.device))
    geometry = problem.slices.geometry(state.pose.motion, options.device)
    step = ops.step_slices(  # type: ignore[call-arg]
        *field, geometry, compared.acquired, problem.render, lists and lists.current(field, geometry)
    )
    for name, gradient in zip(PARAMETERS, step.gradients, strict=False):
        p[name].grad = torch.as_tensor(gradient / np.float32(compared.total))
    narrow = torch.relu(floor - p["log_scale"])
    (options.scale_weight * (narrow**2).mean()).backward()
    state.optimiser.step()  # type: ignore[union-attr]
    with torch.no_grad():
        p["quaternion"] /= p["quaternion"].norm(dim=1, keepdim=True)
    state.image = step.image
    missed = abs(state.residual(problem.on_device.slices)) * compared.seen
    state.held_out = float(missed.sum(dtype=float) / max(float(compared.seen.sum(dtype=float)), 1e-9))
    return float(step.loss.sum() / compared.total)


def _reweigh(problem: FitProblem, state: FitState, robust: bool, biased: bool) -> None:
    """Renew the gains, the weights of slices and pixels (``robust``), and the bias of the stacks (``biased``).

    Weights are renewed once the volume is more than a blur, the bias once the slices are registered.
    """
    pixels, compared = problem.on_device, state.compare(problem.on_device)
    slices, train = pixels.slices, pixels.train
    state.gain = outliers.slice_gains(compared.acquired.values, state.image, compared.acquired.weight)
    state.compared = None
    if robust:
        simulated = backend.like(state.gain[:, None, None].astype(np.float32), state.image) * state.image
        state.kept_signal, state.slice_weight = outliers.kept_signal_and_weights(
            slices.values, simulated * state.bias, pixels.inner, SIGNAL_WIDTH / slices.spacing
        )
        state.pixel_weight = backend.as_float32(outliers.pixel_weights(state.residual(slices), train))
        if biased and problem.options.stack_bias:
            whole = backend.to_host((state.kept_signal == 1).all((1, 2))) * state.slice_weight
            weight = train * backend.like(whole[:, None, None], simulated) * state.pixel_weight
            basis, images = problem.basis_on_device, (slices.values, simulated, weight)
            state.log_bias = fit_bias(basis, slices.stack_index, images, slices.spacing[0])
            state.bias = basis.factor(state.log_bias[slices.stack_index])


def _has_settled(held_out: list[float], patience: int) -> bool:
    """Return whether the held-out residual has not fallen by 0.1 % for ``patience`` iterations."""
    if not patience or len(held_out) <= 2 * patience:
        return False
    return min(held_out[-patience:]) > 0.999 * min(held_out[:-patience])
