# SPDX-License-Identifier: Apache-2.0
"""The rows of quality metrics in an output folder, and the table of all of them."""

import csv
import json
import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gsbids.atomic import write_atomic
from gsbids.bids.names import METHOD, SR_METHOD, build_name, derivative_path, parse_name, sidecar_path
from gsbids.bids.sink import to_json

#: Names of the group's files, without the extension, at the root of the output.
GROUP_STEM = "group_desc-qc_metrics"

_ROWS = ("sub-*/anat/*_desc-qc_metrics.tsv", "sub-*/ses-*/anat/*_desc-qc_metrics.tsv")
_NAME = re.compile(r"sub-[A-Za-z0-9+]+(_[a-z]+-[A-Za-z0-9+]+)*_[A-Za-z0-9]+")
_COLUMN = re.compile(r"[A-Za-z][A-Za-z0-9_]*")
# What rec- ends with in our names: the method, and the suffix of the source where the name has another.
_REC = re.compile(rf"(?P<source>.*?)(?P<method>{METHOD}|{SR_METHOD})(?P<suffix>[A-Z][A-Za-z0-9]*)?")
_LARGEST = 1 << 20  # bytes: a row has some hundred
_OWN = ("bids_name", "participant_id", "session_id", "outliers")
_NOTHING = ("n/a", "")


@dataclass(frozen=True)
class QcRow:
    """Metrics of one reconstruction.

    Attributes
    ----------
    name : str
        First column of its table, for example ``sub-01_rec-gsvr_res-0p8_desc-preproc_T2w``.
    label : str
        Short name for people: ``sub-01_ses-02``.
    participant, session : str
        Labels without prefix; the session may be empty.
    values : dict of str to float
        NaN where the table has ``n/a``.
    report : str
        Path of its report, relative to the output folder; empty where there is none.
    method : str
        Method by the label of ``rec-``: ``gsvr`` or ``gsr``.
    words : dict of str to str
        Values of columns of text; empty ones are left out.
    """

    name: str
    label: str
    participant: str
    session: str
    values: dict[str, float]
    report: str = ""
    method: str = METHOD
    words: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class QcTable:
    """All rows that were found.

    Attributes
    ----------
    rows : tuple of QcRow
        Sorted by name.
    columns : dict of str to dict
        BIDS description of every metric of any row.
    troubles : tuple of (str, str)
        Description of what is missing or broken, and a report to look at (relative, may be empty).
    word_columns : dict of str to dict
        BIDS description of every column of text; ``Levels`` are the allowed values.
    """

    rows: tuple[QcRow, ...]
    columns: dict[str, dict]
    troubles: tuple[tuple[str, str], ...] = ()
    word_columns: Mapping[str, Mapping] = field(default_factory=dict)


@dataclass(frozen=True)
class GroupSelection:
    """Selection of rows: labels without prefix; empty: all."""

    participants: tuple[str, ...] = ()
    sessions: tuple[str, ...] = ()
    expected: tuple[str, ...] = field(default=())

    def takes(self, entities: Mapping[str, str]) -> bool:
        """Return whether a file with these entities is selected."""
        return (not self.participants or entities.get("sub") in self.participants) and (
            not self.sessions or entities.get("ses") in self.sessions
        )


def collect_rows(
    output_dir: str | Path,
    known: Mapping[str, Mapping[str, Mapping]],
    selection: GroupSelection,
    word_columns: Mapping[str, Mapping] | None = None,
) -> QcTable:
    """Read the rows of all reconstructions below an output folder; images are not read.

    Parameters
    ----------
    output_dir : path
    known : mapping
        BIDS descriptions, by method, of the metrics of this version, in the order of the table. Others are described by
        the JSON beside their row.
    selection : GroupSelection
        ``expected`` are participants that should have a row, as those of the input.
    word_columns : mapping, optional
        BIDS descriptions, with ``Levels``, of columns of text; rows need not have them.

    Returns
    -------
    QcTable
        A file that cannot be used is in ``troubles`` and nowhere else; so are participants and reports without a row.
    """
    root = Path(output_dir)
    rows: dict[str, QcRow] = {}
    found: dict[str, dict]
    found, troubles, word_columns = {}, [], word_columns or {}
    for path in sorted((path for pattern in _ROWS for path in root.glob(pattern)), key=_natural):
        if not selection.takes(parse_name(path.name)):
            continue
        try:
            row, names = _read_row(root, path, word_columns), _descriptions(path)
            if row.name in rows:
                raise ValueError(f"{row.name} has a row already")
        except (OSError, ValueError, csv.Error) as error:
            troubles.append((f"{path.relative_to(root)}: {_words(error)}; the row is left out", _report_of(root, path)))
            continue
        rows[row.name] = row
        for name in row.values:
            found.setdefault(name, names.get(name) or {"LongName": name, "Description": "Not described"})
    columns = _known_columns(
        {method: known[method] for method in known if any(row.method == method for row in rows.values())}, found
    )
    columns |= {name: entry for name, entry in found.items() if name not in columns}
    ordered = tuple(rows[name] for name in sorted(rows, key=_natural))
    told = {row.report for row in ordered} | {report for _, report in troubles}
    broken = {parse_name(words.partition(":")[0])["sub"] for words, _ in troubles}
    have = {row.participant for row in ordered} | broken
    return QcTable(ordered, columns, (*troubles, *_missing(root, told, have, selection)), word_columns)


def _known_columns(known: Mapping[str, Mapping[str, Mapping]], found: Mapping) -> dict[str, dict]:
    """Return the columns that were found, with the description of each method.

    >>> entry = {"LongName": "Noise", "Description": "In the brain"}
    >>> _known_columns({"gsvr": {"noise": entry}, "gsr": {"noise": entry | {"Description": "Anywhere"}}}, {"noise": 0})
    {'noise': {'LongName': 'Noise', 'Description': 'In the brain; with rec-gsr: Anywhere'}}
    """
    columns: dict[str, dict] = {}
    for method, entries in known.items():
        for name in (name for name in entries if name in found):
            entry, other = columns.setdefault(name, dict(entries[name])), entries[name]["Description"]
            if other not in entry["Description"]:
                entry["Description"] += f"; with rec-{method}: {other}"
    return columns


def write_table(output_dir: str | Path, table: QcTable, outliers: Mapping[str, Sequence[str]]) -> Path:
    """Write the TSV of all rows and its JSON.

    Parameters
    ----------
    output_dir : path
    table : QcTable
    outliers : mapping
        Outlying metrics, by the names of the rows.

    Returns
    -------
    Path
        Path of the TSV.
    """
    path = Path(output_dir) / f"{GROUP_STEM}.tsv"
    sessions = any(row.session for row in table.rows)
    lines = [
        [
            "bids_name",
            "participant_id",
            *(["session_id"] if sessions else []),
            *table.columns,
            *table.word_columns,
            "outliers",
        ]
    ]
    for row in table.rows:
        marks = ",".join(outliers.get(row.name, ())) or "n/a"
        session = [f"ses-{row.session}" if row.session else "n/a"] if sessions else []
        numbers = (row.values.get(name, math.nan) for name in table.columns)
        shown = [f"{value:.6g}" if math.isfinite(value) else "n/a" for value in numbers]
        words = (row.words.get(name, "n/a") for name in table.word_columns)
        lines.append([row.name, f"sub-{row.participant}", *session, *shown, *words, marks])
    own = {
        "bids_name": {"LongName": "Name", "Description": "Name of the reconstruction"},
        "participant_id": {"LongName": "Participant", "Description": "Participant"},
        **({"session_id": {"LongName": "Session", "Description": "Session"}} if sessions else {}),
    }
    last = {
        "outliers": {
            "LongName": "Outliers",
            "Description": "Metrics by which the row stands out among the rows "
            "of its method, separated by commas; the rule is on the HTML page beside it",
        }
    }
    write_atomic(sidecar_path(path), to_json(own | table.columns | dict(table.word_columns) | last))
    write_atomic(path, ("\n".join("\t".join(line) for line in lines) + "\n").encode())
    return path


def _read_row(root: Path, path: Path, word_columns: Mapping[str, Mapping]) -> QcRow:
    """Read the one row of a table; raise ValueError with what is wrong with it."""
    if path.stat().st_size > _LARGEST:
        raise ValueError("much too large for one row")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError("not a text file") from None
    lines = [line for line in csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE) if line]
    if len(lines) != 2:
        raise ValueError(f"{max(len(lines) - 1, 0)} rows, one is expected")
    header, cells = lines
    if header[0] != "bids_name" or len(header) != len(cells) or len(set(header)) != len(header):
        raise ValueError(f"the columns ({len(header)}) and the row ({len(cells)} cells) are not a table of metrics")
    strange = [name for name in header if not _COLUMN.fullmatch(name) or name in _OWN[1:]]
    if strange:
        raise ValueError(f"{strange[0]!r} is no name of a metric")
    name, entities = cells[0], parse_name(path.name)
    if not _NAME.fullmatch(name) or any(parse_name(name).get(key) != entities.get(key) for key in ("sub", "ses")):
        raise ValueError(f"the row is of {name!r}, not of sub-{entities.get('sub')}")
    pairs = dict(zip(header[1:], cells[1:], strict=True))
    values = {key: _number(key, cell) for key, cell in pairs.items() if key not in word_columns}
    words = {
        key: _word(key, pairs[key], entry)
        for key, entry in word_columns.items()
        if pairs.get(key, "").strip().lower() not in _NOTHING
    }
    label, report = _label_and_report(name)
    method = _REC.fullmatch(parse_name(name).get("rec", ""))
    return QcRow(
        name,
        label,
        entities["sub"],
        entities.get("ses", ""),
        values,
        report if (root / report).is_file() else "",
        method["method"] if method else METHOD,
        words,
    )


def _word(name: str, text: str, entry: Mapping) -> str:
    if text.strip() not in entry["Levels"]:
        raise ValueError(f"{name} is {text!r}, none of: {', '.join(entry['Levels'])}")
    return text.strip()


def _number(name: str, text: str) -> float:
    if text.strip().lower() in _NOTHING:
        return math.nan
    try:
        value = float(text)
    except ValueError:
        value = math.inf
    if not math.isfinite(value):
        raise ValueError(f"{name} is {text!r}, not a number")
    return value


def _label_and_report(name: str) -> tuple[str, str]:
    """Return short name and report of the reconstruction that a row is about.

    >>> _label_and_report("sub-01_ses-2_rec-gsvr_space-template_res-0p8_desc-preproc_T2w")
    ('sub-01_ses-2', 'sub-01_ses-2.html')
    >>> _label_and_report("sub-01_acq-thin_rec-normgsr_res-0p5_desc-preproc_T1w")[1]
    'sub-01_acq-thin_rec-norm_T1w.html'
    """
    skipped = ("space", "res", "desc", "extension")
    entities = {key: value for key, value in parse_name(name).items() if key not in skipped}
    found = _REC.fullmatch(entities.pop("rec", ""))
    if found and found["source"]:
        entities["rec"] = found["source"]
    try:
        report = derivative_path(entities, "report").name
        build_name({key: value for key, value in entities.items() if key != "suffix"}, entities["suffix"])
    except ValueError as error:
        raise ValueError(f"the row is of {name!r}: {error}") from None
    return report.removesuffix(".html"), report


def _descriptions(path: Path) -> dict:
    """Read the descriptions of columns in the JSON beside a row; empty where it cannot be read."""
    try:
        found = json.loads(sidecar_path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    texts = ("LongName", "Units", "Description")
    return (
        {
            name: {key: str(entry[key]) for key in texts if key in entry}
            for name, entry in found.items()
            if isinstance(entry, dict)
        }
        if isinstance(found, dict)
        else {}
    )


def _report_of(root: Path, path: Path) -> str:
    """Return the report of a row that cannot be read, by the name of its file; empty where there is none."""
    found = _REC.fullmatch(parse_name(path.name).get("rec", ""))
    suffix = (found and found["suffix"]) or "T2w"
    try:
        report = _label_and_report(path.name.removesuffix("metrics.tsv") + suffix)[1]
    except ValueError:
        return ""
    return report if (root / report).is_file() else ""


def _missing(root: Path, told: set[str], have: set[str], selection: GroupSelection) -> Iterator[tuple[str, str]]:
    """Yield reports and participants that have no row.

    Those not in ``told``, and not among those who ``have`` one: a sentence, and the name of the report.
    """
    with_report = set()
    for page in sorted(root.glob("sub-*.html"), key=_natural):
        entities = parse_name(page.name)
        # sub-01_ses-02.html: its last part stands where names have their suffix.
        key, _, value = page.stem.split("_")[-1].partition("-")
        entities |= {key: value}
        if page.name not in told and selection.takes(entities):
            with_report.add(entities.get("sub"))
            yield f"{page.stem}: has a report and no row of metrics, so it may have failed", page.name
    there = {entry.name[4:] for entry in os.scandir(root) if entry.name.startswith("sub-") and entry.is_dir()}
    wanted = set(selection.participants) or there | set(selection.expected)
    for label in sorted(wanted - with_report - have, key=_natural):
        what = (
            "has no row of metrics; it may be running or have failed"
            if label in there
            else ("has no outputs here; it was not run, or into another folder")
        )
        yield f"sub-{label}: {what}", ""


def _natural(name: str | Path) -> list:
    """Return a sorting key that puts sub-2 before sub-10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(name))]


def _words(error: BaseException) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error)).split())
