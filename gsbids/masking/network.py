# SPDX-License-Identifier: Apache-2.0
"""The mask network of the package: slice by slice, mirrored, smoothed across slices, classified as a whole."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from gsbids.imaging.masks import without_appendages
from gsbids.masking.found import MaskNetwork, NetworkMask, with_confidence
from gsbids.masking.judge import block_about, judge_block

if TYPE_CHECKING:
    from torch.nn import Module

ACROSS = 0.7  # slices; standard deviation of the smoothing across them: neighbours of interleaved stacks may have moved
LEVEL = 0.4  # probability; under one half, as the Dice of an unsure edge is best there
CANDIDATES = 3  # regions, the largest, that may be the brain
MIRRORS = ((), (1,), (2,), (1, 2))  # axes of a block that are turned round
LEAST_CONFIDENCE = 0.6  # below it, a region is taken for no brain


@dataclass(frozen=True)
class NetworkShape:
    """Architecture and input of a network; stored in the file of its weights.

    Attributes
    ----------
    channels : tuple of int
        Features of the levels of a residual U-Net (Kerfoot et al. 2018, MONAI's ``UNet``).
    pixel : float
        Side of the input pixels, mm.
    slices : int
        Number of neighbouring slices in the input, to mask the middle one: odd, 1 for one slice alone.
    side : int
        Pixels along an edge of the slices of its training; a smaller field of view is padded to them.
    """

    channels: tuple[int, ...] = (16, 32, 64, 96, 128)
    pixel: float = 2.0
    slices: int = 1
    side: int = 160

    def padding(self, size: int) -> int:
        """Return the number of pixels by which a field of view is padded, so that every level halves it evenly."""
        multiple = 2 ** (len(self.channels) - 1)
        return max(self.side - size, 0) + -max(self.side, size) % multiple


def build_network(shape: NetworkShape) -> "Module":
    """Build a 2D U-Net with a channel in for each slice and one (a logit) out, with initial weights."""
    from monai.networks.nets import UNet

    return UNet(
        spatial_dims=2,
        in_channels=shape.slices,
        out_channels=1,
        channels=shape.channels,
        strides=(2,) * (len(shape.channels) - 1),
        num_res_units=1,
        norm="INSTANCE",
        act="PRELU",
    )


def normalised(image: np.ndarray) -> np.ndarray:
    """Normalise intensities for the network: 0 to 1 between two percentiles of the non-zero pixels of a slice.

    Parameters
    ----------
    image : ndarray, (X, Y)

    Returns
    -------
    ndarray, (X, Y), float32
        Intensities up to 1.5; 0 for a slice of less than 10 voxels that are not 0.
    """
    seen = image[image > 0]
    if seen.size < 10:
        return np.zeros(image.shape, np.float32)
    low, high = np.percentile(seen, (1, 99))
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1.5).astype(np.float32)


def segment(image: np.ndarray, spacing: tuple[float, float, float], known: MaskNetwork) -> NetworkMask:
    """Segment the brain in a stack.

    Probabilities of eight views (mirrored, and rotated by a right angle) are averaged slice by slice; their logits are
    smoothed a little across slices. Of the regions above a threshold the holes are filled, and parts that are connected
    by a neck only are cut off; a classifier sees each of the largest with its surroundings, and the confidence of a
    region is the product of that of the network and that of the classifier. Of the regions of sufficient confidence the
    one with the largest sum of probabilities, times the confidence of the classifier, is kept.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)
        Slices on the third axis.
    spacing : tuple of float
        Voxel size, mm.
    known : MaskNetwork

    Returns
    -------
    NetworkMask
    """
    image = np.nan_to_num(np.asarray(image, np.float32))
    seen = seen_slices(image, spacing, known.shape.pixel)
    probability = _probability(seen, image.shape[:2], known.network, known.shape)
    labels, sums = regions(probability, LEVEL)
    best, largest = NetworkMask(np.zeros(image.shape, bool), probability, 0.0), 0.0
    for label in 1 + np.argsort(-sums)[:CANDIDATES]:
        mask = labels == label
        mask = np.stack([ndimage.binary_fill_holes(mask[..., k]) for k in range(mask.shape[2])], 2)
        found = with_confidence(without_appendages(mask, spacing), probability, spacing)
        if not found.mask.any():
            continue
        belief = _belief(found.mask, seen, spacing, known.judge)
        found = replace(found, confidence=found.confidence * belief)
        if found.confidence >= LEAST_CONFIDENCE and sums[label - 1] * belief > largest:
            best, largest = found, sums[label - 1] * belief
    return best


def _belief(mask: np.ndarray, seen: np.ndarray, spacing: Sequence[float], judge: "Module | None") -> float:
    """Return the confidence of the classifier in a mask, (X, Y, Z); 1 where it is one half or more, or without one."""
    if judge is None:
        return 1.0
    scale = np.array([*np.divide(seen.shape[1:], mask.shape[:2]), 1])
    centre = (np.array(ndimage.center_of_mass(mask)) + 0.5) * scale - 0.5
    return min(1.0, 2 * judge_block(block_about(np.moveaxis(seen, 0, 2), np.divide(spacing, scale), centre), judge))


def regions(probability: np.ndarray, level: float) -> tuple[np.ndarray, np.ndarray]:
    """Find the regions where probabilities, (X, Y, Z), smoothed across slices, are above a level.

    Returns
    -------
    labels : ndarray, (X, Y, Z), int32
        1 to N in N connected regions, 0 outside.
    sums : ndarray, (N,)
        Sum of the probabilities in each.
    """
    clipped = np.clip(probability, 1e-4, 1 - 1e-4)
    logit = ndimage.gaussian_filter1d(np.log(clipped / (1 - clipped)), ACROSS, axis=2, mode="nearest")
    labels, count = ndimage.label(logit > np.log(level / (1 - level)))
    return labels, ndimage.sum_labels(probability, labels, np.arange(1, count + 1))


def seen_slices(image: np.ndarray, spacing: Sequence[float], pixel: float) -> np.ndarray:
    """Resample and normalise the slices, (Z, A, B), of a stack, (X, Y, Z), as input of the network."""
    scale = np.array(spacing[:2]) / pixel
    return np.stack(
        [
            normalised(ndimage.zoom(one, scale, order=1, grid_mode=True, mode="nearest"))
            for one in np.moveaxis(image, 2, 0)
        ]
    )


def _probability(seen: np.ndarray, wanted: Sequence[int], network: "Module", shape: NetworkShape) -> np.ndarray:
    """Compute the probability of brain from slices, (Z, A, B), on the target grid, (X, Y, Z)."""
    count, *size = seen.shape
    beyond = [(shape.slices // 2,) * 2, *((0, shape.padding(n)) for n in size)]
    seen = np.pad(seen, beyond)
    at = np.meshgrid(*((np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(wanted, size, strict=True)), indexing="ij")
    found = np.zeros((*wanted, count), np.float32)
    for k in range(count):
        block = seen[k : k + shape.slices]
        if not seen[k + shape.slices // 2].any():
            continue
        mean = (_mirrored_mean(block, network) + _mirrored_mean(block.swapaxes(1, 2), network).T) / 2
        found[..., k] = ndimage.map_coordinates(mean[: size[0], : size[1]], at, order=1, mode="nearest")
    return found


def _mirrored_mean(block: np.ndarray, network: "Module") -> np.ndarray:
    """Return the probability, (A, B), in the middle slice of a block, (slices, A, B): mean of its mirror images."""
    import torch

    batch = torch.from_numpy(np.stack([np.flip(block, axes) for axes in MIRRORS]).copy())
    with torch.inference_mode():
        found = torch.sigmoid(network(batch))[:, 0].numpy()
    return np.mean([np.flip(one, [a - 1 for a in axes]) for one, axes in zip(found, MIRRORS, strict=True)], 0)
