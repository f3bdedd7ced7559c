# SPDX-License-Identifier: Apache-2.0
"""The edge of volumes that were cut out by a mask: it is sharpened where there is a cut, and left alone elsewhere."""

import numpy as np
from scipy import ndimage

from gsbids.recon.fit_sr import super_resolve
from gsbids.recon.sr_choice import SrChoice, linear_solution, refine
from gsbids.recon.sr_edge import cut_copy, ends_at_cut, learn_edge, sharpen_edge
from gsbids.recon.sr_grid import grid_by_factor
from gsbids.recon.sr_options import Schedule, SrOptions
from gsbids.recon.sr_problem import SrProblem

OPTIONS = SrOptions(profile="trilinear", schedules=(Schedule(1.0, 1.0, 25),), members=1, trial_voxels=3000,
                    nonlocal_steps=0)
PLAIN = SrChoice(None, (0.0, 1.0, 0.0), 0.0, 0.0, 0.0, {})


def brain_like(soft=0.0, fluid=1.0) -> np.ndarray:
    """A lumpy body of smooth tissue, cut out; ``soft`` voxels of ramp; ``fluid`` dims what is outside."""
    rng = np.random.default_rng(3)
    shape = (64, 60, 56)
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    lumps = ndimage.gaussian_filter(rng.standard_normal(shape), 3)
    tissue = 0.7 + 0.15 * ndimage.gaussian_filter(rng.standard_normal(shape), 2) / 0.05 * 0.3
    body = np.sqrt((at**2).sum(0)) < 0.72 + 0.3 * lumps / lumps.std() * 0.3
    depth = ndimage.distance_transform_edt(body)
    tissue = np.where(depth < 5, fluid * tissue, tissue)
    mask = ndimage.gaussian_filter(body.astype(float), soft, truncate=3) if soft else body
    return (tissue * np.where(mask < 0.02, 0, mask)).astype(np.float32)


def linear(problem):
    return refine(problem, linear_solution(problem, 0.0), PLAIN)


def made_coarse(fine):
    """Problem of a volume half as fine."""
    grid = grid_by_factor([n // 2 for n in fine.shape], np.eye(4), 2)
    problem = SrProblem.pose(np.zeros([n // 2 for n in fine.shape], np.float32), grid.axes, OPTIONS)
    return SrProblem.pose(problem.operator(fine), grid.axes, OPTIONS), grid


def rms(a, b):
    return float(np.sqrt(np.mean((a - b) ** 2)))


def test_a_cut_is_sharpened_and_stays_true_to_the_data():
    fine = brain_like()
    problem, _ = made_coarse(fine)
    found = linear(problem)
    copy = cut_copy(problem)
    curve = learn_edge(copy, linear)
    assert ends_at_cut(problem, copy, linear)
    sharp = refine(problem, sharpen_edge(problem, found, curve), PLAIN)
    assert rms(sharp, fine) < 0.93 * rms(found, fine)
    assert rms(problem.operator(sharp), problem.coarse) < 0.02
    shares = np.linspace(0, 1.5, 40)
    assert (np.diff(curve(shares)) >= -1e-6).all()
    np.testing.assert_allclose(curve(np.array([0.0, 1.2])), [0.0, 1.2], atol=0.02)


def test_what_ends_softly_is_no_cut():
    problem, _ = made_coarse(brain_like(soft=1.5))
    assert not ends_at_cut(problem, cut_copy(problem), linear)


def test_a_cut_through_dark_fluid_does_no_harm():
    fine = brain_like(fluid=0.2)
    problem, _ = made_coarse(fine)
    found = linear(problem)
    sharp = refine(problem, sharpen_edge(problem, found, learn_edge(cut_copy(problem), linear)), PLAIN)
    assert rms(sharp, fine) < 1.005 * rms(found, fine)


def test_there_is_no_copy_without_an_edge():
    fine = brain_like()
    assert cut_copy(made_coarse(fine + 0.1)[0]) is None
    assert cut_copy(made_coarse(fine[20:40, 20:40, 36:])[0]) is None


def test_super_resolution_sharpens_the_edge_and_says_so():
    fine = brain_like()
    problem, grid = made_coarse(fine)
    errors, words = {}, []
    for wanted in (True, False):
        options = SrOptions(**{**vars(OPTIONS), "sharp_edge": wanted})
        found = super_resolve(problem.coarse, np.eye(4), grid, options, words.append)
        errors[wanted] = rms(found.volume, fine)
        assert found.settings["choice"]["edge"] is wanted
    assert errors[True] < 0.95 * errors[False]
    assert any("edge is sharpened" in line for line in words)
