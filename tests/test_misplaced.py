# SPDX-License-Identifier: Apache-2.0
"""A stack that starts in a wrong place as a whole is found again; those in their places stay about there."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_place import slice_errors
from test_recon import STILL, acquire, brain, moving_stacks

from gsbids.recon import misplaced
from gsbids.recon.fit_field import FitState
from gsbids.recon.motion import RigidMotion
from gsbids.recon.options import SvrOptions
from gsbids.recon.place import coarser, place_slices
from gsbids.recon.slices import SliceSet


def turned(degrees, axis=(1.0, 2.0, -1.0)):
    """Transforms of three stacks, the last one turned."""
    transforms = STILL.copy()
    vector = np.radians(degrees) * np.array(axis) / np.linalg.norm(axis)
    transforms[2, :3, :3] = Rotation.from_rotvec(vector).as_matrix()
    return transforms


def placed(transforms):
    """Errors (mm) of the slices as placed, angle (degrees) between the starts of the last stack and the first."""
    _, stacks, motions = moving_stacks()
    slices = SliceSet.from_stacks(stacks, transforms)
    pose, start = place_slices(stacks, transforms, SvrOptions(threads=2), lambda *_: None)
    found = SimpleNamespace(stack_index=slices.stack_index, slice_index=slices.slice_index, nominal=RigidMotion(
        slices.nominal.rotation, slices.nominal.translation + slices.origin), motion=RigidMotion(
            pose.motion.rotation, pose.motion.translation + slices.origin), weight=np.ones(len(slices)))
    moves = start.as_affines(slices.nominal)[:, :3, :3]
    apart = moves[slices.stack_index == 0][0].T @ moves[slices.stack_index == 2][0]
    return slice_errors(stacks, motions, found), np.degrees(np.linalg.norm(Rotation.from_matrix(apart).as_rotvec()))


def test_a_stack_turned_wrongly_is_found_again(monkeypatch):
    errors, apart = placed(turned(75))
    assert np.mean(errors > 2) < 0.1
    assert apart < 30
    monkeypatch.setattr(misplaced, "TRIALS", 0)
    errors, apart = placed(turned(75))
    assert np.mean(errors > 2) > 0.5
    assert apart == pytest.approx(75)


def test_stacks_in_their_places_stay_there():
    errors, apart = placed(STILL)
    assert np.mean(errors > 2) < 0.05
    assert apart < 30


def test_the_image_of_slices_is_where_their_poses_are():
    """The same stack seen through two poses gives the same image, moved; outlines are part of it, as 0."""
    slices = coarser(SliceSet.from_stacks([acquire(brain(), "axial")], np.eye(4)[None], 6.0), 2)
    state, every = FitState.start(slices), np.ones(len(slices), bool)
    one = misplaced.image_of(slices, state, every, slices.start, 3.0)
    move = np.eye(4)
    move[:3, 3] = [6.0, -3.0, 9.0]
    other = misplaced.image_of(slices, state, every, slices.start.moved(move), 3.0)
    np.testing.assert_allclose(other.value, one.value, atol=1e-9)
    np.testing.assert_allclose(other.origin - one.origin, move[:3, 3])
    edge = one.sample(one.value, slices.start.translation + slices.start.rotation @ [0.0, 26.0, 0.0])
    assert np.abs(edge).max() < 0.1 < one.value.max()
    assert np.median(one.value[one.value > 0.5]) == pytest.approx(1, abs=0.2)
