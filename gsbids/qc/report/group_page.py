# SPDX-License-Identifier: Apache-2.0
"""Group report: one HTML file with distributions, marked outliers and a table that can be sorted."""

import base64
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

import numpy as np

from gsbids.qc.group import LEAST, LEAST_SPAN, RULE, Spread, axis_span, least_spread
from gsbids.qc.report.page import TEMPLATES, VERDICT_LOOKS, page_template
from gsbids.qc.report.words import format_number
from gsbids.qc.verdict import DO_NOT_USE, LEVELS, LOOK, USABLE, judge

#: Metrics that are shown at first; the others unfold on a click.
MAIN = (
    "ncc_median",
    "ncc_p10",
    "stack_agreement",
    "residual_median",
    "slices_rejected",
    "motion_mean",
    "motion_max",
    "motion_neighbour_mean",
    "hidden_gain",
    "data_misfit",
    "energy_above",
    "coverage_mean",
    "sharpness",
    "noise",
    "mask_volume",
)

METHOD_NAMES = {"gsvr": "slice-to-volume reconstruction", "gsr": "super-resolution"}

WIDTH, HEIGHT, PAD, DOT = 320, 84, 12, 3.2  # px of a distribution, its margins, and a dot's radius
MOST_PICTURES = 60  # volumes whose pictures are shown at first; the others unfold on a click
FIRST = 12  # reconstructions to look at that are listed at first; the others unfold on a click


@dataclass(frozen=True)
class GroupRow:
    """One reconstruction on the page.

    Attributes
    ----------
    label, name : str
        Short name, and name in the table.
    report : str
        Address of its report relative to the page; empty where there is none.
    values : dict of str to float
        Values by metric.
    marked : tuple of str
        Metrics in which it is an outlier.
    method : str
        A key of ``METHOD_NAMES``.
    verdict : str
        A key of ``LEVELS``; empty where its row has none.
    picture : str
        Small picture of the volume as a data URI; empty where there is none.
    """

    label: str
    name: str
    report: str
    values: Mapping[str, float]
    marked: tuple[str, ...] = ()
    method: str = "gsvr"
    verdict: str = ""
    picture: str = ""

    @property
    def rank(self) -> int:
        """Rank of the verdict, the worst highest; -1 without one."""
        return list(LEVELS).index(self.verdict) if self.verdict else -1

    @property
    def to_look_at(self) -> bool:
        """Whether it is among those to look at first."""
        return bool(self.marked) or self.verdict in (LOOK, DO_NOT_USE)


@dataclass(frozen=True)
class GroupContent:
    """Contents of the group report.

    Attributes
    ----------
    title : str
        Heading.
    rows : tuple of GroupRow
    columns : dict of str to dict
        BIDS description of each metric.
    spreads : dict of str to dict
        ``Spread`` of each metric, by method.
    troubles : tuple of (str, str)
        Sentences on what is missing or broken, each with a report to look at (may be empty).
    table : str
        Address of the table, relative to the page.
    version : str
        Version of gsbids.
    """

    title: str
    rows: Sequence[GroupRow]
    columns: Mapping[str, Mapping]
    spreads: Mapping[str, Mapping[str, Spread]]
    troubles: Sequence[tuple[str, str]] = ()
    table: str = ""
    version: str = ""


def render_group(content: GroupContent) -> str:
    """Return the group report as HTML; all text in it is escaped, and nothing is loaded from elsewhere."""
    script = (TEMPLATES / "group.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    main = [name for name in MAIN if name in content.columns]
    charts = {
        method: {name: distribution(content, name, method) for name in content.columns} for method in content.spreads
    }
    heads = [
        (chart["median"], long_name(content, name), method)  # type: ignore[index]
        for method, drawn in charts.items()
        for name, chart in [(name, drawn[name]) for name in main if drawn[name]][:3]
    ]
    worst = sorted(
        (row for row in content.rows if row.to_look_at),
        key=lambda row: (-max(row.rank, 0), -len(row.marked), row.label),
    )
    return page_template("group.html.j2", address=quote).render(
        content=content,
        method_names=METHOD_NAMES,
        heads=heads,
        main=main,
        more=[name for name in content.columns if name not in MAIN],
        charts=charts,
        cells=[[cell(content, row, name) for name in content.columns] for row in content.rows],
        notes=[(row, [*verdict_reasons(row), *(note(content, row, name) for name in row.marked)]) for row in worst],
        first=FIRST,
        levels=LEVELS,
        looks=VERDICT_LOOKS,
        usable=USABLE,
        look=LOOK,
        do_not_use=DO_NOT_USE,
        counts={level: sum(row.verdict == level for row in content.rows) for level in LEVELS},
        rule=RULE,
        few=too_few(content),
        most_pictures=MOST_PICTURES,
        pictures=[row for row in sorted(content.rows, key=lambda row: (-row.rank, row.label)) if row.picture],
        script=script,
        digest=digest,
        width=WIDTH,
        height=HEIGHT,
        row_count=len(content.rows),
    )


def too_few(content: GroupContent) -> dict[str, str]:
    """Return, by method, the sentence for methods with too few reconstructions to find outliers.

    Examples
    --------
    >>> too_few(GroupContent("", (GroupRow("sub-01", "", "", {}), GroupRow("sub-02", "", "", {})), {}, {"gsvr": {}}))
    {'gsvr': 'too few to judge (2 of 8)'}
    """
    counts = {method: sum(row.method == method for row in content.rows) for method in content.spreads}
    return {method: f"too few to judge ({count} of {LEAST})" for method, count in counts.items() if count < LEAST}


def long_name(content: GroupContent, name: str) -> str:
    """Return the name of a metric to read: its ``LongName`` where it has one."""
    return content.columns[name].get("LongName") or name


def shown(content: GroupContent, name: str, value: float) -> str:
    """Format a value of a metric with its unit."""
    return format_number(value, content.columns[name].get("Units", ""))


def cell(content: GroupContent, row: GroupRow, name: str) -> dict:
    """Return one cell of the table.

    Returns
    -------
    dict
        ``value`` to sort by (empty where it is not known), ``text``, ``marked`` (an outlier) and ``main`` (in
        ``MAIN``).
    """
    value = row.values.get(name, math.nan)
    known = math.isfinite(value)
    return {
        "value": f"{value:.6g}" if known else "",
        "text": shown(content, name, value) if known else "–",
        "marked": name in row.marked,
        "main": name in MAIN,
    }


def note(content: GroupContent, row: GroupRow, name: str) -> str:
    """Describe why a row is marked.

    Examples
    --------
    >>> content = GroupContent(
    ...     "",
    ...     (),
    ...     {"noise": {"LongName": "Noise", "Units": "fraction"}},
    ...     {"gsvr": {"noise": Spread(0.02, -math.inf, 0.05)}},
    ... )
    >>> note(content, GroupRow("sub-01", "", "", {"noise": 0.1}), "noise")
    'Noise 10.0 % (median 2.0 %)'
    """
    middle = content.spreads[row.method][name].median
    value, median = (shown(content, name, number) for number in (row.values[name], middle))
    return f"{long_name(content, name)} {value} (median {median})"


def verdict_reasons(row: GroupRow) -> tuple[str, ...]:
    """Return the reasons for the verdict on a row; none where the rules of this version give another verdict.

    Examples
    --------
    >>> verdict_reasons(GroupRow("sub-01", "", "", {"ncc_median": 0.99}, verdict="do not use"))
    ()
    """
    verdict = judge(row.values)
    return verdict.reasons if row.verdict == verdict.level else ()


def distribution(content: GroupContent, name: str, method: str) -> dict | None:
    """Compute the positions of the dots of one metric of one method; None without values.

    Returns
    -------
    dict or None
        ``name``, ``low``, ``median``, ``high``, ``left`` and ``right`` end of the axis (texts), ``middle`` (x of the
        median), ``band`` (x from, to of what is not marked), ``dots`` (x, y, number of the row) and ``marks`` (the same
        with a label and a text).
    """
    values = np.array(
        [row.values.get(name, math.nan) if row.method == method else math.nan for row in content.rows], float
    )
    known = np.flatnonzero(np.isfinite(values))
    if not len(known):
        return None
    low, high = float(values[known].min()), float(values[known].max())
    units = content.columns[name].get("Units", "")
    left, right = axis_span(low, high, LEAST_SPAN * least_spread(name, units))

    def place(value: float) -> float:
        return PAD + (WIDTH - 2 * PAD) * ((value - left) / (right - left) if right > left else 0.5)

    spread = content.spreads[method][name]
    band = [
        min(max(place(limit), 0.0), WIDTH) if math.isfinite(limit) else edge
        for limit, edge in ((spread.low, 0.0), (spread.high, float(WIDTH)))
    ]
    x = np.array([place(value) for value in values[known]])
    dots, marks = [], []
    for row, across, up in zip(known, x, swarm(x, HEIGHT / 2 - DOT - 2), strict=True):
        spot = {"x": f"{across:.1f}", "y": f"{HEIGHT / 2 + up:.1f}", "row": int(row)}
        if name in content.rows[row].marked:
            marks.append(spot | {"label": content.rows[row].label, "text": shown(content, name, values[row])})
        else:
            dots.append(spot)
    return {
        "name": name,
        "low": shown(content, name, low),
        "high": shown(content, name, high),
        "left": shown(content, name, left),
        "right": shown(content, name, right),
        "median": shown(content, name, spread.median),
        "middle": f"{place(spread.median):.1f}",
        "band": band,
        "limited": band != [0.0, float(WIDTH)],
        "dots": dots,
        "marks": marks,
    }


def swarm(x: np.ndarray, room: float) -> np.ndarray:
    """Compute heights (px), at most ``room`` from the middle, that keep apart dots at nearly the same ``x``.

    Examples
    --------
    >>> swarm(np.array([10.0, 10.0, 10.0, 60.0]), 40).tolist()
    [0.0, 7.0, -7.0, 0.0]
    """
    bins = np.floor(x / (2 * DOT)).astype(int)
    heights = np.zeros(len(x))
    for each in np.unique(bins):
        inside = np.flatnonzero(bins == each)
        order = np.arange(len(inside))
        steps = (order + 1) // 2 * np.where(order % 2, 1, -1)
        size = min(7.0, room / max(1, abs(steps).max()))
        heights[inside] = steps * size
    return heights + 0.0
