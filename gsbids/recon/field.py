# SPDX-License-Identifier: Apache-2.0
"""The Gaussian field: an image made of anisotropic 3D Gaussians."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class GaussianField:
    """A normalised field of J anisotropic Gaussians (GSVR paper Eq. 2).

    The image is ``I(x) = sum_j w_j c_j / (sum_j w_j + eps)`` with
    ``w_j = exp(l_j - (x - mu_j)^T Sigma_j^-1 (x - mu_j) / 2)`` and
    ``Sigma_j = R(q_j) diag(exp(2 s_j)) R(q_j)^T``.

    Attributes
    ----------
    mean : ndarray, (J, 3), float32
        Centres mu in mm, relative to ``origin``.
    log_scale : ndarray, (J, 3), float32
        Logarithm s of the standard deviations in mm.
    quaternion : ndarray, (J, 4), float32
        Unit quaternions (w, x, y, z) of the principal axes.
    intensity : ndarray, (J,), float32
        Intensities c, in the units of the fit (see ``SvrResult.intensity_scale``).
    log_weight : ndarray, (J,), float32
        Logarithm l of the weights; zero unless used.
    origin : ndarray, (3,), float64
        World RAS+ position (mm) of the field's own origin.
    """

    mean: np.ndarray
    log_scale: np.ndarray
    quaternion: np.ndarray
    intensity: np.ndarray
    log_weight: np.ndarray
    origin: np.ndarray

    PARAMETERS = ("mean", "log_scale", "quaternion", "intensity", "log_weight")
    ARRAYS = (*PARAMETERS, "origin")

    def __len__(self) -> int:
        """Return the number of Gaussians."""
        return len(self.mean)

    @property
    def parameters(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The arrays of the Gaussians, in the order of the renderer's arguments."""
        return tuple(getattr(self, name) for name in self.PARAMETERS)

    def replace(self, **changes: Any) -> "GaussianField":
        """Return a copy with some arrays replaced."""
        return replace(self, **changes)
