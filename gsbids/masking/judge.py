# SPDX-License-Identifier: Apache-2.0
"""Classification of a region that a mask network found as brain or not, by a small 3D network.

The classifier sees the region with its surroundings: slice by slice a pocket of fluid with limbs looks like the end of
a head; as a whole it does not.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from scipy.interpolate import interp1d

if TYPE_CHECKING:
    from torch.nn import Module

SIDE = 48  # voxels along an edge of the block that is classified
VOXEL = 3.0  # mm, side of these voxels
CHANNELS = (16, 32, 64, 128)  # of the layers, finest first


def build_judge() -> "Module":
    """Build a 3D residual network (MONAI's ``Classifier``) with initial weights.

    It has one channel in and a logit out.
    """
    from monai.networks.nets import Classifier

    return Classifier(
        in_shape=(1, SIDE, SIDE, SIDE),
        classes=1,
        channels=CHANNELS,
        strides=(2,) * len(CHANNELS),
        num_res_units=1,
        norm="INSTANCE",
        act="PRELU",
    )


def block_about(
    seen: np.ndarray, spacing: Sequence[float] | np.ndarray, centre: Sequence[float] | np.ndarray, voxel: float = VOXEL
) -> np.ndarray:
    """Cut a block around a position out of a stack.

    Parameters
    ----------
    seen : ndarray, (X, Y, Z)
        Intensities as the mask network sees them, slices on the third axis.
    spacing : sequence of float
        Voxel size, mm.
    centre : sequence of float
        Position of the centre, voxels.
    voxel : float
        Side of the voxels of the block, mm.

    Returns
    -------
    ndarray, (SIDE, SIDE, SIDE), float32
        0 beyond the stack.
    """
    part = np.asarray(seen, np.float32)
    offset = (np.arange(SIDE) - (SIDE - 1) / 2) * voxel
    for axis in range(3):
        part = _along(part, axis, centre[axis] + offset / spacing[axis], voxel / spacing[axis])
    return part


def _along(volume: np.ndarray, axis: int, at: np.ndarray, step: float) -> np.ndarray:
    """Interpolate linearly along an axis; 0 beyond the outermost voxels.

    The value is the mean of two positions a half step apart.
    """
    low, high = max(0, int(at[0] - step)), max(0, int(at[-1] + step) + 2)
    volume = volume[(slice(None),) * axis + (slice(low, high),)]
    count = volume.shape[axis]
    if not volume.size:
        return np.zeros([*volume.shape[:axis], len(at), *volume.shape[axis + 1 :]], np.float32)
    known = np.clip(np.arange(-1, count + 1), -0.5, count - 0.5) + low  # a voxel reaches as far as its sides
    ends = np.pad(volume, [(int(a == axis),) * 2 for a in range(3)], mode="edge")
    value = interp1d(known, ends, axis=axis, bounds_error=False, fill_value=0.0, assume_sorted=True)
    return ((value(at - step / 4) + value(at + step / 4)) / 2).astype(np.float32)


def judge_block(block: np.ndarray, judge: "Module") -> float:
    """Return the probability, 0 to 1, that the centre of a block, (SIDE, SIDE, SIDE), lies in a brain.

    The mean of eight mirror images.
    """
    import torch

    axes = [[a for a in range(3) if k >> a & 1] for k in range(8)]
    batch = torch.from_numpy(np.stack([np.flip(block, one) for one in axes])[:, None].copy())
    with torch.inference_mode():
        return float(torch.sigmoid(judge(batch)).mean())
