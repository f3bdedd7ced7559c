# SPDX-License-Identifier: Apache-2.0
"""Made-up reports to look at: ``python tests/report_samples.py FOLDER`` writes a good, a middling and a bad one."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from qc_samples import DEPTH, NAMES, sample_content, sample_result

from gsbids.qc.report.content import ReportContent
from gsbids.qc.report.page import write_report

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


def main(folder: Path) -> None:
    """Write the three reports into a folder."""
    for kind in ("good", "middling", "bad"):
        print(write_report(folder / f"{kind}.html", made_content(folder / kind, kind)))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
