# SPDX-License-Identifier: Apache-2.0
"""Which stacks of a reconstruction to look at: limits for the numbers of one stack, beside those of the volume."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from gsbids.qc.displacement import SliceDisplacement, slice_displacement
from gsbids.qc.verdict import DO_NOT_USE, LOOK, RULES, Rule, known
from gsbids.recon.svr.result import SvrResult

FINE, BAD, LEFT_OUT = "fine", "bad", "left out"

#: What each level of a stack means, the best first.
STACK_LEVELS = {
    FINE: "Nothing unusual",
    LOOK: "Look at its mask and its slices",
    BAD: "Its slices do not fit the volume, or most of them were rejected",
    LEFT_OUT: "Not part of the volume",
}


#: Names of the numbers of one stack.
STACK_NUMBERS = {
    "similarity": "Similarity, median",
    "placing": "Agreement with the other stacks at placing",
    "rejected": "Slices rejected",
    "shift": "Shift, mean",
    "turn": "Rotation, mean",
    "mask_lost": "Taken from the mask",
}


def _limit(metric: str, level: str) -> float:
    """Return the limit of the verdict on the whole volume, which holds for its worst stack."""
    return next(rule.limit for rule in RULES if rule.metric == metric and rule.level == level)


#: All limits of the numbers of one stack, and the one place where they stand. What the volume has a limit for in
#: :data:`gsbids.qc.verdict.RULES` has the same one here, for the same reason.
STACK_RULES: tuple[Rule, ...] = (
    # The verdict on the volume names its worst stack by these two.
    Rule(
        "similarity",
        _limit("ncc_worst_stack", DO_NOT_USE),
        True,
        BAD,
        "Similarity {value:.2f}, below {limit:.2f}: the stack lies in a wrong place, or shows another brain.",
    ),
    Rule(
        "similarity",
        _limit("ncc_worst_stack", LOOK),
        True,
        LOOK,
        "Similarity {value:.2f}, below {limit:.2f}: the stack may lie in a wrong place, or be spoilt.",
    ),
    Rule(
        "placing",
        _limit("placing_agreement", DO_NOT_USE),
        True,
        BAD,
        "Agreement with the other stacks {value:.2f}, below {limit:.2f}: the stack lies in a wrong place, or shows "
        "another brain.",
    ),
    # A stack that is mostly rejected adds little: the volume then rests on the others.
    Rule(
        "rejected",
        0.50,
        False,
        BAD,
        "{value:.0%} of the slices rejected, more than {limit:.0%}: the volume rests on the other stacks.",
    ),
    Rule(
        "rejected",
        _limit("slices_rejected", LOOK),
        False,
        LOOK,
        "{value:.0%} of the slices rejected, more than {limit:.0%}: look at what they show.",
    ),
    # The largest motion of the series `robust` of docs/benchmarks.md, in which 20 of 20 volumes came right.
    Rule(
        "shift",
        10.0,
        False,
        LOOK,
        "Mean shift {value:.1f} mm, more than {limit:.0f} mm: beyond the motion that the correction was tested with.",
    ),
    Rule(
        "turn",
        15.0,
        False,
        LOOK,
        "Mean rotation {value:.1f}°, more than {limit:.0f}°: beyond the motion that the correction was tested with.",
    ),
    # Where half of a mask does not move with the head, it held something else than brain.
    Rule(
        "mask_lost",
        0.50,
        False,
        LOOK,
        "{value:.0%} of the mask did not move with the head, more than {limit:.0%}: it held much that is no brain.",
    ),
)


@dataclass(frozen=True)
class StackVerdict:
    """What is thought of one stack.

    Attributes
    ----------
    level : str
        A key of :data:`STACK_LEVELS`.
    reasons : tuple of str
        Sentences, the worst level first.
    levels : dict of str to str
        Level of each number that gave a reason, by its name; ``mask`` where the mask is doubtful.
    """

    level: str = FINE
    reasons: tuple[str, ...] = ()
    levels: Mapping[str, str] = field(default_factory=dict)


def stack_numbers(result: SvrResult, moved: SliceDisplacement | None = None) -> dict[str, dict[str, float]]:
    """Measure every stack of a result.

    Parameters
    ----------
    result : SvrResult
    moved : SliceDisplacement, optional
        Motion of the slices; measured here where it is not given.

    Returns
    -------
    dict of str to dict
        By the name of the stack: ``slices`` and ``rejected_slices`` (counts), ``rejected`` (share), ``similarity``
        (median over slices), ``placing`` (agreement with the other stacks when the slices had been placed), ``shift``
        (mm) and ``turn`` (degrees): means over used slices of the motion from the mean pose, ``mask_lost`` (share).
        NaN where it is not known.
    """
    moved = moved or slice_displacement(result)
    placing, changes = result.settings.get("agreement", []), result.settings.get("mask_changes", {})
    rows = {}
    for n, name in enumerate(result.stack_names):
        mine = result.stack_index == n
        used = mine & ~result.rejected
        ncc = result.ncc[mine & np.isfinite(result.ncc)]
        rows[name] = {
            "slices": int(mine.sum()),
            "rejected_slices": int((mine & result.rejected).sum()),
            "rejected": float(result.rejected[mine].mean()) if mine.any() else np.nan,
            "similarity": float(np.median(ncc)) if ncc.size else np.nan,
            "placing": np.nan if n >= len(placing) or placing[n] is None else float(placing[n]),
            "shift": float(np.linalg.norm(moved.shift[used], axis=1).mean()) if used.any() else np.nan,
            "turn": float(np.linalg.norm(moved.turn[used], axis=1).mean()) if used.any() else np.nan,
            "mask_lost": float(changes.get(name, {}).get("lost", np.nan)),
        }
    return rows


def judge_stack(numbers: Mapping[str, float], doubt: str = "", left_out: str = "") -> StackVerdict:
    """Judge one stack by :data:`STACK_RULES`.

    Parameters
    ----------
    numbers : mapping
        From :func:`stack_numbers`; a rule on what is missing or NaN is silent.
    doubt : str
        Why its mask is doubtful, in sentences; empty where it is not.
    left_out : str
        Why it has no part in the volume; empty where it has one.

    Examples
    --------
    >>> judge_stack({"similarity": 0.97, "rejected": 0.1}).level
    'fine'
    >>> judge_stack({"similarity": 0.97, "rejected": 0.3}).reasons
    ('30% of the slices rejected, more than 25%: look at what they show.',)
    >>> judge_stack({"similarity": 0.9}, doubt="Its mask holds 3 ml.").level
    'bad'
    """
    if left_out:
        return StackVerdict(LEFT_OUT, (left_out,), {"mask": LEFT_OUT} if doubt else {})
    order = list(STACK_LEVELS)[::-1]
    spoke: dict[str, Rule] = {}
    for rule in sorted(STACK_RULES, key=lambda rule: order.index(rule.level)):
        if known(numbers.get(rule.metric)) and rule.holds(numbers[rule.metric]):
            spoke.setdefault(rule.metric, rule)
    levels = {name: rule.level for name, rule in spoke.items()} | ({"mask": LOOK} if doubt else {})
    reasons = tuple(rule.sentence(numbers[name]) for name, rule in spoke.items())
    level = min(levels.values(), key=order.index, default=FINE)
    return StackVerdict(level, (*reasons, *([doubt] if doubt else [])), levels)
