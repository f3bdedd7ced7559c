# SPDX-License-Identifier: Apache-2.0
"""One line for every step that is done."""

import logging
import time
from collections.abc import Mapping

LOGGER = logging.getLogger("gsbids.cli")

_TRIVIAL = ("IdentityInterface", "Merge", "Select")


def is_step(node) -> bool:
    """Whether a node does something that people want to read about."""
    return type(node.interface).__name__ not in _TRIVIAL and not node.run_without_submitting


class Progress:
    """Callback for nipype's plugins.

    Parameters
    ----------
    names : mapping of str to str
        Names of tasks by the names of their workflows.
    total : int
        Number of steps.
    """

    def __init__(self, names: Mapping[str, str], total: int):
        self._names = names
        self._total = total
        self._started: dict[str, float] = {}
        self._done: set[str] = set()

    def __call__(self, node, status: str) -> None:
        if not is_step(node):
            return
        if status == "start":
            self._started[node.fullname] = time.monotonic()
            return
        if status != "end" or node.fullname in self._done:
            return
        self._done.add(node.fullname)
        began = self._started.get(node.fullname)
        took = "kept from before" if began is None else f"{time.monotonic() - began:.1f} s"
        LOGGER.info("%s: %s (%d of %d)", step_name(node.fullname, self._names), took, len(self._done),
                    self._total)


def step_name(fullname: str, names: Mapping[str, str]) -> str:
    """Readable name of a node.

    >>> step_name("gsbids_wf.sub_01_T2w_wf.run_1_wf.conform", {"sub_01_T2w_wf": "sub-01_T2w"})
    'sub-01_T2w run_1 conform'
    """
    parts = fullname.split(".")[1:] or [fullname]
    return " ".join(names.get(part, part.removesuffix("_wf")) for part in parts)
