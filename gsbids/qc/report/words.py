# SPDX-License-Identifier: Apache-2.0
"""Metrics and registration of a report in words."""

import math

from gsbids.qc.metrics import METRIC_DESCRIPTIONS
from gsbids.qc.metrics_sr import SR_METRIC_DESCRIPTIONS
from gsbids.qc.report.content import ReportContent

#: Factor, decimal places and sign of the units of the metrics.
_UNITS = {
    "fraction": (100, 1, " %"),
    "count": (1, 0, ""),
    "mL": (1, 0, " mL"),
    "mm": (1, 1, " mm"),
    "dB": (1, 2, " dB"),
    "degree": (1, 1, "°"),
    "arbitrary": (1, 3, ""),
    "slices": (1, 1, " slices"),
}


def format_number(value: float, units: str = "") -> str:
    """Format a value with its unit.

    Examples
    --------
    >>> format_number(0.0312, "fraction"), format_number(158.2, "mL"), format_number(1.5, "degree")
    ('3.1 %', '158 mL', '1.5°')
    >>> format_number(0.9123, "arbitrary"), format_number(0.639, "mm"), format_number(float("nan"))
    ('0.912', '0.6 mm', 'not available')
    """
    if value is None or not math.isfinite(value):
        return "not available"
    factor, places, sign = _UNITS.get(units, (1, 3, f" {units}" if units else ""))
    return f"{factor * value:.{places}f}{sign}"


_HIGHLIGHTS = (
    "ncc_median",
    "stack_agreement",
    "slices_rejected",
    "motion_mean",
    "motion_max",
    "motion_neighbour_mean",
    "hidden_gain",
    "data_misfit",
    "energy_above",
    "energy_above_bspline",
    "mask_volume",
)
_KNOWN = SR_METRIC_DESCRIPTIONS | METRIC_DESCRIPTIONS


def highlights(metrics: dict | None) -> list[tuple[str, str]]:
    """Return the metrics at the head of the report, as (name, value)."""
    shown = {name: _KNOWN[name] for name in _HIGHLIGHTS if metrics and name in metrics}
    if metrics and "hidden_gain" in metrics:
        # Super-resolution does without a mask, and its fast mode without a trial.
        shown = {name: known for name, known in shown.items() if math.isfinite(metrics[name])}
    return [(known["LongName"], format_number(metrics[name], known["Units"])) for name, known in shown.items()]  # type: ignore[index]


def template_highlight(content: ReportContent) -> list[tuple[str, str]]:
    """Return the similarity to the template as (name, value); empty where the volume was aligned to none."""
    if content.template_similarity is None:
        return []
    return [("Similarity to the template", f"{content.template_similarity:.2f}")]


def metric_rows(metrics: dict | None) -> list[tuple[str, str, str]]:
    """Return all metrics as (name, value, description); those without a description under their own key."""
    rows = []
    for name, value in (metrics or {}).items():
        known = _KNOWN.get(name, {"LongName": name, "Units": "arbitrary", "Description": ""})
        shown = str(value) if isinstance(value, str) else format_number(value, known["Units"])
        rows.append((known["LongName"], shown, known["Description"]))
    return rows


def registration_rows(content: ReportContent) -> dict[str, str]:
    """Describe the outcome of the co-registration for every stack, by the name of the stack."""
    table = content.registration or {}
    rows = {}
    for i, stack in enumerate(content.stacks):
        found = {
            name: values[i] for name, values in table.items() if isinstance(values, list | tuple) and len(values) > i
        }
        if found.get("reason"):
            rows[stack.name] = found["reason"]
        elif table.get("template") == i:
            rows[stack.name] = "Template: the other stacks are registered to this one."
        elif "accepted" in found:
            words = "Registered" if found["accepted"] else "Left where the scanner put it"
            before, after = found.get("similarity_before"), found.get("similarity_after")
            numbers = f": similarity {before:.2f}, then {after:.2f}" if before and after else ""
            rows[stack.name] = f"{words}{numbers}."
    return rows
