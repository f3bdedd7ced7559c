# SPDX-License-Identifier: Apache-2.0
"""The paper's own fit: where it starts, what it renders, that it reconstructs, and how it is chosen."""

import dataclasses
import json

import numpy as np
import pytest
from conftest import ball_stack, write_nifti
from scipy import ndimage
from test_recon import RADIUS, STILL, gauge, moving_stacks

from gsbids.errors import InputError
from gsbids.imaging.nifti import save_image
from gsbids.interfaces.reconstruct import FitSvr
from gsbids.interfaces.sample_volume import SampleVolume
from gsbids.recon.fitting import outliers
from gsbids.recon.fitting.options import SvrOptions
from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.sample_field import sample_grid
from gsbids.recon.svr.fit import fit_svr
from gsbids.recon.svr_paper import top_k
from gsbids.recon.svr_paper.fit import PaperOptions, fit_paper, initial_field, slice_weights
from gsbids.recon.volume.sample import output_grid, sample_result, simulate_stack
from gsbids.simulate.compare import average_of_stacks

QUICK = PaperOptions(iterations=120, n_gaussians=900, neighbours=32, index_every=20, threads=2)
SHORT = dataclasses.replace(QUICK, iterations=6)


@pytest.fixture(scope="module")
def moving():
    """Field, stacks, their reconstruction, and their true motion."""
    field, stacks, motions = moving_stacks()
    return field, stacks, fit_paper(stacks, STILL, QUICK), motions


def error_in_brain(field, volume, affine, to_result):
    """RMS difference to the truth inside the brain after the best gain and offset, over the truth's deviation."""
    grid = np.diag([1.5, 1.5, 1.5, 1.0])
    shape = tuple(np.ceil(2 * RADIUS / 1.5).astype(int))
    grid[:3, 3] = -1.5 * (np.array(shape) - 1) / 2
    index = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    inside = (((index * 1.5 + grid[:3, 3]) / (RADIUS - 2)) ** 2).sum(-1) < 1
    truth = sample_grid(field, grid, shape)[0][inside]
    to_voxel = np.linalg.inv(affine) @ to_result @ grid
    seen = ndimage.map_coordinates(volume, to_voxel[:3, :3] @ index[inside].T + to_voxel[:3, 3:], order=1)
    slope, offset = np.polyfit(seen, truth, 1)
    return float(np.sqrt(np.mean((slope * seen + offset - truth) ** 2)) / truth.std())


def test_it_beats_the_average_and_standing_still(moving, tmp_path):
    field, stacks, result, motions = moving
    files = [
        [save_image(tmp_path / f"{kind}_{s.name}.nii.gz", getattr(s, kind), s.affine, dtype) for s in stacks]
        for kind, dtype in (("image", "float32"), ("mask", "uint8"))
    ]
    average = error_in_brain(field, *average_of_stacks(*files, 1.0), np.eye(4))
    still = fit_paper(stacks, STILL, dataclasses.replace(QUICK, motion_correction=False))
    np.testing.assert_allclose(still.motion.translation, still.nominal.translation, atol=1e-9)
    errors = []
    for each in (result, still):
        affine, shape = output_grid(stacks, each, 1.0)
        errors.append(error_in_brain(field, sample_result(each, affine, shape), affine, gauge(stacks, motions, each)))
    assert errors[0] < 0.8 * min(errors[1], average)
    assert result.history["loss"][-1] < 0.5 * result.history["loss"][0]


def test_stacks_are_simulated_with_its_own_renderer(moving):
    _, stacks, result, _ = moving
    row = np.flatnonzero(result.stack_index == 1)[5]
    k = result.slice_index[row]
    simulated, stack = simulate_stack(result, stacks[1], 1)[:, :, k], stacks[1]
    ncc = outliers.slice_ncc(stack.image[None, :, :, k], simulated[None], stack.mask[None, :, :, k])
    assert ncc[0] == pytest.approx(result.ncc[row], abs=1e-4)


def test_gaussians_start_at_edges_with_the_intensity_of_their_pixel(moving):
    slices = SliceSet.from_stacks(moving[1], STILL)
    field = initial_field(slices, dataclasses.replace(QUICK, n_gaussians=300))
    steep = 0
    for mean, intensity in zip(field.mean, field.intensity, strict=True):
        local = np.einsum("sba,sb->sa", slices.start.rotation, mean - slices.start.translation)
        index = local[:, :2] / slices.spacing + slices.centre
        exact = (np.abs(local[:, 2]) < 1e-3) & (np.abs(index - np.rint(index)) < 1e-3).all(1)
        pixels = [
            (s, *np.rint(index[s]).astype(int))
            for s in np.flatnonzero(exact)
            if (index[s] > -0.5).all() and (index[s] < np.array(slices.values.shape[1:]) - 0.5).all()
        ]
        found = [p for p in pixels if slices.values[p] == intensity]
        assert found
        steep += np.hypot(*(g[found[0][1:]] for g in np.gradient(slices.values[found[0][0]])))
    inside = np.hypot(*np.gradient(slices.values, axis=(1, 2)))[
        np.array([ndimage.binary_erosion(m) for m in slices.mask])
    ]
    assert steep / 300 > 1.2 * inside.mean()


def test_more_neighbours_than_gaussians_is_all_of_them(moving):
    field, _, _, _ = moving
    few = field.replace(**{k: getattr(field, k)[:20] for k in field.ARRAYS if k != "origin"})
    where = np.random.default_rng(0).uniform(-15, 15, (500, 3))
    blur = np.array([[0.3, 0, 0, 0.3, 0, 1.6]])
    everything = top_k.render_field(few, where, 20, blur)
    np.testing.assert_array_equal(top_k.render_field(few, where, 64, blur), everything)
    assert np.abs(top_k.render_field(few, where, 3, blur) - everything).max() > 1e-3
    result = fit_paper(moving[1], STILL, dataclasses.replace(SHORT, n_gaussians=12))
    assert len(result.field) == 12
    assert np.isfinite(result.ncc).all()


def test_two_slices_are_fitted_and_one_is_refused(moving):
    stack = moving[1][0]
    middle = stack.image.shape[2] // 2
    for count in (1, 2):
        mask = np.zeros_like(stack.mask)
        mask[:, :, middle : middle + count] = stack.mask[:, :, middle : middle + count]
        given = [dataclasses.replace(stack, mask=mask)]
        if count == 1:
            with pytest.raises(InputError, match="needs slices with brain"):
                fit_paper(given, STILL[:1], SHORT)
        else:
            result = fit_paper(given, STILL[:1], SHORT)
            assert len(result.ncc) == 2
            assert np.isfinite(result.field.mean).all()


def test_slice_weights_spot_the_bad_slice_and_never_most_of_them():
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(11), 200)
    residual = rng.uniform(0.05, 0.07, len(owner))
    residual[owner == 4] = 0.5
    weight = slice_weights(residual, owner)
    # The deviation has its floor here: z = (0.5 - 0.06) / 0.02.
    assert weight[4] == pytest.approx(np.exp(-0.5 * (22 / 4) ** 2), rel=0.1)
    assert np.delete(weight, 4).min() > 0.99
    residual[:] = np.repeat(np.r_[np.zeros(5), np.full(6, 9.0)], 200)
    np.testing.assert_allclose(slice_weights(residual, owner), 1)


def test_options_change_what_they_say(moving):
    _, stacks, _, _ = moving
    base = fit_paper(stacks, STILL, SHORT)
    np.testing.assert_allclose(base.field.log_scale.mean(), 0.5, atol=0.2)
    assert base.gain.std() > 0
    changes = {
        "psf": False,
        "slice_gain": False,
        "edge_share": 0.0,
        "scale_target": 1.0,
        "index_every": 3,
        "weight_decay": 0.5,
        "neighbours": 8,
    }
    for name, value in changes.items():
        other = fit_paper(stacks, STILL, dataclasses.replace(SHORT, **{name: value}))
        assert other.settings[name] == value
        assert not np.array_equal(other.field.intensity, base.field.intensity), name


def test_same_bits_with_other_threads(moving):
    _, stacks, _, _ = moving
    one, two = (fit_paper(stacks, STILL, dataclasses.replace(SHORT, threads=n)) for n in (1, 2))
    for key in one.field.ARRAYS:
        np.testing.assert_array_equal(getattr(one.field, key), getattr(two.field, key))
    np.testing.assert_array_equal(one.motion.rotation, two.motion.rotation)


ONE_STAGE = SvrOptions(iterations=6, doublings=0, members=1, place=False, threads=2)


@pytest.mark.parametrize(("fit", "options"), [(fit_paper, SHORT), (fit_svr, ONE_STAGE)])
def test_a_fit_can_be_watched(moving, fit, options):
    _, stacks, _, _ = moving
    seen = []

    def observe(iteration, result):
        if iteration in (2, 6):
            seen.append(result())

    result = fit(stacks, STILL, options, observe=observe)
    assert [len(each.history["loss"]) for each in seen] == [2, 6]
    np.testing.assert_array_equal(seen[1].field.mean, result.field.mean)
    np.testing.assert_array_equal(seen[1].motion.translation, result.motion.translation)
    assert not np.array_equal(seen[0].field.intensity, result.field.intensity)


def test_poses_of_slices_can_be_given(moving):
    _, stacks, _, _ = moving
    depth = max(stack.image.shape[2] for stack in stacks)
    each = np.tile(np.eye(4), (3, depth, 1, 1))
    each[1, 7, :3, 3] = [1, 2, 3]
    slices, still = SliceSet.from_stacks(stacks, each), SliceSet.from_stacks(stacks, STILL)
    apart = slices.start.translation + slices.origin - still.start.translation - still.origin
    moved = (slices.stack_index == 1) & (slices.slice_index == 7)
    assert moved.sum() == 1
    np.testing.assert_allclose(apart[moved], [[1, 2, 3]])
    np.testing.assert_allclose(apart[~moved], 0, atol=1e-9)


def test_the_node_takes_the_method(tmp_path):
    files, masks = [], []
    for run in (1, 2):
        image, mask, affine = ball_stack(run)
        files.append(str(write_nifti(tmp_path / f"{run}.nii.gz", image, affine)))
        masks.append(str(write_nifti(tmp_path / f"{run}_mask.nii.gz", mask, affine)))
    given = {"in_files": files, "in_masks": masks, "names": ["a", "b"], "thicknesses": [3.5, 3.5]}
    (tmp_path / "registration.json").write_text(json.dumps({"transforms": STILL[:2].tolist()}))
    node = FitSvr(
        registration=str(tmp_path / "registration.json"),
        method="paper",
        options={"iterations": 3, "n_gaussians": 200},
        **given,
    )
    fitted = node.run(cwd=str(tmp_path)).outputs.out_file
    volume = SampleVolume(result=fitted, resolution=2.0, **given).run(cwd=str(tmp_path)).outputs
    assert volume.facts["NumberOfGaussians"] == 200
    with np.load(fitted) as data:
        assert json.loads(str(data["header"]))["settings"]["method"] == "paper"
