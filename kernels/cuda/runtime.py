# SPDX-License-Identifier: Apache-2.0
"""Choice of a backend, launches on torch's stream, and the memory that is free.

The CUDA kernels are those of the package ``numba-cuda``; numba's own, older ``numba.cuda`` is refused. With
``GSBIDS_BACKEND=sim`` they run in numba's simulator on tensors of the CPU: slow, for tests. The switch of the
simulator is read when numba is first imported, so set it before that.
"""

import importlib
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from types import ModuleType
from typing import Any

import numpy as np
import torch

from gsbids.errors import DeviceError

BACKENDS = ("cpu", "cuda", "sim")
RESERVE = 0.2  # share of the free memory that is left to others


def backend() -> str:
    """Return the backend in use: ``GSBIDS_BACKEND``, else ``cuda`` where torch has a GPU, else ``cpu``.

    Raises
    ------
    gsbids.errors.DeviceError
        The variable has another value.
    """
    chosen = os.environ.get("GSBIDS_BACKEND") or ("cuda" if torch.cuda.is_available() else "cpu")
    if chosen not in BACKENDS:
        raise DeviceError(f"GSBIDS_BACKEND={chosen}: it may be one of {', '.join(BACKENDS)}")
    return chosen


@lru_cache(maxsize=1)
def numba_cuda() -> ModuleType:
    """Return the module ``numba.cuda``, from numba-cuda, with the simulator on where it was asked for.

    Raises
    ------
    gsbids.errors.DeviceError
        numba-cuda is not installed (or its redirection of ``numba.cuda`` did not run), or numba was imported
        before the simulator was asked for.
    """
    # Otherwise every tensor's stream is synchronised at every launch.
    os.environ.setdefault("NUMBA_CUDA_ARRAY_INTERFACE_SYNC", "0")
    if os.environ.get("GSBIDS_BACKEND") == "sim":
        os.environ["NUMBA_ENABLE_CUDASIM"] = "1"
    try:
        module = importlib.import_module("numba.cuda")
    except ImportError as error:
        raise DeviceError("CUDA kernels need the package numba-cuda: pip install 'gsbids[gpu]'") from error
    if getattr(module, "implementation", None) != "NVIDIA":
        raise DeviceError(
            "numba.cuda is numba's own, older one; pip install 'gsbids[gpu]' into this very "
            "environment (a nested site directory does not run the redirection of numba-cuda)"
        )
    # Small problems are as good a use of a GPU as any: no warnings about them.
    importlib.import_module("numba.cuda.core.config").CUDA_LOW_OCCUPANCY_WARNINGS = 0  # type: ignore[attr-defined]
    if os.environ.get("GSBIDS_BACKEND") == "sim" and not is_simulator():
        raise DeviceError("numba was imported before GSBIDS_BACKEND=sim was set: set it in the environment")
    return module


def is_simulator() -> bool:
    """Return whether numba runs CUDA kernels in its simulator."""
    return bool(importlib.import_module("numba.core.config").ENABLE_CUDASIM)


def launch_bounds(threads: int, blocks: int) -> dict[str, tuple[int, int]]:
    """Return options of ``cuda.jit``: threads a block, and blocks a multiprocessor that registers leave room for."""
    return {} if is_simulator() else {"launch_bounds": (threads, blocks)}  # the simulator does not know the option


def takes(array: Any) -> bool:
    """Return whether an array is for the CUDA kernels: a tensor of a GPU, or, with ``GSBIDS_BACKEND=sim``, any tensor.

    Arrays of numpy always mean the CPU's kernels, so that a test may compare the two in one process.
    """
    return isinstance(array, torch.Tensor) and (array.is_cuda or os.environ.get("GSBIDS_BACKEND") == "sim")


def check_device(device: torch.device) -> None:
    """Refuse a device on which the CUDA kernels cannot run, in one line.

    Raises
    ------
    gsbids.errors.DeviceError
    """
    numba_cuda()
    if is_simulator():
        if device.type != "cpu":
            raise DeviceError(f"{device}: the CUDA simulator takes tensors of the CPU only")
    elif device.type != "cuda":
        raise DeviceError(f"{device}: the CUDA kernels take tensors of a GPU; use the CPU renderer")
    elif not torch.cuda.is_available():
        raise DeviceError(f"{device}: torch finds no GPU (a build without CUDA, or no driver); use --device cpu")


def launch(kernel: Any, grid: int | Sequence[int], block: int, *arguments: Any) -> None:
    """Run a kernel on torch's current stream, without copies.

    Parameters
    ----------
    kernel : numba.cuda kernel
    grid, block : int or sequence of int
        Blocks, and threads a block. A grid without blocks is not launched.
    *arguments : tensor, int, float or bool
        Contiguous tensors of one device; int and bool go as int32, float as float32: a float64 scalar would
        make the kernel compute in float64.

    Notes
    -----
    The stream is looked up at every launch: autograd runs backward in another thread, and the capture of a
    CUDA graph replaces the stream. All launches go to the stream on which torch allocates, so that its caching
    allocator may reuse the memory of temporaries.
    """
    if min(grid, default=0) == 0 if isinstance(grid, Sequence) else grid == 0:
        return
    if not all(a.is_contiguous() for a in arguments if isinstance(a, torch.Tensor)):
        raise ValueError("a tensor for a kernel is not contiguous")
    cuda = numba_cuda()
    if is_simulator():
        kernel[grid, block](*(a.detach().numpy() if isinstance(a, torch.Tensor) else _scalar(a) for a in arguments))
        return
    device = next(a.device for a in arguments if isinstance(a, torch.Tensor))
    with torch.cuda.device(device):
        stream = cuda.external_stream(torch.cuda.current_stream().cuda_stream)
        kernel[grid, block, stream](
            *(
                cuda.as_cuda_array(a.detach(), sync=False) if isinstance(a, torch.Tensor) else _scalar(a)
                for a in arguments
            )
        )


def _scalar(value: float) -> np.generic:
    """Convert int and bool to int32, float to float32."""
    return np.float32(value) if isinstance(value, float | np.floating) else np.int32(value)


def blocks(threads: int, block: int) -> int:
    """Return the number of blocks of ``block`` threads that hold ``threads``."""
    return (threads + block - 1) // block


def free_bytes(device: torch.device) -> int:
    """Return the memory in bytes that may be taken: free on the GPU or held empty by torch, less a reserve.

    ``GSBIDS_DEVICE_BYTES`` replaces it (for tests, and to leave room for others).
    """
    if os.environ.get("GSBIDS_DEVICE_BYTES"):
        return int(os.environ["GSBIDS_DEVICE_BYTES"])
    if device.type != "cuda":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    free, _ = torch.cuda.mem_get_info(device)
    idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return int((free + idle) * (1 - RESERVE))


def chunks(sizes: Sequence[int], bytes_each: int, available: int, what: str = "slice") -> list[tuple[int, int]]:
    """Split items into consecutive ranges that fit into memory, as few as the order allows.

    Parameters
    ----------
    sizes : sequence of int
        Entries (pairs of Gaussian and slice, say) of every item.
    bytes_each : int
        Working memory of one entry.
    available : int
        Bytes that may be taken; see :func:`free_bytes`.
    what : str
        Name of an item in the message.

    Returns
    -------
    list of (int, int)
        First and one-past-last item of each range.

    Raises
    ------
    gsbids.errors.DeviceError
        One item alone does not fit.
    """
    largest = available // bytes_each
    ranges, start, total = [], 0, 0
    for index, size in enumerate(int(s) for s in sizes):
        if size > largest:
            raise DeviceError(
                f"{what} {index} needs {size * bytes_each / 1e9:.2f} GB of device memory and "
                f"{available / 1e9:.2f} GB are free: use fewer Gaussians, or --device cpu"
            )
        if total + size > largest:
            ranges.append((start, index))
            start, total = index, 0
        total += size
    if len(sizes) > start:
        ranges.append((start, len(sizes)))
    return ranges


def with_smaller_chunks(run: Callable[[int], Any], target: torch.device, attempts: int = 4) -> Any:
    """Call ``run(bytes it may take)``, again with half of them each time torch runs out of memory.

    Raises
    ------
    gsbids.errors.DeviceError
        It did not fit ``attempts`` times.
    """
    share = 1
    for _ in range(attempts):
        available = free_bytes(target) // share
        try:
            return run(available)
        except torch.cuda.OutOfMemoryError:
            share *= 2
        torch.cuda.empty_cache()
    raise DeviceError(
        f"{target} ran out of memory {attempts} times, at last with {available / 1e9:.2f} GB for the "
        "renderer: free memory on it, use fewer Gaussians, or --device cpu"
    )
