# SPDX-License-Identifier: Apache-2.0
"""Runs of the command line on a workflow that computes nothing."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import fakes
import numpy as np
import pytest
from conftest import ball_stack, write_nifti
from trees import checksums

from gsbids.bids.query import Selection, find_tasks
from gsbids.cli.main import main
from gsbids.cli.running.executor import make_executor
from gsbids.config import Config


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """``run(tiny, *options, fake={...})``: exit code, standard output, standard error of a run in series."""
    for name, module in fakes.modules().items():
        monkeypatch.setitem(sys.modules, name, module)

    def call(tiny, *options, fake=None, out=None):
        monkeypatch.setenv("GSBIDS_FAKE", json.dumps(fake or {}))
        code = main(
            [
                str(tiny.root),
                str(out or tmp_path / "out"),
                "participant",
                "-w",
                str(tmp_path / "work"),
                "--nprocs",
                "1",
                *map(str, options),
            ]
        )
        return code, *capsys.readouterr()

    return call


def start(tiny, tmp_path, *options, fake=None) -> subprocess.Popen:
    """The same as another process, with several workers."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "GSBIDS_FAKE": json.dumps(fake or {})}
    command = [
        sys.executable,
        "-m",
        "fakes",
        tiny.root,
        tmp_path / "out",
        "participant",
        "-w",
        tmp_path / "work",
        "--nprocs",
        "2",
        *options,
    ]
    # Tests may run in the background of a shell, which makes all that it starts ignore Ctrl-C.
    return subprocess.Popen(
        command,
        env=environment,
        text=True,
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=180)
    return process.returncode, out, err


def workers(tmp_path, name: str = "note-sub-01_T2w") -> list[int]:
    """Process numbers of the workers that began the step of a task."""
    note = tmp_path / name
    return [int(line) for line in note.read_text().split()] if note.exists() else []


def wait_for(condition, seconds: float = 120) -> bool:
    limit = time.monotonic() + seconds
    while time.monotonic() < limit:
        if condition():
            return True
        time.sleep(0.05)
    return False


def gone(pid: int) -> bool:
    try:
        return "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()
    except FileNotFoundError:
        return True


def test_all_well(run, tiny_bids, tmp_path):
    code, out, err = run(tiny_bids(subjects=("01", "02")))
    assert (code, out) == (0, "")
    lines = err.splitlines()
    assert lines[0].startswith("sub-01_T2w: run-1, run-2, run-3: slices are 3.5 mm thick")
    assert lines[1] == "sub-01_T2w: slice-to-volume reconstruction of 3 stacks that are thick (--mode auto)"
    assert lines[4].startswith("device: c")
    assert lines[5].startswith("sub-01_T2w reconstruct: ")
    assert lines[-1] == f"2 of 2 reconstructions done; results in {tmp_path / 'out'}"
    assert f"sub-02_T2w: report in {tmp_path / 'out' / 'sub-02.html'}" in lines
    assert any(line.startswith(f"sub-02_T2w: volume in {tmp_path / 'out' / 'sub-02' / 'anat'}") for line in lines)
    assert (tmp_path / "out" / "dataset_description.json").is_file()
    (settings,) = (tmp_path / "out" / "sub-02" / "log").glob("*/gsbids.toml")
    config = Config.from_toml(settings)
    assert config.execution.run_uuid == settings.parent.name
    assert config.workflow.random_seed == 0


def test_a_second_run_keeps_what_is_done(run, tiny_bids, tmp_path):
    tiny = tiny_bids()
    assert run(tiny)[0] == 0
    assert run(tiny)[0] == 0
    assert len(workers(tmp_path)) == 1
    assert run(tiny, "--clean-workdir")[0] == 0
    assert len(workers(tmp_path)) == 2


def test_a_failure_stops_nobody_else(run, tiny_bids, tmp_path):
    code, _, err = run(tiny_bids(subjects=("01", "02", "03")), fake={"02": "raise"})
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("gsbids: error:")]
    assert "sub-02_T2w: step reconstruct failed: ValueError: the reconstruction went wrong; details" in line
    assert "Traceback" not in err
    (crash,) = tmp_path.glob("out/sub-*/log/*/crash-*.txt")
    assert crash.parts[-4] == "sub-02"
    assert "ValueError: the reconstruction" in (tmp_path / "out" / "sub-02.html").read_text()
    for other in ("01", "03"):
        assert (tmp_path / "out" / f"sub-{other}.html").read_text() == "x"


def test_files_that_cannot_be_read_stop_their_own_subject_only(run, tiny_bids, tmp_path):
    """Text in another encoding, links without targets, and what git-annex and Git LFS leave in the place of a file."""
    subjects = [f"{number:02}" for number in range(1, 9)]
    tiny = tiny_bids(subjects=subjects)
    tiny.sidecar("01").write_bytes('{"SliceThickness": 3.5, "ProtocolName": "Schädel"}'.encode("latin-1"))
    tiny.sidecar("02").write_bytes('{"SliceThickness": 3.5}'.encode("utf-16"))
    for path in (tiny.sidecar("03"), tiny.stack("04"), tiny.mask("05")):
        path.unlink()
        path.symlink_to("../../.git/annex/objects/xx/MD5E-s1--0")
    tiny.stack("06").write_text("/annex/objects/MD5E-s1--0\n")
    tiny.sidecar("07").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    code, _, err = run(tiny, "-d", f"masks={tiny.masks}")
    assert code == 1
    link = "the target of this link is not here; get its content"
    pointer = "the content of this file was not fetched; get"
    expected = [
        (tiny.sidecar("01"), "not a JSON file in UTF-8"),
        (tiny.sidecar("02"), "not a JSON file in UTF-8"),
        (tiny.sidecar("03"), link),
        (tiny.stack("04"), link),
        (tiny.mask("05"), link),
        (tiny.stack("06"), pointer),
        (tiny.sidecar("07"), pointer),
    ]
    lines = [line for line in err.splitlines() if line.startswith("gsbids: error: ")]
    for line, (path, what) in zip(lines, expected, strict=True):
        assert line.startswith(f"gsbids: error: {path}: {what}")
    assert err.splitlines()[-1].startswith("1 of 8 reconstructions done")
    assert (tmp_path / "out" / "sub-08.html").is_file()


def test_the_place_of_derivatives_in_the_input_is_output_and_never_input(run, tiny_bids, tmp_path):
    tiny = tiny_bids()
    out = tiny.root / "derivatives" / "gsbids"
    shutil.copytree(tiny.masks, tiny.root / "derivatives" / "hand")
    before = checksums(tiny.root, skip=("gsbids",))
    for _ in range(2):
        code, _, err = run(tiny, "-d", tiny.root / "derivatives", out=out)
        assert code == 0, err
        # Better masks than those by hand, by their names, and stacks: the second run must see none of them.
        for name in ("sub-01_run-1_T2w", "sub-01_run-7_T2w", "sub-01_acq-x_T2w", "sub-01_run-1_desc-brain_mask"):
            shutil.copy(tiny.stack(), out / "sub-01" / "anat" / f"{name}.nii.gz")
    (task,) = find_tasks(tiny.root, Selection(mask_datasets={"d": tiny.root / "derivatives"}, output_dir=out))
    assert [stack.path for stack in task.stacks] == [tiny.stack(run=run) for run in (1, 2, 3)]
    assert [stack.mask.parts[-4] for stack in task.stacks] == ["hand"] * 3
    assert (out / "sub-01.html").is_file()
    (out.parent / "note-sub-01_T2w").unlink()  # by the workflow that computes nothing
    assert checksums(tiny.root, skip=("gsbids",)) == before


def test_a_volume_not_to_be_used_is_told_and_ends_with_a_code_of_its_own(run, tiny_bids, tmp_path):
    tiny = tiny_bids(subjects=("01", "02", "03"))
    for _ in range(2):  # computed, and then kept from before
        code, _, err = run(tiny, fake={"02": "do not use", "03": "look at it"})
        assert code == 3
        lines = err.splitlines()
        assert "gsbids: error: sub-02_T2w: do not use this volume: It is blurred. It is upside down." in lines
        assert (
            "gsbids: warning: sub-03_T2w: look at this volume before you use it: It is blurred. It is upside down."
            in lines
        )
        assert not [line for line in lines if "error" in line and "sub-02" not in line]
        assert lines[-1] == (f"3 of 3 reconstructions done, 1 of them not to be used; results in {tmp_path / 'out'}")
    assert len(workers(tmp_path, "note-sub-02_T2w")) == 1
    (volume,) = (tmp_path / "out" / "sub-02" / "anat").glob("*_desc-preproc_T2w.nii.gz")
    assert volume.read_text() == "x"
    logs = (tmp_path / "out" / "sub-02" / "log").glob("*/gsbids.log")
    assert all("do not use this volume" in log.read_text() for log in logs)
    # A subject that failed wins; a doubtful one alone is no failure.
    code, _, err = run(tiny, "--clean-workdir", fake={"01": "raise", "02": "do not use"})
    assert code == 1
    assert "2 of 3 reconstructions done, 1 of them not to be used" in err
    assert run(tiny, "--participant-label", "03", fake={"03": "look at it"})[0] == 0


def test_missing_output_is_a_failure(run, tiny_bids):
    code, _, err = run(tiny_bids(), fake={"01": "write nothing"})
    assert code == 1
    assert "sub-01_rec-gsvr_res-0p8_desc-preproc_T2w.nii.gz is missing" in err


def test_crash_of_one_session_is_not_told_of_the_other(run, tiny_bids, tmp_path, monkeypatch):
    tiny = tiny_bids(subjects=("01", "02"), stacks=2)
    for session, subject in (("a", "01"), ("b", "02")):
        for run_ in (1, 2):
            source = tiny.stack(subject, run_)
            folder = tiny.root / "sub-09" / f"ses-{session}" / "anat"
            target = folder / f"sub-09_ses-{session}_run-{run_}_T2w.nii.gz"
            target.parent.mkdir(parents=True, exist_ok=True)
            source.rename(target)
            target.with_name(target.name.replace("nii.gz", "json")).write_text('{"SliceThickness": 4}')
    build = fakes.init_gsbids_wf

    def fail_in_b(*, config, tasks):
        workflow = build(config=config, tasks=tasks)
        for node in workflow._get_all_nodes():
            if "ses_b" in node.fullname:
                node.inputs.behaviour = "raise"
        return workflow

    monkeypatch.setattr(sys.modules["gsbids.workflows.base"], "init_gsbids_wf", fail_in_b)
    code, _, err = run(tiny, "--participant-label", "09")
    assert code == 1
    assert err.count("gsbids: error:") == 1
    assert "sub-09_ses-b_T2w: step reconstruct failed" in err
    assert "sub-09_ses-a_T2w: report in" in err


def test_stop_on_first_crash(run, tiny_bids, tmp_path):
    code, _, err = run(tiny_bids(subjects=("01", "02")), "--stop-on-first-crash", fake={"01": "raise", "02": "raise"})
    assert code == 1
    assert len(list(tmp_path.glob("out/sub-*/log/*/crash-*.txt"))) == 1
    assert "not finished" in err


def test_report_of_a_crash_that_fails_itself(run, tiny_bids, monkeypatch):
    def broken(config, task, crash_files):
        raise KeyError("ink")

    monkeypatch.setattr(sys.modules["gsbids.workflows.report"], "write_crash_report", broken)
    code, _, err = run(tiny_bids(), fake={"01": "raise"})
    assert code == 1
    assert "the report could not be written (KeyError: 'ink')" in err


def test_workflow_that_cannot_be_built(run, tiny_bids):
    code, _, err = run(tiny_bids(), fake={"build": "x"})
    assert code == 70
    line = err.splitlines()[-1]
    assert line.startswith("gsbids: error: the workflow could not be built (RuntimeError: two wires crossed)")


def test_dry_run_writes_nothing(run, tiny_bids, tmp_path):
    tiny = tiny_bids()
    before = sorted(tmp_path.rglob("*"))
    code, out, _ = run(tiny, "--dry-run", "-d", f"masks={tiny.masks}")
    assert code == 0
    volume = tmp_path / "out" / "sub-01" / "anat" / "sub-01_rec-gsvr_res-0p8_desc-preproc_T2w.nii.gz"
    assert f"sub-01_T2w: 3 stacks -> {volume}" in out
    assert f"sub-01_run-1_T2w.nii.gz: thickness 3.5 mm, mask {tiny.mask()}" in out
    assert re.search(r"1 nodes, .*:\n  sub_01_T2w_wf.reconstruct +1 +0.2 GB\nAt any time at most 1 threads and ", out)
    assert sorted(tmp_path.rglob("*")) == before


def test_graphs_without_graphviz(run, tiny_bids, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    code, _, err = run(tiny_bids(), "--write-graph")
    assert code == 0
    assert "the command dot (graphviz) is not there; only .dot files are written, in " in err
    assert {path.suffix for path in tmp_path.glob("work/*/gsbids_wf/graphs/*")} == {".dot"}


def test_environment_is_put_back(run, tiny_bids, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("NO_ET", raising=False)
    assert run(tiny_bids())[0] == 0
    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "NO_ET" not in os.environ


def test_batch_plugin_without_its_command(run, tiny_bids, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nonexistent")
    (tmp_path / "p.yml").write_text("plugin: SLURM\n")
    code, _, err = run(tiny_bids(), "--use-plugin", tmp_path / "p.yml")
    assert code == 127
    assert "the command sbatch is not there" in err


def test_plugin_of_a_file(run, tiny_bids, tmp_path):
    (tmp_path / "p.yml").write_text("plugin: Linear\nplugin_args: {}\n")
    assert run(tiny_bids(), "--use-plugin", tmp_path / "p.yml")[0] == 0


def test_workers(tiny_bids, tmp_path):
    process = start(tiny_bids(subjects=("01", "02", "03")), tmp_path, fake={"02": "raise"})
    code, out, err = finish(process)
    assert code == 1
    assert out == ""
    assert "sub-02_T2w: step reconstruct failed: ValueError: the reconstruction went wrong" in err
    assert "2 of 3 reconstructions done" in err
    assert "Traceback" not in err


def test_worker_that_dies(tiny_bids, tmp_path):
    process = start(tiny_bids(subjects=("01", "02", "03")), tmp_path, fake={"01": "die"})
    code, _, err = finish(process)
    assert code == 1
    assert "sub-01_T2w: step reconstruct failed: WorkerError: the process of this step was ended" in err
    assert "2 of 3 reconstructions done" in err
    assert len(workers(tmp_path)) == 2


def test_worker_that_dies_by_accident(tiny_bids, tmp_path):
    code, _, err = finish(start(tiny_bids(), tmp_path, fake={"01": "die once"}))
    assert code == 0, err
    assert len(workers(tmp_path)) == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tiny_bids, tmp_path, number):
    tiny = tiny_bids()
    process = start(tiny, tmp_path, fake={"01": "sleep"})
    assert wait_for(lambda: workers(tmp_path))
    process.send_signal(number)
    code, _, err = finish(process)
    assert code == 130
    assert err.splitlines()[-1] == "gsbids: error: interrupted; the same command goes on from here"
    assert "Traceback" not in err
    (worker,) = workers(tmp_path)
    assert wait_for(lambda: gone(worker))


def test_a_stopped_pool_is_closed_before_python_ends(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    executor = make_executor({"n_procs": 2})
    running = executor.pool.submit(time.sleep, 60)
    assert wait_for(running.running)
    manager = executor.pool._executor_manager_thread
    executor.stop()
    assert not manager.is_alive()
    assert running.exception() is not None


def test_killed_run_leaves_no_worker(tiny_bids, tmp_path):
    process = start(tiny_bids(), tmp_path, fake={"01": "sleep"})
    assert wait_for(lambda: workers(tmp_path))
    process.kill()
    process.wait()
    (worker,) = workers(tmp_path)
    assert wait_for(lambda: gone(worker), 10)


def test_bad_data_of_one_subject_stops_nobody_else(run, tiny_bids, tmp_path):
    tiny = tiny_bids(subjects=("01", "02", "03"))
    tiny.stack("02").write_bytes(b"nothing of the kind")
    code, _, err = run(tiny)
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("gsbids: error:")]
    assert line.startswith(f"gsbids: error: {tiny.stack('02')}: ")
    assert sorted(path.name for path in (tmp_path / "out").glob("*.html")) == ["sub-01.html", "sub-03.html"]


def test_participant_without_stacks(run, tiny_bids, tmp_path):
    tiny = tiny_bids(subjects=("01", "02"), thickness=4.0)
    for run_ in (1, 2, 3):
        tiny.stack("02", run_).unlink()
    code, _, err = run(tiny, "--participant-label", "01", "02")
    assert code == 1
    assert "--participant-label 02: no T2w image of this participant is selected" in err
    code, _, err = run(tiny)
    assert (code, "error" in err) == (0, False)


def test_repaired_voxels_are_counted(run, tiny_bids):
    tiny = tiny_bids(thickness=4.0)
    image, _, affine = ball_stack(1)
    image = image.astype("float32")
    image[:3, 0, 0] = [np.nan, np.inf, -np.inf]
    write_nifti(tiny.stack(), image, affine)
    code, _, err = run(tiny)
    assert code == 0
    assert f"gsbids: warning: sub-01_T2w: {tiny.stack()}: 3 voxels were NaN or infinite and are set to 0" in err
