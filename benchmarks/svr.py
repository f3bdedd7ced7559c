#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Slice-to-volume reconstruction, every row of the table of docs/benchmarks.md in one command.

    python benchmarks/svr.py --json OUT.json --figures DIR
    python benchmarks/svr.py --rows A B2 --methods default known --seeds 1

Cases with a known answer are made by ``tools/simulate_stacks.py`` and judged by ``tools/score.py``; neither shares
code with gsbids. Needs the ``bench`` extra (SimpleITK, scikit-image): ``make bench-install``.
"""

import argparse
import json
import os
from pathlib import Path

from common import machine, say, write_json
from svr_cases import simulated
from svr_fit import METHODS, run_method

CASES = {"A": ("A",), "B2": ("B2",), "B0": ("B0",), "F": ("F22", "F25", "F28")}


def main() -> None:
    """Run the benchmark."""
    args = parse()
    result = {"benchmark": "svr", "machine": machine(), "options": args.set, "records": []}
    for row in args.rows:
        for name in CASES[row]:
            for seed in args.seeds:
                case = simulated(name, seed, args.work)
                for method in args.methods:
                    found = run_method(method, case, args.work, args.threads, args.set)
                    record = {"row": row, "case": case.name, "seed": seed, "method": method} | found
                    result["records"].append(record)
                    say(in_words(record))
                    if args.json:
                        write_json(args.json, result)
    write_json(args.json, result)


def parse() -> argparse.Namespace:
    """Arguments."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3], help="of the simulations")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--set", nargs="+", metavar="OPTION=VALUE", type=_change, default=[],
                        help="fields of SvrOptions that differ from their defaults")
    parser.add_argument("--work", type=Path, default=Path("work/benchmarks/svr"), help="working folder")
    parser.add_argument("--json", type=Path, help="results (default: screen)")
    args = parser.parse_args()
    args.set = dict(args.set)
    return args


def _change(text: str) -> tuple:
    name, _, value = text.partition("=")
    return name, json.loads(value)


def in_words(record: dict) -> str:
    """A record in a line."""
    score, error = record["score"], record["score"].get("slice_error", {})
    text = (f"{record['case']} seed {record['seed']} {record['method']:<9} PSNR {score['psnr']:.2f} "
            f"(core {score['psnr_core']:.2f}) SSIM {score['ssim']:.3f} (core {score['ssim_core']:.3f})")
    if "unmasked" in score:
        text += f" whole {score['unmasked']['psnr']:.2f} / {score['unmasked']['ssim']:.3f}"
    if error:
        text += (f"  slices {error['median_mm']:.2f} / {error['mean_mm']:.2f} mm, "
                 f"{100 * error['over_2mm']:.1f} % lost")
    return text + (f"  fit {record['cost']['fit_s']:.1f} s" if "cost" in record else "")


if __name__ == "__main__":
    main()
