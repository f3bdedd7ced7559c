# SPDX-License-Identifier: Apache-2.0
"""Resources of the steps of a reconstruction: time, processor time and memory, as a table and in words."""

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from pathlib import Path

HEADER = "step\tseconds\tcpu_seconds\tpeak_gb"


@dataclass(frozen=True)
class StepUsage:
    """Resources of one step.

    Attributes
    ----------
    name : str
        Name of the step, for example ``run_1 denoise``.
    seconds, cpu_seconds : float
        Elapsed time, and processor time of all threads.
    peak_gb : float
        Peak memory (GB) of its process while the step ran, including what was loaded before; NaN where it is not
        known.
    """

    name: str
    seconds: float
    cpu_seconds: float
    peak_gb: float = math.nan


def format_usage(steps: Sequence[StepUsage]) -> str:
    r"""Format the steps as tab-separated text with a header.

    Examples
    --------
    >>> format_usage([StepUsage("svr fit", 12.3456, 20.0, 0.75), StepUsage("report", 1.0, 1.0)]).splitlines()
    ['step\tseconds\tcpu_seconds\tpeak_gb', 'svr fit\t12.35\t20.00\t0.750', 'report\t1.00\t1.00\tn/a']
    """
    lines = [HEADER]
    for step in steps:
        peak = f"{step.peak_gb:.3f}" if math.isfinite(step.peak_gb) else "n/a"
        lines.append(f"{step.name}\t{step.seconds:.2f}\t{step.cpu_seconds:.2f}\t{peak}")
    return "\n".join(lines) + "\n"


def read_usage(path: str | Path) -> tuple[StepUsage, ...]:
    """Read the steps from a file with the text of :func:`format_usage`; lines that are not steps are skipped."""
    steps = []
    for line in Path(path).read_text(encoding="utf-8", errors="replace").splitlines()[1:]:
        name, *numbers = line.split("\t")
        try:
            values = [math.nan if text == "n/a" else float(text) for text in numbers]
            steps.append(StepUsage(name, *values))
        except (TypeError, ValueError):
            continue
    return tuple(steps)


def usage_rows(steps: Sequence[StepUsage]) -> list[dict]:
    """Return the rows of the table of steps, in words.

    Returns
    -------
    list of dict
        Every row: ``name``, ``time``, ``cpu``, ``memory``, and time and memory as shares (%) of the largest of any
        step, ``time_share`` and ``memory_share``.
    """
    longest = max((step.seconds for step in steps if math.isfinite(step.seconds)), default=0.0)
    largest = max((step.peak_gb for step in steps if math.isfinite(step.peak_gb)), default=0.0)
    return [
        {
            "name": step.name.replace("_", "-"),
            "time": duration(step.seconds),
            "cpu": duration(step.cpu_seconds),
            "memory": memory(step.peak_gb),
            "time_share": _share(step.seconds, longest),
            "memory_share": _share(step.peak_gb, largest),
        }
        for step in steps
    ]


def usage_total(steps: Sequence[StepUsage]) -> list[tuple[str, str]]:
    """Return the sums of the times and the largest memory, as (label, value)."""
    if not steps:
        return []
    seconds, cpu, peaks = zip(*(astuple(step)[1:] for step in steps), strict=True)
    known = [peak for peak in peaks if math.isfinite(peak)]
    return [
        ("Sum of all steps", duration(sum(seconds))),
        ("Processor time", duration(sum(cpu))),
        ("Largest memory", memory(max(known, default=math.nan))),
    ]


def duration(seconds: float) -> str:
    """Format a time.

    Examples
    --------
    >>> duration(0.25), duration(59.97), duration(137.6), duration(7322), duration(float("nan"))
    ('0.2 s', '1 min 0 s', '2 min 18 s', '2 h 2 min', 'not known')
    """
    if not math.isfinite(seconds):
        return "not known"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def memory(gigabytes: float) -> str:
    """Format an amount of memory.

    Examples
    --------
    >>> memory(0.2104), memory(1.5), memory(float("nan"))
    ('210 MB', '1.5 GB', 'not known')
    """
    if not math.isfinite(gigabytes):
        return "not known"
    return f"{gigabytes:.1f} GB" if gigabytes >= 1 else f"{1000 * gigabytes:.0f} MB"


def _share(value: float, most: float) -> float:
    """Return a value in percent of the largest; 0 where it is not known."""
    return round(100 * value / most, 1) if math.isfinite(value) and most > 0 else 0.0
