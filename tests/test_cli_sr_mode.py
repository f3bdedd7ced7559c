# SPDX-License-Identifier: Apache-2.0
"""``--mode``: which method every task gets, what is said about it, and what is refused."""

import json
import sys

import fakes
import numpy as np
import pytest
from conftest import write_nifti
from test_sr import phantom

from gsbids.bids.task import ReconstructionTask, StackFile
from gsbids.cli.main import main
from gsbids.cli.tasks import choose_method
from gsbids.config import Config, Execution, WorkflowOptions


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """``run(*options)``: exit code, output and messages of a dry run in a data set that :func:`add` fills."""
    for name, module in fakes.modules().items():
        monkeypatch.setitem(sys.modules, name, module)

    def call(*options):
        code = main(
            [
                str(tmp_path / "bids"),
                str(tmp_path / "out"),
                "participant",
                "-w",
                str(tmp_path / "work"),
                "--nprocs",
                "1",
                "--dry-run",
                *map(str, options),
            ]
        )
        return code, *capsys.readouterr()

    return call


def add(tmp_path, name: str, spacing=(2.0, 2, 2), thickness=None):
    """A volume of the data set ``tmp_path / bids``."""
    root = tmp_path / "bids"
    root.mkdir(exist_ok=True)
    (root / "dataset_description.json").write_text(json.dumps({"Name": "x", "BIDSVersion": "1.10.1"}))
    path = root / name.partition("_")[0] / "anat" / f"{name}.nii.gz"
    write_nifti(path, phantom((12, 14, 11)), np.diag([*spacing, 1.0]))
    fields = {} if thickness is None else {"SliceThickness": thickness}
    path.with_name(f"{name}.json").write_text(json.dumps(fields))
    return path


def test_a_single_volume_is_super_resolved(run, tmp_path):
    add(tmp_path, "sub-01_T1w")
    code, out, err = run("--modality", "T1w")
    assert code == 0
    assert err == "sub-01_T1w: super-resolution, as this is the only volume (--mode auto)\n"
    volume = tmp_path / "out" / "sub-01" / "anat" / "sub-01_rec-gsr_res-1_desc-preproc_T1w.nii.gz"
    assert f"sub-01_T1w: super-resolution -> {volume}" in out
    assert "sub-01_T1w.nii.gz: mask none" in out


def test_thick_stacks_are_put_together(run, tmp_path):
    for number in (1, 2, 3):
        add(tmp_path, f"sub-01_run-{number}_T2w", (1, 1, 4), 4.0)
    code, out, err = run()
    assert code == 0
    assert "slice-to-volume reconstruction of 3 stacks that are thick (--mode auto)" in err
    assert "sub-01_rec-gsvr_res-0p8_desc-preproc_T2w.nii.gz" in out
    code, out, err = run("--mode", "sr")
    assert code == 0
    assert err.count("sub-01_T2w has 3 volumes, and each is super-resolved by itself") == 3
    # Thick slices become as fine as they are in their plane.
    assert "sub-01_rec-gsr_run-2_res-1_desc-preproc_T2w.nii.gz" in out


def test_repeats_that_are_not_thick_are_super_resolved_each(run, tmp_path):
    for number in (1, 2):
        add(tmp_path, f"sub-01_run-{number}_T1w")
    code, out, err = run("--modality", "T1w", "--output-resolution", 1, 2, 0.5)
    assert code == 0
    assert err.count("super-resolution of each of 2 volumes by itself, as none of them has thick slices") == 2
    assert "sub-01_rec-gsr_run-1_res-1x2x0p5_desc-preproc_T1w.nii.gz" in out


def test_slices_that_overlap_are_thick():
    stacks = tuple(StackFile("missing.nii.gz", {"sub": "01", "run": str(k), "suffix": "T2w"}) for k in (1, 2))
    task = ReconstructionTask("01", None, "T2w", {"sub": "01", "suffix": "T2w"}, stacks)
    # Files that cannot be read are named by the check of stacks.
    assert [part.method for part in choose_method(task, "auto")] == ["svr"]
    assert [part.entities["run"] for part in choose_method(task, "sr")] == ["1", "2"]


def test_overlap_counts(run, tmp_path):
    for number in (1, 2):
        add(tmp_path, f"sub-01_run-{number}_T2w", thickness=4.0)
    assert "2 stacks that are thick" in run()[2]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--mode", "svr"], "has this one stack only"),
        (["--mode", "svr", "--sr-factor", "2"], "--sr-factor: is for super-resolution"),
        (["--mode", "svr", "--output-resolution", "1", "1", "2"], "voxels of SVR have equal sides"),
        (["--output-resolution", "3"], "not finer than the image's 2 x 2 x 2 mm"),
        (["--like", "missing.nii.gz"], "there is no such file"),
        (["--mask-mode", "derivatives", "-d", "masks"], "no mask for this volume"),
        (["--slice-thickness", "0.05"], "0.05 mm is out of range"),
        (["--sr-factor", "2", "--output-resolution", "1"], "not allowed with"),
    ],
)
def test_one_line_for_what_cannot_be(run, tmp_path, capsys, monkeypatch, options, words):
    add(tmp_path, "sub-01_T2w")
    write_nifti(tmp_path / "masks/sub-09/anat/sub-09_desc-brain_mask.nii.gz", np.ones((4, 4, 4), "uint8"), np.eye(4))
    monkeypatch.chdir(tmp_path)
    try:
        code, out, err = run(*options)
    except SystemExit as left:
        code, (out, err) = left.code, capsys.readouterr()
    assert (code, out) == (2, "")
    assert words in err
    assert len(err.strip().splitlines()) == 1


def test_options_without_effect_are_named(run, tmp_path):
    add(tmp_path, "sub-01_T2w")
    err = run("--preview", "--slice-thickness", 2.5)[2]
    assert "--preview: not used" in err
    assert "--slice-thickness is not used: its voxels are no thick slices" in err
    add(tmp_path, "sub-02_T2w", (1, 1, 4))
    assert "sub-02_T2w: no SliceThickness in the sidecar" in run()[2]
    for number in (1, 2):
        add(tmp_path, f"sub-03_run-{number}_T2w", (1, 1, 4), 4.0)
    assert "--sr-factor: not used" in run("--sr-factor", 2, "--participant-label", "03")[2]
    # Voxels with unequal sides are for the volumes alone.
    code, out, err = run("--output-resolution", 1, 1, 0.5)
    assert code == 1
    assert "sub-03_T2w is reconstructed from stacks (SVR)" in err
    assert "sub-02_T2w: super-resolution" in out


def test_filters_are_on_for_stacks_only(tmp_path):
    config = Config(Execution(tmp_path, tmp_path, tmp_path))
    assert (config.of_method("svr").workflow.denoise, config.of_method("svr").workflow.n4) == (True, True)
    assert (config.of_method("sr").workflow.denoise, config.of_method("sr").workflow.n4) == (False, False)
    asked = Config(config.execution, WorkflowOptions(n4=True, denoise=False))
    for method in ("svr", "sr"):
        assert (asked.of_method(method).workflow.denoise, asked.of_method(method).workflow.n4) == (False, True)
