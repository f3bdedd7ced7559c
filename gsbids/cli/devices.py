# SPDX-License-Identifier: Apache-2.0
"""The compute device of a run: what ``--device`` asks for, against what there is."""

import logging

from gsbids.errors import InputError

LOGGER = logging.getLogger("gsbids.cli")

#: Plugins of nipype whose jobs run on this machine.
LOCAL = ("auto", "Linear", "MultiProc")


def resolve_device(device: str, plugin: str = "auto", method: str = "default") -> str:
    """Return the device to compute on: ``cpu``, ``cuda`` or ``cuda:N``.

    Nothing is logged if all is well: bad input that is found later is reported in one line.

    Parameters
    ----------
    device : str
        ``auto``: a GPU if there is one that can be used, else the CPU.
    plugin : str
        Nipype plugin. Jobs of a batch system run elsewhere: a GPU that is asked for by name is not checked.
    method : str
        Value of ``--svr-method``; the paper's computes on the CPU only.

    Raises
    ------
    gsbids.errors.InputError
        There is no such device, or the method cannot use it.
    """
    if device == "cpu":
        return device
    if method == "paper":
        if device != "auto":
            raise InputError(
                f"--device {device}: --svr-method paper computes on the CPU only; give --device cpu or "
                "auto, or the default method"
            )
        return "cpu"
    if plugin not in LOCAL and device != "auto":
        LOGGER.info("--device %s: not looked for here, as %s runs the jobs elsewhere", device, plugin)
        return device
    from gsbids.kernels.backend import expects_gpu, find_gpus

    names, problem = find_gpus()
    if device == "auto":
        if not names:
            LOGGER.log(logging.WARNING if expects_gpu() else logging.DEBUG, "--device auto: the CPU, as %s", problem)
        return "cuda" if names else "cpu"
    if not names:
        raise InputError(f"--device {device}: {problem}; or give --device cpu")
    number = int(device.partition(":")[2] or 0)
    if number >= len(names):
        there = "one GPU, cuda:0" if len(names) == 1 else f"{len(names)} GPUs, cuda:0 to cuda:{len(names) - 1}"
        raise InputError(f"--device {device}: there is no such GPU but {there}; give another number, or --device cpu")
    return device


def device_words(device: str, plugin: str = "auto") -> str:
    """Describe the device that :func:`resolve_device` gave, with the name of the GPU if it is one of this machine."""
    if device == "cpu" or plugin not in LOCAL:
        return device
    from gsbids.kernels.backend import find_gpus

    return f"{device} ({find_gpus()[0][int(device.partition(':')[2] or 0)]})"
