# SPDX-License-Identifier: Apache-2.0
"""Noise of magnitude images: its distribution, its strength from air, and a result without its mean."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from gsbids.recon.sr.fit import super_resolve
from gsbids.recon.sr.grid import grid_by_factor
from gsbids.recon.sr.magnitude_noise import noise_of_air, rician_mean, signal_of, without_bias
from gsbids.recon.sr.options import SrOptions
from gsbids.recon.sr.quality import choice_rows, data_misfit

SIGMA = 20.0
FAST = SrOptions(quality="fast", profile="trilinear")


def head(shape=(40, 44, 36)) -> np.ndarray:
    """A head with folds of 300 to 900 in air."""
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    folds = 600 + 300 * np.tanh(3 * np.sin(12 * at[0]) * np.cos(9 * at[1] * (1 + at[2])))
    return ndimage.gaussian_filter(np.where((at**2).sum(0) < 0.6, folds, 0), 0.6)


def magnitude(signal, sigma, seed=0, channels=2):
    noise = sigma * np.random.default_rng(seed).standard_normal((channels, *signal.shape))
    noise[0] += signal
    return np.sqrt((noise**2).sum(0))


def test_the_mean_is_that_of_samples():
    for signal in (0.0, 0.5, 1.0, 2.0, 4.0, 8.0):
        seen = magnitude(np.full(2_000_000, signal), 1.0)
        assert rician_mean(np.array(signal)) == pytest.approx(seen.mean(), abs=5 * seen.std() / 2_000_000**0.5)


def test_the_signal_is_the_inverse_of_the_mean():
    signal = np.linspace(0, 20, 300)
    np.testing.assert_allclose(signal_of(rician_mean(signal)), signal, atol=1e-3)
    assert signal_of(np.array(1.0)) == 0


@pytest.mark.parametrize("sigma", [5.0, SIGMA, 60.0])
def test_noise_is_found_in_air(sigma):
    assert noise_of_air(magnitude(head(), sigma)) == pytest.approx(sigma, rel=0.02)


def gaussian(signal):
    return signal + 100 + SIGMA * np.random.default_rng(1).standard_normal(signal.shape)


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda x: x, id="clean"),
        pytest.param(lambda x: np.where(x > 1, magnitude(x, SIGMA), 0), id="masked"),
        pytest.param(gaussian, id="noise of another kind"),
        pytest.param(lambda x: magnitude(x, SIGMA, channels=8), id="sum of squares of four coils"),
        pytest.param(lambda x: ndimage.gaussian_filter(magnitude(x, SIGMA), 1.5), id="filtered"),
        pytest.param(lambda x: magnitude(x[14:26, 14:30, 12:24], SIGMA), id="no air in view"),
        pytest.param(lambda x: x[:4, :4, :4], id="tiny"),
    ],
)
def test_what_is_no_such_air_is_left_alone(make):
    assert noise_of_air(make(head())) == 0


def test_air_becomes_dark_and_tissue_stays():
    truth = head()
    seen = ndimage.gaussian_filter(magnitude(truth, SIGMA), 0.6)
    found = without_bias(seen.astype(np.float32), SIGMA)
    air, tissue = truth < 1, truth > 250
    assert seen[air].mean() > 1.2 * SIGMA
    assert found[air].mean() < 0.3 * SIGMA
    assert np.abs(found - seen)[tissue].max() < 0.1 * SIGMA
    assert found.min() >= 0


def test_super_resolution_takes_the_bias_out_and_says_so():
    coarse = magnitude(head(), SIGMA)
    grid = grid_by_factor(coarse.shape, np.eye(4), 2)
    said = []
    with_it = super_resolve(coarse, np.eye(4), grid, FAST, said.append)
    without = super_resolve(coarse, np.eye(4), grid, SrOptions(quality="fast", profile="trilinear", magnitude=False))
    air = np.kron(head() < 1, np.ones((2, 2, 2), bool))
    assert without.volume[air].mean() > 1.2 * SIGMA
    assert with_it.volume[air].mean() < 0.4 * SIGMA
    assert any("noise of a magnitude image" in line for line in said)
    row = dict(choice_rows(with_it))["Noise of air"]
    assert float(row.split()[1].rstrip(";")) == pytest.approx(SIGMA, rel=0.02)
    assert "magnitude_noise" not in without.settings
    # The data are compared with the mean of what such noise makes of the result: air is explained but for its noise.
    unaware = replace(with_it, settings={k: v for k, v in with_it.settings.items() if k != "magnitude_noise"})
    assert data_misfit(coarse, grid, FAST, with_it) < 0.75 * data_misfit(coarse, grid, FAST, unaware)


def test_the_linear_solution_knows_noise():
    truth = head()
    for sigma, expected in ((0.0, True), (60.0, False)):
        coarse = magnitude(truth, sigma) if sigma else truth
        found = super_resolve(coarse, np.eye(4), grid_by_factor(coarse.shape, np.eye(4), 2), FAST)
        blind = super_resolve(
            coarse,
            np.eye(4),
            grid_by_factor(coarse.shape, np.eye(4), 2),
            SrOptions(quality="fast", profile="trilinear", held_out=0.0),
        )
        assert np.array_equal(found.volume, blind.volume) == expected
