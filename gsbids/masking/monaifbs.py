# SPDX-License-Identifier: Apache-2.0
"""MONAIfbs' published network: its checkpoint read without pickle, and fed as MONAIfbs feeds it.

The network is a 2D DynUNet whose depth follows from its window and pixel size by the rule of nnU-Net. Facts are from
the files of the tool (github.com/gift-surg/MONAIfbs, Apache-2.0, in 2020 with MONAI 0.3.0); the checkpoint is at
https://doi.org/10.5281/zenodo.4282679 and is no part of this package.

References
----------
M. Ranzini et al., MONAIfbs: MONAI-based fetal brain MRI deep learning segmentation, ISMRM UK & Ireland (2021),
arXiv:2103.13314.
"""

import pickle
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import ndimage

from gsbids.errors import InputError
from gsbids.imaging.masks import largest_region
from gsbids.masking.network import MaskNetwork, NetworkMask, judged

SUFFIXES = (".pt", ".pth")
NESTED = ("net", "state_dict", "model")  # where a checkpoint may keep the weights, beside those of the optimiser
NO_PART = ("skip_layers.", "deep_supervision_heads.")  # the same layers by other names, and those of the training


@dataclass(frozen=True)
class MonaifbsShape:
    """How MONAIfbs sees slices.

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
    """Strides of the levels: axes are halved as long as they have 8 pixels, but none twice as coarse as the other.

    Examples
    --------
    >>> strides_of(MonaifbsShape())[-2:], len(strides_of(MonaifbsShape()))
    ([(2, 2), (1, 2)], 8)
    """
    size, spacing, strides = np.array(shape.window), np.full(2, shape.pixel), [(1, 1)]
    while (step := np.where((spacing <= 2 * spacing.min()) & (size >= 8), 2, 1)).max() > 1:
        size, spacing = size // step, spacing * step
        strides.append(tuple(map(int, step)))
    return strides


def build_monaifbs(shape: MonaifbsShape):
    """The network with weights as they start: one channel in, background and brain out."""
    from monai.networks.nets import DynUNet

    strides = strides_of(shape)
    return DynUNet(spatial_dims=2, in_channels=1, out_channels=2, kernel_size=[3] * len(strides), strides=strides,
                   upsample_kernel_size=strides[1:], norm_name=("INSTANCE", {"affine": True}), res_block=False)


def load_monaifbs(path: str | Path) -> tuple:
    """Network and shape from a checkpoint of MONAIfbs; nothing in the file is executed.

    Raises
    ------
    gsbids.errors.InputError
        The file cannot be read, holds more than tensors and numbers, or another network.
    """
    shape = MonaifbsShape()
    network = build_monaifbs(shape)
    # The layers of skip_layers are those of the other names: what is loaded by these is there as well.
    network.load_state_dict(converted(_state(path), network.state_dict(), path), strict=False)
    return network.eval(), shape


def converted(state: dict, wanted: dict, path: str | Path) -> dict:
    """Weights of a checkpoint by the names that the network has today.

    Parameters
    ----------
    state : dict of str to tensor
        Of any version of MONAI: names may begin with ``module.``, layers may come twice (``skip_layers``), and heads
        of the training may be there.
    wanted : dict of str to tensor
        Of the network.
    path : path-like
        For the words of errors.

    Raises
    ------
    gsbids.errors.InputError
        A layer lacks, is one too many, or has another size.
    """
    own = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    own = {name: tensor for name, tensor in own.items() if not name.startswith(NO_PART)}
    names = [name for name in wanted if not name.startswith(NO_PART)]
    wrong = next((f"it lacks {name}" for name in names if name not in own), None)
    wrong = wrong or next((f"it has {name}" for name in own if name not in wanted), None)
    wrong = wrong or next((f"{name} has {_size(own[name])}, not {_size(wanted[name])}" for name in names
                           if own[name].shape != wanted[name].shape), None)
    if wrong:
        raise InputError(f"{path}: no checkpoint of MONAIfbs' DynUNet ({wrong}); give its checkpoint_dynUnet_"
                         "DiceXent.pt, or a .safetensors file that training/train.py has written")
    return {name: own[name] for name in names}


def segment_monaifbs(image: np.ndarray, spacing: tuple[float, float, float], known: MaskNetwork) -> NetworkMask:
    """The brain in a stack as MONAIfbs finds it.

    The stack is resampled in the plane and brought to mean 0 and variance 1 as a whole; scores of four mirror images
    are averaged; of what is brain the largest region is kept, and brought back by the nearest voxel.

    Parameters
    ----------
    image : ndarray, (X, Y, Z)
        Slices on the third axis.
    spacing : tuple of float
        Voxel size, mm.
    known : MaskNetwork
        With a network and a shape of :func:`load_monaifbs`.

    Returns
    -------
    NetworkMask
        Empty where less than 15 ml are found.
    """
    import torch
    from monai.inferers import sliding_window_inference

    network, shape = known.network, known.shape
    image = np.nan_to_num(np.asarray(image, np.float32))
    step = shape.pixel / np.array(spacing[:2])
    size = np.rint((np.array(image.shape[:2]) - 1) / step + 1).astype(int)
    seen = _resampled(image, step, size, 1)
    deviation = float(seen.std())
    seen = (seen - seen.mean()) / (deviation if deviation > 0 else 1.0)
    slices = torch.from_numpy(np.moveaxis(seen, 2, 0)[:, None].astype(np.float32))
    with torch.inference_mode():
        score = sum(torch.flip(sliding_window_inference(torch.flip(slices, axes), shape.window, 4, network, 0.0), axes)
                    for axes in ((), (2,), (3,), (2, 3))) / 4
        probability = np.moveaxis(torch.softmax(score, 1)[:, 1].numpy(), 0, 2)
    found = largest_region(probability > 0.5, corners=True)
    back, size = 1 / step, np.array(image.shape[:2])
    mask = _resampled(found.astype(np.uint8), back, size, 0) > 0
    probability = _resampled(probability, back, size, 1)
    return judged(mask, probability, spacing)


def _state(path: str | Path) -> dict:
    """Tensors by name from a file of torch: of the network alone, or of a training."""
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # of what a strange file is made; we say it in one line
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); give a file of weights") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(f"{path}: no checkpoint of tensors alone (damaged, or it would run code when it is loaded); "
                         "give MONAIfbs' checkpoint_dynUnet_DiceXent.pt") from error
    found = found if isinstance(found, dict) else {}
    found = next((found[key] for key in NESTED if isinstance(found.get(key), dict)), found)
    return {name: value for name, value in found.items() if isinstance(name, str) and isinstance(value, torch.Tensor)}


def _resampled(stack: np.ndarray, step: np.ndarray, size: np.ndarray, order: int) -> np.ndarray:
    """Slices on another grid of pixels with the same first pixel, ``step`` old pixels apart."""
    at = np.meshgrid(*(np.arange(n) * s for n, s in zip(size, step, strict=True)), indexing="ij")
    return np.stack([ndimage.map_coordinates(stack[..., k], at, order=order, mode="nearest")
                     for k in range(stack.shape[2])], 2)


def _size(tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"
