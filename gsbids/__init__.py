# SPDX-License-Identifier: Apache-2.0
"""Slice-to-volume and super-resolution reconstruction of brain MRI with 3D Gaussians.

From Python: :func:`reconstruct`, :func:`super_resolve` and :func:`brain_mask` (see :mod:`gsbids.api`).
"""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_API = ("reconstruct", "super_resolve", "brain_mask")  # loaded when they are asked for


def __getattr__(name: str) -> Any:
    """Load the functions of :mod:`gsbids.api` when they are asked for."""
    if name in _API:
        return getattr(import_module("gsbids.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the names of the package."""
    return sorted([*globals(), *_API])
