# SPDX-License-Identifier: Apache-2.0
"""Time and memory of a step, stored in the step's folder, and collected for the report."""

import json
import logging
import math
import resource
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from gsbids.qc.report.usage import StepUsage

LOGGER = logging.getLogger("gsbids.interfaces")

USAGE_FILE = "usage.json"
EVERY = 0.1  # s, from one look at the memory to the next


@contextmanager
def measured(folder: str | Path) -> Iterator[None]:
    """Measure time and memory of a block, and write ``usage.json`` to a folder, also when it fails.

    Memory is sampled ten times a second. Where the step needs more than all before it in its process, the peak is that
    of the operating system.
    """
    began, clock, cpu, before = time.time(), time.monotonic(), time.process_time(), _largest_memory()
    with _Watch() as watch:
        try:
            yield
        finally:
            after = _largest_memory()
            peak = after if after > before else watch.peak
            found = {
                "began": began,
                "seconds": time.monotonic() - clock,
                "cpu_seconds": time.process_time() - cpu,
                "peak_gb": peak / 1e9 if peak else None,
            }
            try:
                Path(folder, USAGE_FILE).write_text(json.dumps(found), encoding="utf-8")
            except OSError as error:
                # What the step made counts, not what it took.
                LOGGER.debug("%s: %s", USAGE_FILE, error)


def gather_usage(work_folder: str | Path, steps: Sequence[str]) -> list[StepUsage]:
    """Collect time and memory of the steps of a task, in the order in which they began.

    Parameters
    ----------
    work_folder : path
        Folder of the task's workflow.
    steps : sequence of str
        Names of nodes within it (``run_1_wf.denoise``); those without a record are skipped.
    """
    found = []
    for step in steps:
        try:
            record = json.loads(Path(work_folder, *step.split("."), USAGE_FILE).read_text(encoding="utf-8"))
            numbers = [
                math.nan if record[key] is None else float(record[key])
                for key in ("began", "seconds", "cpu_seconds", "peak_gb")
            ]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        name = " ".join(part.removesuffix("_wf") for part in step.split("."))
        found.append((numbers[0], name, numbers[1:]))
    return [StepUsage(name, *numbers) for _, name, numbers in sorted(found)]


class _Watch:
    """Largest resident memory (bytes) of this process, sampled by a thread; 0 where the system does not report it."""

    def __init__(self) -> None:
        self.peak = _memory_now()
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> "_Watch":
        """Start the thread."""
        if self.peak:
            self._thread.start()
        return self

    def __exit__(self, *_: Any) -> None:
        """Stop the thread."""
        self._done.set()
        if self._thread.is_alive():
            self._thread.join()

    def _look(self) -> None:
        while not self._done.wait(EVERY):
            self.peak = max(self.peak, _memory_now())


def _memory_now() -> int:
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[1]
    except (OSError, IndexError):
        return 0
    return int(pages) * resource.getpagesize()


def _largest_memory() -> int:
    """Return the largest resident memory in bytes of this process so far."""
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
