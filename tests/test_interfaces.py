# SPDX-License-Identifier: Apache-2.0
"""Interfaces on tiny files: what each writes, and what is part of its hash."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from conftest import ball_stack, write_nifti
from qc_samples import sample_result
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.bids.names import derivative_path
from gsbids.imaging.geometry import conform
from gsbids.imaging.itk import read_itk_transforms
from gsbids.imaging.nifti import load_image, read_header
from gsbids.interfaces import outputs
from gsbids.interfaces.base import read_stack
from gsbids.interfaces.outputs import QcMetrics, SaveDerivative, SubjectReport
from gsbids.interfaces.reconstruct import FitSvr, MotionTable, RegisterStacks, SimulateStack
from gsbids.interfaces.sample_volume import SampleVolume
from gsbids.interfaces.stack import ConformStack, CorrectBias, DenoiseStack, MaskStack
from gsbids.qc.verdict import judge
from gsbids.recon.svr.result import SvrResult
from gsbids.recon.volume.motion_table import COLUMNS, motion_table, slice_transforms

NAMES = ["run-1", "run-2", "run-3"]


@pytest.fixture(scope="module")
def stacks(tmp_path_factory):
    """Inputs that hold three stacks of a ball."""
    folder = tmp_path_factory.mktemp("stacks")
    files, masks = [], []
    for run in (1, 2, 3):
        image, mask, affine = ball_stack(run)
        files.append(str(write_nifti(folder / f"run-{run}.nii.gz", image, affine)))
        masks.append(str(write_nifti(folder / f"run-{run}_mask.nii.gz", mask, affine)))
    return {"in_files": files, "in_masks": masks, "names": NAMES, "thicknesses": [3.5] * 3}


@pytest.fixture(scope="module")
def fitted(stacks, tmp_path_factory):
    """Folder and files of a short fit."""
    folder = tmp_path_factory.mktemp("fit")
    registration = run(RegisterStacks(**stacks), folder).out_file
    options = {"iterations": 12, "n_gaussians": 400, "members": 1, "seed": 3}
    result = run(FitSvr(registration=registration, options=options, **stacks), folder).out_file
    volume = run(SampleVolume(result=result, resolution=2.0, **stacks), folder)
    return folder, registration, result, volume


def run(interface, folder):
    return interface.run(cwd=str(folder)).outputs


def test_what_hangs_on_the_brain_is_cut_off_where_masks_were_made_and_kept_where_they_were_given(
    stacks, fitted, tmp_path
):
    masks = []
    for file in stacks["in_masks"]:
        mask, affine = load_image(file)
        places = np.moveaxis(np.indices(mask.shape), 0, -1) @ affine[:3, :3].T + affine[:3, 3]
        middle = places[mask > 0].mean(0)
        spur = (np.abs(places - middle)[..., 1:] < 4).all(-1) & (places[..., 0] > middle[0])  # 8 mm wide
        masks.append((mask > 0) | spur)
    result = str(replace(SvrResult.load(fitted[2]), masks=tuple(masks)).save(tmp_path / "with_spur.npz"))

    def right_end(made):
        folder = tmp_path / str(len(made))
        folder.mkdir()
        choice = folder / "choice.json"
        choice.write_text(json.dumps({"doubts": {}, "left_out": [], "made": made}))
        out = run(SampleVolume(result=result, resolution=2.0, choice=str(choice), **stacks), folder)
        mask, affine = load_image(out.mask)
        return (np.argwhere(mask > 0) @ affine[:3, :3].T + affine[:3, 3])[:, 0].max()

    ends = {count: right_end(NAMES[:count]) for count in (0, 1, 3)}
    assert ends[1] == ends[0]
    assert ends[3] < ends[0] - 5


def test_conform(tmp_path):
    data = np.random.default_rng(0).normal(1, 1, (5, 12, 13)).astype(np.float32)
    affine = np.diag([4.0, 1.0, 1.0, 1.0])
    path = write_nifti(tmp_path / "a.nii.gz", data, affine)
    out = run(ConformStack(in_file=str(path)), tmp_path)
    made, made_affine = load_image(out.out_file)
    expected, expected_affine = conform(data, affine, 0)
    np.testing.assert_array_equal(made, expected)
    np.testing.assert_allclose(made_affine, expected_affine)
    (tmp_path / "k").mkdir()
    out = run(ConformStack(in_file=str(path), slice_encoding_direction="k"), tmp_path / "k")
    assert read_header(out.out_file)[0] == (5, 12, 13)


def changed(stacks, folder, change):
    """The stacks prepared as in the workflow, after ``change(image, mask)``: conformed, denoised, bias corrected."""
    files = []
    for name, file, mask in zip(NAMES, stacks["in_files"], stacks["in_masks"], strict=True):
        place = folder / name
        place.mkdir(parents=True)
        image, affine = load_image(file)
        file = write_nifti(place / "raw.nii.gz", change(image, load_image(mask)[0] > 0).astype(np.float32), affine)
        file = run(ConformStack(in_file=str(file), slice_encoding_direction="k"), place).out_file
        for step in (DenoiseStack, CorrectBias):
            file = run(step(in_file=file, in_mask=mask), place).out_file
        files.append(file)
    return stacks | {"in_files": files}


def reconstructed(stacks, folder):
    """Brain of the volume, and the first stack as simulated, of a short fit."""
    registration = run(RegisterStacks(**stacks), folder).out_file
    options = {"iterations": 20, "n_gaussians": 600, "members": 1, "seed": 3, "place": False}
    result = run(FitSvr(registration=registration, options=options, **stacks), folder).out_file
    out = run(SampleVolume(result=result, resolution=2.0, **stacks), folder)
    simulated = run(
        SimulateStack(
            result=result, index=0, in_file=stacks["in_files"][0], in_mask=stacks["in_masks"][0], thickness=3.5
        ),
        folder,
    ).out_file
    inside = load_image(stacks["in_masks"][0])[0] > 0
    volume, mask = load_image(out.volume)[0], load_image(out.mask)[0] > 0
    return volume[mask], load_image(simulated)[0][inside], SvrResult.load(result), load_image(out.unmasked)[0]


@pytest.fixture(scope="module")
def positive(stacks, tmp_path_factory):
    """What is reconstructed of stacks that were not changed."""
    folder = tmp_path_factory.mktemp("positive")
    return reconstructed(changed(stacks, folder, lambda image, mask: image), folder)


@pytest.mark.parametrize(
    ("kind", "shifted"), [("brain to mean 0", True), ("stack to mean 0", False), ("all negative", True)]
)
def test_negative_intensities_are_shifted_for_the_fit_and_given_back(stacks, positive, tmp_path, kind, shifted):
    image, inside = load_image(stacks["in_files"][0])[0], load_image(stacks["in_masks"][0])[0] > 0
    middle, scale = {
        "brain to mean 0": (image[inside].mean(), image[inside].std()),
        "stack to mean 0": (image.mean(), image.std()),
        "all negative": (5000.0, 1.0),
    }[kind]
    found, simulated, result, everywhere = reconstructed(
        changed(stacks, tmp_path, lambda image, mask: (image - middle) / scale), tmp_path
    )
    expected, spread = (np.percentile(positive[0], (5, 50, 95)) - middle) / scale, np.std(positive[0]) / scale
    assert np.abs(np.percentile(found, (5, 50, 95)) - expected).max() < 0.15 * spread
    assert np.std(found) > 0.9 * spread
    assert np.sqrt(np.mean((simulated - (positive[1] - middle) / scale) ** 2)) < 0.3 * spread
    assert (found < result.intensity_offset + 0.01 * spread).mean() < 0.01  # nothing of the brain is cut off
    assert everywhere.min() >= result.intensity_offset
    assert set(result.settings["shifts"]) == (set(NAMES) if shifted else set())
    assert np.median(result.ncc) > 0.95


def test_a_slice_without_information_has_no_part_in_the_fit(stacks, tmp_path):
    from gsbids.interfaces.masks import ChooseStacks
    from gsbids.qc.exclusions import empty_slices
    from gsbids.qc.metrics import slice_metrics
    from gsbids.recon.fitting.slices import SliceSet

    image, affine = load_image(stacks["in_files"][1])
    image[:, :, 7] = 0
    files = [stacks["in_files"][0], str(write_nifti(tmp_path / "lost.nii.gz", image, affine)), stacks["in_files"][2]]
    made = []
    for name, file, mask in zip(NAMES, files, stacks["in_masks"], strict=True):
        (tmp_path / name).mkdir()
        made.append(run(MaskStack(in_file=file, mask_file=mask, of_slices=True), tmp_path / name))
    assert [each.facts.get("EmptySlices") for each in made] == [None, [7], None]
    masks = [each.out_mask for each in made]
    chosen = run(ChooseStacks(in_masks=masks, facts=[each.facts for each in made], names=NAMES), tmp_path)
    assert chosen.facts[1]["EmptySlices"] == [7]  # for the sidecar of the mask
    given = {**stacks, "in_files": files, "in_masks": masks, "choice": chosen.out_file}
    registration = run(RegisterStacks(**given), tmp_path).out_file
    options = {"iterations": 12, "n_gaussians": 400, "members": 1, "seed": 3, "place": False}
    file = run(FitSvr(registration=registration, options=options, **given), tmp_path).out_file
    result = SvrResult.load(file)
    fitted = result.slice_index[result.stack_index == 1]
    assert {6, 8} <= set(fitted.tolist())
    assert 7 not in fitted
    assert slice_metrics(result)["n_slices"] == sum(int(load_image(mask)[0].any((0, 1)).sum()) for mask in masks)
    table = run(MotionTable(result=file, index=1, in_file=files[1], slice_timing=[]), tmp_path).table
    rows = Path(table).read_text().splitlines()
    assert rows[8].split("\t")[2:] == ["n/a"] * (len(COLUMNS) - 2)
    (excluded,) = empty_slices(result)
    assert (excluded.stack, excluded.what) == ("run-2", "slice 7")
    assert excluded.reason.startswith("One intensity in the whole mask")
    # Masks that grow with the head do not bring it back.
    whole = [
        replace(s, mask=np.ones_like(s.mask), empty=(7,) if n == 1 else ())
        for n, s in enumerate([read_stack(f, m, n, 3.5) for f, m, n in zip(files, masks, NAMES, strict=True)])
    ]
    gathered = SliceSet.from_stacks(whole, np.tile(np.eye(4), (3, 1, 1)))
    assert 7 not in gathered.slice_index[gathered.stack_index == 1]
    assert 7 in gathered.slice_index[gathered.stack_index == 0]


def test_few_broken_voxels_do_not_shift_a_brain(stacks, tmp_path):
    image, affine = load_image(stacks["in_files"][0])
    image[14, 14, 7] = -30000
    path = write_nifti(tmp_path / "a.nii.gz", image, affine)
    stack = read_stack(str(path), stacks["in_masks"][0], "", 3.5)
    assert stack.offset == 0
    assert stack.image.min() == 0


def test_mask_denoise_and_bias(stacks, tmp_path):
    image = stacks["in_files"][0]
    mask = run(MaskStack(in_file=image, mask_file=stacks["in_masks"][0]), tmp_path)
    assert mask.method == "derivatives"
    assert mask.reason.startswith("Mask file")
    np.testing.assert_array_equal(load_image(mask.out_mask)[0], load_image(stacks["in_masks"][0])[0])
    assert run(MaskStack(in_file=image, mode="otsu"), tmp_path).method == "otsu"
    for interface in (DenoiseStack, CorrectBias):
        out = run(interface(in_file=image, in_mask=mask.out_mask), tmp_path)
        assert np.isfinite(load_image(out.out_file)[0]).all()


def test_threads_are_no_part_of_the_hash(stacks):
    one, two = (RegisterStacks(num_threads=n, **stacks).inputs.get_hashval()[1] for n in (1, 2))
    assert one == two


def test_registration_keeps_every_bit(fitted, stacks):
    from gsbids.interfaces.base import read_stacks
    from gsbids.recon.registration.register import register_stacks

    found = json.loads(Path(fitted[1]).read_text())
    again = register_stacks(read_stacks(RegisterStacks(**stacks).inputs))
    np.testing.assert_array_equal(found["transforms"], again.transforms)
    assert found["reason"] == list(again.reason)


def test_volume_and_simulated_stack(fitted, stacks, tmp_path):
    _, _, result, volume = fitted
    image, affine = load_image(volume.volume)
    mask, _ = load_image(volume.mask)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), 2.0)
    beyond = ndimage.distance_transform_edt(mask == 0, sampling=2.0) > 3.5
    assert beyond.any()
    assert not image[beyond].any()
    assert load_image(volume.unmasked)[0][mask == 0].any()
    np.testing.assert_array_equal(load_image(volume.brain)[0], np.where(mask, image, 0))
    assert load_image(volume.coverage)[0].shape == image.shape
    sigma, sigma_affine = load_image(volume.uncertainty)
    np.testing.assert_array_equal(sigma_affine, affine)
    assert (sigma > 0).all()
    assert 0 < np.median(sigma[mask > 0]) < image[mask > 0].std()
    assert volume.facts["NumberOfStacksUsed"] == 3
    assert volume.facts["RandomSeed"] == 3
    out = run(
        SimulateStack(
            result=result, index=1, in_file=stacks["in_files"][1], in_mask=stacks["in_masks"][1], thickness=3.5
        ),
        tmp_path,
    )
    simulated, simulated_affine = load_image(out.out_file)
    acquired, acquired_affine = load_image(stacks["in_files"][1])
    inside = load_image(stacks["in_masks"][1])[0] > 0
    np.testing.assert_allclose(simulated_affine, acquired_affine)
    assert np.corrcoef(simulated[inside], acquired[inside])[0, 1] > 0.8


def test_motion_table_and_transforms_say_the_same(fitted, stacks, tmp_path):
    _, _, result_file, _ = fitted
    result = SvrResult.load(result_file)
    depth = read_header(stacks["in_files"][2])[0][2]
    times = [0.5 * k for k in range(0, depth, 2)] + [0.5 * k for k in range(1, depth, 2)]
    out = run(MotionTable(result=result_file, index=2, in_file=stacks["in_files"][2], slice_timing=times), tmp_path)
    lines = [line.split("\t") for line in Path(out.table).read_text().splitlines()]
    assert lines[0] == list(COLUMNS) == list(out.columns)
    assert len(lines) == 1 + depth
    assert lines[1 + depth // 2][1] == "1"
    moves = read_itk_transforms(out.slices_xfm)
    np.testing.assert_allclose(moves, slice_transforms(result, 2, depth), atol=1e-9)
    np.testing.assert_allclose(read_itk_transforms(out.stack_xfm)[0], result.stack_affine[2], atol=1e-9)
    row = dict(zip(lines[0], lines[1 + depth // 2], strict=True))
    x, y, z = (float(row[f"rot_{axis}"]) for axis in "xyz")
    about = Rotation.from_rotvec
    turn = about([0, 0, z]) * about([0, y, 0]) * about([x, 0, 0])
    centre, shift = ([float(row[f"{name}_{axis}"]) for axis in "xyz"] for name in ("centre", "trans"))
    point = np.array([3.0, -4.0, 5.0])
    expected = turn.apply(point - centre) + centre + shift
    np.testing.assert_allclose((moves[depth // 2] @ [*point, 1])[:3], expected, atol=1e-6)


def test_slices_without_brain_have_no_numbers(fitted):
    result = SvrResult.load(fitted[2])
    rows = motion_table(result, 0, 40)
    absent = sorted(set(range(40)) - set(result.slice_index[result.stack_index == 0].tolist()))
    assert absent
    assert rows[absent[0]]["ncc"] is None
    assert rows[0]["stack_time_index"] is None
    np.testing.assert_array_equal(slice_transforms(result, 0, 40)[absent[0]], result.stack_affine[0])


def test_metrics_and_report(fitted, stacks, tmp_path):
    _, registration, result, volume = fitted
    qc = run(
        QcMetrics(
            result=result,
            volume=volume.volume,
            mask=volume.mask,
            coverage=volume.coverage,
            in_files=stacks["in_files"],
            in_masks=stacks["in_masks"],
            thicknesses=stacks["thicknesses"],
            name="sub-01",
            facts={"RandomSeed": 1},
        ),
        tmp_path,
    )
    header, values = (line.split("\t") for line in Path(qc.table).read_text().splitlines())
    # Where all stacks agree at once, no other place is tried.
    assert {name for name, value in zip(header, values, strict=True) if value == "n/a"} <= {"placing_margin"}
    assert 0.5 < float(values[header.index("stack_agreement")]) <= 1
    assert header[0] == "bids_name"
    assert values[0] == "sub-01"
    assert list(header) == list(qc.columns)
    # The verdict stands in the table, in the sidecar of the volume, and on the page.
    verdict = judge(json.loads(Path(qc.metrics).read_text()))
    assert (header[-1], values[-1]) == ("verdict", verdict.level)
    assert values[-1] in qc.columns["verdict"]["Levels"]
    assert qc.facts == {"RandomSeed": 1, "Verdict": verdict.level, "VerdictReasons": list(verdict.reasons)}
    fixed = {
        "content": {"title": "sub 01", "task": "sub-01_T2w", "warnings": ("a <b>",)},
        "facts": {"versions": {"gsbids": "1"}, "n_stacks": 3, "resolution": (2.0,) * 3},
        "panels": [{"name": name, "slice_times": None, "facts": (("File", "x"),)} for name in NAMES],
    }
    maps = {"coverage": volume.coverage, "uncertainty": volume.uncertainty}
    out = run(
        SubjectReport(
            **fixed,
            **maps,
            conformed=stacks["in_files"],
            masks=stacks["in_masks"],
            mask_reasons=["by hand"] * 3,
            mask_methods=["derivatives"] * 3,
            result=result,
            registration=registration,
            volume=volume.volume,
            unmasked=volume.unmasked,
            mask=volume.mask,
            metrics=qc.metrics,
        ),
        tmp_path,
    )
    page = Path(out.out_file).read_text()
    assert "by hand" in page
    assert f"<strong>{verdict.words}.</strong>" in page
    assert "Uncertainty: 0" in page
    assert "a &lt;b&gt;" in page
    assert str(tmp_path) not in page
    little = run(SubjectReport(**fixed), tmp_path)
    assert "sub 01" in Path(little.out_file).read_text()


def test_save_derivative(fitted, tmp_path):
    entities = {"sub": "01", "suffix": "T2w"}
    node = SaveDerivative(
        output_dir=str(tmp_path / "out"),
        kind="volume_mask",
        entities=entities,
        extra={"res": 2.0},
        in_file=fitted[3].mask,
        more={"Note": 1},
        sidecar={"Sources": ["bids:raw:sub-01/x.nii.gz"]},
    )
    assert node.always_run
    path = Path(run(node, tmp_path).out_file)
    assert path == tmp_path / "out" / derivative_path(entities, "volume_mask", res=2.0)
    sidecar = json.loads(path.with_name(path.name.replace(".nii.gz", ".json")).read_text())
    assert sidecar["Note"] == 1
    assert sidecar["Type"] == "Brain"


def test_the_report_tells_of_strains_that_were_searched_along():
    found = sample_result()
    rows = dict(outputs._summary(replace(found, settings=found.settings | {"strain": 0.0312})))
    assert "3.1% from where they had settled" in rows["Free strain"]
    assert "Free strain" not in dict(outputs._summary(found))
