# SPDX-License-Identifier: Apache-2.0
"""From BIDS data sets to tasks."""

import json
import math
import os
import shutil

import pytest

from gsbids.bids.query import Selection, find_tasks
from gsbids.errors import InputError


def with_masks(tiny, **more) -> Selection:
    return Selection(mask_datasets={"masks": tiny.masks}, **more)


def test_stacks_of_a_contrast_form_a_task(tiny_bids):
    tiny = tiny_bids(subjects=("01", "02"), stacks=3)
    tasks = find_tasks(tiny.root, with_masks(tiny))
    assert [task.name for task in tasks] == ["sub-01_T2w", "sub-02_T2w"]
    task = tasks[1]
    assert (task.subject, task.session, task.suffix) == ("02", None, "T2w")
    assert [stack.label for stack in task.stacks] == ["run-1", "run-2", "run-3"]
    assert [stack.mask for stack in task.stacks] == [tiny.mask("02", run) for run in (1, 2, 3)]
    assert {stack.thickness for stack in task.stacks} == {3.5}


def test_sessions_and_contrasts_are_kept_apart(tiny_bids):
    tiny = tiny_bids(stacks=1)
    source = tiny.stack()
    for name in (
        "ses-a/anat/sub-01_ses-a_run-1_T2w",
        "ses-a/anat/sub-01_ses-a_run-2_T2w",
        "ses-b/anat/sub-01_ses-b_acq-haste_run-1_T2w",
        "ses-b/anat/sub-01_ses-b_acq-tse_run-1_T2w",
        "ses-b/anat/sub-01_ses-b_run-1_T1w",
    ):
        path = tiny.root / "sub-01" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, path)
    names = [task.name for task in find_tasks(tiny.root)]
    assert names == ["sub-01_T2w", "sub-01_ses-a_T2w", "sub-01_ses-b_acq-haste_T2w", "sub-01_ses-b_acq-tse_T2w"]
    assert [len(task.stacks) for task in find_tasks(tiny.root, Selection(sessions=("a",)))] == [2]
    assert [task.suffix for task in find_tasks(tiny.root, Selection(suffix="T1w"))] == ["T1w"]


def test_runs_are_in_the_order_of_numbers(tiny_bids):
    tiny = tiny_bids(stacks=11)
    (task,) = find_tasks(tiny.root)
    assert [stack.entities["run"] for stack in task.stacks] == [str(run) for run in range(1, 12)]


def test_nothing_but_raw_stacks_is_taken(tiny_bids, caplog):
    tiny = tiny_bids(stacks=2)
    source = tiny.stack()
    for name in (
        "derivatives/x/sub-01/anat/sub-01_run-7_T2w.nii.gz",
        "sourcedata/sub-01/anat/sub-01_run-8_T2w.nii.gz",
        "reference/sub-01_rec-SR_T2w.nii.gz",
        "sub-01/anat/sub-01_run-1_desc-n4_T2w.nii.gz",
        "sub-01/anat/sub-01_run-1_mask.nii.gz",
        "sub-01/anat/sub-01_run-1_T2w_desc-brain_mask.nii.gz",
    ):
        path = tiny.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, path)
    (task,) = find_tasks(tiny.root)
    assert [stack.path for stack in task.stacks] == [tiny.stack(run=1), tiny.stack(run=2)]
    assert "sub-01_run-1_desc-n4_T2w.nii.gz: not a raw file name (desc), left out" in caplog.text


STRANGE = {
    "acq-T2-HASTE_run-7_T2w": "acq-T2-HASTE: BIDS labels hold letters, digits and '+' only",
    "acq-0.8mm_run-7_T2w": "acq-0.8mm: BIDS labels hold letters, digits and '+' only",
    "run-1.5_T2w": "run-1.5: BIDS labels hold letters, digits and '+' only",
    "acq-_run-7_T2w": "acq-: BIDS labels hold letters, digits and '+' only",
    "acq-späte_run-7_T2w": "acq-späte: BIDS labels hold letters, digits and '+' only",
    "acq-T2_HASTE_run-7_T2w": "'HASTE'",
    "orientation-ax_run-7_T2w": "orientation",
    "run-7_run-8_T2w": "run- stands in it twice",
}


def copy_stack(tiny, name, subject="01"):
    """Another stack of a data set, by its path below the root."""
    path = tiny.root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(tiny.stack(subject), path)
    return path


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
def test_names_that_bids_does_not_know_are_left_out_and_said(tiny_bids, caplog, ending):
    tiny = tiny_bids(stacks=2)
    paths = [copy_stack(tiny, f"sub-01/anat/sub-01_{name}{ending}") for name in STRANGE]
    paths += [
        copy_stack(tiny, "sub-02/anat/sub-02_acq-b-c_run-1_T2w.nii.gz"),
        copy_stack(tiny, "sub-03.1/anat/sub-03.1_run-1_T2w.nii.gz"),
        copy_stack(tiny, "sub-01/ses-1/anat/sub-01_run-1_T2w.nii.gz"),
        copy_stack(tiny, "sub-01/ses-1/anat/sub-01_ses-2_run-1_T2w.nii.gz"),
        copy_stack(tiny, "sub-04/anat/sub-05_run-1_T2w.nii.gz"),
    ]
    (task,) = find_tasks(tiny.root)
    assert [stack.path for stack in task.stacks] == [tiny.stack(run=1), tiny.stack(run=2)]
    rule = "BIDS labels hold letters, digits and '+' only"
    why = [
        *STRANGE.values(),
        f"acq-b-c: {rule}",
        f"sub-03.1: {rule}",
        *[f"it lies in {folder}, and the name does not say so" for folder in ("ses-1", "ses-1", "sub-04")],
    ]
    assert sorted(caplog.messages) == sorted(
        f"{path}: not a raw file name ({what}), left out; rename or move it, with its sidecar, to use it"
        for path, what in zip(paths, why, strict=True)
    )
    tiny.stack(run=1).unlink(), tiny.stack(run=2).unlink()
    with pytest.raises(InputError, match=r"none of 13 images can be used; /.*: not a raw file name \("):
        find_tasks(tiny.root)


def test_names_that_nearly_have_the_suffix_are_left_out_and_said(tiny_bids, caplog):
    tiny = tiny_bids(stacks=2)
    suffixes = {
        "T2W": "T2W",
        "T2w copy": "T2w copy",
        "T2w(1)": "T2w(1)",
        "T2w_1": "1",
        "T2wa": "T2wa",
        "T2w_heudiconv343_Eq_1": "1",
        "T2w__dup-01": "dup-01",
    }
    paths = [copy_stack(tiny, f"sub-01/anat/sub-01_run-7_{name}.nii.gz") for name in suffixes]
    for name in ("T2starw", "T2map", "T1w", "T2w_desc-brain_mask", "T2"):
        copy_stack(tiny, f"sub-01/anat/sub-01_run-7_{name}.nii.gz")
    (task,) = find_tasks(tiny.root)
    assert [stack.label for stack in task.stacks] == ["run-1", "run-2"]
    assert sorted(caplog.messages) == sorted(
        f"{path}: left out, as its suffix is {suffix!r}; rename it, with its sidecar, to end with _T2w to use it"
        for path, suffix in zip(paths, suffixes.values(), strict=True)
    )
    caplog.clear()
    assert [task.suffix for task in find_tasks(tiny.root, Selection(suffix="T2"))] == ["T2"]
    assert caplog.messages == []


def test_images_of_other_formats_are_left_out_and_said(tiny_bids, caplog):
    tiny = tiny_bids(stacks=2)
    endings = (".NII.GZ", ".img", ".mgz", ".nii.gz.nii", ".nii (1).gz", ".nrrd")
    paths = [copy_stack(tiny, f"sub-01/anat/sub-01_run-7_T2w{ending}") for ending in endings]
    for ending in (".hdr", ".json", ".nii.gz.json", ".png", ".txt"):
        copy_stack(tiny, f"sub-01/anat/sub-01_run-8_T2w{ending}")
    (task,) = find_tasks(tiny.root)
    assert [stack.label for stack in task.stacks] == ["run-1", "run-2"]
    assert sorted(caplog.messages) == sorted(
        f"{path}: left out, as its name ends with {ending!r}; convert it, or rename it, to .nii.gz to use it"
        for path, ending in zip(paths, endings, strict=True)
    )


def test_stacks_in_folders_where_bids_has_none_are_left_out_and_said(tiny_bids, caplog):
    tiny = tiny_bids(stacks=2)
    for place in ("sub-01/anat/old", "sub-01/anat/@eaDir", "sub-01/old/anat"):
        copy_stack(tiny, f"{place}/sub-01_run-1_T2w.nii.gz")
    for place in ("sub-01", "sub-01/fetal", "sub-01/Anat"):
        copy_stack(tiny, f"{place}/sub-01_run-7_T2w.nii.gz")
    for place in ("sub-01/anat/.ipynb_checkpoints", "sub-01/dwi", "sourcedata/sub-01/anat"):
        copy_stack(tiny, f"{place}/sub-01_run-1_T2w.nii.gz")
    (tiny.root / "sub-01" / "anat" / "._sub-01_run-1_T2w.nii.gz").write_bytes(b"\0\5\x16\7")
    (task,) = find_tasks(tiny.root)
    assert [stack.path for stack in task.stacks] == [tiny.stack(run=1), tiny.stack(run=2)]
    why = "it lies in {}, and images lie in the folder anat of their subject or session"
    assert sorted(caplog.messages) == sorted(
        [
            f"{tiny.root}/{place}/sub-01_run-1_T2w.nii.gz: not a raw file name ({why.format(place)}), left out; "
            "rename or move it, with its sidecar, to use it"
            for place in ("sub-01/anat/old", "sub-01/anat/@eaDir", "sub-01/old/anat")
        ]
        + [
            f"{tiny.root}/{place}/sub-01_run-7_T2w.nii.gz: left out, as {why.format(place)}; move it there, with its "
            "sidecar, to use it"
            for place in ("sub-01", "sub-01/fetal", "sub-01/Anat")
        ]
    )


def test_links_that_lead_back_to_where_they_lie_are_not_followed(tiny_bids, caplog):
    tiny = tiny_bids(stacks=2)
    loops = {"sub-01/anat/up": tiny.root / "sub-01", "sub-01/again": tiny.root / "sub-01", "sub-01/top": tiny.root}
    for name, target in loops.items():
        (tiny.root / name).symlink_to(target)
    (tiny.masks / "sub-01" / "again").symlink_to("..")
    moved = tiny.root.parent / "elsewhere"
    (tiny.root / "sub-01" / "anat").rename(moved)  # a link that leads elsewhere is followed
    (tiny.root / "sub-01" / "anat").symlink_to(moved)
    (moved / "up").unlink(), (moved / "up").symlink_to(moved)
    (task,) = find_tasks(tiny.root, with_masks(tiny))
    assert [stack.path for stack in task.stacks] == [tiny.stack(run=1), tiny.stack(run=2)]
    assert [stack.mask for stack in task.stacks] == [tiny.mask(run=1), tiny.mask(run=2)]
    loops["sub-01/anat/up"] = moved
    assert set(caplog.messages) == {
        f"{path}: left out, as this link leads back to {target}, in which it lies; remove it"
        for path, target in {
            **{tiny.root / name: target for name, target in loops.items()},
            tiny.masks / "sub-01" / "again": tiny.masks,
        }.items()
    }


def test_names_that_are_not_in_utf8_are_left_out_and_said(tiny_bids, caplog):
    """As of an archive made elsewhere; pybids stops at the first."""
    tiny = tiny_bids(subjects=("01", "02"), stacks=2)
    latin = os.fsdecode("für".encode("latin-1"))
    try:
        paths = [
            copy_stack(tiny, f"sub-{subject}/anat/sub-{subject}_acq-{latin}_run-1_T2w.nii.gz")
            for subject in ("01", latin)
        ]
        shutil.copy(tiny.mask(), tiny.mask().with_name(f"{latin}_mask.nii.gz"))
    except OSError:
        pytest.skip("this file system holds names in UTF-8 alone")
    first, second = find_tasks(tiny.root, with_masks(tiny))
    assert [len(task.stacks) for task in (first, second)] == [2, 2]
    assert all(stack.mask for task in (first, second) for stack in task.stacks)
    assert caplog.messages == [
        f"{path}: left out, as its name is not in UTF-8; rename it, with its sidecar, to use it" for path in paths
    ]
    elsewhere = tiny.root.with_name(latin)
    tiny.root.rename(elsewhere)
    with pytest.raises(InputError, match=r"the path is not in UTF-8; rename the folder$"):
        find_tasks(elsewhere)


def test_one_image_in_two_files(tiny_bids, caplog):
    tiny = tiny_bids(subjects=("01", "02"), stacks=2)
    copies = [path.with_name(path.name.removesuffix(".gz")) for path in (tiny.stack("01", 2), tiny.mask("01", 1))]
    for path in copies:
        path.write_bytes(b"")
    twice = copy_stack(tiny, "sub-02/anat/sub-02_run-01_T2w.nii.gz")
    good, bad = find_tasks(tiny.root, with_masks(tiny))
    assert [stack.path for stack in good.stacks] == [tiny.stack(run=1), tiny.stack(run=2)]
    assert good.stacks[0].mask == tiny.mask(run=1)
    assert sorted(caplog.messages) == sorted(
        f"{path}: left out, as {path}.gz has the same name and is taken; remove one of the two" for path in copies
    )
    assert bad.errors == (
        f"{twice} and {tiny.stack('02', 1)} have the same entities (run-1 is run-01); rename one of "
        "them, with its sidecar, or list it in .bidsignore",
    )
    (tiny.root / ".bidsignore").write_text(f"{copies[0].name}.gz\nsub-02\n")
    (task,) = find_tasks(tiny.root)
    assert [stack.path for stack in task.stacks] == [tiny.stack(run=1), copies[0]]
    filters = {"stacks": {"subject": "01", "extension": ".nii"}}
    (task,) = find_tasks(tiny.root, Selection(filters=filters))
    assert [stack.path for stack in task.stacks] == [copies[0]]


def test_images_that_are_no_magnitude_are_left_out_and_said(tiny_bids, caplog):
    tiny = tiny_bids(stacks=2)
    for path in (tiny.stack(run=1), tiny.sidecar(run=1)):
        for part in ("mag", "phase", "real", "imag"):
            shutil.copy(path, path.with_name(path.name.replace("_T2w", f"_part-{part}_T2w")))
    for run, kind in ((1, ["ORIGINAL", "PRIMARY", "P", "ND"]), (2, ["ORIGINAL", "PRIMARY", "M", "ND"])):
        tiny.sidecar(run=run).write_text(json.dumps({"SliceThickness": 3.5, "ImageType": kind}))
    plain, magnitude = find_tasks(tiny.root)
    assert [stack.label for stack in plain.stacks] == ["run-2"]
    assert magnitude.name == "sub-01_part-mag_T2w"
    assert len(magnitude.stacks) == 1
    where = tiny.stack().parent
    assert [line.partition("; ask")[0] for line in caplog.messages] == [
        f"{where / name}: left out, as it is no magnitude image ({why})"
        for name, why in (
            *((f"sub-01_run-1_part-{part}_T2w.nii.gz", f"part is {part}") for part in ("imag", "phase", "real")),
            ("sub-01_run-1_T2w.nii.gz", "ImageType is P"),
        )
    ]
    (task,) = find_tasks(tiny.root, Selection(filters={"stacks": {"part": "phase"}}))
    assert task.name == "sub-01_part-phase_T2w"


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (["ORIGINAL", "PRIMARY", "R", "ND"], "R"),
        ("ORIGINAL\\PRIMARY\\P\\ND", "P"),
        (["DERIVED", "Phase map"], "Phase map"),
        (["DERIVED", "PRIMARY", "IMAGINARY", 1], "IMAGINARY"),
    ],
)
def test_sidecars_that_tell_of_no_magnitude(tiny_bids, caplog, kind, word):
    tiny = tiny_bids(stacks=2)
    tiny.sidecar(run=1).write_text(json.dumps({"SliceThickness": 3.5, "ImageType": kind}))
    tiny.sidecar(run=2).write_text(json.dumps({"SliceThickness": 3.5, "ImageType": "ORIGINAL\\PRIMARY\\M"}))
    (task,) = find_tasks(tiny.root)
    assert [stack.label for stack in task.stacks] == ["run-2"]
    (line,) = caplog.messages
    assert line.startswith(f"{tiny.stack()}: left out, as it is no magnitude image (ImageType is {word}); ask")


def test_bidsignore_that_would_say_nothing(tiny_bids, caplog):
    """Folders parted as on Windows, the UTF-16 of its shell, and a link without its content are not passed over."""
    tiny = tiny_bids(stacks=2)
    ignored = tiny.root / ".bidsignore"
    ignored.write_text("# a\\comment\nsub-01\\anat\\*run-1*\n\\#x\n*\\*run-9\n")
    assert len(find_tasks(tiny.root)[0].stacks) == 2
    assert caplog.messages == [
        f"{ignored}: {line!r} has backslashes, which part no folders here; write / between folders"
        for line in ("sub-01\\anat\\*run-1*", "*\\*run-9")
    ]
    ignored.write_text("*run-1*\n", encoding="utf-16")
    with pytest.raises(InputError, match=f"^{ignored}: not a text in UTF-8; save it as UTF-8$"):
        find_tasks(tiny.root)
    ignored.unlink()
    ignored.symlink_to(tiny.root / "nowhere")
    with pytest.raises(InputError, match=f"^{ignored}: the target of this link is not here"):
        find_tasks(tiny.root)


def test_stacks_in_bidsignore_are_left_out_and_said(tiny_bids, caplog):
    tiny = tiny_bids(subjects=("01", "02", "03"), stacks=3)
    ignored = tiny.root / ".bidsignore"
    ignored.write_text("# bad ones\n\nsub-02/\n**/*_run-2_*\n!sub-03/anat/sub-03_run-2_T2w.nii.gz\n/run-1_T2w.nii.gz\n")
    first, third = find_tasks(tiny.root)
    assert [stack.label for stack in first.stacks] == ["run-1", "run-3"]
    assert [stack.label for stack in third.stacks] == ["run-1", "run-2", "run-3"]
    left = [tiny.stack("01", 2), *(tiny.stack("02", run) for run in (1, 2, 3))]
    assert caplog.messages == [
        f"{path}: left out, as .bidsignore lists it; take it out of that file to use it" for path in left
    ]
    ignored.write_text("sub-*/\n")
    with pytest.raises(InputError, match=r"none of 9 images can be used; .*run-1_T2w.nii.gz: left out, as .bidsignore"):
        find_tasks(tiny.root)
    ignored.write_text("!\n")
    with pytest.raises(InputError, match=rf"^{ignored}: .*; correct it$"):
        find_tasks(tiny.root)


def test_folders_that_were_not_fetched_are_said(tiny_bids, caplog):
    tiny = tiny_bids(subjects=("01", "02", "03"), stacks=2)
    links = [tiny.root / "sub-02" / "anat", tiny.root / "sub-03"]
    for path in links:
        shutil.rmtree(path)
        path.symlink_to("nowhere")
    (task,) = find_tasks(tiny.root)
    assert task.name == "sub-01_T2w"
    assert caplog.messages == [
        f"{path}: the target of this link is not here; get its content, as with datalad get, or remove the link"
        for path in links
    ]


def test_sidecars_are_inherited(tiny_bids):
    tiny = tiny_bids(stacks=2, thickness=None)
    assert all(math.isnan(stack.thickness) for stack in find_tasks(tiny.root)[0].stacks)
    (tiny.root / "T2w.json").write_text(json.dumps({"SliceThickness": 4}))
    (task,) = find_tasks(tiny.root)
    assert [stack.thickness for stack in task.stacks] == [4.0, 4.0]
    (task,) = find_tasks(tiny.root, Selection(slice_thickness=2.5))
    assert [stack.thickness for stack in task.stacks] == [2.5, 2.5]


def test_thickness_that_is_no_number_is_said(tiny_bids, caplog):
    tiny = tiny_bids(stacks=2)
    for text, shown in (
        ('"3"', "'3'"),
        ("true", "True"),
        ("0", "0"),
        ("NaN", "nan"),
        ("1e999", "inf"),
        ("9" * 400, "9" * 400),
    ):
        tiny.sidecar(run=2).write_text(f'{{"SliceThickness": {text}}}')
        (task,) = find_tasks(tiny.root)
        assert math.isnan(task.stacks[1].thickness)
        assert f"SliceThickness of the sidecar is {shown}, not a number" in caplog.text


def test_filters(tiny_bids):
    tiny = tiny_bids(stacks=3)
    (task,) = find_tasks(tiny.root, Selection(filters={"stacks": {"run": [1, 3]}}))
    assert [stack.label for stack in task.stacks] == ["run-1", "run-3"]
    for absent in (None, "<none>"):
        (task,) = find_tasks(tiny.root, Selection(filters={"stacks": {"acquisition": absent, "run": "*"}}))
        assert len(task.stacks) == 3


def test_filters_of_what_sidecars_say(tiny_bids):
    tiny = tiny_bids(stacks=4)
    for run, echo in ((1, 0.1), (2, 0.2), (3, 0.2)):
        tiny.sidecar(run=run).write_text(json.dumps({"SliceThickness": 3, "EchoTime": echo}))

    def runs(**wanted):
        (task,) = find_tasks(tiny.root, Selection(filters={"stacks": wanted}))
        return [int(stack.entities["run"]) for stack in task.stacks]

    assert runs(EchoTime=0.2) == [2, 3]
    assert runs(EchoTime=[0.1, 0.2], run=[1, 2, 4]) == [1, 2]
    assert runs(EchoTime="*") == [1, 2, 3]
    assert runs(EchoTime="<none>") == [4]
    with pytest.raises(InputError, match=r'the filter "stacks": \{"EchoTime": 0.3\} leaves none of the 4 T2w'):
        runs(EchoTime=0.3, run=[1, 2])


def test_filter_that_leaves_nothing_is_named(tiny_bids):
    tiny = tiny_bids(stacks=3)
    selection = Selection(filters={"stacks": {"run": [1, 2], "acquisition": "tse"}}, filter_file="f.json")
    with pytest.raises(
        InputError,
        match=r'^f.json: the filter "stacks": \{"acquisition": "tse"\} leaves '
        r"none of the 3 T2w images",
    ):
        find_tasks(tiny.root, selection)
    with pytest.raises(InputError, match=r"^f.json: 'colour' is not a recognized entity"):
        find_tasks(tiny.root, Selection(filters={"stacks": {"colour": "red"}}, filter_file="f.json"))


def test_unknown_labels_are_named(tiny_bids):
    tiny = tiny_bids(subjects=("01", "02"), stacks=1)
    with pytest.raises(InputError, match=r"--participant-label 99: not in .*; participants there are 01, 02"):
        find_tasks(tiny.root, Selection(participants=("01", "99")))
    with pytest.raises(InputError, match=r"--session-label x: not in .*; sessions .* are none"):
        find_tasks(tiny.root, Selection(sessions=("x",)))
    with pytest.raises(InputError, match=r"no FLAIR image for any subject; suffixes found: T2w; .*--mod"):
        find_tasks(tiny.root, Selection(suffix="FLAIR"))


def test_missing_and_empty_data_set(tmp_path):
    with pytest.raises(InputError, match="there is no such folder"):
        find_tasks(tmp_path / "nope")
    with pytest.raises(InputError, match="no sub-<label> folder in it"):
        find_tasks(tmp_path)


@pytest.mark.parametrize(
    "above",
    [
        "run-7",
        "run-007",
        "sub-99",
        "sub-01/ses-2/anat",
        "ses-x_acq-haste_rec-b",
        "func/dir-AP/part-phase",
        "sub-1.5",
        "derivatives/desc-lesion/label-uterus/space-MNI",
        "sourcedata/code",
        "a (b)+[c].d_T2w.nii.gz",
    ],
)
def test_folders_above_the_root_say_nothing(tiny_bids, above):
    """Entities and inheritance are those of the path below the root, of raw data and of masks."""
    tiny = tiny_bids(stacks=3, name=f"{above}/bids")
    for run in (1, 2, 3):
        tiny.sidecar(run=run).write_text(json.dumps({"SliceThickness": 2 + run, "EchoTime": run / 10}))
    (tiny.root.parent / "T2w.json").write_text(json.dumps({"SliceThickness": 9, "Manufacturer": "nobody"}))
    (task,) = find_tasks(tiny.root, with_masks(tiny))
    assert task.name == "sub-01_T2w"
    assert [stack.thickness for stack in task.stacks] == [3, 4, 5]
    assert [stack.metadata for stack in task.stacks] == [
        {"SliceThickness": 2 + run, "EchoTime": run / 10} for run in (1, 2, 3)
    ]
    assert [stack.mask for stack in task.stacks] == [tiny.mask(run=run) for run in (1, 2, 3)]
    chosen = Selection(participants=("01",), filters={"stacks": {"run": [1, 3]}})
    assert [stack.label for stack in find_tasks(tiny.root, chosen)[0].stacks] == ["run-1", "run-3"]


def test_the_nearest_sidecar_with_the_most_entities_goes_first(tiny_bids):
    tiny = tiny_bids(stacks=3, thickness=None)
    for name, fields in {
        "T2w.json": {"SliceThickness": 2, "EchoTime": 0.1, "Manufacturer": "a", "FlipAngle": 90},
        "run-1_T2w.json": {"EchoTime": 0.2},
        "T1w.json": {"SliceThickness": 9},
        "sub-01/sub-01_T2w.json": {"SliceThickness": 3, "FlipAngle": None},
        "sub-01/sub-01_acq-x_T2w.json": {"SliceThickness": 9},
        "sub-01/sub-02_T2w.json": {"SliceThickness": 9},
        "sub-01/anat/T2w.json": {"Manufacturer": "b"},
        "sub-01/anat/sub-01_run-02_T2w.json": {"SliceThickness": 4},
    }.items():
        (tiny.root / name).write_text(json.dumps(fields))
    (task,) = find_tasks(tiny.root)
    common = {"EchoTime": 0.1, "Manufacturer": "b", "SliceTiming": []}
    assert [stack.metadata for stack in task.stacks] == [
        common | {"SliceThickness": 3, "EchoTime": 0.2},
        common | {"SliceThickness": 4},
        common | {"SliceThickness": 3},
    ]


def test_sidecars_name_what_names_say_as_well(tiny_bids):
    """pybids gives up on fields that are called as its entities, and on targets that are no paths."""
    tiny = tiny_bids(stacks=2)
    fields = {"SliceThickness": 3, "run": 5, "suffix": "PDw", "IntendedFor": True}
    tiny.sidecar().write_text(json.dumps(fields))
    (task,) = find_tasks(tiny.root)
    assert task.stacks[0].metadata == fields


def test_sidecar_that_is_not_json(tiny_bids):
    tiny = tiny_bids(subjects=("01", "02"), stacks=1)
    tiny.sidecar().write_text("{")
    bad, good = find_tasks(tiny.root)
    assert bad.errors[0].startswith(f"{tiny.sidecar()}: not a JSON file (")
    assert not good.errors


def test_masks_are_matched_per_run(tiny_bids):
    tiny = tiny_bids(stacks=3)
    folder = tiny.mask().parent
    tiny.mask(run=1).rename(folder / "sub-01_run-01_T2w_desc-brain_mask.nii.gz")
    tiny.mask(run=2).rename(folder / "sub-01_run-2_T1w_desc-brain_mask.nii.gz")
    tiny.mask(run=3).rename(folder / "sub-01_acq-tse_run-3_desc-brain_mask.nii.gz")
    (task,) = find_tasks(tiny.root, with_masks(tiny))
    names = [stack.mask and stack.mask.name for stack in task.stacks]
    assert names == ["sub-01_run-01_T2w_desc-brain_mask.nii.gz", None, None]


def test_brain_masks_are_preferred_and_other_spaces_left_out(tiny_bids):
    tiny = tiny_bids(stacks=1)
    for name in ("sub-01_run-1_desc-lesion_mask.nii.gz", "sub-01_run-1_space-MNI_desc-brain_mask.nii.gz"):
        shutil.copy(tiny.mask(), tiny.mask().parent / name)
    (task,) = find_tasks(tiny.root, with_masks(tiny))
    assert task.stacks[0].mask == tiny.mask()
    (task,) = find_tasks(tiny.root, with_masks(tiny, filters={"masks": {"desc": "lesion"}}))
    assert task.stacks[0].mask.name == "sub-01_run-1_desc-lesion_mask.nii.gz"


def test_masks_of_something_else_are_named_and_not_taken(tiny_bids, caplog):
    """A mask is of the brain by label-, else by desc-, else by its sidecar, else because nothing says otherwise."""
    tiny = tiny_bids(stacks=10)
    folder = tiny.mask().parent
    names = [
        "label-uterus_mask",
        "desc-lesion_mask",
        "label-uterus_desc-brain_mask",
        "mask",
        "label-brain_mask",
        "label-Brain_desc-manual_mask",
        "mask",
        "T2w_desc-placenta_mask",
        "hemi-L_desc-brain_mask",
        "seg-womb_mask",
    ]
    for run, name in enumerate(names, 1):
        tiny.mask(run=run).rename(folder / f"sub-01_run-{run}_{name}.nii.gz")
    (folder / "sub-01_run-7_mask.json").write_text(json.dumps({"Type": "Face"}))
    taken = [None, None, None, names[3], names[4], names[5], *[None] * 4]

    def found(**more):
        (task,) = find_tasks(tiny.root, with_masks(tiny, **more))
        return [
            stack.mask and stack.mask.name.removesuffix(".nii.gz").partition(f"run-{run}_")[2]
            for run, stack in enumerate(task.stacks, 1)
        ]

    assert found() == taken
    left = [line for line in caplog.messages if "not taken as the mask of its stack, which has no other" in line]
    assert [line.partition(": ")[0] for line in left] == [
        str(folder / f"sub-01_run-{run}_{names[run - 1]}.nii.gz") for run in (1, 2, 3, 7, 8, 9, 10)
    ]
    assert all("call it desc-brain" in line and "--bids-filter-file" in line for line in left)
    assert found(filters={"masks": {"run": [1, 4]}}) == [None] * 3 + ["mask"] + [None] * 6
    assert found(filters={"masks": {"label": "uterus"}})[:3] == [names[0], None, names[2]]


def test_masks_of_another_space_are_named_where_a_stack_has_no_other(tiny_bids, caplog):
    tiny = tiny_bids(stacks=3)
    elsewhere = tiny.mask(run=2).with_name("sub-01_run-2_space-MNI_desc-brain_mask.nii.gz")
    tiny.mask(run=2).rename(elsewhere)
    shutil.copy(tiny.mask(), tiny.mask().with_name("sub-01_run-1_space-MNI_desc-brain_mask.nii.gz"))
    (task,) = find_tasks(tiny.root, with_masks(tiny))
    assert [stack.mask for stack in task.stacks] == [tiny.mask(), None, tiny.mask(run=3)]
    (line,) = caplog.messages
    assert line.startswith(
        f"{elsewhere}: not taken as the mask of its stack, which has no other: by its name it lies in another space"
    )


def test_data_set_with_masks_of_something_else_alone(tiny_bids):
    tiny = tiny_bids(stacks=1)
    other = tiny.mask().with_name("sub-01_run-1_label-uterus_mask.nii.gz")
    tiny.mask().rename(other)
    with pytest.raises(InputError, match=f"no mask of the brain in it .* but of something else, as {other}; add"):
        find_tasks(tiny.root, with_masks(tiny))
    elsewhere = other.with_name("sub-01_run-1_space-MNI152_desc-brain_mask.nii.gz")
    other.rename(elsewhere)
    with pytest.raises(InputError, match=f"no mask in the space of the scanner, .* as {elsewhere}; add"):
        find_tasks(tiny.root, with_masks(tiny))


def test_masks_that_fit_equally_well_are_an_error_of_the_task(tiny_bids):
    tiny = tiny_bids(subjects=("01", "02"), stacks=1)
    shutil.copy(tiny.mask(), tiny.mask().parent / "sub-01_run-01_desc-brain_mask.nii.gz")
    bad, good = find_tasks(tiny.root, with_masks(tiny))
    assert "both fit the same stack" in bad.errors[0]
    assert not good.errors


def test_mask_data_set_without_masks(tiny_bids, tmp_path):
    tiny = tiny_bids(stacks=1)
    for folder, what in ((tmp_path / "nope", "no such folder"), (tiny.root, r"no \*_mask.nii.gz")):
        with pytest.raises(InputError, match=f"--derivatives masks={folder}: .*{what}"):
            find_tasks(tiny.root, Selection(mask_datasets={"masks": folder}))


def test_kept_index(tiny_bids, tmp_path):
    tiny, other = tiny_bids(subjects=("01", "02"), stacks=2), tiny_bids(stacks=2, name="other")
    database = tmp_path / "index"
    first = find_tasks(tiny.root, Selection(participants=("01",), database_dir=database))
    assert database.is_dir()
    again = find_tasks(tiny.root, Selection(participants=("02",), database_dir=database))
    assert [task.name for task in first + again] == ["sub-01_T2w", "sub-02_T2w"]
    with pytest.raises(InputError, match="holds the index of"):
        find_tasks(other.root, Selection(database_dir=database))
    (task,) = find_tasks(other.root, Selection(database_dir=database, database_wipe=True))
    assert task.stacks[0].path == other.stack()


def test_kept_index_that_is_not_of_what_is_there(tiny_bids, tmp_path, caplog):
    tiny, database = tiny_bids(stacks=3), tmp_path / "index"
    keep = Selection(database_dir=database)
    find_tasks(tiny.root, keep)
    tiny.sidecar(run=1).write_text(json.dumps({"SliceThickness": 5}))
    (task,) = find_tasks(tiny.root, keep)
    assert [stack.thickness for stack in task.stacks] == [5, 3.5, 3.5]  # sidecars are never kept
    assert caplog.messages == []
    added = [
        copy_stack(tiny, f"sub-{name}.nii.gz")
        for name in ("01/anat/sub-01_run-4_T2w", "02/ses-1/anat/sub-02_ses-1_run-1_T2w")
    ]
    gone = tiny.stack(run=3)
    gone.unlink()
    (task,) = find_tasks(tiny.root, keep)
    assert [stack.label for stack in task.stacks] == ["run-1", "run-2"]
    assert caplog.messages == [
        f"--bids-database-dir {database}: images came or went since the index was made, and are left out: 2 new (first "
        f"{added[0]}), 1 gone (first {gone}); add --bids-database-wipe to make it again"
    ]
    caplog.clear()
    tasks = find_tasks(tiny.root, Selection(database_dir=database, database_wipe=True))
    assert [len(task.stacks) for task in tasks] == [3, 1]
    assert caplog.messages == []


def test_kept_index_of_others_or_broken(tiny_bids, tmp_path, caplog):
    from bids import BIDSLayout

    tiny, database = tiny_bids(stacks=3, name="run-7/bids"), tmp_path / "index"
    BIDSLayout(tiny.root, database_path=database)
    (task,) = find_tasks(tiny.root, Selection(database_dir=database))
    assert [stack.label for stack in task.stacks] == ["run-1", "run-2", "run-3"]
    assert "the index there is of another tool or version; it is not used" in caplog.text
    for content in (b"no database", b""):
        (database / "layout_index.sqlite").write_bytes(content)
        with pytest.raises(InputError, match=rf"^--bids-database-dir {database}: the index there cannot be read; add"):
            find_tasks(tiny.root, Selection(database_dir=database))
    (task,) = find_tasks(tiny.root, Selection(database_dir=database, database_wipe=True))
    assert len(task.stacks) == 3


def test_real_data_set(test_data):
    root = test_data / "fetal-stacks-mialsrtk"
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    masks = root / "derivatives" / "manual_masks"
    (task,) = find_tasks(root, Selection(mask_datasets={"masks": masks}))
    assert task.name == "sub-01_T2w"
    assert [stack.label for stack in task.stacks] == [f"run-{run}" for run in range(1, 7)]
    assert {stack.thickness for stack in task.stacks} == {3.0}
    assert [stack.mask.name for stack in task.stacks] == [
        f"sub-01_run-{run}_T2w_desc-brain_mask.nii.gz" for run in range(1, 7)
    ]
