# SPDX-License-Identifier: Apache-2.0
"""The judge of a mask network: what it sees, its weights, and what becomes of a mask that it does not believe."""

import numpy as np
import pytest
import torch

from gsbids.errors import InputError
from gsbids.imaging.masks import dice
from gsbids.masking.found import MaskNetwork
from gsbids.masking.judge import SIDE, VOXEL, block_about, build_judge, judge_block
from gsbids.masking.network import NetworkShape, build_network, segment
from gsbids.masking.networks import load_network, save_network

SHAPE = NetworkShape((4, 8, 8), 2.0)
SPACING = (2.0, 2.0, 4.0)
MIDDLE = slice(SIDE // 2 - 1, SIDE // 2 + 1)


class Bright(torch.nn.Module):
    """Brain is what is brighter than 0.3."""

    def forward(self, image):
        return 20 * (image - 0.3)


class Opinion(torch.nn.Module):
    """A brain is, surely or not, what is no brighter than 0.6 in the middle."""

    def __init__(self, sure: float = 9.0):
        super().__init__()
        self.sure = sure

    def forward(self, block):
        return self.sure * torch.where(block[:, 0, MIDDLE, MIDDLE, MIDDLE].mean((1, 2, 3)) < 0.6, 1.0, -1.0)[:, None]


def balls(*told, shape=(100, 100, 20)):
    """A stack with balls (place in mm, radius, brightness) in black, with corners that set the range of brightness."""
    at = np.stack(np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, SPACING, strict=True)), indexing="ij"), -1)
    image, where = np.full(shape, 1.0, np.float32), []
    for place, radius, brightness in told:
        where.append(((at - place) ** 2).sum(-1) < radius**2)
        image[where[-1]] = brightness
    image[:4, ::2] = 100.0
    return image, where


def test_a_block_shows_what_lies_around_a_place_in_mm():
    shape = (90, 80, 30)
    at = np.meshgrid(*(np.arange(n) * s for n, s in zip(shape, SPACING, strict=True)), indexing="ij")
    centre = np.array((45.3, 38.0, 14.6))
    offset = (np.arange(SIDE) - (SIDE - 1) / 2) * VOXEL
    for axis, ramp in enumerate(at):
        block = block_about(ramp + 1000, SPACING, centre, VOXEL)
        assert block.shape == (SIDE,) * 3
        along = np.moveaxis(block, axis, 0)[:, SIDE // 2, SIDE // 2]
        lit = np.flatnonzero(along)[2:-2]  # the ends are seen in part
        np.testing.assert_allclose(along[lit], centre[axis] * SPACING[axis] + offset[lit] + 1000, rtol=1e-5)
        seen = shape[axis] * SPACING[axis]
        assert len(lit) >= min(SIDE, int(seen / VOXEL)) - 6


@pytest.mark.parametrize(
    ("shape", "centre"), [((60, 60, 20), (300, 30, 10)), ((60, 60, 20), (30, -200, 10)), ((60, 60, 1), (30, 30, 40))]
)
def test_beyond_the_stack_is_nothing(shape, centre):
    assert not block_about(np.ones(shape), SPACING, centre).any()


def test_a_stack_of_one_slice_is_seen():
    block = block_about(np.ones((60, 60, 1)), SPACING, (30, 30, 0))
    assert 0 < block.any((0, 1)).sum() <= 2


def test_mirror_images_are_judged_alike():
    torch.manual_seed(0)
    judge = build_judge().eval()
    block = np.random.default_rng(0).random((SIDE,) * 3, np.float32)
    found = judge_block(block, judge)
    assert 0 < found < 1
    assert judge_block(np.flip(block, (0, 2)), judge) == pytest.approx(found, abs=1e-5)


def test_a_file_gives_the_judge_back(tmp_path):
    torch.manual_seed(0)
    network, judge = build_network(SHAPE).eval(), build_judge().eval()
    path = tmp_path / "a.safetensors"
    save_network(path, MaskNetwork(network, SHAPE, judge))
    again = load_network(path)
    block, image = torch.rand(2, 1, SIDE, SIDE, SIDE), torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(again.judge(block), judge(block), rtol=0, atol=0)
    torch.testing.assert_close(again.network(image), network(image), rtol=0, atol=0)
    lacking = torch.nn.Module()
    lacking.final = judge.final
    save_network(path, MaskNetwork(network, SHAPE, lacking))
    with pytest.raises(InputError, match=r"a\.safetensors: no weights of a mask network"):
        load_network(path)


@pytest.mark.parametrize(("brightness", "sure", "found"), [(50.0, 9.0, True), (90.0, 9.0, False), (90.0, 0.0, True)])
def test_what_the_judge_takes_for_no_brain_is_none(brightness, sure, found):
    image, (ball,) = balls(((100, 110, 40), 25, brightness))
    plain = segment(image, SPACING, MaskNetwork(Bright(), SHAPE))
    known = segment(image, SPACING, MaskNetwork(Bright(), SHAPE, Opinion(sure)))
    assert dice(plain.mask, ball) > 0.95
    assert known.mask.any() == found
    assert known.confidence == pytest.approx(plain.confidence if found else 0.0, abs=1e-3)


def test_a_large_region_that_is_half_believed_is_not_in_the_way_of_a_brain():
    image, (small, large) = balls(((60, 110, 40), 22, 50.0), ((145, 110, 40), 30, 95.0))
    known = MaskNetwork(Bright(), SHAPE, Opinion(0.9))  # 0.71 for the small one, 0.29 for the large one
    assert large.sum() * 2 * 0.29 > 1.2 * small.sum()
    assert dice(segment(image, SPACING, known).mask, small) > 0.95


def test_of_two_regions_the_one_is_kept_that_the_judge_believes():
    image, (small, large) = balls(((60, 110, 40), 22, 50.0), ((145, 110, 40), 30, 95.0))
    assert dice(segment(image, SPACING, MaskNetwork(Bright(), SHAPE)).mask, large) > 0.95
    assert dice(segment(image, SPACING, MaskNetwork(Bright(), SHAPE, Opinion())).mask, small) > 0.95
