# SPDX-License-Identifier: Apache-2.0
"""Outlying reconstructions of a group, by a robust rule."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LIMIT = 3.5  # robust standard deviations
LEAST = 8  # values without which nothing stands out
WIDER = 5.0  # the limit of n values is wider by (1 + WIDER / n): of few values, the spread is known less well

#: The side on which a metric is bad; both where it is not said.
BAD_SIDE = {
    "n_stacks": "low",
    "n_slices": "low",
    "slices_used": "low",
    "slices_rejected": "high",
    "ncc_median": "low",
    "ncc_p10": "low",
    "ncc_worst_stack": "low",
    "stack_agreement": "low",
    "stack_agreement_worst": "low",
    "placing_agreement": "low",
    "placing_margin": "low",
    "crossing_angle": "low",
    "mask_lost": "high",
    "residual_median": "high",
    "motion_mean": "high",
    "motion_max": "high",
    "rotation_mean": "high",
    "rotation_max": "high",
    "motion_neighbour_mean": "high",
    "motion_neighbour_max": "high",
    "rotation_neighbour_mean": "high",
    "coverage_mean": "low",
    "not_covered": "high",
    "sharpness": "low",
    "noise": "high",
    "gain_spread": "high",
    "hidden_gain": "low",
    "hidden_error": "high",
    "data_misfit": "high",
}

#: Spreads below which differences mean nothing, by metric or by its units.
LEAST_SPREAD = {
    "slices_rejected": 0.02,
    "not_covered": 0.01,
    "fraction": 0.002,
    "arbitrary": 0.005,
    "mm": 0.1,
    "degree": 0.1,
    "count": 1.0,
    "slices": 0.1,
    "mL": 1.0,
    "1/mm": 0.005,
    "dB": 0.1,
}

LEAST_SPAN = 10.0  # least spreads that an axis covers: small differences do not look large


def least_spread(name: str, units: str = "") -> float:
    """Return the spread of a metric below which differences mean nothing."""
    return LEAST_SPREAD.get(name, LEAST_SPREAD.get(units, 0.0))


def axis_span(low: float, high: float, least: float) -> tuple[float, float]:
    """Return the ends of an axis that holds values and is not shorter than ``least``; not below 0 where no value is.

    Examples
    --------
    >>> axis_span(0.975, 0.977, 0.05), axis_span(0.0, 0.01, 0.2), axis_span(1.0, 9.0, 2.0)
    ((0.951, 1.001), (0.0, 0.2), (1.0, 9.0))
    """
    room = max(0.0, least - (high - low)) / 2
    left = low - room if low < 0 else max(0.0, low - room)
    return round(left, 9), round(max(high, left + max(least, high - low)), 9)


RULE = (
    f"A value is marked when it lies more than {LIMIT:g} x (1 + {WIDER:g}/n) robust standard deviations from the "
    "median of the n values of its method, on the side where the metric is bad. The robust standard deviation is "
    "1.4826 times the median distance from the median of the half of the values on that side (so that skewed "
    "metrics are not marked for being skewed), and at least a spread below which differences mean nothing. With "
    f"fewer than {LEAST} values nothing is marked."
)


@dataclass(frozen=True)
class Spread:
    """Spread of one metric over a group.

    Attributes
    ----------
    median : float
        NaN without values.
    low, high : float
        Limits beyond which a value is an outlier; infinite on a side that is not bad.
    """

    median: float
    low: float
    high: float

    def stands_out(self, value: float) -> bool:
        """Return whether a value is beyond the limits; NaN never is."""
        return bool(value < self.low or value > self.high)


def metric_spread(values: Sequence[float], side: str = "both", least: float = 0.0) -> Spread:
    """Return median and limits of one metric (see ``RULE``).

    Parameters
    ----------
    values : sequence of float
        NaN for those that are not known.
    side : {"low", "high", "both"}
        Side on which it is bad.
    least : float
        Smallest robust standard deviation.

    Examples
    --------
    >>> spread = metric_spread([1.0, 1.1, 0.9, 1.0, 1.05, 0.95, 1.1, 9.0], "high")
    >>> spread.stands_out(9.0), spread.stands_out(1.1), spread.stands_out(-9.0)
    (True, False, False)
    """
    known = np.asarray(values, float)
    known = known[np.isfinite(known)]
    if not known.size:
        return Spread(np.nan, -np.inf, np.inf)
    median = float(np.median(known))
    if known.size < LEAST:
        return Spread(median, -np.inf, np.inf)
    ordered, half = np.sort(known), known.size // 2
    limit = LIMIT * (1 + WIDER / known.size)
    low, high = (
        limit * max(1.4826 * float(np.median(np.abs(part - median))), least, 1e-9 * abs(median))
        for part in (ordered[:half], ordered[-half:])
    )
    return Spread(median, median - low if side != "high" else -np.inf, median + high if side != "low" else np.inf)


def group_spreads(columns: Mapping[str, Mapping], rows: Sequence[Mapping[str, float]]) -> dict[str, Spread]:
    """Return the spread of every metric of a group.

    Parameters
    ----------
    columns : mapping
        BIDS descriptions by metric; ``Units`` choose the least spread.
    rows : sequence of mapping
        Values by metric.
    """
    return {
        name: metric_spread(
            [row.get(name, np.nan) for row in rows],
            BAD_SIDE.get(name, "both"),
            least_spread(name, entry.get("Units", "")),
        )
        for name, entry in columns.items()
    }


def outliers(spreads: Mapping[str, Spread], values: Mapping[str, float]) -> list[str]:
    """List the metrics in which one row is an outlier."""
    return [name for name, spread in spreads.items() if spread.stands_out(values.get(name, np.nan))]
