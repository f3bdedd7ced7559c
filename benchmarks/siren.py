# SPDX-License-Identifier: Apache-2.0
"""A small implicit neural representation of one volume, to compare with: a SIREN (Sitzmann et al. 2020).

A network of sines goes from coordinates to intensity; it is fitted to the coarse voxels at their centres and asked at
those of the fine ones. Nothing is known of how the coarse voxels were made, as is usual for such networks.
"""

import math
from itertools import pairwise

import numpy as np
import torch

WIDTH, LAYERS, OMEGA = 128, 4, 30.0
STEPS, BATCH, RATE = 2000, 16384, 5e-4
AT_ONCE = 1 << 18  # coordinates


class Siren(torch.nn.Module):
    """Sines of linear layers, started as in section 3.2 of the paper."""

    def __init__(self):
        super().__init__()
        sizes = [3] + [WIDTH] * LAYERS + [1]
        self.layers = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in pairwise(sizes))
        with torch.no_grad():
            for k, layer in enumerate(self.layers):
                bound = 1 / 3 if k == 0 else math.sqrt(6 / WIDTH) / OMEGA
                layer.weight.uniform_(-bound, bound)

    def forward(self, at: torch.Tensor) -> torch.Tensor:
        """Intensities at coordinates in [-1, 1], (N, 3) to (N,)."""
        for layer in self.layers[:-1]:
            at = torch.sin(OMEGA * layer(at))
        return self.layers[-1](at)[:, 0]


def siren(coarse: np.ndarray, axes, seed: int, threads: int) -> np.ndarray:
    """The fine volume of a SIREN that was fitted to the coarse one.

    Parameters
    ----------
    coarse : ndarray, (A, B, C)
        In [0, 1].
    axes : tuple of AxisGrid
        The fine grid.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    half = max(coarse.shape) / 2  # the same length of all axes: voxels count alike
    middle = [(n - 1) / 2 for n in coarse.shape]
    filled = np.argwhere(coarse != 0)
    at = torch.from_numpy(((filled - middle) / half).astype(np.float32))
    value = torch.from_numpy(coarse[tuple(filled.T)].astype(np.float32))
    network = Siren()
    optimiser = torch.optim.Adam(network.parameters(), lr=RATE)
    fall = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    for _ in range(STEPS):
        some = torch.randint(len(at), (BATCH,))
        optimiser.zero_grad()
        torch.nn.functional.mse_loss(network(at[some]), value[some]).backward()
        optimiser.step()
        fall.step()
    places = [((axis.positions - m) / half).astype(np.float32) for axis, m in zip(axes, middle, strict=True)]
    inside = _near(coarse != 0, axes)
    fine = np.zeros(inside.shape, np.float32)
    where = np.argwhere(inside)
    asked = torch.from_numpy(np.stack([p[i] for p, i in zip(places, where.T, strict=True)], 1))
    with torch.no_grad():
        fine[inside] = torch.cat([network(part) for part in asked.split(AT_ONCE)]).numpy()
    torch.set_num_threads(before)
    return fine


def _near(filled: np.ndarray, axes) -> np.ndarray:
    """Fine voxels whose coarse voxel is not background: elsewhere it was not fitted."""
    index = [np.clip(np.rint(axis.positions), 0, axis.coarse - 1).astype(int) for axis in axes]
    return filled[np.ix_(*index)]
