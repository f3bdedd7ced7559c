# SPDX-License-Identifier: Apache-2.0
"""Super-resolution: the operator against torch, the linear solution, the fit, and inputs of all kinds."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.errors import InputError
from gsbids.kernels.nonlocal_means import SEARCH, nonlocal_means
from gsbids.recon.sample_field import sample_grid
from gsbids.recon.sr.fit import super_resolve
from gsbids.recon.sr.grid import grid_by_factor, grid_by_shape, grid_by_spacing
from gsbids.recon.sr.interpolation import KERNELS, interpolate, interpolation_matrix
from gsbids.recon.sr.member import to_world
from gsbids.recon.sr.options import Schedule, SrOptions
from gsbids.recon.sr.problem import SrProblem
from gsbids.recon.sr.result import SrResult
from gsbids.recon.sr.sampling_operator import PROFILES, AxisGrid, SamplingOperator, profile_matrix
from gsbids.recon.sr.sobolev import bridge, sobolev

QUICK = SrOptions(
    profile="trilinear", schedules=(Schedule(1.0, 1.0, 20), Schedule(1.0, 1.0, 30)), members=1, trial_voxels=3000
)


def phantom(shape=(36, 40, 32)) -> np.ndarray:
    """A ball with folds on an empty background, in arbitrary units."""
    at = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij"))
    radius = np.sqrt((at**2).sum(0))
    folds = np.sin(14 * at[0]) * np.cos(11 * at[1]) + np.sin(9 * at[2] * (1 + at[0]))
    ball = (radius < 0.8) * (600 + 250 * np.tanh(4 * folds))
    return ndimage.gaussian_filter(ball.astype(np.float32), 0.6) * (radius < 0.9)


def axes_of(coarse, fine):
    return [AxisGrid.same_extent(m, n) for m, n in zip(coarse, fine, strict=True)]


def decimated(fine, coarse):
    return torch.nn.functional.interpolate(
        torch.from_numpy(fine)[None, None], size=coarse, mode="trilinear", align_corners=False
    )[0, 0].numpy()


def psnr(image, truth):
    return 10 * np.log10(truth.max() ** 2 / np.mean((image - truth) ** 2))


@pytest.mark.parametrize("coarse", [(18, 20, 16), (12, 13, 10), (15, 20, 21), (36, 40, 32)])
def test_decimation_is_torchs(coarse):
    fine = phantom()
    operator = SamplingOperator.of(axes_of(coarse, fine.shape), ["trilinear"] * 3)
    np.testing.assert_allclose(operator(fine), decimated(fine, coarse), atol=2e-5 * fine.max())


@pytest.mark.parametrize("profile", PROFILES)
def test_profiles_keep_what_is_constant_and_linear(profile):
    axis = AxisGrid.same_extent(10, 40)
    matrix = profile_matrix(axis, profile)
    np.testing.assert_allclose(matrix.sum(1), 1)
    if profile != "kspace":
        np.testing.assert_allclose(matrix[3:-3] @ axis.positions, np.arange(3, 7), atol=1e-9)


def test_profiles_have_their_widths():
    axis = AxisGrid.same_extent(11, 220)
    box, gauss = (profile_matrix(axis, p, 0.75)[5] for p in ("box", "gaussian"))
    assert np.sum(box * (axis.positions - 5) ** 2) == pytest.approx(0.75**2 / 12, rel=0.01)
    half = axis.positions[gauss > 0.5 * gauss.max()]
    assert half.max() - half.min() == pytest.approx(0.75, abs=0.06)
    wave = np.cos(2 * np.pi * 2 * (axis.positions + 0.5) / 11)
    kept = profile_matrix(axis, "kspace") @ wave
    np.testing.assert_allclose(kept, np.cos(2 * np.pi * 2 * (np.arange(11) + 0.5) / 11), atol=1e-9)
    lost = profile_matrix(axis, "kspace") @ np.cos(2 * np.pi * 8 * (axis.positions + 0.5) / 11)
    np.testing.assert_allclose(lost, 0, atol=1e-9)


@pytest.mark.parametrize(("coarse", "narrow"), [(67, False), (68, False), (56, False), (45, True), (44, True)])
def test_narrow_profiles_are_known_at_odd_sizes(coarse, narrow):
    fine = (135, 135, 135)
    problem = SrProblem.pose(
        np.ones((coarse,) * 3, np.float32), axes_of((coarse,) * 3, fine), SrOptions(profile="trilinear")
    )
    assert (problem.forward_model()[1] is None) == narrow


def test_there_is_no_such_profile():
    with pytest.raises(InputError, match=r"'sinc'.*trilinear"):
        profile_matrix(AxisGrid.same_extent(4, 8), "sinc")


def test_projection_is_exact_and_never_farther_from_the_truth():
    truth = phantom()
    operator = SamplingOperator.of(axes_of((15, 20, 21), truth.shape), ["trilinear", "box", "gaussian"])
    coarse, guess = operator(truth), truth + 40 * np.random.default_rng(0).standard_normal(truth.shape).astype("f4")
    found = operator.project(guess, coarse)
    np.testing.assert_allclose(operator(found), coarse, atol=2e-3 * truth.max())
    assert np.sum((found - truth) ** 2) < np.sum((guess - truth) ** 2)


def test_weighted_projection_solves_its_normal_equations():
    rng = np.random.default_rng(1)
    operator = SamplingOperator.of(axes_of((5, 4, 3), (10, 8, 9)), ["box"] * 3)
    guess, coarse = rng.standard_normal((10, 8, 9)), rng.standard_normal((5, 4, 3))
    found = operator.project(guess, coarse, 0.3)
    balance = (found - guess) - operator.transpose(coarse - operator(found)) / 0.3
    assert np.abs(balance).max() < 1e-4 * np.abs(found - guess).max()
    assert np.abs(operator(found) - coarse).mean() > 0.05  # it does not trust noisy data wholly


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("fine", [52, 60, 78])
def test_interpolation_is_aligned(kernel, fine):
    axis = AxisGrid.same_extent(26, fine)
    found = interpolation_matrix(axis, kernel) @ np.arange(26.0)
    tolerance = {"nearest": 0.5, "lanczos": 0.05}.get(kernel, 1e-4)  # half a voxel off would be 0.25
    assert np.abs(found - axis.positions)[fine // 3 : -fine // 3].max() < tolerance


def test_interpolation_goes_along_all_axes():
    axes = axes_of((12, 10, 9), (24, 30, 18))
    wave = [np.cos(np.pi * (np.arange(n) + 0.5) / n) for n in (12, 10, 9)]
    wanted = [np.cos(np.pi * (a.positions + 0.5) / a.coarse) for a in axes]
    found = interpolate(np.einsum("i,j,k", *wave), axes)
    np.testing.assert_allclose(found, np.einsum("i,j,k", *wanted), atol=0.01)


def test_sobolev_is_true_to_the_data_and_beats_the_spline():
    truth = phantom()
    axes = axes_of((18, 20, 16), truth.shape)
    operator = SamplingOperator.of(axes, ["trilinear"] * 3)
    coarse = operator(truth)
    found = sobolev(coarse, operator)
    assert np.abs(operator(found) - coarse).max() < 0.01 * coarse.max()
    assert psnr(found, truth) > psnr(interpolate(coarse, axes), truth) + 0.3
    smooth = sobolev(coarse, operator, noise=1.0)
    assert np.std(np.diff(smooth, axis=0)) < np.std(np.diff(found, axis=0))


def test_bridging_predicts_what_is_hidden():
    volume = phantom()[::2, ::2, ::2]
    hidden = np.random.default_rng(0).random(volume.shape) < 0.1
    found = bridge(volume, hidden)
    assert (found[~hidden] == volume[~hidden]).all()
    assert np.std((found - volume)[hidden]) < 0.4 * np.std(volume[hidden])
    changed = np.where(hidden, 1e4, volume).astype(np.float32)
    np.testing.assert_array_equal(bridge(changed, hidden), found)  # it has not looked


def test_nonlocal_means_is_its_formula():
    volume = np.random.default_rng(0).random((9, 8, 10)).astype(np.float32)
    strength, edge = 0.3, SEARCH + 1
    padded = np.pad(volume, edge, mode="symmetric").astype(float)
    for at in ((0, 0, 0), (4, 3, 5), (8, 7, 9)):
        a, b, c = np.array(at) + edge
        patch = padded[a - 1 : a + 2, b - 1 : b + 2, c - 1 : c + 2]
        total, weight = padded[a, b, c], 1.0
        for i, j, k in np.ndindex((2 * SEARCH + 1,) * 3):
            u, v, w = a + i - SEARCH, b + j - SEARCH, c + k - SEARCH
            if (u, v, w) != (a, b, c):
                d = np.mean((patch - padded[u - 1 : u + 2, v - 1 : v + 2, w - 1 : w + 2]) ** 2)
                like = max(0.0, 1 - d / (8 * strength**2)) ** 8
                total, weight = total + like * padded[u, v, w], weight + like
        assert nonlocal_means(volume, strength)[at] == pytest.approx(total / weight, rel=1e-4)
    inside = np.zeros(volume.shape, bool)
    inside[2:5, 2:5, 2:5] = True
    part = nonlocal_means(volume, strength, inside)
    assert (part[~inside] == volume[~inside]).all()
    assert (part[inside] != volume[inside]).all()


def test_grids_are_aligned_with_the_field_of_view():
    affine = np.array([[0, -2.0, 0, 5], [1.5, 0, 0, -7], [0, 0, 3, 1], [0, 0, 0, 1]])
    grid = grid_by_factor((10, 12, 7), affine, (2, 3, 1))
    assert grid.shape == (20, 36, 7)
    corner = [-0.5, -0.5, -0.5, 1]
    np.testing.assert_allclose(grid.affine @ corner, affine @ corner)
    np.testing.assert_allclose(np.linalg.norm(grid.affine[:3, :3], axis=0), [0.75, 2 / 3, 3])
    finer = grid_by_spacing((10, 12, 7), affine, 1.0)
    np.testing.assert_allclose(np.linalg.norm(finer.affine[:3, :3], axis=0), 1)
    middle = (affine @ [4.5, 5.5, 3, 1])[:3]
    np.testing.assert_allclose((finer.affine @ [*(np.array(finer.shape) - 1) / 2, 1])[:3], middle)


@pytest.mark.parametrize(
    ("make", "value", "words"),
    [
        (grid_by_factor, 0.5, "factor is"),
        (grid_by_factor, 40, "at most 16"),
        (grid_by_spacing, 9.0, "not finer"),
        (grid_by_spacing, -1.0, "positive"),
        (grid_by_shape, (8, 9, 20), "coarser"),
    ],
)
def test_grids_that_cannot_be(make, value, words):
    with pytest.raises(InputError, match=words):
        make((10, 10, 10), np.diag([2.0, 2, 2, 1]), value)


@pytest.fixture(scope="module")
def doubled():
    truth = phantom()
    coarse = decimated(truth, (18, 20, 16))
    affine = np.array([[0, -2.0, 0, 5], [2, 0, 0, -7], [0, 0, 2, 1], [0, 0, 0, 1.0]])
    grid = grid_by_factor(coarse.shape, affine, 2)
    return truth, coarse, affine, grid, super_resolve(coarse, affine, grid, QUICK)


def test_it_is_better_than_both_linear_solutions(doubled):
    truth, coarse, _, grid, result = doubled
    spline = np.maximum(interpolate(coarse, grid.axes), 0)
    operator = SamplingOperator.of(grid.axes, ["trilinear"] * 3)
    assert psnr(result.volume, truth) > psnr(spline, truth) + 1.0
    assert psnr(result.volume, truth) > psnr(np.maximum(sobolev(coarse, operator), 0), truth) + 0.3
    assert result.volume[0, 0, 0] == 0
    assert sum(result.settings["choice"]["blend"].values()) == pytest.approx(1, abs=1e-3)
    assert result.history["loss"][-1] < 0.1 * result.history["loss"][0]


def test_the_fields_stand_in_the_world(doubled):
    _, _, _, grid, result = doubled
    image, weight = sample_grid(result.fields[0], grid.affine, grid.shape)
    seen = (weight > 0.5) & (result.volume > 0)
    assert np.corrcoef(image[seen] * result.intensity_scale, result.volume[seen])[0, 1] > 0.97


def test_a_world_field_has_the_covariance_of_its_map():
    from gsbids.recon.field import GaussianField

    rng = np.random.default_rng(0)
    q = rng.standard_normal((5, 4))
    q /= np.linalg.norm(q, axis=1, keepdims=True)
    field = GaussianField(rng.normal(size=(5, 3)), rng.normal(size=(5, 3)), q, np.ones(5), np.zeros(5), np.zeros(3))
    affine = np.array([[1, 0.2, 0, 3], [0, -2, 0.1, 4], [0, 0, 4, 5], [0, 0, 0, 1.0]])  # left-handed and sheared
    found = to_world(field, affine)

    def covariance(f):
        turned = Rotation.from_quat(f.quaternion, scalar_first=True).as_matrix()
        root = turned * np.exp(f.log_scale.astype(float))[:, None]
        return root @ np.swapaxes(root, 1, 2)

    linear = affine[:3, :3]
    np.testing.assert_allclose(covariance(found), linear @ covariance(field) @ linear.T, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(found.mean + found.origin, field.mean @ linear.T + affine[:3, 3], atol=1e-5)


def test_the_fine_volume_is_not_looked_at(doubled):
    truth, _, affine, grid, result = doubled
    fine = truth.copy()
    coarse = decimated(fine, (18, 20, 16))
    fine[:] = np.nan  # nothing is left of it
    again = super_resolve(coarse, affine, grid, QUICK)
    np.testing.assert_array_equal(again.volume, result.volume)
    assert again.settings == result.settings


def test_units_and_place_do_not_matter(doubled):
    _, coarse, affine, _, result = doubled
    moved = affine.copy()
    moved[:3] *= 0.5
    moved[:3, 3] += 1000
    other = super_resolve(4 * coarse, moved, grid_by_factor(coarse.shape, moved, 2), QUICK)
    np.testing.assert_allclose(other.volume, 4 * result.volume, rtol=1e-5, atol=1e-2)


def test_the_model_file_gives_the_result_back(doubled, tmp_path):
    result = doubled[-1]
    again = SrResult.load(result.save(tmp_path / "model.npz"))
    assert (again.history, again.share) == (result.history, result.share)
    np.testing.assert_array_equal(again.volume, result.volume)
    np.testing.assert_array_equal(again.fields[0].mean, result.fields[0].mean)
    assert [p.name for p in tmp_path.iterdir()] == ["model.npz"]


def test_thick_slices_and_narrow_profiles():
    truth = phantom((24, 24, 48))
    axes = axes_of((24, 24, 12), truth.shape)
    operator = SamplingOperator.of(axes, ["trilinear", "trilinear", "gaussian"])
    coarse = operator(truth)
    grid = grid_by_factor(coarse.shape, np.diag([1.0, 1, 4, 1]), (1, 1, 4))
    options = SrOptions(profile="gaussian", schedules=QUICK.schedules, members=1)
    found = super_resolve(coarse, np.diag([1.0, 1, 4, 1]), grid, options)
    assert psnr(found.volume, truth) > psnr(interpolate(coarse, axes), truth) + 0.3


@pytest.mark.parametrize(
    "data",
    [
        np.zeros((6, 7, 5)),
        np.full((6, 7, 5), 3.0),
        np.full((6, 7, 5), -3.0),
        np.ones((1, 1, 1)),
        np.random.default_rng(0).integers(-50, 99, (5, 6, 3, 1)),
        np.arange(12.0).reshape(3, 4, 1),
    ],
)
def test_odd_volumes(data):
    shape = (*data.shape, 1)[:3]
    found = super_resolve(data, np.eye(4), grid_by_factor(shape, np.eye(4), 2), QUICK)
    assert found.volume.shape == tuple(2 * n for n in shape)
    assert np.isfinite(found.volume).all()
    assert abs(found.volume.mean() - data.mean()) < 0.05 * (np.ptp(data) + 1e-3)


def test_values_that_are_not_finite_count_as_nothing():
    data = phantom((12, 12, 12)).astype(np.float64)
    data[0, 0, 0], data[3, 3, 3] = np.nan, np.inf
    found = super_resolve(data, np.eye(4), grid_by_factor(data.shape, np.eye(4), 2), QUICK)
    assert np.isfinite(found.volume).all()
    assert found.volume.max() < 2000


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (np.zeros((4, 4, 4, 2)), "one volume"),
        (np.full((4, 4, 4), np.nan), "finite"),
        (np.zeros((4, 4, 5)), "made for"),
        (np.zeros((4, 4, 4), complex), "real numbers"),
    ],
)
def test_volumes_that_cannot_be_used(data, words):
    with pytest.raises(InputError, match=words):
        super_resolve(data, np.eye(4), grid_by_factor((4, 4, 4), np.eye(4), 2), QUICK)
