# SPDX-License-Identifier: Apache-2.0
"""The grid kernels against the dense float64 oracle, with and without vectors."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from gsbids.kernels import ops, reference


@pytest.fixture(autouse=True, params=["vector", "plain"])
def _rows(request, monkeypatch):
    monkeypatch.setenv("GSBIDS_ROWS", request.param)


def scene(seed=0, gaussians=40, shape=(11, 9, 18), turned=False):
    """A small random field in the middle of a grid."""
    rng = np.random.default_rng(seed)
    turn = Rotation.random(random_state=seed).as_matrix() if turned else np.eye(3)
    spacing = rng.uniform(0.7, 1.2, 3)
    geometry = ops.GridGeometry(
        shape,
        spacing,
        -turn @ (spacing * (np.array(shape) - 1)) / 2,
        turn,
        rng.uniform(0.2, 1, 3) if turned else np.zeros(3),
    )
    field = [
        rng.normal(0, 3, (gaussians, 3)),
        rng.normal(0.2, 0.3, (gaussians, 3)),
        rng.normal(size=(gaussians, 4)),
        rng.uniform(0.2, 1, gaussians),
        rng.normal(0, 0.5, gaussians),
    ]
    return [a.astype(np.float32) for a in field], geometry


def oracle(field, geometry, options):
    """The planes of the grid as slices of the dense oracle, float64."""
    mean, log_scale, quaternion, intensity, log_weight = field
    planes = geometry.shape[0]
    axes = geometry.rotation[:, [1, 2, 0]]
    steps = np.arange(planes)[:, None] * geometry.spacing[0] * geometry.rotation[:, 0]
    flat = (
        np.tile(axes, (planes, 1, 1)),
        geometry.origin + steps,
        np.tile(geometry.psf[[1, 2, 0]], (planes, 1)),
        np.tile(geometry.spacing[1:], (planes, 1)),
        np.zeros((planes, 2)),
    )
    return reference.render_slices(
        mean,
        reference.covariance(log_scale, quaternion),
        intensity,
        log_weight,
        (*(torch.tensor(a) for a in flat), geometry.shape[1:]),
        eps=options.eps,
        cut=options.cut,
        mass_factor=options.mass_factor,
    )


def relative(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())


@pytest.mark.parametrize("turned", [False, True])
def test_forward_and_gradients_agree_with_the_oracle(turned):
    field, geometry = scene(2, turned=turned)
    options = ops.RenderOptions(cut=8.0, mass_factor=turned)
    exact = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in field]
    ours = [torch.tensor(a, requires_grad=True) for a in field]
    expected, total = oracle(exact, geometry, options)
    target = torch.tensor(np.random.default_rng(1).uniform(size=geometry.shape))
    ((expected - target) ** 2).sum().backward()
    image = ops.GridRender.apply(*ours, geometry, options)
    ((image - target.float()) ** 2).sum().backward()
    assert relative(image.detach(), expected.detach()) < 1e-6
    assert relative(ops.render_grid(*field, geometry, options)[1], total.detach()) < 1e-6
    for a, b in zip(ours, exact, strict=True):
        assert relative(a.grad, b.grad) < 1e-5


def test_gradients_with_a_large_field_across_many_parts():
    """More Gaussians than a part takes and more planes than a slab, many outside the grid; no truncation issue."""
    field, geometry = scene(3, gaussians=1500, shape=(19, 5, 7))
    options = ops.RenderOptions(cut=9.0, mass_factor=False)
    field[0] *= 2
    exact = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in field]
    ours = [torch.tensor(a, requires_grad=True) for a in field]
    (oracle(exact, geometry, options)[0] ** 2).sum().backward()
    (ops.GridRender.apply(*ours, geometry, options) ** 2).sum().backward()
    for a, b in zip(ours, exact, strict=True):
        assert relative(a.grad, b.grad) < 1e-5


def test_same_bits_for_any_number_of_threads():
    import numba

    field, geometry = scene(4, gaussians=1100, shape=(17, 6, 9))
    before, results = numba.get_num_threads(), []
    for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
        numba.set_num_threads(threads)
        ours = [torch.tensor(a, requires_grad=True) for a in field]
        image = ops.GridRender.apply(*ours, geometry, ops.RenderOptions())
        (image**2).sum().backward()
        results.append([image.detach().numpy(), *(a.grad.numpy() for a in ours)])
    numba.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)
