# SPDX-License-Identifier: Apache-2.0
"""What the mask network is trained on: scenes, slices cut from them, and one short training."""

import json
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

TRAINING = Path(__file__).resolve().parents[1] / "training"
sys.path.insert(0, str(TRAINING))

import canvas  # noqa: E402
import evaluate  # noqa: E402
import mother  # noqa: E402
import phantom  # noqa: E402
import train  # noqa: E402
from generator import (  # noqa: E402
    BRAIN,
    PIXEL,
    SIZE,
    Mixture,
    Palette,
    Plane,
    acquired,
    cut,
    draw,
    palette,
    scenes,
    view,
)
from sampling import NO_INNER, sample  # noqa: E402
from sources import AROUND, CSF, REAL, Brain, Inner, is_brain, read_stack, scene_of, surrounded, transplanted  # noqa: E402

from gsbids.masking.found import MaskNetwork  # noqa: E402
from gsbids.masking.network import NetworkShape, build_network  # noqa: E402
from gsbids.masking.networks import load_network, save_network  # noqa: E402

SPACING = (1.5, 1.5, 3.0)


@pytest.fixture(scope="module")
def brain():
    """An ellipsoid, longest from back to front, of two tissues."""
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in (31, 41, 29)), indexing="ij"))
    radius = (at**2).sum(0)
    labels = np.where(radius < 0.5, 1, np.where(radius < 1, 5, 0)).astype(np.uint8)
    return Brain("ellipsoid", np.where(labels == 1, 0.9, 0.5).astype(np.float32), labels, 1.5)


@pytest.fixture(scope="module")
def stack():
    """A real stack's like: a bright ellipsoid in dim tissue."""
    at = np.stack(
        np.meshgrid(*((np.arange(n) - n // 2) * s for n, s in zip((80, 80, 24), SPACING, strict=True)), indexing="ij")
    )
    inside = (at[0] / 22) ** 2 + (at[1] / 30) ** 2 + (at[2] / 24) ** 2 < 1
    image = np.where(inside, 140, 50).astype(np.uint8)
    return scene_of("stack", image, np.where(inside, REAL, 0).astype(np.uint8), SPACING, True)


@pytest.fixture(scope="module")
def made(brain):
    return phantom.phantom(np.random.default_rng(3), [brain])


def ball_scene():
    flat = (np.arange(128) - 63.5) * 2.5
    at = np.stack(np.meshgrid(flat, flat, flat, indexing="ij"))
    inside = (at**2).sum(0) < 40**2
    return scene_of(
        "ball",
        np.full(inside.shape, 100, np.uint8),
        np.where(inside, 1, canvas.BODY).astype(np.uint8),
        (2.5,) * 3,
        False,
    )


def test_a_made_up_scene_holds_a_brain_of_a_fetus_in_fluid_skull_and_skin(made):
    head = made.inner
    inside = is_brain(head.labels)
    millilitres = inside.sum() * np.prod(head.spacing) / 1e3
    assert 45 < millilitres < 700
    assert {canvas.SKIN, canvas.SKULL, CSF} <= set(np.unique(head.labels))
    assert {canvas.FAT, canvas.BODY} <= set(np.unique(made.labels))
    assert ndimage.label(inside)[1] == 1
    np.testing.assert_allclose(made.middle * made.spacing, np.argwhere(inside).mean(0) * head.spacing + head.start)
    assert made.radius == pytest.approx(np.cbrt(millilitres * 750 / np.pi))


def test_a_scene_without_a_fetus_holds_no_brain(brain):
    empty = phantom.phantom(np.random.default_rng(3), [brain], empty=True)
    assert empty.inner is None
    assert not is_brain(empty.labels).any()
    assert canvas.FLUID in empty.labels


def test_the_same_seed_makes_the_same_slices(brain, stack):
    mixture = Mixture(scenes=2)
    first, again = (scenes(7, [stack], [brain], mixture) for _ in range(2))
    assert [len(first[kind]) for kind in first] == [1, 1, 2]
    for number in range(6):
        one, two = (draw(np.random.default_rng(number), pool, mixture, 3) for pool in (first, again))
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])
        assert one[0].shape == (3, SIZE, SIZE)
        assert one[0].dtype == np.float32
        assert set(np.unique(one[1])) <= {0, 1}
        assert np.isfinite(one[0]).all()


def test_other_seeds_make_other_scenes(brain):
    one, two = (phantom.phantom(np.random.default_rng(seed), [brain]) for seed in (1, 2))
    assert (one.labels != two.labels).mean() > 0.1


def test_slices_have_the_area_of_the_cut_through_a_ball():
    scene = ball_scene()
    still = Plane(np.eye(3), scene.middle * 2.5, 20.0, 2.0, 1.0)
    _, shares = cut(np.random.default_rng(0), scene, palette(np.random.default_rng(0), Mixture()), still, 3)
    area = (shares > 0.5).sum((1, 2)) * PIXEL**2
    np.testing.assert_allclose(area, np.pi * (40**2 - np.array([-20, 0, 20]) ** 2), rtol=0.15)
    larger = Plane(np.eye(3), scene.middle * 2.5, 20.0, 2.0, 1.5)
    _, shares = cut(np.random.default_rng(0), scene, palette(np.random.default_rng(0), Mixture()), larger, 1)
    assert (shares > 0.5).sum() * PIXEL**2 == pytest.approx(np.pi * 60**2, rel=0.1)


def shown(colours):
    return colours.offset, colours.gain, BRAIN


@pytest.fixture
def as_it_is():
    """Colours that show the image."""
    return Palette(np.zeros(len(BRAIN), np.float32), np.ones(len(BRAIN), np.float32))


def test_samples_are_those_of_linear_interpolation(stack, as_it_is):
    rng = np.random.default_rng(1)
    frame = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    matrix = np.column_stack([frame[:, :2] * 0.7, [40.0, 30, 9]])
    values, shares = sample((stack.image, stack.labels), NO_INNER, matrix[None, None], shown(as_it_is), 50)
    i, j = np.meshgrid(np.arange(50), np.arange(50), indexing="ij")
    index = np.tensordot(matrix, np.stack([i, j, np.ones_like(i)]), 1)
    expected = ndimage.map_coordinates(stack.image, index, np.float32, order=1)
    inside = ((index >= 0) & (index <= np.array(stack.image.shape)[:, None, None] - 1)).all(0)
    assert inside.sum() > 500
    np.testing.assert_allclose(values[0][inside], expected[inside], atol=1e-3)
    nearest = ndimage.map_coordinates(stack.labels, index, order=0) == REAL
    assert (nearest[inside] == (shares[0][inside] > 0.5)).mean() > 0.999
    assert not values[0][~inside].any()


def test_a_finer_volume_is_seen_where_it_lies_and_the_scene_elsewhere(as_it_is):
    inner = Inner(
        np.full((20, 20, 20), 200, np.uint8),
        np.full((20, 20, 20), REAL, np.uint8),
        np.array([30.0, 30, 30]),
        np.array([1.0, 1.0, 2.0]),
    )
    scene = scene_of(
        "two", np.full((60, 60, 60), 50, np.uint8), np.zeros((60, 60, 60), np.uint8), (2.0,) * 3, False, inner
    )
    np.testing.assert_allclose(scene.middle * 2, (39.5, 39.5, 49))
    plane = Plane(np.eye(3), np.array([39.5, 39.5, 49]), 30.0, 0.0, 1.0)
    _, shares = cut(np.random.default_rng(0), scene, as_it_is, plane, 3)
    assert not shares[[0, 2]].any()
    assert shares[1].sum() * PIXEL**2 == pytest.approx(19**2, rel=0.15)


def test_before_and_behind_a_stack_lies_what_another_shows():
    x, y, z = np.meshgrid(*[np.arange(70.0)] * 3, indexing="ij")
    world = 120 + 50 * np.sin(x / 8) * np.cos(y / 9) + 50 * np.sin(z / 8)
    labels = np.zeros(world.shape, np.uint8)
    labels[28:42, 28:42, 28:42] = REAL
    thick = (slice(None), slice(None), slice(26, 44, 3))
    made = [
        scene_of("one", world[thick].astype(np.uint8), labels[thick], (1, 1, 3), True),
        scene_of(
            "other",
            np.transpose(world, (0, 2, 1))[thick].astype(np.uint8),
            np.transpose(labels, (0, 2, 1))[thick],
            (1, 1, 3),
            True,
        ),
    ]
    one = np.array([[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 3, 26], [0, 0, 0, 1.0]])
    other = np.array([[1, 0, 0, 0], [0, 0, 3, 26], [0, 1, 0, 0], [0, 0, 0, 1.0]])
    scene = surrounded(made[0], one, made[1], other)
    np.testing.assert_array_equal(scene.inner.labels, made[0].labels)
    step = AROUND[1]
    begin = np.array([0, 0, 26]) - scene.inner.start  # where the scene begins in the world
    for deep in (12, 35, 60):  # below, within and above the stack
        at = np.rint((np.array([35, 35, deep]) - begin) / step).astype(int)
        place = at * step + begin
        expected = ndimage.map_coordinates(world, place[:, None], order=1)[0]
        assert scene.image[tuple(at)] == pytest.approx(expected, abs=5)
    assert not scene.image[:, 0].any(), "the other stack shows a slab"
    assert is_brain(scene.labels).any()


def test_what_is_left_of_a_slice_holds_the_brain():
    brain = np.zeros((SIZE, SIZE), bool)
    brain[60:90, 50:100] = True
    for share, least, most in (("alone", 30 * 50, 60 * 80), ("close", 34 * 54, 70 * 90)):
        mixture = Mixture(**{"narrow": 0.0, "close": 0.0, "alone": 0.0, "beside": 0.0} | {share: 1.0})
        for seed in range(20):
            left = view(np.random.default_rng(seed), brain, mixture)
            assert left[brain].all()
            assert least <= left.sum() <= most
    whole = view(np.random.default_rng(0), brain, Mixture(narrow=0, close=0, alone=0, beside=0))
    assert whole.all()
    assert not view(np.random.default_rng(1), brain, Mixture(narrow=1, close=0, alone=0, beside=0)).all()


def test_fields_of_view_beside_the_brain_and_boxes_and_blobs_where_there_is_none():
    brain = np.zeros((SIZE, SIZE), bool)
    brain[60:90, 50:100] = True
    nothing = np.zeros_like(brain)
    cut = 0
    for seed in range(20):
        beside = view(np.random.default_rng(seed), brain, Mixture(narrow=0, close=1, alone=0, beside=1))
        cut += beside[brain].any()
        box = view(np.random.default_rng(seed), nothing, Mixture(narrow=0, close=1, alone=0, beside=0))
        for left in (beside, box):
            rows, columns = np.flatnonzero(left.any(1)), np.flatnonzero(left.any(0))
            assert left.sum() == len(rows) * len(columns), "a box"
            assert 20**2 <= left.sum() <= 90**2
        blob = view(np.random.default_rng(seed), nothing, Mixture(narrow=0, close=0, alone=1, beside=0))
        assert 0.9 * np.pi * 10**2 <= blob.sum() <= 1.1 * np.pi * 35**2
    assert cut <= 10


def test_things_that_are_built_like_a_brain_are_none(brain):
    plain, decoys = (phantom.phantom(np.random.default_rng(5), [brain], empty=True, decoys=share) for share in (0, 1))
    assert not is_brain(decoys.labels).any()
    assert (plain.labels != decoys.labels).any()
    assert is_brain(phantom.phantom(np.random.default_rng(5), [brain], decoys=1.0).inner.labels).any()


def test_a_pocket_of_fluid_holds_limbs_and_leaves_what_is_around_it():
    limbs = 0
    for seed in range(10):
        drawn = canvas.blank(np.zeros(3), canvas.VOXEL)
        drawn.labels[...] = canvas.BODY
        centre, size = np.array([5.0, 0, -10]), np.array([30.0, 40, 50])
        mother.pocket(np.random.default_rng(seed), drawn, centre, size, np.eye(3))
        away = np.linalg.norm((drawn.at - centre[:, None, None, None]) / size[:, None, None, None], axis=0)
        assert (drawn.labels[away > 1.3] == canvas.BODY).all()
        assert canvas.FLUID in drawn.labels[away < 0.98]
        assert set(np.unique(drawn.labels[away < 0.98])) <= {
            canvas.FLUID,
            canvas.LIMB,
            canvas.CORD,
            canvas.FLESH,
            canvas.SKULL,
        }
        limbs += (drawn.labels[away < 0.98] != canvas.FLUID).any()
    assert limbs >= 6


def test_bodies_without_a_head_lie_in_scenes_without_a_brain(brain):
    empty = phantom.phantom(np.random.default_rng(8), [brain], empty=True, decoys=1.0)
    assert {canvas.LUNG, canvas.LIVER, canvas.SPINE} & set(np.unique(empty.labels))
    assert empty.inner is None
    assert not is_brain(empty.labels).any()


def test_a_transplanted_brain_fills_the_mask_and_leaves_the_rest(brain, stack):
    moved = transplanted(np.random.default_rng(0), stack, brain)
    inside = is_brain(stack.labels)
    np.testing.assert_array_equal(is_brain(moved.labels), inside)
    np.testing.assert_array_equal(moved.image[~inside], stack.image[~inside])
    tissue = inside & (moved.labels != CSF)
    assert 0.4 < tissue.sum() / inside.sum() < 1
    assert (moved.labels == 1).sum() > 0.2 * tissue.sum()


def test_what_the_scanner_adds_keeps_slices_finite_and_not_below_zero():
    images = np.random.default_rng(0).uniform(0, 3, (3, 64, 64)).astype(np.float32)
    for seed in range(20):
        seen = acquired(np.random.default_rng(seed), images)
        assert seen.min() >= 0
        assert np.isfinite(seen).all()
    assert not acquired(np.random.default_rng(0), np.zeros((1, 64, 64), np.float32)).max() > 1


def test_a_stack_comes_with_its_slices_on_the_third_axis(tmp_path):
    data = np.random.default_rng(0).uniform(1, 9, (10, 60, 50)).astype(np.float32)
    mask = np.zeros(data.shape, np.uint8)
    mask[3:7, 20:40, 10:30] = 1
    for name, volume in (("a", data), ("m", mask)):
        nib.save(nib.Nifti1Image(volume, np.diag([4, 1.0, 1.0, 1])), tmp_path / f"{name}.nii.gz")
    scene, affine = read_stack(tmp_path / "a.nii.gz", tmp_path / "m.nii.gz")
    assert scene.image.shape == (40, 33, 10)
    assert scene.spacing == (1.5, 1.5, 4)
    np.testing.assert_allclose(np.linalg.norm(affine[:3, :3], axis=0), (1.5, 1.5, 4), rtol=0.02)
    np.testing.assert_allclose(affine[:3, :3] @ scene.middle + affine[:3, 3], (4 * 4.5, 29.5, 19.5), atol=0.5)
    volume = is_brain(scene.labels).sum() * np.prod(scene.spacing)
    assert volume == pytest.approx(mask.sum() * 4, rel=0.2)


def test_a_short_training_writes_networks_that_load(tmp_path, brain, stack, monkeypatch):
    monkeypatch.setattr(train, "real_scenes", lambda folder, told, head, labels: [stack])
    monkeypatch.setattr(train, "brains", lambda folder, weeks: [brain])
    config = tmp_path / "config.toml"
    config.write_text(
        "seed = 1\n[train]\nruns = [1]\nweeks = [22]\n[mixture]\nscenes = 2\n[network]\n"
        "channels = [4, 8]\nslices = [1, 3]\n[schedule]\nminutes = 5.0\nbatches = 40\nbatch = 2\n"
        "rate = 5e-3\naverage = 0.9\n"
    )
    monkeypatch.setattr(sys, "argv", ["train", str(config), str(tmp_path / "out"), "--workers=0", "--log-every=20"])
    train.main()
    for count in (1, 3):
        known = load_network(tmp_path / "out" / f"slices-{count}.safetensors")
        assert known.shape.slices == count
        rows = json.loads((tmp_path / "out" / f"slices-{count}.log.json").read_text())
        assert rows[-1][f"loss_slices-{count}"] < rows[0][f"loss_slices-{count}"]


def test_a_training_goes_on_from_weights_of_its_own_network_only(tmp_path, capsys, monkeypatch):
    shape = NetworkShape((4, 8), PIXEL, 1, SIZE)
    start = tmp_path / "start.safetensors"
    save_network(start, MaskNetwork(build_network(shape), shape))
    assert train.networks_of({"channels": [4, 8], "slices": [1]}, start) == [shape]
    assert len(train.networks_of({"channels": [4, 8], "slices": [1, 3]}, None)) == 2
    config = TRAINING / "config_third.toml"
    monkeypatch.setattr(sys, "argv", ["train", str(config), str(tmp_path), "--start", str(start)])
    with pytest.raises(SystemExit, match="2"):
        train.main()
    assert f"error: {start}: holds NetworkShape(channels=(4, 8)" in capsys.readouterr().err


def test_data_that_are_not_there_are_named_in_one_line(tmp_path, capsys, monkeypatch):
    config = str(TRAINING / "config_fourth.toml")
    monkeypatch.setattr(sys, "argv", ["train", config, str(tmp_path / "out"), "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match="2"):
        train.main()
    assert "fetal-stacks-mialsrtk: there is no such data set; give the folder" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_narrow_stacks_to_score_hold_all_of_the_brain_or_none_of_it(brain):
    for empty in (False, True):
        kind = evaluate.Kind(1, empty=empty, seen="box")
        image, truth, _ = evaluate.simulated(np.random.default_rng(2), [brain], kind)
        assert truth.any() != empty
        assert max(image.shape[:2]) < SIZE
        assert image.shape == truth.shape
        assert (image > 0.1 * image.max()).mean() > 0.2
        if not empty:
            assert not truth[[0, -1]].any()
            assert not truth[:, [0, -1]].any()


def test_parts_of_a_real_stack_to_score_hold_no_brain():
    image, truth = np.full((12, 200, 220), 300, np.float32), np.zeros((12, 200, 220), bool)
    image[:, :, 180:] = 0  # air
    truth[3:9, 80:110, 20:60] = True
    affine = np.diag([4.0, 1.2, 1.5, 1])
    parts = list(evaluate.brainless("a", image, affine, truth))
    assert {name for name, *_ in parts} == {"a-y-low", "a-y-high", "a-z-high"}
    narrow = list(evaluate.boxes(np.random.default_rng(1), "a", image, affine, truth))
    assert [name for name, *_ in narrow] == [f"a-box-{k}" for k in range(1, evaluate.BOXES + 1)]
    for _, kind, seen, _, inside in parts + narrow:
        assert kind.startswith("no brain, real")
        assert len(seen) == 12
        assert seen.shape == inside.shape
        assert not inside.any()
    for _, _, seen, _, _ in narrow:
        assert (seen > 0).mean() >= 0.5
        assert 59 <= seen.shape[1] * 1.2 <= 170
        assert 58 <= seen.shape[2] * 1.5 <= 170
    assert not list(evaluate.boxes(np.random.default_rng(1), "a", image, affine, np.ones_like(truth)))


def test_scores_of_data_that_are_not_there_are_refused_in_one_line(tmp_path, capsys, monkeypatch):
    shape = NetworkShape((4, 8), PIXEL, 1, SIZE)
    save_network(tmp_path / "w.safetensors", MaskNetwork(build_network(shape), shape))
    monkeypatch.setattr(
        sys,
        "argv",
        ["evaluate", str(TRAINING / "config_fourth.toml"), str(tmp_path / "w.safetensors"), "--data", str(tmp_path)],
    )
    with pytest.raises(SystemExit, match="2"):
        evaluate.main()
    assert "fetal-stacks-mialsrtk: there is no such data set; give the folder" in capsys.readouterr().err
