# SPDX-License-Identifier: Apache-2.0
"""MONAIfbs' published network: its checkpoint read without pickle, with the input as MONAIfbs prepares it.

The network is a 2D DynUNet whose depth follows from its window and pixel size by the rule of nnU-Net. Facts are from
the files of the tool (github.com/gift-surg/MONAIfbs, Apache-2.0, in 2020 with MONAI 0.3.0); the checkpoint is at
https://doi.org/10.5281/zenodo.4282679 and is no part of this package.

References
----------
M. Ranzini et al., MONAIfbs: MONAI-based fetal brain MRI deep learning segmentation, ISMRM UK & Ireland (2021),
arXiv:2103.13314.
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

NO_PART = ("skip_layers.", "deep_supervision_heads.")  # the same layers by other names, and those of the training


@dataclass(frozen=True)
class MonaifbsShape:
    """Input size of MONAIfbs.

    Attributes
    ----------
    pixel : float
        Side of its pixels, mm.
    window : tuple of int
        Pixels that it sees at once; smaller slices are padded with their mean, larger ones seen in pieces.
    """

    pixel: float = 0.8
    window: tuple[int, int] = (448, 512)


def strides_of(shape: MonaifbsShape) -> list[tuple[int, int]]:
    """Return the strides of the levels: axes are halved down to 8 pixels, but none twice as coarse as the other.

    Examples
    --------
    >>> strides_of(MonaifbsShape())[-2:], len(strides_of(MonaifbsShape()))
    ([(2, 2), (1, 2)], 8)
    """
    size, spacing, strides = np.array(shape.window), np.full(2, shape.pixel), [(1, 1)]
    while (step := np.where((spacing <= 2 * spacing.min()) & (size >= 8), 2, 1)).max() > 1:
        size, spacing = size // step, spacing * step
        strides.append(tuple(map(int, step)))  # type: ignore[arg-type]
    return strides


def build_monaifbs(shape: MonaifbsShape) -> "Module":
    """Build the network with initial weights: one channel in, background and brain out."""
    from monai.networks.nets import DynUNet

    strides = strides_of(shape)
    return DynUNet(
        spatial_dims=2,
        in_channels=1,
        out_channels=2,
        kernel_size=[3] * len(strides),
        strides=strides,
        upsample_kernel_size=strides[1:],
        norm_name=("INSTANCE", {"affine": True}),
        res_block=False,
    )


def load_monaifbs(state: dict, path: str | Path) -> "tuple[Module, MonaifbsShape]":
    """Load network and shape from the weights of a checkpoint of MONAIfbs.

    Parameters
    ----------
    state : dict of str to tensor
        Weights of any version of MONAI: layers may come twice (``skip_layers``), and heads of the training may be
        included.
    path : path-like
        Path of the checkpoint, for error messages.

    Raises
    ------
    gsbids.errors.InputError
        The weights are those of another network.
    """
    shape = MonaifbsShape()
    network = build_monaifbs(shape)
    # The layers of skip_layers are those of the other names: what is loaded by these is there as well.
    network.load_state_dict(converted(state, network.state_dict(), path), strict=False)
    return network.eval(), shape


def converted(state: dict, wanted: dict, path: str | Path) -> dict:
    """Rename the weights of a checkpoint to the names that the network has today; see :func:`load_monaifbs`."""
    own, names = (
        {name: tensor for name, tensor in each.items() if not name.startswith(NO_PART)} for each in (state, wanted)
    )
    return checked(own, names, path, "MONAIfbs' DynUNet")


def segment_monaifbs(image: np.ndarray, spacing: tuple[float, float, float], known: MaskNetwork) -> NetworkMask:
    """Segment the brain in a stack as MONAIfbs does.

    The stack is resampled in the plane and brought to mean 0 and variance 1 as a whole; scores of four mirror images
    are averaged; of what is brain the largest region is kept, and brought back by the nearest voxel.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)
        Slices on the third axis.
    spacing : tuple of float
        Voxel size, mm.
    known : MaskNetwork
        Network and shape from :func:`load_monaifbs`.

    Returns
    -------
    NetworkMask
        Empty where less than 15 ml are found.
    """
    import torch
    from monai.inferers import sliding_window_inference

    network, shape = known.network, known.shape
    image = np.nan_to_num(np.asarray(image, np.float32))
    step, size = grid_of(image.shape, spacing, shape.pixel)
    seen = resampled(image, step, size, 1)
    deviation = float(seen.std())
    seen = (seen - seen.mean()) / (deviation if deviation > 0 else 1.0)
    score = mean_score(seen, lambda batch: sliding_window_inference(batch, shape.window, 4, network, 0.0))
    probability = np.moveaxis(torch.softmax(score, 1)[:, 1].numpy(), 0, 2)
    found = largest_region(probability > 0.5, corners=True)
    back, size = 1 / step, np.array(image.shape[:2])
    mask = resampled(found.astype(np.uint8), back, size, 0) > 0
    probability = resampled(probability, back, size, 1)
    return with_confidence(mask, probability, spacing)
