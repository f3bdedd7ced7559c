# SPDX-License-Identifier: Apache-2.0
"""Previews: volumes during the fit, for somebody who waits at the scanner."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from gsbids.imaging.stack import Stack
from gsbids.recon.fitting.options import SvrOptions
from gsbids.recon.svr.result import SvrResult
from gsbids.recon.volume.sample import output_grid, sample_result

GROWTH = 1.5  # from the iteration of one preview to that of the next: as many are made early as late
WORSE = 1.02  # residual, as a share of the best one shown, up to which a state is shown


@dataclass(frozen=True)
class PreviewVolume:
    """A state of the fit as a volume.

    Attributes
    ----------
    image : ndarray, (X, Y, Z), float32
        Image in input intensities; 0 away from the brain.
    affine : ndarray, (4, 4)
        Voxel indices to world RAS+ mm, isotropic; the grid follows the poses and may differ from one to the next.
    iteration : int
        Iteration of the fit, from 1.
    residual : float
        Mean absolute residual of the slices over the 99th percentile of the intensities, slices by their weight.
    result : SvrResult
        State of the fit: poses, weights and similarities of the slices, and the field.
    """

    image: np.ndarray
    affine: np.ndarray
    iteration: int
    residual: float
    result: SvrResult


class Previewer:
    """An observer for :func:`gsbids.recon.svr.fit.fit_svr` that shows intermediate volumes.

    It looks at the fit at iteration ``first`` and then at ever larger distances (each 1.5 times as far), and shows a
    state if its slices are explained about as well as by the best one before: a field that has just been started again
    is not shown. The fit takes no notice of it: its result is the same to the bit.

    Parameters
    ----------
    stacks : list of Stack
        Stacks of the fit.
    resolution : float
        Voxel size in mm.
    show : callable
        Called as ``show(preview)`` with a :class:`PreviewVolume`, in the thread of the fit, which waits. What it raises
        ends the fit.
    first : int
        Iteration of the first one.
    device : str
        Device on which volumes are rendered.
    """

    def __init__(
        self,
        stacks: list[Stack],
        resolution: float,
        show: Callable[[PreviewVolume], None],
        first: int = 8,
        device: str = "cpu",
    ) -> None:
        self.stacks, self.resolution, self.show, self.device = stacks, resolution, show, device
        self.next, self.best = first, np.inf

    def __call__(self, iteration: int, result: Callable[[], SvrResult]) -> None:
        """Observe one iteration; ``result()`` is the state of the fit, and is asked for at few iterations."""
        if iteration < self.next:
            return
        self.next = max(iteration + 1, round(GROWTH * iteration))
        state = result()
        residual = float(np.average(state.residual, weights=state.weight + 1e-6))
        if residual > WORSE * self.best or state.rejected.all():
            return
        self.best = min(self.best, residual)
        affine, shape = output_grid(self.stacks, state, self.resolution)
        self.show(PreviewVolume(sample_result(state, affine, shape, self.device), affine, iteration, residual, state))


def quick_options(options: SvrOptions) -> SvrOptions:
    """Return options of a fit for a preview alone: the coarse field, with less than half of the iterations.

    So few iterations need larger ones. On case A of the benchmark, 2 cores, 40 iterations: SSIM 0.85 at the learning
    rate of the fit proper, 0.88 at three times that with half of the poses' steps, in three quarters of the time.
    """
    return replace(
        options,
        iterations=max(20, 2 * options.iterations // 5),
        doublings=0,
        members=1,
        learning_rate=3 * options.learning_rate,
        pose_every=2 * options.pose_every,
    )
