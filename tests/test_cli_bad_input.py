# SPDX-License-Identifier: Apache-2.0
"""Bad input: exit code 2, one line that names the file or option and the way out, nothing written."""

import gzip
import json
import re

import numpy as np
import pytest
from conftest import ball_stack, write_nifti

from gsbids.cli.main import main


def snapshot(folder) -> dict:
    return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in folder.rglob("*")}


@pytest.fixture
def refuse(tmp_path, capsys):
    """``refuse(bids_dir, *options)``: the one line that a run is refused with."""

    def call(bids_dir, *options, out=None, work=None) -> str:
        before = snapshot(tmp_path)
        code = main(
            [
                str(bids_dir),
                str(out or tmp_path / "out"),
                "participant",
                "-w",
                str(work or tmp_path / "work"),
                *map(str, options),
            ]
        )
        output, error = capsys.readouterr()
        assert snapshot(tmp_path) == before
        assert code == 2, error
        assert output == ""
        lines = [line for line in error.splitlines() if not line.startswith("gsbids: warning: ")]
        assert len(lines) == 1, error
        assert lines[0].startswith("gsbids: error: ")
        return lines[0].removeprefix("gsbids: error: ")

    return call


def test_missing_bids_dir(refuse, tmp_path):
    assert refuse(tmp_path / "nope").startswith(f"{tmp_path / 'nope'}: there is no such folder; give")


def test_empty_bids_dir(refuse, tmp_path):
    (tmp_path / "empty").mkdir()
    assert refuse(tmp_path / "empty").startswith(f"{tmp_path / 'empty'}: no sub-<label> folder in it; give")


@pytest.mark.parametrize("where", ["", "out", "derivatives", "derivatives/other", "derivatives/gsbids/more"])
def test_output_in_the_input(refuse, tiny_bids, where):
    tiny = tiny_bids()
    line = refuse(tiny.root, out=tiny.root / where)
    assert line.startswith(f"output_dir {tiny.root / where}: is {'inside' if where else 'the same as'} bids_dir")
    assert line.endswith(f"for example {tiny.root}-gsbids")


def test_output_in_the_input_through_a_link(refuse, tiny_bids, tmp_path):
    tiny = tiny_bids()
    (tmp_path / "link").symlink_to(tiny.root)
    assert refuse(tiny.root, out=tmp_path / "link" / "out").startswith("output_dir ")


def test_work_in_the_input(refuse, tiny_bids, tmp_path, monkeypatch):
    tiny = tiny_bids()
    assert refuse(tiny.root, work=tiny.root / "work").startswith(f"--work-dir {tiny.root / 'work'}: is inside")
    monkeypatch.chdir(tiny.root)
    assert refuse(tiny.root, work="work").endswith("give another with -w")
    assert refuse(tiny.root, work=tmp_path / "out").endswith("is the same as output_dir; give another with -w")
    assert refuse(tiny.root, "--bids-database-dir", "index").startswith("--bids-database-dir ")
    own = tiny.root / "derivatives" / "gsbids"
    assert refuse(tiny.root, out=own, work=own / "work").startswith(f"--work-dir {own / 'work'}: is inside")


def test_output_that_is_a_file(refuse, tiny_bids, tmp_path):
    (tmp_path / "file").write_text("")
    assert refuse(tiny_bids().root, out=tmp_path / "file" / "out").endswith("is a file, not a folder; give another")


def test_output_of_others(refuse, tiny_bids):
    tiny = tiny_bids()
    assert "the output folder holds derivatives of hand" in refuse(tiny.root, out=tiny.masks)
    other = tiny_bids(name="other")
    assert "the output folder holds a raw BIDS data set" in refuse(tiny.root, out=other.root)


def test_unknown_participant(refuse, tiny_bids):
    tiny = tiny_bids()
    line = refuse(tiny.root, "--participant-label", "sub-99")
    assert line == f"--participant-label 99: not in {tiny.root}; participants there are 01"


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ('{"stacks": {"acquisition": "tse"}}', 'the filter "stacks": {"acquisition": "tse"} leaves none of the 3 T2w'),
        ('{"stacks": {"hue": 1}}', "'hue' is not a recognized entity"),
        ('{"stacks": {', "not a JSON file"),
        ('{"stack": {}}', "unknown query 'stack'; queries are stacks and masks"),
        ("[1]", 'expected {"stacks"'),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_filters(refuse, tiny_bids, tmp_path, text, what):
    file = tmp_path / "f.json"
    if text is not None:
        file.write_text(text)
    line = refuse(tiny_bids().root, "--bids-filter-file", file)
    assert line.startswith(f"--bids-filter-file {file}: ")
    assert what in line


def test_one_stack(refuse, tiny_bids):
    tiny = tiny_bids(stacks=1)
    line = refuse(tiny.root, "--mode", "svr")
    assert line.startswith(f"{tiny.stack()}: sub-01_T2w has this one stack only")
    assert "give --mode sr" in line


def test_no_thickness(refuse, tiny_bids):
    tiny = tiny_bids(thickness=None)
    assert refuse(tiny.root).endswith("add it to the JSON sidecar or give --slice-thickness MM")


def spoil_mask_empty(tiny):
    write_nifti(tiny.mask(), ball_stack(1)[1] * 0, ball_stack(1)[2])
    return tiny.mask(), "the mask is empty"


def spoil_mask_speck(tiny):
    mask, affine = ball_stack(1)[1:]
    speck = mask * 0
    speck[14, 14, 7] = 1
    write_nifti(tiny.mask(), speck, affine)
    return tiny.mask(), "the mask holds 0.016 ml, which is no brain"


def spoil_mask_elsewhere(tiny):
    affine = ball_stack(1)[2]
    affine[0, 3] += 300
    write_nifti(tiny.mask(), ball_stack(1)[1], affine)
    return tiny.mask(), "the mask does not overlap its stack"


def spoil_truncated(tiny):
    tiny.stack().write_bytes(tiny.stack().read_bytes()[:5000])
    return tiny.stack(), "truncated or corrupt"


def spoil_corrupt(tiny):
    tiny.stack().write_bytes(b"nothing of the kind")
    return tiny.stack(), "not a readable NIfTI file"


def spoil_volumes(tiny):
    image, _, affine = ball_stack(1)
    write_nifti(tiny.stack(), np.stack([image] * 3, axis=-1), affine)
    return tiny.stack(), "3 volumes"


def spoil_affine(tiny, numbers=0.0):
    raw = bytearray(gzip.decompress(tiny.stack().read_bytes()))
    raw[280:328] = np.full((3, 4), numbers, np.float32).tobytes()
    tiny.stack().write_bytes(gzip.compress(bytes(raw)))
    return tiny.stack(), "the affine (sform) is zero or singular"


def spoil_size(tiny):
    raw = bytearray(gzip.decompress(tiny.stack().read_bytes()))
    raw[42:48] = np.full(3, 32767, np.int16).tobytes()
    tiny.stack().write_bytes(gzip.compress(bytes(raw)))
    return tiny.stack(), "the header says 32767 x 32767 x 32767 voxels, which do not fit into memory"


def spoil_affine_singular(tiny):
    return spoil_affine(tiny, 2.0)


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_mask_empty,
        spoil_mask_speck,
        spoil_mask_elsewhere,
        spoil_truncated,
        spoil_corrupt,
        spoil_volumes,
        spoil_size,
        spoil_affine,
        spoil_affine_singular,
    ],
)
def test_bad_files(refuse, tiny_bids, spoil):
    tiny = tiny_bids()
    file, what = spoil(tiny)
    line = refuse(tiny.root, "-d", f"masks={tiny.masks}")
    assert line.startswith(f"{file}: ")
    assert what in line


def test_descriptions_that_are_not_json(refuse, tiny_bids):
    tiny = tiny_bids()
    (tiny.root / "dataset_description.json").write_text("{")
    assert refuse(tiny.root).startswith(f"{tiny.root / 'dataset_description.json'}: not a JSON file")


def test_derivatives(refuse, tiny_bids, tmp_path):
    tiny = tiny_bids()
    assert "there is no such folder" in refuse(tiny.root, "-d", f"masks={tmp_path / 'nope'}")
    assert "the name 'raw' is taken" in refuse(tiny.root, "-d", f"raw={tiny.masks}")
    assert "the name 'm' is taken" in refuse(tiny.root, "-d", f"m={tiny.masks}", f"m={tiny.masks}")
    assert "no *_mask.nii.gz in it" in refuse(tiny.root, "-d", tiny.root)
    (tmp_path / "own" / "masks").mkdir(parents=True)
    assert "lies in output_dir" in refuse(tiny.root, "-d", tmp_path / "own" / "masks", out=tmp_path / "own")
    assert "needs data sets with masks" in refuse(tiny.root, "--mask-mode", "derivatives")


@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_device_that_is_not_there(refuse, tiny_bids, device):
    line = refuse(tiny_bids().root, "--device", device)
    assert line.startswith(f"--device {device}: torch ")
    assert line.endswith("or give --device cpu")


def test_the_method_of_the_paper_on_a_gpu(refuse, tiny_bids):
    line = refuse(tiny_bids().root, "--device", "cuda", "--svr-method", "paper")
    assert line.startswith("--device cuda: --svr-method paper computes on the CPU only")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("plugin: SGEGraph", "submits jobs and does not wait"),
        ("plugin: Magic", "unknown plugin 'Magic'"),
        ("a: b", "expected the keys plugin"),
        ("plugin: [", "not a YAML file"),
        (None, "cannot be read"),
        ("plugin: SLURM\nplugin_args: 3", "plugin_args must be keys and values"),
    ],
)
def test_plugin_files(refuse, tiny_bids, tmp_path, text, what):
    file = tmp_path / "p.yml"
    if text is not None:
        file.write_text(text)
    line = refuse(tiny_bids().root, "--use-plugin", file)
    assert line.startswith(f"--use-plugin {file}: ")
    assert what in line


def test_every_bad_task_has_its_line(tiny_bids, tmp_path, capsys):
    tiny = tiny_bids(subjects=("01", "02"))
    for subject in ("01", "02"):
        tiny.stack(subject).write_bytes(b"")
    assert main([str(tiny.root), str(tmp_path / "out"), "participant", "-w", str(tmp_path / "work")]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert [
        bool(re.match(f"gsbids: error: .*sub-{k}_run-1", line)) for k, line in zip(("01", "02"), lines, strict=True)
    ] == [True, True]
    assert not (tmp_path / "out").exists()


def test_little_memory_is_said(tiny_bids, capsys, tmp_path):
    tiny = tiny_bids(stacks=1)
    main([str(tiny.root), str(tmp_path / "out"), "participant", "--mem", "16"])
    assert (
        "gsbids: warning: --mem: 16 MB is very little; a bare number is MB, write 16G for GB" in capsys.readouterr().err
    )


def test_masks_that_are_not_used_are_said(tiny_bids, capsys, tmp_path):
    tiny = tiny_bids(stacks=1)
    main([str(tiny.root), str(tmp_path / "out"), "participant", "--mask-mode", "otsu", "-d", str(tiny.masks)])
    assert "--derivatives: not used with --mask-mode otsu" in capsys.readouterr().err


def test_sidecar_without_sense(refuse, tiny_bids):
    tiny = tiny_bids()
    for run in (1, 2, 3):
        tiny.sidecar(run=run).write_text(json.dumps({"SliceThickness": 3500}))
    assert "a slice thickness of 3500 mm is outside" in refuse(tiny.root)
