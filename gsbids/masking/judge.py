# SPDX-License-Identifier: Apache-2.0
"""Whether what a mask network has found in a stack is a brain: a small 3D network that sees it with its surroundings.

Slice by slice a pocket of fluid with limbs looks like the end of a head; as a whole it does not.
"""

import numpy as np
from scipy.interpolate import interp1d

SIDE = 48  # voxels along an edge of what the judge sees
VOXEL = 3.0  # mm, their side
CHANNELS = (16, 32, 64, 128)


def build_judge():
    """A 3D residual network (MONAI's ``Classifier``) with a channel in and a logit out, weights as they start."""
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


def block_about(seen: np.ndarray, spacing, centre, voxel: float = VOXEL) -> np.ndarray:
    """What surrounds a place in a stack.

    Parameters
    ----------
    seen : ndarray, (X, Y, Z)
        Intensities as the mask network sees them, slices on the third axis.
    spacing : sequence of float
        Voxel size, mm.
    centre : sequence of float
        The place, voxels.
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
    """Linear interpolation along an axis, the mean of two places a half step apart; 0 beyond the outermost voxels."""
    low, high = max(0, int(at[0] - step)), max(0, int(at[-1] + step) + 2)
    volume = volume[(slice(None),) * axis + (slice(low, high),)]
    count = volume.shape[axis]
    if not volume.size:
        return np.zeros([*volume.shape[:axis], len(at), *volume.shape[axis + 1 :]], np.float32)
    known = np.clip(np.arange(-1, count + 1), -0.5, count - 0.5) + low  # a voxel reaches as far as its sides
    ends = np.pad(volume, [(int(a == axis),) * 2 for a in range(3)], mode="edge")
    value = interp1d(known, ends, axis=axis, bounds_error=False, fill_value=0.0, assume_sorted=True)
    return ((value(at - step / 4) + value(at + step / 4)) / 2).astype(np.float32)


def judge_block(block: np.ndarray, judge) -> float:
    """Probability, 0 to 1, that the middle of a block, (SIDE, SIDE, SIDE), lies in a brain: of eight mirror images the
    mean."""
    import torch

    axes = [[a for a in range(3) if k >> a & 1] for k in range(8)]
    batch = torch.from_numpy(np.stack([np.flip(block, one) for one in axes])[:, None].copy())
    with torch.inference_mode():
        return float(torch.sigmoid(judge(batch)).mean())
