# SPDX-License-Identifier: Apache-2.0
"""Runs on corrupted input: a clear message or a good result, and nothing half written."""

import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from trees import checksums

from faults.corrupt import CORRUPTIONS
from faults.subject import Subject, flaws, gsbids, make_subject
from faults.warm import Ended, run_forked

#: How often each corruption is tried: what is run, which file is spoilt, how.
PLAN = (
    ("svr", "stack", "header", 34),
    ("svr", "mask", "header", 16),
    ("svr", "stack", "stream", 22),
    ("svr", "mask", "stream", 10),
    ("svr", "stack", "voxels", 14),
    ("svr", "mask", "voxels", 6),
    ("svr", "sidecar", "json", 30),
    ("svr", "sidecar", "stream", 10),
    ("svr", "description", "json", 10),
    ("svr", "description", "stream", 4),
    ("svr", "participants", "table", 6),
    ("svr", "participants", "stream", 3),
    ("sr", "stack", "header", 10),
    ("sr", "sidecar", "json", 6),
    ("sr", "stack", "voxels", 3),
    ("reconstruct", "stack", "header", 6),
    ("reconstruct", "sidecar", "json", 6),
    ("reconstruct", "mask", "stream", 3),
    ("super-resolve", "stack", "header", 6),
    ("super-resolve", "sidecar", "json", 5),
    ("sample", "model", "arrays", 22),
    ("sample", "model", "stream", 10),
    ("group", "metrics", "table", 12),
    ("group", "metrics", "stream", 6),
)

_NOT_ALLOWED = re.compile(r"Traceback|Segmentation fault|core dumped|most recent call last")


@dataclass(frozen=True)
class Verdict:
    """What came of one case.

    Attributes
    ----------
    ending : {"good result", "refused", "failed step", "wrong"}
        ``wrong`` where ``faults`` says something.
    message : str
        The first error line.
    faults : tuple of str
        What must not be.
    """

    case: str
    what: str
    way: str
    code: int | None
    ending: str
    message: str
    seconds: float
    faults: tuple[str, ...] = ()
    strange: tuple[str, ...] = ()


def cases(count: int | None = None) -> list[tuple[int, str, str, str]]:
    """(number, command, target, corruption), evenly spread when only ``count`` are wanted."""
    found = [(command, target, how) for command, target, how, times in PLAN for _ in range(times)]
    every = [(number, *case) for number, case in enumerate(found)]
    if count is None or count >= len(every):
        return every
    return [every[k] for k in np.linspace(0, len(every) - 1, count).round().astype(int)]


def run_case(
    case: tuple[int, str, str, str], good: Path, folder: Path, seed: int, way: str = "whole", run=None
) -> Verdict:
    """Corrupt a copy of valid input, run the command on it, and look at what is there afterwards.

    Parameters
    ----------
    case : tuple
        Of :func:`cases`.
    good : Path
        Folder with ``out`` of a good run, for commands that read it.
    folder : Path
        New, for this case alone; removed when all is well.
    seed : int
    way : {"start", "whole", "real"}
        Only the checks at the start (``--dry-run``, of a data set), the whole run, or the whole run by the real command
        instead of a child of this process.
    run : callable, optional
        ``run(words, folder)`` gives an :class:`~faults.warm.Ended`, instead of what ``way`` says.
    """
    number, command, target, how = case
    rng = np.random.default_rng([seed, number])
    folder.mkdir(parents=True)
    subject = make_subject(folder, stacks=1 if command in ("sr", "super-resolve") else 3)
    path, words, written = _prepare(command, target, subject, good, folder, rng)
    what = CORRUPTIONS[how](path, rng)
    read = [subject.root, subject.masks] + ([folder / "given"] if (folder / "given").is_dir() else [])
    before = [checksums(place, ()) for place in read]
    if way == "start" and command in ("svr", "sr"):
        words.append("--dry-run")
    run = run or (run_real if way == "real" else run_forked)
    ended = run(words, folder)
    faults = list(_judge(ended))
    if [checksums(place, ()) for place in read] != before:
        faults.append("the input has changed")
    if command != "group":
        faults += flaws(written)
    if (
        ended.code == 2
        and command not in ("group",)
        and written.exists()
        and any(p.is_file() for p in written.rglob("*"))
    ):
        faults.append("refused, and yet something is written")
    errors = [line for line in ended.err.splitlines() if line.startswith("gsbids: error: ")]
    ending = "wrong" if faults else {0: "good result", 2: "refused"}.get(ended.code, "failed step")
    strange = tuple(
        line
        for line in ended.err.splitlines()
        if re.search(r"Warning|Error|Exception", line) and not line.startswith("gsbids: ")
    )[:3]
    verdict = Verdict(
        f"{number} {command}: {target} {how}",
        what,
        way,
        ended.code,
        ending,
        errors[0].removeprefix("gsbids: error: ").replace(str(folder), "") if errors else "",
        ended.seconds,
        tuple(faults),
        strange,
    )
    if not faults:
        shutil.rmtree(folder)
    return verdict


def run_real(words: list[str], folder: Path, seconds: float = 300.0) -> Ended:
    """``python -m gsbids WORDS`` in a process group of its own, killed when it hangs."""
    began = time.monotonic()
    process = subprocess.Popen(
        gsbids(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        errors="replace",
        start_new_session=True,
    )
    code = None
    try:
        out, err = process.communicate(timeout=seconds)
        code = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
    return Ended(code, out, err, round(time.monotonic() - began, 2))


def as_row(verdict: Verdict) -> dict:
    """For the JSON of the campaign."""
    return asdict(verdict)


def _judge(ended: Ended):
    text = ended.err + ended.out
    if ended.code is None:
        yield "it hung"
    elif ended.code not in (0, 1, 2):
        yield f"exit code {ended.code}"
    if _NOT_ALLOWED.search(text):
        yield "a traceback"
    errors = [line for line in ended.err.splitlines() if line.startswith("gsbids: error: ")]
    if ended.code in (1, 2) and not errors:
        yield "no message"
    if any(len(line) > 1500 for line in errors):
        yield "a message of more than 1500 characters"


def _prepare(command: str, target: str, subject: Subject, good: Path, folder: Path, rng):
    """File to corrupt, words of the command, and the folder that it writes to."""
    run = int(rng.integers(1, 4)) if command not in ("sr", "super-resolve") else 1
    stack = subject.stack(run)
    path = {
        "stack": stack,
        "mask": subject.mask(run),
        "sidecar": stack.with_name(stack.name.replace(".nii.gz", ".json")),
        "description": subject.root / "dataset_description.json",
        "participants": subject.root / "participants.tsv",
    }.get(target)
    out, given = folder / "out", folder / "given"
    if command in ("svr", "sr"):
        mode = ("--mode", "sr", "--sr-quality", "fast") if command == "sr" else ()
        return path, subject.arguments(folder, *mode), out
    if command == "group":
        shutil.copytree(good / "out", out)
        return next(out.rglob("*_metrics.tsv")), [str(subject.root), str(out), "group"], out
    out.mkdir()
    target_file = out / "volume.nii.gz"
    if command == "sample":
        given.mkdir()
        path = given / "sub-01_desc-gaussians_model.npz"
        shutil.copyfile(next((good / "out").rglob("*_model.npz")), path)
        return path, ["sample", str(path), str(target_file), "--spacing", "2.5", "--nprocs", "1"], out
    if command == "super-resolve":
        return (
            path,
            ["super-resolve", str(stack), str(target_file), "--factor", "2", "--sr-quality", "fast", "--nprocs", "1"],
            out,
        )
    words = [
        "reconstruct",
        "--input-stacks",
        *(str(subject.stack(k)) for k in (1, 2, 3)),
        "--input-masks",
        *(str(subject.mask(k)) for k in (1, 2, 3)),
        "--output-volume",
        str(target_file),
        "--output-resolution",
        "2.5",
        "--nprocs",
        "1",
        "--sloppy",
        "-w",
        str(folder / "work"),
    ]
    return path, words, out
