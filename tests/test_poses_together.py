# SPDX-License-Identifier: Apache-2.0
"""A step of all slices at once, the field going with them; what it gains is measured by ``benchmarks/placing.py``."""

import numpy as np
import pytest
from test_recon import acquire, brain

from gsbids.kernels import ops
from gsbids.recon.fitting import poses_together
from gsbids.recon.fitting.poses import PoseProblem, PoseState
from gsbids.recon.fitting.slices import SliceSet

TWO = ("axial", "coronal")


@pytest.fixture
def placed():
    """Two stacks in the field that they show, and a step of all their slices by one rigid motion."""
    field = brain()
    slices = SliceSet.from_stacks([acquire(field, each) for each in TWO], np.tile(np.eye(4), (2, 1, 1)))
    field = field.replace(mean=(field.mean - slices.origin).astype(np.float32), origin=slices.origin)
    problem = PoseProblem.of(
        field,
        slices,
        slices.region.astype(np.float32),
        1000 / slices.stack_scale[slices.stack_index],
        ops.RenderOptions(),
    )
    turn, shift = np.array([0.01, -0.02, 0.015]), np.array([0.5, 0.2, -0.3])
    motion = slices.start
    tau = np.einsum("sji,sj->si", motion.rotation, np.cross(turn, motion.translation) + shift)
    step = np.c_[np.einsum("sji,j->si", motion.rotation, turn), tau]
    return problem, slices, step, (turn, shift)


def test_points_move_with_the_slices_about_them(placed):
    _, slices, step, (turn, shift) = placed
    near = poses_together._Nearby(slices, slices.start, np.ones(len(slices)))
    points = np.random.default_rng(0).uniform(-8, 8, (50, 3))
    found = near.displacement(near.through(points), len(points), step)
    np.testing.assert_allclose(found, np.cross(turn, points) + shift, atol=1e-5)


def test_what_all_slices_have_in_common_changes_nothing(placed):
    problem, slices, step, _ = placed
    motion = slices.start
    _, _, gradient, robust, _ = poses_together.linearised(problem, motion)
    near = poses_together._Nearby(slices, motion, np.ones(len(slices)))
    jacobian, _ = poses_together._jacobian(near, gradient, robust, np.ones(len(slices)), np.random.default_rng(0))
    own = step * (np.arange(len(slices)) == len(slices) // 4)[:, None]
    assert np.linalg.norm(jacobian @ step.ravel()) < 1e-5 * np.linalg.norm(jacobian @ own.ravel())


def test_slices_in_their_places_stay_there(placed):
    problem, slices, _, _ = placed
    state = PoseState(slices.start, np.full(len(slices), 1e-2))
    moved, shift = poses_together.step_together(problem, state, np.ones(len(slices)), np.random.default_rng(0))
    assert np.abs(moved.motion.translation - slices.start.translation).max() < 0.02
    assert shift.shape == (500, 3)
    assert np.abs(shift).max() < 0.02
