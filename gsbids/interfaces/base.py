# SPDX-License-Identifier: Apache-2.0
"""Shared parts of the interfaces: stacks from their files, threads, paths in the node's folder."""

import contextlib
import json
import math
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nipype.interfaces.base import BaseInterfaceInputSpec, File, InputMultiObject, SimpleInterface, traits

from gsbids.atomic import write_atomic
from gsbids.imaging.intensity import darkest
from gsbids.imaging.nifti import load_image
from gsbids.imaging.stack import Stack
from gsbids.interfaces.usage import measured

if TYPE_CHECKING:
    from nipype.interfaces.base import Bunch


class StacksInputSpec(BaseInterfaceInputSpec):
    """Stacks as lists of the same length, in the order of the task."""

    in_files = InputMultiObject(File(exists=True), mandatory=True, desc="conformed, corrected images")
    in_masks = InputMultiObject(File(exists=True), mandatory=True, desc="brain masks")
    names = InputMultiObject(traits.Str, mandatory=True, desc="short names")
    thicknesses = InputMultiObject(traits.Float, mandatory=True, desc="slice thicknesses in mm")
    choice = File(exists=True, desc="JSON of ChooseStacks: stacks that are left out, and whose masks were made")
    # The result does not depend on it: another number of threads is no reason to compute again.
    num_threads = traits.Int(1, usedefault=True, nohash=True, desc="threads")


class DeviceInputSpec(BaseInterfaceInputSpec):
    """Device of a step; see :func:`where`."""

    # The result is the same within float32 rounding, and says where it was computed.
    device = traits.Str("cpu", usedefault=True, nohash=True, desc="cpu, cuda or cuda:N")
    use_gpu = traits.Bool(False, usedefault=True, nohash=True, desc="for nipype: such steps take turns on the GPU")


def where(device: str) -> dict:
    """Return the inputs of :class:`DeviceInputSpec` for a device."""
    return {"device": device, "use_gpu": device != "cpu"}


class NodeInterface(SimpleInterface):
    """A simple interface that knows its folder, and writes there the resources it used.

    It keeps to its number of threads: one, where it has no ``num_threads``.
    """

    def run(self, cwd: str | None = None, ignore_exception: bool | None = None, **inputs: Any) -> Any:
        """Run as nipype does; in a node, which has a folder, measured (:func:`gsbids.interfaces.usage.measured`)."""
        with measured(cwd) if cwd else contextlib.nullcontext():
            return super().run(cwd=cwd, ignore_exception=ignore_exception, **inputs)

    def _pre_run_hook(self, runtime: "Bunch") -> "Bunch":
        # A worker has had other steps before, with more threads.
        hold_threads(getattr(self.inputs, "num_threads", 1))
        return runtime

    @staticmethod
    def path(runtime: "Bunch", name: str) -> str:
        """Return the absolute path of an output in the node's folder."""
        return os.path.join(runtime.cwd, name)


def read_stack(in_file: str, in_mask: str, name: str, thickness: float) -> Stack:
    """Read a stack from its conformed image and mask; shift a brain with negative intensities to positive ones."""
    import numpy as np

    image, affine = load_image(in_file)
    mask = load_image(in_mask)[0] > 0
    offset = darkest(image, mask)
    return Stack(
        name=name,
        image=np.maximum(image - np.float32(offset), 0),
        mask=mask,
        affine=affine,
        thickness=thickness,
        offset=offset,
    )


def read_stacks(inputs: StacksInputSpec) -> list[Stack]:
    """Read all stacks of a :class:`StacksInputSpec`."""
    parts = zip(inputs.in_files, inputs.in_masks, inputs.names, inputs.thicknesses, strict=True)
    return [read_stack(*part) for part in parts]


def limit_threads(threads: int) -> None:
    """Let torch and numba use ``threads`` threads in this process."""
    import numba
    import torch

    torch.set_num_threads(max(1, threads))
    numba.set_num_threads(min(max(1, threads), numba.config.NUMBA_NUM_THREADS))


def hold_threads(threads: int) -> None:
    """Limit torch and numba, where they are loaded, to ``threads`` threads, and BLAS to one.

    The sums of BLAS change with its threads.
    """
    from threadpoolctl import threadpool_limits

    threadpool_limits(1, user_api="blas")
    torch, numba = (sys.modules.get(name) for name in ("torch", "numba"))
    if torch is not None:
        torch.set_num_threads(max(1, threads))
    if numba is not None:
        numba.set_num_threads(min(max(1, threads), numba.config.NUMBA_NUM_THREADS))


class ProgressNote:
    """Writer of the progress of a fit into its folder, for the process that runs it; at most once a second."""

    def __init__(self, folder: str) -> None:
        self._path, self._next = os.path.join(folder, "progress.txt"), 0.0

    def __call__(self, iteration: int, iterations: int, record: dict) -> None:
        """Write the progress, unless it was written within the last second."""
        if time.monotonic() < self._next:
            return
        self._next = time.monotonic() + 1.0
        with contextlib.suppress(OSError):  # it is a courtesy; what matters is written elsewhere
            write_text(self._path, f"{iteration} {iterations}\n")


def write_metrics(folder: str | Path, name: str, row: dict, descriptions: dict) -> dict:
    """Write one row of metrics as ``metrics.tsv``, and its numbers as ``metrics.json``.

    Parameters
    ----------
    folder : path
    name : str
        First column: name of the reconstruction.
    row : dict of str to float or str
        NaN where there is no number. Text is written to the table only.
    descriptions : dict
        BIDS description of every column.

    Returns
    -------
    dict
        Outputs of a node: paths ``table`` and ``metrics``, and ``columns``.
    """
    numbers = {key: value for key, value in row.items() if not isinstance(value, str)}
    shown = [
        value if isinstance(value, str) else f"{value:.6g}" if math.isfinite(value) else "n/a" for value in row.values()
    ]
    text = "\t".join(["bids_name", *row]) + "\n" + "\t".join([name, *shown]) + "\n"
    plain = {key: value if math.isfinite(value) else None for key, value in numbers.items()}
    first = {"LongName": "Name", "Description": "Name of the reconstruction"}
    return {
        "table": write_text(os.path.join(folder, "metrics.tsv"), text),
        "metrics": write_text(os.path.join(folder, "metrics.json"), json.dumps(plain, indent=1)),
        "columns": {"bids_name": first} | descriptions,
    }


def write_text(path: str | Path, text: str) -> str:
    """Write a small text file; return its path."""
    write_atomic(path, text.encode())
    return str(path)
