# SPDX-License-Identifier: Apache-2.0
"""The quick part of the campaign of faults, of which docs/reliability.md tells; ``make fault-test`` runs all of it."""

import fcntl
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import fakes
import numpy as np
import pytest
from conftest import write_nifti
from faults import fuzz, runs
from faults.subject import flaws, gsbids, make_subject
from faults.warm import Ended
from qc_samples import sample_result
from trees import checksums

from gsbids.atomic import replacing, sweep, write_atomic
from gsbids.bids.description import write_description
from gsbids.bids.sink import Sink
from gsbids.bids.task import ReconstructionTask, StackFile
from gsbids.cli.main import main
from gsbids.cli.running.outcome import report_outcome
from gsbids.config import Config, Execution
from gsbids.errors import InputError
from gsbids.recon.models import load_model
from gsbids.workflows.names import registry_folder, volume_path

EVIL = "<script>alert('x')</script>\ta\nb"


@pytest.fixture
def in_process(capsys):
    """``run(words, folder)`` of the command line in this process."""

    def run(words, folder):
        began = time.monotonic()
        code = main([str(word) for word in words])
        return Ended(code, *capsys.readouterr(), time.monotonic() - began)

    return run


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with a model that can be sampled."""
    folder = tmp_path_factory.mktemp("good")
    (folder / "out").mkdir()
    sample_result().save(folder / "out" / "sub-01_desc-gaussians_model.npz")
    return folder


def quick_cases() -> list[tuple]:
    """Every sixth corruption of what is checked in a moment, at the start of a run or when a model is read."""
    return [case for case in fuzz.cases() if case[1] in ("svr", "sr", "sample")][::6]


@pytest.mark.parametrize("case", quick_cases(), ids=lambda case: "-".join(map(str, case)))
def test_corrupted_input_has_a_message_or_a_result(case, good, tmp_path, in_process):
    verdict = fuzz.run_case(case, good, tmp_path / "case", 2, "start", in_process)
    assert not verdict.faults, verdict
    assert verdict.code in (0, 2)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('[{"SliceThickness": 3}]', "holds no JSON object"),
        ("[" * 5000 + "]" * 5000, "not a JSON file"),
        ("", "not a JSON file"),
        ('{"a": "b"', "not a JSON file"),
    ],
)
def test_sidecar_that_is_none_is_named(text, what, tmp_path, in_process):
    subject = make_subject(tmp_path)
    sidecar = subject.root / "sub-01" / "anat" / "sub-01_run-2_T2w.json"
    sidecar.write_text(text)
    ended = in_process(subject.arguments(tmp_path, "--dry-run"), tmp_path)
    assert ended.code == 2
    (line,) = ended.err.splitlines()
    assert line.startswith(f"gsbids: error: {sidecar}: {what}")


def test_a_model_is_never_unpickled(tmp_path, in_process):
    """An object array that would run a command when it is unpickled is refused, and does not run."""

    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "exploded"),)

    path = tmp_path / "sub-01_desc-gaussians_model.npz"
    sample_result().save(path)
    with np.load(path) as data:
        found = {name: data[name] for name in data.files}
    for name in ("header", "field_mean", "ncc"):
        np.savez_compressed(path, **(found | {name: np.array([Bomb()], dtype=object)}), allow_pickle=True)
        ended = in_process(["sample", path, tmp_path / "x.nii.gz", "--spacing", "2"], tmp_path)
        assert ended.code == 2
        assert f"{path}: this is no model of gsbids, or a damaged one" in ended.err
        assert not (tmp_path / "exploded").exists()
        assert not (tmp_path / "x.nii.gz").exists()


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"field_mean": lambda a: a[:, None]}, "mean of a field"),
        ({"field_intensity": lambda a: a * np.nan}, "intensity of a field"),
        ({"field_quaternion": lambda a: a.astype(str)}, "quaternion of a field"),
        (
            {"header": lambda a: np.array(str(a).replace('"settings": {', '"settings": 3, "": {'))},
            "settings are no object",
        ),
        ({"header": lambda a: np.array(str(a).replace("100.0", '"much"'))}, "intensity_scale is no number"),
    ],
)
def test_a_damaged_model_is_named_by_its_damage(change, what, tmp_path):
    path = sample_result().save(tmp_path / "model.npz")
    with np.load(path) as data:
        found = {name: data[name] for name in data.files}
    for name, how in change.items():
        found[name] = how(found[name])
    np.savez_compressed(path, **found)
    with pytest.raises(InputError, match=what):
        load_model(path)


def test_yaml_makes_no_objects(tmp_path, in_process):
    subject = make_subject(tmp_path)
    plugin = tmp_path / "plugin.yml"
    plugin.write_text(f"plugin: !!python/object/apply:os.mkdir ['{tmp_path / 'exploded'}']\n")
    ended = in_process(subject.arguments(tmp_path, "--use-plugin", plugin), tmp_path)
    assert ended.code == 2
    assert f"--use-plugin {plugin}: not a YAML file" in ended.err
    assert not (tmp_path / "exploded").exists()


def test_a_file_is_whole_or_as_before(tmp_path):
    path = tmp_path / "a.txt"
    write_atomic(path, b"first")
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        1 / temporary.write_text("")
    assert [file.name for file in tmp_path.iterdir()] == ["a.txt"]
    assert path.read_bytes() == b"first"
    with pytest.raises(FileNotFoundError) as error:
        write_atomic(tmp_path / "nowhere" / "b.txt", b"")
    assert error.value.filename == str(tmp_path / "nowhere" / "b.txt")


def test_what_killed_writers_leave_is_swept_and_nothing_else(tmp_path):
    killed = f"""
import os, signal, sys
from gsbids.atomic import replacing
with replacing({str(tmp_path / "volume.nii.gz")!r}, ".nii.gz") as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", killed], check=False).returncode == -9
    (left,) = tmp_path.iterdir()
    (tmp_path / ".hidden").write_text("x")
    (tmp_path / "notes.1.tmp").write_text("x")
    with replacing(tmp_path / "b.txt") as busy:
        busy.write_text("in the making")
        assert sweep([tmp_path, tmp_path / "nowhere"]) == [left]
        assert busy.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".hidden", "b.txt", "notes.1.tmp"]


def start_fake(subject, folder: Path, *options, fake: dict) -> subprocess.Popen:
    """The command line on the workflow that computes nothing, in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(Path(fakes.__file__).parent), "GSBIDS_FAKE": json.dumps(fake)}
    return subprocess.Popen(
        [sys.executable, "-m", "fakes", *subject.arguments(folder, *options)],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def test_of_two_runs_on_one_reconstruction_the_second_is_refused(tmp_path, monkeypatch, in_process):
    """And the others of its subjects are done."""
    subject = make_subject(tmp_path, ("01", "02"))
    first = start_fake(subject, tmp_path, "--participant-label", "01", fake={"01": "sleep"})
    note, limit = tmp_path / "note-sub-01_T2w", time.monotonic() + 60
    while not note.exists() and time.monotonic() < limit:
        time.sleep(0.05)
    for name, module in fakes.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    refused = in_process(subject.arguments(tmp_path, "--participant-label", "01"), tmp_path)
    both = in_process(subject.arguments(tmp_path), tmp_path)
    first.kill()
    first.wait()
    assert refused.code == 2
    line = f"gsbids: error: sub-01_T2w: another run works on it in {tmp_path / 'out'} (process {first.pid} on "
    assert sum(found.startswith(line) for found in refused.err.splitlines()) == 1
    assert both.code == 1
    assert line in both.err
    assert "1 of 2 reconstructions done" in both.err
    assert (tmp_path / "out" / "sub-02.html").is_file()
    # The lock has ended with its process, however that ended.
    again = in_process(subject.arguments(tmp_path), tmp_path)
    assert again.code == 0, again.err
    assert not list(tmp_path.rglob("*.lock"))


def test_outputs_that_are_gone_at_the_end_are_a_failure(tmp_path, caplog):
    """As when somebody removes the output while a run goes on: the volume came later, and stands there alone."""
    stack = StackFile(tmp_path / "sub-01_run-1_T2w.nii.gz", {"sub": "01", "run": "1", "suffix": "T2w"}, thickness=3.0)
    task = ReconstructionTask("01", None, "T2w", {"sub": "01", "suffix": "T2w"}, (stack,))
    config = Config(Execution(tmp_path, tmp_path / "out", tmp_path / "work", run_uuid="now"))
    write_description(tmp_path / "out", {"raw": tmp_path})
    sink = Sink(tmp_path / "out", registry_folder(config))
    table = sink.write("motion", stack.entities, b"")
    sink.write("report", task.entities, b"")
    write_nifti(tmp_path / "out" / volume_path(config, task), np.ones((2, 2, 2), np.float32), np.eye(4))
    assert report_outcome(config, [task], finished=True) == 0
    table.unlink()
    assert report_outcome(config, [task], finished=True) == 1
    assert f"sub-01_T2w: outputs that were written are gone (1), as {table}" in caplog.text


def test_where_there_are_no_locks_runs_go_on(tmp_path, monkeypatch, in_process):
    def unsupported(file, operation):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    for name, module in fakes.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    assert in_process(make_subject(tmp_path).arguments(tmp_path), tmp_path).code == 0


def test_nobody_reads_what_is_said(tmp_path):
    """A broken pipe is no error of the command, and no reason to stop a run."""
    subject = make_subject(tmp_path)
    command = " ".join(f"'{word}'" for word in [sys.executable, "-m", "fakes", *subject.arguments(tmp_path)])
    for what in (f"{' '.join(gsbids())} --help | true", f"{command} 2>&1 | head -1", f"{command} --dry-run | true"):
        done = subprocess.run(
            ["bash", "-c", what],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=os.environ | {"PYTHONPATH": str(Path(fakes.__file__).parent)},
        )
        assert "Error" not in done.stderr, done.stderr
    assert (tmp_path / "out" / "sub-01.html").is_file()


def test_strange_paths_and_words_in_a_whole_run(tmp_path):
    """Paths of all kinds; a sidecar with a script, a tab and a line break: pages and tables quote them as text."""
    folder = tmp_path / "dé jà 脳 (a b)'&;$#%20<script>"
    subject = make_subject(folder)
    for run in (1, 2, 3):
        sidecar = subject.root / "sub-01" / "anat" / f"sub-01_run-{run}_T2w.json"
        sidecar.write_text(json.dumps(json.loads(sidecar.read_text()) | {"Manufacturer": EVIL, "SequenceName": EVIL}))
    before = subject.checksums()
    ended = fuzz.run_real(subject.arguments(folder), tmp_path)
    assert ended.code == 0, ended.err
    assert flaws(folder / "out") == []
    assert subject.checksums() == before
    for page in (folder / "out").rglob("*.html"):
        text = page.read_text(encoding="utf-8")
        assert "<script>alert" not in text
        assert "%20<script" not in text
    fields = json.loads(next((folder / "out").rglob("*_desc-preproc_T2w.json")).read_text(encoding="utf-8"))
    assert fields["Manufacturer"] == EVIL


def test_error_text_is_quoted_in_the_report(tmp_path):
    """A step that fails with a script in its message."""
    from dataclasses import replace

    from qc_samples import sample_content

    from gsbids.qc.report.page import render_report

    content = sample_content(tmp_path)
    page = render_report(replace(content, crashes=(f"Node: a.b\nValueError: {EVIL}",), warnings=(EVIL,), title=EVIL))
    assert "<script>alert" not in page
    assert page.count("&lt;script&gt;alert(") >= 3


def test_disk_full(tmp_path):
    """The run fails with a line that says so; with more room it ends with all its files."""
    subject = make_subject(tmp_path)
    out = tmp_path / "out"
    try:
        with runs.small_disk(out, 200_000) as enlarge:
            ended = fuzz.run_real(subject.arguments(tmp_path), tmp_path)
            assert ended.code in (1, 2), ended.err
            assert "Traceback" not in ended.err
            assert "No space left on device" in ended.err
            assert flaws(out) == []
            enlarge()
            again = fuzz.run_real(subject.arguments(tmp_path), tmp_path)
            assert again.code == 0, again.err
            assert flaws(out) == []
            assert "sub-01.html" in checksums(out)
    except OSError as error:
        pytest.skip(f"no small disk can be mounted here: {error}")
