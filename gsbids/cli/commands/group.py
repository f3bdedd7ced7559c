# SPDX-License-Identifier: Apache-2.0
"""``gsbids BIDS_DIR OUT_DIR group``: one table and one page of all reconstructions; nothing is computed again."""

import argparse
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gsbids import __version__
from gsbids.cli.plan import check_place
from gsbids.errors import InputError

if TYPE_CHECKING:
    from gsbids.bids.group import QcTable
    from gsbids.qc.report.group_page import GroupContent, GroupRow

LOGGER = logging.getLogger("gsbids.cli")


def run(args: argparse.Namespace) -> int:
    """Gather the rows of metrics below the output folder, and write table and page.

    Images are not looked at, and of the input only the names of its subjects' folders.

    Returns
    -------
    int
        0, also where rows are missing or broken: they are named.

    Raises
    ------
    gsbids.errors.InputError
        Folders that cannot be used, or no row at all.
    """
    for option in ("reports_only", "boilerplate_only"):
        if getattr(args, option):
            raise InputError(f"--{option.replace('_', '-')}: belongs to the participant level; leave it out with group")
    bids_dir, output_dir = args.bids_dir.resolve(), args.output_dir.resolve()
    _check(bids_dir, output_dir)
    from gsbids.atomic import write_atomic
    from gsbids.bids.description import check_folders
    from gsbids.bids.group import GROUP_STEM, GroupSelection, collect_rows, write_table
    from gsbids.bids.names import METHOD, SR_METHOD
    from gsbids.qc.metrics import METRIC_DESCRIPTIONS
    from gsbids.qc.metrics_sr import SR_METRIC_DESCRIPTIONS
    from gsbids.qc.report.group_page import render_group
    from gsbids.qc.verdict import VERDICT_COLUMN

    check_folders(bids_dir, output_dir)
    participants, sessions = tuple(dict.fromkeys(args.participant_label)), tuple(dict.fromkeys(args.session_label))
    expected = () if participants else _subjects(bids_dir)
    known = {METHOD: METRIC_DESCRIPTIONS, SR_METHOD: SR_METRIC_DESCRIPTIONS}
    table = collect_rows(output_dir, known, GroupSelection(participants, sessions, expected), VERDICT_COLUMN)
    for words, _ in table.troubles:
        LOGGER.warning("%s", words)
    if not table.rows:
        raise InputError(_nothing_found(output_dir, participants, sessions))
    content = _content(table, known, bids_dir, output_dir)
    marks = {row.name: list(row.marked) for row in content.rows}
    page = output_dir / f"{GROUP_STEM}.html"
    try:
        tsv = write_table(output_dir, table, marks)
        write_atomic(page, render_group(content).encode(errors="replace"))
    except OSError as error:
        raise InputError(f"{output_dir}: cannot be written to ({error.strerror}); make it writable") from error
    _tell(content.rows, table.troubles)
    LOGGER.info("table in %s, page in %s", tsv, page)
    return 0


def _nothing_found(output_dir: Path, participants: tuple[str, ...], sessions: tuple[str, ...]) -> str:
    """Return a line that there are no metrics, and of which participants."""
    chosen = "".join(
        f" of {prefix}-{f', {prefix}-'.join(labels)}"
        for prefix, labels in (("sub", participants), ("ses", sessions))
        if labels
    )
    return (
        f"{output_dir}: no metrics{chosen} (sub-*/[ses-*/]anat/*_desc-qc_metrics.tsv) that can be used; run the "
        "participant level into this folder first"
    )


def _tell(rows: "Sequence[GroupRow]", troubles: tuple) -> None:
    """Log how many reconstructions there are, and which are not to be used."""
    from gsbids.qc.verdict import DO_NOT_USE

    if spoilt := [row.label for row in rows if row.verdict == DO_NOT_USE]:
        LOGGER.warning("%d not to be used, as their verdict says: %s", len(spoilt), ", ".join(spoilt))
    marked = sum(bool(row.marked) for row in rows)
    LOGGER.info("%d reconstructions, %d marked, %d missing or broken", len(rows), marked, len(troubles))


def _content(table: "QcTable", known: dict, bids_dir: Path, output_dir: Path) -> "GroupContent":
    """Gather what the page shows: the rows, with their marks among their own kind and their pictures."""
    from gsbids.bids.description import dataset_name
    from gsbids.bids.group import GROUP_STEM
    from gsbids.qc.group import group_spreads, outliers
    from gsbids.qc.report.group_page import GroupContent, GroupRow
    from gsbids.qc.report.thumbnail import read_thumbnail

    spreads = {
        method: group_spreads(table.columns, [row.values for row in table.rows if row.method == method])
        for method in known
        if any(row.method == method for row in table.rows)
    }
    rows = [
        GroupRow(
            row.label,
            row.name,
            row.report,
            row.values,
            tuple(outliers(spreads[row.method], row.values)),
            row.method,
            row.words.get("verdict", ""),
            read_thumbnail(output_dir / row.report) if row.report else "",
        )
        for row in table.rows
    ]
    count = f"{len(rows)} reconstruction{'s' if len(rows) > 1 else ''}"
    return GroupContent(
        f"{dataset_name(bids_dir)}: {count}",
        rows,
        table.columns,
        spreads,
        table.troubles,
        f"{GROUP_STEM}.tsv",
        __version__,
    )


def _check(bids_dir: Path, output_dir: Path) -> None:
    for name, folder, way in (
        ("bids_dir", bids_dir, "give the root folder of the BIDS data set"),
        ("output_dir", output_dir, "give the folder that the participant level wrote to"),
    ):
        if not folder.is_dir():
            raise InputError(f"{name} {folder}: there is no such folder; {way}")
    check_place("output_dir", output_dir, bids_dir, "give the folder that the participant level wrote to")


def _subjects(bids_dir: Path) -> tuple[str, ...]:
    return tuple(
        sorted(entry.name[4:] for entry in os.scandir(bids_dir) if entry.name.startswith("sub-") and entry.is_dir())
    )
