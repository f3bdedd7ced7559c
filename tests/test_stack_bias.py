# SPDX-License-Identifier: Apache-2.0
"""The smooth bias that stacks have unlike one another."""

from dataclasses import replace

import numpy as np
import pytest
from test_recon import QUICK, STILL, acquire, brain

from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.fitting.stack_bias import BiasBasis, fit_bias, lattice
from gsbids.recon.svr.fit import fit_svr
from gsbids.recon.svr.result import SvrResult
from gsbids.recon.volume.sample import simulate_stack


@pytest.fixture(scope="module")
def still():
    return [acquire(brain(), orientation, noise=0.02) for orientation in ("axial", "coronal", "sagittal")]


def test_bias_of_stacks_is_found_without_what_they_share(still):
    slices = SliceSet.from_stacks(still[:2], STILL[:2])
    shape, index = slices.values.shape[1:], slices.stack_index
    nodes = lattice(slices.nominal, slices.reach)
    basis = BiasBasis.seen(nodes, slices.nominal, slices.spacing, slices.centre, shape)
    along = (np.arange(shape[0]) - slices.centre[:, :1]) * slices.spacing[:, :1] / 40
    true = np.exp(np.where(index[:, None] == 0, 1, -1) * 0.3 * along)[:, :, None] * np.ones(shape)
    shared = np.exp(0.2 * (slices.nominal.translation[:, 2] / 20))[:, None, None]
    weight = slices.mask.astype(np.float32)
    noise = np.random.default_rng(0).normal(0, 0.02, slices.values.shape)
    found = fit_bias(basis, index, (slices.values * true * shared + noise, slices.values, weight), slices.spacing[0])
    np.testing.assert_allclose(found.sum(0), 0, atol=1e-12)
    inside = slices.mask & (index == 0)[:, None, None]
    left = np.log(basis.factor(found[index]) / true)[inside]
    # This brain is narrower than one Gaussian: half of its gradient falls to the pull to no bias.
    assert np.std(left) < 0.55 * np.std(np.log(true)[inside])
    none = fit_bias(basis, index, (slices.values * shared + noise, slices.values, weight), slices.spacing[0])
    assert np.abs(np.log(basis.factor(none[index]))[slices.mask]).mean() < 0.02


def test_whole_slices_have_the_bias_of_the_cropped_ones(still, tmp_path):
    gradient = np.exp(0.3 * np.linspace(-1, 1, still[0].image.shape[0])).astype(np.float32)
    biased = [replace(still[0], image=still[0].image * gradient[:, None, None]), *still[1:]]
    with_bias, without = (fit_svr(biased, STILL, replace(QUICK, stack_bias=on)) for on in (True, False))
    assert without.bias is None
    row = np.flatnonzero(with_bias.stack_index == 0)
    shape, spacing = biased[0].image.shape[:2], biased[0].spacing[:2]
    found = with_bias.bias.of_slices(0, with_bias.nominal[row], spacing, shape)[len(row) // 2].mean(1)
    assert np.corrcoef(np.log(found), np.log(gradient))[0, 1] > 0.95
    left = [
        np.abs(simulate_stack(result, biased[0], 0) - biased[0].image)[biased[0].mask].mean()
        for result in (with_bias, without)
    ]
    assert left[0] < 0.8 * left[1]
    loaded = SvrResult.load(with_bias.save(tmp_path / "a.npz"))
    np.testing.assert_array_equal(simulate_stack(loaded, biased[0], 0), simulate_stack(with_bias, biased[0], 0))
