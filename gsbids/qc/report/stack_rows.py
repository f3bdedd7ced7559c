# SPDX-License-Identifier: Apache-2.0
"""Table of the stacks at the head of a report: mask, similarity, motion, rejected slices and verdict of each."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gsbids.qc.exclusions import Exclusion
from gsbids.qc.figures.tiles import Tile
from gsbids.qc.report.content import StackPanel
from gsbids.qc.stack_verdict import BAD, FINE, LEFT_OUT, StackVerdict, judge_stack
from gsbids.qc.verdict import LOOK, known

#: CSS classes by the level of the verdict on a stack.
STACK_LOOKS = {FINE: "good", LOOK: "warn", BAD: "bad", LEFT_OUT: "bad"}

#: Sources of masks by the mode that made them.
MASK_SOURCES = {
    "derivatives": "given",
    "network": "network",
    "nonzero": "non-zero voxels",
    "otsu": "threshold (Otsu)",
    "none": "none: whole field of view",
}

MOST_NAMES = 3  # stacks that a headline names
UNKNOWN = "not known"

_CONFIDENCE = re.compile(r"\bconfidence (\d(?:\.\d+)?)")


@dataclass(frozen=True)
class Cell:
    """Cell of the table: its text, and its CSS class where it is a reason for the verdict."""

    text: str
    look: str = ""


@dataclass(frozen=True)
class StackRow:
    """Row of one stack.

    Attributes
    ----------
    name : str
        Name of the stack.
    number : int
        Number of the stack from 1, as in the anchors of the page.
    verdict : StackVerdict
    thumbnail : Tile or None
        Middle slice with the outline of the mask.
    mask, similarity, motion, rejected : Cell
    """

    name: str
    number: int
    verdict: StackVerdict
    thumbnail: Tile | None
    mask: Cell
    similarity: Cell
    motion: Cell
    rejected: Cell

    @property
    def look(self) -> str:
        """CSS class of the row."""
        return STACK_LOOKS[self.verdict.level]


def stack_rows(
    panels: Sequence[StackPanel],
    numbers: Mapping[str, Mapping[str, float]],
    thumbnails: Mapping[str, Sequence[Tile]],
    excluded: Sequence[Exclusion],
) -> list[StackRow]:
    """Return the rows of all stacks.

    Parameters
    ----------
    panels : sequence of StackPanel
    numbers : mapping
        Numbers from :func:`gsbids.qc.stack_verdict.stack_numbers`, by the name of the stack.
    thumbnails : mapping
        Pictures by the name of the stack; the middle one is taken.
    excluded : sequence of Exclusion
        Whole stacks that do not contribute to the volume.
    """
    out = {each.stack: each.reason for each in excluded}
    rows = []
    for number, panel in enumerate(panels, start=1):
        own, tiles = numbers.get(panel.name, {}), thumbnails.get(panel.name, ())
        verdict = judge_stack(own, panel.doubt, out.get(panel.name, ""))
        looks = {name: STACK_LOOKS[level] for name, level in verdict.levels.items()}
        rows.append(
            StackRow(
                panel.name,
                number,
                verdict,
                tiles[len(tiles) // 2] if tiles else None,
                Cell(mask_words(panel), looks.get("mask", looks.get("mask_lost", ""))),
                Cell(_number(own, "similarity", "{:.2f}"), looks.get("similarity", looks.get("placing", ""))),
                Cell(
                    f"{_number(own, 'shift', '{:.1f} mm')}, {_number(own, 'turn', '{:.1f}°')}"
                    if known(own.get("shift"))
                    else UNKNOWN,
                    looks.get("shift", looks.get("turn", "")),
                ),
                Cell(rejected_words(own), looks.get("rejected", "")),
            )
        )
    return rows


def mask_words(panel: StackPanel) -> str:
    """Describe the source and the confidence of a mask in few words.

    Examples
    --------
    >>> mask_words(StackPanel("run-1", mask_mode="network", mask_reason="Network (a), confidence 0.93, 84 ml."))
    'network, confidence 0.93'
    >>> mask_words(StackPanel("run-1", mask_reason="Voxels that are not zero (70 % of the stack are)."))
    'Voxels that are not zero (70 % of the stack are)'
    """
    source = MASK_SOURCES.get(panel.mask_mode) or panel.mask_reason.partition(". ")[0].rstrip(".") or UNKNOWN
    found = _CONFIDENCE.search(panel.mask_reason) if panel.mask_mode else None
    return f"{source}, confidence {found[1]}" if found else source


def rejected_words(numbers: Mapping[str, float]) -> str:
    """Describe how many slices of a stack were rejected.

    Examples
    --------
    >>> rejected_words({"slices": 24, "rejected_slices": 3, "rejected": 0.125}), rejected_words({"slices": 0})
    ('3 of 24 (12 %)', 'no slice with brain')
    """
    if "slices" not in numbers:
        return UNKNOWN
    if not numbers["slices"]:
        return "no slice with brain"
    share = f" ({100 * numbers['rejected']:.0f} %)" if numbers["rejected_slices"] else ""
    return f"{numbers['rejected_slices']} of {numbers['slices']}{share}"


def to_look_at(rows: Sequence[StackRow]) -> str:
    """Name the stacks that are not fine, the worst first; empty where all are fine.

    Stacks that were left out do not contribute to the volume and are not named.
    """
    levels = [LOOK, BAD]
    found = [row for row in rows if row.verdict.level in levels]
    names = [row.name for row in sorted(found, key=lambda row: -levels.index(row.verdict.level))]
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _number(numbers: Mapping[str, float], name: str, form: str) -> str:
    """Format a number of a stack; ``UNKNOWN`` where it has none."""
    return form.format(numbers[name]) if known(numbers.get(name)) else UNKNOWN
