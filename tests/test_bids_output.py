# SPDX-License-Identifier: Apache-2.0
"""Names, sidecars and root files of the output; the official validator has the last word."""

import json
import re

import numpy as np
import pytest
from conftest import ball_stack, write_nifti

from gsbids.bids import description
from gsbids.bids.description import check_folders, write_description
from gsbids.bids.names import DESCRIPTIONS, KINDS, build_name, derivative_path, log_folder, parse_name, uri_of
from gsbids.bids.query import Selection, find_tasks
from gsbids.bids.sink import Sink, to_json
from gsbids.errors import InputError

TASK = {"sub": "01", "ses": "02", "acq": "haste", "suffix": "T2w"}
STACK = TASK | {"run": "3"}

# The golden tree: kind, path.
TREE = {
    "volume": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_rec-gsvr_res-0p8_desc-preproc_T2w.nii.gz",
    "volume_brain": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_rec-gsvr_res-0p8_desc-brain_T2w.nii.gz",
    "volume_unmasked": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_rec-gsvr_res-0p8_desc-unmasked_T2w.nii.gz",
    "volume_mask": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_rec-gsvr_res-0p8_desc-brain_mask.nii.gz",
    "coverage": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_rec-gsvr_res-0p8_desc-coverage_T2w.nii.gz",
    "uncertainty": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_rec-gsvr_res-0p8_desc-uncertainty_T2w.nii.gz",
    "preview": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_rec-gsvr_desc-preview_T2w.nii.gz",
    "template_xfm": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_rec-gsvr_from-T2w_to-template_mode-image_xfm.txt",
    "scanner_xfm": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_rec-gsvr_from-template_to-T2w_mode-image_xfm.txt",
    "model": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_rec-gsvr_desc-gaussians_model.npz",
    "metrics": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_rec-gsvr_desc-qc_metrics.tsv",
    "sr_volume": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_rec-gsr_run-3_res-0p8_desc-preproc_T2w.nii.gz",
    "sr_mask": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_rec-gsrT2w_run-3_res-0p8_desc-brain_mask.nii.gz",
    "sr_model": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_rec-gsrT2w_run-3_desc-gaussians_model.npz",
    "sr_metrics": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_rec-gsrT2w_run-3_desc-qc_metrics.tsv",
    "report": "sub-01_ses-02_acq-haste.html",
    "figure": "sub-01/figures/sub-01_ses-02_acq-haste_rec-gsvr_desc-motion_T2w.svg",
    "stack": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_run-3_desc-n4_T2w.nii.gz",
    "stack_mask": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_run-3_desc-brain_mask.nii.gz",
    "simulated": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_run-3_desc-simulated_T2w.nii.gz",
    "stack_xfm": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_run-3_from-orig_to-gsvr_mode-image_xfm.txt",
    "slices_xfm": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_run-3_from-orig_to-gsvr_mode-image_desc-slices_xfm.txt",
    "motion": "sub-01/ses-02/anat/sub-01_ses-02_acq-haste_run-3_desc-motion_timeseries.tsv",
}


def extra(kind: str) -> dict:
    return {key: {"res": 0.8, "desc": "motion", "from": "T2w", "to": "T2w"}[key] for key in KINDS[kind].needs}


@pytest.mark.parametrize("kind", KINDS)
def test_golden_tree(kind):
    entities = TASK if KINDS[kind].level == "task" else STACK
    assert str(derivative_path(entities, kind, **extra(kind))) == TREE[kind]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].folder == "anat"])
def test_no_output_bears_a_name_of_raw_data(kind):
    entities = TASK if KINDS[kind].level == "task" else STACK
    name = parse_name(derivative_path(entities, kind, **extra(kind)).name)
    assert {"desc", "space", "res", "from"} & set(name)


def test_names_without_session_and_with_rec():
    assert str(derivative_path({"sub": "01", "suffix": "T2w"}, "report")) == "sub-01.html"
    assert str(derivative_path({"sub": "01", "suffix": "T1w"}, "report")) == "sub-01_T1w.html"
    path = derivative_path({"sub": "01", "rec": "norm", "suffix": "T2w"}, "model")
    assert str(path) == "sub-01/anat/sub-01_rec-normgsvr_desc-gaussians_model.npz"
    # Contrasts of one subject never share a name.
    for kind in ("volume_mask", "sr_mask", "model", "sr_model", "metrics", "sr_metrics"):
        names = {derivative_path({"sub": "01", "suffix": suffix}, kind, **extra(kind)) for suffix in ("T1w", "T2w")}
        assert len(names) == 2
    assert str(log_folder(TASK, "20260101-000000_ab")) == "sub-01/log/20260101-000000_ab"


def test_names_that_cannot_be():
    with pytest.raises(ValueError, match="res is missing"):
        derivative_path(TASK, "volume")
    with pytest.raises(ValueError, match="letters and digits"):
        build_name({"sub": "0.1"}, "T2w")
    with pytest.raises(ValueError, match="unknown entities: colour"):
        build_name({"sub": "01", "colour": "red"}, "T2w")
    with pytest.raises(ValueError, match="no further entities"):
        derivative_path(STACK, "stack", res=0.8)


def test_uris_take_the_deepest_data_set(tmp_path):
    masks = tmp_path / "bids" / "derivatives" / "m"
    datasets = {"": tmp_path / "out", "raw": tmp_path / "bids", "masks": masks}
    assert uri_of(masks / "sub-01" / "a.nii", datasets) == "bids:masks:sub-01/a.nii"
    assert uri_of(tmp_path / "out" / "sub-01" / "a.nii", datasets) == "bids::sub-01/a.nii"
    with pytest.raises(ValueError, match="in none of the data sets"):
        uri_of(tmp_path / "a.nii", datasets)


def test_sink_writes_data_and_sidecar(tmp_path):
    source = write_nifti(tmp_path / "x.nii.gz", *ball_stack(1)[::2])
    sidecar = {"Sources": ["bids:raw:a"], "NumberOfGaussians": np.int64(5), "Shift": np.zeros(2)}
    path = Sink(tmp_path / "out").write("volume", TASK, source, sidecar, res=0.8)
    assert path == tmp_path / "out" / TREE["volume"]
    assert path.read_bytes() == source.read_bytes()
    fields = json.loads((path.parent / path.name.replace(".nii.gz", ".json")).read_text())
    assert fields == {
        "Description": DESCRIPTIONS["preproc"],
        "SpatialReference": "orig",
        "SkullStripped": False,
        "Resolution": "0.8 mm isotropic",
        "Sources": ["bids:raw:a"],
        "NumberOfGaussians": 5,
        "Shift": [0.0, 0.0],
    }
    assert not list(tmp_path.rglob("*.tmp"))


def test_sink_refuses(tmp_path):
    source = write_nifti(tmp_path / "x.nii.gz", *ball_stack(1)[::2])
    sink = Sink(tmp_path / "out")
    with pytest.raises(ValueError, match="need Sources"):
        sink.write("stack", STACK, source)
    with pytest.raises(ValueError, match="extension differs"):
        sink.write("motion", STACK, source)
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json({"a": float("nan")})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("shared", [False, True])
def test_sink_keeps_one_owner_a_name(tmp_path, shared):
    registry = tmp_path / "registry" if shared else None
    sink = Sink(tmp_path / "out", registry)
    other = Sink(tmp_path / "out", registry) if shared else sink
    sink.write("motion", STACK, b"a\n1\n")
    sink.write("motion", STACK, b"a\n1\n")
    with pytest.raises(FileExistsError, match="was written from"):
        other.write("motion", STACK, b"a\n2\n")
    assert (tmp_path / "out" / TREE["motion"]).read_bytes() == b"a\n1\n"
    other.write("motion", STACK | {"run": "4"}, b"a\n2\n")


def test_interrupted_write_leaves_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        Sink(tmp_path).write("motion", STACK, tmp_path / "nope.tsv")
    assert [path.suffix for path in tmp_path.rglob("*") if path.is_file()] == [".json"]


def test_root_files_are_written_once(tmp_path):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    (raw / "dataset_description.json").write_text(json.dumps({"License": "CC0", "DatasetDOI": "doi:1"}))
    write_description(out, {"": out, "raw": raw})
    first = {path.name: path.stat().st_mtime_ns for path in out.iterdir()}
    assert set(first) == {"dataset_description.json", "README.md", ".bidsignore", "descriptions.tsv"}
    fields = json.loads((out / "dataset_description.json").read_text())
    assert fields["DatasetLinks"] == {"raw": "../raw"}
    assert (fields["License"], fields["SourceDatasets"]) == ("CC0", [{"DOI": "doi:1"}])
    write_description(out, {"raw": raw})
    assert {path.name: path.stat().st_mtime_ns for path in out.iterdir()} == first
    write_description(out, {"raw": raw, "masks": tmp_path / "m"})
    fields = json.loads((out / "dataset_description.json").read_text())
    assert fields["DatasetLinks"] == {"raw": "../raw", "masks": "../m"}


def test_output_folders_of_others_are_refused(tmp_path, monkeypatch, caplog):
    check_folders(tmp_path / "raw", tmp_path)
    file = tmp_path / "dataset_description.json"
    for fields, what in (
        ({"Name": "x"}, "a raw BIDS data set"),
        ({"DatasetType": "derivative", "GeneratedBy": [{"Name": "fMRIPrep"}]}, "fMRIPrep"),
    ):
        file.write_text(json.dumps(fields))
        with pytest.raises(InputError, match=what):
            check_folders(tmp_path / "raw", tmp_path)
    file.write_text("{")
    with pytest.raises(InputError, match="not a JSON file"):
        check_folders(tmp_path / "raw", tmp_path)
    file.unlink()
    write_description(tmp_path, {"raw": tmp_path})
    check_folders(tmp_path / "raw", tmp_path)
    monkeypatch.setattr(description, "__version__", "9.9")
    check_folders(tmp_path / "raw", tmp_path)
    assert "this is 9.9" in caplog.text


@pytest.fixture
def full_tree(tiny_bids, tmp_path):
    """Output with every kind of file, and the links of its Sources."""
    tiny, out = tiny_bids(), tmp_path / "out"
    datasets = {"": out, "raw": tiny.root, "masks": tiny.masks}
    (task,) = find_tasks(tiny.root, Selection(mask_datasets={"masks": tiny.masks}))
    write_description(out, datasets)
    sink, sources = Sink(out), {}
    for level, items in (("stack", task.stacks), ("volume", task.stacks), ("task", [task])):
        for kind in (kind for kind in KINDS if KINDS[kind].level == level):
            for item in items:
                source = tmp_path / f"source{KINDS[kind].extension}"
                if kind.endswith("mask"):
                    write_nifti(source, *ball_stack(1)[1:])
                elif source.name.endswith(".nii.gz"):
                    write_nifti(source, *ball_stack(1)[::2])
                else:
                    source.write_text("a\tb\n1\t2\n")
                files = sources.values() if level == "task" else [item.path, item.mask]
                sidecar = {"Sources": [uri_of(file, datasets) for file in files]}
                path = Sink(out).write(kind, item.entities, source, sidecar, **extra(kind))
                if kind == "stack":
                    sources[item.name] = path
    assert sink.output_dir == out
    log = out / log_folder(task.entities, "20260101-000000_ab")
    log.mkdir(parents=True)
    (log / "gsbids.toml").write_text("[execution]\n")
    return out


def test_validator_passes(full_tree, official_errors):
    assert official_errors(full_tree) == []


def test_every_source_resolves(full_tree):
    links = json.loads((full_tree / "dataset_description.json").read_text())["DatasetLinks"]
    sidecars = [path for path in full_tree.rglob("*.json") if path.parent.name == "anat"]
    assert len(sidecars) == 11 + 3 * 4 + 3 * 6
    for sidecar in sidecars:
        for uri in json.loads(sidecar.read_text())["Sources"]:
            dataset, relative = re.fullmatch(r"bids:([a-z]*):(.+)", uri).groups()
            assert (full_tree / links.get(dataset, ".") / relative).is_file(), uri


def test_every_desc_is_described(full_tree):
    listed = {line.split("\t")[0] for line in (full_tree / "descriptions.tsv").read_text().splitlines()}
    used = {parse_name(path.name).get("desc") for path in full_tree.rglob("sub-*") if path.is_file()} - {None}
    assert {f"desc-{desc}" for desc in used} <= listed
