# SPDX-License-Identifier: Apache-2.0
"""Data as labs have them: one stack, two, twelve; gaps and overlaps; other gains; bands; flipped, far, large."""

import dataclasses

import numpy as np
import pytest
from test_recon import AXES, QUICK, acquire, brain, error_of, gauge, slow_motion

from gsbids.imaging.stack import Stack
from gsbids.qc.metrics import crossing_angle
from gsbids.recon.registration.register import register_stacks
from gsbids.recon.svr.fit import fit_svr

NEAR = dataclasses.replace(QUICK, place=False)  # the search for far places has tests of its own
MOVES = [0.04, 0.04, 0.04, 1.0, 1.0, 1.0]  # standard deviations, rad and mm


def stacks_of(orientations, **how):
    """Stacks of the test brain with small motion, and the motion."""
    field, stacks, motions = brain(), [], []
    for n, orientation in enumerate(orientations):
        count = acquire(field, orientation, **how).image.shape[2]
        motions.append(slow_motion(count, 40 + n, MOVES))
        stacks.append(
            dataclasses.replace(acquire(field, orientation, motion=motions[-1], noise=0.01, **how), name=f"run-{n + 1}")
        )
    return field, stacks, motions


def error(field, stacks, motions, options=NEAR):
    """Error of a reconstruction from start to end (see :func:`test_recon.error_of`)."""
    result = fit_svr(stacks, register_stacks(stacks).transforms, options)
    return error_of(field, result, gauge(stacks, motions, result))


def changed(stacks, change) -> list[Stack]:
    """Stacks with images changed by ``change(image, n)``."""
    return [dataclasses.replace(s, image=change(s.image, n).astype(np.float32)) for n, s in enumerate(stacks)]


@pytest.fixture(scope="module")
def usual():
    """Three stacks, and how well they are reconstructed."""
    case = stacks_of(AXES)
    return *case, error(*case)


def test_one_stack_is_a_volume_through_its_slices():
    field, stacks, motions = stacks_of(["axial"])
    assert error(field, stacks, motions) < 0.5


def test_two_orthogonal_stacks():
    field, stacks, motions = stacks_of(["axial", "coronal"])
    assert error(field, stacks, motions, QUICK) < 0.25


def test_twelve_stacks_are_better_than_three(usual):
    field, stacks, motions = stacks_of(4 * list(AXES))
    assert error(field, stacks, motions) < usual[3]


@pytest.mark.parametrize(("thickness", "distance"), [(2.0, 2.0), (4.0, 2.0), (3.0, 4.5), (6.0, 6.0)])
def test_thickness_gap_and_overlap(thickness, distance):
    field, stacks, motions = stacks_of(AXES, thickness=thickness, distance=distance)
    assert error(field, stacks, motions) < {2.0: 0.1, 4.0: 0.13, 3.0: 0.14, 6.0: 0.22}[thickness]


def test_a_stack_of_three_slices_does_no_harm(usual):
    field, stacks, motions, error_before = usual
    middle = stacks[2].image.shape[2] // 2
    few = slice(middle - 1, middle + 2)
    origin = stacks[2].affine.copy()
    origin[:3, 3] += (middle - 1) * origin[:3, 2]
    short = dataclasses.replace(
        stacks[2],
        name="run-4",
        image=stacks[2].image[..., few] * np.float32(1.3),
        mask=stacks[2].mask[..., few],
        affine=origin,
    )
    assert error(field, [*stacks, short], [*motions, motions[2][few]]) < 1.1 * error_before


def test_two_parallel_stacks_are_better_than_one():
    field, stacks, motions = stacks_of(["axial", "axial"])
    result = fit_svr(stacks, register_stacks(stacks).transforms, NEAR)
    assert error_of(field, result, gauge(stacks, motions, result)) < 0.4
    assert crossing_angle(result) < 10  # which the verdict tells


def test_pixels_of_two_sizes():
    """Two stacks of 0.8 mm and one of 1.3 mm pixels are better than all of 1.3 mm."""
    errors = []
    for sizes in ((0.8, 1.3, 0.8), (1.3, 1.3, 1.3)):
        cases = [stacks_of(AXES, size=size) for size in (0.8, 1.3)]
        chosen = [cases[0 if size == 0.8 else 1] for size in sizes]
        errors.append(error(cases[0][0], *([case[part][n] for n, case in enumerate(chosen)] for part in (1, 2))))
    assert errors[0] < errors[1] < 0.2


def test_gains_of_stacks_and_bands_of_slices_change_little(usual):
    field, stacks, motions, error_before = usual
    banded = changed(stacks, lambda image, n: image * 3.0**n * np.where(np.arange(image.shape[2]) % 2, 0.8, 1.1))
    assert error(field, banded, motions) < 1.5 * error_before


def test_flipped_axes_change_nothing(usual):
    """The same slices with rows and slices counted from the other end."""
    field, stacks, motions, error_before = usual
    turned = []
    for stack in stacks:
        flip = np.diag([-1.0, 1.0, -1.0, 1.0])
        flip[[0, 2], 3] = np.array(stack.image.shape)[[0, 2]] - 1
        turned.append(
            dataclasses.replace(
                stack, image=stack.image[::-1, :, ::-1], mask=stack.mask[::-1, :, ::-1], affine=stack.affine @ flip
            )
        )
    result = fit_svr(turned, register_stacks(turned).transforms, NEAR)
    back = dataclasses.replace(
        result,
        slice_index=np.array(
            [stacks[n].image.shape[2] - 1 - k for n, k in zip(result.stack_index, result.slice_index, strict=True)]
        ),
    )
    assert error_of(field, back, gauge(stacks, motions, back)) < 1.2 * error_before
