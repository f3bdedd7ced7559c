# SPDX-License-Identifier: Apache-2.0
"""Time and memory of steps: measured where they run, gathered, written and read."""

import json
import math
import subprocess
import sys
import time

import pytest

from gsbids.interfaces.usage import USAGE_FILE, gather_usage, measured
from gsbids.qc.report.usage import StepUsage, format_usage, read_usage, usage_rows, usage_total

ALLOCATE = """
import sys, time
import numpy as np
from gsbids.interfaces.usage import measured
large = np.ones(60_000_000)  # 480 MB: what is gone before a step is none of its memory
del large
with measured(sys.argv[1]):
    small = np.ones(25_000_000)  # 200 MB
    time.sleep(0.5)
    del small
with measured(sys.argv[2]):
    larger = np.ones(90_000_000)  # 720 MB, too short to be seen by looking
    del larger
"""


def test_time_is_measured_and_failures_too(tmp_path):
    def fail():
        time.sleep(0.2)
        raise ValueError("wrong")

    with pytest.raises(ValueError, match="wrong"), measured(tmp_path):
        fail()
    found = json.loads((tmp_path / USAGE_FILE).read_text())
    assert 0.2 <= found["seconds"] < 5
    assert 0 <= found["cpu_seconds"] < found["seconds"]
    assert found["peak_gb"] > 0.01


def test_memory_is_that_of_the_step(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    subprocess.run([sys.executable, "-c", ALLOCATE, tmp_path / "a", tmp_path / "b"], check=True, timeout=120)
    first, second = (json.loads((tmp_path / name / USAGE_FILE).read_text())["peak_gb"] for name in ("a", "b"))
    assert 0.2 < first < 0.45
    assert 0.65 < second < 1.0  # the kernel's own count is a few per cent off at times (0.70 was seen)


def test_no_room_for_the_record_is_no_error(tmp_path):
    with measured(tmp_path / "not there"):
        pass
    assert not list(tmp_path.iterdir())


def test_gathered_in_the_order_they_began(tmp_path):
    for step, record in {
        "run_1_wf.n4": '{"began": 3, "seconds": 2, "cpu_seconds": 1, "peak_gb": null}',
        "svr_wf.fit": '{"began": 2, "seconds": 5, "cpu_seconds": 9, "peak_gb": 1.5}',
        "report": "damaged {",
        "qc": '{"began": 1}',
    }.items():
        folder = tmp_path.joinpath(*step.split("."))
        folder.mkdir(parents=True)
        (folder / USAGE_FILE).write_text(record)
    found = gather_usage(tmp_path, ["run_1_wf.n4", "svr_wf.fit", "report", "qc", "never_ran"])
    assert [step.name for step in found] == ["svr fit", "run_1 n4"]
    path = tmp_path / "usage.tsv"
    path.write_text(format_usage(found) + "half a li")
    again = read_usage(path)
    assert again[0] == StepUsage("svr fit", 5.0, 9.0, 1.5)
    assert again[1].name == "run_1 n4"
    assert math.isnan(again[1].peak_gb)
    assert len(again) == 2
    rows = usage_rows(again)
    assert [row["name"] for row in rows] == ["svr fit", "run-1 n4"]
    assert [row["time_share"] for row in rows] == [100.0, 40.0]
    assert rows[1]["memory"] == "not known"
    assert dict(usage_total(again)) == {
        "Sum of all steps": "7.0 s",
        "Processor time": "10.0 s",
        "Largest memory": "1.5 GB",
    }
    assert usage_rows(()) == usage_total(()) == []
