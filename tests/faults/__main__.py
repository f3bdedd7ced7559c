# SPDX-License-Identifier: Apache-2.0
"""``python -m faults OUT.json``: the whole campaign, seeded; what it found, as JSON. Needs root for small disks."""

import argparse
import json
import os
import platform
import random
import re
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from datetime import date
from pathlib import Path

from faults import fuzz, memory, runs
from faults.subject import make_subject
from faults.warm import load_everything

#: Every so many corruptions is run by the real command (those that are quick more often), and every so many of the
#: others to its end; of the rest a data set sees the checks at the start alone.
REAL_EVERY = {"svr": 16, "sr": 5, "reconstruct": 7, "super-resolve": 3, "sample": 3, "group": 4}
WHOLE_EVERY = 10


def main() -> int:
    """Try everything that was asked for; 0 when nothing was wrong."""
    parser = argparse.ArgumentParser(prog="faults", description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--only", nargs="+", default=(), choices=(*_faults(None, 0), "corruptions"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where to work (default: a temporary folder)")
    args = parser.parse_args()
    os.environ.update(NO_ET="1", NUMBA_NUM_THREADS="1", OMP_NUM_THREADS="1")
    load_everything()
    with tempfile.TemporaryDirectory(prefix="gsbids-faults-", dir=args.folder) as name:
        folder = Path(name)
        subject = make_subject(folder / "subject")
        before = subject.checksums()
        scene = runs.prepare(subject, folder)
        wrong = 0
        for key, attempt in _faults(scene, args.seed).items():
            if not args.only or key in args.only:
                wrong += _save(args, key, _run_fault(attempt, key))
                if subject.checksums() != before:
                    raise SystemExit(f"{key}: the input has changed")
        if not args.only or "corruptions" in args.only:
            wrong += _corruptions(args, scene.folder)
    return int(wrong > 0)


def _faults(scene, seed: int) -> dict:
    return {
        "killed": lambda: runs.killed(scene, seed),
        "disk_full": lambda: runs.disk_full(scene),
        "read_only": lambda: runs.read_only(scene),
        "removed": lambda: runs.removed(scene, seed),
        "twice": lambda: runs.twice(scene),
        "neighbours": lambda: runs.neighbours(scene, make_subject(scene.folder / "two", ("01", "02"))),
        "worker_killed": lambda: runs.worker_killed(scene),
        "out_of_memory": lambda: memory.out_of_memory(scene),
        "broken_pipe": lambda: runs.broken_pipe(scene),
        "strange_paths": lambda: runs.strange_paths(scene),
        "killed_really": lambda: runs.killed_really(scene, seed),
    }


def _run_fault(attempt, key: str) -> dict:
    try:
        return asdict(attempt())
    except OSError as error:
        return {"name": key, "tried": 0, "facts": {"not tried": str(error)}, "faults": []}


def _corruptions(args: argparse.Namespace, folder: Path) -> int:
    """All corruptions in random order, saved after every tenth; whether anything was wrong."""
    rows, counts, cases, wrong = [], Counter(), fuzz.cases(), 0
    random.Random(args.seed).shuffle(cases)
    for case in cases:
        number = case[0]
        way = "real" if number % REAL_EVERY[case[1]] == 0 else "whole" if number % WHOLE_EVERY == 1 else "start"
        row = fuzz.as_row(fuzz.run_case(case, folder / "undisturbed", folder / f"case-{number}", args.seed, way))
        print(json.dumps(row, ensure_ascii=False), flush=True)
        rows.append(row)
        counts[f"{case[1]}: {case[2]} ({case[3]}): {row['ending']}"] += 1
        if len(rows) % 10 == 0 or len(rows) == len(cases):
            faults = [f"{row['case']}: {', '.join(row['faults'])}" for row in rows if row["faults"]]
            endings, ways = (dict(Counter(row[key] for row in rows)) for key in ("ending", "way"))
            wrong = _save(
                args,
                "corruptions",
                {
                    "name": "corrupted input",
                    "tried": len(rows),
                    "faults": faults,
                    "facts": {
                        "planned": len(cases),
                        "endings": endings,
                        "ways": ways,
                        "by file": dict(sorted(counts.items())),
                    },
                    "cases": rows,
                },
            )
    return wrong


def _save(args: argparse.Namespace, key: str, found: dict) -> int:
    """Put one part into the JSON, beside what other calls have put there; whether anything was wrong."""
    whole = json.loads(args.out.read_text(encoding="utf-8")) if args.out.exists() else {}
    whole |= {"machine": f"{platform.machine()}, {os.cpu_count()} cores", "date": str(date.today()), "seed": args.seed}
    whole.setdefault("parts", {})[key] = found
    text = json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
    args.out.write_text(re.sub(r"/[^\s\"]*gsbids-faults-\w+", "", text), encoding="utf-8")
    print(f"{key}: {found['tried']} tried, {len(found['faults'])} faults", *found["faults"], sep="\n  ", flush=True)
    return len(found["faults"])


if __name__ == "__main__":
    sys.exit(main())
