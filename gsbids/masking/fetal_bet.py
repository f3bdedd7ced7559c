# SPDX-License-Identifier: Apache-2.0
"""Fetal-BET2's published network for T2w stacks: its checkpoint, with the input as Fetal-BET2 prepares it.

The network is MONAI's 2D AttentionUnet. Facts are from the files of the tool (github.com/IntelligentImaging/fetal-bet2,
MIT, with MONAI 1.2.0); the checkpoint ``AttUNet.pth`` lies in its container image and is no part of this package.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gsbids.imaging.masks import largest_region
from gsbids.masking.checkpoint import checked, grid_of, mean_score, resampled
from gsbids.masking.found import MaskNetwork, NetworkMask, with_confidence

if TYPE_CHECKING:
    from torch.nn import Module

FIRST = "model.0."  # prefix of the names of its layers
CHANNELS, STRIDES = (64, 128, 256, 512, 1024), (2, 2, 2, 2)  # of the levels of the U-Net, finest first
BATCH, OVERLAP = 4, 0.25  # windows at a time, and the share of each that overlaps with the next


@dataclass(frozen=True)
class FetalBetShape:
    """Input size and channels of Fetal-BET2.

    Attributes
    ----------
    pixel : float
        Side of its pixels, mm.
    window : tuple of int
        Pixels that it sees at once; larger slices are seen in pieces that overlap.
    channels : tuple of int
        Channels of the levels.
    """

    pixel: float = 1.0
    window: tuple[int, int] = (224, 224)
    channels: tuple[int, ...] = CHANNELS


def build_fetal_bet(shape: FetalBetShape) -> "Module":
    """Build the network with initial weights: one channel in, background and brain out."""
    from monai.networks.nets import AttentionUnet

    return AttentionUnet(
        spatial_dims=2,
        in_channels=1,
        out_channels=2,
        channels=shape.channels,
        strides=STRIDES[: len(shape.channels) - 1],
        kernel_size=3,
        up_kernel_size=3,
        dropout=0.0,
    )


def load_fetal_bet(state: dict, path: str | Path) -> "tuple[Module, FetalBetShape]":
    """Load network and shape from the weights of a checkpoint of Fetal-BET2.

    Parameters
    ----------
    state : dict of str to tensor
    path : path-like
        Path of the checkpoint, for error messages.

    Raises
    ------
    gsbids.errors.InputError
        The weights are those of another network, as the 3D one of the same tool.
    """
    shape = FetalBetShape()
    network = build_fetal_bet(shape)
    network.load_state_dict(checked(state, network.state_dict(), path, "Fetal-BET2's 2D AttentionUnet"))
    return network.eval(), shape


def segment_fetal_bet(image: np.ndarray, spacing: tuple[float, float, float], known: MaskNetwork) -> NetworkMask:
    """Segment the brain in a stack as Fetal-BET2 does.

    Slices are resampled to pixels of 1 mm, each divided by the standard deviation of its voxels above 0; scores of
    four mirror images are averaged and brought back. The largest region is kept (the tool keeps others that compete).

    Parameters
    ----------
    image : ndarray, (X, Y, Z)
        Slices on the third axis.
    spacing : tuple of float
        Voxel size, mm.
    known : MaskNetwork
        Network and shape from :func:`load_fetal_bet`.

    Returns
    -------
    NetworkMask
        Empty where less than 15 ml are found.
    """
    from monai.inferers import sliding_window_inference

    network, shape = known.network, known.shape
    image = np.nan_to_num(np.asarray(image, np.float32))
    step, size = grid_of(image.shape, spacing, shape.pixel)
    seen, own = _scaled(resampled(image, step, size, 1, "grid-constant")), image.shape[:2]
    score = mean_score(
        seen, lambda batch: sliding_window_inference(batch, shape.window, BATCH, network, OVERLAP, mode="gaussian")
    ).numpy()
    back = np.stack([resampled(np.moveaxis(score[:, n], 0, 2), 1 / step, own, 1, "grid-constant") for n in (0, 1)])
    probability = 1 / (1 + np.exp(np.clip(back[0] - back[1], -50, 50)))
    return with_confidence(largest_region(probability > 0.5, corners=True), probability, spacing)


def _scaled(stack: np.ndarray) -> np.ndarray:
    """Scale slices so that their voxels above 0 have a standard deviation of 1."""
    out = stack.copy()
    for k in range(stack.shape[2]):
        above = stack[..., k] > 0
        deviation = stack[..., k][above].std(ddof=1) if above.sum() > 1 else 0.0
        out[..., k][above] /= deviation if deviation > 0 else 1.0
    return out
