# SPDX-License-Identifier: Apache-2.0
"""The field at points, and top-K rendering, against dense torch with the same lists of Gaussians."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_kernels import doubles, relative, scene

from gsbids.errors import DeviceError
from gsbids.kernels import ops, points, reference

EPS = 1e-3
UPPER = [[0, 1, 2], [1, 3, 4], [2, 4, 5]]


def oracle(field, position, listed, point_set, psf):
    """The formula of the module in float64; ``listed`` (N, J) says which Gaussian each point sees."""
    mean, log_scale, quaternion, intensity, log_weight = field
    psf = psf[:, UPPER][torch.tensor(point_set.frame)]
    observed = reference.covariance(log_scale, quaternion)[None] + psf[:, None]
    offset = position[:, None] - mean
    energy = torch.einsum("nja,njab,njb->nj", offset, torch.linalg.inv(observed), offset)
    weight = torch.exp(log_weight - energy / 2) * (listed & (energy < point_set.cut**2))
    total = weight.sum(1) + EPS
    return (weight * intensity).sum(1) / total, total


def pixels(geometry):
    """Positions, frames and PSF covariances of all pixels of the slices."""
    x = reference.pixel_positions(geometry.shape, *(torch.tensor(a) for a in (geometry.spacing, geometry.centre)))
    world = np.einsum("sab,sxyb->sxya", geometry.rotation, x) + geometry.translation[:, None, None]
    psf = np.einsum("sab,sb,scb->sac", geometry.rotation, geometry.psf, geometry.rotation)
    frame = np.repeat(np.arange(len(psf)), np.prod(geometry.shape))
    return world.reshape(-1, 3), psf[:, [0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]], frame


@pytest.mark.parametrize("count", [8, 64])
def test_top_k_and_its_gradients_agree_with_dense_torch(count):
    field, geometry = scene(0)
    position, psf, frame = pixels(geometry)
    index = points.nearest(field[0], position, count, psf, frame)
    field[0] += 0.1  # the index is stale: it was built from where the Gaussians were
    listed = torch.zeros(len(position), len(field[0]), dtype=torch.bool)
    listed[torch.arange(len(position))[:, None], torch.tensor(index.members.reshape(len(position), -1)).long()] = True

    exact, ours = doubles(field), [torch.tensor(a, requires_grad=True) for a in field]
    place = [torch.tensor(position, requires_grad=True) for _ in range(2)]
    blur = [torch.tensor(psf, requires_grad=True) for _ in range(2)]
    target = torch.tensor(np.random.default_rng(3).uniform(size=len(position)))
    expected, total = oracle(exact, place[0], listed, index, blur[0])
    ((expected - target) ** 2).sum().backward()
    image = points.PointRender.apply(*ours, place[1], replace(index, psf=np.zeros_like(psf)), EPS, blur[1])
    ((image - target) ** 2).sum().backward()
    assert relative(image.detach(), expected.detach()) < 1e-6
    assert relative(points.render_points(*field, index, EPS)[1], total.detach()) < 1e-6
    for a, b in zip([*ours, place[1], blur[1]], [*exact, place[0], blur[0]], strict=True):
        assert relative(a.grad, b.grad) < 1e-5


def test_points_within_the_cut_see_what_slices_see():
    field, geometry = scene(1, gaussians=80)
    position, psf, frame = pixels(geometry)
    options = ops.RenderOptions(cut=6.0, mass_factor=False)
    image, weight = ops.render(*field, geometry, options)
    listed = points.within_cut(field, position, 6.0, psf, frame, cell=2.5)
    at_points, total = points.render_points(*field, listed)
    np.testing.assert_allclose(at_points, image.ravel(), atol=2e-6)
    np.testing.assert_allclose(total, weight.ravel(), atol=2e-6)


def test_points_without_a_psf_and_nearer_than_any_list():
    """One Gaussian, its centre: I = c w / (w + eps); exchanging positions keeps the lists."""
    field = [np.array(a, np.float32) for a in ([[1, 2, 3]], [[0, 0, 0]], [[1, 0, 0, 0]], [0.7], [0.0])]
    there = points.nearest(field[0], np.array([[1.0, 2.0, 3.0]]), 32)
    image, weight = points.render_points(*field, there, EPS)
    assert weight[0] == pytest.approx(1 + EPS)
    assert image[0] == pytest.approx(0.7 / (1 + EPS))
    moved = replace(there, position=np.array([[2.0, 2.0, 3.0]]))
    assert points.render_points(*field, moved, EPS)[1][0] == pytest.approx(np.exp(-0.5) + EPS)


def test_nothing_to_see():
    none = [np.empty((0, n) if n else 0, np.float32) for n in (3, 3, 4, 0, 0)]
    where = np.zeros((5, 3))
    for listed in (points.nearest(none[0], where, 8), points.within_cut(none, where)):
        assert not points.render_points(*none, listed)[0].any()


def test_tensors_of_another_device_are_refused_in_words():
    field, geometry = scene(1, gaussians=5)
    position, psf, frame = pixels(geometry)
    listed = points.nearest(field[0], position, 3, psf, frame)
    away = [torch.tensor(a, device="meta") for a in field]
    with pytest.raises(DeviceError, match="meta: these kernels take tensors of the CPU only"):
        points.PointRender.apply(*away, torch.tensor(position), listed, EPS)
