#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Slice-to-volume reconstruction: every row of the table of docs/benchmarks.md in one command.

    python benchmarks/svr.py --json OUT.json --figures DIR
    python benchmarks/svr.py --rows A B2 --methods default known --seeds 1 --set iterations=80

Cases with a known answer are made by ``tools/simulate_stacks.py`` and judged by ``tools/score.py``, real data by
``tools/score_heldout_stack.py``; none shares code with gsbids. Methods: ``default``; ``known``, the same fit at the
simulator's true poses (the bound); ``paper``, ``--svr-method paper``; ``nomotion``, stacks moved as wholes only;
``average``, of the stacks where the scanner says they are. Fits run alone, in this process; the rows ``heldout``,
``command`` (on case T), ``real-command`` and ``memory`` run the whole command. Needs the ``bench`` extra: ``make
bench-install``.
"""

import argparse
import os
from functools import partial
from pathlib import Path

import numpy as np
import svr_preview
import svr_real
import svr_rows
import svr_uncertainty
from common import machine, say, write_json
from svr_fit import METHODS
from svr_summary import as_text, summarise

ROWS = {
    **{name: partial(svr_rows.standard_row, name) for name in svr_rows.STANDARD},
    "robust": svr_rows.robust_row,
    "corrupted": svr_rows.corrupted_row,
    "masks": svr_rows.masks_row,
    "origin": svr_rows.origin_row,
    "speed": svr_rows.speed_row,
    "memory": svr_rows.memory_row,
    "ablation": svr_rows.ablation_row,
    "heldout": svr_real.heldout_row,
    "uncertainty": svr_uncertainty.uncertainty_row,
    "uncertainty-calibration": svr_uncertainty.calibration_row,
    "preview": svr_preview.preview_row,
    "command": svr_rows.whole_command_row,
    "real-command": svr_real.command_row,
}


def main() -> None:
    """Run the benchmark."""
    args = parse()
    result = {
        "benchmark": "svr",
        "machine": machine(),
        "options": {"default": args.set, "paper": args.set_paper},
        "summary": [],
        "records": [],
    }

    def record(entry: dict) -> None:
        result["records"].append(entry)
        result["summary"] = summarise(result["records"])
        say(in_words(entry))
        if args.json:  # after each: a run that is stopped keeps what it has
            write_json(args.json, result)

    changes = {"default": svr_rows.read_changes(args.set), "paper": svr_rows.read_changes(args.set_paper)}
    suite = svr_rows.Suite(
        args.work,
        args.threads,
        record,
        args.seeds and tuple(args.seeds),
        args.methods and tuple(args.methods),
        changes,
        args.figures,
    )
    for row in args.rows:
        ROWS[row](suite)
    if not args.json:
        write_json(None, result)
    say("summary\n" + as_text(result["summary"]))


def parse() -> argparse.Namespace:
    """Arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--seeds", nargs="+", type=int, help="of the simulations (default: 1 2 3; 1 to 20 for robust)")
    parser.add_argument("--methods", nargs="+", choices=METHODS, help="default: each row's own")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--set",
        nargs="+",
        metavar="OPTION=VALUE",
        default=[],
        help="fields of SvrOptions that differ from their defaults, values in JSON",
    )
    parser.add_argument("--set-paper", nargs="+", metavar="OPTION=VALUE", default=[], help="the same of PaperOptions")
    parser.add_argument(
        "--work", type=Path, default=Path("work/benchmarks/svr"), help="working folder; cases in it are used again"
    )
    parser.add_argument("--json", type=Path, help="results (default: screen)")
    parser.add_argument("--figures", type=Path, help="folder for pictures")
    return parser.parse_args()


def in_words(entry: dict) -> str:
    """A record in a line."""
    parts = [
        f"{entry['row']}: {entry['case']}",
        *([f"seed {entry['seed']}"] if "seed" in entry else []),
        entry["method"],
        *([entry["change"]] if isinstance(entry.get("change"), str) else []),
    ]
    score = entry.get("score")
    if score:
        parts.append(
            f"PSNR {score['psnr']:.2f} core {score['psnr_core']:.2f}  SSIM {score['ssim']:.3f} "
            f"core {score['ssim_core']:.3f}"
        )
        if "unmasked" in score:
            parts.append(f"whole {score['unmasked']['psnr']:.2f}")
        if "slice_error" in score:
            error = score["slice_error"]
            parts.append(
                f"slices {error['median_mm']:.2f} / {error['mean_mm']:.2f} mm, {100 * error['over_2mm']:.1f} % lost"
            )
    if "psnr_loss" in entry:
        parts.append(f"loss {entry['psnr_loss']:.2f} dB (whole {entry.get('psnr_loss_whole', np.nan):.2f})")
    if "heldout" in entry:
        parts.append(f"grad_ncc {entry['heldout']['grad_ncc']:.3f} hp_ncc {entry['heldout']['hp_ncc']:.3f}")
    if isinstance(entry.get("change"), dict):
        parts.append(str(entry["change"]))
    if "uncertainty" in entry:
        found = entry["uncertainty"]
        parts.append(
            f"PSNR {found['psnr']:.2f}  Spearman {found['spearman']:.3f} core {found['spearman_core']:.3f}  "
            f"sigma {found['rms_sigma']:.1f} error {found['rms_error']:.1f}  within 1, 2 sigma "
            f"{found['within'][0]:.3f}, {found['within'][1]:.3f}"
        )
    if "previews" in entry:
        parts.append(
            f"first after {entry['first_s']} s, within 0.05 of the final SSIM {entry['final']['ssim']:.3f} "
            f"after {entry['close_s']} s ({entry['close_cpu_s']} s of CPU)"
        )
    if "curve" in entry:
        parts.append(f"ends at {entry['curve'][-1]['psnr']:.2f} dB")
    if "cost" in entry:
        parts.append(str(entry["cost"]))
    return "  ".join(parts)


if __name__ == "__main__":
    main()
