# SPDX-License-Identifier: Apache-2.0
"""A stack that starts in a wrong place as a whole is found again; those in their places stay about there."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_place import slice_errors
from test_recon import AXES, STILL, acquire, brain, moving_stacks

from gsbids.recon.fitting.options import SvrOptions
from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.fitting.stage import FitState
from gsbids.recon.motion import RigidMotion
from gsbids.recon.svr import arrangements, misplaced, place, place_search
from gsbids.recon.svr.place import place_slices
from gsbids.recon.svr.place_search import coarser


def turned(degrees, axis=(1.0, 2.0, -1.0)):
    """Transforms of three stacks, the last one turned."""
    transforms = STILL.copy()
    vector = np.radians(degrees) * np.array(axis) / np.linalg.norm(axis)
    transforms[2, :3, :3] = Rotation.from_rotvec(vector).as_matrix()
    return transforms


def placed(transforms, seed=0):
    """Errors (mm) of the slices as placed, angle (degrees) between the starts of the last stack and the first."""
    _, stacks, motions = moving_stacks(seed)
    found = place_slices(stacks, transforms, SvrOptions(threads=2), lambda *_: None)
    slices = found.slices
    world = SimpleNamespace(
        stack_index=slices.stack_index,
        slice_index=slices.slice_index,
        weight=np.ones(len(slices)),
        **{
            name: RigidMotion(poses.rotation, poses.translation + slices.origin)
            for name, poses in (("nominal", slices.nominal), ("motion", found.pose.motion))
        },
    )
    moves = slices.starts[:, :3, :3]
    apart = moves[0].T @ moves[2]
    return slice_errors(stacks, motions, world), np.degrees(np.linalg.norm(Rotation.from_matrix(apart).as_rotvec()))


def test_a_stack_turned_wrongly_is_found_again(monkeypatch):
    errors, apart = placed(turned(75))
    assert np.mean(errors > 2) < 0.1
    assert apart < 30
    monkeypatch.setattr(misplaced, "TRIALS", 0)
    monkeypatch.setattr(arrangements, "SURE_OF_THREE", -1.0)
    monkeypatch.setattr(place, "ENOUGH", -1.0)
    monkeypatch.setattr(place_search, "REPEATS", 0)
    errors, apart = placed(turned(75))
    assert np.mean(errors > 2) > 0.5
    assert apart == pytest.approx(75)


def test_a_stack_upside_down_is_found_again():
    """Turned by 180 degrees it has the outline of the others and, as a blur, much of their look."""
    errors, apart = placed(turned(180, (0.0, 0.0, 1.0)))
    assert np.mean(errors > 2) < 0.1
    assert apart < 30


def test_stacks_in_their_places_stay_there():
    errors, apart = zip(*(placed(STILL, seed) for seed in (0, 3)), strict=True)  # one looks elsewhere, too
    assert np.mean(np.concatenate(errors) > 2) < 0.05
    assert max(apart) < 30


@pytest.fixture(scope="module")
def still():
    """Stacks that did not move."""
    return [acquire(brain(), orientation, noise=0.01) for orientation in AXES]


def left_at(stacks, transforms):
    """Coarse slices that stay where they start."""
    slices = coarser(SliceSet.from_stacks(stacks, transforms, 4.0), 2)
    state = FitState.start(slices)
    return misplaced.Placed(slices, state, misplaced.stack_agreement(slices, state, 3.0), transforms)


def agreement(stacks, transform):
    """Of all stacks, the last one moved."""
    return left_at(stacks, np.array([*STILL[:2], transform])).agreement


def test_stacks_agree_where_they_are_and_not_upside_down(still):
    right = left_at(still, STILL)
    assert right.agreement.shape == (3,)
    assert right.agreement.min() > misplaced.SURE
    own = right.slices.stack_index == 2
    image = misplaced.image_of(right.slices, right.state, own, right.state.pose.motion, 3.0)
    away = np.eye(4)
    away[:3, 3] = right.slices.origin
    for turn in misplaced.half_turns(image.points):
        wrong = agreement(still, away @ turn @ np.linalg.inv(away))
        assert wrong.argmin() == 2
        assert wrong[2] < misplaced.SURE - 0.15
        assert (wrong[:2] < right.agreement[:2]).all()


def test_agreement_in_a_small_part_counts_for_little(still):
    """Stacks beside one another share the edge of their brains at most."""
    shift, found = np.eye(4), []
    for shift[0, 3] in (0.0, 3.0, 6.0, 24.0, 60.0):
        found.append(agreement(still, shift)[2])
    assert found[:4] == sorted(found[:4], reverse=True)
    assert found[3] < 0.2
    assert found[4] == 0


def test_a_lone_stack_agrees_with_nothing(still):
    alone = left_at(still[:1], STILL[:1])
    assert np.isnan(alone.agreement).all()
    assert alone.mean == 1
    found = misplaced.look_again(still[:1], alone, lambda _: pytest.fail("was placed again"))
    assert found is alone
    assert found.runner_up == 0


def test_stacks_that_agree_are_not_looked_for(still):
    first = left_at(still, STILL)
    assert misplaced.look_again(still, first, lambda _: pytest.fail("was placed again")) is first


@pytest.mark.parametrize(("degrees", "axis"), [(90, (0, 0, 1)), (180, (0, 0, 1)), (180, (1, 0, 0)), (130, (1, 2, -1))])
def test_the_right_place_is_among_the_others_and_agrees_most(still, degrees, axis):
    first = left_at(still, turned(degrees, axis))
    found = misplaced.look_again(still, first, lambda transforms: left_at(still, transforms))
    assert found.mean > max(first.mean + 0.1, 0.88)
    np.testing.assert_array_equal(found.transforms[:2], STILL[:2])
    np.testing.assert_array_equal(found.slices.starts, left_at(still, found.transforms).slices.starts)
    assert np.degrees(Rotation.from_matrix(found.transforms[2, :3, :3]).magnitude()) < 5
    assert np.linalg.norm(found.transforms[2, :3, 3]) < 3
    assert first.mean <= found.runner_up < found.mean


def test_places_that_agree_less_are_left_and_told(still, monkeypatch):
    first, worse, tried = left_at(still, turned(90)), left_at(still, turned(60)), []
    first, worse = (replace(each, agreement=np.full(3, value)) for each, value in ((first, 0.8), (worse, 0.7)))

    def place_at(transforms):
        tried.append(transforms)
        return worse

    found = misplaced.look_again(still, first, place_at)
    assert found.state is first.state
    assert found.runner_up == pytest.approx(0.7)
    assert 1 < len(tried) <= misplaced.TRIALS
    monkeypatch.setattr(misplaced, "TRIALS", 2)
    tried.clear()
    misplaced.look_again(still, first, place_at)
    assert len(tried) == 2


def test_clearly_worse_places_are_not_tried_to_the_end(still, monkeypatch):
    monkeypatch.setattr(misplaced, "HOPELESS", 1)
    first, tried = left_at(still, turned(90)), []
    first, worse = (replace(first, agreement=np.full(3, value)) for value in (0.8, 0.8 - misplaced.LESS - 0.01))
    misplaced.look_again(still, first, lambda transforms: tried.append(transforms) or worse)
    assert len(tried) == 3  # one for each stack


def test_what_slides_back_is_no_other_place(still):
    first = left_at(still, turned(90))
    assert misplaced.look_again(still, first, lambda _: first).runner_up == 0


def test_other_places_are_other_places(still, monkeypatch):
    """Wherever the scanner has its origin."""
    monkeypatch.setattr(misplaced, "LESS_ALIKE", 2.0)  # all of them
    move, home = np.eye(4), np.eye(4)
    move[:3, 3], home[:3, 3] = [300.0, -120.0, 55.0], [-300.0, 120.0, -55.0]
    away = [replace(stack, affine=move @ stack.affine) for stack in still]
    here = turned(90)
    places = misplaced.StackImages.of(still).other_places(here, 2)
    assert len(places) > 2
    for k, found in enumerate(places):
        for other in (here[2], *places[:k]):
            turn = Rotation.from_matrix(found[:3, :3].T @ other[:3, :3]).magnitude()
            assert np.degrees(turn) > misplaced.ELSEWHERE
    there = misplaced.StackImages.of(away).other_places(move @ here @ home, 2)
    np.testing.assert_allclose(home @ np.array(there) @ move, places, atol=1e-6)


def test_places_that_look_clearly_worse_as_scanned_are_not_proposed(still, monkeypatch):
    images = misplaced.StackImages.of(still)
    right, wrong = (images.other_places(turned(angle), 2) for angle in (0, 90))
    monkeypatch.setattr(misplaced, "LESS_ALIKE", 2.0)
    every = images.other_places(turned(0), 2)
    assert len(right) < len(every)
    home = np.degrees(Rotation.from_matrix(wrong[0][:3, :3]).magnitude())  # where the stack belongs comes first
    assert home < 15


def test_a_stack_is_called_turned_against_the_others_only():
    everyone = np.tile(np.eye(4), (4, 1, 1))
    common = turned(70)[2]
    assert not misplaced.turned_elsewhere(common @ everyone, everyone).any()
    now = common @ everyone
    now[1] = now[1] @ turned(40)[2]
    np.testing.assert_array_equal(misplaced.turned_elsewhere(now, everyone), [False, True, False, False])


def test_half_turns_are_turns_by_180_degrees_about_the_middle():
    rng = np.random.default_rng(0)
    axes = Rotation.random(random_state=4).as_matrix()
    points = rng.normal(size=(5000, 3)) * [5.0, 9.0, 14.0] @ axes.T + [20.0, -7.0, 3.0]
    middle = points.mean(0)
    turns = misplaced.half_turns(points)
    assert len(turns) == 3
    for turn in turns:
        assert np.linalg.det(turn[:3, :3]) == pytest.approx(1)
        np.testing.assert_allclose(turn @ turn, np.eye(4), atol=1e-9)
        assert np.trace(turn[:3, :3]) == pytest.approx(-1)
        np.testing.assert_allclose(turn[:3, :3] @ middle + turn[:3, 3], middle, atol=1e-9)
    about = np.array([Rotation.from_matrix(turn[:3, :3]).as_rotvec() / np.pi for turn in turns])
    np.testing.assert_allclose(np.abs(about @ axes), np.eye(3), atol=0.1)


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


def test_the_best_other_place_is_kept(still):
    """It is carried on with more detail where the stacks agree about as much in it."""
    first, near, close, worse = (
        replace(left_at(still, turned(degrees)), agreement=np.full(3, value))
        for degrees, value in ((0, 0.8), (10, 0.799), (90, 0.79), (170, 0.7))
    )
    for order in ((near, close, worse), (worse, close, near)):
        best = first
        for other in order:
            best = best.better(other)
        assert best.mean == pytest.approx(0.8)
        assert best.rival.mean == pytest.approx(0.79)
        assert best.rival.rival is None
        assert place._rivals(best, first) == [best, best.rival]
        assert place._rivals(replace(best, rival=None), worse) == [replace(best, rival=None), worse]
    far = first.better(worse)
    assert far.rival.mean == pytest.approx(0.7)
    assert place._rivals(far, first) == [far]
