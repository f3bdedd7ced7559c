# SPDX-License-Identifier: Apache-2.0
"""Slice geometry on the device, and the lists of pairs and tiles that the GPU renderer runs over."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from gsbids.kernels.cuda import runtime
from gsbids.kernels.cuda import splat as splat_cuda
from gsbids.kernels.cuda.formulas import FRAME, GAUSS, RECORD, TILE
from gsbids.kernels.problem import Array, SliceGeometry

BYTES_PER_PAIR = 600  # working memory: pair, record, box, moments, parts, lists, and ~5 tiles with their sort
BYTES_KEPT = 40  # of those, what a kept list holds: the pair, its place by Gaussian, ~5 tiles
ROOM = 64  # entries that a list with room has more at least
NO_PAIR = -1  # slice of the pairs that only fill a list up
DIVERGED = "a parameter of the Gaussian field is not finite: the fit has diverged"


@dataclass(frozen=True)
class DeviceGeometry:
    """A :class:`gsbids.kernels.problem.SliceGeometry` on the device, float32.

    Attributes
    ----------
    frame : tensor, (S, 20)
        See :mod:`gsbids.kernels.cuda.formulas`.
    extent : tensor, (S, X, 2), int32
    window : tensor, (S, 4), int32
        First and one-past-last row, and column, with anything to render.
    span : tensor, (S, tiles, 2), int32
        Extents of the 8 rows of a tile, joined.
    inside : tensor, (S, X, Y), bool
        Pixels that are rendered.
    shape : tuple of int
        (X, Y).
    """

    frame: torch.Tensor
    extent: torch.Tensor
    window: torch.Tensor
    span: torch.Tensor
    inside: torch.Tensor
    shape: tuple[int, int]

    @classmethod
    def pack(cls, geometry: SliceGeometry, target: torch.device) -> "DeviceGeometry":
        """Copy a slice geometry to the device (once for many renderings: the poses alone may be moved)."""
        rows, columns = geometry.shape
        extent = np.ascontiguousarray(geometry.extent, np.int32).copy()
        extent[..., 0].clip(0, columns, out=extent[..., 0])
        extent[..., 1].clip(0, columns, out=extent[..., 1])
        extent[extent[..., 1] <= extent[..., 0]] = 0
        empty = extent[..., 1] <= extent[..., 0]
        first = np.where(empty, columns, extent[..., 0])
        window = np.stack(
            [
                np.argmin(empty, 1),
                rows - np.argmin(empty[:, ::-1], 1),
                first.min(1, initial=columns),
                extent[..., 1].max(1, initial=0),
            ],
            1,
        ).astype(np.int32)
        window[empty.all(1)] = 0
        tiles = runtime.blocks(rows, TILE)
        pad = ((0, 0), (0, tiles * TILE - rows))
        span = np.stack(
            [
                np.pad(first, pad, constant_values=columns).reshape(len(extent), tiles, TILE).min(2),
                np.pad(extent[..., 1], pad).reshape(len(extent), tiles, TILE).max(2),
            ],
            2,
        ).astype(np.int32)
        j = np.arange(columns)
        inside = (j >= extent[..., :1]) & (j < extent[..., 1:])
        arrays = (frames(geometry), extent, window, span, inside)
        return cls(*(torch.from_numpy(a).to(target) for a in arrays), (rows, columns))  # type: ignore[arg-type, call-arg]

    def slices(self, start: int, stop: int) -> "DeviceGeometry":
        """Return some of the slices; views."""
        return DeviceGeometry(  # type: ignore[call-arg]
            *(a[start:stop] for a in (self.frame, self.extent, self.window, self.span, self.inside)),  # type: ignore[arg-type]
            self.shape,
        )

    def moved(self, rotation: Array, translation: Array) -> "DeviceGeometry":
        """Return the same slices at other poses, (S, 3, 3) and (S, 3); no copy of anything else."""
        frame = self.frame.clone()
        for columns, pose in ((slice(0, 9), rotation), (slice(9, 12), translation)):
            frame[:, columns] = torch.as_tensor(pose, dtype=torch.float32, device=frame.device).reshape(len(frame), -1)
        return replace(self, frame=frame)

    def __len__(self) -> int:
        """Return the number of slices."""
        return len(self.frame)


def frames(geometry: SliceGeometry) -> np.ndarray:
    """Return poses, PSF, spacing and centre as (S, 20) float32."""
    frame = np.zeros((len(geometry.rotation), FRAME), np.float32)
    frame[:, :9] = np.reshape(geometry.rotation, (-1, 9))
    columns = (geometry.translation, geometry.psf, geometry.spacing, geometry.centre)
    frame[:, 9:19] = np.concatenate([np.asarray(c, float).reshape(len(frame), -1) for c in columns], 1)
    return frame


def pack_field(
    mean: torch.Tensor,
    log_scale: torch.Tensor,
    quaternion: torch.Tensor,
    intensity: torch.Tensor,
    log_weight: torch.Tensor,
    mass_factor: bool,
) -> torch.Tensor:
    """Return the rows of ``gauss`` (J, 12); see :func:`gsbids.kernels.cuda.splat.pack_field`."""
    gauss = torch.empty((len(mean), GAUSS), device=mean.device)
    runtime.launch(
        splat_cuda.pack_field,
        runtime.blocks(len(mean), splat_cuda.THREADS),
        splat_cuda.THREADS,
        *(a.detach().float().contiguous() for a in (mean, log_scale, quaternion, intensity, log_weight)),
        mass_factor,
        gauss,
    )
    return gauss


@dataclass(frozen=True)
class SlicePlan:
    """Lists over which the rendering of some slices runs; they hold while Gaussians and slices stay about there.

    A list made with ``margin`` m holds every pair and tile within ``cut + m`` standard deviations; the rendering
    tests each pixel by the cut itself, so that a plan may serve several iterations.

    Attributes
    ----------
    start, stop : int
        Slices ``start`` to ``stop - 1``; they count from 0 in the lists.
    pairs : tensor, (n, 2), int32
        Slice and Gaussian, sorted; those that only fill the list up come last and have the slice -1.
    slice_start : tensor, (S + 1,), int32
        First pair of each slice.
    list_start, pair_list : tensor, (J + 1,), (n,), int32
        Pairs of each Gaussian.
    tile_start, tile_list : tensor, (T + 1,), (m,), int32
        Pairs of each tile.
    tiles : tuple of int
        Tiles along i and j.
    """

    start: int
    stop: int
    pairs: torch.Tensor
    slice_start: torch.Tensor
    list_start: torch.Tensor
    pair_list: torch.Tensor
    tile_start: torch.Tensor
    tile_list: torch.Tensor
    tiles: tuple[int, int]

    def tensors(self) -> tuple[torch.Tensor, ...]:
        """Return the tensors of the lists."""
        return self.pairs, self.slice_start, self.list_start, self.pair_list, self.tile_start, self.tile_list

    def with_room(self, share: float) -> "SlicePlan":
        """Return a copy with room for ``share`` more pairs and tiles, to be filled by :meth:`take`."""

        def grown(list_: torch.Tensor, fill: int) -> torch.Tensor:
            room = list_.new_full((int(len(list_) * (1 + share)) + ROOM, *list_.shape[1:]), fill)
            room[: len(list_)] = list_
            return room

        return replace(
            self,
            pairs=grown(self.pairs, NO_PAIR),
            pair_list=grown(self.pair_list, 0),
            tile_list=grown(self.tile_list, 0),
            slice_start=self.slice_start.clone(),
            list_start=self.list_start.clone(),
            tile_start=self.tile_start.clone(),
        )

    def take(self, other: "SlicePlan") -> bool:
        """Copy another plan of the same slices into these very tensors; return False, unchanged, if it has no room.

        A captured graph that reads the tensors goes on with the new lists.
        """
        pairs = list(zip(self.tensors(), other.tensors(), strict=True))
        if (self.start, self.stop, self.tiles) != (other.start, other.stop, other.tiles):
            return False
        if any(len(new) > len(old) for old, new in pairs) or len(self.list_start) != len(other.list_start):
            return False
        for old, new in pairs:
            old[: len(new)] = new
        self.pairs[len(other.pairs) :] = NO_PAIR
        return True


def check_finite(gauss: torch.Tensor) -> None:
    """Wait for the device, and raise FloatingPointError if a parameter is not finite."""
    if not bool(torch.isfinite(gauss).all()):
        raise FloatingPointError(DIVERGED)


def count_pairs(gauss: torch.Tensor, geometry: DeviceGeometry, cut: float) -> torch.Tensor:
    """Count the pairs that each block of the culling finds, (S, chunks) int32."""
    check_finite(gauss)
    counts = gauss.new_zeros((len(geometry), runtime.blocks(len(gauss), splat_cuda.CULL_BLOCK)), dtype=torch.int32)
    none = gauss.new_empty((1, 2), dtype=torch.int32)
    _cull(gauss, geometry, cut, counts, none, False)
    return counts


def make_plan(
    gauss: torch.Tensor, geometry: DeviceGeometry, cut: float, counts: torch.Tensor, start: int = 0
) -> SlicePlan:
    """List pairs, tiles and pairs by Gaussian.

    Parameters
    ----------
    gauss : tensor, (J, 12)
    geometry : DeviceGeometry
        Slices ``start`` and following.
    cut : float
        Cut of the lists: that of the rendering, and a margin if they are to be kept.
    counts : tensor, (S, chunks)
        Counts from :func:`count_pairs` for these slices.
    """
    places = starts(counts.reshape(-1))
    pairs = gauss.new_empty((int(places[-1]), 2), dtype=torch.int32)
    _cull(gauss, geometry, cut, places[:-1].reshape(counts.shape), pairs, True)
    slice_start = starts(counts.sum(1))
    owner, order = torch.sort(pairs[:, 1].contiguous(), stable=True)
    list_start = first_places(owner, len(gauss))
    tile_start, tile_list, tiles = _tiles(gauss, geometry, cut, pairs)
    return SlicePlan(
        start,
        start + len(geometry),
        pairs,
        slice_start,
        list_start,
        order.to(torch.int32),
        tile_start,
        tile_list,
        tiles,  # type: ignore[arg-type]
    )


def _cull(
    gauss: torch.Tensor, geometry: DeviceGeometry, cut: float, start: torch.Tensor, pairs: torch.Tensor, write: bool
) -> None:
    runtime.launch(
        splat_cuda.cull,
        (start.shape[1], start.shape[0]) if start.numel() else 0,
        splat_cuda.CULL_BLOCK,
        geometry.frame,
        gauss,
        geometry.window,
        cut**2,
        *geometry.shape,
        start,
        pairs,
        write,
    )


def starts(counts: torch.Tensor) -> torch.Tensor:
    """Return exclusive cumulative sums with the total at the end, int32."""
    total = torch.zeros(len(counts) + 1, dtype=torch.int32, device=counts.device)
    total[1:] = torch.cumsum(counts, 0)
    return total


def first_places(keys: torch.Tensor, count: int) -> torch.Tensor:
    """Return the first place of every key 0..count in the sorted keys, (count + 1,) int32."""
    wanted = torch.arange(count + 1, dtype=torch.int32, device=keys.device)
    return torch.searchsorted(keys, wanted, out_int32=True)


def project(
    gauss: torch.Tensor, geometry: DeviceGeometry, pairs: torch.Tensor, cut: float, mass_factor: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return records (n, 8) and boxes (n, 4) of pairs; see :func:`gsbids.kernels.cuda.splat.project_pairs`."""
    record = gauss.new_empty((len(pairs), RECORD))
    box = gauss.new_empty((len(pairs), 4), dtype=torch.int32)
    runtime.launch(
        splat_cuda.project_pairs,
        runtime.blocks(len(pairs), splat_cuda.THREADS),
        splat_cuda.THREADS,
        geometry.frame,
        gauss,
        pairs,
        cut**2,
        mass_factor,
        *geometry.shape,
        record,
        box,
    )
    return record, box


def _tiles(
    gauss: torch.Tensor, geometry: DeviceGeometry, cut: float, pairs: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """Return the first places of the tiles, their pairs in the order of the pairs, and tiles along i and j."""
    tiles = tuple(runtime.blocks(n, TILE) for n in geometry.shape)
    record, box = project(gauss, geometry, pairs, cut, False)
    counts = torch.zeros(len(pairs), dtype=torch.int32, device=pairs.device)

    def run(start: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, write: bool) -> None:
        runtime.launch(
            splat_cuda.bin_tiles,
            runtime.blocks(len(pairs), splat_cuda.THREADS),
            splat_cuda.THREADS,
            record,
            box,
            pairs,
            geometry.span,
            tiles[1],
            start,
            keys,
            values,
            write,
        )

    none = counts.new_empty(1)
    run(counts, none, none, False)
    start = starts(counts)
    keys = counts.new_empty(int(start[-1]))
    values = torch.empty_like(keys)
    run(start, keys, values, True)
    keys, order = torch.sort(keys, stable=True)
    return first_places(keys, len(geometry) * tiles[0] * tiles[1]), values[order], tiles
