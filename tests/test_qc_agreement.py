# SPDX-License-Identifier: Apache-2.0
"""Agreement of stacks and coverage: right poses, wrong poses, stacks that show something else."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import ball_stack
from qc_samples import sample_result

from gsbids.imaging.geometry import slice_frames
from gsbids.imaging.stack import Stack
from gsbids.qc.agreement import agreement_metrics, coverage_metrics, pairwise_agreement
from gsbids.recon.motion import RigidMotion


@pytest.fixture
def ball():
    """Three stacks of one ball that lay still, and the result that says so."""
    stacks, index, slices, turns, places = [], [], [], [], []
    for n in range(3):
        image, mask, affine = ball_stack(n + 1)
        stacks.append(Stack(f"run-{n + 1}", image.astype(np.float32), mask > 0, affine, 3.5))
        frames, middle = slice_frames(affine, image.shape)
        used = np.flatnonzero(mask.any((0, 1)))
        index += [n] * len(used)
        slices += used.tolist()
        turns.append(frames[used])
        places.append(middle[used])
    nominal = RigidMotion(np.concatenate(turns), np.concatenate(places))
    ones = np.ones(len(nominal))
    return stacks, sample_result(
        nominal=nominal,
        motion=nominal,
        stack_index=np.array(index),
        slice_index=np.array(slices),
        gain=ones,
        weight=ones,
        ncc=ones,
        residual=0 * ones,
        psf=np.ones((len(ones), 3)),
    )


def shifted(result, stack, shift):
    moved = result.motion.translation + (result.stack_index == stack)[:, None] * shift
    return replace(result, motion=RigidMotion(result.motion.rotation, moved))


def test_stacks_in_their_places_agree(ball):
    stacks, result = ball
    table = pairwise_agreement(result, stacks)
    np.testing.assert_array_equal(table, table.T)
    assert np.isnan(np.diag(table)).all()
    row = agreement_metrics(result, stacks)
    assert row["stack_agreement"] > 0.9
    assert row["stack_agreement_worst"] > 0.9


def test_a_stack_in_a_wrong_place_is_found_and_gains_do_not_matter(ball):
    stacks, result = ball
    right = agreement_metrics(result, stacks)
    wrong = agreement_metrics(shifted(result, 2, [6.0, 0, 0]), stacks)
    assert wrong["stack_agreement_worst"] < right["stack_agreement_worst"] - 0.2
    # Two of three stacks still agree: only one of three pairs does.
    assert pairwise_agreement(shifted(result, 2, [6.0, 0, 0]), stacks)[0, 1] == pytest.approx(
        pairwise_agreement(result, stacks)[0, 1], abs=0.02
    )
    gain = np.where(np.arange(len(result.gain)) % 2, 1.5, 0.7)
    images = [stack.image.copy() for stack in stacks]
    for n, k, g in zip(result.stack_index, result.slice_index, gain, strict=True):
        images[n][:, :, k] *= g
    louder = [replace(stack, image=image) for stack, image in zip(stacks, images, strict=True)]
    assert agreement_metrics(replace(result, gain=gain), louder) == pytest.approx(right, abs=1e-4)


def test_rejected_slices_have_no_say(ball):
    stacks, result = ball
    weight = np.where(result.stack_index == 2, 0.0, 1.0)
    alone = agreement_metrics(replace(shifted(result, 2, [9.0, 9, 9]), weight=weight), stacks)
    assert alone["stack_agreement"] > 0.9
    nobody = agreement_metrics(replace(result, weight=0 * weight), stacks)
    assert np.isnan(list(nobody.values())).all()


def test_coverage():
    mask = np.zeros((4, 4, 4), bool)
    mask[:2] = True
    coverage = np.where(np.arange(4)[:, None, None] == 0, 0.25, 3.0) * np.ones((4, 4, 4))
    assert coverage_metrics(coverage, mask) == pytest.approx({"coverage_mean": 1.625, "not_covered": 0.5})
    assert np.isnan(list(coverage_metrics(coverage, ~mask & mask).values())).all()
