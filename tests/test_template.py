# SPDX-License-Identifier: Apache-2.0
"""Alignment to a template, the order of the voxels, and what is refused."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ball_stack, write_nifti
from nipype.interfaces.base import isdefined
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.bids.names import sidecar_path
from gsbids.cli.main import main
from gsbids.errors import InputError
from gsbids.imaging.itk import read_itk_transforms, write_itk_transforms
from gsbids.imaging.masks import dice
from gsbids.imaging.nifti import load_image, save_image
from gsbids.imaging.stack import Stack
from gsbids.interfaces.sample_volume import SampleVolume
from gsbids.masking.template import WEEKS, Template, fetal_templates, load_template, packaged_templates
from gsbids.recon.volume.sample import in_order, output_grid, sample_result
from gsbids.recon.volume.template import align_to_template, align_to_templates, brain_of_result

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))


def rigid(degrees, shift):
    """World transform (4, 4): turned about x, y, z in turn, then shifted (mm)."""
    move = np.eye(4)
    move[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    move[:3, 3] = shift
    return move


def angle(rotation) -> float:
    return float(np.degrees(Rotation.from_matrix(rotation).magnitude()))


def brain(move, scale=1.0, step=1.5) -> Stack:
    """A brain without symmetry, moved and of another size."""
    count = int(90 * max(scale, 1) / step) + 1
    affine = np.diag([step] * 3 + [1.0])
    affine[:3, 3] = -step * (count - 1) / 2 + move[:3, 3]
    points = np.indices((count,) * 3).reshape(3, -1).T @ affine[:3, :3].T + affine[:3, 3]
    x, y, z = ((points - move[:3, 3]) @ move[:3, :3] / scale).T
    mask = (x / 30) ** 2 + (y / 38) ** 2 + ((z + 0.15 * y) / 27) ** 2 < 1
    image = 600 + 250 * np.cos(x / 6 + y / 17) * np.cos(y / 8) + 200 * np.sin(z / 7 + x / 14)
    image = image + 900 * (((x - 9) / 4) ** 2 + ((y + 8) / 12) ** 2 + ((z - 3) / 6) ** 2 < 1)
    shape = (count,) * 3
    return Stack("brain", (image * mask).reshape(shape).astype(np.float32), mask.reshape(shape), affine, step)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_any_turn_is_found_and_sizes_may_differ(seed):
    turn = rigid(Rotation.random(random_state=seed).as_euler("xyz", degrees=True), (15, -22, 31))
    found = align_to_template(brain(turn), brain(rigid((0, 0, 0), (4, 5, -6)), scale=1.2))
    assert angle(found.transform[:3, :3] @ turn[:3, :3]) < 1.0
    # The middle of the brain lies in the middle of the template's.
    np.testing.assert_allclose((found.transform @ turn)[:3, 3], (4, 5, -6), atol=1.0)
    assert found.similarity > 0.9
    assert found.scale == pytest.approx(1.2, rel=0.05)  # tried in steps of 2.5 %
    np.testing.assert_allclose(found.transform[:3, :3] @ found.transform[:3, :3].T, np.eye(3), atol=1e-9)
    assert found.angle == pytest.approx(angle(turn[:3, :3]), abs=1.0)


def test_the_atlas_of_another_age(test_data):
    """Stacks of a fetal brain in any orientation, reconstructed, and aligned to an atlas three weeks younger."""
    from svr_template import FILES, aligned, reconstructed

    atlas, template = (
        load_template(test_data / "fetal-atlas-spinabifida" / f"{FILES[age]}_srr.nii.gz") for age in (28, 25)
    )
    brain, move = reconstructed(atlas, seed=3)
    assert angle(move[:3, :3]) > 60
    row = aligned(brain, move, [template])
    assert row["error"] < 5.0
    assert row["similarity"] > row["runner_up"] + 0.03


def sampled(moving_brain, folder, **options):
    _, stacks, result, _ = moving_brain
    folder.mkdir()
    files = {"in_files": [], "in_masks": []}
    for n, stack in enumerate(stacks):
        files["in_files"].append(str(save_image(folder / f"s{n}.nii.gz", stack.image, stack.affine)))
        files["in_masks"].append(str(save_image(folder / f"m{n}.nii.gz", stack.mask, stack.affine, "uint8")))
    node = SampleVolume(
        result=str(result.save(folder / "result.npz")),
        resolution=2.0,
        **files,
        **options,
        names=[stack.name for stack in stacks],
        thicknesses=[stack.thickness for stack in stacks],
    )
    return node.run(cwd=str(folder)).outputs


def test_radiological_is_another_order_of_the_same_voxels(moving_brain, tmp_path):
    usual = sampled(moving_brain, tmp_path / "usual")
    other = sampled(moving_brain, tmp_path / "other", orientation="radiological")
    for name in ("volume", "brain", "unmasked", "mask", "coverage", "uncertainty"):
        (data, affine), (turned, turned_affine) = (load_image(getattr(each, name)) for each in (usual, other))
        np.testing.assert_array_equal(turned, data[::-1])
        assert np.sign(np.diag(turned_affine)).tolist() == [-1, 1, 1, 1]
        last = [data.shape[0] - 1, 0, 0, 1]
        np.testing.assert_allclose(turned_affine @ [0, 0, 0, 1], affine @ last, atol=1e-5)
    data, affine = in_order(np.arange(24).reshape(2, 3, 4), np.eye(4), "scanner")
    assert (data.shape, affine.tolist()) == ((2, 3, 4), np.eye(4).tolist())


def test_the_field_is_sampled_on_the_grid_of_the_template(moving_brain, tmp_path):
    """A template that is the brain itself, turned: the volume is the field at those very places, not interpolated."""
    _, stacks, result, _ = moving_brain
    move = rigid((110, 35, -60), (25, -40, 12))
    affine, shape = output_grid(stacks, result, 1.5, move)
    own = brain_of_result(result, stacks)
    image = sample_result(result, np.linalg.inv(move) @ affine, shape)
    mask = (
        ndimage.affine_transform(
            own.mask.astype(np.float32), *split(np.linalg.inv(move @ own.affine) @ affine), output_shape=shape, order=1
        )
        > 0.5
    )
    template = save_image(tmp_path / "template.nii.gz", image * mask, affine)
    made = sampled(moving_brain, tmp_path / "made", template=str(template))
    found = read_itk_transforms(made.template_xfm)[0]
    assert angle(found[:3, :3] @ move[:3, :3].T) < 0.5
    assert np.linalg.norm((found @ np.linalg.inv(move))[:3, 3]) < 3
    assert made.facts["TemplateSimilarity"] > 0.95
    assert made.facts["TemplateRotation"] == pytest.approx(angle(move[:3, :3]), abs=0.5)
    unmasked, grid = load_image(made.unmasked)
    np.testing.assert_allclose(grid[:3, :3], 2.0 * np.eye(3), atol=1e-6)
    np.testing.assert_allclose(
        unmasked, sample_result(result, np.linalg.inv(found) @ grid, unmasked.shape), atol=1e-3 * unmasked.max()
    )
    volume, brain_mask = load_image(made.volume)[0], load_image(made.mask)[0] > 0
    np.testing.assert_array_equal(volume[brain_mask], unmasked[brain_mask])
    # Where voxels are in the template they look like it.
    index = np.linalg.inv(affine) @ grid
    there = ndimage.affine_transform(image, *split(index), output_shape=unmasked.shape, order=1)
    assert np.corrcoef(there[brain_mask], unmasked[brain_mask])[0, 1] > 0.97


def split(matrix):
    return matrix[:3, :3], matrix[:3, 3]


def test_template_masks(tmp_path, caplog):
    whole = brain(np.eye(4))
    stripped = load_template(save_image(tmp_path / "t.nii.gz", whole.image, whole.affine))
    assert (stripped.mask == whole.mask).mean() > 0.999
    surroundings = replace(whole, image=whole.image + np.where(whole.mask, 0, 40))
    path = save_image(tmp_path / "head.nii.gz", surroundings.image, whole.affine)
    mask = save_image(tmp_path / "mask.nii.gz", whole.mask, whole.affine, "uint8")
    assert (load_template(path, mask).mask == whole.mask).all()
    assert caplog.text == ""
    assert load_template(path).mask[whole.mask].mean() > 0.8
    assert "its brain is not cut out, and there is no --template-mask" in caplog.text


def packaged_brain(week: int, move=None) -> Stack:
    """A fetal brain of the package, moved; what lies on its left is dark."""
    found = fetal_templates()[WEEKS.index(week)].brain
    points = np.argwhere(found.mask) @ found.affine[:3, :3].T + found.affine[:3, 3]
    image = found.image.copy()
    image[tuple(np.argwhere(found.mask)[points[:, 0] < points[:, 0].mean() - 20].T)] *= 0.5
    return replace(found, image=image, affine=(np.eye(4) if move is None else move) @ found.affine)


@pytest.mark.parametrize("week", [25, 28])
def test_a_brain_lies_as_the_atlas_of_another_age_and_left_stays_left(week):
    turn = rigid(Rotation.random(random_state=week).as_euler("xyz", degrees=True), (15, -22, 31))
    brain = packaged_brain(week, turn)
    templates = [each.brain for each in fetal_templates() if str(week) not in each.name]
    number, found = align_to_templates(brain, templates)
    assert found.doubt == ""
    assert angle(found.transform[:3, :3] @ turn[:3, :3]) < 15
    points = np.argwhere(brain.mask & (brain.image < 0.5 * np.median(brain.image[brain.mask])))
    laid = (found.transform @ brain.affine @ np.c_[points, np.ones(len(points))].T)[:3]
    middle = (templates[number].affine @ [*np.argwhere(templates[number].mask).mean(0), 1])[:3]
    assert (laid[0] < middle[0]).mean() > 0.8


def test_a_brain_that_lies_two_ways_is_doubtful():
    """An ellipsoid of one tissue looks the same upside down."""
    index = np.indices((60, 60, 60)) - 29.5
    mask = (index[0] / 20) ** 2 + (index[1] / 26) ** 2 + (index[2] / 17) ** 2 < 1
    egg = Stack("egg", (1000.0 * mask).astype(np.float32), mask, np.eye(4), 1.0)
    _, found = align_to_templates(egg, [each.brain for each in fetal_templates()])
    assert found.doubt
    twin = align_to_template(egg, egg)
    assert twin.similarity > 0.99
    assert "turned another way" in twin.doubt


def test_the_templates_of_the_package():
    for contrast, millilitres, names in (
        ("T2w", 100, [["fetal"] * 3, ["ICBM152"]]),
        ("T2w", 1300, [["ICBM152"]]),
        ("T1w", 100, [["ICBM152"]]),
        ("bold", 100, []),
    ):
        found = packaged_templates(contrast, millilitres)
        assert [[each.name.split()[0] for each in group] for group in found] == names
    sizes = [float(each.brain.mask.sum()) * abs(np.linalg.det(each.brain.affine)) / 1000 for each in fetal_templates()]
    assert sizes == pytest.approx([61, 117, 168], abs=1)


def test_a_volume_lies_as_the_packaged_template_or_says_why_not(moving_brain, tmp_path, monkeypatch, caplog):
    _, stacks, result, _ = moving_brain
    unknown = sampled(moving_brain, tmp_path / "unknown", packaged_templates="T2w")
    told = json.loads(Path(unknown.placement).read_text())
    assert unknown.facts["TemplateDoubt"] == told["TemplateDoubt"]
    assert unknown.facts["TemplateDoubt"] in caplog.text
    assert "keeps the axes of the scanner" in caplog.text
    plain = sampled(moving_brain, tmp_path / "plain")
    np.testing.assert_array_equal(load_image(unknown.volume)[0], load_image(plain.volume)[0])
    assert not isdefined(unknown.template_xfm)
    assert unknown.space == plain.space == {}
    move = rigid((110, 35, -60), (25, -40, 12))
    own = brain_of_result(result, stacks)
    template = Template("itself", "https://example.org/atlas", replace(own, affine=move @ own.affine))
    monkeypatch.setattr("gsbids.masking.template.packaged_templates", lambda suffix, millilitres: [[template]])
    made = sampled(moving_brain, tmp_path / "made", packaged_templates="T2w")
    found = read_itk_transforms(made.template_xfm)[0]
    assert angle(found[:3, :3] @ move[:3, :3].T) < 0.5
    np.testing.assert_allclose(found @ read_itk_transforms(made.scanner_xfm)[0], np.eye(4), atol=1e-6)
    assert made.space == {"SpatialReference": "https://example.org/atlas"}
    assert made.facts["TemplateName"] == "itself"
    assert "TemplateDoubt" not in made.facts
    assert made.mask_facts == made.space | {"MaskSource": "Vote of the masks of the slices"}  # which were given
    assert "TemplateMaskOverlap" not in made.facts

    names = [stack.name for stack in stacks]
    choice = tmp_path / "choice.json"
    choice.write_text(json.dumps({"doubts": {}, "left_out": [], "empty": [], "made": names}))
    shaped = sampled(moving_brain, tmp_path / "shaped", packaged_templates="T2w", choice=str(choice))
    assert shaped.mask_facts["MaskSource"] == "Shape of the itself, laid on the volume"
    assert shaped.facts["TemplateMaskOverlap"] > 0.85
    mask, vote = (load_image(each.mask)[0] > 0 for each in (shaped, made))
    assert dice(mask, vote) == pytest.approx(shaped.facts["TemplateMaskOverlap"], abs=0.02)
    monkeypatch.setattr("gsbids.masking.shape_prior.LEAST_OVERLAP", 1.0)
    voted = sampled(moving_brain, tmp_path / "voted", packaged_templates="T2w", choice=str(choice))
    assert voted.mask_facts["MaskSource"] == "Vote of the masks of the slices"
    assert voted.facts["TemplateMaskDoubt"] in caplog.text


def test_the_tree_of_a_run_by_default(tiny_bids, tmp_path, official_errors):
    """A ball looks like no brain: the axes of the scanner, and a word about it; then as it was asked for."""
    tiny, out = tiny_bids(), tmp_path / "out"
    words = [
        str(tiny.root),
        str(out),
        "participant",
        "-d",
        str(tiny.masks),
        "-w",
        str(tmp_path / "work"),
        "--sloppy",
        "--no-denoise",
        "--no-n4",
        "--nprocs",
        "1",
        "--output-resolution",
        "2",
    ]
    assert main(words) == 0
    volume = out / "sub-01" / "anat" / "sub-01_rec-gsvr_res-2_desc-preproc_T2w.nii.gz"
    told = json.loads(sidecar_path(volume).read_text())
    assert told["SpatialReference"] == "orig"
    assert not list(volume.parent.glob("*template*"))
    assert official_errors(out) == []
    page = (out / "sub-01.html").read_text(encoding="utf-8")
    assert f"those of the scanner: the brain {told['TemplateDoubt']}" in page
    assert main([*words[:7], "--reports-only", "--nprocs", "1"]) == 0
    assert (out / "sub-01.html").read_text(encoding="utf-8") == page
    assert main([*words, "--template", "none"]) == 0
    assert "TemplateDoubt" not in json.loads(sidecar_path(volume).read_text())
    settings = max(out.glob("sub-01/log/*/gsbids.toml"))
    assert 'template = "none"' in settings.read_text()


def test_the_tree_of_a_run_with_a_template(tiny_bids, tmp_path, official_errors):
    """The names, the sidecars and the links of ``--template``; everything of the stacks is as without it."""
    tiny, out, atlas = tiny_bids(), tmp_path / "out", tmp_path / "atlas" / "old brain.nii.gz"
    atlas.parent.mkdir()
    image, mask, affine = ball_stack(1)
    save_image(atlas, image * mask, rigid((0, 0, 140), (3, 4, 5)) @ affine)
    words = [
        str(tiny.root),
        str(out),
        "participant",
        "-d",
        str(tiny.masks),
        "-w",
        str(tmp_path / "work"),
        "--sloppy",
        "--no-denoise",
        "--no-n4",
        "--nprocs",
        "1",
        "--output-resolution",
        "2",
        "--template",
        str(atlas),
    ]
    assert main(words) == 0
    anat = out / "sub-01" / "anat"
    for name in ("preproc_T2w", "brain_T2w", "unmasked_T2w", "brain_mask", "coverage_T2w", "uncertainty_T2w"):
        path = anat / f"sub-01_rec-gsvr_space-template_res-2_desc-{name}.nii.gz"
        assert json.loads(sidecar_path(path).read_text())["SpatialReference"] == "bids:template:old brain.nii.gz"
        assert path.is_file()
    xfm = anat / "sub-01_rec-gsvr_from-T2w_to-template_mode-image_xfm.txt"
    assert read_itk_transforms(xfm).shape == (1, 4, 4)
    assert json.loads(sidecar_path(xfm).read_text())["Sources"] == [
        "bids::sub-01/anat/sub-01_rec-gsvr_desc-gaussians_model.npz",
        "bids:template:old brain.nii.gz",
    ]
    links = json.loads((out / "dataset_description.json").read_text())["DatasetLinks"]
    assert (out / links["template"] / "old brain.nii.gz").is_file()
    for path in anat.glob("*_run-1_*.json"):
        assert json.loads(path.read_text()).get("SpatialReference", "orig") == "orig"
    assert official_errors(out) == []
    page = (out / "sub-01.html").read_text(encoding="utf-8")
    assert "Letters are directions of the child, as in old brain.nii.gz" in page
    back = str(xfm).replace("from-T2w_to-template", "from-template_to-T2w")
    np.testing.assert_allclose(read_itk_transforms(back)[0] @ read_itk_transforms(xfm)[0], np.eye(4), atol=1e-6)
    assert "aligned rigidly to the template old brain.nii.gz" in page
    # The report is made again from these files, whatever the options.
    (out / "sub-01.html").unlink()
    assert main([*words[:7], "--reports-only", "--nprocs", "1"]) == 0
    assert (out / "sub-01.html").read_text(encoding="utf-8") == page


@pytest.fixture
def bad(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for n in (1, 2, 3):
        image, mask, affine = ball_stack(n)
        write_nifti(tmp_path / f"s{n}.nii.gz", image, affine)
        write_nifti(tmp_path / f"m{n}.nii.gz", mask, affine)
    write_nifti(tmp_path / "flat.nii.gz", np.ones((40, 40), np.int16), np.eye(4))
    write_nifti(tmp_path / "four.nii.gz", np.ones((12, 12, 12, 3), np.int16), np.eye(4))
    write_nifti(tmp_path / "empty.nii.gz", np.zeros((12, 12, 12), np.int16), np.eye(4))
    write_nifti(tmp_path / "speck.nii.gz", np.pad(np.ones((2, 2, 2), np.int16), 9), np.eye(4))
    write_nifti(tmp_path / "far.nii.gz", mask, affine + np.array([[0, 0, 0, 900]] + [[0] * 4] * 3))
    (tmp_path / "broken.nii.gz").write_bytes(b"nothing of the kind")
    return tmp_path


BAD = [
    (["--template", "no.nii.gz"], "no.nii.gz: there is no such file"),
    (["--template", "flat.nii.gz"], "the image has 40 x 40 x 1 voxels, and a volume is expected"),
    (["--template", "four.nii.gz"], "the image has 3 volumes"),
    (["--template", "empty.nii.gz"], "no voxel is above 0"),
    (["--template", "speck.nii.gz"], "the brain in it has 0.008 ml"),
    (["--template", "broken.nii.gz"], "this is not a readable NIfTI file"),
    (["--template", "s1.nii.gz", "--template-mask", "no.nii.gz"], "no.nii.gz: there is no such file"),
    (["--template", "s1.nii.gz", "--template-mask", "empty.nii.gz"], "the mask is all zero"),
    (["--template", "s1.nii.gz", "--template-mask", "far.nii.gz"], "does not overlap the template"),
    (["--template-mask", "m1.nii.gz"], "there is no --template that it could belong to"),
    (["--orientation", "sideways"], "invalid choice"),
]


@pytest.mark.parametrize("command", ["reconstruct", "participant"])
@pytest.mark.parametrize(("words", "message"), BAD)
def test_one_line_for_a_template_that_cannot_be(bad, tiny_bids, capsys, command, words, message):
    if command == "reconstruct":
        given = [
            "reconstruct",
            "--input-stacks",
            "s1.nii.gz",
            "s2.nii.gz",
            "s3.nii.gz",
            "--slice-thickness",
            "3.5",
            "--output-volume",
            "out.nii.gz",
        ]
    else:
        given = [str(tiny_bids().root), "out", "participant", "--dry-run"]
    try:
        code = main([*given, *words])
    except SystemExit as left:
        code = left.code
    said = capsys.readouterr().err
    assert code == 2
    errors = [line for line in said.splitlines() if "error: " in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert "--bids-filter-file" not in errors[0]
    assert "Traceback" not in said
    assert not (bad / "out").exists()
    assert not (bad / "out.nii.gz").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--mode", "sr", "--template", "s1.nii.gz"], "--template: is for slice-to-volume reconstruction"),
        (["--mode", "sr", "--orientation", "radiological"], "--orientation: is for slice-to-volume reconstruction"),
        (["--derivatives", "template=."], "the name 'template' is taken"),
    ],
)
def test_options_that_do_not_go_together(bad, tiny_bids, capsys, words, message):
    assert main([str(tiny_bids().root), "out", "participant", "--dry-run", *words]) == 2
    assert message in capsys.readouterr().err


def test_an_output_transform_needs_a_template(bad, capsys):
    with pytest.raises(SystemExit) as left:
        main(
            [
                "reconstruct",
                "--input-stacks",
                "s1.nii.gz",
                "s2.nii.gz",
                "--output-volume",
                "out.nii.gz",
                "--output-transform",
                "t.txt",
            ]
        )
    assert left.value.code == 2
    assert "--output-transform: there is one with --template only" in capsys.readouterr().err


def test_a_model_is_sampled_in_the_space_of_the_template(moving_brain, tmp_path, capsys):
    """``gsbids sample --transform``: the field at the places that the transform names, on a grid of the template."""
    result, move = moving_brain[2], rigid((20, 75, -160), (8, 9, -50))
    model, xfm = result.save(tmp_path / "model.npz"), write_itk_transforms(tmp_path / "xfm.txt", move)
    words = ["sample", str(model), str(tmp_path / "out.nii.gz"), "--transform", str(xfm), "--spacing", "2"]
    assert main([*words, "--orientation", "radiological"]) == 0
    image, affine = load_image(tmp_path / "out.nii.gz")
    assert np.sign(np.diag(affine)).tolist() == [-1, 1, 1, 1]
    expected = sample_result(result, np.linalg.inv(move) @ affine, image.shape)
    np.testing.assert_allclose(image, expected, atol=1e-3 * expected.max())
    assert image.max() > 300
    # All of the brain is in the grid.
    middle = move @ [*result.field.mean.mean(0) + result.field.origin, 1]
    np.testing.assert_allclose((affine @ [*((np.array(image.shape) - 1) / 2), 1])[:3], middle[:3], atol=6)
    write_itk_transforms(tmp_path / "two.txt", np.array([move, move]))
    (tmp_path / "none.txt").write_text("nothing")
    for name, message in (
        ("two.txt", "holds 2 transforms"),
        ("no.txt", "cannot be read"),
        ("none.txt", "no ITK transform"),
    ):
        words[4] = str(tmp_path / name)
        assert main(words) == 2
        assert message in capsys.readouterr().err


def test_a_brain_that_looks_like_nothing_in_the_template_is_named(moving_brain, tmp_path, caplog):
    rng = np.random.default_rng(1)
    noise = ndimage.gaussian_filter(rng.normal(size=(40, 40, 40)), 2)
    image = (noise > 0.02) * 500 * rng.random((40, 40, 40))
    template = save_image(tmp_path / "noise.nii.gz", image, np.diag([1.5, 1.5, 1.5, 1]))
    made = sampled(moving_brain, tmp_path / "made", template=str(template))
    assert made.facts["TemplateSimilarity"] < 0.5
    assert "the brain looks little like the template" in caplog.text
    with pytest.raises(InputError, match="there is no such file"):
        load_template(tmp_path / "nothing.nii.gz")
