# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of mask networks of other tools: reading without pickle, and slices as their input."""

import pickle
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import ndimage

from gsbids.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

SUFFIXES = (".pt", ".pth")
NESTED = ("net", "state_dict", "model")  # where a checkpoint may keep the weights, beside those of the optimiser
FLIPS = ((), (2,), (3,), (2, 3))  # of slices (N, 1, X, Y), over which scores are averaged
WANTED = (
    "give MONAIfbs' checkpoint_dynUnet_DiceXent.pt, Fetal-BET2's AttUNet.pth, or a .safetensors file that "
    "training/train.py has written"
)


def read_state(path: str | Path) -> dict:
    """Read tensors by name from a file of torch, of the network alone or of a training; nothing in it is executed.

    Raises
    ------
    gsbids.errors.InputError
        The file cannot be read, or holds more than tensors and numbers.
    """
    import torch

    try:
        with warnings.catch_warnings(action="ignore"):  # of what a strange file is made; we say it in one line
            found = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error}); give a file of weights") from error
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise InputError(
            f"{path}: no checkpoint of tensors alone (damaged, or it would run code when it is loaded); {WANTED}"
        ) from error
    found = found if isinstance(found, dict) else {}
    found = next((found[key] for key in NESTED if isinstance(found.get(key), dict)), found)
    return {
        name.removeprefix("module."): value
        for name, value in found.items()
        if isinstance(name, str) and isinstance(value, torch.Tensor)
    }


def checked(state: dict, wanted: dict, path: str | Path, network: str) -> dict:
    """Compare the weights of a checkpoint with those of a network.

    Parameters
    ----------
    state, wanted : dict of str to tensor
        Weights of the checkpoint and of the network.
    path : path-like
    network : str
        Name of the network, for error messages.

    Returns
    -------
    dict of str to tensor
        ``state``.

    Raises
    ------
    gsbids.errors.InputError
        A layer is missing, is one too many, or has another size.
    """
    wrong = next((f"it lacks {name}" for name in wanted if name not in state), None)
    wrong = wrong or next((f"it has {name}" for name in state if name not in wanted), None)
    wrong = wrong or next(
        (
            f"{name} has {_size(state[name])}, not {_size(wanted[name])}"
            for name in wanted
            if state[name].shape != wanted[name].shape
        ),
        None,
    )
    if wrong:
        raise InputError(f"{path}: no checkpoint of {network} ({wrong}); {WANTED}")
    return state


def grid_of(shape: Sequence[int], spacing: Sequence[float], pixel: float) -> tuple[np.ndarray, np.ndarray]:
    """Find the grid of pixels of another size that fills the same slices.

    Parameters
    ----------
    shape : tuple of int
        Pixels of a slice, and any other axes.
    spacing : tuple of float
        Size of these pixels, mm.
    pixel : float
        Size of the new pixels, mm.

    Returns
    -------
    step : ndarray, (2,)
        Size of the new pixels in old ones.
    size : ndarray, (2,), int
        Number of the new pixels.
    """
    step = pixel / np.array(spacing[:2])
    return step, np.rint((np.array(shape[:2]) - 1) / step + 1).astype(int)


def mean_score(stack: np.ndarray, find: Callable) -> Any:
    """Compute scores of slices, (X, Y, N), by a function of tensors (N, 1, X, Y), averaged over mirror images."""
    import torch

    slices = torch.from_numpy(np.moveaxis(stack, 2, 0)[:, None].astype(np.float32))
    with torch.inference_mode():
        return sum(torch.flip(find(torch.flip(slices, axes)), axes) for axes in FLIPS) / len(FLIPS)


def resampled(
    stack: np.ndarray, step: np.ndarray, size: np.ndarray | Sequence[int], order: int, mode: str = "nearest"
) -> np.ndarray:
    """Resample slices to another grid of pixels with the same first pixel, ``step`` old pixels apart."""
    at = np.meshgrid(*(np.arange(n) * s for n, s in zip(size, step, strict=True)), indexing="ij")
    return np.stack(
        [ndimage.map_coordinates(stack[..., k], at, order=order, mode=mode) for k in range(stack.shape[2])], 2
    )


def _size(tensor: "Tensor") -> str:
    return " x ".join(map(str, tensor.shape)) or "one number"
