# SPDX-License-Identifier: Apache-2.0
"""Progress on a terminal, plain lines elsewhere and in the log files."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gsbids.cli.running.progress import NOTE, Progress, fraction_done
from gsbids.interfaces.base import ProgressNote


def command(tiny, tmp_path, fake, **variables):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "GSBIDS_FAKE": json.dumps(fake)} | variables
    words = [sys.executable, "-m", "fakes", tiny.root, tmp_path / "out", "participant", "-w", tmp_path / "work"]
    return words, environment


@pytest.fixture
def on_terminal(tiny_bids, tmp_path):
    """``on_terminal(fake, *options, until=pattern)``: all that a terminal gets, and the exit code."""

    def call(fake, *options, until=None, term="xterm"):
        words, environment = command(tiny_bids(subjects=tuple(fake)), tmp_path, fake, TERM=term)
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [*words, *options],
            env=environment,
            cwd=tmp_path,
            stdout=subprocess.DEVNULL,
            stderr=theirs,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        os.close(theirs)
        text, limit = "", time.monotonic() + 300
        while time.monotonic() < limit:
            if select.select([ours], [], [], 0.2)[0]:
                try:
                    text += os.read(ours, 65536).decode()
                except OSError:  # the other end is closed
                    break
            if until and re.search(until, text):
                process.send_signal(signal.SIGINT)
                until = None
        os.close(ours)
        return text, process.wait(60)

    return call


@pytest.mark.parametrize("nprocs", ["1", "2"])
def test_on_a_terminal_a_line_is_drawn_anew(on_terminal, tmp_path, nprocs):
    text, code = on_terminal(
        {"01": "", "02": "sleep"},
        "--nprocs",
        nprocs,
        until=r"\r1 of 2 steps, \d:\d\d \| sub-02_T2w reconstruct \d:\d\d\x1b\[K",
    )
    assert code == 130, text
    # What a person sees: every line of the messages whole, and in the end no half line.
    seen = [line.rpartition("\x1b[K")[2] for line in text.replace("\r\n", "\n").split("\n")]
    assert re.fullmatch(r"sub-01_T2w reconstruct: \d+\.\d s \(1 of 2\)", next(line for line in seen if "(1 of" in line))
    assert seen[-2] == "gsbids: error: interrupted; the same command goes on from here"
    assert seen[-1] == ""
    (log,) = tmp_path.glob("out/sub-01/log/*/gsbids.log")
    lines = log.read_text().splitlines()
    plain = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) [ -~]+")
    assert all(plain.fullmatch(line) for line in lines)
    assert any(re.search(r"INFO sub-01_T2w reconstruct: \d+\.\d s \(1 of 2\)$", line) for line in lines)
    # Also what was said before it was known where to write, and nothing of the other subject.
    assert any("INFO sub-01_T2w: run-1, run-2, run-3: slices are 3.5 mm thick" in line for line in lines)
    assert not any("sub-02_T2w" in line for line in lines)
    assert lines[-1].endswith("ERROR interrupted; the same command goes on from here")


def test_a_dumb_terminal_gets_lines(on_terminal):
    text, code = on_terminal({"01": ""}, "--nprocs", "1", term="dumb")
    assert code == 0
    assert "\x1b" not in text
    assert "sub-01_T2w reconstruct: " in text


def test_elsewhere_there_are_no_escape_codes(tiny_bids, tmp_path):
    words, environment = command(tiny_bids(), tmp_path, {"01": ""}, TERM="xterm")
    done = subprocess.run(
        [*words, "--nprocs", "2"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr
    assert re.search(r"^sub-01_T2w reconstruct: \d+\.\d s \(1 of 1\)$", done.stderr, re.MULTILINE)


class Step:
    """As much of a node as progress is told of."""

    run_without_submitting = False
    interface = None

    def __init__(self, fullname: str, folder: Path):
        self.fullname, self._folder = fullname, folder

    def output_dir(self):
        return str(self._folder)


def test_the_line_fits(tmp_path):
    folders = [tmp_path / str(n) for n in range(3)]
    for folder in folders:
        folder.mkdir()
    ProgressNote(str(folders[0]))(45, 180, {})
    assert fraction_done(folders[0]) == 0.25
    assert fraction_done(folders[1]) is None
    (folders[1] / NOTE).write_text("12")  # half written
    assert fraction_done(folders[1]) is None
    progress = Progress({"sub_01_wf": "sub-01"}, 9)
    for n, folder in enumerate(folders):
        progress(Step(f"gsbids_wf.sub_01_wf.step_{n}", folder), "start")
    assert progress.line(200) == (
        "0 of 9 steps, 0:00 | sub-01 step_0 25% 0:00 | sub-01 step_1 0:00 | sub-01 step_2 0:00"
    )
    assert progress.line(60) == "0 of 9 steps, 0:00 | sub-01 step_0 25% 0:00 | +2"
    assert all(len(progress.line(width)) <= width for width in range(20, 120))


def test_what_was_not_run_is_not_told_of_as_kept(tmp_path, caplog):
    """Nipype's Linear says "end" also of steps that it leaves out after a failure."""
    from nipype import Function, Node, Workflow
    from nipype.pipeline.engine.nodes import NodeExecutionError

    def once(x, fails):
        if fails:
            raise ValueError("no")
        return x

    workflow = Workflow("top_wf", base_dir=str(tmp_path))
    first, second, third = (Node(Function(function=once), name) for name in ("first", "second", "third"))
    first.inputs.x, first.inputs.fails, second.inputs.fails, third.inputs.fails = 1, False, True, False
    workflow.connect([(first, second, [("out", "x")]), (second, third, [("out", "x")])])
    workflow.config["execution"]["crashdump_dir"] = str(tmp_path)
    with caplog.at_level("INFO", "gsbids"), pytest.raises(NodeExecutionError):
        workflow.run("Linear", {"status_callback": Progress({}, 3, all_start=True)})
    said = [record.getMessage() for record in caplog.records if record.name.startswith("gsbids")]
    assert [line.split(":")[0] for line in said] == ["first"]
