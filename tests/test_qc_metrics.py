# SPDX-License-Identifier: Apache-2.0
"""Numbers of the QC table against known answers."""

import numpy as np
import pytest
from qc_samples import DEPTH, ball, field, grid, sample_result
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.qc.displacement import slice_displacement
from gsbids.qc.metrics import METRIC_DESCRIPTIONS, crossing_angle, placing_metrics, reconstruction_metrics


def moves(count, shift=None, degrees=None, about=(0.0, 0.0, 0.0)):
    """(count, 4, 4) rigid transforms: rotations about a point, then shifts."""
    transforms = np.tile(np.eye(4), (count, 1, 1))
    if degrees is not None:
        turn = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
        transforms[:, :3, :3] = turn
        transforms[:, :3, 3] = np.asarray(about) - transforms[:, :3, :3] @ np.asarray(about)
    if shift is not None:
        transforms[:, :3, 3] += shift
    return transforms


def metrics(result, volume=None, mask=None, spacing=(1.0, 1.0, 1.0)):
    if volume is None:
        volume, mask = ball((40, 40, 40), grid((1, 1, 1), (40, 40, 40)))
    return reconstruction_metrics(result, volume, mask, spacing)


def test_every_column_is_described_in_the_order_of_the_row():
    row = metrics(sample_result())
    assert list(row) == list(METRIC_DESCRIPTIONS)
    # These need the stacks and the coverage map (see test_qc_agreement.py).
    evidence = {"stack_agreement", "stack_agreement_worst", "coverage_mean", "not_covered"}
    assert {name for name, value in row.items() if not np.isfinite(value)} == evidence
    for known in METRIC_DESCRIPTIONS.values():
        assert set(known) == {"LongName", "Units", "Description"}
        assert all(known.values())


def test_counts_and_similarity():
    result = sample_result(ncc=np.linspace(0, 1, 3 * DEPTH))
    row = metrics(result)
    rejected = int(result.rejected.sum())
    assert (row["n_stacks"], row["n_slices"], row["slices_used"]) == (3, 24, 24 - rejected)
    assert row["slices_rejected"] == pytest.approx(rejected / 24)
    assert row["ncc_median"] == pytest.approx(0.5)
    assert row["ncc_p10"] == pytest.approx(0.1)
    assert row["ncc_worst_stack"] == pytest.approx(np.median(np.linspace(0, 1, 24)[:8]))


def test_alternating_shift_is_found():
    """Odd and even slices 2 mm apart: 1 mm from the mean of the stack, 2 mm from one slice to the next."""
    side = np.where(np.arange(3 * DEPTH) % 2, 1.0, -1.0)
    result = sample_result(
        transforms=moves(3 * DEPTH, shift=side[:, None] * [0.0, 0.6, 0.8]), weight=np.ones(3 * DEPTH)
    )
    row = metrics(result)
    assert row["motion_mean"] == pytest.approx(1, abs=1e-6)
    assert row["motion_max"] == pytest.approx(1, abs=1e-6)
    assert row["motion_neighbour_mean"] == pytest.approx(2, abs=1e-6)
    assert row["motion_neighbour_max"] == pytest.approx(2, abs=1e-6)
    assert row["rotation_max"] == pytest.approx(0, abs=1e-6)


def test_rotation_about_the_brain_is_rotation_alone():
    degrees = np.zeros((3 * DEPTH, 3))
    degrees[:, 2] = np.where(np.arange(3 * DEPTH) % 2, 3.0, -3.0)
    result = sample_result(transforms=moves(3 * DEPTH, degrees=degrees), weight=np.ones(3 * DEPTH))
    row = metrics(result)
    assert row["rotation_mean"] == pytest.approx(3, abs=1e-4)
    assert row["rotation_neighbour_mean"] == pytest.approx(6, abs=1e-4)
    # The points of a stack along the axis of rotation stay; no point is farther than 14 mm from the middle.
    assert row["motion_max"] <= 14 * np.radians(3) + 1e-6


def test_a_stack_that_moves_as_a_whole_has_no_motion_within():
    turn = np.repeat([[10, -20, 30], [0, 0, 0], [-40, 5, 8]], DEPTH, axis=0)
    shift = np.repeat([[8, 1, -3], [0, 0, 0], [5, 5, 5]], DEPTH, axis=0)
    result = sample_result(transforms=moves(3 * DEPTH, shift, turn, about=(7, -5, 3)))
    row = metrics(result)
    for name in ("motion_mean", "motion_max", "rotation_max", "motion_neighbour_max", "rotation_neighbour_mean"):
        assert row[name] == pytest.approx(0, abs=1e-5)
    moved = slice_displacement(result)
    angles = np.linalg.norm(moved.stack_turn, axis=1)
    expected = Rotation.from_euler("xyz", turn[::DEPTH], degrees=True).magnitude()
    assert angles == pytest.approx(np.degrees(expected))
    assert moved.stack_shift[1] == pytest.approx([0, 0, 0], abs=1e-9)


def test_world_origin_does_not_matter():
    rng = np.random.default_rng(0)
    degrees, shift = rng.normal(0, 3, (24, 3)), rng.normal(0, 2, (24, 3))
    away = np.array([300.0, -200.0, 150.0])
    here = metrics(sample_result(transforms=moves(24, shift, degrees)))
    there = metrics(sample_result(transforms=moves(24, shift, degrees, about=away), middle=away))
    assert there == pytest.approx(here, abs=1e-6, nan_ok=True)


def test_rejected_slices_do_not_count_as_motion():
    shift = np.zeros((3 * DEPTH, 3))
    result = sample_result()
    shift[result.rejected] = 50.0
    row = metrics(sample_result(transforms=moves(3 * DEPTH, shift)))
    assert row["motion_max"] == pytest.approx(0, abs=1e-6)
    assert row["motion_neighbour_max"] == pytest.approx(0, abs=1e-6)


def test_how_sure_the_places_are():
    told = {
        "agreement": [0.95, None, 0.85],
        "placing_margin": 0.2,
        "mask_changes": {"a": {"lost": 0.1, "won": 0.4}, "b": {"lost": 0.3, "won": 0.0}},
    }
    found = placing_metrics(sample_result(settings=told))
    assert found["placing_agreement"] == pytest.approx(0.85)
    assert found["placing_margin"] == pytest.approx(0.2)
    assert found["mask_lost"] == pytest.approx(0.3)
    # Where all stacks agreed at once there was no other place; of files of other versions nothing is known.
    assert np.isnan(placing_metrics(sample_result(settings=told | {"placing_margin": None}))["placing_margin"])
    before = placing_metrics(sample_result(settings={}))
    assert np.isnan([before[name] for name in ("placing_agreement", "placing_margin", "mask_lost")]).all()
    alone = placing_metrics(sample_result(("a",), settings={"agreement": [None], "placing_margin": None}))
    assert np.isnan(alone["placing_agreement"])


@pytest.mark.parametrize(
    ("turns", "angle"),
    [([0, 0, 0], 0), ([0, 90, 0], 90), ([0, 30, 0], 30), ([0, 150, 0], 30), ([0, 180, 0], 0), ([0, 20, 45], 45)],
)
def test_crossing_is_the_largest_angle_between_slices(turns, angle):
    """Of parallel stacks, turned about an axis in their planes, as the motion has put them."""
    result = parallel(turns)
    assert crossing_angle(result) == pytest.approx(angle, abs=1e-4)
    jitter = np.random.default_rng(0).normal(0, 1.0, (3 * DEPTH, 3))
    shaken = result.motion.moved(moves(3 * DEPTH, degrees=jitter))
    assert crossing_angle(sample_result(nominal=result.nominal, motion=shaken)) == pytest.approx(angle, abs=3)


def parallel(turns):
    """Stacks of parallel slices, each turned by some degrees about the x axis in the anatomy."""
    axial = sample_result().nominal[np.tile(np.arange(DEPTH), 3)]
    degrees = np.repeat(np.array(turns, float), DEPTH)[:, None] * [1.0, 0.0, 0.0]
    return sample_result(nominal=axial, motion=axial.moved(moves(3 * DEPTH, degrees=degrees)))


def test_orthogonal_stacks_cross_and_a_lone_one_does_not():
    assert crossing_angle(sample_result()) == pytest.approx(90)
    assert np.isnan(crossing_angle(sample_result(("a",))))


def test_nothing_to_measure_is_nan_not_an_error():
    count = 3 * DEPTH
    result = sample_result(ncc=np.full(count, np.nan), weight=np.zeros(count), field=field(count=0))
    row = metrics(result, np.zeros((6, 6, 6)), np.zeros((6, 6, 6)))
    assert row["mask_volume"] == 0
    assert row["slices_rejected"] == 1
    for name in ("ncc_median", "sharpness", "noise", "motion_mean", "motion_neighbour_mean", "gain_spread"):
        assert np.isnan(row[name])


def test_noise_is_recovered_and_blur_is_less_sharp():
    rng = np.random.default_rng(0)
    smooth, mask = ball((60, 60, 60), grid((1, 1, 1), (60, 60, 60)), radius=26)
    smooth = np.where(mask, 100 + 20 * np.sin(np.arange(60) / 8)[:, None, None], 0).astype(np.float32)
    noisy = smooth + rng.normal(0, 2.0, smooth.shape).astype(np.float32)
    low, high = np.percentile(noisy[mask], (5, 95))
    row = metrics(sample_result(), noisy, mask)
    assert row["noise"] * (high - low) == pytest.approx(2.0, rel=0.03)
    textured, mask = ball((60, 60, 60), grid((1, 1, 1), (60, 60, 60)), radius=26)
    blurred = metrics(sample_result(), ndimage.gaussian_filter(textured, 1.5), mask)
    assert blurred["sharpness"] < metrics(sample_result(), textured, mask)["sharpness"]


def test_mask_volume_uses_the_spacing():
    mask = np.zeros((10, 10, 10))
    mask[:5] = 1
    row = metrics(sample_result(), np.zeros((10, 10, 10)), mask, (0.5, 2.0, 4.0))
    assert row["mask_volume"] == pytest.approx(500 * 4 / 1000)


def test_mask_on_another_grid_is_refused():
    with pytest.raises(ValueError, match="share a grid"):
        metrics(sample_result(), np.zeros((5, 5, 5)), np.zeros((5, 5, 6)))
