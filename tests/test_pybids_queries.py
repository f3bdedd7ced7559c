# SPDX-License-Identifier: Apache-2.0
"""The output is found by the queries that users of other tools write, with and without the raw data beside it."""

import json

import pytest
from conftest import ball_stack, write_nifti

from gsbids.bids.description import write_description
from gsbids.bids.names import KINDS, sidecar_path
from gsbids.bids.query import Selection, find_tasks
from gsbids.bids.sink import Sink

#: As they stand in the specifications of smriprep and nibabies: null is "must be absent".
SMRIPREP = {
    "t2w_preproc": {
        "datatype": "anat",
        "space": None,
        "suffix": "T2w",
        "desc": "preproc",
        "extension": [".nii.gz", ".nii"],
    },
    "t2w_mask": {
        "datatype": "anat",
        "space": None,
        "suffix": "mask",
        "desc": "brain",
        "extension": [".nii.gz", ".nii"],
    },
}
VOLUME = "sub-{}_rec-gsvr_res-0p8_desc-preproc_T2w.nii.gz"


@pytest.fixture
def trees(tiny_bids, tmp_path):
    """Raw data of two subjects, and what reconstructions of them write; that of the second also on a template."""
    tiny, out = tiny_bids(subjects=("01", "02")), tmp_path / "out"
    write_description(out, {"": out, "raw": tiny.root})
    image = write_nifti(tmp_path / "image.nii.gz", *ball_stack(1)[::2])
    text = {".txt": b"#Insight Transform File V1.0\n", ".tsv": b"a\n1\n", ".npz": b"PK"}
    sink = Sink(out)
    for task in find_tasks(tiny.root, Selection()):
        sources = {"Sources": [f"bids:raw:{stack.path.relative_to(tiny.root)}" for stack in task.stacks]}
        for kind, pattern in KINDS.items():
            if (
                pattern.folder != "anat"
                or pattern.level == "volume"
                or kind in ("preview", "template_xfm", "scanner_xfm")
            ):
                continue
            source = text.get(pattern.extension, image)
            for item in task.stacks if pattern.level == "stack" else [task]:
                sink.write(kind, item.entities, source, sources, **({"res": 0.8} if pattern.needs else {}))
        if task.subject == "02":
            place = sources | {"SpatialReference": "bids:template:atlas.nii.gz"}
            sink.write("volume", task.entities, image, place, res=0.8, space="template")
            for kind, end in (("template_xfm", "from"), ("scanner_xfm", "to")):
                sink.write(kind, task.entities, text[".txt"], sources, **{end: "T2w"})
    return tiny.root, out


@pytest.fixture(params=["alone", "derivative", "beside raw"])
def layout(request, trees):
    """The output as a layout, in the ways that users open it, and what narrows queries to it."""
    from bids import BIDSLayout

    raw, out = trees
    if request.param == "beside raw":
        return BIDSLayout(raw, derivatives=out), {"scope": "gsbids"}
    given = {"is_derivative": True} if request.param == "derivative" else {}
    return BIDSLayout(out, validate=False, **given), {}


def found(layout, **query) -> list[str]:
    """Names of the files that a query finds."""
    layout, scope = layout
    return sorted(file.filename for file in layout.get(**scope, **query))


def test_subjects_and_what_is_there(layout):
    assert layout[0].get_subjects(**layout[1]) == ["01", "02"]
    assert found(layout, desc="preproc", suffix="T2w", extension=".nii.gz") == sorted(
        [VOLUME.format("01"), VOLUME.format("02"), VOLUME.format("02").replace("_res", "_space-template_res")]
    )


@pytest.mark.parametrize("subject", ["01", "02"])
def test_smriprep_and_nibabies(layout, subject):
    """The volume in its own space and no other; of the masks that of the volume is the one without a run."""
    assert found(layout, subject=subject, **SMRIPREP["t2w_preproc"]) == [VOLUME.format(subject)]
    masks = found(layout, subject=subject, **SMRIPREP["t2w_mask"])
    of_volume = f"sub-{subject}_rec-gsvr_res-0p8_desc-brain_mask.nii.gz"
    assert masks == sorted([of_volume, *(f"sub-{subject}_run-{n}_desc-brain_mask.nii.gz" for n in (1, 2, 3))])
    assert found(layout, subject=subject, run=None, **SMRIPREP["t2w_mask"]) == [of_volume]


def test_by_method_as_users_of_fetpype(layout, trees):
    query = {"subject": "01", "reconstruction": "gsvr", "datatype": "anat", "extension": ".nii.gz"}
    assert found(layout, suffix="T2w", desc="preproc", **query) == [VOLUME.format("01")]
    assert found(layout, suffix="mask", **query) == ["sub-01_rec-gsvr_res-0p8_desc-brain_mask.nii.gz"]
    assert len(found(layout, suffix="T2w", **query)) == 5  # preproc, brain, unmasked, coverage, uncertainty
    names = [path.name for path in trees[1].glob("sub-01/anat/*_rec-gsvr*_desc-preproc_T2w.nii.gz")]
    assert names == [VOLUME.format("01")]


def test_stacks_transforms_and_spaces(layout):
    assert found(layout, subject="01", desc="n4", suffix="T2w", run=2, extension=".nii.gz") == [
        "sub-01_run-2_desc-n4_T2w.nii.gz"
    ]
    assert len(found(layout, subject="01", suffix="xfm", extension=".txt")) == 6
    assert found(layout, subject="02", suffix="xfm", extension=".txt", run=None) == [
        "sub-02_rec-gsvr_from-T2w_to-template_mode-image_xfm.txt",
        "sub-02_rec-gsvr_from-template_to-T2w_mode-image_xfm.txt",
    ]
    assert found(layout, space="template", desc="preproc", extension=".nii.gz") == [
        VOLUME.format("02").replace("_res", "_space-template_res")
    ]
    assert found(layout, subject="01", suffix="timeseries", run=1, extension=".tsv") == [
        "sub-01_run-1_desc-motion_timeseries.tsv"
    ]


def test_metadata_is_that_of_the_sidecar_and_nothing_else(layout):
    layout, scope = layout
    (file,) = layout.get(subject="01", **SMRIPREP["t2w_preproc"], **scope)
    sidecar = json.loads(sidecar_path(file.path).read_text(encoding="utf-8"))
    assert file.get_metadata() == sidecar
    assert sidecar["SkullStripped"] is False  # a rim around the brain is shown
    (brain,) = layout.get(subject="01", suffix="T2w", desc="brain", space=None, extension=".nii.gz", **scope)
    assert brain.get_metadata()["SkullStripped"] is True
    assert sidecar["Resolution"] == "0.8 mm isotropic"
