# SPDX-License-Identifier: Apache-2.0
"""Folders of slices: written, read again, fitted, and refused in one line."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from conftest import ball_stack, write_nifti
from scipy.spatial.transform import Rotation
from test_recon import QUICK

from gsbids.cli.main import main
from gsbids.errors import InputError
from gsbids.imaging.nifti import load_image, save_image
from gsbids.recon.svr.fit import fit_svr
from gsbids.recon.volume.coverage import vote_mask
from gsbids.recon.volume.motion_table import slice_transforms
from gsbids.recon.volume.sample import output_grid, sample_result, simulate_stack
from gsbids.recon.volume.slice_folder import as_stacks, check_slice_folder, group_slices, read_slices, write_slices


@pytest.fixture(scope="module")
def fitted(moving_brain):
    """Stacks of slices that moved, and their reconstruction."""
    return moving_brain[1], moving_brain[2]


@pytest.fixture(scope="module")
def folder(fitted, tmp_path_factory):
    return write_slices(tmp_path_factory.mktemp("slices") / "slices", *fitted)


def test_written_slices_are_where_the_reconstruction_puts_them(fitted, folder):
    stacks, result = fitted
    with open(folder / "slices.tsv", encoding="utf-8") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert len(table) == len(result.weight) == len(list(folder.glob("mask_*.nii.gz")))
    names = [stack.name for stack in stacks]
    for line in table[::7]:
        n, k = names.index(line["stack"]), int(line["slice"])
        image, affine = load_image(folder / line["file"])
        mask, mask_affine = load_image(folder / f"mask_{line['file']}")
        np.testing.assert_array_equal(image[:, :, 0], stacks[n].image[:, :, k])
        np.testing.assert_array_equal(mask[:, :, 0] > 0, stacks[n].mask[:, :, k])
        np.testing.assert_array_equal(affine, mask_affine)
        corners = np.array([[0, 0, 1], [image.shape[0] - 1, 0, 1], [3, image.shape[1] - 1, 1.0]])
        here = np.insert(corners, 2, k, axis=1) @ (slice_transforms(result, n, 99)[k] @ stacks[n].affine).T
        np.testing.assert_allclose(np.insert(corners, 2, 0, axis=1) @ affine.T, here, atol=1e-4)
        # The third column says how thick the slice is, across it.
        np.testing.assert_allclose(affine[:3, 2] @ affine[:3, :2], 0, atol=1e-5)
        assert np.linalg.norm(affine[:3, 2]) == pytest.approx(stacks[n].thickness, abs=1e-5)
        assert np.linalg.det(affine[:3, :3]) > 0


def test_read_again_the_geometry_is_the_same(fitted, folder):
    stacks, result = fitted
    groups = group_slices(read_slices(folder))
    assert [len(group) for group in groups] == list(np.bincount(result.stack_index))
    again, transforms = as_stacks(groups)
    for n, (stack, virtual) in enumerate(zip(stacks, again, strict=True)):
        rows = np.flatnonzero(result.stack_index == n)
        used = result.slice_index[rows]
        np.testing.assert_array_equal(virtual.image, stack.image[:, :, used])
        np.testing.assert_array_equal(virtual.mask, stack.mask[:, :, used])
        assert virtual.thickness == pytest.approx(stack.thickness)
        moves = slice_transforms(result, n, stack.image.shape[2])
        corners = np.array([[0, 0], [stack.image.shape[0] - 1, 0], [0, stack.image.shape[1] - 1.0]])
        for place, k in enumerate(used):
            before = np.c_[corners, np.full(3, k), np.ones(3)] @ (moves[k] @ stack.affine).T
            after = np.c_[corners, np.full(3, place), np.ones(3)] @ (transforms[n, place] @ virtual.affine).T
            np.testing.assert_allclose(after, before, atol=1e-4)
        # Regular, and near: slices move a little from where the stack has them.
        assert np.abs(transforms[n] - np.eye(4)).max() < 10
    with pytest.raises(InputError, match="slice thickness of 50 mm"):
        read_slices(folder, thickness=50.0)
    assert read_slices(folder, thickness=2.5)[3].thickness == 2.5


def test_a_fit_of_the_folder_gives_the_image_of_the_stacks(fitted, folder):
    stacks, result = fitted
    options = replace(QUICK, place=False, iterations=2 * QUICK.iterations)  # both have to settle
    depth = max(stack.image.shape[2] for stack in stacks)
    known = np.array([slice_transforms(result, n, depth) for n in range(len(stacks))])
    of_stacks = fit_svr(stacks, known, options)
    again, transforms = as_stacks(group_slices(read_slices(folder)))
    of_folder = fit_svr(again, transforms, options)
    affine, shape = output_grid(stacks, of_stacks, 1.5)
    one, other = (sample_result(r, affine, shape) for r in (of_stacks, of_folder))
    inside, _ = vote_mask(stacks, of_stacks, affine, shape)
    ncc = np.corrcoef(one[inside], other[inside])[0, 1]
    print(f"ncc {ncc:.5f}, rms {np.sqrt(np.mean((one - other)[inside] ** 2)) / one[inside].std():.4f}")
    assert ncc > 0.99
    turned = Rotation.from_matrix(of_stacks.motion.rotation).inv() * Rotation.from_matrix(of_folder.motion.rotation)
    assert np.degrees(np.median(turned.magnitude())) < 0.2


def test_simulated_slices_are_those_of_the_reconstruction(fitted, tmp_path):
    stacks, result = fitted
    write_slices(tmp_path / "simulated", stacks, result, simulated=True)
    row = int(np.flatnonzero(result.stack_index == 1)[3])
    number = int(np.flatnonzero(np.lexsort((result.slice_index, result.stack_index)) == row)[0])
    image, _ = load_image(tmp_path / "simulated" / f"{number}.nii.gz")
    expected = simulate_stack(result, stacks[1], 1)[:, :, result.slice_index[row]]
    np.testing.assert_allclose(image[:, :, 0], expected)


def test_a_former_folder_is_replaced_and_nothing_else_is(fitted, tmp_path):
    stacks, result = fitted
    there = tmp_path / "there"
    there.mkdir()
    (there / "900.nii.gz").write_bytes(b"of a former run")
    check_slice_folder(there, "--output-slices")
    write_slices(there, stacks, result)
    assert not (there / "900.nii.gz").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"there"}
    (there / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"--output-slices .*holds other files than slices \(notes.txt\)"):
        check_slice_folder(there, "--output-slices")


def test_slices_of_any_order_and_kind_are_grouped():
    """A stack ends where direction or pixels change or slices jump back; a slice that moved far ends none."""

    def piece(number, normal_axis, along, far=False):
        from gsbids.recon.volume.slice_folder import PlacedSlice

        turn = {2: np.eye(3), 0: np.array([[0, 0, 1.0], [1, 0, 0], [0, 1, 0]])}[normal_axis]
        if far:
            turn = Rotation.from_euler("x", 60, degrees=True).as_matrix() @ turn
        affine = np.eye(4)
        affine[:3, :3] = turn * [1, 1, 3]
        affine[:3, 3] = along * turn[:, 2]
        return PlacedSlice(number, np.ones((5, 6)), np.ones((5, 6), bool), affine, 3.0)

    slices = [piece(k, 2, 3.0 * k, far=k == 6) for k in range(15)]
    slices += [piece(15 + k, 2, 3.0 * k) for k in range(15)] + [piece(30 + k, 0, 3.0 * k) for k in range(9)]
    groups = group_slices(slices)
    assert [piece.number for group in groups for piece in group] == list(range(39))
    assert [group[0].number for group in groups] == [0, 15, 30]


@pytest.fixture
def three(tmp_path, monkeypatch):
    """A folder with three stacks of a ball as 42 single slices, where the scanner had them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "slices").mkdir()
    number = 0
    for n in (1, 2, 3):
        image, mask, affine = ball_stack(n)
        for k in range(image.shape[2]):
            own = affine.copy()
            own[:3, 3] += k * affine[:3, 2]
            own[:3, 2] *= 3.5 / 4.0
            write_nifti(tmp_path / "slices" / f"{number}.nii.gz", image[:, :, k : k + 1], own)
            write_nifti(tmp_path / "slices" / f"mask_{number}.nii.gz", mask[:, :, k : k + 1], own)
            number += 1
    return tmp_path / "slices"


QUICKLY = ["--sloppy", "--nprocs", "1", "--output-resolution", "2"]


def test_the_command_takes_and_writes_folders(three, tmp_path, capsys):
    words = [
        "reconstruct",
        "--input-slices",
        "slices",
        "--output-volume",
        "out.nii.gz",
        "--output-slices",
        "placed",
        "--simulated-slices",
        "simulated",
        "--output-folder",
        "all",
        *QUICKLY,
    ]
    assert main(words) == 0
    assert "Traceback" not in capsys.readouterr().err
    volume, _ = load_image("out.nii.gz")
    mask, _ = load_image("all/sub-out/anat/sub-out_rec-gsvr_res-2_desc-brain_mask.nii.gz")
    assert 0.7 < mask.sum() * 8 / (4 / 3 * np.pi * 20 * 23 * 18) < 1.3
    assert volume[mask > 0].mean() > 300
    sidecar = json.loads((tmp_path / "all/sub-out/anat/sub-out_run-2_desc-simulated_T2w.json").read_text())
    assert sidecar["Sources"][:2] == ["bids:raw:15.nii.gz", "bids:raw:mask_15.nii.gz"]
    page = (tmp_path / "all" / "sub-out.html").read_text(encoding="utf-8")
    assert "Slices started from the poses that were given with them" in page
    assert "co-registered" not in page
    # Neither denoised nor corrected: what comes out is what went in, without the empty slices at the ends.
    with open("placed/slices.tsv", encoding="utf-8") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    first = read_slices(three)[0]
    np.testing.assert_array_equal(load_image(f"placed/{table[0]['file']}")[0][:, :, 0], first.image)
    assert len(list(tmp_path.glob("simulated/[0-9]*.nii.gz"))) == len(table) == len(read_slices(three))


def spoil(folder, what):
    """Make one thing wrong with a folder."""
    image, affine = load_image(folder / "7.nii.gz")
    if what == "empty":
        for path in folder.iterdir():
            path.unlink()
    elif what == "lone mask":
        (folder / "7.nii.gz").unlink()
    elif what == "deep":
        save_image(folder / "7.nii.gz", np.repeat(image, 3, axis=2), affine)
    elif what == "other pixels":
        save_image(folder / "mask_7.nii.gz", image[:-1], affine)
    elif what == "twice":
        save_image(folder / "07.nii.gz", image, affine)
    elif what == "broken":
        (folder / "7.nii.gz").write_bytes(b"nothing of the kind")
    elif what == "no brain":
        for path in folder.glob("mask_*"):
            data, own = load_image(path)
            save_image(path, 0 * data, own)
    elif what == "one stack":
        for n in range(14, 42):
            (folder / f"{n}.nii.gz").unlink()
            (folder / f"mask_{n}.nii.gz").unlink()


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("empty", "there are no slices in it"),
        ("lone mask", "mask_7.nii.gz: there is no slice that this mask belongs to"),
        ("deep", "7.nii.gz: has 3 slices, and one is expected"),
        ("other pixels", "mask_7.nii.gz: its pixels are not those"),
        ("twice", "is slice 7, and so is"),
        ("broken", "7.nii.gz: this is not a readable NIfTI file"),
        ("no brain", "no slice has brain in its mask"),
        ("one stack", "slices are one stack, and two or more are needed"),
    ],
)
def test_one_line_for_a_folder_that_cannot_be(three, capsys, what, message):
    spoil(three, what)
    refused(capsys, ["--input-slices", "slices"], message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--input-slices", "nowhere"], "nowhere: there is no such folder"),
        (["--input-slices", "slices", "--input-stacks", "slices/1.nii.gz"], "not allowed with argument"),
        (
            ["--input-slices", "slices", "--input-masks", "slices/mask_1.nii.gz"],
            "--input-masks: slices of --input-slices",
        ),
        (["--input-slices", "slices", "--slice-thickness", "3", "4"], "give one number for all slices"),
        (["--input-slices", "slices", "--slice-thickness", "header"], "give one number for all slices"),
        (["--input-slices", "slices", "--output-slices", "./slices"], "is the folder of --input-slices"),
        (["--input-slices", "slices", "--output-slices", "a", "--simulated-slices", "a"], "folder of --output-slices"),
        (["--input-slices", "slices", "--output-slices", "no/a"], "there is no folder"),
        (["--input-slices", "slices", "--output-slices", "slices/1.nii.gz"], "is a file; give the name of a folder"),
    ],
)
def test_one_line_for_options_that_cannot_be(three, capsys, words, message):
    refused(capsys, words, message)


def refused(capsys, words, message):
    """The command ends with code 2, one line of error that says so, and no file written."""
    try:
        code = main(["reconstruct", *words, "--output-volume", "out.nii.gz", *QUICKLY])
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr().err
    errors = [line for line in said.splitlines() if "error: " in line]
    assert code == 2
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in said
