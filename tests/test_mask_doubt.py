# SPDX-License-Identifier: Apache-2.0
"""Stacks with doubtful masks: by their network, by comparison with the others; left out, and said so everywhere."""

import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import ball_stack
from test_mask_network import biased

from gsbids.cli.main import main
from gsbids.errors import InputError
from gsbids.imaging.nifti import load_image, save_image
from gsbids.interfaces.masks import ChooseStacks, choice_of
from gsbids.interfaces.outputs import gather_content
from gsbids.interfaces.reconstruct import FitSvr, RegisterStacks
from gsbids.interfaces.sample_volume import SampleVolume
from gsbids.interfaces.stack import CorrectBias, DenoiseStack, MaskStack
from gsbids.masking.doubt import choose_stacks, mask_length
from gsbids.qc.exclusions import excluded_stacks
from gsbids.qc.report.page import render_report, state
from gsbids.recon.svr.result import SvrResult

QUICK = {"iterations": 12, "n_gaussians": 500, "detail_iterations": 4, "members": 1, "doublings": 0, "place": False}


def choice(volumes, methods="network", doubts=None, lengths=None):
    count = len(volumes)
    methods = [methods] * count if isinstance(methods, str) else methods
    return choose_stacks(volumes, lengths or [100.0] * count, methods, doubts or [""] * count)


@pytest.mark.parametrize(
    ("volumes", "doubtful", "out"),
    [
        ([100, 110, 90], [0, 0, 0], [0, 0, 0]),
        ([100, 110, 230], [0, 0, 1], [0, 0, 1]),
        ([100, 110, 40, 105], [0, 0, 1, 0], [0, 0, 1, 0]),
        ([100, 210], [1, 1], [0, 0]),  # one of two: nobody knows which
        ([100, 300, 20], [0, 1, 1], [0, 0, 0]),  # one sound stack is not enough
        ([100, 300, 20, 0], [0, 1, 1, 0], [0, 0, 0, 1]),  # but one without a mask never helps
        ([0, 0], [0, 0], [1, 1]),
        ([50], [0], [0]),
    ],
)
def test_a_mask_unlike_the_usual_one_is_doubted_and_left_out_where_two_sound_ones_remain(volumes, doubtful, out):
    found = choice(volumes)
    assert [bool(doubt) for doubt in found.doubts] == list(map(bool, doubtful))
    assert list(found.left_out) == list(map(bool, out))


def test_what_was_given_is_not_doubted_but_counts():
    assert not any(choice([100, 110, 20], "derivatives").doubts)
    found = choice([100, 110, 20], ["derivatives", "derivatives", "network"])
    assert found.left_out == (False, False, True)
    assert found.words(2) == (
        "Its mask holds 20 ml, 0.2 times that of the usual stack of this subject. The stack is "
        "left out of the reconstruction."
    )


def test_lengths_and_earlier_doubts_count_too():
    found = choice([100] * 4, lengths=[90, 91, 160, 92], doubts=["", "In doubt.", "", ""])
    assert found.left_out == (False, True, True, False)
    assert "is 160 mm long, 1.7 times" in found.words(2)
    assert found.words(1) == "In doubt. The stack is left out of the reconstruction."
    kept = choice([100, 100], doubts=["", "In doubt."])
    assert "is used all the same, as fewer than two other stacks" in kept.words(1)
    assert kept.words(0) == ""


def test_the_length_of_a_mask_does_not_turn_with_it():
    bar = np.zeros((60, 60, 60), bool)
    bar[10:50, 28:32, 28:32] = True
    turn = np.array([[0.6, -0.8, 0, 5], [0.8, 0.6, 0, 6], [0, 0, 1, 7], [0, 0, 0, 1.0]])
    length = mask_length(bar, np.diag([2.0, 1, 1, 1]))
    assert length == pytest.approx(4 * 80 / np.sqrt(12), rel=0.01)
    assert mask_length(bar, turn @ np.diag([2.0, 1, 1, 1])) == pytest.approx(length)
    assert mask_length(np.zeros((3, 3, 3), bool), np.eye(4)) == 0


@pytest.fixture
def stacks(tmp_path):
    """Files of four stacks of a ball: the mask of the third holds a corner beside it, and the fourth has none."""
    files = []
    for run in (1, 2, 3, 4):
        image, mask, affine = ball_stack(run)
        if run == 3:
            mask = np.zeros_like(mask)
            mask[:12, :12] = 1
        files.append(
            (
                str(save_image(tmp_path / f"{run}.nii.gz", image.astype(np.float32), affine)),
                str(save_image(tmp_path / f"{run}-mask.nii.gz", mask * (run < 4), affine, "uint8")),
            )
        )
    return [list(column) for column in zip(*files, strict=True)]


NAMES = [f"run-{run}" for run in (1, 2, 3, 4)]
DOUBTS = ["", "", "The network has low confidence (0.30, below 0.80).", "No brain was found."]


def facts_of(doubts):
    return [
        {"MaskMode": "network", "MaskSource": "by a test"} | ({"MaskDoubt": doubt} if doubt else {}) for doubt in doubts
    ]


def test_no_mask_at_all_is_an_error_that_says_what_to_do(stacks):
    with pytest.raises(InputError, match=r"^run-1: No brain was found; give masks with -d/--derivatives$"):
        choice_of(stacks[1][3:], facts_of(DOUBTS[3:]), NAMES[:1])
    with pytest.raises(InputError, match=r"^run-1 and all other stacks: No brain was found; give masks"):
        choice_of(stacks[1][3:] * 2, facts_of(DOUBTS[3:] * 2), NAMES[:2])


def test_doubtful_stacks_have_no_part_from_registration_to_report(stacks, tmp_path, caplog):
    caplog.set_level(logging.INFO, "gsbids")
    images, masks = stacks
    step = ChooseStacks(in_masks=masks, facts=facts_of(DOUBTS), names=NAMES).run(cwd=str(tmp_path)).outputs
    chosen = step.out_file
    assert step.facts[0] == facts_of([""])[0]
    assert step.facts[2]["MaskDoubt"] == f"{DOUBTS[2]} The stack is left out of the reconstruction."
    assert json.loads(Path(chosen).read_text())["left_out"] == NAMES[2:]
    assert "run-3: The network has low confidence (0.30, below 0.80)" in caplog.text
    assert "run-1: brain mask: by a test" in caplog.text
    fixed = {"in_files": images, "in_masks": masks, "names": NAMES, "thicknesses": [4.0] * 4}
    registration = RegisterStacks(choice=chosen, **fixed).run(cwd=str(tmp_path)).outputs.out_file
    found = json.loads(Path(registration).read_text())
    assert found["reason"][2] == "Left out, as its mask is doubtful."
    assert found["template"] < 2
    np.testing.assert_array_equal(found["transforms"][2], np.eye(4))
    fit = FitSvr(registration=registration, choice=chosen, options=QUICK, **fixed).run(cwd=str(tmp_path)).outputs
    result = SvrResult.load(fit.out_file)
    two = {name: values[:2] for name, values in fixed.items()}
    (tmp_path / "alone").mkdir()
    own = RegisterStacks(**two).run(cwd=str(tmp_path / "alone")).outputs.out_file
    alone = SvrResult.load(
        FitSvr(registration=own, options=QUICK, **two).run(cwd=str(tmp_path / "alone")).outputs.out_file
    )
    np.testing.assert_array_equal(result.field.mean, alone.field.mean)
    assert result.stack_names == tuple(NAMES)
    assert [(row.stack, row.what) for row in excluded_stacks(result)] == [
        ("run-3", "whole stack"),
        ("run-4", "whole stack"),
    ]
    assert excluded_stacks(result)[0].reason.startswith("The network has low confidence")
    volume = SampleVolume(result=fit.out_file, resolution=2.0, **fixed).run(cwd=str(tmp_path)).outputs
    assert volume.facts["NumberOfStacksUsed"] == 2
    assert load_image(volume.mask)[0].sum() * 8 == pytest.approx(4 / 3 * np.pi * 20 * 23 * 18, rel=0.2)
    given = {
        "panels": [{"name": name} for name in NAMES],
        "content": {"title": "a", "task": "a"},
        "facts": {"versions": {}, "n_stacks": 4},
        "conformed": images,
        "masks": masks,
        "volume": volume.volume,
        "result": fit.out_file,
    }
    for more in ({"choice": chosen}, {}):  # from the step, or from the model that was saved
        content = gather_content(given | more)
        assert state(content) == ("bad", "Finished, but 2 masks are doubtful")
        page = render_report(content)
        assert page.count('class="alarm"') == 4
        assert (
            page.count(
                "The network has low confidence (0.30, below 0.80). The stack is left out of the reconstruction."
            )
            == 4
        )  # row of the stack at the head, warnings, table of what is excluded, stack
    assert ("Excluded", "run-3, run-4: has a doubtful mask (see Warnings), and is no part of the volume") in (
        content.summary
    )


def test_a_subject_without_any_mask_is_one_line(stacks):
    with pytest.raises(InputError, match="run-4: No brain was found"):
        choice_of(stacks[1][3:], facts_of(["No brain was found."]), ["run-4"])


def test_a_stack_without_a_brain_goes_through_preparation(tmp_path):
    image, _, affine = ball_stack(1)
    stack = save_image(tmp_path / "stack.nii.gz", image.astype(np.float32), affine)
    given = {"in_file": str(stack), "mode": "network", "weights": str(biased(tmp_path, -5.0))}
    made = MaskStack(may_be_empty=True, **given).run(cwd=str(tmp_path)).outputs
    assert not nib.load(made.out_mask).get_fdata().any()
    assert made.facts["MaskDoubt"] == "No brain was found in the stack by the network."
    with pytest.raises(Exception, match="no brain was found"):
        MaskStack(**given).run(cwd=str(tmp_path))
    for step in (DenoiseStack, CorrectBias):
        out = step(in_file=str(stack), in_mask=made.out_mask).run(cwd=str(tmp_path)).outputs.out_file
        np.testing.assert_array_equal(load_image(out)[0], image)


def test_a_run_leaves_out_the_stack_in_which_nothing_is_found(tiny_bids, tmp_path, capsys):
    """The whole command: three stacks with masks, and one that has none and no brain for the network."""
    tiny = tiny_bids(stacks=4)
    tiny.mask(run=4).unlink()
    words = [
        str(tiny.root),
        str(tmp_path / "out"),
        "participant",
        "-d",
        f"masks={tiny.masks}",
        "--sloppy",
        "--nprocs",
        "1",
        "--output-resolution",
        "2",
        "--mask-weights",
        str(biased(tmp_path, -5.0)),
        "-w",
        str(tmp_path / "w"),
    ]
    assert main(words) == 0
    said = capsys.readouterr().err
    assert "run-4: The network found no brain in it. The stack is left out of the reconstruction." in said
    assert "run-1: brain mask: Mask file" in said
    sidecar = json.loads((tmp_path / "out/sub-01/anat/sub-01_run-4_desc-brain_mask.json").read_text())
    assert sidecar["MaskDoubt"].endswith("The stack is left out of the reconstruction.")
    report = tmp_path / "out" / "sub-01.html"
    page = report.read_text()
    assert "Finished, but 1 mask is doubtful" in page
    assert "run-4: has a doubtful mask (see Warnings), and is no part of the volume" in page
    assert (
        "Brain masks were taken from an existing derivative data set and resampled to the stacks. One stack with "
        "a doubtful mask was left out."
    ) in page
    report.unlink()
    assert main([*words, "--reports-only"]) == 0
    assert report.read_text() == page
