# SPDX-License-Identifier: Apache-2.0
"""Made-up reports to look at: ``python tests/report_samples.py FOLDER`` writes a good, a middling and a bad one."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from qc_samples import DEPTH, NAMES, sample_content, sample_result

from gsbids.qc.group import group_spreads, outliers
from gsbids.qc.metrics import METRIC_DESCRIPTIONS
from gsbids.qc.report.content import ReportContent
from gsbids.qc.report.group_page import GroupContent, GroupRow, render_group
from gsbids.qc.report.page import write_report
from gsbids.qc.report.thumbnail import read_thumbnail
from gsbids.qc.verdict import judge

GOOD = {
    "ncc_median": 0.975,
    "ncc_worst_stack": 0.965,
    "stack_agreement": 0.91,
    "placing_agreement": 0.93,
    "slices_rejected": 0.04,
    "not_covered": 0.01,
    "crossing_angle": 89.0,
}


def made_content(folder: Path, kind: str) -> ReportContent:
    """Content of a report that is ``good``, ``middling`` (run-3 rejected in part) or ``bad`` (run-2 misplaced)."""
    count = len(NAMES) * DEPTH
    ncc, weight = np.full(count, 0.97), np.ones(count)
    weight[3] = 0.0
    last, second = np.arange(2 * DEPTH, 3 * DEPTH), np.arange(DEPTH, 2 * DEPTH)
    metrics, agreement = dict(GOOD), [0.97, 0.95, 0.93]
    if kind == "middling":
        weight[last[:3]], ncc[last[:3]] = 0.02, 0.6
        metrics |= {"slices_rejected": 0.27, "ncc_median": 0.955}
    if kind == "bad":
        ncc[second], ncc[last[:2]], weight[second[:5]] = 0.62, 0.5, 0.01
        agreement[1] = 0.41
        metrics |= {"ncc_median": 0.9, "ncc_worst_stack": 0.62, "placing_agreement": 0.41, "stack_agreement": 0.55}
        metrics |= {"slices_rejected": 0.35}
    turn = np.tile(np.eye(4), (count, 1, 1))
    turn[:, :3, 3] = np.random.default_rng(5).normal(0, 0.8, (count, 3))
    base = sample_result(transforms=turn)
    result = replace(base, ncc=ncc, weight=weight, settings=base.settings | {"agreement": agreement})
    folder.mkdir(parents=True, exist_ok=True)
    content = sample_content(folder, warnings=())
    panels = tuple(
        replace(panel, mask_mode="network", mask_reason=f"Network (fetal), confidence {confidence}, 84 ml.")
        for panel, confidence in zip(content.stacks, ("0.95", "0.93", "0.91"), strict=True)
    )
    return replace(
        content,
        title=f"sub-{kind}",
        task=f"sub-{kind}_T2w",
        stacks=panels,
        result=result.save(folder / "result.npz"),
        metrics=content.metrics | metrics,
    )


def made_group(count: int, picture: str = "") -> GroupContent:
    """Content of a page of ``count`` made-up reconstructions, some of which are bad."""
    rng = np.random.default_rng(count)
    values = []
    for n in range(count):
        row = {name: 1 + 0.02 * rng.normal() for name in METRIC_DESCRIPTIONS}
        row |= {"ncc_median": 0.975 + 0.004 * rng.normal(), "stack_agreement": 0.88 + 0.01 * rng.normal()}
        row |= {"ncc_worst_stack": 0.96, "placing_agreement": 0.9, "placing_margin": 0.3, "crossing_angle": 88.0}
        row |= {"slices_rejected": 0.02 * rng.uniform(), "not_covered": 0.01 * rng.uniform()}
        row |= {"stack_agreement": 0.5} if n % 23 == 5 else {"slices_rejected": 0.3} if n % 11 == 3 else {}
        values.append(row)
    spreads = group_spreads(METRIC_DESCRIPTIONS, values)
    rows = [
        GroupRow(
            f"sub-{n + 1:03d}",
            f"sub-{n + 1:03d}_rec-gsvr_T2w",
            f"sub-{n + 1:03d}.html",
            row,
            tuple(outliers(spreads, row)),
            verdict=judge(row).level,
            picture=picture,
        )
        for n, row in enumerate(values)
    ]
    title = f"Made-up data: {count} reconstructions"
    return GroupContent(title, rows, METRIC_DESCRIPTIONS, {"gsvr": spreads}, (), "group_desc-qc_metrics.tsv", "0")


def main(folder: Path) -> None:
    """Write the three reports, and pages of groups of 2, 8 and 200, into a folder."""
    for kind in ("good", "middling", "bad"):
        print(write_report(folder / f"{kind}.html", made_content(folder / kind, kind)))
    for count in (2, 8, 200):
        path = folder / f"group-{count}.html"
        path.write_text(render_group(made_group(count, read_thumbnail(folder / "good.html"))), encoding="utf-8")
        print(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
