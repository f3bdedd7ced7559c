# SPDX-License-Identifier: Apache-2.0
"""Fields of Gaussians from coarse voxels to world millimetres."""

import numpy as np
from scipy.spatial.transform import Rotation

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
    turned = Rotation.from_quat(field.quaternion, scalar_first=True).as_matrix()
    root = np.einsum("ij,njk,nk->nik", linear, turned, np.exp(field.log_scale.astype(float)))
    axes, scale, _ = np.linalg.svd(root)  # Sigma' = root root^T
    axes[:, :, 2] *= np.linalg.det(axes)[:, None]  # right-handed
    return field.replace(mean=((field.mean - middle) @ linear.T).astype(np.float32),
                         log_scale=np.log(np.maximum(scale, 1e-30)).astype(np.float32),
                         quaternion=Rotation.from_matrix(axes).as_quat(scalar_first=True).astype(np.float32),
                         origin=linear @ middle + np.asarray(affine, float)[:3, 3])
