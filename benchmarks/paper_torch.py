# SPDX-License-Identifier: Apache-2.0
"""The paper's renderer as one would write it in torch: the K nearest Gaussians of every pixel, autograd."""

import torch

from gsbids.kernels import reference


def nearest(points: torch.Tensor, mean: torch.Tensor, count: int, at_once: int = 1 << 14) -> torch.Tensor:
    """Indices (n, K) of the Gaussians nearest to each point, by Euclidean distance; brute force in pieces."""
    return torch.cat([torch.cdist(part, mean).topk(count, largest=False).indices for part in points.split(at_once)])


def render(points, owner, index, field, rotation, psf, eps):
    """``I = sum_k w_k c_k / (sum_k w_k + eps)`` over the K nearest, the PSF added to each covariance.

    Parameters
    ----------
    points : tensor, (n, 3)
        World positions of the pixels, mm.
    owner : tensor, (n,)
        Slice of each pixel.
    index : tensor, (n, K)
        From :func:`nearest`, rebuilt every 50 epochs in the paper.
    field : tuple of tensor
        mean, log_scale, quaternion, intensity, log_weight.
    rotation, psf : tensor, (S, 3, 3), (S, 3)
    eps : float

    Returns
    -------
    tensor, (n,)
    """
    mean, log_scale, quaternion, intensity, log_weight = field
    covariance = reference.covariance(log_scale, quaternion)
    blur = rotation @ torch.diag_embed(psf) @ rotation.mT
    observed = covariance[index] + blur[owner][:, None]
    offset = points[:, None] - mean[index]
    energy = torch.einsum("nka,nkab,nkb->nk", offset, torch.linalg.inv(observed), offset)
    weight = torch.exp(log_weight[index] - 0.5 * energy)
    return (weight * intensity[index]).sum(1) / (weight.sum(1) + eps)
