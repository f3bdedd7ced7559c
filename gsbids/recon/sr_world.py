# SPDX-License-Identifier: Apache-2.0
"""Fields of Gaussians from coarse voxels to world millimetres."""

import numpy as np

from gsbids.recon.field import GaussianField


def to_world(field: GaussianField, affine: np.ndarray) -> GaussianField:
    """The same field in world coordinates: ``mu' = A mu + t``, ``Sigma' = A Sigma A^T``.

    Parameters
    ----------
    field : GaussianField
        In voxels of some volume.
    affine : ndarray, (4, 4)
        Its voxel indices to world RAS+ mm; any linear part that can be inverted.

    Returns
    -------
    GaussianField
        Origin in the middle of the means.
    """
    linear = np.asarray(affine, float)[:3, :3]
    middle = field.mean.mean(0).astype(float)
    turned = rotations(field.quaternion.astype(float))
    root = np.einsum("ij,njk,nk->nik", linear, turned, np.exp(field.log_scale.astype(float)))
    axes, scale, _ = np.linalg.svd(root)  # Sigma' = root root^T
    axes[:, :, 2] *= np.linalg.det(axes)[:, None]  # right-handed
    return field.replace(mean=((field.mean - middle) @ linear.T).astype(np.float32),
                         log_scale=np.log(np.maximum(scale, 1e-30)).astype(np.float32),
                         quaternion=quaternions(axes).astype(np.float32),
                         origin=linear @ middle + np.asarray(affine, float)[:3, 3])


def rotations(quaternion: np.ndarray) -> np.ndarray:
    """Rotation matrices (J, 3, 3) of unit quaternions (w, x, y, z)."""
    w, x, y, z = (quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True)).T
    return np.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y),
                     2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x),
                     2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], 1).reshape(-1, 3, 3)


def quaternions(rotation: np.ndarray) -> np.ndarray:
    """Unit quaternions (w, x, y, z) of rotation matrices (J, 3, 3)."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(rotation).as_quat()[:, [3, 0, 1, 2]]
