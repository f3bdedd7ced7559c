# SPDX-License-Identifier: Apache-2.0
"""The verdict on a reconstruction: which numbers make it, and what it says."""

import json
import math
import subprocess
import sys

import pytest

from gsbids.qc.metrics import METRIC_DESCRIPTIONS
from gsbids.qc.verdict import DO_NOT_USE, LEVELS, LOOK, RULES, USABLE, judge, verdict_of_fields

GOOD = dict.fromkeys(METRIC_DESCRIPTIONS, 1.0) | {
    rule.metric: rule.limit + (1 if rule.below else -0.05) for rule in RULES
}


def beyond(rule, by=0.01):
    """A value on the bad side of the limit of a rule."""
    return rule.limit - by if rule.below else rule.limit + by


def test_good_numbers_are_usable():
    verdict = judge(GOOD)
    assert (verdict.level, verdict.reasons, verdict.rules) == (USABLE, (), ())
    # The limit itself is good.
    assert judge(GOOD | {rule.metric: rule.limit for rule in RULES if rule.level == DO_NOT_USE}).level != DO_NOT_USE


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: f"{rule.metric} {rule.level}")
def test_every_rule_speaks_of_a_metric_in_a_sentence(rule):
    assert rule.metric in METRIC_DESCRIPTIONS
    assert rule.level in (LOOK, DO_NOT_USE)
    verdict = judge(GOOD | {rule.metric: beyond(rule)})
    assert verdict.level == rule.level
    assert verdict.rules == (rule.metric,)
    (reason,) = verdict.reasons
    assert reason == rule.sentence(beyond(rule))
    assert reason[0].isupper() or reason[0].isdigit()
    assert reason.endswith(".")
    assert "{" not in reason
    # As close to the limit as can be, the two numbers of the sentence are still different.
    near = rule.sentence(beyond(rule, 1e-4))
    assert near != rule.sentence(rule.limit)


@pytest.mark.parametrize("nothing", [math.nan, None])
def test_what_is_not_known_says_nothing(nothing):
    assert judge(GOOD | {"stack_agreement": nothing}).level == USABLE  # a lone stack
    assert judge({key: value for key, value in GOOD.items() if key != "stack_agreement"}).level == USABLE


def test_nothing_known_at_all_is_not_usable():
    for metrics in ({}, dict.fromkeys(METRIC_DESCRIPTIONS, math.nan), dict.fromkeys(METRIC_DESCRIPTIONS)):
        verdict = judge(metrics)
        assert verdict.level == LOOK
        assert len(verdict.reasons) == 1


def test_the_worst_comes_first_and_one_metric_speaks_once():
    verdict = judge({rule.metric: beyond(rule) for rule in sorted(RULES, key=lambda rule: rule.level == DO_NOT_USE)})
    assert verdict.level == DO_NOT_USE
    assert verdict.words == "Do not use"
    worst = [rule.metric for rule in RULES if rule.level == DO_NOT_USE]
    assert list(verdict.rules[: len(worst)]) == worst
    assert len(verdict.reasons) == len(set(verdict.rules)) == len({rule.metric for rule in RULES})


def test_sidecars_keep_the_verdict():
    verdict = judge(GOOD | {"stack_agreement": 0.1})
    found = verdict_of_fields(json.loads(json.dumps(verdict.fields())))
    assert (found.level, found.reasons) == (verdict.level, verdict.reasons)
    for strange in ({}, {"Verdict": "splendid"}, {"Verdict": None}, {"Verdict": ["usable"]}):
        assert verdict_of_fields(strange) is None
    assert verdict_of_fields({"Verdict": "do not use", "VerdictReasons": "x"}).level == DO_NOT_USE
    assert list(LEVELS) == [USABLE, LOOK, DO_NOT_USE]


def test_it_needs_nothing_heavy():
    script = "import sys, gsbids.qc.verdict; print({'numpy', 'torch', 'nipype'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "set()"
