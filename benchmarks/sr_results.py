#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Results of the super-resolution benchmark: summed up, runs joined into one file, PSNR drawn against seconds.

python benchmarks/sr_results.py RUN.json ... --into docs/results/super_resolution.json --plot TIME.png
"""

import argparse
import json
from pathlib import Path

import numpy as np
from common import write_json

SETS = {"tuning": ("stroke-T1", "icbm152", "atlas-GA25"), "scoring": ("stroke-T2", "atlas-GA22", "atlas-GA28")}
KINDS = {
    "stroke-T1": "sharp",
    "stroke-T2": "sharp",
    "icbm152": "average",
    "atlas-GA22": "fetal",
    "atlas-GA25": "fetal",
    "atlas-GA28": "fetal",
}


def summarise(records: list[dict]) -> list[dict]:
    """Gain of every method over the cubic B-spline of its case, mean over the volumes of a set and kind."""
    base = {(r["volume"], r["case"]): r["psnr"] for r in records if r["method"] == "bspline"}
    out = []
    for of, names in SETS.items():
        for kind in dict.fromkeys(KINDS[name] for name in names):
            for case, method in dict.fromkeys((r["case"], r["method"]) for r in records):
                gains = [
                    r["psnr"] - base[r["volume"], case]
                    for r in records
                    if (r["case"], r["method"]) == (case, method)
                    and r["volume"] in names
                    and KINDS[r["volume"]] == kind
                    and (r["volume"], case) in base
                ]
                if gains:
                    out.append(
                        {
                            "set": of,
                            "kind": kind,
                            "case": case,
                            "method": method,
                            "volumes": len(gains),
                            "gain_db": round(float(np.mean(gains)), 3),
                            "least_db": round(float(min(gains)), 3),
                        }
                    )
    return out


def joined(kept: dict, runs: list[dict]) -> dict:
    """Results with the records of later runs in the place of those of the same volume, case and method."""
    records = {(r["volume"], r["case"], r["method"]): r for r in kept.get("records", [])}
    for run in runs:
        commit = {"commit": run["machine"].get("commit")}
        records |= {(r["volume"], r["case"], r["method"]): r | commit for r in run["records"]}
    ordered = [records[key] for key in sorted(records)]
    first = kept or runs[0]
    return {k: v for k, v in first.items() if k not in ("summary", "records")} | {
        "summary": summarise(ordered),
        "records": ordered,
    }


def draw_times(records: list[dict], case: str, path: Path) -> None:
    """A PNG of PSNR against CPU seconds, one panel a volume."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = [r for r in records if r["case"] == case and not r["method"].startswith("ablation")]
    names = sorted({r["volume"] for r in records})
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 4), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        for record in (r for r in records if r["volume"] == name):
            seconds = max(record["cpu_s"], 0.01)
            axis.plot(seconds, record["psnr"], "o", color="C3" if record["method"] == "gsbids" else "C0")
            axis.annotate(
                record["method"], (seconds, record["psnr"]), xytext=(5, -3), textcoords="offset points", fontsize=8
            )
        axis.set(xscale="log", xlim=(0.005, 2000), title=f"{name}, {case}", xlabel="CPU seconds")
        axis.grid(alpha=0.3)
    axes[0, 0].set_ylabel("PSNR (dB)")
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Join and draw."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("runs", nargs="*", type=Path, help="JSON files of benchmarks/super_resolution.py")
    parser.add_argument("--into", type=Path, required=True, help="results that they are joined with, written again")
    parser.add_argument("--plot", type=Path, help="PNG of PSNR against CPU seconds")
    parser.add_argument("--case", default="x2", help="the case that is drawn (default: %(default)s)")
    args = parser.parse_args()
    kept = json.loads(args.into.read_text()) if args.into.exists() else {}
    found = joined(kept, [json.loads(path.read_text()) for path in args.runs]) if args.runs else kept
    write_json(args.into, found)
    if args.plot:
        draw_times(found["records"], args.case, args.plot)


if __name__ == "__main__":
    main()
