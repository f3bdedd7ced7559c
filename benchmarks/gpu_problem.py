# SPDX-License-Identifier: Apache-2.0
"""The problem of the GPU benchmark: a ball of texture seen by three stacks of slices, and a field to fit to it."""

from dataclasses import dataclass

import numpy as np
import torch

from gsbids.kernels import ops, reference

AXES = ([[1, 0, 0], [0, 1, 0], [0, 0, 1]], [[0, 0, 1], [1, 0, 0], [0, 1, 0]], [[0, 1, 0], [0, 0, 1], [1, 0, 0]])


@dataclass(frozen=True)
class Problem:
    """Slices of a ball, and the field that is fitted.

    Attributes
    ----------
    field : list of ndarray
        mean, log_scale, quaternion, intensity, log_weight, float32.
    geometry : ops.SliceGeometry
    values : ndarray, (S, X, Y), float32
    """

    field: list[np.ndarray]
    geometry: ops.SliceGeometry
    values: np.ndarray

    @property
    def pixels(self) -> int:
        """Pixels that are rendered."""
        return int((self.geometry.extent[..., 1] - self.geometry.extent[..., 0]).sum())

    def mask(self) -> np.ndarray:
        """(S, X, Y) bool."""
        j, extent = np.arange(self.geometry.shape[1]), self.geometry.extent
        return (j >= extent[..., :1]) & (j < extent[..., 1:])


def make(slices: int, size: int, gaussians: int, seed: int = 0, radius: float = 37.0) -> Problem:
    """Three stacks of ``slices`` slices of size x size pixels through a ball of ``radius`` mm, moved a little."""
    rng = np.random.default_rng(seed)
    count, spacing = 3 * slices, 2 * radius / size
    offset = (np.linspace(-0.92, 0.92, slices) if slices > 1 else np.zeros(1)) * radius
    rotation = np.repeat(np.array(AXES, float), slices, 0)
    translation = rotation[:, :, 2] * np.tile(offset, 3)[:, None] + rng.normal(0, 0.3, (count, 3))
    turn = torch.tensor(rng.normal(0, 0.02, (count, 3)))
    rotation = reference.retract(
        torch.tensor(rotation),
        torch.zeros(count, 3, dtype=torch.float64),
        turn,
        torch.zeros(count, 3, dtype=torch.float64),
    )[0].numpy()
    psf = np.tile([(1.2 * spacing / 2.3548) ** 2] * 2 + [(3.0 / 2.3548) ** 2], (count, 1))
    half = (
        np.sqrt(
            np.maximum(
                radius**2 - np.tile(offset, 3)[:, None] ** 2 - ((np.arange(size) - (size - 1) / 2) * spacing) ** 2, 0
            )
        )
        / spacing
    )
    extent = np.stack([np.ceil((size - 1) / 2 - half), np.floor((size - 1) / 2 + half) + 1], -1)
    extent[half == 0] = 0
    geometry = ops.SliceGeometry(
        rotation,
        translation,
        psf,
        np.full((count, 2), spacing),
        np.full((count, 2), (size - 1) / 2),
        extent.astype(np.int32),
        (size, size),
    )
    x, y, z = np.moveaxis(positions(geometry), -1, 0)
    values = 0.5 + 0.2 * np.sin(x / 3) * np.cos(y / 4) + 0.15 * np.sin(z / 2.5 + x / 7) + rng.normal(0, 0.01, x.shape)
    mean = rng.normal(size=(gaussians, 3))
    mean *= radius * rng.random((gaussians, 1)) ** (1 / 3) / np.linalg.norm(mean, axis=1, keepdims=True)
    field = [
        mean,
        rng.normal(0.3, 0.3, (gaussians, 3)),
        rng.normal(size=(gaussians, 4)),
        rng.uniform(0.2, 0.8, gaussians),
        np.zeros(gaussians),
    ]
    return Problem([a.astype(np.float32) for a in field], geometry, values.astype(np.float32))


def positions(geometry: ops.SliceGeometry) -> np.ndarray:
    """World positions (S, X, Y, 3) of all pixels, mm."""
    u, v = (
        (np.arange(n)[None] - geometry.centre[:, k, None]) * geometry.spacing[:, k, None]
        for k, n in enumerate(geometry.shape)
    )
    local = np.stack(np.broadcast_arrays(u[:, :, None], v[:, None, :], 0.0), -1)
    return np.einsum("sab,sxyb->sxya", geometry.rotation, local) + geometry.translation[:, None, None]


def useful_pairs(record: torch.Tensor, box: torch.Tensor, inside: torch.Tensor, owner: torch.Tensor) -> int:
    """Pairs (pixel, Gaussian) within the cut and the slices' extents: counted one by one, in torch."""
    total, at_once = 0, 4096
    rows, columns = inside.shape[1:]
    order = torch.argsort((box[:, 1] - box[:, 0]) * (box[:, 3] - box[:, 2]))
    for part in order.split(at_once):
        r, b, s = record[part], box[part].long(), owner[part].long()
        sides = [int((b[:, k + 1] - b[:, k]).max()) for k in (0, 2)]
        i = b[:, 0, None, None] + torch.arange(sides[0], device=r.device)[:, None]
        j = b[:, 2, None, None] + torch.arange(sides[1], device=r.device)
        di, dj = i - r[:, 0, None, None], j - r[:, 1, None, None]
        kii, kij, kjj, k0, limit = (r[:, k, None, None] for k in (2, 3, 4, 5, 7))
        near = k0 + kjj * dj * dj + di * (kii * di + kij * dj) > limit
        seen = (i < b[:, 1, None, None]) & (j < b[:, 3, None, None])
        seen = seen & inside[s[:, None, None], i.clamp(max=rows - 1), j.clamp(max=columns - 1)]
        total += int((near & seen).sum())
    return total
