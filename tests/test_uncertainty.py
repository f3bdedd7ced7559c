# SPDX-License-Identifier: Apache-2.0
"""The uncertainty map: its parts by their formulas, and against the true error of a small reconstruction."""

import dataclasses

import numpy as np
import pytest
from scipy.stats import spearmanr
from test_recon import AXES, QUICK, RADIUS, STILL, acquire, brain

from gsbids.recon.sample_field import sample_grid
from gsbids.recon.svr.fit import fit_svr
from gsbids.recon.volume.sample import output_grid, sample_result
from gsbids.recon.volume.uncertainty import CALIBRATION, PLACEMENT, data_support, predict_error, split_members

OPTIONS = dataclasses.replace(QUICK, members=2, motion_correction=False, detail_iterations=40)


@pytest.fixture(scope="module")
def still():
    """Field, stacks that did not move, their reconstruction, a grid, and the volume on it."""
    field = brain()
    stacks = [acquire(field, orientation, noise=0.03) for orientation in AXES]
    result = fit_svr(stacks, STILL, OPTIONS)
    affine, shape = output_grid(stacks, result, 1.5)
    return field, stacks, result, affine, sample_result(result, affine, shape)


def voxels(affine, shape):
    """World positions (X, Y, Z, 3)."""
    index = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    return index @ affine[:3, :3].T + affine[:3, 3]


def test_support_is_the_sum_of_the_psf_around_every_pixel(still):
    """Against the sum itself, at voxels in and beside the brain; the residuals there are the noise."""
    _, stacks, result, affine, image = still
    stack = stacks[1]
    rows = result.stack_index == 1
    result = dataclasses.replace(
        result,
        weight=np.where(rows, 0.5 + 0.5 * (np.arange(len(rows)) % 2), 0.0),
        settings={**result.settings, "rim": 0},
    )
    support, variance = data_support(result, stacks, affine, image.shape)
    index = np.argwhere(stack.mask)
    at = index @ stack.affine[:3, :3].T + stack.affine[:3, 3]
    weight = np.zeros(stack.image.shape[2])
    weight[result.slice_index[rows]] = result.weight[rows]
    axes = stack.affine[:3, :3] / stack.spacing
    psf = result.psf[rows][0]
    for voxel in ([14, 17, 12], [10, 20, 10], [15, 15, 18], [5, 17, 12]):
        away = (at - (affine[:3, :3] @ voxel + affine[:3, 3])) @ axes
        density = np.exp(-0.5 * (away**2 / psf).sum(1)) / np.sqrt((2 * np.pi) ** 3 * psf.prod())
        # Less a little: pixels far off their prediction have less weight.
        assert 0.8 < support[tuple(voxel)] / (weight[index[:, 2]] * density).sum() < 1.0
    inside = support > 0.2 * support.max()
    assert np.sqrt(np.median(variance[inside])) == pytest.approx(0.03 * 1000, rel=0.25)


def test_parts_add_up_and_follow_the_formula(still):
    _, stacks, result, affine, image = still
    found = predict_error(result, stacks, affine, image)
    np.testing.assert_allclose(found.sigma**2, found.data**2 + found.members**2 + found.placement**2, rtol=1e-4)
    ramp = np.broadcast_to(np.arange(image.shape[0])[:, None, None] * 1.5 * 7.0, image.shape)
    np.testing.assert_allclose(predict_error(result, stacks, affine, ramp).placement[2:-2], 7 * PLACEMENT, rtol=1e-4)
    one, two = (sample_grid(member, affine, image.shape)[0] for member in split_members(result))
    expected = CALIBRATION * np.abs(one - two) / 2 * result.intensity_scale  # s / sqrt(2), of two
    assert np.sqrt(np.mean(found.members**2)) == pytest.approx(np.sqrt(np.mean(expected**2)), rel=1e-3)


def test_members_are_the_parts_of_the_field(still):
    _, _, result, affine, image = still
    members = split_members(result)
    assert [len(member) for member in members] == result.settings["gaussians_of_members"] == [900, 900]
    (a, weight_a), (b, weight_b) = (sample_grid(member, affine, image.shape) for member in members)
    seen = np.minimum(weight_a, weight_b) > 0.1
    mean = (a * weight_a + b * weight_b)[seen] / (weight_a + weight_b)[seen] * result.intensity_scale
    np.testing.assert_allclose(mean, image[seen], rtol=0.02)
    alone = dataclasses.replace(result, field=members[0], settings={"rim": 2.0})
    assert len(split_members(alone)) == 1


def test_one_member_has_no_spread(still):
    _, stacks, result, affine, image = still
    alone = dataclasses.replace(result, settings={**result.settings, "gaussians_of_members": [len(result.field)]})
    found = predict_error(alone, stacks, affine, image)
    assert not found.members.any()
    assert (found.sigma > 0).all()


def test_intensities_scale_with_the_data(still):
    _, stacks, result, affine, image = still
    found = predict_error(result, stacks, affine, image)
    bright = [dataclasses.replace(stack, image=10 * stack.image) for stack in stacks]
    scaled = predict_error(
        dataclasses.replace(result, intensity_scale=10 * result.intensity_scale), bright, affine, 10 * image
    )
    np.testing.assert_allclose(scaled.sigma, 10 * found.sigma, rtol=1e-3)


def test_where_slices_are_rejected_the_error_grows_up_to_the_contrast(still):
    _, stacks, result, affine, image = still
    world = voxels(affine, image.shape)
    brain_mask = ((world / (RADIUS - 3)) ** 2).sum(-1) < 1
    low = world[..., 2] < -4
    before = predict_error(result, stacks, affine, image).data
    gone = np.where((result.stack_index > 0) | (result.motion.translation[:, 2] < 0), 0.0, result.weight)
    after = predict_error(dataclasses.replace(result, weight=gone), stacks, affine, image).data
    assert np.median(after[brain_mask & low] / before[brain_mask & low]) > 5
    assert after.max() < 1.2 * image[brain_mask].std()


def test_predicted_and_true_error_go_together(still):
    """Stacks with much more noise in the lower half of the brain: the map says where, and how much."""
    field, stacks, result, affine, image = still
    noise = np.random.default_rng(4)
    noisy = [
        dataclasses.replace(
            s,
            image=s.image
            + noise.normal(0, 150, s.image.shape).astype(np.float32) * (voxels(s.affine, s.image.shape)[..., 2] < 0),
        )
        for s in stacks
    ]
    result = fit_svr(noisy, STILL, OPTIONS)
    image = sample_result(result, affine, image.shape)
    truth = sample_grid(field, affine, image.shape)[0] * 1000
    inside = ((voxels(affine, image.shape) / (RADIUS - 1)) ** 2).sum(-1) < 1
    slope, offset = np.polyfit(image[inside], truth[inside], 1)
    error = np.abs(image + (offset - truth) / slope)[inside]
    sigma = predict_error(result, noisy, affine, image).sigma[inside]
    assert spearmanr(sigma, error)[0] > 0.2
    large, small = sigma > np.quantile(sigma, 0.9), sigma < np.quantile(sigma, 0.1)
    assert np.sqrt(np.mean(error[large] ** 2)) > 2 * np.sqrt(np.mean(error[small] ** 2))
    assert 0.4 < np.mean(error < sigma) < 0.95
