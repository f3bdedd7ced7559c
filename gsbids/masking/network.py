# SPDX-License-Identifier: Apache-2.0
"""Brain masks of stacks by a small network: slice by slice, mirrored, made one across slices, with its own doubt."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from gsbids.errors import InputError
from gsbids.imaging.masks import without_appendages

LEAST_BRAIN = 15.0  # ml; a brain of 18 weeks has more; what is smaller is no brain that could be reconstructed
ACROSS = 0.7  # slices; standard deviation of the smoothing across them: neighbours of interleaved stacks may have moved
LEVEL = 0.4  # probability; under one half, as the Dice of an unsure edge is best there
MIRRORS = ((), (1,), (2,), (1, 2))  # axes of a block that are turned round
LEAST_CONFIDENCE = 0.6  # below it, what is found is no brain
DOUBTFUL = 0.8  # confidence below which a stack is to be looked at


@dataclass(frozen=True)
class NetworkShape:
    """How a network is built and fed; stands in the file of its weights.

    Attributes
    ----------
    channels : tuple of int
        Features of the levels of a residual U-Net (Kerfoot et al. 2018, MONAI's ``UNet``).
    pixel : float
        Side of the pixels that it sees, mm.
    slices : int
        How many neighbouring slices it sees, to mask the middle one: odd, 1 for one slice alone.
    side : int
        Pixels along an edge of the slices of its training; a smaller field of view is padded to them.
    """

    channels: tuple[int, ...] = (16, 32, 64, 96, 128)
    pixel: float = 2.0
    slices: int = 1
    side: int = 160

    def padding(self, size: int) -> int:
        """Pixels that a field of view of so many along an edge lacks: it halves whole at every level."""
        multiple = 2 ** (len(self.channels) - 1)
        return max(self.side - size, 0) + -max(self.side, size) % multiple


@dataclass(frozen=True)
class NetworkMask:
    """What a network finds in a stack.

    Attributes
    ----------
    mask : ndarray, (X, Y, Z), bool
        Empty where no brain is found: nothing, too little, or too uncertain.
    probability : ndarray, (X, Y, Z), float32
    confidence : float
        Mean over the voxels of the mask of how far they are from undecided, 0 to 1.
    """

    mask: np.ndarray
    probability: np.ndarray
    confidence: float

    def millilitres(self, affine: np.ndarray) -> float:
        """Volume of the mask."""
        return float(self.mask.sum() * abs(np.linalg.det(affine[:3, :3])) / 1e3)


def weights_file(given: str | Path | None = None) -> Path:
    """The file of weights to use: the one that is given, else the one of the package."""
    return Path(given) if given else Path(__file__).parent / "weights" / "fetal.safetensors"


def build_network(shape: NetworkShape):
    """A 2D U-Net with a channel in for each slice and one (a logit) out, weights as they start."""
    from monai.networks.nets import UNet

    return UNet(spatial_dims=2, in_channels=shape.slices, out_channels=1, channels=shape.channels,
                strides=(2,) * (len(shape.channels) - 1), num_res_units=1, norm="INSTANCE", act="PRELU")


def save_network(path: str | Path, network, shape: NetworkShape, facts: dict[str, str]) -> None:
    """Weights as safetensors; shape and facts (text) in its header."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, str(path), {"shape": json.dumps(asdict(shape)), **facts})


def load_network(path: str | Path):
    """A network and its shape from a file of weights, our own or, by its suffix, a checkpoint of MONAIfbs.

    Returns
    -------
    torch.nn.Module
    NetworkShape or gsbids.masking.monaifbs.MonaifbsShape

    Raises
    ------
    gsbids.errors.InputError
        There is no such file, it holds something else, or its weights do not fit its shape.
    """
    from safetensors import SafetensorError, safe_open

    from gsbids.masking.monaifbs import SUFFIXES, load_monaifbs

    if not Path(path).is_file():
        raise InputError(f"{path}: there are no such weights; train them (training/README.md) and give --mask-weights "
                         "FILE, or give masks")
    if Path(path).suffix in SUFFIXES:
        return load_monaifbs(path)
    try:
        with safe_open(str(path), "pt") as file:
            told = json.loads((file.metadata() or {})["shape"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        shape = NetworkShape(tuple(told["channels"]), float(told["pixel"]), int(told.get("slices", 1)),
                             int(told.get("side", 160)))
        network = build_network(shape)
        network.load_state_dict(tensors)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); give a file of weights") from error
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise InputError(f"{path}: no weights of a mask network ({str(error).splitlines()[0]}); give a .safetensors "
                         "file that training/train.py has written") from error
    return network.eval(), shape


def normalised(image: np.ndarray) -> np.ndarray:
    """Intensities as the network sees them: 0 to 1 between two percentiles of what is not 0, slice by slice.

    Parameters
    ----------
    image : ndarray, (X, Y)

    Returns
    -------
    ndarray, (X, Y), float32
        At most 1.5; 0 for a slice of less than 10 voxels that are not 0.
    """
    seen = image[image > 0]
    if seen.size < 10:
        return np.zeros(image.shape, np.float32)
    low, high = np.percentile(seen, (1, 99))
    return np.clip((image - low) / max(high - low, 1e-6), 0, 1.5).astype(np.float32)


def segment_stack(image: np.ndarray, affine: np.ndarray, network, shape) -> NetworkMask:
    """The brain in a stack, whatever the axis of its slices.

    See :func:`segment`, and :func:`gsbids.masking.monaifbs.segment_monaifbs`.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)
        Slices along the axis with the largest voxel side.
    affine : ndarray, (4, 4)
    network, shape
        As :func:`load_network` gives them.

    Returns
    -------
    NetworkMask
        On the grid of the image.
    """
    from gsbids.masking.monaifbs import segment_monaifbs

    if image.ndim != 3:
        raise InputError(f"the image has {image.ndim} axes; a stack has three")
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    across = int(np.argmax(spacing)) if spacing.max() > 1.01 * spacing.min() else 2
    order = [axis for axis in range(3) if axis != across] + [across]
    back = np.argsort(order)
    find = segment if isinstance(shape, NetworkShape) else segment_monaifbs
    found = find(np.transpose(image, order), tuple(spacing[order]), network, shape)
    return NetworkMask(np.transpose(found.mask, back), np.transpose(found.probability, back), found.confidence)


def segment(image: np.ndarray, spacing: tuple[float, float, float], network, shape: NetworkShape) -> NetworkMask:
    """The brain in a stack.

    Probabilities of eight views (mirrored, and turned by a right angle) are averaged slice by slice; their logits are
    smoothed a little across slices, and of the regions above a level the one with the largest sum of probabilities is
    kept, its holes filled, and what hangs on it by a neck cut off.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)
        Slices on the third axis.
    spacing : tuple of float
        Voxel size, mm.
    network, shape
        As :func:`load_network` gives them.

    Returns
    -------
    NetworkMask
    """
    image = np.nan_to_num(np.asarray(image, np.float32))
    probability = _probability(image, spacing, network, shape)
    clipped = np.clip(probability, 1e-4, 1 - 1e-4)
    logit = ndimage.gaussian_filter1d(np.log(clipped / (1 - clipped)), ACROSS, axis=2, mode="nearest")
    labels, count = ndimage.label(logit > np.log(LEVEL / (1 - LEVEL)))
    if count == 0:
        return NetworkMask(np.zeros(image.shape, bool), probability, 0.0)
    sums = ndimage.sum_labels(probability, labels, np.arange(1, count + 1))
    mask = labels == 1 + int(np.argmax(sums))
    mask = np.stack([ndimage.binary_fill_holes(mask[..., k]) for k in range(mask.shape[2])], 2)
    mask = without_appendages(mask, spacing)
    return judged(mask, probability, spacing, LEAST_CONFIDENCE)


def judged(mask: np.ndarray, probability: np.ndarray, spacing, least_confidence: float = 0.0) -> NetworkMask:
    """A mask with its confidence; empty where it is too small for a brain, or less sure than that."""
    small = mask.sum() * float(np.prod(spacing)) / 1e3 < LEAST_BRAIN
    confidence = 0.0 if small else float(np.mean(np.abs(2 * probability[mask] - 1)))
    if small or confidence < least_confidence:
        return NetworkMask(np.zeros(mask.shape, bool), probability, 0.0)
    return NetworkMask(mask, probability, confidence)


def _probability(image: np.ndarray, spacing, network, shape: NetworkShape) -> np.ndarray:
    """Of brain, slice by slice, (X, Y, Z)."""
    scale = np.array(spacing[:2]) / shape.pixel
    small = [ndimage.zoom(one, scale, order=1, grid_mode=True, mode="nearest") for one in np.moveaxis(image, 2, 0)]
    size = small[0].shape
    beyond = [(shape.slices // 2,) * 2, *((0, shape.padding(n)) for n in size)]
    seen = np.pad([normalised(one) for one in small], beyond)
    at = np.meshgrid(*((np.arange(n) + 0.5) * m / n - 0.5 for n, m in zip(image.shape[:2], size, strict=True)),
                     indexing="ij")
    found = np.zeros(image.shape, np.float32)
    for k in range(image.shape[2]):
        block = seen[k:k + shape.slices]
        if not seen[k + shape.slices // 2].any():
            continue
        mean = (_mirrored_mean(block, network) + _mirrored_mean(block.swapaxes(1, 2), network).T) / 2
        found[..., k] = ndimage.map_coordinates(mean[:size[0], :size[1]], at, order=1, mode="nearest")
    return found


def _mirrored_mean(block: np.ndarray, network) -> np.ndarray:
    """Probability, (A, B), in the middle slice of a block, (slices, A, B): the mean over its mirror images."""
    import torch

    batch = torch.from_numpy(np.stack([np.flip(block, axes) for axes in MIRRORS]).copy())
    with torch.inference_mode():
        found = torch.sigmoid(network(batch))[:, 0].numpy()
    return np.mean([np.flip(one, [a - 1 for a in axes]) for one, axes in zip(found, MIRRORS, strict=True)], 0)
