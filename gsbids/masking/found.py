# SPDX-License-Identifier: Apache-2.0
"""Mask networks and the masks that they find."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

LEAST_BRAIN = 15.0  # ml; a brain of 18 weeks has more; anything smaller is no brain that could be reconstructed
DOUBTFUL = 0.8  # confidence below which a mask should be inspected


@dataclass(frozen=True)
class MaskNetwork:
    """A mask network as it is read from a file.

    Attributes
    ----------
    network : torch.nn.Module
    shape : NetworkShape, gsbids.masking.monaifbs.MonaifbsShape or gsbids.masking.fetal_bet.FetalBetShape
    judge : torch.nn.Module or None
        Classifier of whether the found region is a brain (:mod:`gsbids.masking.judge`).
    facts : dict of str to str
        Facts of the training, in the header of its file.
    """

    network: Any
    shape: Any
    judge: Any = None
    facts: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class NetworkMask:
    """The mask that a network finds in a stack, with its confidence.

    Attributes
    ----------
    mask : ndarray, (X, Y, Z), bool
        Empty where no brain is found: nothing, too little, or too uncertain.
    probability : ndarray, (X, Y, Z), float32
    confidence : float
        Mean over the voxels of the mask of ``|2 p - 1|``, 0 to 1; times the confidence of a classifier (``judge``).
    """

    mask: np.ndarray
    probability: np.ndarray
    confidence: float

    def millilitres(self, affine: np.ndarray) -> float:
        """Return the volume of the mask, ml."""
        return float(self.mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1e3)


def with_confidence(mask: np.ndarray, probability: np.ndarray, spacing: Sequence[float]) -> NetworkMask:
    """Compute the confidence of a mask; the mask becomes empty where it is too small for a brain."""
    if mask.sum() * float(np.prod(spacing)) / 1e3 < LEAST_BRAIN:
        return NetworkMask(np.zeros(mask.shape, bool), probability, 0.0)
    return NetworkMask(mask, probability, float(np.mean(np.abs(2 * probability[mask] - 1))))
