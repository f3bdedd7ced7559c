# SPDX-License-Identifier: Apache-2.0
"""Options of super-resolution."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """Start width, learning rate and length of the fit of one field of Gaussians.

    Attributes
    ----------
    width : float
        Start sigma of the Gaussians, in coarse voxels.
    rate : float
        Factor of all learning rates of :class:`SrOptions`.
    iterations : int
        Adam's steps; the rates fall as a cosine.
    """

    width: float
    rate: float
    iterations: int


#: Schedules to choose among with the exact forward model.
EXACT_SCHEDULES = (
    Schedule(1.0, 1.0, 25),
    Schedule(1.0, 1.0, 40),
    Schedule(1.0, 1.0, 80),
    Schedule(1.2, 1.5, 80),
    Schedule(1.2, 1.5, 160),
)
#: The same with the PSF in the Gaussians, which narrow profiles allow.
NARROW_SCHEDULES = (
    Schedule(1.0, 1.5, 40),
    Schedule(1.2, 1.0, 40),
    Schedule(1.2, 1.5, 80),
    Schedule(1.5, 1.0, 40),
    Schedule(1.5, 1.5, 80),
)


@dataclass(frozen=True)
class SrOptions:
    """Options of :func:`gsbids.recon.sr.fit.super_resolve`; the defaults were chosen by measurement.

    Attributes
    ----------
    quality : str
        ``full``: Gaussians; ``fast``: the linear Sobolev solution alone.
    profile : str or tuple of str
        Sampling profile of a coarse voxel, for all axes or each, see
        :func:`gsbids.recon.sr.sampling_operator.profile_matrix`.
    profile_width : tuple of float
        Width of the profile along each axis, in coarse voxels.
    schedules : tuple of Schedule, or None
        Candidates of which the held-out voxels choose one; None: those measured for the forward model.
    members : int or None
        Fields of the ensemble, each on another lattice; None: 2, or 12 where they are cheap.
    held_out : float
        Share of the coarse voxels that are hidden in the trial, to choose schedule, blend and smoothing; 0: the first
        schedule and its field alone.
    trial_voxels : int
        Approximate number of non-empty coarse voxels in the trial.
    forward : str
        ``exact``: D(render); ``psf``: rendered on the coarse grid, the profile folded into the Gaussians; ``point``:
        the same without a profile (as in the paper); ``auto``: ``psf`` where the profile is narrow.
    geometry, proxy : bool
        Fit positions, scales and rotations; fit the relaxation proxy (a log-weight). Off for ablations.
    amplitude : bool
        Fit amplitudes; off, all are 1 and the image is what the weights alone make.
    nonlocal_steps : int
        Passes of non-local means with projection after the fit; 0: none.
    noise_aware : bool
        Project with a weight by the noise that is estimated from the data.
    magnitude : bool
        Remove the mean of the noise of a magnitude image from the result, where air shows such noise.
    sharp_edge : bool
        Make the edge a cut where the volume was cut out by a mask.
    mean_rate, scale_rate, amplitude_rate, proxy_rate : float
        Adam's steps for positions (coarse voxels), for log-scales and quaternions, for amplitudes (of the range) and
        for the log-weights.
    jitter : float
        Standard deviation of the centres around their lattice, in coarse voxels.
    rim : int
        Width, in coarse voxels, of the shell of background around what is not empty that gets Gaussians too.
    scale_floor : float
        Least sigma, in fine voxels.
    cut : float
        Radius of a Gaussian in standard deviations.
    seed : int
    threads : int
        CPU threads; the result does not depend on it.
    device : str
        Device for the fit and rendering of fields: ``cpu``, ``cuda`` or ``cuda:N``; the rest is computed on the CPU.
    """

    quality: str = "full"
    profile: str | tuple[str, str, str] = "box"
    profile_width: tuple[float, float, float] = (1.0, 1.0, 1.0)
    schedules: tuple[Schedule, ...] | None = None
    members: int | None = None
    held_out: float = 0.1
    trial_voxels: int = 25000
    forward: str = "auto"
    geometry: bool = True
    proxy: bool = True
    amplitude: bool = True
    nonlocal_steps: int = 2
    noise_aware: bool = True
    magnitude: bool = True
    sharp_edge: bool = True
    mean_rate: float = 0.1
    scale_rate: float = 0.06
    amplitude_rate: float = 0.02
    proxy_rate: float = 0.1
    jitter: float = 0.15
    rim: int = 1
    scale_floor: float = 0.3
    cut: float = 3.0
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
