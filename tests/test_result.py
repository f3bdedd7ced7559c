# SPDX-License-Identifier: Apache-2.0
"""The file of a reconstruction: masks as they were fitted, and files of versions that held none."""

import json
from dataclasses import replace

import numpy as np
import pytest
from qc_samples import NAMES, sample_result

from gsbids.imaging.stack import Stack
from gsbids.kernels import ops
from gsbids.recon.sample_field import sample_grid
from gsbids.recon.svr.result import SvrResult
from gsbids.recon.volume import sample as volume


@pytest.fixture
def masks():
    """Masks of three stacks of other sizes, the second left out."""
    rng = np.random.default_rng(0)
    return rng.random((5, 7, 3)) > 0.5, None, rng.random((4, 4, 9)) > 0.8


@pytest.fixture
def stacks():
    """Stacks with masks that hold everything."""
    shapes = ((5, 7, 3), (6, 6, 6), (4, 4, 9))
    return [
        Stack(name, np.ones(shape, np.float32), np.ones(shape, bool), np.eye(4), 1.0)
        for name, shape in zip(NAMES, shapes, strict=True)
    ]


def test_masks_come_back_from_the_file(masks, tmp_path):
    path = sample_result(masks=masks).save(tmp_path / "a.npz")
    found = SvrResult.load(path)
    assert found.masks[1] is None
    for one, other in zip(found.masks[::2], masks[::2], strict=True):
        assert one.dtype == bool
        np.testing.assert_array_equal(one, other)
    with np.load(path, allow_pickle=False) as data:
        assert data["mask_0"].nbytes == 14  # bits
        assert "mask_1" not in data
    assert found.save(tmp_path / "b.npz").read_bytes() == path.read_bytes()


def test_without_masks_stacks_stay_as_they_are(stacks, tmp_path):
    result = SvrResult.load(sample_result().save(tmp_path / "a.npz"))
    assert result.masks == ()
    assert result.as_fitted(stacks) is stacks


def test_files_of_versions_without_masks_are_read(tmp_path):
    with np.load(sample_result().save(tmp_path / "a.npz"), allow_pickle=False) as data:
        arrays = dict(data)
    header = json.loads(str(arrays["header"]))
    del header["masks"]
    np.savez(tmp_path / "old.npz", **(arrays | {"header": np.array(json.dumps(header))}))
    assert SvrResult.load(tmp_path / "old.npz").masks == ()


def test_stacks_get_the_masks_that_were_fitted(masks, stacks):
    found = sample_result(masks=masks).as_fitted(stacks)
    np.testing.assert_array_equal(found[0].mask, masks[0])
    assert found[1] is stacks[1]
    np.testing.assert_array_equal(found[2].mask, masks[2])
    assert found[2].image is stacks[2].image
    assert stacks[0].mask.all()
    with pytest.raises(ValueError, match="longer"):
        sample_result(masks=masks).as_fitted(stacks[:2])


def test_the_file_of_one_result_is_the_same_whatever_was_given(masks, tmp_path):
    result = sample_result(masks=masks)
    assert (
        result.save(tmp_path / "a.npz").read_bytes()
        == replace(result, masks=tuple(masks)).save(tmp_path / "b.npz").read_bytes()
    )


def test_volumes_are_rendered_with_the_cut_of_the_fit():
    """Fields that were fitted with another radius of the Gaussians are sampled with that one."""
    result = sample_result()
    short = replace(result, settings=result.settings | {"cut": 2.5})
    affine, shape = np.diag([2.0, 2.0, 2.0, 1.0]), (12, 12, 12)
    affine[:3, 3] = result.field.origin + result.field.mean.mean(0) - 11
    wanted = sample_grid(result.field, affine, shape, options=ops.RenderOptions(cut=2.5))[0]
    found = volume.sample_result(short, affine, shape)
    np.testing.assert_array_equal(found, np.maximum(wanted, 0) * result.intensity_scale + result.intensity_offset)
    assert not np.array_equal(found, volume.sample_result(result, affine, shape))
