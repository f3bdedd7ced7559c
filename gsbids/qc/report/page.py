# SPDX-License-Identifier: Apache-2.0
"""The report of one reconstruction: one HTML file that asks nothing of the network."""

import base64
import hashlib
import logging
import math
from dataclasses import dataclass, field
from pathlib import Path

from gsbids.atomic import write_atomic
from gsbids.qc.metrics import METRIC_DESCRIPTIONS
from gsbids.qc.metrics_sr import SR_METRIC_DESCRIPTIONS
from gsbids.qc.report.crashes import crash_summary
from gsbids.qc.report.draw import Figures, draw_figures
from gsbids.qc.report.methods import number_citations
from gsbids.qc.report.usage import StepUsage, usage_rows, usage_total
from gsbids.qc.verdict import LEVELS, USABLE, Verdict, judge

LOGGER = logging.getLogger("gsbids.qc")
TEMPLATES = Path(__file__).parent / "templates"


@dataclass(frozen=True)
class StackPanel:
    """Files of one stack, all on the conformed grid (slices along the third axis).

    Attributes
    ----------
    name : str
        As in ``SvrResult.stack_names``.
    image : Path, optional
        Conformed input.
    n4, mask, simulated : Path, optional
        Corrected image, brain mask, slices simulated from the reconstruction.
    mask_reason : str
        Where the mask comes from, in words.
    doubt : str
        Why the mask is doubtful and what follows, in sentences; empty where it is not.
    slice_times : tuple of float, optional
        Acquisition time (s) of every slice by its index, where ``SliceTiming`` is known.
    facts : tuple of (label, value)
        More about the stack, for example its file name, spacing and thickness.
    """

    name: str
    image: Path | None = None
    n4: Path | None = None
    mask: Path | None = None
    simulated: Path | None = None
    mask_reason: str = ""
    doubt: str = ""
    slice_times: tuple[float, ...] | None = None
    facts: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class SrPanel:
    """What the report of a super-resolved volume shows besides it.

    Attributes
    ----------
    before : Path, optional
        The volume that was given.
    interpolated : Path, optional
        Cubic B-spline of it, on the grid of the super-resolved volume.
    chosen : tuple of (label, value)
        Settings of the fit.
    history : dict of str to list
        Columns ``member``, ``iteration`` and ``loss``.
    """

    before: Path | None = None
    interpolated: Path | None = None
    chosen: tuple[tuple[str, str], ...] = ()
    history: dict = field(default_factory=dict)


@dataclass(frozen=True)
class ReportContent:
    """Everything a report shows; what is missing is left out and said so.

    Attributes
    ----------
    title : str
        Heading, for example ``sub-01 ses-01``.
    task : str
        Name of the task (``sub-01_ses-01_T2w``).
    summary : tuple of (label, value)
    warnings : tuple of str
    volume, unmasked, mask : Path, optional
        Reconstructed volume without and with its surroundings, and its brain mask (one grid).
    coverage, uncertainty : Path, optional
        Slices that saw each voxel, and the predicted standard deviation of its error, on the same grid.
    template_xfm : Path, optional
        ITK transform from the scanner to the space of the volume, where that is another one.
    orientation : str
        What left, right, front and head refer to.
    stacks : tuple of StackPanel
    super_resolution : SrPanel, optional
        Of a super-resolved volume, which has neither stacks nor motion.
    result : Path, optional
        File of :meth:`gsbids.recon.svr.result.SvrResult.save`.
    registration : dict, optional
        Fields of ``StackRegistration``: ``template`` (index of a stack), and by stack ``similarity_before``,
        ``similarity_after``, ``accepted``, ``reason``.
    metrics : dict, optional
        Row of :func:`gsbids.qc.metrics.reconstruction_metrics`.
    methods : tuple of str
        Paragraphs with ``[@key]`` citations (:func:`gsbids.qc.report.methods.methods_paragraphs`).
    versions : dict of str to str
    crashes : tuple of str
        Text of every crash of this subject.
    run : dict of str to str
        Command, seed and the like.
    usage : tuple of StepUsage
        What the steps took.
    """

    title: str
    task: str
    summary: tuple[tuple[str, str], ...] = ()
    warnings: tuple[str, ...] = ()
    volume: Path | None = None
    unmasked: Path | None = None
    mask: Path | None = None
    coverage: Path | None = None
    uncertainty: Path | None = None
    template_xfm: Path | None = None
    orientation: str = "Letters are directions of the scanner (for a fetus, those of the mother)."
    stacks: tuple[StackPanel, ...] = ()
    super_resolution: SrPanel | None = None
    result: Path | None = None
    registration: dict | None = None
    metrics: dict | None = None
    methods: tuple[str, ...] = ()
    versions: dict[str, str] = field(default_factory=dict)
    crashes: tuple[str, ...] = ()
    run: dict[str, str] = field(default_factory=dict)
    usage: tuple[StepUsage, ...] = ()


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
        ``path``. A figure whose files are missing or unreadable is replaced by a sentence; the rest stands.
    """
    path = Path(path)
    page = render_report(content)
    write_atomic(path, page.encode(errors="replace"))
    return path


def render_report(content: ReportContent) -> str:
    """The page as text; everything that is quoted in it is escaped."""
    figures = draw_figures(content)
    for note in figures.notes:
        LOGGER.warning("%s: %s", content.task, note)
    pieces, references = number_citations(content.methods)
    script = (TEMPLATES / "report.js").read_text(encoding="utf-8")
    # The policy of the page lets this script run and no other.
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return page_template("report.html.j2", number=format_number).render(
        content=content,
        figures=figures,
        methods=pieces,
        references=references,
        state=state(content),
        verdict=verdict_of(content),
        meaning=LEVELS,
        looks=VERDICT_LOOKS,
        missing=_missing(content, figures),
        highlights=highlights(content.metrics),
        metric_rows=metric_rows(content.metrics),
        registration=registration_rows(content),
        script=script,
        digest=digest,
        usage=usage_rows(content.usage),
        usage_total=usage_total(content.usage),
        crashes=[(*crash_summary(text), text) for text in content.crashes],
    )


def page_template(name: str, **filters):
    """A template of the folder beside this file, by jinja2: what it quotes is escaped, what it lacks is an error."""
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


#: Classes of the page by the level of a verdict; words say the same.
VERDICT_LOOKS = dict(zip(LEVELS, ("good", "warn", "bad"), strict=True))


def verdict_of(content: ReportContent) -> Verdict | None:
    """The verdict on the volume of a report, by the rules of this version; None where there is nothing to judge.

    A super-resolved volume has none. A run that failed has no good one, a volume without metrics neither.
    """
    failed = content.crashes or content.volume is None
    if content.super_resolution is not None or (failed and not content.metrics):
        return None
    verdict = judge(content.metrics or {})
    return None if failed and verdict.level == USABLE else verdict


def state(content: ReportContent) -> tuple[str, str]:
    """(class, words) of the badge that tells how the run ended; no words where the verdict says enough."""
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
    """A value and its unit for reading.

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
    """The few numbers that head the report: (name, value)."""
    shown = {name: _KNOWN[name] for name in _HIGHLIGHTS if metrics and name in metrics}
    if metrics and "hidden_gain" in metrics:
        # Super-resolution does without a mask, and its fast mode without a trial.
        shown = {name: known for name, known in shown.items() if math.isfinite(metrics[name])}
    return [(known["LongName"], format_number(metrics[name], known["Units"])) for name, known in shown.items()]


def metric_rows(metrics: dict | None) -> list[tuple[str, str, str]]:
    """Every metric: (name, value, description); unknown ones under their own key."""
    rows = []
    for name, value in (metrics or {}).items():
        known = _KNOWN.get(name, {"LongName": name, "Units": "arbitrary", "Description": ""})
        shown = str(value) if isinstance(value, str) else format_number(value, known["Units"])
        rows.append((known["LongName"], shown, known["Description"]))
    return rows


def registration_rows(content: ReportContent) -> dict[str, str]:
    """What became of every stack in the co-registration, in words, by the name of the stack."""
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


def _missing(content: ReportContent, figures: Figures) -> list[str]:
    """Parts of the report that could not be made."""
    if content.super_resolution is not None:
        parts = (
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
