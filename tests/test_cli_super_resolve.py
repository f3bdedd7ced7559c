# SPDX-License-Identifier: Apache-2.0
"""``gsbids super-resolve``: files in and out, and everything that it refuses in one line."""

import json

import numpy as np
import pytest
from conftest import write_nifti
from test_sr import phantom

from gsbids.cli.main import main
from gsbids.imaging.nifti import load_image

AFFINE = np.array([[-2.0, 0, 0, 5], [0, 2, 0, -7], [0, 0, 2, 1], [0, 0, 0, 1]])


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "in.nii.gz"
    write_nifti(path, phantom((12, 14, 11)), AFFINE)
    return path


def test_factor_twice_to_the_bit(image, tmp_path):
    outputs = [tmp_path / f"out{n}.nii.gz" for n in (1, 2)]
    for path in outputs:
        assert main(["super-resolve", str(image), str(path), "--factor", "2", "--sr-quality", "fast"]) == 0
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    found, affine = load_image(outputs[0])
    assert found.shape == (24, 28, 22)
    np.testing.assert_allclose(affine @ [-0.5, -0.5, -0.5, 1], AFFINE @ [-0.5, -0.5, -0.5, 1], atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.nii.gz", "out1.nii.gz", "out2.nii.gz"]


def test_resolution_and_model(image, tmp_path):
    out, model = tmp_path / "out.nii.gz", tmp_path / "model.npz"
    assert (
        main(
            [
                "super-resolve",
                str(image),
                str(out),
                "--output-resolution",
                "1.3",
                "--model",
                str(model),
                "--nprocs",
                "1",
            ]
        )
        == 0
    )
    found, affine = load_image(out)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), 1.3, rtol=1e-5)
    original = load_image(image)[0]
    assert abs(found.mean() - original.mean()) < 0.15 * original.mean()
    assert model.is_file()


@pytest.mark.parametrize("turned", [False, True])
def test_like_another_image(image, tmp_path, turned):
    grid, out = tmp_path / "grid.nii.gz", tmp_path / "out.nii.gz"
    affine = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] = (AFFINE @ [-0.25, -0.25, -0.25, 1])[:3]
    if turned:
        c, s = np.cos(0.2), np.sin(0.2)
        affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ affine[:3, :3]
    write_nifti(grid, np.zeros((24, 28, 22), np.float32), affine)
    assert main(["super-resolve", str(image), str(out), "--like", str(grid), "--sr-quality", "fast"]) == 0
    found, at = load_image(out)
    assert found.shape == (24, 28, 22)
    np.testing.assert_allclose(at, affine, atol=1e-4)
    # What lies at a place in the world is what was there.
    source, _ = load_image(image)
    place = np.linalg.inv(affine) @ AFFINE @ [6, 7, 5, 1]
    i, j, k = np.round(place[:3]).astype(int)
    near = source[5:8, 6:9, 4:7]
    assert near.min() - 200 < found[i, j, k] < near.max() + 200


def test_thickness_from_the_sidecar_or_the_option(tmp_path, capsys):
    path = tmp_path / "thick.nii.gz"
    write_nifti(path, phantom((12, 14, 6)), np.diag([1.0, 1, 4, 1]))
    volumes = []
    for name, extra in (("a", []), ("b", ["--slice-thickness", "2"]), ("c", [])):
        if name == "c":
            path.with_name("thick.json").write_text(json.dumps({"SliceThickness": 2}))
        out = tmp_path / f"{name}.nii.gz"
        assert (
            main(["super-resolve", str(path), str(out), "--output-resolution", "1", "--sr-quality", "fast", *extra])
            == 0
        )
        volumes.append(load_image(out)[0])
    assert volumes[0].shape == (12, 14, 24)
    assert "gaussian" in capsys.readouterr().err
    assert np.abs(volumes[0] - volumes[1]).max() > 1
    np.testing.assert_array_equal(volumes[1], volumes[2])


def test_a_grid_elsewhere_is_refused_with_both_places(image, tmp_path, capsys):
    grid, out = tmp_path / "grid.nii.gz", tmp_path / "out.nii.gz"
    affine = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    affine[0, 3] += 60
    write_nifti(grid, np.zeros((24, 28, 22), np.float32), affine)
    assert main(["super-resolve", str(image), str(out), "--like", str(grid), "--sr-quality", "fast"]) == 2
    line = capsys.readouterr().err.strip()
    assert f"{image}: the grid of --like lies at x 42 to 66, y -8 to 20, z 0 to 22 mm" in line
    assert "the image at x -18 to 6, y -8 to 20, z 0 to 22 mm" in line
    assert len(line.splitlines()) == 1
    assert not out.exists()


def test_grids_that_hardly_touch_are_said(caplog):
    """Over 0.8 mm of 20 in every direction; grids of an atlas around the image are none of these."""
    from gsbids.imaging.masks import check_overlap

    image, corner, around = ((20, 20, 20), np.eye(4)), np.eye(4), np.diag([10, 10, 10, 1.0])
    corner[:3, 3], around[:3, 3] = 19.2, -250
    check_overlap(((50, 50, 50), around), image, ("like", "image"))
    assert not caplog.messages
    check_overlap(((20, 20, 20), corner), image, ("like", "image"))
    (line,) = caplog.messages
    assert line.startswith("like lies at x 19 to 39, y 19 to 39, z 19 to 39 mm, and image at x 0 to 20, y 0")
    assert "they hardly touch" in line


@pytest.mark.parametrize("kind", ["background 0", "CT", "magnitudes"])
def test_beyond_the_field_of_view_is_background(tmp_path, kind):
    """0, also where tissue is negative; the least of an image whose background is."""
    data, inside = phantom((12, 14, 11)), np.zeros((12, 14, 11), bool)
    inside[2:-2, 2:-2, 2:-2] = True
    data, expected = {
        "background 0": (np.where(inside, data - data.mean(), 0), 0),
        "CT": (data - 1024, -1024),
        "magnitudes": (data + 50, 0),
    }[kind]
    data[0, 0, 0] = expected if kind == "CT" else data[0, 0, 0]
    source = write_nifti(tmp_path / "in.nii.gz", data.astype(np.float32), AFFINE)
    affine = AFFINE @ np.diag([0.5, 0.5, 0.5, 1])
    affine[:3, 3] = (AFFINE @ [-4, -4, -4, 1])[:3]
    grid = write_nifti(tmp_path / "grid.nii.gz", np.zeros((40, 44, 38), np.float32), affine)
    out, model, again = (tmp_path / name for name in ("out.nii.gz", "model.npz", "again.nii.gz"))
    assert (
        main(
            ["super-resolve", str(source), str(out), "--like", str(grid), "--sr-quality", "fast", "--model", str(model)]
        )
        == 0
    )
    found, _ = load_image(out)
    assert (found[:6] == expected).all()
    assert (found[-6:] == expected).all()
    np.testing.assert_allclose(found[8:32:2, 8:36:2, 8:30:2], data, atol=0.35 * np.ptp(data))
    assert main(["sample", str(model), str(again), "--like", str(grid)]) == 0
    np.testing.assert_array_equal(load_image(again)[0], found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["IN", "out.nii.gz"], "required"),
        (["IN", "out.nii.gz", "--factor", "2", "3"], "one number or three"),
        (["IN", "out.nii.gz", "--factor", "-2"], "not a positive"),
        (["IN", "out.nii.gz", "--factor", "0.5"], "factor is"),
        (["IN", "out.mgz", "--factor", "2"], "must end with"),
        (["missing.nii.gz", "out.nii.gz", "--factor", "2"], "no such"),
        (["IN", "IN", "--factor", "2"], "this is the input"),
        (["IN", "no/out.nii.gz", "--factor", "2"], "no such folder"),
        (["IN", "out.nii.gz", "--output-resolution", "5"], "not finer"),
        (["IN", "out.nii.gz", "--factor", "2", "--slice-thickness", "3"], "no thick slices"),
        (["IN", "out.nii.gz", "--like", "missing.nii.gz"], "no such"),
    ],
)
def test_one_line_for_what_cannot_be(image, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    before = sorted(p.name for p in tmp_path.iterdir())
    argv = ["super-resolve", *(str(image) if word == "IN" else word for word in words)]
    try:
        code = main(argv)
    except SystemExit as exit_:
        code = exit_.code
    said = capsys.readouterr().err
    assert code == 2
    assert message in said
    assert len(said.strip().splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == before
