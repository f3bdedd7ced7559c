# SPDX-License-Identifier: Apache-2.0
"""Stacks of which several are turned wrongly are put right together."""

from functools import partial

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from test_misplaced import left_at, still  # noqa: F401
from test_recon import STILL, moving_stacks

from gsbids.recon.fitting.options import SvrOptions
from gsbids.recon.svr import arrangements
from gsbids.recon.svr.misplaced import ELSEWHERE, StackImages, turned_apart
from gsbids.recon.svr.place_search import Search


def turned(*turns):
    """Transforms of stacks that are turned by degrees about an axis each."""
    transforms = np.tile(np.eye(4), (len(turns), 1, 1))
    for transform, (degrees, axis) in zip(transforms, turns, strict=True):
        vector = np.radians(degrees) * np.array(axis) / np.linalg.norm(axis)
        transform[:3, :3] = Rotation.from_rotvec(vector).as_matrix()
    return transforms


WRONG = turned((0, (1, 0, 0)), (180, (0, 0, 1)), (170, (1, 0, 0)))


def test_the_right_arrangement_comes_first(still):  # noqa: F811
    found = arrangements.likely_arrangements(StackImages.of(still), WRONG)
    assert 1 <= len(found) <= arrangements.TRIED
    assert turned_apart(found[0], STILL) < 5
    assert all(turned_apart(each, WRONG) > ELSEWHERE for each in found)
    shift = np.linalg.inv(found[0][0]) @ found[0]
    np.testing.assert_allclose(shift[:, :3, 3], 0, atol=2.0)


def test_the_present_arrangement_is_not_among_the_others(still):  # noqa: F811
    found = arrangements.likely_arrangements(StackImages.of(still), STILL)
    assert all(turned_apart(each, STILL) > ELSEWHERE for each in found)


def test_pairs_with_the_largest_stack_are_enough(still, monkeypatch):  # noqa: F811
    monkeypatch.setattr(arrangements, "ALL_PAIRS", 2)
    found = arrangements.likely_arrangements(StackImages.of(still), WRONG)
    assert turned_apart(found[0], STILL) < 5


def test_slices_that_moved_are_placed_in_the_right_arrangement():
    _, stacks, _ = moving_stacks()
    place = partial(Search(1.0, SvrOptions(threads=2), lambda *_: None).from_starts, stacks)
    first = place(WRONG)
    found = arrangements.try_arrangements(stacks, first, place)
    assert first.agreement.min() < arrangements.SURE_OF_THREE
    assert found.mean > first.mean + 0.05
    assert turned_apart(found.means, STILL) < ELSEWHERE
    assert turned_apart(first.means, STILL) > 90


@pytest.mark.parametrize("count", [2, 3])
def test_stacks_that_agree_and_pairs_are_left(still, count):  # noqa: F811
    first = left_at(still[:count], STILL[:count])
    assert arrangements.try_arrangements(still[:count], first, lambda _: pytest.fail("was placed again")) is first
