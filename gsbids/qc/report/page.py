# SPDX-License-Identifier: Apache-2.0
"""Report of one reconstruction: one HTML file that loads nothing from the network."""

import base64
import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gsbids.atomic import write_atomic
from gsbids.qc.figures.tiles import heat_colours
from gsbids.qc.metrics import METRIC_DESCRIPTIONS
from gsbids.qc.report.content import ReportContent
from gsbids.qc.report.crashes import crash_summary
from gsbids.qc.report.draw import Figures, draw_figures
from gsbids.qc.report.methods import number_citations
from gsbids.qc.report.stack_rows import STACK_LOOKS, StackRow, stack_rows, to_look_at
from gsbids.qc.report.thumbnail import thumbnail
from gsbids.qc.report.usage import usage_rows, usage_total
from gsbids.qc.report.words import (
    format_number,
    highlights,
    metric_rows,
    registration_rows,
    template_highlight,
)
from gsbids.qc.stack_verdict import STACK_NUMBERS, STACK_RULES
from gsbids.qc.verdict import DO_NOT_USE, LEVELS, LOOK, RULES, USABLE, Verdict, judge

if TYPE_CHECKING:
    from jinja2 import Template

LOGGER = logging.getLogger("gsbids.qc")
TEMPLATES = Path(__file__).parent / "templates"


def write_report(path: str | Path, content: ReportContent) -> Path:
    """Write the report under a temporary name, then rename it.

    Parameters
    ----------
    path : path-like
        The ``.html`` file; its folder exists.
    content : ReportContent

    Returns
    -------
    pathlib.Path
        ``path``. Figures whose files are missing or unreadable are replaced by a sentence each.
    """
    path = Path(path)
    page = render_report(content)
    write_atomic(path, page.encode(errors="replace"))
    return path


def render_report(content: ReportContent) -> str:
    """Return the report as HTML; all text in it is escaped."""
    figures = draw_figures(content)
    for note in figures.notes:
        LOGGER.warning("%s: %s", content.task, note)
    pieces, references = number_citations(content.methods)
    script, verdict = page_script(), verdict_of(content)
    rows = stack_rows(content.stacks, figures.numbers, figures.masks, figures.excluded_stacks)
    # The policy of the page lets this script run and no other.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return page_template("report.html.j2", number=format_number).render(
        content=content,
        kind="reconstruction" if content.super_resolution is None else "super-resolution",
        figures=figures,
        methods=pieces,
        references=references,
        state=state(content),
        verdict=verdict,
        headline=headline(verdict, rows),
        stack_rows=rows,
        warned=bool(content.warnings or figures.notes or any(stack.doubt for stack in content.stacks)),
        limits=limit_rows(),
        meaning=LEVELS,
        looks=VERDICT_LOOKS,
        missing=_missing(content, figures),
        highlights=[*highlights(content.metrics), *template_highlight(content)],
        metric_rows=metric_rows(content.metrics),
        registration=registration_rows(content),
        script=script,
        thumbnail=thumbnail(figures.planes[0].png) if figures.planes else "",
        colours="".join(f"{value:02x}" for value in heat_colours().ravel()),
        digest=digest,
        usage=usage_rows(content.usage),
        usage_total=usage_total(content.usage),
        crashes=[(*crash_summary(text), text) for text in content.crashes],
    )


def page_script() -> str:
    """Read the script of a report: that of the sliders and that of the viewer, as one."""
    return "".join((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.js", "viewer.js"))


def page_template(name: str, **filters: Callable[..., str]) -> "Template":
    """Load a jinja2 template of the folder beside this file.

    Values are escaped, and undefined ones are an error.

    Parameters
    ----------
    name : str
        Name of the file.
    **filters : callable
        Filters for the template, by name.
    """
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters
    return environment.get_template(name)


#: CSS classes by the level of a verdict.
VERDICT_LOOKS = dict(zip(LEVELS, ("good", "warn", "bad"), strict=True))


def verdict_of(content: ReportContent) -> Verdict | None:
    """Return the verdict on the volume of a report, by the rules of this version; None where there is none.

    A super-resolved volume has no verdict. A run that crashed or has no volume is never judged usable: it has no
    verdict where its metrics would say so, or where it has no metrics.
    """
    failed = content.crashes or content.volume is None
    if content.super_resolution is not None or (failed and not content.metrics):
        return None
    verdict = judge(content.metrics or {})
    return None if failed and verdict.level == USABLE else verdict


def headline(verdict: Verdict | None, rows: Sequence[StackRow]) -> str:
    """Return the verdict in a few words, with the stacks to look at; empty without a verdict."""
    if verdict is None:
        return ""
    names = to_look_at(rows)
    if verdict.level == LOOK and names:
        return f"Look at: {names}"
    if verdict.level == DO_NOT_USE and names:
        return f"{verdict.words} (worst: {names})"
    return f"{verdict.words}, but look at: {names}" if verdict.level == USABLE and names else verdict.words


def limit_rows() -> list[dict[str, str]]:
    """Return the table of all limits of the verdicts on the volume and on its stacks.

    Returns
    -------
    list of dict
        Every row: ``of`` (``volume`` or ``stack``), ``number`` (name of the metric), ``limit``, ``level``, ``look``
        (CSS class) and ``words``.
    """
    rows = []
    for of, rules, looks in (("volume", RULES, VERDICT_LOOKS), ("stack", STACK_RULES, STACK_LOOKS)):
        for rule in rules:
            known = METRIC_DESCRIPTIONS.get(rule.metric, {"LongName": STACK_NUMBERS.get(rule.metric, rule.metric)})
            rows.append(
                {
                    "of": of,
                    "number": known["LongName"],
                    "limit": f"{'below' if rule.below else 'above'} {rule.limit:g}",
                    "level": rule.level,
                    "look": looks[rule.level],
                    "words": rule.words.format(value=math.nan, limit=rule.limit).replace("nan", "x"),
                }
            )
    return rows


def state(content: ReportContent) -> tuple[str, str]:
    """Return the badge on the outcome of the run: its CSS class, and its words (empty where the verdict suffices)."""
    if content.crashes:
        count = len(content.crashes)
        return "bad", f"Failed: {count} step{'s' if count > 1 else ''} ended in an error"
    if content.volume is None:
        return "bad", "No volume was reconstructed"
    if doubtful := sum(bool(stack.doubt) for stack in content.stacks):
        return "bad", f"Finished, but {doubtful} mask{'s are' if doubtful > 1 else ' is'} doubtful"
    if content.warnings:
        count = len(content.warnings)
        return "warn", f"Finished with {count} warning{'s' if count > 1 else ''}"
    verdict = verdict_of(content)
    return "good", "Finished without warnings" if verdict is None or verdict.level == USABLE else ""


def _missing(content: ReportContent, figures: Figures) -> list[str]:
    """List the parts of the report that could not be made."""
    if content.super_resolution is not None:
        parts: tuple[tuple[str, object], ...] = (
            ("the volume", figures.planes),
            ("before and after", figures.comparison),
            ("the spectrum", figures.spectrum),
            ("metrics", content.metrics),
        )
    else:
        parts = (
            ("the reconstruction", figures.planes),
            ("the stacks", figures.stacks),
            ("motion", figures.motion),
            ("slice weights and similarity", figures.heat),
            ("convergence", figures.convergence),
            ("metrics", content.metrics),
        )
    return [name for name, made in parts if not made]
