# SPDX-License-Identifier: Apache-2.0
"""Strains that slices of few directions cannot tell from motion are found, and searched along."""

from dataclasses import replace

import numpy as np
import pytest
from test_recon import acquire, brain

from gsbids.imaging.geometry import slice_frames
from gsbids.imaging.stack import seen_from
from gsbids.recon.fitting import strain
from gsbids.recon.fitting.options import SvrOptions
from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.fitting.stage import FitProblem, FitState, Stage, fit_stage
from gsbids.recon.motion import RigidMotion

COARSE = Stage(900, 60, 2.5e-2, 0)
SHEAR = np.sqrt(0.5) * np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0.0]])  # of axial and coronal slices: normals z and y


def gathered(*orientations):
    """Slices of still stacks."""
    return slices_of([acquire(brain(), each) for each in orientations])


def slices_of(stacks):
    """Slices where the scanner has them."""
    return SliceSet.from_stacks(stacks, np.tile(np.eye(4), (len(stacks), 1, 1)), 3.5)


@pytest.mark.parametrize(
    ("orientations", "count"),
    [(("axial",), 3), (("axial", "axial"), 3), (("axial", "coronal"), 1), (("axial", "coronal", "sagittal"), 0)],
)
def test_how_many_strains_are_free(orientations, count):
    slices = gathered(*orientations)
    found = strain.free_strains(slices, slices.start)
    assert len(found) == count
    for each in found:
        np.testing.assert_allclose(each, each.T)
        assert np.linalg.norm(each) == pytest.approx(1)
        normals = np.unique(np.abs(slices.start.rotation[:, :, 2]).round(6), axis=0)
        planes = [np.linalg.svd(normal[None])[2][1:] for normal in normals]
        assert max(np.abs(plane @ each @ plane.T).max() for plane in planes) < 1e-9


def test_two_stacks_leave_the_angle_between_them():
    slices = gathered("axial", "coronal")
    (found,) = strain.free_strains(slices, slices.start)
    np.testing.assert_allclose(found * np.sign(found[1, 2]), SHEAR, atol=1e-9)


def test_slices_follow_a_free_strain_and_no_other():
    slices = gathered("axial", "coronal")

    def left_behind(tensor):
        motion = strain.strained(slices, slices.start, 0.01 * tensor)
        pixels = slices.mask.sum((1, 2)).astype(float)
        middle, worst = pixels @ slices.start.translation / pixels.sum(), 0.0
        for s in range(len(slices)):
            local = np.zeros((int(pixels[s]), 3))
            local[:, :2] = (np.argwhere(slices.mask[s]) - slices.centre[s]) * slices.spacing[s]
            before, after = (local @ m.rotation[s].T + m.translation[s] for m in (slices.start, motion))
            wanted = before + 0.01 * (before - middle) @ tensor.T
            worst = max(worst, np.linalg.norm(after - wanted, axis=1).max())
        return worst

    assert left_behind(SHEAR) < 0.005
    assert left_behind(np.diag([1.0, 0, 0])) > 0.1


def tilting():
    """Slices of two stacks that tilt, as slices that moved do, and their true poses."""
    rng, stacks, moves = np.random.default_rng(2), [], []
    for orientation in ("axial", "coronal"):
        motion = np.zeros((acquire(brain(), orientation).image.shape[2], 6))
        motion[:, :3] = rng.normal(0, 0.08, (len(motion), 3))
        stacks.append(acquire(brain(), orientation, noise=0.005, motion=motion))
        frames = RigidMotion(*slice_frames(stacks[-1].affine, stacks[-1].image.shape))
        moves.append(frames.step(motion[:, :3], motion[:, 3:]).as_affines(frames))
    slices = slices_of(stacks)
    own = np.concatenate([each[slices.slice_index[slices.stack_index == n]] for n, each in enumerate(moves)])
    return slices, slices.nominal.moved(seen_from(own, slices.origin))


def test_a_sheared_start_is_straightened():
    slices, known = tilting()
    problem = FitProblem.pose(slices, SvrOptions(threads=2))
    state = FitState.start(slices)
    state.pose = replace(state.pose, motion=strain.strained(slices, known, 0.04 * SHEAR))

    def run(before: FitState, stage: Stage):
        losses = []
        return fit_stage(problem, before, stage, lambda _, record: losses.append(record["loss"])), losses[-1]

    state, amount = strain.settle_strains(slices, state, COARSE, run)
    assert 0.02 < amount < 0.08  # of all steps: the other motion takes part of it along
    begun, ended = (
        shear_of(slices, known, motion) for motion in (strain.strained(slices, known, 0.04 * SHEAR), state.pose.motion)
    )
    assert begun == pytest.approx(0.04, rel=0.1)
    assert abs(ended) < 0.01


def shear_of(slices, known, motion):
    """Size of the shear that carries known poses of slices to others."""
    places, moved = [], []
    for s in range(len(slices)):
        local = np.zeros((int(slices.mask[s].sum()), 3))
        local[:, :2] = (np.argwhere(slices.mask[s]) - slices.centre[s]) * slices.spacing[s]
        places.append(local @ known.rotation[s].T + known.translation[s])
        moved.append(local @ motion.rotation[s].T + motion.translation[s])
    places, moved = np.concatenate(places), np.concatenate(moved)
    change = np.linalg.lstsq(np.c_[places, np.ones(len(places))], moved - places, rcond=None)[0][:3]
    return float((change + change.T).ravel() / 2 @ SHEAR.ravel())


@pytest.mark.parametrize("orientations", [("axial", "coronal", "sagittal"), ("axial", "axial")])
def test_only_one_free_strain_is_searched_along(orientations):
    slices = gathered(*orientations)
    state = FitState.start(slices)
    found, amount = strain.settle_strains(slices, state, COARSE, lambda *_: pytest.fail("was fitted"))
    assert found is state
    assert amount == 0


def test_the_longest_step_bounds_the_way():
    assert strain.lowest(10.0, 9.9, 9.8) == strain.LONGEST / strain.STEP
    assert strain.lowest(1.0, 1.001, 1.0) == 0


def test_slices_that_turn_until_nothing_is_free_end_the_search(monkeypatch):
    slices = gathered("axial", "coronal")
    found = [[SHEAR], []]
    monkeypatch.setattr(strain, "free_strains", lambda *_: found.pop(0))
    state = FitState.start(slices)
    losses = iter((1.0, 2.0, 3.0))  # less towards one side: another round would follow
    _, amount = strain.settle_strains(slices, state, COARSE, lambda before, _: (before, next(losses)))
    assert amount > strain.SETTLED
    assert found == []
