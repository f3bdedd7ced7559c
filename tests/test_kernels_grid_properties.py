# SPDX-License-Identifier: Apache-2.0
"""What must hold for every field on every grid, and what no kernel takes, tried on random ones."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from test_kernels_grid import oracle
from test_kernels_properties import close

from gsbids.kernels import ops, points

quick = settings(max_examples=12, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
OPTIONS = ops.RenderOptions(cut=7.0, mass_factor=False)


@st.composite
def scenes(draw):
    """A field on a grid: sizes around the vectors' 8 and 16 lanes, needles, huge ones, some far outside, or none."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.sampled_from([0, 1, 7, 33]))
    shape = draw(st.tuples(*[st.sampled_from([1, 2, 8, 9, 17])] * 3))
    scale = {
        "plain": rng.normal(0.2, 0.3, (count, 3)),
        "needles": rng.choice([-1.0, 2.0], (count, 3)),
        "huge": rng.normal(4.0, 0.3, (count, 3)),
    }[draw(st.sampled_from(["plain", "needles", "huge"]))]
    spread = draw(st.sampled_from([2.0, 40.0]))
    field = [
        rng.normal(0, spread, (count, 3)),
        scale,
        rng.normal(size=(count, 4)),
        rng.uniform(0.2, 1, count),
        rng.normal(0, 0.5, count),
    ]
    spacing, turn = rng.uniform(0.7, 1.2, 3), Rotation.random(random_state=int(rng.integers(1 << 30))).as_matrix()
    geometry = ops.GridGeometry(
        shape, spacing, -turn @ (spacing * (np.array(shape) - 1)) / 2, turn, rng.uniform(0.1, 1, 3)
    )
    return [a.astype(np.float32) for a in field], geometry


def iterate(field, geometry, factor=1.0):
    """Image, and gradients of its squared distance from one half."""
    leaves = [torch.tensor(a, requires_grad=True) for a in field]
    image = ops.GridRender.apply(*leaves, geometry, OPTIONS)
    ((image - 0.5 * factor) ** 2).sum().backward()
    return image.detach().numpy(), [a.grad.numpy() for a in leaves]


@pytest.fixture(params=["vector", "plain"], autouse=True, scope="module")
def _rows(request):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GSBIDS_ROWS", request.param)
        yield


@quick
@given(scenes())
def test_every_scene_agrees_with_the_oracle(case):
    field, geometry = case
    exact = [torch.tensor(a, dtype=torch.float64, requires_grad=True) for a in field]
    expected, _ = oracle(exact, geometry, OPTIONS)
    ((expected - 0.5) ** 2).sum().backward()
    image, gradients = iterate(field, geometry)
    close(image, expected.detach(), 5e-6)  # of a needle, float32 holds the covariance no better
    for a, b in zip(gradients, exact, strict=True):  # the last one is the relaxation proxy's
        close(a, b.grad, 2e-5)


@quick
@given(scenes(), st.randoms(use_true_random=False))
def test_the_order_of_gaussians_does_not_matter(case, random):
    field, geometry = case
    order = np.array(random.sample(range(len(field[0])), len(field[0])), int)
    image, gradients = iterate(field, geometry)
    other, permuted = iterate([a[order] for a in field], geometry)
    close(other, image, 1e-6)
    for a, b in zip(permuted, gradients, strict=True):
        close(a, b[order], 1e-5)


@quick
@given(scenes())
def test_moving_the_whole_scene_changes_nothing(case):
    field, geometry = case
    turn, shift = Rotation.from_rotvec([0.3, -1.1, 0.7]), np.array([3.0, -8.0, 5.0])
    quaternion = (turn * Rotation.from_quat(field[2][:, [1, 2, 3, 0]])).as_quat()[:, [3, 0, 1, 2]]
    moved = [turn.apply(field[0]) + shift if len(field[0]) else field[0], field[1], quaternion, *field[3:]]
    there = ops.GridGeometry(
        geometry.shape,
        geometry.spacing,
        turn.apply(geometry.origin) + shift,
        turn.as_matrix() @ geometry.rotation,
        geometry.psf,
    )
    close(ops.render_grid(*moved, there, OPTIONS)[0], ops.render_grid(*field, geometry, OPTIONS)[0], 2e-4)


@quick
@given(scenes(), st.sampled_from([1e-3, 1e4]))
def test_intensities_scale(case, factor):
    field, geometry = case
    image, gradients = iterate(field, geometry)
    other, scaled = iterate([*field[:3], field[3] * np.float32(factor), field[4]], geometry, factor)
    close(other / factor, image, 1e-6)
    close(scaled[0] / factor**2, gradients[0], 1e-5)
    close(scaled[3] / factor, gradients[3], 1e-5)


@quick
@given(scenes())
def test_gaussians_out_of_reach_change_nothing(case):
    field, geometry = case
    far = [
        np.concatenate([a, b]).astype(np.float32)
        for a, b in zip(
            field, (np.full((3, 3), 4000.0), np.zeros((3, 3)), np.eye(4)[:3], np.ones(3), np.zeros(3)), strict=True
        )
    ]
    image, gradients = iterate(field, geometry)
    other, more = iterate(far, geometry)
    np.testing.assert_array_equal(other, image)
    for a, b in zip(more, gradients, strict=True):
        np.testing.assert_array_equal(a[: len(b)], b)
        assert not a[len(b) :].any()


NAMES = ("mean", "log_scale", "quaternion", "intensity", "log_weight")


def small():
    """Five Gaussians before one slice, one grid and one point."""
    rng = np.random.default_rng(0)
    field = [
        a.astype(np.float32)
        for a in (
            rng.normal(size=(5, 3)),
            rng.normal(0, 0.2, (5, 3)),
            rng.normal(size=(5, 4)),
            rng.uniform(size=5),
            np.zeros(5),
        )
    ]
    geometry = ops.SliceGeometry(
        np.eye(3)[None],
        np.zeros((1, 3)),
        np.ones((1, 3)),
        np.ones((1, 2)),
        np.full((1, 2), 4.0),
        ops.full_extent(1, (9, 9)),
        (9, 9),
    )
    grid = ops.GridGeometry((3, 4, 5), np.ones(3), np.full(3, -2.0))
    listed = points.nearest(np.zeros((5, 3)), np.zeros((1, 3)), 5)
    pixels, rendered = np.ones((1, 9, 9)), (np.ones((1, 9, 9), np.float32),) * 2
    return field, [
        lambda f: ops.render(*f, geometry),
        lambda f: ops.step_slices(*f, geometry, ops.Acquired(pixels, pixels, 0.03)),
        lambda f: ops.image_gradient(*f, geometry, rendered),
        lambda f: ops.SliceRender.apply(*map(torch.tensor, f), torch.zeros(1, 3), torch.zeros(1, 3), geometry, OPTIONS),
        lambda f: ops.render_grid(*f, grid),
        lambda f: ops.GridRender.apply(*map(torch.tensor, f), grid, OPTIONS),
        lambda f: points.render_points(*f, listed),
    ]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", NAMES)
def test_every_renderer_refuses_what_is_not_finite_and_names_it(name, value):
    field, renderers = small()
    field[NAMES.index(name)].reshape(5, -1)[3, -1] = value
    for render in renderers:
        with pytest.raises(FloatingPointError, match=f"{name} of Gaussian 3 .*not finite.*diverged"):
            render(field)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("quaternion", 0.0, "quaternion of Gaussian 3 .*is 0"),
        ("log_scale", 60.0, "beyond what float32 can hold"),
        ("log_weight", 100.0, "beyond what float32 can hold"),
    ],
)
def test_every_renderer_refuses_what_has_no_covariance_or_weight(name, value, complaint):
    field, renderers = small()
    for render in renderers:
        render(field)  # not a word about this one
    field[NAMES.index(name)].reshape(5, -1)[3] = value
    for render in renderers:
        with pytest.raises(FloatingPointError, match=complaint):
            render(field)
