# SPDX-License-Identifier: Apache-2.0
"""Slices that moved far find their places, slivers go with their neighbours, dropped slices are evened out."""

import dataclasses

import numpy as np
import pytest
from scipy import ndimage
from test_recon import AXES, STILL, acquire, brain, gauge, slow_motion

from gsbids.imaging.geometry import slice_frames
from gsbids.kernels import ops
from gsbids.recon.field import GaussianField
from gsbids.recon.fitting import neighbours, poses
from gsbids.recon.fitting.options import SvrOptions
from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.fitting.stage import FitState
from gsbids.recon.motion import RigidMotion
from gsbids.recon.registration.isotropic import even_slices
from gsbids.recon.svr.fit import fit_svr
from gsbids.recon.svr.place import anchored
from gsbids.recon.svr.place_search import coarser, displaced, inside

FAR = [0.065, 0.065, 0.065, 2.75, 2.75, 2.75]  # standard deviations, rad and mm


def slice_errors(stacks, motions, result):
    """Distance (mm) of each large slice from where it should be, turns counted 15 mm out."""
    transform, errors = gauge(stacks, motions, result), []
    for n, stack in enumerate(stacks):
        rows = np.flatnonzero(result.stack_index == n)
        still = RigidMotion(*slice_frames(stack.affine, stack.image.shape))
        moves = still.step(motions[n][:, :3], motions[n][:, 3:]).as_affines(still)[result.slice_index[rows]]
        apart = neighbours.tangents(result.motion[rows], result.nominal[rows].moved(moves).moved(transform))
        error = np.hypot(15 * np.linalg.norm(apart[:, :3], axis=1), np.linalg.norm(apart[:, 3:], axis=1))
        errors.append(error[stack.mask.sum((0, 1))[result.slice_index[rows]] > 150])
    return np.concatenate(errors)


def test_slices_that_moved_far_find_their_places():
    field, stacks, motions = brain(), [], []
    for n, orientation in enumerate(AXES):
        count = acquire(field, orientation).image.shape[2]
        motions.append(slow_motion(count, n + 10, FAR))
        stacks.append(acquire(field, orientation, motion=motions[-1], noise=0.01))
    options = SvrOptions(iterations=60, n_gaussians=900, members=1, patience=0, threads=2)
    results = [fit_svr(stacks, STILL, each) for each in (options, dataclasses.replace(options, place=False))]
    found, lost = (np.mean(slice_errors(stacks, motions, result) > 2) for result in results)
    assert lost > 0.2
    assert found == 0
    assert results[0].settings["excluded"] == []


def test_coarser_slices_are_the_slices_through_larger_pixels():
    """A Gaussian in slices of large pixels is what the slices of small ones become, at the same places."""
    one = GaussianField(
        np.array([[1.0, -2.0, 0.5]], np.float32),
        np.full((1, 3), np.log(4.0), np.float32),
        np.array([[1, 0, 0, 0]], np.float32),
        np.ones(1, np.float32),
        np.zeros(1, np.float32),
        np.zeros(3),
    )
    stack = acquire(brain(), "axial", size=1.0)
    stack = dataclasses.replace(stack, mask=np.ones_like(stack.mask))
    slices = SliceSet.from_stacks([stack], np.eye(4)[None])
    weight = ops.render(*one.parameters, slices.geometry(slices.start))[1]  # D is the Gaussian itself, blurred
    small = dataclasses.replace(slices, values=weight)
    large = coarser(small, 3)
    expected = ops.render(*one.parameters, large.geometry(large.start))[1]
    middle = np.abs(large.start.translation[:, 2]) < 3
    inner = np.s_[3:-3, 3:-3]
    for a, b in zip(large.values[middle], expected[middle], strict=True):
        np.testing.assert_allclose(a[inner], b[inner], atol=0.03 * b.max())


@pytest.fixture
def drifted():
    """One stack in its own field, its last slice with brain 3 mm astray; the field; the row of that slice."""
    field = brain()
    slices = SliceSet.from_stacks([acquire(field, "axial")], np.eye(4)[None])
    field = field.replace(mean=(field.mean - slices.origin).astype(np.float32), origin=slices.origin)
    row = len(slices) - 1
    tau = np.zeros((len(slices), 3))
    tau[row] = [2, -2, 1]
    return slices, field, row, slices.start.step(np.zeros_like(tau), tau)


def test_a_sliver_of_noise_stays_with_its_neighbours(drifted):
    slices, field, row, _ = drifted
    values, weight = slices.values.copy(), slices.mask.astype(np.float32)
    values[row] = np.random.default_rng(0).uniform(0, 1, values[row].shape)
    weight[row] *= 1e-3
    slices = dataclasses.replace(slices, values=values)
    gain = np.full(len(slices), 1000.0 / slices.stack_scale[0])
    apart = {}
    for tie in (0.0, 0.004):
        problem = poses.PoseProblem.of(field, slices, weight, gain, ops.RenderOptions(), tie)
        state = poses.PoseState(slices.start, np.full(len(slices), poses.FIRST_DAMPING))
        for _ in range(8):
            state, _ = poses.pose_step(problem, state)
        apart[tie] = np.linalg.norm(state.motion.translation[row] - slices.start.translation[row])
    assert apart[0.004] < 0.2 * apart[0.0]
    assert apart[0.0] > 1.0


def test_the_pull_is_to_the_neighbours_and_costs_what_its_equations_say(drifted):
    slices, _, row, motion = drifted
    pull = neighbours.pull_of(motion, slices, np.arange(1.0, 7.0))
    np.testing.assert_allclose(pull.expected.translation[row], slices.start.translation[row], atol=1e-9)
    matrix, vector = pull.normal_equations(motion)
    step = neighbours.tangents(motion, pull.expected)
    np.testing.assert_allclose(vector, step @ matrix, atol=1e-9)
    np.testing.assert_allclose(pull.cost(motion), np.einsum("sa,ab,sb->s", step, matrix, step) / 2, atol=1e-9)
    assert pull.cost(pull.expected).max() < 1e-12
    assert pull.cost(motion)[row] > 1


def test_a_large_slice_far_from_its_neighbours_is_taken_back(drifted):
    """The field has been fitted to a slice in a wrong place; its own cost is no reason to leave it."""
    slices, field, sliver, _ = drifted
    row = len(slices) // 2
    tau = np.zeros((len(slices), 3))
    tau[[row, sliver]] = [0.0, 0.0, 2.5]
    motion = slices.start.step(np.zeros_like(tau), tau)
    weight, ones = slices.mask.astype(np.float32), np.ones(len(slices))
    state = poses.PoseState(motion, poses.FIRST_DAMPING * ones)
    problem = poses.PoseProblem.of(field, slices, weight, ones, ops.RenderOptions(), 0.004)
    far = poses.astray(motion, problem.pull(state).expected, slices)
    assert far[row]
    assert far.sum() <= 2  # the sliver, if it is not too small
    flat = np.full_like(slices.values, 0.1)  # costs the same wherever the slice is
    nowhere = dataclasses.replace(field, intensity=np.zeros_like(field.intensity))
    problem = poses.PoseProblem.of(
        nowhere, dataclasses.replace(slices, values=flat), weight, ones, ops.RenderOptions(), 0.004
    )
    found, changed = poses.try_neighbours(problem, state, steps=0)
    expected = problem.pull(state).expected
    assert changed[row]
    np.testing.assert_allclose(found.motion.translation[row], expected.translation[row], atol=1e-9)


def test_dropped_slices_are_evened_out_and_others_left():
    stack = acquire(brain(), "axial")
    image = stack.image.copy()
    k = image.shape[2] // 2
    image[:, :, k] *= 0.4
    even = even_slices(dataclasses.replace(stack, image=image))
    assert np.median(even[..., k][stack.mask[..., k]]) == pytest.approx(
        np.median(stack.image[..., k][stack.mask[..., k]]), rel=0.15
    )
    np.testing.assert_array_equal(even[..., k - 3], image[..., k - 3])


def test_the_inner_part_of_a_mask_is_its_deepest_pixels():
    stack = acquire(brain(), "axial")
    inner = inside(stack, 0.6)
    assert not (inner.mask & ~stack.mask).any()
    for mask, whole in zip(inner.mask.T, stack.mask.T, strict=True):
        if whole.sum() > 100:
            assert mask.sum() / whole.sum() == pytest.approx(0.6, abs=0.1)  # pixels as deep as the last one come along
            depth = ndimage.distance_transform_edt(whole)
            assert depth[mask].min() >= depth[whole & ~mask].max()


def test_slices_are_carried_back_to_where_the_stacks_were_put():
    """All at once, so that they lie to one another as before; stacks that stayed start where they were put."""
    stacks = [acquire(brain(), each) for each in AXES]
    put = STILL.copy()
    put[0, :3, 3] = [0, 0, 4.0]
    angle = np.radians(30)
    common = np.eye(4)
    common[:2, :2], common[:3, 3] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]], [20.0, -5.0, 8.0]
    slices = SliceSet.from_stacks(stacks, common @ put)
    back, state = anchored(slices, FitState.start(slices), put, common @ put)
    np.testing.assert_allclose(back.starts, put, atol=1e-6)
    np.testing.assert_allclose(state.pose.motion.translation, back.start.translation, atol=1e-6)
    np.testing.assert_allclose(state.pose.motion.rotation, back.start.rotation, atol=1e-6)


def test_how_far_stacks_are_displaced_does_not_count_what_all_have_in_common():
    stacks = [acquire(brain(), each) for each in AXES]
    common = np.eye(4)
    common[:3, 3] = [30.0, 0, 0]
    assert displaced(stacks, STILL, common @ STILL) == pytest.approx(0)
    moved = STILL.copy()
    moved[1, :3, 3] = [0, 3.0, 4.0]
    assert displaced(stacks, STILL, moved) == pytest.approx(5)
