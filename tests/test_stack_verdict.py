# SPDX-License-Identifier: Apache-2.0
"""Rows of stacks at the head of a report: their levels by stated limits, and three reports told apart."""

import re
from dataclasses import replace

import numpy as np
import pytest
from qc_samples import DEPTH, sample_result
from report_samples import made_content
from test_qc_report import Page

from gsbids.qc.exclusions import Exclusion, weight_reason
from gsbids.qc.figures.slices import bad_slices
from gsbids.qc.report.content import StackPanel
from gsbids.qc.report.page import headline, limit_rows, render_report
from gsbids.qc.report.stack_rows import stack_rows, to_look_at
from gsbids.qc.stack_verdict import STACK_LEVELS, STACK_NUMBERS, STACK_RULES, judge_stack, stack_numbers
from gsbids.qc.verdict import LOOK, RULES, USABLE, Verdict

FINE = {"similarity": 0.97, "placing": 0.9, "rejected": 0.1, "shift": 2.0, "turn": 3.0, "mask_lost": 0.05}


def test_limits_of_the_volume_hold_for_its_stacks():
    """Limits of the verdict are not written twice."""
    of_volume = {(rule.metric, rule.level): rule.limit for rule in RULES}
    of_stack = {(rule.metric, rule.level): rule.limit for rule in STACK_RULES}
    assert of_stack["similarity", "bad"] == of_volume["ncc_worst_stack", "do not use"]
    assert of_stack["similarity", LOOK] == of_volume["ncc_worst_stack", LOOK]
    assert of_stack["placing", "bad"] == of_volume["placing_agreement", "do not use"]
    assert of_stack["rejected", LOOK] == of_volume["slices_rejected", LOOK]
    assert {rule.metric for rule in STACK_RULES} <= set(STACK_NUMBERS)
    assert {rule.level for rule in STACK_RULES} <= set(STACK_LEVELS)


@pytest.mark.parametrize(
    ("change", "level", "which"),
    [
        ({}, "fine", ()),
        ({"similarity": 0.93, "rejected": 0.25}, "fine", ()),
        ({"similarity": 0.925}, LOOK, ("similarity",)),
        ({"similarity": 0.91}, "bad", ("similarity",)),
        ({"placing": 0.6}, "bad", ("placing",)),
        ({"rejected": 0.3}, LOOK, ("rejected",)),
        ({"rejected": 0.6, "similarity": 0.925}, "bad", ("rejected", "similarity")),
        ({"shift": 11.0, "turn": 16.0}, LOOK, ("shift", "turn")),
        ({"mask_lost": 0.6}, LOOK, ("mask_lost",)),
        (dict.fromkeys(FINE, np.nan), "fine", ()),
    ],
)
def test_levels_by_limits(change, level, which):
    verdict = judge_stack(FINE | change)
    assert (verdict.level, tuple(verdict.levels)) == (level, which)
    assert len(verdict.reasons) == len(which)


def test_doubtful_masks_and_stacks_that_are_left_out():
    assert judge_stack(FINE, "Its mask holds 3 ml.").level == LOOK
    assert judge_stack(FINE, "Its mask holds 3 ml.").reasons == ("Its mask holds 3 ml.",)
    out = judge_stack({}, left_out="It shows another brain.")
    assert (out.level, out.reasons) == ("left out", ("It shows another brain.",))


def test_numbers_of_stacks():
    count = 3 * DEPTH
    ncc, weight = np.full(count, 0.97), np.ones(count)
    ncc[DEPTH : 2 * DEPTH], weight[:2] = 0.8, 0.0
    shift = np.tile(np.eye(4), (count, 1, 1))
    shift[2 * DEPTH :: 2, 0, 3] = 4.0  # every other slice of the last stack: 2 mm to either side of its mean
    rows = stack_numbers(sample_result(transforms=shift, ncc=ncc, weight=weight))
    assert rows["run-2"]["similarity"] == pytest.approx(0.8)
    assert (rows["run-1"]["rejected_slices"], rows["run-1"]["slices"]) == (2, DEPTH)
    assert rows["run-1"]["rejected"] == pytest.approx(0.25)
    assert rows["run-3"]["shift"] == pytest.approx(2.0, abs=0.05)
    assert rows["run-1"]["shift"] < 0.01
    assert rows["run-2"]["placing"] == pytest.approx(0.95)


def test_rows_say_in_words_what_colours_say():
    panels = [StackPanel("a"), StackPanel("b"), StackPanel("c", doubt="Odd mask."), StackPanel("d")]
    numbers = {"a": FINE | {"slices": 10, "rejected_slices": 1}, "b": FINE | {"similarity": 0.5}, "c": FINE, "d": FINE}
    rows = stack_rows(panels, numbers, {}, [Exclusion("d", "whole stack", "Another brain.")])
    assert [(row.look, row.verdict.level) for row in rows] == [
        ("good", "fine"),
        ("bad", "bad"),
        ("warn", LOOK),
        ("bad", "left out"),
    ]
    assert (rows[1].similarity.text, rows[1].similarity.look, rows[1].rejected.look) == ("0.50", "bad", "")
    assert rows[2].mask.look == "warn"
    assert rows[0].motion.text == "2.0 mm, 3.0°"
    assert rows[0].rejected.text == "1 of 10 (10 %)"
    assert to_look_at(rows) == "b, c"
    assert headline(Verdict(LOOK), rows) == "Look at: b, c"
    assert headline(Verdict(LOOK), rows[:1]) == "Look at it"
    assert headline(Verdict(USABLE), rows[:1]) == "Usable"
    assert headline(Verdict("do not use"), rows) == "Do not use (worst: b, c)"
    assert headline(Verdict(LOOK), rows[1:2] * 5) == "Look at: b, b, b and 2 more"


@pytest.mark.parametrize(
    ("kind", "headline", "levels"),
    [
        ("good", "Usable.", ["Fine", "Fine", "Fine"]),
        ("middling", "Look at: run-3.", ["Fine", "Fine", "Look at it"]),
        ("bad", "Do not use (worst: run-2).", ["Fine", "Bad", "Fine"]),
    ],
)
def test_three_reports_are_told_apart_on_the_first_screen(tmp_path, kind, headline, levels):
    text = render_report(made_content(tmp_path, kind))
    summary = text.partition('id="h-summary"')[2].partition("</section>")[0]
    page = Page(summary)
    assert page.text.startswith(f'class="hidden">Summary {headline}')
    assert re.findall(r'class="pill \w+">([^<]+)<', summary) == levels
    assert len(page.all("img")) == 3 + 3, "three planes, and a picture of every stack"
    assert page.text.count("network, confidence 0.9") == 3
    # What is fine asks for no attention: stacks that are bad stand open, those that are fine do not.
    opened = [a["id"] for tag, a in Page(text).tags if tag == "details" and a.get("class") == "stack" and "open" in a]
    assert opened == (["stack-2"] if kind == "bad" else [])


def test_all_limits_stand_in_the_report(tmp_path):
    page = Page(render_report(made_content(tmp_path, "good")))
    rows = limit_rows()
    assert len(rows) == len(RULES) + len(STACK_RULES)
    assert not any("nan" in row["words"] for row in rows)
    assert all(" ".join(row["words"].split()) in page.text for row in rows)


def test_no_worst_slices_where_none_is_bad(tmp_path):
    content = made_content(tmp_path, "good")
    fine = sample_result(ncc=np.full(3 * DEPTH, 0.95), weight=np.ones(3 * DEPTH))
    fine.save(content.result)
    ids = [a["id"] for a in Page(render_report(content)).all("section")]
    assert "worst" not in ids
    assert "masks" in ids


def test_slivers_are_not_bad_and_weights_have_a_reason():
    count = 3 * DEPTH
    ncc, pixels = np.full(count, 0.97), np.full(count, 400.0)
    ncc[[0, 3, 9]], pixels[0] = (0.2, 0.3, 0.79), 20
    result = sample_result(ncc=ncc, weight=np.ones(count), gain=np.ones(count), residual=np.full(count, 0.02))
    assert np.flatnonzero(bad_slices(result, pixels)).tolist() == [3, 9]
    assert weight_reason(result, 3) == (
        "kept in full (weight 1.00): the weight follows the residual, not the similarity; residual 0.020, 1.0 times "
        "that of the typical slice, similarity 0.30."
    )
    dark = replace(result, gain=np.where(np.arange(count) == 3, 0.2, 1.0), weight=np.full(count, 0.73))
    assert "kept (weight 0.73)" in weight_reason(dark, 3)
    assert "20 % of the brightness of its stack" in weight_reason(dark, 3)
    lost = replace(dark, weight=np.where(np.arange(count) == 3, 0.0, 1.0))
    assert weight_reason(lost, 3).startswith("rejected (weight 0.00): signal lost: 20 %")
