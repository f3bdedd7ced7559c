# SPDX-License-Identifier: Apache-2.0
"""The edge of volumes that were cut out by a mask: it is sharpened where there is a cut, and left alone elsewhere."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from gsbids.recon.sr import fit as fit_sr
from gsbids.recon.sr.choice import Deep, SrChoice, linear_solution, refine
from gsbids.recon.sr.edge import cut_copies, cut_volume, explains, learn_edge, sharpen_edge
from gsbids.recon.sr.fit import super_resolve
from gsbids.recon.sr.grid import grid_by_factor
from gsbids.recon.sr.options import Schedule, SrOptions
from gsbids.recon.sr.problem import SrProblem

OPTIONS = SrOptions(
    profile="trilinear", schedules=(Schedule(1.0, 1.0, 25),), members=1, trial_voxels=3000, nonlocal_steps=0
)
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


def sharpened(problem, found, copies=2):
    """The volume with a sharp edge, and whether that explains the data: the more copies, the better it is known."""
    copies = cut_copies(problem, found)[:copies]
    theirs = [linear(copy.problem) for copy in copies]
    model = learn_edge(copies, theirs)
    sharp, its = (sharpen_edge(p, x, x, model) for p, x in ((problem, found), (copies[0].problem, theirs[0])))
    return refine(problem, sharp, PLAIN), explains(problem, sharp, copies[0], its)


def test_a_cut_is_sharpened_and_stays_true_to_the_data():
    fine = brain_like()
    problem, _ = made_coarse(fine)
    found = linear(problem)
    assert sharpened(problem, found, copies=4)[1]
    sharp, _ = sharpened(problem, found)
    assert rms(sharp, fine) < 0.8 * rms(found, fine)
    tissue = fine > 0
    assert rms(sharp[tissue], fine[tissue]) < 0.8 * rms(found[tissue], fine[tissue])
    assert rms(problem.operator(sharp), problem.coarse) < 0.02


@pytest.mark.parametrize("soft", [0.7, 1.5])
def test_what_ends_softly_is_not_explained_by_a_cut(soft):
    problem, _ = made_coarse(brain_like(soft=soft))
    assert not sharpened(problem, linear(problem), copies=4)[1]


def test_a_cut_through_dark_fluid_does_no_harm():
    fine = brain_like(fluid=0.2)
    problem, _ = made_coarse(fine)
    found = linear(problem)
    assert rms(sharpened(problem, found)[0], fine) < 1.005 * rms(found, fine)


def test_a_cut_volume_has_tissue_or_nothing_at_its_edge():
    fine = brain_like()
    problem, _ = made_coarse(fine)
    found = linear(problem)
    cut = cut_volume(problem, found)
    edge = (fine > 0) & ~ndimage.binary_erosion(fine > 0)
    assert ((cut > 0) != (fine > 0)).sum() < 0.25 * edge.sum()
    assert (cut[edge & (cut > 0)] > 0.3).all()
    assert rms(cut[edge], fine[edge]) < 0.75 * rms(found[edge], fine[edge])


def test_copies_are_divided_otherwise_and_made_as_the_data_were():
    fine = brain_like()
    problem, _ = made_coarse(fine)
    found = linear(problem)
    copies = cut_copies(problem, found)
    assert len({copy.truth.tobytes() for copy in copies}) == len(copies) <= 7
    for copy in copies:
        assert not np.array_equal(copy.truth, cut_volume(problem, found))
        assert rms(problem.operator(copy.truth), copy.problem.coarse) < 0.01
        assert ((copy.problem.coarse != 0) == copy.problem.filled).all()


def test_copies_of_noisy_data_are_noisy():
    problem, _ = made_coarse(brain_like())
    found = linear(problem)
    noise = 0.05 * np.random.default_rng(1).standard_normal(problem.coarse.shape).astype(np.float32)
    noisy = replace(problem, coarse=problem.coarse + np.where(problem.filled, noise, 0))
    copy = cut_copies(noisy, found)[0]
    miss = (copy.problem.coarse - problem.operator(copy.truth))[copy.problem.filled]
    assert 0.045 < miss.std() < 0.055


def test_there_is_no_copy_without_an_edge():
    fine = brain_like()
    for volume in (fine + 0.1, np.pad(fine[31:33, 31:33, 27:29], 11)):
        problem, _ = made_coarse(volume)
        assert cut_copies(problem, linear(problem)) == []


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


def test_what_is_far_from_the_background_has_settings_of_its_own(monkeypatch):
    fine = brain_like()
    problem, grid = made_coarse(fine)
    options = replace(OPTIONS, sharp_edge=False, trial_voxels=100_000, nonlocal_steps=2, held_out=0.3)
    choice = fit_sr.choose(replace(problem, options=options))
    assert abs(sum(choice.deep.blend) - 1) < 1e-3
    assert fit_sr.choose(replace(made_coarse(fine + 0.1)[0], options=options)).deep is None
    far = ndimage.binary_erosion(fine > 0, iterations=8)
    errors = []
    for given in (choice, replace(choice, deep=None), replace(choice, deep=Deep((0.0, 0.0, 1.0), 0.1))):
        monkeypatch.setattr(fit_sr, "choose", lambda problem, given=given: given)
        errors.append(rms(super_resolve(problem.coarse, np.eye(4), grid, options).volume[far], fine[far]))
    assert errors[0] <= errors[1] * 1.001
    assert errors[0] < 0.95 * errors[2]
