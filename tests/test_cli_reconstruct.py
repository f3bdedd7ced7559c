# SPDX-License-Identifier: Apache-2.0
"""``gsbids reconstruct``: plain files in and out, and everything that it refuses in one line."""

import json
import sys

import fakes
import numpy as np
import pytest
from conftest import ball_stack, write_nifti

from gsbids.cli.main import main
from gsbids.imaging.nifti import load_image


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three stacks of a ball and their masks in the current folder; only the first has a sidecar."""
    monkeypatch.chdir(tmp_path)
    # Nothing is left where work folders are made.
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    for n in (1, 2, 3):
        image, mask, affine = ball_stack(n)
        write_nifti(tmp_path / f"s {n}.nii.gz", image, affine)
        write_nifti(tmp_path / f"m{n}.nii.gz", mask, affine)
    (tmp_path / "s 1.json").write_text(json.dumps({"SliceThickness": 3.5}))
    return tmp_path


STACKS = ["--input-stacks", "s 1.nii.gz", "s 2.nii.gz", "s 3.nii.gz"]
MASKS = ["--input-masks", "m1.nii.gz", "m2.nii.gz", "m3.nii.gz"]
OUT = ["--output-volume", "out.nii.gz"]
QUICK = ["--sloppy", "--no-denoise", "--no-n4", "--nprocs", "1", "--output-resolution", "2"]


def names(folder):
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_volume_mask_and_everything_else(files, capsys):
    before = names(files)
    more = ["--output-mask", "new/mask.nii", "--output-report", "r.html", "--output-folder", "all"]
    assert main(["reconstruct", *STACKS, *MASKS, *OUT, *more, *QUICK]) == 0
    said = capsys.readouterr().err
    assert "wrote out.nii.gz" in said
    assert "Traceback" not in said
    volume, affine = load_image(files / "out.nii.gz")
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), 2.0, rtol=1e-6)
    mask, mask_affine = load_image(files / "new" / "mask.nii")
    np.testing.assert_allclose(mask_affine, affine)
    assert 0.7 < mask.sum() * 8 / (4 / 3 * np.pi * 20 * 23 * 18) < 1.3
    assert volume[mask > 0].mean() > 300
    anat = files / "all" / "sub-out" / "anat"
    saved = anat / "sub-out_rec-gsvr_res-2_desc-preproc_T2w.nii.gz"
    assert saved.read_bytes() == (files / "out.nii.gz").read_bytes()
    sidecar = json.loads(saved.with_name(saved.name.replace(".nii.gz", ".json")).read_text())
    assert "bids:raw:s 1.nii.gz" in sidecar["Sources"]
    assert len(list(anat.glob("*_desc-motion_timeseries.tsv"))) == 3
    # Thickness of the one that has it is taken for the others, and said.
    assert "3.5 mm is taken from the other stacks" in said
    page = (files / "r.html").read_text(encoding="utf-8")
    assert "s 2.nii.gz" in page
    assert "3 stacks of thick slices were processed with gsbids" in page
    assert "Brain masks were given with the stacks" in page
    assert "organised as a BIDS data set" not in page
    assert "--mode" not in page
    assert list((files / "tmp").glob("gsbids-*")) == []
    assert set(before) < set(names(files))


@pytest.fixture
def fake(monkeypatch):
    for name, module in fakes.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    return lambda **behaviour: monkeypatch.setenv("GSBIDS_FAKE", json.dumps(behaviour))


def test_a_step_that_fails(files, capsys, fake):
    fake(out="raise")
    assert main(["reconstruct", *STACKS, *MASKS, *OUT, *QUICK]) == 1
    said = capsys.readouterr().err
    assert "step reconstruct failed: ValueError: the reconstruction went wrong; details in" in said
    kept = list((files / "tmp").glob("gsbids-*"))
    assert said.splitlines()[-1] == f"gsbids: error: out.nii.gz: not written; what the steps left is in {kept[0]}"
    assert not (files / "out.nii.gz").exists()
    # With a work folder of its own, the same command goes on when the cause is gone.
    fake(out="raise")
    assert main(["reconstruct", *STACKS, *MASKS, *OUT, *QUICK, "-w", "work"]) == 1
    fake()
    assert main(["reconstruct", *STACKS, *MASKS, *OUT, *QUICK, "-w", "work"]) == 0
    assert (files / "out.nii.gz").read_text() == "x"
    assert (files / "work").is_dir()


def test_a_volume_not_to_be_used_is_written_all_the_same(files, capsys, fake):
    fake(out="do not use")
    assert main(["reconstruct", *STACKS, *MASKS, *OUT, *QUICK]) == 3
    assert capsys.readouterr().err.splitlines()[-2:] == [
        "wrote out.nii.gz",
        "gsbids: error: out.nii.gz: do not use this volume: It is blurred. It is upside down.",
    ]
    assert (files / "out.nii.gz").read_text() == "x"
    assert list((files / "tmp").glob("gsbids-*")) == []
    fake(out="look at it")
    assert main(["reconstruct", *STACKS, *MASKS, *OUT, *QUICK]) == 0
    assert "gsbids: warning: out.nii.gz: look at this volume before you use it: It is" in capsys.readouterr().err


def test_thickness(files, fake, capsys):
    from gsbids.cli.commands.reconstruct import make_plan, parse

    def thicknesses(*words):
        plan = make_plan(parse([*STACKS, *MASKS, *OUT, *words]), files / "work")
        return [stack.thickness for stack in plan.tasks[0].stacks]

    assert thicknesses() == [3.5] * 3
    assert thicknesses("--slice-thickness", "3") == [3.0] * 3
    assert thicknesses("--thicknesses", "3", "header", "2.5") == [3.0, 4.0, 2.5]
    assert thicknesses("--slice-thickness", "header") == [4.0] * 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([*STACKS], "required: --output-volume"),
        ([*OUT], "--input-stacks --input-slices is required"),
        ([*STACKS, "--output-volume", "out.mgz"], "must end with .nii.gz"),
        ([*STACKS, *OUT, "--output-model", "m.pkl"], "must end with .npz"),
        ([*STACKS, *OUT, "--input-masks", "m1.nii.gz"], "1 files for 3 stacks"),
        ([*STACKS, *OUT, "--slice-thickness", "3", "3"], "2 values for 3 stacks"),
        ([*STACKS, *OUT, "--slice-thickness", "thin"], "not a number of mm"),
        ([*STACKS, *OUT, "--output-resolution", "0"], "out of range"),
        ([*STACKS, *OUT, "--device", "cuda"], "--device cpu"),
        (["--input-stacks", "s 1.nii.gz", "no.nii.gz", *OUT], "no.nii.gz: there is no such file"),
        (["--input-stacks", "s 1.nii.gz", "./s 1.nii.gz", *OUT], "is given twice"),
        (["--input-stacks", "s 1.nii.gz", *OUT], "needs two or more"),
        (["--input-stacks", "s 2.nii.gz", "s 3.nii.gz", *OUT], "--slice-thickness"),
        ([*STACKS, "--output-volume", "s 1.nii.gz"], "is an input"),
        ([*STACKS, "--output-volume", "no/where/out.nii.gz"], "there is no folder no"),
        ([*STACKS, *OUT, "--output-mask", "./out.nii.gz"], "two outputs have this name"),
        (["--input-stacks", "s 1.nii.gz", "broken.nii.gz", *OUT], "not a readable NIfTI file"),
        ([*STACKS, *OUT, "--input-masks", "m1.nii.gz", "m2.nii.gz", "empty.nii.gz"], "the mask is empty"),
        ([*STACKS, *OUT, "--nonsense"], "--nonsense"),
    ],
)
def test_one_line_for_what_cannot_be(files, capsys, words, message):
    (files / "broken.nii.gz").write_bytes(b"nothing of the kind")
    image, _, affine = ball_stack(3)
    write_nifti(files / "empty.nii.gz", 0 * image, affine)
    before = names(files)
    try:
        code = main(["reconstruct", *words])
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr().err
    assert code == 2
    errors = [line for line in said.splitlines() if line.startswith(("gsbids: error: ", "gsbids reconstruct: error: "))]
    assert len(errors) == 1
    assert message in errors[0]
    assert "--bids-filter-file" not in errors[0]
    assert "Traceback" not in said
    assert names(files) == before
    assert list((files / "tmp").glob("gsbids-*")) == []


@pytest.mark.parametrize("container", ["docker", "singularity"])
def test_the_command_of_fetpype(container):
    """Filled in as fetpype does, the YAML of the documentation is a command that is understood."""
    import re
    import shlex

    import yaml
    from conftest import CHECKOUT

    from gsbids.cli.commands.reconstruct import parse

    command = yaml.safe_load((CHECKOUT / "docs" / "fetpype.yaml").read_text())[container]["cmd"]
    tags = {
        "mount": "-v /d:/d",
        "input_stacks": "/d/a.nii.gz /d/b.nii.gz",
        "input_masks": "/m/a.nii.gz /m/b.nii.gz",
        "output_volume": "/o/recon/recon.nii.gz",
        "output_res": "0.8",
        "input_tp": "3.3",
        "singularity_path": "/s",
        "singularity_mount": "/d:/d",
    }
    assert set(re.findall("<(.*?)>", command)) <= set(tags)
    for tag, text in tags.items():
        command = command.replace(f"<{tag}>", text)
    words = shlex.split(command)
    args = parse(words[words.index("reconstruct") + 1 :])
    assert (len(args.input_stacks), len(args.input_masks)) == (2, 2)
    assert (args.output_resolution, args.slice_thickness, args.denoise, args.n4) == (0.8, [3.3], False, False)
