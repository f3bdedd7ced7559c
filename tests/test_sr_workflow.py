# SPDX-License-Identifier: Apache-2.0
"""Super-resolution of volumes in a BIDS data set, for real: files, sidecars, validator, report, model, crash."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import write_nifti
from test_sr import decimated, phantom, psnr
from trees import checksums

from gsbids.cli.main import main
from gsbids.imaging.nifti import load_image
from gsbids.recon.sr.result import SrResult

AFFINE = np.array([[-2.0, 0, 0, 15], [0, 2, 0, -17], [0, 0, 2, 1], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """T1w of one subject (2 mm), with a mask as a derivative, and a thick T2w of the same (2 x 2 x 4 mm)."""
    folder = tmp_path_factory.mktemp("sr")
    truth = phantom()
    for root, kind in ((folder / "bids", "raw"), (folder / "masks", "derivative")):
        root.mkdir()
        fields = {"Name": "x", "BIDSVersion": "1.10.1", "DatasetType": kind, "GeneratedBy": [{"Name": "hand"}]}
        (root / "dataset_description.json").write_text(json.dumps(fields))
    anat = folder / "bids" / "sub-01" / "anat"
    t1w = decimated(truth, (18, 20, 16))
    write_nifti(anat / "sub-01_T1w.nii.gz", t1w, AFFINE)
    (anat / "sub-01_T1w.json").write_text(json.dumps({"EchoTime": 0.003}))
    write_nifti(folder / "masks/sub-01/anat/sub-01_T1w_desc-brain_mask.nii.gz", (t1w > 200).astype("uint8"), AFFINE)
    thick = truth[::2, ::2].reshape(18, 20, 8, 4).mean(-1)
    write_nifti(anat / "sub-01_T2w.nii.gz", thick, AFFINE @ np.diag([1, 1, 2.0, 1]))
    (anat / "sub-01_T2w.json").write_text(json.dumps({"SliceThickness": 4.0}))
    return folder, truth


def call(folder: Path, out: Path, *options) -> int:
    return main(
        [
            str(folder / "bids"),
            str(out),
            "participant",
            "-w",
            str(out.with_name(f"{out.name}-work")),
            "--nprocs",
            "1",
            "--sloppy",
            *map(str, options),
        ]
    )


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """Both contrasts in one output folder: T1w with its mask, T2w by the linear solution after N4."""
    folder, truth = data
    out = tmp_path_factory.mktemp("done") / "out"
    assert call(folder, out, "--modality", "T1w", "-d", f"masks={folder / 'masks'}", "--sr-profile", "trilinear") == 0
    assert call(folder, out, "--sr-quality", "fast", "--n4") == 0
    return out, truth


def test_the_volume_is_finer_and_in_its_place(finished):
    out, truth = finished
    volume, affine = load_image(out / "sub-01/anat/sub-01_rec-gsr_res-1_desc-preproc_T1w.nii.gz")
    assert volume.shape == truth.shape
    np.testing.assert_allclose(affine @ [-0.5, -0.5, -0.5, 1], AFFINE @ [-0.5, -0.5, -0.5, 1], atol=1e-4)
    assert psnr(volume, truth) > 30
    thick, affine = load_image(out / "sub-01/anat/sub-01_rec-gsr_res-2_desc-preproc_T2w.nii.gz")
    assert thick.shape == (18, 20, 16)


def test_files_and_sidecars(finished):
    out, _ = finished
    names = {path.name for path in (out / "sub-01/anat").iterdir()}
    assert names >= {
        "sub-01_rec-gsrT1w_desc-gaussians_model.npz",
        "sub-01_rec-gsrT2w_desc-gaussians_model.npz",
        "sub-01_rec-gsrT1w_res-1_desc-brain_mask.nii.gz",
        "sub-01_rec-gsrT1w_desc-qc_metrics.tsv",
        "sub-01_desc-n4_T2w.nii.gz",
    }
    assert "sub-01_rec-gsrT2w_res-2_desc-brain_mask.nii.gz" not in names
    assert "sub-01_desc-n4_T1w.nii.gz" not in names
    fields = json.loads((out / "sub-01/anat/sub-01_rec-gsr_res-1_desc-preproc_T1w.json").read_text())
    assert fields["Sources"] == [
        "bids:raw:sub-01/anat/sub-01_T1w.nii.gz",
        "bids:masks:sub-01/anat/sub-01_T1w_desc-brain_mask.nii.gz",
    ]
    assert fields["SkullStripped"] is False
    assert fields["EchoTime"] == 0.003
    assert fields["UpsamplingFactor"] == [2.0, 2.0, 2.0]
    fields = json.loads((out / "sub-01/anat/sub-01_rec-gsr_res-2_desc-preproc_T2w.json").read_text())
    assert fields["SamplingProfile"] == ["box", "box", "gaussian"]
    head, row = (out / "sub-01/anat/sub-01_rec-gsrT1w_desc-qc_metrics.tsv").read_text().splitlines()
    row = dict(zip(head.split("\t"), row.split("\t"), strict=True))
    assert row["bids_name"] == "sub-01_rec-gsr_res-1_desc-preproc_T1w"
    assert float(row["hidden_gain"]) > 0
    assert float(row["energy_above"]) > float(row["energy_above_bspline"])
    assert float(row["mask_volume"]) > 1


def test_every_source_resolves(finished):
    out, _ = finished
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    sidecars = [json.loads(path.read_text()) for path in (out / "sub-01/anat").glob("*.json")]
    uris = [uri for fields in sidecars for uri in fields.get("Sources", [])]
    assert len(uris) >= 7
    for uri in uris:
        dataset, relative = re.fullmatch(r"bids:([a-z]*):(.+)", uri).groups()
        assert (out / links.get(dataset, ".") / relative).is_file(), uri


def test_the_official_validator_passes(finished, official_errors):
    assert official_errors(finished[0]) == []


def test_reports(finished):
    out, _ = finished
    page = (out / "sub-01_T1w.html").read_text(encoding="utf-8")
    for section in (
        "Before and after",
        "Spectrum",
        "Settings chosen",
        "Viewer",
        "Convergence",
        "Run",
        "Methods",
    ):
        assert f">{section}</h2>" in page
    for words in ("as this is the only volume", "Mask file", "Gain at hidden voxels", "sigma 1 voxels", "Blend"):
        assert words in page
    assert page.count('aria-label="Before and after: share') == 1  # B-spline and super-resolved, in three planes
    assert page.count('type="range"') == 1 + 3 + 2  # and the planes and greys of the viewer
    assert "super-resolution report" in page
    assert "reconstruction report" not in page
    assert "The fast mode computes" not in page
    assert ">Date</dt>" in page
    assert "because it was not made" not in page
    assert "could not be drawn" not in page
    page = (out / "sub-01.html").read_text(encoding="utf-8")
    assert "linear solution alone" in page
    assert "The fast mode computes the linear solution alone" in page
    assert "hidden from a trial chose" not in page
    assert "N4" in page


def test_the_saved_model_is_the_volume(finished, tmp_path):
    out, _ = finished
    volume, affine = load_image(out / "sub-01/anat/sub-01_rec-gsr_res-1_desc-preproc_T1w.nii.gz")
    model = out / "sub-01/anat/sub-01_rec-gsrT1w_desc-gaussians_model.npz"
    np.testing.assert_array_equal(SrResult.load(model).volume, volume)
    assert main(["sample", str(model), str(tmp_path / "again.nii.gz"), "--factor", "2"]) == 0
    again, at = load_image(tmp_path / "again.nii.gz")
    np.testing.assert_array_equal(again, volume)
    np.testing.assert_allclose(at, affine, atol=1e-6)


def test_repeated_and_resumed_it_is_the_same(data, finished, tmp_path):
    folder, _ = data
    made = checksums(finished[0])
    out = tmp_path / "out"
    options = ("--modality", "T1w", "-d", f"masks={folder / 'masks'}", "--sr-profile", "trilinear")
    assert call(folder, out, *options) == 0
    again = {name: digest for name, digest in checksums(out).items() if name.startswith("sub-")}
    assert again.items() <= made.items()
    (fitted,) = (tmp_path / "out-work").rglob("super_resolve/volume.nii.gz")
    before = fitted.stat().st_mtime_ns
    (out / "sub-01_T1w.html").unlink()
    assert call(folder, out, *options) == 0
    assert fitted.stat().st_mtime_ns == before
    assert (out / "sub-01_T1w.html").is_file()


def test_like_another_image_and_otsu(data, tmp_path):
    folder, _ = data
    turned = np.eye(4)
    turned[:2, :2] = [[np.cos(0.2), -np.sin(0.2)], [np.sin(0.2), np.cos(0.2)]]
    affine = turned @ AFFINE @ np.diag([0.75, 0.75, 0.75, 1])
    grid = write_nifti(tmp_path / "grid.nii.gz", np.zeros((20, 24, 18), "uint8"), affine)
    assert (
        call(
            folder, tmp_path / "out", "--modality", "T1w", "--like", grid, "--mask-mode", "otsu", "--sr-quality", "fast"
        )
        == 0
    )
    volume, at = load_image(tmp_path / "out/sub-01/anat/sub-01_rec-gsr_res-1p5_desc-preproc_T1w.nii.gz")
    assert volume.shape == (20, 24, 18)
    np.testing.assert_allclose(at, affine, atol=1e-4)
    mask, _ = load_image(tmp_path / "out/sub-01/anat/sub-01_rec-gsrT1w_res-1p5_desc-brain_mask.nii.gz")
    assert 0.1 < mask.mean() < 0.9
    assert volume[mask > 0].mean() > 300


def test_a_crash_leaves_a_report(data, tmp_path, capsys, monkeypatch):
    from gsbids.recon.sr import fit as fit_sr

    def wrong(*_, **__):
        raise ValueError("out of\nink")

    folder, _ = data
    monkeypatch.setattr(fit_sr, "super_resolve", wrong)
    assert call(folder, tmp_path / "out", "--modality", "T1w") == 1
    err = capsys.readouterr().err
    assert "sub-01_T1w: step super_resolve failed: ValueError: out of ink" in err
    assert "Traceback" not in err
    page = (tmp_path / "out" / "sub-01_T1w.html").read_text(encoding="utf-8")
    assert "Failed: 1 step" in page
    assert "because it was not made: the volume, before and after, the spectrum, metrics" in page


def test_negative_intensities_stay(data, tmp_path):
    """Volumes that were brought to mean 0 are no magnitudes: nothing of them is cut off."""
    coarse = decimated(data[1], (18, 20, 16))
    raw = tmp_path / "bids" / "sub-01" / "anat" / "sub-01_FLAIR.nii.gz"
    write_nifti(raw, (coarse - coarse.mean()) / coarse.std(), AFFINE)
    (tmp_path / "bids" / "dataset_description.json").write_text('{"Name": "x", "BIDSVersion": "1.10.1"}')
    assert call(tmp_path, tmp_path / "out", "--modality", "FLAIR", "--sr-factor", 1, 1, 2, "--sr-quality", "fast") == 0
    volume, _ = load_image(tmp_path / "out/sub-01/anat/sub-01_rec-gsr_res-2x2x1_desc-preproc_FLAIR.nii.gz")
    assert volume.shape == (18, 20, 32)
    assert volume.min() < -0.5


def test_spectra_lie_over_one_another():
    """The same object on two grids has the same power per frequency, and a wave shows where it is."""
    from gsbids.qc.spectrum import axis_spectrum, energy_above

    x = np.arange(64)
    fine = np.broadcast_to(np.sin(2 * np.pi * x / 16) + 0.2 * np.sin(2 * np.pi * x / 2.5), (3, 4, 64))
    frequency, power = axis_spectrum(fine, 0.5, 2)
    assert frequency[power.argmax()] == pytest.approx(1 / 8)
    coarse_frequency, coarse = axis_spectrum(fine[..., ::2], 1.0, 2)
    assert coarse_frequency[coarse.argmax()] == pytest.approx(1 / 8)
    assert coarse.max() == pytest.approx(power.max(), rel=0.15)
    assert energy_above(fine) == pytest.approx(0.04 / 1.04, rel=0.05)
    assert energy_above(np.ones((4, 4, 4))) == 0


def test_figures_of_odd_volumes():
    from gsbids.qc.figures.sr import SrImages, comparison_rows, detail_rows, spectrum_curves

    affine = np.diag([1.0, 1, 1, 1])
    for shape in ((8, 9, 10), (12, 5, 1)):
        image = np.random.default_rng(0).random(shape).astype(np.float32)
        images = SrImages(image, affine, image, affine, image)
        for rows in (comparison_rows(images), detail_rows(images)):
            assert [len(row.tiles) for row in rows] == [4, 4, 4]
        empty = replace(images, after=0 * image, interpolated=0 * image)
        comparison_rows(empty)
        detail_rows(empty)
        if min(shape) > 3:
            assert spectrum_curves(images).startswith(b"<?xml")


def test_reports_are_made_anew_to_the_bit(data, finished, tmp_path):
    """By the settings of the runs, without their working folder: with a mask, and after N4."""
    folder, out = data[0], tmp_path / "out"
    shutil.copytree(finished[0], out)
    for page in out.glob("*.html"):
        page.unlink()
    assert call(folder, out, "--reports-only") == 0
    assert call(folder, out, "--reports-only", "--modality", "T1w", "-d", f"masks={folder / 'masks'}") == 0
    assert checksums(out, ("log", "logs")) == checksums(finished[0], ("log", "logs"))
    for page in out.glob("*.html"):
        assert page.read_bytes() == (finished[0] / page.name).read_bytes()
    assert not (tmp_path / "out-work").exists()


def test_methods_text_of_a_run(data, tmp_path, capsys):
    assert call(data[0], tmp_path / "out", "--boilerplate-only", "--modality", "T1w") == 0
    said = capsys.readouterr().out
    assert said.startswith("One T1w volume of a BIDS data set [1] was processed with gsbids")
    assert "super-resolved to voxels of 1 x 1 x 1 mm, from its own voxels alone" in said
    assert call(data[0], tmp_path / "out", "--boilerplate-only", "--sr-quality", "fast") == 0
    assert "Sobolev solution" in capsys.readouterr().out
