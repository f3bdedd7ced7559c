# SPDX-License-Identifier: Apache-2.0
"""From BIDS data sets to tasks."""

import json
import math
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
    for name in ("ses-a/anat/sub-01_ses-a_run-1_T2w", "ses-a/anat/sub-01_ses-a_run-2_T2w",
                 "ses-b/anat/sub-01_ses-b_acq-haste_run-1_T2w", "ses-b/anat/sub-01_ses-b_acq-tse_run-1_T2w",
                 "ses-b/anat/sub-01_ses-b_run-1_T1w"):
        path = tiny.root / "sub-01" / f"{name}.nii.gz"
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, path)
    names = [task.name for task in find_tasks(tiny.root)]
    assert names == ["sub-01_T2w", "sub-01_ses-a_T2w", "sub-01_ses-b_acq-haste_T2w",
                     "sub-01_ses-b_acq-tse_T2w"]
    assert [len(task.stacks) for task in find_tasks(tiny.root, Selection(sessions=("a",)))] == [2]
    assert [task.suffix for task in find_tasks(tiny.root, Selection(suffix="T1w"))] == ["T1w"]


def test_runs_are_in_the_order_of_numbers(tiny_bids):
    tiny = tiny_bids(stacks=11)
    (task,) = find_tasks(tiny.root)
    assert [stack.entities["run"] for stack in task.stacks] == [str(run) for run in range(1, 12)]


def test_nothing_but_raw_stacks_is_taken(tiny_bids, caplog):
    tiny = tiny_bids(stacks=2)
    source = tiny.stack()
    for name in ("derivatives/x/sub-01/anat/sub-01_run-7_T2w.nii.gz",
                 "sourcedata/sub-01/anat/sub-01_run-8_T2w.nii.gz",
                 "reference/sub-01_rec-SR_T2w.nii.gz",
                 "sub-01/anat/sub-01_run-1_desc-n4_T2w.nii.gz",
                 "sub-01/anat/sub-01_run-1_mask.nii.gz",
                 "sub-01/anat/sub-01_run-1_T2w_desc-brain_mask.nii.gz"):
        path = tiny.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, path)
    (task,) = find_tasks(tiny.root)
    assert [stack.path for stack in task.stacks] == [tiny.stack(run=1), tiny.stack(run=2)]
    assert "sub-01_run-1_desc-n4_T2w.nii.gz: not a raw file name (desc), left out" in caplog.text


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
    tiny.sidecar(run=2).write_text(json.dumps({"SliceThickness": "3"}))
    (task,) = find_tasks(tiny.root)
    assert math.isnan(task.stacks[1].thickness)
    assert "SliceThickness of the sidecar is '3', not a number" in caplog.text


def test_filters(tiny_bids):
    tiny = tiny_bids(stacks=3)
    (task,) = find_tasks(tiny.root, Selection(filters={"stacks": {"run": [1, 3]}}))
    assert [stack.label for stack in task.stacks] == ["run-1", "run-3"]
    for absent in (None, "<none>"):
        (task,) = find_tasks(tiny.root, Selection(filters={"stacks": {"acquisition": absent, "run": "*"}}))
        assert len(task.stacks) == 3


def test_filter_that_leaves_nothing_is_named(tiny_bids):
    tiny = tiny_bids(stacks=3)
    selection = Selection(filters={"stacks": {"run": [1, 2], "acquisition": "tse"}}, filter_file="f.json")
    with pytest.raises(InputError, match=r'^f.json: the filter "stacks": \{"acquisition": "tse"\} leaves '
                                         r"none of the 3 T2w images"):
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


def test_sidecar_that_is_not_json(tiny_bids):
    tiny = tiny_bids(stacks=1)
    tiny.sidecar().write_text("{")
    with pytest.raises(InputError, match=r"sub-01_run-1_T2w\.json"):
        find_tasks(tiny.root)


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
        f"sub-01_run-{run}_T2w_desc-brain_mask.nii.gz" for run in range(1, 7)]
