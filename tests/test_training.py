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

import phantom  # noqa: E402
import train  # noqa: E402
from generator import BRAIN, PIXEL, SIZE, Mixture, Palette, Plane, acquired, cut, draw, palette, scenes  # noqa: E402
from sampling import sample  # noqa: E402
from sources import CSF, REAL, Brain, is_brain, read_stack, scene_of, transplanted  # noqa: E402

from gsbids.masking.network import load_network  # noqa: E402

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
    at = np.stack(np.meshgrid(*((np.arange(n) - n // 2) * s for n, s in zip((80, 80, 24), SPACING, strict=True)),
                              indexing="ij"))
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
    return scene_of("ball", np.full(inside.shape, 100, np.uint8), np.where(inside, 1, phantom.BODY).astype(np.uint8),
                    (2.5,) * 3, False)


def test_a_made_up_scene_holds_a_brain_of_a_fetus_in_fluid_skull_and_skin(made):
    inside = is_brain(made.labels)
    assert 45 < inside.sum() * 2.5**3 / 1e3 < 700
    assert {phantom.SKIN, phantom.SKULL, phantom.FAT, phantom.BODY, CSF} <= set(np.unique(made.labels))
    assert ndimage.label(inside)[1] == 1
    np.testing.assert_allclose(made.middle, np.argwhere(inside).mean(0))


def test_a_scene_without_a_fetus_holds_no_brain(brain):
    empty = phantom.phantom(np.random.default_rng(3), [brain], empty=True)
    assert not is_brain(empty.labels).any()
    assert phantom.FLUID in empty.labels


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


@pytest.mark.parametrize("mirror", [False, True])
def test_samples_are_those_of_linear_interpolation(stack, mirror):
    rng = np.random.default_rng(1)
    frame = np.linalg.qr(rng.standard_normal((3, 3)))[0]
    matrix = np.column_stack([frame[:, :2] * 0.7, [40.0, 30, 9]])
    colours = Palette(np.zeros(len(BRAIN), np.float32), np.ones(len(BRAIN), np.float32))
    values, shares = sample(stack.image, stack.labels, matrix[None, None], colours.offset, colours.gain, BRAIN, mirror,
                            50)
    i, j = np.meshgrid(np.arange(50), np.arange(50), indexing="ij")
    index = np.tensordot(matrix, np.stack([i, j, np.ones_like(i)]), 1)
    if mirror:
        index[2] = 23 - np.abs(np.abs(index[2]) % 46 - 23)
    expected = ndimage.map_coordinates(stack.image, index, np.float32, order=1)
    inside = ((index >= 0) & (index <= np.array(stack.image.shape)[:, None, None] - 1)).all(0)
    assert inside.sum() > 500
    np.testing.assert_allclose(values[0][inside], expected[inside], atol=1e-3)
    nearest = ndimage.map_coordinates(stack.labels, index, order=0) == REAL
    assert (nearest[inside] == (shares[0][inside] > 0.5)).mean() > 0.999
    assert not values[0][~inside].any()


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
    scene = read_stack(tmp_path / "a.nii.gz", tmp_path / "m.nii.gz")
    assert scene.image.shape == (40, 33, 10)
    assert scene.spacing == (1.5, 1.5, 4)
    volume = is_brain(scene.labels).sum() * np.prod(scene.spacing)
    assert volume == pytest.approx(mask.sum() * 4, rel=0.2)


def test_a_short_training_writes_networks_that_load(tmp_path, brain, stack, monkeypatch):
    monkeypatch.setattr(train, "real_stacks", lambda folder, runs: [stack])
    monkeypatch.setattr(train, "brains", lambda folder, weeks: [brain])
    config = tmp_path / "config.toml"
    config.write_text('seed = 1\n[train]\nruns = [1]\nweeks = [22]\n[mixture]\nscenes = 2\n[network]\n'
                      'channels = [4, 8]\nslices = [1, 3]\n[schedule]\nminutes = 5.0\nbatches = 40\nbatch = 2\n'
                      'rate = 5e-3\naverage = 0.9\n')
    monkeypatch.setattr(sys, "argv", ["train", str(config), str(tmp_path / "out"), "--workers=0", "--log-every=20"])
    train.main()
    for count in (1, 3):
        _, shape = load_network(tmp_path / "out" / f"slices-{count}.safetensors")
        assert shape.slices == count
        rows = json.loads((tmp_path / "out" / f"slices-{count}.log.json").read_text())
        assert rows[-1][f"loss_slices-{count}"] < rows[0][f"loss_slices-{count}"]
