# SPDX-License-Identifier: Apache-2.0
"""Types and actions of command-line arguments, for argparse."""

import argparse
import re
from collections.abc import Callable
from typing import Any

RESOLUTION_RANGE = (0.2, 5.0)  # mm, voxel size of a reconstruction


def with_dashes(arg: str) -> str:
    """Replace ``_`` by ``-`` in the name of an option (``--participant_label``); values stay as they are."""
    if not arg.startswith("--"):
        return arg
    name, equals, value = arg.partition("=")
    return name.replace("_", "-") + equals + value


def level(text: str) -> str:
    """Check the analysis level, for argparse."""
    if text not in ("participant", "group"):
        raise argparse.ArgumentTypeError(f"unknown level {text!r}; use participant or group")
    return text


def label(prefix: str) -> Callable[[str], str]:
    """Return a parser of BIDS labels, with or without their prefix, for argparse."""

    def parse(text: str) -> str:
        label = text.removeprefix(f"{prefix}-")
        if not re.fullmatch(r"[A-Za-z0-9+]+", label):
            raise argparse.ArgumentTypeError(f"{text!r} is not a label; labels have letters and digits only")
        return label

    return parse


class OneOrThree(argparse.Action):
    """Action that stores one number, or one for each array axis, as a tuple."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        """Store the values, if they are one or three."""
        if len(values) not in (1, 3):
            raise argparse.ArgumentError(self, f"give one number or three, not {len(values)}")
        setattr(namespace, self.dest, tuple(values))


def between(low: float, high: float, unit: str = " mm") -> Callable[[str], float]:
    """Return a parser of numbers within a range, for argparse."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            what = f"a number of{unit}" if unit else "a number"
            raise argparse.ArgumentTypeError(f"{text!r} is not {what}") from None
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text}{unit} is out of range; give {low:g} to {high:g}{unit}")
        return value

    return parse


def whole_number(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of whole numbers within a range, for argparse."""

    def parse(text: str) -> int:
        if not re.fullmatch(r"\d+", text) or not low <= int(text) <= high:
            raise argparse.ArgumentTypeError(f"{text!r}: give a whole number from {low} to {high}")
        return int(text)

    return parse


def device_name(text: str) -> str:
    """Check the name of a device, for argparse."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a device; give auto, cpu, cuda or cuda:N")
    return text


def memory_size(bare: str) -> Callable[[str], float]:
    """Return a parser of sizes in GB with a unit, for argparse; ``bare`` is the unit of a number alone."""

    def parse(text: str) -> float:
        found = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([KMGT]?)(?:i?B)?", text, re.IGNORECASE)
        if not found or float(found[1]) <= 0:
            raise argparse.ArgumentTypeError(f"{text!r} is not a size; write 1.5G, 800M, or a number")
        return float(found[1]) * {"K": 1e-6, "M": 1e-3, "G": 1.0, "T": 1e3}[(found[2] or bare).upper()]

    return parse
