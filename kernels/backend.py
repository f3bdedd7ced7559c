# SPDX-License-Identifier: Apache-2.0
"""Numpy arrays on the CPU, float32 tensors on a GPU, and the conversion between them.

A device has the name of ``--device``: ``cpu``, ``cuda`` or ``cuda:N``. With ``GSBIDS_BACKEND=sim`` the tensors of a
``cuda`` device are those of the CPU, for numba's simulator. Code that is written with operators, ``abs`` and methods
that numpy and torch share (``a.sum((1, 2), dtype=float)``) serves both; the few functions here do the rest. On the CPU
they are numpy's own, to the bit.
"""

import os
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import torch

from gsbids.errors import DeviceError
from gsbids.kernels.cuda import runtime
from gsbids.kernels.problem import Array

CPU = "cpu"
SIMULATOR = "simulator"


def torch_device(name: str) -> torch.device:
    """Return the torch device that is meant by ``name``.

    Raises
    ------
    gsbids.errors.DeviceError
        There is no such GPU, or the CUDA kernels cannot run on it.
    """
    if name == CPU or os.environ.get("GSBIDS_BACKEND") == "sim":
        return torch.device(CPU)
    found = torch.device(name)
    runtime.check_device(found)
    if (found.index or 0) >= torch.cuda.device_count():
        raise DeviceError(f"{name}: there is no such GPU, torch finds {torch.cuda.device_count()}; use --device cpu")
    return found


def to_device(array: Array, name: str) -> Array:
    """Move an array or tensor to the device ``name``: an array on the CPU, a tensor (float32, bool or int) on a GPU.

    Nothing is copied that is there already.
    """
    if name == CPU:
        return to_host(array)
    tensor = array.detach() if torch.is_tensor(array) else torch.as_tensor(np.ascontiguousarray(array))
    if tensor.is_cuda and tensor.dtype in (torch.float32, torch.bool):
        return tensor
    return tensor.to(torch_device(name), torch.float32 if tensor.is_floating_point() else tensor.dtype)


def to_host(found: Any) -> Any:
    """Convert a tensor to a numpy array (a view, if it is on the CPU), within tuples and dataclasses too."""
    if torch.is_tensor(found):
        return found.detach().cpu().numpy()
    if isinstance(found, tuple | list):
        return type(found)(map(to_host, found))
    if is_dataclass(found):
        return type(found)(*(to_host(getattr(found, field.name)) for field in fields(found)))  # type: ignore[misc]
    return found


def like(array: np.ndarray, other: Array) -> Array:
    """Put a small numpy array where ``other`` is: as it is, or as a float32 tensor."""
    return torch.as_tensor(array, dtype=torch.float32, device=other.device) if torch.is_tensor(other) else array


def as_float32(array: Array) -> Array:
    """Convert to float32."""
    return array.float() if torch.is_tensor(array) else array.astype(np.float32)


def sqrt(array: Array) -> Array:
    """Return the square root of an array or tensor."""
    return torch.sqrt(array) if torch.is_tensor(array) else np.sqrt(array)


def exp(array: Array) -> Array:
    """Return the exponential of an array or tensor."""
    return torch.exp(array) if torch.is_tensor(array) else np.exp(array)


def medians(images: Array, mask: Array) -> np.ndarray:
    """Return the median of each image (S, X, Y) within its mask, (S,) array; 0 where a mask is empty."""
    if not torch.is_tensor(images):
        return np.array(
            [np.median(image[inside]) if inside.any() else 0.0 for image, inside in zip(images, mask, strict=True)]
        )
    ordered = torch.where(mask, images, torch.inf).flatten(1).sort(1).values
    count = mask.flatten(1).sum(1, keepdim=True)
    middle = [ordered.gather(1, place.clamp(min=0)) for place in ((count - 1) // 2, count // 2)]
    return to_host(torch.where(count > 0, (middle[0] + middle[1]) / 2, 0.0)[:, 0].double())


def release(name: str) -> None:
    """Give memory that torch holds empty back to the GPU, for other processes."""
    if name != CPU and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def describe(name: str) -> str:
    """Describe the device for people: ``cpu``, or the device with the name of the GPU."""
    if name == CPU:
        return CPU
    if os.environ.get("GSBIDS_BACKEND") == "sim":
        return f"{name} ({SIMULATOR})"
    return f"{name} ({torch.cuda.get_device_name(torch_device(name))})"


def expects_gpu() -> bool:
    """Return whether torch was built for GPUs; only then is the lack of one worth a message."""
    return torch.version.cuda is not None


def find_gpus() -> tuple[tuple[str, ...], str]:
    """List the GPUs that torch and the CUDA kernels can use, and, where there are none, what is wrong.

    Returns
    -------
    names : tuple of str
        Names in the order of ``cuda:N``.
    problem : str
        Empty, or what was found and what to do.
    """
    if os.environ.get("GSBIDS_BACKEND") == "sim":
        return (SIMULATOR,), ""
    if not expects_gpu():
        return (), f"torch {torch.__version__} is a build without CUDA; install one with CUDA, and 'gsbids[gpu]'"
    if not torch.cuda.is_available():
        return (), (
            "torch finds no GPU (none is there or visible, or its driver is missing or too old); look at "
            "nvidia-smi, in a container give it the GPU (--nv, --gpus all)"
        )
    try:
        found = len(runtime.numba_cuda().gpus)
    except DeviceError as error:
        return (), str(error)
    except Exception as error:  # the errors of numba's driver are of several kinds
        return (), f"numba-cuda finds no GPU ({' '.join(str(error).split())}); pip install 'gsbids[gpu]'"
    return tuple(torch.cuda.get_device_name(n) for n in range(min(found, torch.cuda.device_count()))), ""
