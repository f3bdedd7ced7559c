# SPDX-License-Identifier: Apache-2.0
"""The smoothest volume that agrees with the data: the best linear super-resolution, in seconds."""

from collections.abc import Callable, Sequence

import numpy as np
from scipy import fft

from gsbids.recon.sr.sampling_operator import SamplingOperator

EXPONENT = 2.5  # p: the roughness grows with |f|^(2 p)
LEAST = 1e-6  # of the roughness at the coarse Nyquist frequency: the mean has a price too, or it would be free
TOLERANCE = 1e-3  # of the residual over the data
MOST_ITERATIONS = 60  # of the conjugate gradients


def sobolev(
    coarse: np.ndarray, operator: SamplingOperator, noise: float = 0.0, exponent: float = EXPONENT
) -> np.ndarray:
    """Minimise ``sum |f|^(2 p) |X(f)|^2`` over the volumes x with ``D x = y``.

    X is the cosine transform of x, f counts in coarse Nyquist frequencies of each axis (``p = 2``: thin plates).
    With ``noise`` the data are fitted approximately: ``|D x - y|^2 / noise + sum |f|^(2 p) |X|^2`` is minimised (a
    Wiener filter). Solved for the multipliers, ``x = R^-1 D^T u`` with ``(D R^-1 D^T + noise) u = y``, by conjugate
    gradients, preconditioned by R at the coarse frequencies: some 10 iterations.

    Parameters
    ----------
    coarse : ndarray, (A, B, C)
        y.
    operator : SamplingOperator
        D.
    noise : float
        Variance of the noise over the power of the volume at the coarse Nyquist frequency.
    exponent : float
        p.

    Returns
    -------
    ndarray, fine shape, float32
    """
    shape = operator.fine_shape
    ratio = np.array(shape) / coarse.shape
    power = _inverse_roughness(shape, ratio, exponent)
    # What is constant stays apart: it has no roughness, and float32 keeps the digits for the rest.
    level = np.float32(coarse.mean())
    volume = 1.0 / ratio.prod()
    guide = volume / (_inverse_roughness(coarse.shape, np.ones(3), exponent) + np.float32(noise * volume))

    def apply(u: np.ndarray) -> np.ndarray:
        return operator(_filtered(operator.transpose(u), power)) + np.float32(noise) * u

    multipliers = _conjugate_gradients(apply, lambda r: _filtered(r, guide), coarse - level)
    return _filtered(operator.transpose(multipliers), power) + level


def bridge(coarse: np.ndarray, hidden: np.ndarray, noise: float = 0.0, exponent: float = EXPONENT) -> np.ndarray:
    """Replace hidden voxels by the smoothest values: the least ``sum |f|^(2 p) |Y|^2 / (1 + noise |f|^(2 p))``.

    They are the values of :func:`sobolev` at voxels that it has not seen, aliasing apart.

    Parameters
    ----------
    coarse : ndarray, (A, B, C)
    hidden : ndarray of bool, (A, B, C)
    noise, exponent : float
        As for :func:`sobolev`.
    """
    if not hidden.any():
        return coarse
    level = np.float32(coarse[~hidden].mean()) if not hidden.all() else np.float32(0)
    roughness = 1 / (_inverse_roughness(coarse.shape, np.ones(3), exponent) + np.float32(noise))
    rest = np.where(hidden, 0, coarse - level).astype(np.float32)

    def apply(u: np.ndarray) -> np.ndarray:
        return np.where(hidden, _filtered(u, roughness), 0)

    found = _conjugate_gradients(apply, lambda r: r, np.where(hidden, -_filtered(rest, roughness), 0))
    return np.where(hidden, found + level, coarse).astype(np.float32)


def _inverse_roughness(shape: Sequence[int], ratio: np.ndarray, exponent: float) -> np.ndarray:
    """Return 1 / |f|^(2 p) of the cosine transform, f in units of the coarse Nyquist frequency."""
    axes = np.ix_(*((np.arange(n) / n * r) ** 2 for n, r in zip(shape, ratio, strict=True)))
    squared = sum(a.astype(np.float32) for a in axes)
    return 1 / (squared ** np.float32(exponent) + np.float32(LEAST))


def _filtered(volume: np.ndarray, response: np.ndarray) -> np.ndarray:
    found = fft.dctn(volume, type=2, norm="ortho")
    found *= response
    return fft.idctn(found, type=2, norm="ortho", overwrite_x=True)


def _conjugate_gradients(
    apply: Callable[[np.ndarray], np.ndarray], precondition: Callable[[np.ndarray], np.ndarray], target: np.ndarray
) -> np.ndarray:
    """Solve ``apply(u) = target`` for a symmetric positive operator."""
    u, residual = np.zeros_like(target), target.copy()
    direction = precondition(residual)
    guided = direction
    rho, goal = np.vdot(residual, guided), TOLERANCE * np.linalg.norm(target)
    for _ in range(MOST_ITERATIONS):
        if np.linalg.norm(residual) <= goal:
            break
        moved = apply(direction)
        step = np.float32(rho / np.vdot(direction, moved))
        u += step * direction
        residual -= step * moved
        guided = precondition(residual)
        before, rho = rho, np.vdot(residual, guided)
        direction = guided + np.float32(rho / before) * direction
    return u
