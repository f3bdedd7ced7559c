# SPDX-License-Identifier: Apache-2.0
"""Verdict on a reconstruction from its metrics: one level, and the reasons for it in sentences."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

USABLE, LOOK, DO_NOT_USE = "usable", "look at it", "do not use"

#: What each level means, the best first.
LEVELS = {
    USABLE: "None of the numbers speaks against the volume. This does not prove that it is right",
    LOOK: "Something is unusual: look at the volume and at its report before you use it",
    DO_NOT_USE: "The numbers are those of reconstructions that went wrong: the volume should not be used",
}

#: BIDS description of the column of the QC table that holds the level.
VERDICT_COLUMN = {
    "verdict": {
        "LongName": "Verdict",
        "Description": "Whether the volume may be used, as the metrics of its row say; the reasons "
        "are in the sidecar of the volume and in the report",
        "Levels": LEVELS,
    }
}

NOTHING_KNOWN = "None of the numbers that the verdict rests on could be computed, so nothing speaks for the volume."


@dataclass(frozen=True)
class Rule:
    """A limit of one metric, and what it means to be beyond it.

    Attributes
    ----------
    metric : str
        A key of :data:`gsbids.qc.metrics.METRIC_DESCRIPTIONS`.
    limit : float
    below : bool
        Whether values below the limit are bad; else values above it are. The limit itself is good.
    level : str
        ``"do not use"`` or ``"look at it"``.
    words : str
        Sentence with fields for ``value`` and ``limit``.
    """

    metric: str
    limit: float
    below: bool
    level: str
    words: str

    def holds(self, value: float | None) -> bool:
        """Return whether a value is on the bad side of the limit; an unknown one never is."""
        if not known(value):
            return False
        return value < self.limit if self.below else value > self.limit

    def sentence(self, value: float) -> str:
        """Return the sentence of the rule, with the value that it holds for.

        The value has two digits, and is rounded away from the limit where it would not be beyond it otherwise: no
        sentence says that 0.90 is below 0.90.

        Examples
        --------
        >>> rule = Rule("ncc_median", 0.9, True, "do not use", "{value:.2f} is below {limit:.2f}.")
        >>> rule.sentence(0.858), rule.sentence(0.8999)
        ('0.86 is below 0.90.', '0.89 is below 0.90.')
        """
        shown = round(value, 2)
        if self.holds(value) and not self.holds(shown):
            shown = round(shown + (-0.01 if self.below else 0.01), 2)
        return self.words.format(value=shown, limit=self.limit)


#: All rules, and the one place where they stand. Limits: docs/benchmarks.md, "Placing, and the verdict".
RULES: tuple[Rule, ...] = (
    Rule(
        "ncc_median",
        0.93,
        True,
        DO_NOT_USE,
        "The typical slice resembles what the volume predicts for it by only {value:.2f} (correlation); below "
        "{limit:.2f} the volume does not explain the slices.",
    ),
    Rule(
        "stack_agreement",
        0.68,
        True,
        DO_NOT_USE,
        "After motion correction the stacks resemble one another by only {value:.2f} (correlation); below {limit:.2f} "
        "many slices lie in wrong places.",
    ),
    Rule(
        "placing_agreement",
        0.65,
        True,
        DO_NOT_USE,
        "When the slices had been placed, the brain of the worst stack resembled the others by only {value:.2f} "
        "(correlation); below {limit:.2f} it lies in a wrong place, or shows another brain.",
    ),
    Rule(
        "ncc_worst_stack",
        0.92,
        True,
        DO_NOT_USE,
        "The slices of the worst stack resemble what the volume predicts for them by only {value:.2f} (correlation); "
        "below {limit:.2f} it lies in a wrong place, or shows another brain.",
    ),
    Rule(
        "ncc_median",
        0.96,
        True,
        LOOK,
        "The typical slice resembles what the volume predicts for it by only {value:.2f} (correlation); volumes that "
        "came right have mostly more than {limit:.2f}.",
    ),
    Rule(
        "stack_agreement",
        0.80,
        True,
        LOOK,
        "After motion correction the stacks resemble one another by only {value:.2f} (correlation); below {limit:.2f} "
        "some slices may lie in wrong places.",
    ),
    Rule(
        "ncc_worst_stack",
        0.93,
        True,
        LOOK,
        "The slices of the worst stack resemble what the volume predicts for them by only {value:.2f} (correlation); "
        "below {limit:.2f} the stack may lie in a wrong place, or be spoilt.",
    ),
    Rule(
        "placing_margin",
        0.03,
        True,
        LOOK,
        "A stack fits nearly as well in another place: the stacks agree there by {value:.2f} less; with less than "
        "{limit:.2f} it may have been put into the wrong one.",
    ),
    Rule(
        "crossing_angle",
        30.0,
        True,
        LOOK,
        "The stacks are nearly parallel (they cross by at most {value:.2f} degrees): detail across their slices is "
        "not resolved.",
    ),
    Rule(
        "slices_rejected",
        0.25,
        False,
        LOOK,
        "{value:.0%} of the slices were rejected; with more than {limit:.0%}, parts of the brain may rest on few "
        "slices.",
    ),
    Rule(
        "not_covered",
        0.10,
        False,
        LOOK,
        "{value:.0%} of the brain was seen by no slice that was used; its values come from their surroundings.",
    ),
)


@dataclass(frozen=True)
class Verdict:
    """Level and reasons, as :func:`judge` returns them.

    Attributes
    ----------
    level : str
        A key of :data:`LEVELS`.
    reasons : tuple of str
        Sentences, the worst level first; none where the volume is usable.
    rules : tuple of str
        Metrics that gave the reasons, in their order.
    """

    level: str
    reasons: tuple[str, ...] = ()
    rules: tuple[str, ...] = ()

    @property
    def words(self) -> str:
        """Level as the beginning of a sentence: ``Do not use``."""
        return self.level.capitalize()

    def fields(self) -> dict:
        """Return the verdict as fields of a JSON sidecar."""
        return {"Verdict": self.level, "VerdictReasons": list(self.reasons)}


def judge(metrics: Mapping[str, float | None]) -> Verdict:
    """Return the verdict on a reconstruction.

    Parameters
    ----------
    metrics : mapping
        Row of :func:`gsbids.qc.metrics.reconstruction_metrics`. Rules of a metric that is missing, None or NaN, as the
        agreement of a lone stack, are not applied.

    Returns
    -------
    Verdict
        Worst level of all rules that hold. Of two rules of one metric only the worse one counts. Where no rule can be
        applied, the level is "look at it".

    Examples
    --------
    >>> judge({"ncc_median": 0.97, "stack_agreement": float("nan")}).level
    'usable'
    >>> judge({"ncc_median": 0.97, "stack_agreement": 0.5, "slices_rejected": 0.3}).rules
    ('stack_agreement', 'slices_rejected')
    """
    if not any(known(metrics.get(rule.metric)) for rule in RULES):
        return Verdict(LOOK, (NOTHING_KNOWN,))
    order = list(LEVELS)[::-1]
    spoke: dict[str, Rule] = {}
    for rule in sorted(RULES, key=lambda rule: order.index(rule.level)):
        if rule.holds(metrics.get(rule.metric)):
            spoke.setdefault(rule.metric, rule)
    if not spoke:
        return Verdict(USABLE)
    worst = next(iter(spoke.values())).level
    return Verdict(worst, tuple(rule.sentence(metrics[name]) for name, rule in spoke.items()), tuple(spoke))  # type: ignore[arg-type]


def verdict_of_fields(fields: Mapping[str, object]) -> Verdict | None:
    """Return the verdict that a sidecar holds; None where it holds no valid one.

    Examples
    --------
    >>> verdict_of_fields(Verdict("look at it", ("Few slices are left.",)).fields())
    Verdict(level='look at it', reasons=('Few slices are left.',), rules=())
    """
    level, reasons = fields.get("Verdict"), fields.get("VerdictReasons")
    if not isinstance(level, str) or level not in LEVELS:
        return None
    return Verdict(level, tuple(map(str, reasons)) if isinstance(reasons, list) else ())


def known(value: float | None) -> TypeGuard[float]:
    """Return whether a value is a number and not NaN."""
    return isinstance(value, int | float) and not math.isnan(value)
