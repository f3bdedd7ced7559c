# SPDX-License-Identifier: Apache-2.0
"""Test whether the vectors of :mod:`gsbids.kernels.cpu.lanes` work on this processor."""

import functools

import numba as nb
import numpy as np

from gsbids.kernels.cpu.lanes import VECTOR, address, exp2_above, load, ramp, spread, store, total


@nb.njit(cache=True)
def _probe(array, lanes):
    at = address(array)
    values = exp2_above(load(at, 0, lanes) * ramp(lanes), spread(np.float32(-100.0), lanes))
    store(at, 0, values + values)
    return total(values) + np.float32(0.0) * array[0]


@functools.cache
def vectors_work() -> bool:
    """Return whether vectors compile and calculate here; if not, every kernel has its plain form."""
    try:
        return int(_probe(np.ones(int(VECTOR), np.float32), VECTOR)) == 2 ** int(VECTOR) - 1
    except Exception:  # whatever a compiler of another processor may raise
        return False
