# SPDX-License-Identifier: Apache-2.0
"""Intracranial masks that the network is trained on: drawn to the skull, by floods from inside and outside."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))

import labels
from sources import atlas_files, stack_files

from gsbids.errors import InputError
from gsbids.imaging.masks import dice
from gsbids.imaging.stack import Stack

VOXEL = 1.0
BRAIN, SKULL = 20.0, 22.5  # mm, radii


@pytest.fixture(scope="module")
def head():
    """A ball of brain with folds in a dark skull, scalp around it, and an eye that touches the skull."""
    at = np.stack(np.meshgrid(*[np.arange(-32, 33) * VOXEL] * 3, indexing="ij"), -1)
    far = np.linalg.norm(at, axis=-1)
    image = np.where(far < BRAIN, 300 + 80 * np.sin(at[..., 0] / 2), np.where(far < SKULL, 60, 250))
    eye = np.linalg.norm(at - [28.0, 0, 0], axis=-1)
    image = np.where(eye < 5, 700, np.where((eye < 6.5) & (far > BRAIN), 60, image))
    image = np.where(far < 31, image, 0) + np.random.default_rng(0).normal(0, 10, far.shape)
    affine = np.diag([VOXEL, VOXEL, VOXEL, 1.0])
    return Stack("head", image.astype(np.float32), far < 27, affine, VOXEL), far, eye


@pytest.mark.parametrize("aside", [0.0, 3.0])
def test_the_mask_ends_at_the_skull_wherever_the_outline_of_the_atlas_lies(head, aside):
    stack, far, eye = head
    outline = np.linalg.norm(np.argwhere(np.ones(far.shape)) - 32 - [0, aside, 0], axis=1).reshape(far.shape) < 24
    inside = labels.without_spurs(labels.within_skull(stack, outline, 9.0, 1.0), stack.spacing, 4.0)
    assert dice(inside, far < (BRAIN + SKULL) / 2) > 0.97
    assert not inside[eye < 5].any()


def test_spurs_are_cut_off_and_the_rest_keeps_its_edge():
    at = np.indices((61, 61, 61)) - 30
    ball = (at**2).sum(0) < 20**2
    spur = (np.abs(at[1]) < 3) & (np.abs(at[2]) < 3) & (at[0] > 0)
    opened = labels.without_spurs(ball | spur, (1.0, 1.0, 1.0), 4.0)
    assert not opened[at[0] > 22].any()
    assert dice(opened, ball) > 0.99


def test_missing_masks_are_said(tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(InputError, match=r"there are no masks; make them with training/labels.py"):
        stack_files(tmp_path / "data", [1], tmp_path / "none")
    with pytest.raises(InputError, match="there is no such data set"):
        atlas_files(tmp_path / "none", 22)
