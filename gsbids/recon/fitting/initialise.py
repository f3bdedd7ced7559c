# SPDX-License-Identifier: Apache-2.0
"""Start positions of the Gaussians: content-adaptive sampling of the slices (GSVR paper, Eq. 6)."""

import numpy as np
from scipy import ndimage
from scipy.spatial import cKDTree

from gsbids.recon.field import GaussianField
from gsbids.recon.fitting.slices import SliceSet
from gsbids.recon.motion import RigidMotion

SPREAD = 0.6  # standard deviation of a Gaussian over the distance to its neighbours
NEIGHBOURS = 4  # nearest Gaussians, whose mean distance counts


def sampling_probability(slices: SliceSet, edge_share: float) -> np.ndarray:
    """Return the probability of every pixel to become the centre of a Gaussian.

    ``P = edge_share |grad I| / sum |grad I| + (1 - edge_share) / N`` over the N pixels of the region; the gradient
    is per millimetre, and taken one pixel inside the region, where the edge of the region does not count.

    Returns
    -------
    ndarray, (S, X, Y)
    """
    gradient = np.zeros(slices.values.shape)
    for s in range(len(slices)):
        core = ndimage.binary_erosion(slices.region[s])
        along = np.gradient(slices.values[s], *slices.spacing[s])
        gradient[s] = np.hypot(*along) * core
    share = edge_share if gradient.any() else 0.0
    probability = (1 - share) * slices.region / slices.region.sum()
    if share:
        probability = probability + share * gradient / gradient.sum()
    return probability


def initial_field(
    slices: SliceSet,
    count: int,
    edge_share: float,
    seed: int,
    motion: RigidMotion | None = None,
    gain: np.ndarray | None = None,
    weight: np.ndarray | None = None,
) -> GaussianField:
    """Place ``count`` Gaussians at sampled pixels, shifted at random within the pixel and the slice distance.

    Parameters
    ----------
    slices : SliceSet
    count : int
        Number of Gaussians; at most the number of pixels of the region.
    edge_share : float
        See :func:`sampling_probability`.
    seed : int
    motion : RigidMotion, optional
        Poses of the slices; their ``start`` poses if left out.
    gain, weight : ndarray, (S,), optional
        Intensity factor of each slice, and its weight: slices of weight 0 get no Gaussian.

    Returns
    -------
    GaussianField
        Round Gaussians as wide as their neighbours are far, with the intensity of their pixel.
    """
    rng = np.random.default_rng(seed)
    probability = sampling_probability(slices, edge_share)
    if weight is not None:
        probability = probability * weight[:, None, None]
    probability = probability.ravel()
    candidates = np.flatnonzero(probability)
    count = min(count, len(candidates))
    chosen = rng.choice(candidates, count, replace=False, p=probability[candidates] / probability[candidates].sum())
    s, i, j = np.unravel_index(chosen, slices.values.shape)
    local = np.empty((count, 3))
    local[:, :2] = (np.stack([i, j], 1) + rng.uniform(-0.5, 0.5, (count, 2)) - slices.centre[s]) * slices.spacing[s]
    local[:, 2] = rng.uniform(-0.5, 0.5, count) * slices.slice_gap[s]
    pose = (slices.start if motion is None else motion)[s]
    mean = np.einsum("jab,jb->ja", pose.rotation, local) + pose.translation
    nearest = min(NEIGHBOURS + 1, count)
    # Means on a lattice make the balanced tree recurse too deep.
    distance = cKDTree(mean, balanced_tree=False).query(mean, k=nearest)[0].reshape(count, -1)[:, 1:]
    typical = np.median(distance) if distance.size else 1.0
    width = SPREAD * (distance.mean(1) if distance.size else np.ones(count))
    width = np.clip(width, SPREAD * typical / 2, SPREAD * typical * 3)
    quaternion = np.tile(np.array([1, 0, 0, 0], np.float32), (count, 1))
    return GaussianField(
        mean=mean.astype(np.float32),
        log_scale=np.repeat(np.log(width)[:, None], 3, 1).astype(np.float32),
        quaternion=quaternion,
        intensity=(slices.values[s, i, j] / (1 if gain is None else gain[s])).astype(np.float32),
        log_weight=np.zeros(count, np.float32),
        origin=slices.origin,
    )
