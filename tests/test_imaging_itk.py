# SPDX-License-Identifier: Apache-2.0
"""ITK files: the convention, checked by antspyx itself."""

import numpy as np
import pytest
from scipy import ndimage
from scipy.spatial.transform import Rotation

from gsbids.errors import InputError
from gsbids.imaging.bias import load_ants
from gsbids.imaging.itk import read_itk_transforms, write_itk_transforms
from gsbids.imaging.nifti import save_image


def rigid(degrees, shift):
    move = np.eye(4)
    move[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    move[:3, 3] = shift
    return move


def test_round_trip_and_bytes(tmp_path):
    moves = np.array([rigid((10, 20, -30), (1, 2, 3)), np.eye(4), rigid((0, 5, 0), (-9, 0, 4))])
    path = write_itk_transforms(tmp_path / "a.txt", moves)
    np.testing.assert_allclose(read_itk_transforms(path), moves, atol=1e-12)
    assert write_itk_transforms(tmp_path / "b.txt", moves).read_bytes() == path.read_bytes()
    assert path.read_text().count("#Transform") == 3
    (tmp_path / "c.txt").write_text("nothing\n")
    with pytest.raises(InputError, match="no ITK transform"):
        read_itk_transforms(tmp_path / "c.txt")


def test_antspyx_puts_an_acquired_slice_where_it_belongs(tmp_path):
    """Slices of a moving anatomy, each put back by its own transform from one file of several."""
    shape, step = (40, 44, 36), 1.5
    volume_affine = np.diag([step, step, step, 1.0])
    volume_affine[:3, 3] = -step * (np.array(shape) - 1) / 2
    anatomy = 100 + 50 * ndimage.gaussian_filter(np.random.default_rng(2).normal(size=shape), 3) * 60
    # An oblique left-handed stack of 5 slices.
    stack_affine = rigid((12, -8, 20), (3, -2, 1)) @ np.diag([-1.2, 1.2, 3.0, 1.0])
    stack_shape = (30, 30, 5)
    stack_affine[:3, 3] -= stack_affine[:3, :3] @ ((np.array(stack_shape) - 1) / 2)
    moves = np.array([rigid((4 * k, -3 * k, 2 * k), (k, -2 * k, 1.5 * k)) for k in range(5)])
    path = write_itk_transforms(tmp_path / "slices.txt", moves)

    pixels = np.indices(stack_shape[:2]).reshape(2, -1)
    k = 3
    index = np.vstack([pixels, np.full(pixels.shape[1], k), np.ones(pixels.shape[1])])
    seen = np.linalg.inv(volume_affine) @ moves[k] @ stack_affine @ index
    acquired = ndimage.map_coordinates(anatomy, seen[:3], order=1, mode="nearest").reshape(stack_shape[:2])
    # The slice as a block of three equal planes, so that linear interpolation finds neighbours.
    block = np.repeat(acquired[..., None], 3, axis=2)
    block_affine = stack_affine.copy()
    block_affine[:3, 3] = (stack_affine @ [0, 0, k - 1, 1])[:3]

    ants = load_ants()
    fixed = ants.image_read(str(save_image(tmp_path / "v.nii.gz", anatomy, volume_affine)))
    moving = ants.image_read(str(save_image(tmp_path / "s.nii.gz", block, block_affine)))
    one = write_itk_transforms(tmp_path / "one.txt", read_itk_transforms(path)[k])
    placed = ants.apply_transforms(fixed=fixed, moving=moving, transformlist=[str(one)]).numpy()
    # Anatomy voxels within half a millimetre of the slice's plane show what the slice saw there.
    voxels = np.vstack([np.indices(shape).reshape(3, -1), np.ones(np.prod(shape))])
    back = np.linalg.inv(moves[k] @ stack_affine) @ volume_affine @ voxels
    near = (abs(back[2] - k) * 3.0 < 0.5) & (abs(back[:2] - 14.5) < 12).all(axis=0)
    assert near.sum() > 200
    difference = placed.ravel()[near] - anatomy.ravel()[near]
    assert np.sqrt(np.mean(difference**2)) < 0.1 * anatomy.std()
