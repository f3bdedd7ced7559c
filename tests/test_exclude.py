# SPDX-License-Identifier: Apache-2.0
"""A stack of something else is left out and named; the others give what they give without it."""

import dataclasses

import numpy as np
import pytest
from qc_samples import sample_result
from test_recon import QUICK, STILL, acquire, brain

from gsbids.recon.field import GaussianField
from gsbids.recon.svr.exclude import apart_from_all, outlying_stacks, with_excluded
from gsbids.recon.svr.fit import fit_svr
from gsbids.recon.volume.coverage import vote_mask
from gsbids.recon.volume.motion_table import motion_table, slice_transforms
from gsbids.recon.volume.sample import output_grid, simulate_stack
from gsbids.recon.volume.uncertainty import predict_error

NEAR = dataclasses.replace(QUICK, place=False)


@pytest.mark.parametrize(
    ("similarity", "out"),
    [
        ([0.98, 0.97, 0.6], [0, 0, 1]),
        ([0.98, 0.97, 0.93], [0, 0, 0]),
        ([0.8, 0.78, 0.75], [0, 0, 0]),
        ([0.9, 0.2], [0, 0]),
        ([0.97, np.nan, 0.5, 0.96], [0, 0, 1, 0]),
        ([np.nan, 0.9, 0.5], [0, 0, 0]),
        ([0.5], [0]),
        ([0.74, 0.71, 0.87], [0, 0, 0]),
        ([0.85, 0.78, 0.92], [0, 0, 0]),
    ],
)
def test_a_stranger_is_one_that_stands_out(similarity, out):
    np.testing.assert_array_equal(outlying_stacks(np.array(similarity)), np.array(out, bool))


@pytest.mark.parametrize(
    ("agreement", "rest", "out"),
    [
        ([0.6, 0.5, 0.4], 0.85, [0, 0, 1]),
        ([0.8, 0.8, 0.7], 0.95, [0, 0, 0]),
        ([0.6, 0.5, 0.4], 0.5, [0, 0, 0]),
        ([0.64, 0.7, 0.75], 0.76, [0, 0, 0]),
        ([0.3, 0.3], np.nan, [0, 0]),
    ],
)
def test_a_stack_is_apart_where_the_others_agree_without_it(agreement, rest, out):
    np.testing.assert_array_equal(apart_from_all(np.array(agreement), rest), np.array(out, bool))


def test_a_stack_of_another_brain_is_left_out_where_it_was_placed():
    """Before any fine fit: nobody who watches is shown a volume with it."""
    own = [acquire(brain(), orientation, noise=0.01) for orientation in ("axial", "coronal", "sagittal")]
    other = dataclasses.replace(acquire(brain(seed=9), "axial", noise=0.01), name="other")
    seen = []
    result = fit_svr(
        [own[0], other, *own[1:]],
        np.tile(np.eye(4), (4, 1, 1)),
        QUICK,
        observe=lambda iteration, now: seen.append(set(now().stack_index)),
    )
    assert result.settings["excluded"] == ["other"]
    assert set(map(frozenset, seen)) == {frozenset({0, 2, 3})}


def test_a_stack_of_another_brain_is_left_out():
    own = [acquire(brain(), orientation, noise=0.01) for orientation in ("axial", "coronal", "sagittal")]
    other = dataclasses.replace(acquire(brain(seed=9), "axial", noise=0.01), name="other")
    stacks = [own[0], other, *own[1:]]
    starts = np.tile(np.eye(4), (4, 1, 1))
    seen = []
    result = fit_svr(stacks, starts, NEAR, observe=lambda iteration, now: seen.append(set(now().stack_index)))
    alone = fit_svr(own, STILL, NEAR)
    assert seen[0] == {0, 1, 2, 3}  # those who watch are told of all stacks, whichever are left out
    assert seen[-1] == {0, 2, 3}
    assert result.settings["excluded"] == ["other"]
    assert alone.settings["excluded"] == []
    for name in GaussianField.PARAMETERS:
        np.testing.assert_array_equal(getattr(result.field, name), getattr(alone.field, name))
    assert set(result.stack_index) == {0, 2, 3}
    assert not simulate_stack(result, other, 1).any()
    np.testing.assert_array_equal(simulate_stack(result, own[2], 3), simulate_stack(alone, own[2], 2))
    assert all(row["weight"] is None for row in motion_table(result, 1, other.image.shape[2]))
    assert slice_transforms(result, 1, other.image.shape[2]).shape == (other.image.shape[2], 4, 4)
    affine, shape = output_grid(stacks, result, 2.0)
    mask, _ = vote_mask(stacks, result, affine, shape)
    sigma = predict_error(result, stacks, affine, np.ones(shape, np.float32)).sigma
    assert np.isfinite(sigma[mask]).all()


def test_masks_go_with_their_stacks_and_those_left_out_have_none():
    one, other = np.zeros((2, 4, 5, 6), bool)
    one[1:3], other[:, 2:] = True, True
    fewer = sample_result(("a", "c"), masks=(one, other))
    result = with_excluded(fewer, ("a", "b", "c", "d"), np.tile(np.eye(4), (4, 1, 1)), np.array([0, 1, 0, 1], bool))
    assert [mask is None for mask in result.masks] == [False, True, False, True]
    np.testing.assert_array_equal(result.masks[0], one)
    np.testing.assert_array_equal(result.masks[2], other)
    again = with_excluded(result, ("z", "a", "b", "c", "d"), np.tile(np.eye(4), (5, 1, 1)), np.arange(5) == 0)
    assert [mask is None for mask in again.masks] == [True, False, True, False, True]
    plain = with_excluded(sample_result(("a", "c")), ("a", "b", "c"), STILL, np.array([0, 1, 0], bool))
    assert plain.masks == ()
