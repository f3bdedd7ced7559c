# SPDX-License-Identifier: Apache-2.0
"""Dense reference in torch: what every kernel computes, in any dtype, with autograd.

Nothing here is fast and nothing is truncated unless asked for; the tests compare the kernels with it in float64.
"""

import torch


def quaternion_matrix(quaternion: torch.Tensor) -> torch.Tensor:
    """Return the rotation matrices (J, 3, 3) of quaternions (J, 4) in (w, x, y, z) order, normalised here."""
    w, x, y, z = torch.nn.functional.normalize(quaternion, dim=-1).unbind(-1)
    rows = [
        1 - 2 * (y * y + z * z),
        2 * (x * y - w * z),
        2 * (x * z + w * y),
        2 * (x * y + w * z),
        1 - 2 * (x * x + z * z),
        2 * (y * z - w * x),
        2 * (x * z - w * y),
        2 * (y * z + w * x),
        1 - 2 * (x * x + y * y),
    ]
    return torch.stack(rows, -1).unflatten(-1, (3, 3))


def covariance(log_scale: torch.Tensor, quaternion: torch.Tensor) -> torch.Tensor:
    """Return ``Sigma = R(q) diag(exp(2 s)) R(q)^T``, (J, 3, 3), mm2, of log-scales (J, 3) and quaternions (J, 4)."""
    turn = quaternion_matrix(quaternion)
    return turn @ torch.diag_embed(torch.exp(2 * log_scale)) @ turn.mT


def skew(vector: torch.Tensor) -> torch.Tensor:
    """Return matrices (S, 3, 3) with ``skew(a) @ b = a x b``."""
    x, y, z = vector.unbind(-1)
    zero = torch.zeros_like(x)
    return torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], -1).unflatten(-1, (3, 3))


def retract(
    rotation: torch.Tensor, translation: torch.Tensor, omega: torch.Tensor, tau: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Update poses in the slice frame: ``R exp([omega]x)`` (S, 3, 3) and ``t + R tau`` (S, 3)."""
    return rotation @ torch.linalg.matrix_exp(skew(omega)), translation + (rotation @ tau[..., None])[..., 0]


def pixel_positions(shape: tuple[int, int], spacing: torch.Tensor, centre: torch.Tensor) -> torch.Tensor:
    """Return the positions (S, X, Y, 3) mm of the pixels in the frame of their own slice.

    Parameters
    ----------
    shape : tuple of int
        (X, Y), pixels of every slice.
    spacing, centre : tensor, (S, 2)
        Pixel size in mm, and pixel index of the slice origin.
    """
    u, v = (torch.arange(n, dtype=spacing.dtype) for n in shape)
    u = (u - centre[:, :1]) * spacing[:, :1]
    v = (v - centre[:, 1:]) * spacing[:, 1:]
    u, v = torch.broadcast_tensors(u[:, :, None], v[:, None, :])
    return torch.stack([u, v, torch.zeros_like(u)], -1)


def render_slices(
    mean: torch.Tensor,
    covariances: torch.Tensor,
    intensity: torch.Tensor,
    log_weight: torch.Tensor,
    geometry: tuple,
    *,
    eps: float = 1e-3,
    cut: float | None = None,
    mass_factor: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Render a normalised Gaussian field as seen through the PSF of each slice (GSVR paper, Eq. 5).

    ``I(X) = sum_j w_j c_j / (sum_j w_j + eps)``, ``w_j = exp(l_j + a_sj - E_sj(X) / 2)``,
    ``E_sj = (X - mu_j)^T (Sigma_j + R_s P_s R_s^T)^-1 (X - mu_j)``; ``a_sj`` is 0, or, with the mass factor,
    ``log(det Sigma_j / det(Sigma_j + R_s P_s R_s^T)) / 2``: a Gaussian keeps its mass when it is convolved.

    Parameters
    ----------
    mean, covariances, intensity, log_weight : tensor, (J, 3), (J, 3, 3), (J,), (J,)
    geometry : tuple of tensor
        rotation (S, 3, 3), translation (S, 3), psf variances (S, 3), spacing (S, 2), centre (S, 2), and (X, Y).
    eps : float
        Weight of the background 0.
    cut : float or None
        Gaussians contribute where ``E < cut ** 2`` only.
    mass_factor : bool

    Returns
    -------
    image, weight : tensor, (S, X, Y)
        I, and D = sum_j w_j + eps.
    """
    rotation, translation, psf, spacing, centre, shape = geometry
    world = torch.einsum("sab,sxyb->sxya", rotation, pixel_positions(shape, spacing, centre))
    world = world + translation[:, None, None]
    observed = covariances[None] + (rotation @ torch.diag_embed(psf) @ rotation.mT)[:, None]
    offset = world[:, :, :, None] - mean
    energy = torch.einsum("sxyja,sjab,sxyjb->sxyj", offset, torch.linalg.inv(observed), offset)
    log_amplitude = log_weight.expand(len(rotation), -1)
    if mass_factor:
        log_amplitude = log_amplitude + 0.5 * (torch.logdet(covariances) - torch.logdet(observed))
    weight = torch.exp(log_amplitude[:, None, None] - energy / 2)
    if cut is not None:
        weight = torch.where(energy < cut**2, weight, 0.0)
    total = weight.sum(-1) + eps
    return (weight * intensity).sum(-1) / total, total
