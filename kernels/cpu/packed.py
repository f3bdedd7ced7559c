# SPDX-License-Identifier: Apache-2.0
"""A field of Gaussians in the arrays of the CPU kernels, and gradients back from them."""

import math
from dataclasses import dataclass

import numba as nb
import numpy as np
import torch

from gsbids.errors import DeviceError
from gsbids.kernels.cpu import covariance as chain
from gsbids.kernels.problem import Array, RenderOptions

TABLE = 16  # columns of the table of Gaussians: a cache line
BLOCK = 1024  # Gaussians that a thread takes at a time
CELL = 4.0  # mm, of the cells whose Gaussians stand together


@dataclass(frozen=True)
class PackedField:
    """Parameters of a field as the kernels take them.

    Attributes
    ----------
    log_scale, quaternion : ndarray, (J, 3), (J, 4), float32
        Parameters as given.
    order : ndarray, (J,), int
        Index of the Gaussian in each row of ``columns`` and ``table``.
    columns : ndarray, (4, J), float32
        x, y, z and the largest variance, by which Gaussians near a slice are found.
    table : ndarray, (J, 16), float32
        A cache line a Gaussian: mean (3), covariance (6: xx, xy, xz, yy, yz, zz), intensity, and the factor of the
        exponential, ``exp(l)``, with the mass factor ``exp(l) sqrt(det Sigma)``.
    """

    log_scale: np.ndarray
    quaternion: np.ndarray
    order: np.ndarray
    columns: np.ndarray
    table: np.ndarray

    @classmethod
    def pack(
        cls,
        mean: Array,
        log_scale: Array,
        quaternion: Array,
        intensity: Array,
        log_weight: Array,
        options: RenderOptions,
    ) -> "PackedField":
        """Check the parameters and arrange them, neighbours in space together, and so in the caches.

        Raises
        ------
        FloatingPointError
            As for :meth:`as_given`.
        """
        given = cls.as_given(mean, log_scale, quaternion, intensity, log_weight, options)
        keys, columns, table = (
            np.empty_like(given.order, np.uint16),
            np.empty_like(given.columns),
            np.empty_like(given.table),
        )
        _keys(given.columns, keys)
        order = np.argsort(keys, kind="stable")  # numpy sorts 16 bits in linear time
        _arrange(order, given.columns, given.table, columns, table)
        return cls(given.log_scale, given.quaternion, order, columns, table)

    @classmethod
    def as_given(
        cls,
        mean: Array,
        log_scale: Array,
        quaternion: Array,
        intensity: Array,
        log_weight: Array,
        options: RenderOptions,
    ) -> "PackedField":
        """Check the parameters and arrange them in the order given.

        Raises
        ------
        FloatingPointError
            A parameter is not finite, a quaternion is 0, or a scale or weight is beyond float32.
        gsbids.errors.DeviceError
            A parameter is a tensor of another device than the CPU (points have no kernel for a GPU).
        """
        away = [
            a.device
            for a in (mean, log_scale, quaternion, intensity, log_weight)
            if torch.is_tensor(a) and a.device.type != "cpu"
        ]
        if away:
            raise DeviceError(f"{away[0]}: these kernels take tensors of the CPU only; move the field there")
        arrays = [
            np.ascontiguousarray(a.detach() if torch.is_tensor(a) else a, np.float32)
            for a in (mean, log_scale, quaternion, intensity, log_weight)
        ]
        columns, table = np.empty((4, len(arrays[0])), np.float32), np.empty((len(arrays[0]), TABLE), np.float32)
        bad = np.zeros(-(-len(table) // BLOCK), np.uint8)
        _pack(*arrays, options.mass_factor, columns, table, bad)
        if bad.any():
            raise FloatingPointError(_complaint(*arrays))
        return cls(arrays[1], arrays[2], np.arange(len(table)), columns, table)

    def arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the tuple ``field`` of :mod:`gsbids.kernels.cpu.splat`."""
        return self.columns, self.table

    def gradients(self, total: np.ndarray, options: RenderOptions) -> tuple[np.ndarray, ...]:
        """Compute the gradients of the five parameters from those of the rows of the table.

        ``total`` (J, 11): mean, covariance, intensity, log-weight.
        """
        count = len(total)
        out = [np.empty((count, n) if n else count, np.float32) for n in (3, 3, 4, 0, 0)]
        _gradients(self.log_scale, self.quaternion, self.order, total, options.mass_factor, *out)
        return tuple(out)


def _complaint(
    mean: np.ndarray, log_scale: np.ndarray, quaternion: np.ndarray, intensity: np.ndarray, log_weight: np.ndarray
) -> str:
    """Describe what is wrong with the first Gaussian that no kernel can take."""
    for name, array in (
        ("mean", mean),
        ("log_scale", log_scale),
        ("quaternion", quaternion),
        ("intensity", intensity),
        ("log_weight", log_weight),
    ):
        wrong = ~np.isfinite(array.reshape(len(array), -1)).all(1)
        if wrong.any():
            return (
                f"{name} of Gaussian {wrong.argmax()} (and of {wrong.sum() - 1} others) is not finite: "
                "the fit has diverged"
            )
    zero = ~(np.linalg.norm(quaternion.astype(float), axis=1) > 0)
    if zero.any():
        return f"quaternion of Gaussian {zero.argmax()} (and of {zero.sum() - 1} others) is 0: it is no rotation"
    return "a scale or a weight of the Gaussian field is beyond what float32 can hold: the fit has diverged"


@nb.njit(error_model="numpy")
def _key(x, y, z):
    """Return the place along a Z-curve through cells of ``CELL``, 32 by 32 by 32 of them that repeat."""
    a, b, c = np.int64(np.floor(x / CELL)) & 31, np.int64(np.floor(y / CELL)) & 31, np.int64(np.floor(z / CELL)) & 31
    key = 0
    for bit in range(5):
        key |= (((a >> bit) & 1) | ((b >> bit) & 1) << 1 | ((c >> bit) & 1) << 2) << (3 * bit)  # type: ignore[assignment]
    return key


@nb.njit(parallel=True, cache=True, error_model="numpy")
def _keys(columns, keys):
    for j in nb.prange(len(keys)):
        keys[j] = _key(columns[0, j], columns[1, j], columns[2, j])


@nb.njit(parallel=True, cache=True)
def _arrange(order, columns, table, columns_out, table_out):
    for n in nb.prange(len(order)):
        table_out[n] = table[order[n]]
        for k in range(4):
            columns_out[k, n] = columns[k, order[n]]


@nb.njit(error_model="numpy")
def _pack_block(first, last, mean, log_scale, quaternion, intensity, log_weight, mass_factor, columns, table):
    """Fill a part of ``columns`` and ``table``; return whether all numbers are finite."""
    nothing = np.float32(0.0)  # becomes NaN if one is not
    for j in range(first, last):
        s = chain.triple(log_scale, j)
        cov = chain.covariance_of(s, chain.quadruple(quaternion, j))
        for k in range(3):
            table[j, k] = mean[j, k]
            columns[k, j] = mean[j, k]
        columns[3, j] = math.exp(2.0 * max(s[0], s[1], s[2]))
        table[j, 3], table[j, 4], table[j, 5], table[j, 6], table[j, 7], table[j, 8] = cov
        table[j, 9] = intensity[j]
        table[j, 10] = math.exp(np.float64(log_weight[j]) + (s[0] + s[1] + s[2] if mass_factor else 0.0))
        for k in range(11, TABLE):
            table[j, k] = 0.0
        for k in range(TABLE):
            nothing += np.float32(0.0) * table[j, k]
        nothing += np.float32(0.0) * log_weight[j]  # minus infinity would be a weight of 0
        for k in range(3):
            nothing += np.float32(0.0) * log_scale[j, k]
    return nothing == 0.0


@nb.njit(parallel=True, cache=True, error_model="numpy")
def _pack(mean, log_scale, quaternion, intensity, log_weight, mass_factor, columns, table, bad):
    """Fill ``columns`` and ``table`` of :class:`PackedField`; ``bad`` marks blocks with numbers that cannot be used."""
    for block in nb.prange(len(bad)):
        bad[block] = not _pack_block(
            block * BLOCK,
            min((block + 1) * BLOCK, len(mean)),
            mean,
            log_scale,
            quaternion,
            intensity,
            log_weight,
            mass_factor,
            columns,
            table,
        )


@nb.njit(error_model="numpy")
def _gradient(row, j, log_scale, quaternion, mass_factor, mean, scale, turn):
    """Compute the gradients of mean, log-scale and quaternion of Gaussian j."""
    cov = (
        np.float64(row[3]),
        np.float64(row[4]),
        np.float64(row[5]),
        np.float64(row[6]),
        np.float64(row[7]),
        np.float64(row[8]),
    )
    s, q = chain.covariance_backward_of(chain.triple(log_scale, j), chain.quadruple(quaternion, j), cov)
    extra = np.float64(row[10]) if mass_factor else 0.0  # d(log det Sigma)/2 = sum of the log-scales
    mean[0], mean[1], mean[2] = row[0], row[1], row[2]
    scale[0], scale[1], scale[2] = s[0] + extra, s[1] + extra, s[2] + extra
    turn[0], turn[1], turn[2], turn[3] = q


@nb.njit(parallel=True, cache=True, error_model="numpy")
def _gradients(log_scale, quaternion, order, total, mass_factor, mean, scale, turn, intensity, log_weight):
    """Compute the five gradients from the eleven columns of ``total``."""
    for n in nb.prange(len(total)):
        j = order[n]
        _gradient(total[n], j, log_scale, quaternion, mass_factor, mean[j], scale[j], turn[j])
        intensity[j], log_weight[j] = total[n, 9], total[n, 10]
