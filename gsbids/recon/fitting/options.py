# SPDX-License-Identifier: Apache-2.0
"""Options of the slice-to-volume fit."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SvrOptions:
    """Options of :func:`gsbids.recon.svr.fit.fit_svr`; the defaults were chosen by measurement.

    Attributes
    ----------
    n_gaussians : int or None
        Number of Gaussians of every field; None: the pixels held out decide.
    pixels_per_gaussian : float
        Fitted pixels of all slices that a Gaussian of the coarse field stands for: more data carry more detail.
    doublings : int
        Most times that the number of Gaussians is doubled.
    members : int
        Fields of the ensemble, each fitted from other starts.
    iterations : int
        Most iterations of the coarse field, which finds the poses.
    motion_correction : bool
        Fit a pose per slice; else the poses of the co-registered stacks are kept.
    place : bool
        Begin with outlines and coarse features (:mod:`gsbids.recon.svr.place`), where slices moved far.
    refine_masks : bool
        Let the masks follow what moves with the head (:mod:`gsbids.recon.svr.consensus`), with ``place``. Off: in masks
        30 mm too wide a fit fell apart with it, and its gain has not been measured by itself.
    pose_start, pose_every : int
        First iteration with a pose step, and iterations from one to the next.
    neighbour_turns : tuple of int
        Pose steps (counted from 0) at which every slice also tries the motion of its neighbours.
    together : tuple of float
        Shares of a stage's iterations after which all slices and the field step at once
        (:mod:`gsbids.recon.fitting.poses_together`).
    free_strains : bool
        Look along the strain of the brain that stacks of two directions leave free
        (:mod:`gsbids.recon.fitting.strain`).
    neighbour_tie : float
        Pull of every slice to its neighbours' motion, as a share of what the median slice's own data say.
    learning_rate : float
        Adam's step for positions (mm), log-scales, quaternions and intensities.
    detail_iterations, detail_learning_rate, detail_pose_every
        The same for the fields after the coarse one; poses move in the first of them only.
    rim : float
        Width (mm) of the rim around the masks that is fitted as well.
    edge_share : float
        Share of the Gaussians that start where the image gradient is (the rest uniformly): 1 - lambda of
        Eq. 6 of the GSVR paper.
    scale_floor : float
        Standard deviations under this share of the mean distance of the Gaussians are drawn back.
    scale_weight : float
        Weight of that regularisation.
    mass_factor : bool
        The PSF keeps the mass of a Gaussian (see :class:`gsbids.kernels.ops.RenderOptions`).
    stack_bias : bool
        Give every stack a smooth bias field of its own (:mod:`gsbids.recon.fitting.stack_bias`).
    cut : float
        Radius of a Gaussian in standard deviations.
    held_out : float
        Share of the pixels that the fit does not see; it stops when it no longer predicts them better.
    patience : int
        Iterations without progress on them before it stops.
    seed : int
    threads : int
        CPU threads; the result does not depend on it.
    device : str
        Device of the fit: ``cpu``, ``cuda`` or ``cuda:N``; the result is the same within float32 rounding.
    """

    n_gaussians: int | None = None
    pixels_per_gaussian: float = 16.0
    doublings: int = 3
    members: int = 3
    iterations: int = 120
    motion_correction: bool = True
    place: bool = True
    refine_masks: bool = False
    pose_start: int = 4
    pose_every: int = 2
    neighbour_turns: tuple[int, ...] = (4, 8, 14, 22, 34)
    free_strains: bool = True
    neighbour_tie: float = 0.004
    together: tuple[float, ...] = (0.4, 0.55, 0.7, 0.85)
    learning_rate: float = 2.5e-2
    detail_iterations: int = 80
    detail_learning_rate: float = 5e-2
    detail_pose_every: int = 4
    rim: float = 3.5
    edge_share: float = 0.7
    scale_floor: float = 0.44
    scale_weight: float = 0.05
    mass_factor: bool = True
    stack_bias: bool = True
    cut: float = 3.5
    held_out: float = 0.03
    patience: int = 40
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
