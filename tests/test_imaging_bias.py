# SPDX-License-Identifier: Apache-2.0
"""Denoising and bias correction: what they remove, what they leave, the same bits every time."""

import numpy as np
import pytest
from scipy import ndimage

from gsbids.imaging.bias import FALSE_BIAS, correct_bias, denoise, noise_deviation, trusted_share

AFFINE = np.diag([1.1, 1.1, 3.3, 1.0])


@pytest.fixture(scope="module")
def stack():
    rng = np.random.default_rng(5)
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (60, 64, 12)), indexing="ij")
    mask = x**2 + y**2 + z**2 < 0.35
    tissue = 500 + 150 * np.sign(ndimage.gaussian_filter(rng.normal(size=mask.shape), (9, 9, 2)))
    clean = np.where(x**2 + y**2 + z**2 < 0.55, tissue, 0.0)
    bias = np.exp(0.5 * x - 0.3 * y)
    return clean.astype(np.float32), bias.astype(np.float32), mask


def test_denoise_as_much_as_the_noise_calls_for(stack):
    clean, _, mask = stack
    errors = []
    for deviation in (100, 2):
        noisy = np.abs(clean + np.random.default_rng(1).normal(0, deviation, clean.shape)).astype(np.float32)
        made = denoise(noisy, mask, AFFINE)
        assert made.dtype == np.float32
        errors.append(np.std((made - clean)[mask]) / np.std((noisy - clean)[mask]))
        np.testing.assert_array_equal(made[:3], noisy[:3])
    assert errors[0] < 0.85
    assert errors[1] < 1.05
    np.testing.assert_array_equal(made, denoise(noisy, mask, AFFINE))


@pytest.mark.parametrize("deviation", [5, 20, 60])
def test_noise_is_estimated(stack, deviation):
    clean, _, mask = stack
    noisy = ndimage.gaussian_filter(clean, (1, 1, 0)) + np.random.default_rng(1).normal(0, deviation, clean.shape)
    assert noise_deviation(noisy, mask) == pytest.approx(deviation, rel=0.15)
    assert noise_deviation(noisy, np.zeros_like(mask)) == 0.0


def test_bias_is_removed_and_the_scale_kept(stack):
    clean, bias, mask = stack
    shaded = clean * bias
    made = correct_bias(shaded, mask, AFFINE)
    spread = [np.std(np.log(image[mask] / clean[mask])) for image in (shaded, made)]
    assert spread[1] < 0.35 * spread[0]
    np.testing.assert_allclose(np.median(made[mask]), np.median(shaded[mask]), rtol=1e-5)
    np.testing.assert_array_equal(made[:3], shaded[:3])
    np.testing.assert_array_equal(made, correct_bias(shaded, mask, AFFINE))


def test_zeros_and_few_slices_are_no_trouble(stack):
    clean, _, mask = stack
    image = clean.copy()
    image[30, 30:34] = 0
    assert np.isfinite(correct_bias(image, mask, AFFINE)).all()
    np.testing.assert_array_equal(correct_bias(0 * image, mask, AFFINE), 0 * image)
    thin = np.s_[:, :, 5:7]
    assert np.isfinite(denoise(image[thin], mask[thin], AFFINE)).all()
    assert np.isfinite(correct_bias(image[thin], mask[thin], AFFINE)).all()


def test_contrast_of_tissues_is_no_bias():
    """A bright middle in a dark rim, and no bias: N4 would flatten it by some percent, and is not trusted."""
    x, y, z = np.meshgrid(*(np.linspace(-1, 1, n) for n in (60, 64, 12)), indexing="ij")
    radius = np.sqrt(x**2 + y**2 + z**2)
    image = (500 + 60 * np.cos(9 * radius) + 40 * (y > 0.1)).astype(np.float32)
    made = correct_bias(image, radius < 0.6, AFFINE)
    assert np.std(np.log(made / image)[radius < 0.6]) < 0.01
    assert trusted_share(0.0) == trusted_share(FALSE_BIAS) == 0.0
