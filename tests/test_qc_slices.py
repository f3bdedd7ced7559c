# SPDX-License-Identifier: Apache-2.0
"""Slices in the report: their order in time, the weights of their pixels, why they are excluded; the plain average."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from qc_samples import DEPTH, ball, grid, sample_result

from gsbids.qc.acquisition import slice_order
from gsbids.qc.average import plain_average
from gsbids.qc.exclusions import excluded_stacks, rejected_slices, without_brain
from gsbids.qc.figures.panels import StackImages, StackView, plane_pairs
from gsbids.qc.figures.slices import stack_pixel_weights, worst_row, worst_slices
from gsbids.qc.figures.tiles import palette_png


def moving(index, passes, step=0.4, jump=3.0):
    """Motion (K, 6) of a child that drifts, and lies elsewhere in every pass."""
    motion = np.zeros((len(index), 6))
    motion[:, 0] = step * np.sin(index / 5) + jump * (index % passes) / passes
    motion[:, 4] = 0.3 * np.cos(index / 7)
    return motion


@pytest.mark.parametrize("passes", [1, 2, 3])
def test_interleaving_is_seen_in_the_motion(passes):
    index = np.arange(3, 27)
    order = slice_order(index, np.ones(24, bool), moving(index, passes))
    assert order.passes.max() + 1 == passes
    assert order.interleaved == (passes > 1)
    assert not order.known
    sequence = index[order.sequence]
    assert sorted(sequence) == index.tolist()
    assert (np.diff(sequence) == passes).sum() == len(index) - passes
    assert (f"in {passes} passes" in order.words) == (passes > 1)


def test_no_interleaving_is_claimed_without_evidence():
    index = np.arange(20)
    still = slice_order(index, np.ones(20, bool), moving(index, 2, jump=0.2))
    noisy = slice_order(index, np.ones(20, bool), np.random.default_rng(2).normal(0, 1, (20, 6)))
    few = slice_order(index[:6], np.ones(6, bool), moving(index[:6], 2))
    untrusted = slice_order(index, index % 2 == 0, moving(index, 2))
    for order in (still, noisy, few, untrusted):
        assert not order.interleaved
        assert order.moment.tolist() == sorted(order.moment)


@pytest.mark.parametrize("turned", [False, True])
def test_known_times_go_first(turned):
    """Odd slices after even ones, and two slices at once."""
    times = np.array([0, 4, 1, 5, 2, 6, 3, 7] * 2, float)
    times = times[::-1] if turned else times
    order = slice_order(np.arange(16), np.ones(16, bool), np.zeros((16, 6)), tuple(times))
    assert order.known
    assert order.moment.tolist() == times.tolist()
    assert order.passes.tolist() == [int(t >= 4) for t in times]
    assert order.words == "from SliceTiming, 2 passes"
    assert not slice_order(np.arange(4), np.ones(4, bool), np.zeros((4, 6)), (3.0, 2.0, 1.0, 0.0)).interleaved
    # A list that is too short is none.
    assert not slice_order(np.arange(16), np.ones(16, bool), np.zeros((16, 6)), (0.0, 1.0)).known


def stack_images():
    shape = (40, 44, DEPTH)
    affine = grid((1.1, 1.1, 4.0), shape)
    image, mask = ball(shape, affine)
    noise = np.random.default_rng(0).normal(0, 2, shape)
    return StackImages(image, affine, mask, (image + noise).astype(np.float32), image * mask)


def test_pixels_that_do_not_fit_have_no_weight():
    images = stack_images()
    spoilt = images.corrected.copy()
    spoilt[18:22, 20:24, 4] += 90
    images = replace(images, corrected=spoilt)
    weights = stack_pixel_weights(images, np.array([2, 3, 4]))
    assert np.isnan(weights[..., [0, 1, 5, 6, 7]]).all()
    assert np.isnan(weights[~images.mask]).all()
    inside = images.mask[..., 4].copy()
    assert weights[18:22, 20:24, 4].max() < 0.01
    inside[18:22, 20:24] = False
    assert np.median(weights[..., 4][inside]) > 0.9
    row = worst_row(StackView(images), weights, 4, "run-1, slice 4")
    assert [tile.label for tile in row.tiles] == ["Acquired", "Simulated", "Residual", "Pixel weights"]
    assert row.tiles[0].outline
    assert len({(tile.width, tile.height) for tile in row.tiles}) == 1
    picture = np.asarray(Image.open(io.BytesIO(row.tiles[3].png)).convert("RGB"), int)
    assert (picture[0, 0] == 0).all(), "black outside the mask"
    assert (picture[..., 0] > 240).mean() > 0.1, "most pixels are bright"
    assert ((picture[..., 2] > 60) & (picture[..., 0] < 10)).any(), "those without a say are dark blue"


def test_palette_has_the_ends_of_its_scale_and_black_for_nothing():
    picture = np.array([[0.0, 1.0], [np.nan, 2.0]])
    back = np.asarray(Image.open(io.BytesIO(palette_png(picture, (0, 1), (4, 4)))).convert("RGB"))
    assert back.shape == (4, 4, 3)
    assert back[3, 0].tolist() == [0, 0, 0]
    assert back[0, 3].tolist() == back[3, 3].tolist() == [254, 232, 56]
    assert back[0, 0].tolist() == [0, 34, 78]


def test_worst_slices_are_those_of_lowest_similarity():
    result = sample_result()
    ncc = np.linspace(0.9, 0.99, len(result.ncc))
    ncc[[5, 17]], ncc[2] = (0.4, 0.2), np.nan
    assert worst_slices(replace(result, ncc=ncc), 3) == [17, 5, 0]


def test_reasons_say_what_is_wrong():
    result = sample_result(
        weight=np.ones(3 * DEPTH),
        ncc=np.full(3 * DEPTH, 0.95),
        gain=np.ones(3 * DEPTH),
        residual=np.full(3 * DEPTH, 0.02),
    )
    assert rejected_slices(result) == excluded_stacks(result) == []
    weight, gain, ncc, residual = (getattr(result, name).copy() for name in ("weight", "gain", "ncc", "residual"))
    weight[[1, 9, 10]], residual[[1, 9, 10]] = 0.02, 0.1
    gain[1], ncc[9] = 0.3, 0.5
    result = replace(result, weight=weight, gain=gain, ncc=ncc, residual=residual)
    dim, unlike, odd = rejected_slices(result)
    assert (dim.stack, dim.what) == ("run-1", "slice 1")
    assert dim.reason.startswith("Signal lost: 30 % of the brightness of its stack; residual 0.100, 5.0 times")
    assert (unlike.stack, unlike.what) == ("run-2", "slice 1")
    assert unlike.reason.startswith("Shows something else")
    assert odd.reason.startswith("Differs from the other slices")
    weight[result.stack_index == 2] = 0
    result = replace(
        result,
        stack_names=("run-1", "run-2", "run-3", "run-4", "run-5"),
        weight=weight,
        settings={"excluded": ["run-4"]},
    )
    assert [(row.stack, row.reason[:22]) for row in excluded_stacks(result)] == [
        ("run-4", "It looks like no part "),
        ("run-3", "Each of its 8 slices w"),
        ("run-5", "It has no slice with b"),
    ]
    left = without_brain("run-1", range(3, 8), 12)
    assert left.what == "slices 0-2, 8-11"
    assert without_brain("run-1", range(12), 12) is None


def test_plain_average_lies_where_the_scanner_put_the_stacks():
    shape = (30, 30, 30)
    affine = grid((2.0,) * 3, shape)
    image, mask = ball(shape, affine, radius=16)
    moved = affine.copy()
    moved[0, 3] += 4.0  # two voxels
    average = plain_average([(image, affine, mask), (3 * image, moved, mask)], affine, shape)
    level = np.median(image[mask])
    expected = (image[2:] + image[:-2]) / (2 * level)
    np.testing.assert_allclose(average[2:], expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(average[:2], image[:2] / level, rtol=1e-4)
    assert not plain_average([(0 * image, affine, mask)], affine, shape).any()
    pairs = plane_pairs(average, image, affine, mask)
    assert [pair.label.partition(",")[0] for pair in pairs] == ["Axial", "Coronal", "Sagittal"]
    for pair in pairs:
        assert (pair.before.width, pair.before.height) == (pair.after.width, pair.after.height)
        assert pair.before.png != pair.after.png
