# SPDX-License-Identifier: Apache-2.0
"""Slices, motion, weights, the fit and what is sampled from it, on small fields whose answer is known."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.errors import InputError
from gsbids.imaging.geometry import slice_frames
from gsbids.imaging.stack import Stack
from gsbids.kernels import ops
from gsbids.recon.field import GaussianField
from gsbids.recon.fitting import outliers, poses
from gsbids.recon.fitting.initialise import initial_field, sampling_probability
from gsbids.recon.fitting.options import SvrOptions
from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.motion import RigidMotion
from gsbids.recon.sample_field import sample_grid
from gsbids.recon.svr.fit import fit_svr, move_field
from gsbids.recon.svr.result import SvrResult
from gsbids.recon.volume.coverage import shown_region, vote_mask
from gsbids.recon.volume.sample import output_grid, simulate_stack

RADIUS = np.array([17.0, 21.0, 15.0])  # mm, half axes of the test brain
AXES = {"axial": ((1, 0, 0), (0, 1, 0)), "coronal": ((1, 0, 0), (0, 0, 1)), "sagittal": ((0, 1, 0), (0, 0, 1))}


def brain(seed=0, count=500) -> GaussianField:
    """A brain of random Gaussians filling an ellipsoid."""
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(count, 3))
    mean = direction / np.linalg.norm(direction, axis=1, keepdims=True) * rng.random((count, 1)) ** (1 / 3)
    return GaussianField(
        mean=(mean * (RADIUS + 2)).astype(np.float32),
        log_scale=rng.normal(0.75, 0.15, (count, 3)).astype(np.float32),
        quaternion=rng.normal(size=(count, 4)).astype(np.float32),
        intensity=rng.uniform(0.1, 1.0, count).astype(np.float32),
        log_weight=np.zeros(count, np.float32),
        origin=np.zeros(3),
    )


def acquire(field, orientation, *, motion=None, noise=0.0, size=1.2, thickness=3.0, distance=None) -> Stack:
    """A stack of the field through the PSF; ``motion`` (Z, 6): rad and mm about each slice's middle.

    ``distance`` from slice to slice: as thick as they are without it.
    """
    distance = distance or thickness
    row, column = (np.array(a, float) for a in AXES[orientation])
    frame = np.stack([row, column, np.cross(row, column)], 1)
    extent = np.abs(frame.T) @ (RADIUS + 4) * 2
    shape = np.ceil(extent / [size, size, distance]).astype(int)
    affine = np.eye(4)
    affine[:3, :3] = frame * [size, size, distance]
    affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2)
    k = np.arange(shape[2])
    still = RigidMotion(np.tile(frame, (len(k), 1, 1)), np.outer((k - (shape[2] - 1) / 2) * distance, frame[:, 2]))
    moved = still if motion is None else still.step(motion[:, :3], motion[:, 3:])
    variances = (np.array([1.2 * size, 1.2 * size, thickness]) / 2.3548) ** 2
    geometry = ops.SliceGeometry(
        moved.rotation,
        moved.translation,
        np.tile(variances, (len(k), 1)),
        np.full((len(k), 2), size),
        np.tile((shape[:2] - 1) / 2, (len(k), 1)),
        ops.full_extent(len(k), shape[:2]),
        tuple(shape[:2]),
    )
    parameters = (field.mean, field.log_scale, field.quaternion, field.intensity, field.log_weight)
    image = np.moveaxis(ops.render(*parameters, geometry)[0], 0, 2)
    u, v = ((np.arange(n) - (n - 1) / 2) * size for n in shape[:2])
    pixel = np.stack([*np.meshgrid(u, v, indexing="ij"), np.zeros(shape[:2])], -1)
    world = np.einsum("sab,xyb->xysa", moved.rotation, pixel) + moved.translation
    mask = ((world / RADIUS) ** 2).sum(-1) < 1
    if noise:
        image = image + np.random.default_rng(1).normal(0, noise, image.shape)
    return Stack(orientation, (1000 * np.clip(image, 0, None)).astype(np.float32), mask, affine, thickness)


def slow_motion(count, seed, size):
    """Smooth random motion of ``count`` slices, standard deviation ``size`` (rad and mm for 6 columns)."""
    walk = ndimage.gaussian_filter1d(np.random.default_rng(seed).normal(size=(count + 20, 6)), 2.0, axis=0)[10:-10]
    return walk / walk.std(0) * size


def moving_stacks(seed=0):
    """Field, three stacks, and the true motion (Z, 6) of the slices of each."""
    field, stacks, motions = brain(seed), [], []
    for n, orientation in enumerate(AXES):
        count = acquire(field, orientation).image.shape[2]
        motions.append(slow_motion(count, n + 10 * seed, [0.05, 0.05, 0.05, 1.2, 1.2, 1.2]))
        stacks.append(acquire(field, orientation, motion=motions[-1], noise=0.01))
    return field, stacks, motions


QUICK = SvrOptions(iterations=60, n_gaussians=900, members=1, patience=0, held_out=0.02, threads=2)
STILL = np.tile(np.eye(4), (3, 1, 1))


@pytest.fixture
def moving(moving_brain):
    """Field, stacks, their reconstruction, and the true motion."""
    return moving_brain


def gauge(stacks, motions, result):
    """Rigid transform (4, 4) from the true anatomy to the reconstructed one: known from the true poses only."""
    true = [r for n in range(len(stacks)) for r in motions[n][result.slice_index[result.stack_index == n]]]
    frames = [slice_frames(stack.affine, stack.image.shape) for stack in stacks]
    still = RigidMotion(
        *(
            np.concatenate([f[k][result.slice_index[result.stack_index == n]] for n, f in enumerate(frames)])
            for k in (0, 1)
        )
    )
    moved = still.step(np.array(true)[:, :3], np.array(true)[:, 3:])
    ours = still.moved(result.motion.as_affines(result.nominal))
    return poses.mean_correction(ours, moved, np.ones(len(result.weight)))


def error_of(field, result, to_result):
    """RMS difference to the truth inside the brain after removing the scale, over the truth's deviation."""
    grid = np.diag([1.5, 1.5, 1.5, 1.0])
    shape = tuple(np.ceil(2 * RADIUS / 1.5).astype(int))
    grid[:3, 3] = -1.5 * (np.array(shape) - 1) / 2
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1) * 1.5 + grid[:3, 3]
    inside = ((index / (RADIUS - 2)) ** 2).sum(-1) < 1
    truth = sample_grid(field, grid, shape)[0][inside]
    ours = sample_grid(result.field, to_result @ grid, shape)[0][inside]
    slope, offset = np.polyfit(ours, truth, 1)
    return float(np.sqrt(np.mean((slope * ours + offset - truth) ** 2)) / truth.std())


def test_slices_are_where_the_affine_says(moving):
    _, stacks, _, _ = moving
    flipped = dataclasses.replace(
        stacks[0],
        image=stacks[0].image[::-1],
        mask=stacks[0].mask[::-1],
        affine=stacks[0].affine
        @ np.array([[-1, 0, 0, stacks[0].image.shape[0] - 1], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]]),
    )
    for stack in (stacks[1], flipped):
        slices = SliceSet.from_stacks([stack], np.eye(4)[None])
        s = len(slices) // 2
        i, j = np.argwhere(slices.mask[s])[5]
        local = np.array([*((np.array([i, j]) - slices.centre[s]) * slices.spacing[s]), 0.0])
        position = slices.nominal.rotation[s] @ local + slices.nominal.translation[s] + slices.origin
        index = np.array([*(np.array([i, j]) + slices.corner[s]), slices.slice_index[s], 1])
        np.testing.assert_allclose(position, (stack.affine @ index)[:3], atol=1e-9)
        assert np.linalg.det(slices.nominal.rotation[s]) == pytest.approx(1)
        value = stack.image[tuple(index[:3].astype(int))] / slices.stack_scale[0]
        assert slices.values[s, i, j] == pytest.approx(value)


def test_the_rim_is_around_the_mask_and_no_wider(moving):
    _, stacks, _, _ = moving
    without, slices = (SliceSet.from_stacks(stacks, STILL, rim) for rim in (0.0, 2.0))
    np.testing.assert_array_equal(without.region, without.mask)
    assert (slices.region & slices.mask).sum() == slices.mask.sum() == without.mask.sum()
    for s in range(0, len(slices), 5):
        far = ndimage.distance_transform_edt(~slices.mask[s], sampling=slices.spacing[s])
        assert far[slices.region[s]].max() <= 2.0
        assert far[~slices.region[s]].min() > 2.0


def test_an_empty_mask_is_named():
    stack = acquire(brain(), "axial")
    empty = dataclasses.replace(stack, mask=np.zeros_like(stack.mask))
    with pytest.raises(InputError, match="axial: its mask is empty"):
        SliceSet.from_stacks([empty], np.eye(4)[None])


def test_relative_motion_round_trip():
    rng = np.random.default_rng(0)
    nominal = RigidMotion(Rotation.random(5, random_state=0).as_matrix(), rng.normal(size=(5, 3)))
    moved = nominal.step(rng.normal(0, 0.1, (5, 3)), rng.normal(size=(5, 3)))
    again = nominal.moved(moved.as_affines(nominal))
    np.testing.assert_allclose(again.rotation, moved.rotation, atol=1e-12)
    np.testing.assert_allclose(again.translation, moved.translation, atol=1e-12)


def test_gaussians_start_inside_their_pixels(moving):
    """Every Gaussian lies within half a pixel of a masked pixel of a slice and within half a slice gap of its plane,
    and bears that pixel's intensity."""
    _, stacks, _, _ = moving
    slices = SliceSet.from_stacks(stacks, STILL)
    field = initial_field(slices, 300, 0.7, seed=3)
    for mean, intensity in zip(field.mean[:50], field.intensity[:50], strict=True):
        local = np.einsum("sba,sb->sa", slices.start.rotation, mean - slices.start.translation)
        index = np.rint(local[:, :2] / slices.spacing + slices.centre).astype(int)
        near = np.abs(local[:, 2]) <= slices.slice_gap / 2 + 1e-4
        fits = near & (index >= 0).all(1) & (index < slices.values.shape[1:]).all(1)
        values = [slices.values[s, *index[s]] for s in np.flatnonzero(fits) if slices.region[s, *index[s]]]
        assert np.isclose(values, intensity).any()


def test_sampling_prefers_edges_inside_the_mask_only(moving):
    _, stacks, _, _ = moving
    slices = SliceSet.from_stacks(stacks, STILL)
    probability = sampling_probability(slices, 1.0)
    assert probability.sum() == pytest.approx(1)
    assert not probability[~slices.mask].any()
    flat = dataclasses.replace(slices, values=np.ones_like(slices.values))
    np.testing.assert_allclose(sampling_probability(flat, 1.0)[slices.mask], 1 / slices.mask.sum())


def test_pose_steps_bring_displaced_slices_back():
    """Slices of a known field, displaced by up to 3 degrees and 2 mm, return to their places."""
    field = brain()
    slices = SliceSet.from_stacks([acquire(field, "coronal")], np.eye(4)[None])
    field = field.replace(mean=(field.mean - slices.origin).astype(np.float32), origin=slices.origin)
    rng = np.random.default_rng(2)
    omega, tau = rng.uniform(-0.05, 0.05, (len(slices), 3)), rng.uniform(-2, 2, (len(slices), 3))
    state = poses.PoseState(slices.start.step(omega, tau), np.full(len(slices), 1e-2))
    gain = 1 / slices.stack_scale[0] * np.full(len(slices), 1000.0)
    large = slices.mask.sum((1, 2)) > 200
    before = np.linalg.norm(state.motion.translation - slices.start.translation, axis=1)[large]
    problem = poses.PoseProblem.of(field, slices, slices.mask.astype(np.float32), gain, ops.RenderOptions())
    for _ in range(14):
        state, _ = poses.pose_step(problem, state)
    after = np.linalg.norm(state.motion.translation - slices.start.translation, axis=1)[large]
    assert np.median(before) > 1.0
    assert np.median(after) < 0.05


def test_neighbours_bring_a_lost_slice_back():
    field = brain()
    slices = SliceSet.from_stacks([acquire(field, "axial")], np.eye(4)[None])
    field = field.replace(mean=(field.mean - slices.origin).astype(np.float32), origin=slices.origin)
    lost = len(slices) // 2
    omega, tau = np.zeros((len(slices), 3)), np.zeros((len(slices), 3))
    omega[lost], tau[lost] = [0.5, 0.4, 0.3], [7, -6, 5]
    state = poses.PoseState(slices.start.step(omega, tau), np.full(len(slices), 1e-2))
    gain = np.full(len(slices), 1000.0 / slices.stack_scale[0])
    problem = poses.PoseProblem.of(field, slices, slices.mask.astype(np.float32), gain, ops.RenderOptions())
    state, changed = poses.try_neighbours(problem, state)
    assert changed[lost]
    assert np.linalg.norm(state.motion.translation[lost] - slices.start.translation[lost]) < 0.3


def test_gauge_is_found():
    rng = np.random.default_rng(0)
    start = RigidMotion(Rotation.random(8, random_state=0).as_matrix(), rng.normal(0, 10, (8, 3)))
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = Rotation.from_rotvec([0.1, -0.2, 0.05]).as_matrix(), [1, 2, 3]
    np.testing.assert_allclose(poses.mean_correction(start.moved(transform), start, np.ones(8)), transform, atol=1e-9)


def test_moving_the_field_moves_the_image():
    field = brain()
    transform = np.eye(4)
    transform[:3, :3], transform[:3, 3] = Rotation.from_rotvec([0.3, -0.2, 0.5]).as_matrix(), [3, -2, 1]
    grid = np.diag([2.0, 2.0, 2.0, 1.0])
    grid[:3, 3] = -10
    expected, _ = sample_grid(field, grid, (11, 11, 11))
    moved, _ = sample_grid(move_field(field, transform), transform @ grid, (11, 11, 11))
    np.testing.assert_allclose(moved, expected, atol=2e-5)


def test_gains_are_found_and_weights_spot_the_bad_slice(moving):
    _, stacks, _, _ = moving
    slices = SliceSet.from_stacks(stacks[:1], STILL[:1])
    true = np.linspace(0.7, 1.4, len(slices))
    found = outliers.slice_gains(true[:, None, None] * slices.values, slices.values, slices.mask.astype(float))
    large = slices.mask.sum((1, 2)) > 100
    ratio = found[large] / true[large]
    assert ratio.std() / ratio.mean() < 0.02
    residual = np.random.default_rng(0).normal(0, 0.02, slices.values.shape)
    residual[4] *= 10
    weight = outliers.slice_weights(residual, slices.mask)
    assert weight[4] < 0.01
    assert np.delete(weight, 4).min() > 0.5
    spike = np.zeros_like(residual)
    spike[2] = residual[2]
    spike[2, 10, 10] = 1.0
    assert outliers.pixel_weights(spike, slices.mask)[2, 10, 10] < 0.01


def test_a_slice_that_lost_signal_in_a_part_gets_it_back_and_a_wrong_one_does_not(moving):
    _, stacks, _, _ = moving
    slices = SliceSet.from_stacks(stacks[:1], STILL[:1])
    noise = np.random.default_rng(0).normal(0, 0.03, slices.values.shape)
    half, wrong = len(slices) // 2, len(slices) // 2 - 2
    ramp = 0.2 + 0.8 / (1 + np.exp(-(np.arange(slices.values.shape[1]) - slices.centre[half, 0]) / 4.0))
    values = slices.values.copy()
    values[half] *= ramp[:, None]
    values[wrong] = slices.values[wrong, ::-1, ::-1]
    kept, weight = outliers.kept_signal_and_weights(values + noise, slices.values, slices.mask, 6.0 / slices.spacing)
    inside = ndimage.binary_erosion(slices.mask[half], iterations=3)
    assert np.abs(kept[half] - ramp[:, None])[inside].mean() < 0.08
    assert weight[half] > 0.5 > weight[wrong]
    assert (np.delete(kept, half, 0) == 1).all()
    without = outliers.slice_weights(values + noise - slices.values, slices.mask)
    assert without[half] < 0.1
    np.testing.assert_allclose(np.delete(weight, half), np.delete(without, half), atol=0.2)


def test_a_slice_without_pixels_spoils_no_weight():
    """A sliver can lose its last pixel when slices are made coarser."""
    residual = np.random.default_rng(0).normal(0, 0.02, (3, 6, 6))
    mask = np.ones((3, 6, 6), bool)
    mask[1] = False
    assert np.isfinite(outliers.pixel_weights(residual, mask)).all()
    assert np.isfinite(outliers.slice_weights(residual, mask)).all()


def test_motion_correction_beats_none(moving):
    field, stacks, result, motions = moving
    without = fit_svr(stacks, STILL, dataclasses.replace(QUICK, motion_correction=False))
    corrected = error_of(field, result, gauge(stacks, motions, result))
    assert corrected < 0.5 * error_of(field, without, gauge(stacks, motions, without))
    assert np.median(result.ncc) > 0.95
    assert result.history["held_out"][-1] < 0.5 * result.history["held_out"][0]
    np.testing.assert_allclose(without.motion.translation, without.nominal.translation, atol=1e-9)


def test_result_does_not_depend_on_the_world_origin(moving):
    _, stacks, _, _ = moving
    shift = np.array([500.0, -300.0, 200.0])
    # float32, as a header has them.
    near, far = (
        [
            dataclasses.replace(s, affine=(s.affine + np.pad(by[:, None], [(0, 1), (3, 0)])).astype(np.float32))
            for s in stacks
        ]
        for by in (0 * shift, shift)
    )
    result, there = (fit_svr(each, STILL, QUICK) for each in (near, far))
    for name in GaussianField.PARAMETERS:
        np.testing.assert_array_equal(getattr(there.field, name), getattr(result.field, name))
    np.testing.assert_array_equal(there.ncc, result.ncc)
    np.testing.assert_allclose(there.motion.translation - shift, result.motion.translation, atol=1e-4)
    np.testing.assert_allclose(there.field.origin - shift, result.field.origin, atol=1e-4)


def test_same_bits_when_repeated_and_after_a_file(moving, tmp_path):
    _, stacks, result, _ = moving
    again = fit_svr(stacks, STILL, dataclasses.replace(QUICK, threads=1))
    for key in GaussianField.ARRAYS:
        np.testing.assert_array_equal(getattr(again.field, key), getattr(result.field, key))
    np.testing.assert_array_equal(again.motion.translation, result.motion.translation)
    first, second = result.save(tmp_path / "a.npz"), again.save(tmp_path / "b.npz")
    assert first.read_bytes() == second.read_bytes()
    loaded = SvrResult.load(first)
    np.testing.assert_array_equal(loaded.field.mean, result.field.mean)
    assert loaded.settings == result.settings
    assert loaded.stack_names == result.stack_names


def test_a_corrupted_slice_loses_its_say(moving):
    _, stacks, _, _ = moving
    image = stacks[0].image.copy()
    k = image.shape[2] // 2
    image[:, :, k] = 1000 * np.random.default_rng(0).random(image.shape[:2])
    result = fit_svr([dataclasses.replace(stacks[0], image=image), *stacks[1:]], STILL, QUICK)
    row = np.flatnonzero((result.stack_index == 0) & (result.slice_index == k))[0]
    assert result.weight[row] < 0.1
    assert np.median(result.weight) > 0.9


def test_output_grid_has_the_step_that_was_asked_for(moving):
    _, stacks, result, _ = moving
    affine, shape = output_grid(stacks, result, 0.8)
    np.testing.assert_allclose(affine[:3, :3], 0.8 * np.eye(3))
    corner = affine[:3, :3] @ (np.array(shape) - 1) + affine[:3, 3]
    assert (affine[:3, 3] < -RADIUS).all()
    assert (corner > RADIUS).all()


@pytest.mark.parametrize("spacing", [0.5, 0.8, 1.5])
def test_mask_does_not_depend_on_the_voxel_size(moving, spacing):
    """Dice with the true ellipsoid: sparse data at a fine grid must not make the mask collapse."""
    _, stacks, result, motions = moving
    affine, shape = output_grid(stacks, result, spacing)
    mask, coverage = vote_mask(stacks, result, affine, shape)
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1) * spacing + affine[:3, 3]
    back = np.linalg.inv(gauge(stacks, motions, result))
    truth = (((index @ back[:3, :3].T + back[:3, 3]) / RADIUS) ** 2).sum(-1) < 1
    assert 2 * (mask & truth).sum() / (mask.sum() + truth.sum()) > 0.94
    assert coverage[truth].mean() == pytest.approx(3, rel=0.15)
    shown = shown_region(mask, coverage, affine, 2.0)
    assert shown[mask].all()
    assert ndimage.distance_transform_edt(~mask, sampling=[spacing] * 3)[shown].max() <= 2.0


def test_simulated_stack_is_like_the_acquired_one(moving):
    _, stacks, result, _ = moving
    for n, stack in enumerate(stacks):
        simulated = simulate_stack(result, stack, n)
        assert simulated.shape == stack.image.shape
        inside = stack.mask & (simulated > 0)
        assert np.corrcoef(simulated[inside], stack.image[inside])[0, 1] > 0.95
        assert np.median(simulated[inside]) == pytest.approx(np.median(stack.image[inside]), rel=0.05)
