# SPDX-License-Identifier: Apache-2.0
"""The splat kernels against the dense float64 oracle and finite differences, with and without vectors."""

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from gsbids.kernels import ops, reference


@pytest.fixture(autouse=True, params=["vector", "plain"])
def _rows(request, monkeypatch):
    monkeypatch.setenv("GSBIDS_ROWS", request.param)


def scene(seed=0, gaussians=40, slices=3, shape=(13, 17)):
    """A small random field seen by a few oblique slices with different pixel sizes."""
    rng = np.random.default_rng(seed)
    field = [
        rng.normal(0, 4, (gaussians, 3)),
        rng.normal(0.3, 0.3, (gaussians, 3)),
        rng.normal(size=(gaussians, 4)),
        rng.uniform(0.2, 1, gaussians),
        rng.normal(0, 0.3, gaussians),
    ]
    geometry = ops.SliceGeometry(
        rotation=Rotation.random(slices, random_state=seed).as_matrix(),
        translation=rng.normal(0, 1.5, (slices, 3)),
        psf=rng.uniform(0.2, 2, (slices, 3)),
        spacing=rng.uniform(0.7, 1.3, (slices, 2)),
        centre=(np.array(shape) - 1) / 2 + rng.normal(0, 1, (slices, 2)),
        extent=ops.full_extent(slices, shape),
        shape=shape,
    )
    return [a.astype(np.float32) for a in field], geometry


def oracle(field, geometry, options, tangents=None):
    """The same slices by the dense oracle, float64; returns (image, weight)."""
    mean, log_scale, quaternion, intensity, log_weight = field
    flat = [
        torch.as_tensor(getattr(geometry, k), dtype=torch.float64)
        for k in ("rotation", "translation", "psf", "spacing", "centre")
    ]
    if tangents is not None:
        flat[:2] = reference.retract(*flat[:2], *tangents)
    return reference.render_slices(
        mean,
        reference.covariance(log_scale, quaternion),
        intensity,
        log_weight,
        (*flat, geometry.shape),
        eps=options.eps,
        cut=options.cut,
        mass_factor=options.mass_factor,
    )


def doubles(field):
    return [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in field]


def relative(a, b):
    return float(np.abs(np.asarray(a) - np.asarray(b)).max() / np.abs(np.asarray(b)).max())


@pytest.mark.parametrize("mass_factor", [False, True])
@pytest.mark.parametrize("seed", [0, 1])
def test_forward_agrees_with_the_oracle(seed, mass_factor):
    field, geometry = scene(seed)
    options = ops.RenderOptions(cut=8.0, mass_factor=mass_factor)
    image, weight = ops.render(*field, geometry, options)
    expected, total = oracle(doubles(field), geometry, options)
    assert relative(image, expected.detach()) < 1e-6
    assert relative(weight, total.detach()) < 1e-6


@pytest.mark.parametrize("mass_factor", [False, True])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_all_gradients_agree_with_autograd(seed, mass_factor):
    field, geometry = scene(seed)
    options = ops.RenderOptions(cut=8.0, mass_factor=mass_factor)
    slices = len(geometry.rotation)
    target = torch.tensor(np.random.default_rng(9).uniform(size=(slices, *geometry.shape)))

    exact = doubles(field)
    pose = [torch.zeros(slices, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    ((oracle(exact, geometry, options, pose)[0] - target) ** 2).sum().backward()
    ours = [torch.tensor(a, requires_grad=True) for a in field]
    tangents = [torch.zeros(slices, 3, requires_grad=True) for _ in range(2)]
    image = ops.SliceRender.apply(*ours, *tangents, geometry, options)
    ((image - target.float()) ** 2).sum().backward()
    for a, b in zip(ours + tangents, exact + pose, strict=True):
        assert relative(a.grad, b.grad) < 1e-5


@pytest.mark.parametrize("mass_factor", [False, True])
def test_the_fused_step_agrees_with_autograd(mass_factor):
    field, geometry = scene(11)
    options = ops.RenderOptions(cut=8.0, mass_factor=mass_factor)
    slices = len(geometry.rotation)
    rng = np.random.default_rng(1)
    values, weight = rng.uniform(size=(2, slices, *geometry.shape))
    weight[weight < 0.3] = 0
    gain = rng.uniform(0.5, 2, slices)
    step = ops.step_slices(*field, geometry, ops.Acquired(values, weight, 0.03, gain), options)

    exact = doubles(field)
    pose = [torch.zeros(slices, 3, dtype=torch.float64, requires_grad=True) for _ in range(2)]
    image, _ = oracle(exact, geometry, options, pose)
    residual = torch.tensor(gain)[:, None, None] * image - torch.tensor(values)
    loss = (torch.tensor(weight) * (torch.sqrt(residual**2 + 0.03**2) - 0.03)).sum((1, 2))
    loss.sum().backward()
    assert relative(step.loss, loss.detach()) < 1e-6
    assert relative(step.image, image.detach()) < 1e-6
    for a, b in zip([*step.gradients, step.pose[:, :3], step.pose[:, 3:]], exact + pose, strict=True):
        assert relative(a, b.grad) < 1e-5


def test_pose_gradient_agrees_with_finite_differences():
    """Central differences of the kernel's own loss, the slice truly moved (PSF and all)."""
    field, geometry = scene(3)
    options = ops.RenderOptions(cut=9.0)
    slices = len(geometry.rotation)
    rng = np.random.default_rng(4)
    weights = rng.normal(size=(slices, *geometry.shape))

    def loss(omega, tau):
        moved = Rotation.from_rotvec(omega).as_matrix()
        shifted = ops.SliceGeometry(
            geometry.rotation @ moved,
            geometry.translation + np.einsum("sij,sj->si", geometry.rotation, tau),
            geometry.psf,
            geometry.spacing,
            geometry.centre,
            geometry.extent,
            geometry.shape,
        )
        return (ops.render(*field, shifted, options)[0].astype(float) * weights).sum()

    tangents = [torch.zeros(slices, 3, requires_grad=True) for _ in range(2)]
    image = ops.SliceRender.apply(*(torch.tensor(a) for a in field), *tangents, geometry, options)
    (image * torch.tensor(weights)).sum().backward()
    for direction in range(6):
        step = np.zeros((2, slices, 3))
        step[direction // 3, :, direction % 3] = 5e-3
        numeric = (loss(*step) - loss(*-step)) / 1e-2
        analytic = float((torch.stack([t.grad for t in tangents]).double() * torch.tensor(step)).sum()) / 5e-3
        assert numeric == pytest.approx(analytic, rel=2e-3, abs=2e-3)


def test_image_gradient_agrees_with_the_oracle():
    field, geometry = scene(5)
    options = ops.RenderOptions(cut=8.0)
    rendered = ops.render(*field, geometry, options)
    gradient = ops.image_gradient(*field, geometry, rendered, options)
    slices = len(geometry.rotation)
    # The derivative with respect to a common shift of all pixels of a slice, one pixel at a time.
    tau = torch.zeros(slices, 3, dtype=torch.float64, requires_grad=True)
    image, _ = oracle(doubles(field), geometry, options, (torch.zeros_like(tau), tau))
    for i, j in [(2, 3), (6, 8), (10, 15)]:
        (expected,) = torch.autograd.grad(image[:, i, j].sum(), tau, retain_graph=True)
        assert relative(gradient[:, i, j], expected) < 1e-5


def test_normal_equations_are_those_of_the_jacobian():
    field, geometry = scene(6)
    rendered = ops.render(*field, geometry)
    gradient = ops.image_gradient(*field, geometry, rendered)
    rng = np.random.default_rng(0)
    residual, weight = rng.normal(size=(2, *rendered[0].shape)).astype(np.float32) ** 2
    gain = np.array([0.5, 1.0, 2.0])
    matrix, vector = ops.pose_normal_equations(geometry, gradient, residual, weight, gain)
    position = reference.pixel_positions(geometry.shape, torch.tensor(geometry.spacing), torch.tensor(geometry.centre))
    jacobian = np.concatenate([np.cross(position.numpy(), gradient), gradient], -1) * gain[:, None, None, None]
    np.testing.assert_allclose(matrix, np.einsum("sxya,sxy,sxyb->sab", jacobian, weight, jacobian), rtol=1e-6)
    np.testing.assert_allclose(vector, np.einsum("sxya,sxy,sxy->sa", jacobian, weight, residual), rtol=1e-6)


def test_extent_hides_pixels_and_nothing_else():
    field, geometry = scene(7)
    extent = geometry.extent.copy()
    extent[:, :, 0], extent[:, :, 1] = 4, 11
    extent[1, 5] = 0
    full, _ = ops.render(*field, geometry)
    part, _ = ops.render(
        *field,
        ops.SliceGeometry(
            geometry.rotation,
            geometry.translation,
            geometry.psf,
            geometry.spacing,
            geometry.centre,
            extent,
            geometry.shape,
        ),
    )
    inside = np.zeros(full.shape, bool)
    inside[:, :, 4:11] = True
    inside[1, 5] = False
    np.testing.assert_allclose(part[inside], full[inside], rtol=1e-6)  # strips start elsewhere: other roundings
    assert not part[~inside].any()


def test_cut_costs_little():
    """Truncation at 3.5 standard deviations against none: under 1 % of the signal's deviation (rms).

    Where Gaussians are, that is: at the bare rim the few far ones are all there is.
    """
    field, geometry = scene(8, gaussians=600)
    exact, weight = ops.render(*field, geometry, ops.RenderOptions(cut=8.0))
    cut, _ = ops.render(*field, geometry, ops.RenderOptions(cut=3.5))
    inside = weight > 1
    assert inside.mean() > 0.5
    assert np.sqrt(np.mean((cut - exact)[inside] ** 2)) < 0.01 * exact[inside].std()


def test_same_bits_for_any_number_of_threads():
    import numba

    field, geometry = scene(9, gaussians=200, slices=7)
    before = numba.get_num_threads()
    results = []
    for threads in (1, min(2, numba.config.NUMBA_NUM_THREADS)):
        numba.set_num_threads(threads)
        ours = [torch.tensor(a, requires_grad=True) for a in field]
        tangents = [torch.zeros(7, 3, requires_grad=True) for _ in range(2)]
        image = ops.SliceRender.apply(*ours, *tangents, geometry, ops.RenderOptions())
        (image**2).sum().backward()
        results.append([image.detach().numpy(), *(a.grad.numpy() for a in ours + tangents)])
    numba.set_num_threads(before)
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_parameter_that_is_not_finite_is_refused():
    field, geometry = scene(0)
    field[1][3, 0] = np.nan
    with pytest.raises(FloatingPointError, match="diverged"):
        ops.render(*field, geometry)


def test_the_psf_model_against_quadrature():
    """The slice of the field against the field itself integrated over the PSF, with and without the mass factor."""
    field, _ = scene(10, gaussians=200)
    field[4][:] = 0
    turn = Rotation.random(random_state=1).as_matrix()
    psf = np.array([0.3, 0.3, 1.6])
    shape = (9, 9)

    def geometry(points, variances):
        n = len(points)
        return ops.SliceGeometry(
            np.tile(turn, (n, 1, 1)),
            points @ turn.T,
            np.tile(variances, (n, 1)),
            np.full((n, 2), 1.0),
            np.full((n, 2), 4.0),
            ops.full_extent(n, shape),
            shape,
        )

    nodes, node_weights = np.polynomial.hermite_e.hermegauss(9)
    offsets = np.stack(np.meshgrid(nodes, nodes, nodes, indexing="ij"), -1).reshape(-1, 3) * np.sqrt(psf)
    weights = np.einsum("i,j,k->ijk", *[node_weights] * 3).ravel()
    options = ops.RenderOptions(cut=7.0, eps=1e-6)
    fine, _ = ops.render(*field, geometry(offsets, np.zeros(3)), options)
    expected = np.einsum("s,sxy->xy", weights / weights.sum(), fine)

    error = {}
    for mass_factor in (False, True):
        options = ops.RenderOptions(cut=7.0, eps=1e-6, mass_factor=mass_factor)
        image, _ = ops.render(*field, geometry(np.zeros((1, 3)), psf), options)
        error[mass_factor] = np.sqrt(np.mean((image[0] - expected) ** 2))
    assert error[True] < 0.5 * error[False]
