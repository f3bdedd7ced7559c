# SPDX-License-Identifier: Apache-2.0
"""What the judge of a mask network is trained on, and one short training."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import ndimage

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "training"))

import judge
import stacks
from generator import Mixture, scenes
from sources import REAL, Brain, scene_of

from gsbids.errors import InputError
from gsbids.masking.found import MaskNetwork
from gsbids.masking.judge import SIDE, build_judge
from gsbids.masking.network import NetworkShape, build_network
from gsbids.masking.networks import load_network, save_network

SHAPE = NetworkShape((4, 8), 2.0)
MIXTURE = Mixture(scenes=2, empty=0.0, away=0.5, narrow=0.0, close=0.2, alone=0.2)


class Bright(torch.nn.Module):
    """Brain is what is brighter than one half."""

    def forward(self, image):
        return 20 * (image - 0.5)


def ellipsoid(half, shape, spacing):
    at = np.stack(
        np.meshgrid(*((np.arange(n) - (n - 1) / 2) * s for n, s in zip(shape, spacing, strict=True)), indexing="ij"), -1
    )
    return ((at / half) ** 2).sum(-1) < 1


@pytest.fixture(scope="module")
def pool():
    """Scenes of a bright ellipsoid in dim tissue as a stack, and of one of the atlas' like."""
    inside = ellipsoid((22, 30, 24), (80, 80, 24), (1.5, 1.5, 3.0))
    labels = np.where(inside, REAL, 0).astype(np.uint8)
    real = scene_of("stack", np.where(inside, 140, 50).astype(np.uint8), labels, (1.5, 1.5, 3.0), True)
    inside = ellipsoid((22, 30, 21), (31, 41, 29), (1.5, 1.5, 1.5))
    atlas = Brain("ellipsoid", np.full(inside.shape, 0.6, np.float32), inside.astype(np.uint8), 1.5)
    return scenes(1, [real], [atlas], MIXTURE), real, atlas


@pytest.fixture(scope="module")
def made(pool):
    return judge.made_stacks(judge.Drawn(3, 24, pool[0], MIXTURE, MaskNetwork(Bright(), SHAPE)), 0)


def test_stacks_are_the_same_for_a_seed_and_in_any_number_of_processes(pool, made):
    again = judge.made_stacks(judge.Drawn(3, 6, pool[0], MIXTURE, MaskNetwork(Bright(), SHAPE)), 2)
    for one, two in zip(made[:6], again, strict=True):
        np.testing.assert_array_equal(one.image, two.image)
        for kind in judge.SHARES:
            np.testing.assert_array_equal(getattr(one, kind), getattr(two, kind))
    other = judge.made_stacks(judge.Drawn(4, 1, pool[0], MIXTURE, MaskNetwork(Bright(), SHAPE)), 0)[0]
    assert other.image.shape != made[0].image.shape or (other.image != made[0].image).any()


def test_some_stacks_show_a_brain_and_some_pass_it(made):
    for stack in made:
        assert stack.image.shape[2] <= stacks.MOST
        assert stack.spacing[:2] == (2.0, 2.0)
        for kind in judge.SHARES:
            places = getattr(stack, kind)
            assert places.shape[1] == 3
            assert (places >= 0).all()
            assert (np.rint(places) < stack.image.shape).all()
    with_brain = sum(len(stack.brain) > 0 for stack in made)
    assert 4 <= with_brain <= 20
    assert sum(len(stack.other) for stack in made) > 30


def test_regions_of_a_network_are_told_apart_by_where_the_brain_is():
    brain, wrong = np.zeros((2, 100, 100, 20), bool)
    brain[20:40, 20:40, 5:15] = True
    wrong[60:80, 60:80, 5:15] = True
    probability = np.where(brain | wrong, 0.9, 0.01).astype(np.float32)
    away = stacks.distance(brain, (2, 2, 3))
    held, mistaken = stacks.places_found(probability, brain, away, (2, 2, 3))
    np.testing.assert_allclose(held, [(29.5, 29.5, 9.5)], atol=0.1)
    np.testing.assert_allclose(mistaken, [(69.5, 69.5, 9.5)], atol=0.1)
    nothing = np.zeros_like(brain)
    held, mistaken = stacks.places_found(probability, nothing, stacks.distance(nothing, (2, 2, 3)), (2, 2, 3))
    assert (len(held), len(mistaken)) == (0, 2)
    crumb = np.zeros_like(probability)
    crumb[:4, :4, :4] = 0.9
    assert stacks.places_found(crumb, brain, away, (2, 2, 3)) == ([], [])


def test_other_places_are_lit_and_not_near_the_brain():
    brain = np.zeros((100, 100, 20), bool)
    brain[20:60, 20:60, 5:15] = True
    images = np.zeros(brain.shape, np.float32)
    images[:80] = 0.5
    away = ndimage.distance_transform_edt(~brain, (2, 2, 3))
    np.testing.assert_array_equal(stacks.distance(brain, (2, 2, 3)), away)
    places = [place for seed in range(9) for place in stacks.places_out(np.random.default_rng(seed), images, away)]
    assert len(places) > 20
    assert all(away[tuple(place)] > stacks.FAR and place[0] < 80 for place in places)
    assert stacks.places_out(np.random.default_rng(0), 0 * images, away) == []


def test_examples_say_what_is_in_their_middle(made):
    places = judge.sorted_places(made)
    drawn = [judge.example(np.random.default_rng(seed), places) for seed in range(60)]
    for block, brain in drawn:
        assert block.shape == (1, SIDE, SIDE, SIDE)
        assert block.dtype == np.float32
        assert np.isfinite(block).all()
        assert brain.shape == (1,)
    assert 0.25 < np.mean([brain for _, brain in drawn]) < 0.75
    again = judge.example(np.random.default_rng(7), places)
    np.testing.assert_array_equal(again[0], drawn[7][0])


def test_without_places_of_both_kinds_there_is_nothing_to_learn(made):
    with pytest.raises(InputError, match=r"show 0 places in a brain and .* others; let the configuration make more"):
        judge.sorted_places([stack for stack in made if not len(stack.brain)])


def test_a_short_training_adds_a_judge_to_the_weights(tmp_path, pool, monkeypatch):
    torch.manual_seed(0)
    network = build_network(SHAPE).eval()
    save_network(tmp_path / "w.safetensors", MaskNetwork(network, SHAPE, facts={"config": "of the network"}))
    monkeypatch.setattr(judge, "real_scenes", lambda folder, told, head: [pool[1]])
    monkeypatch.setattr(judge, "brains", lambda folder, weeks: [pool[2]])
    config = tmp_path / "config.toml"
    config.write_text(
        "seed = 1\nstacks = 20\n[train]\nruns = [1]\nweeks = [22]\n[mixture]\nscenes = 2\nempty = 0.0\n"
        "[schedule]\nminutes = 5.0\nbatches = 40\nbatch = 8\nrate = 2e-3\naverage = 0.9\n"
    )
    out = tmp_path / "made" / "judged.safetensors"
    monkeypatch.setattr(
        sys, "argv", ["judge", str(config), str(tmp_path / "w.safetensors"), str(out), "--workers=0", "--log-every=10"]
    )
    judge.main()
    known = load_network(out)
    image, block = torch.rand(1, 1, 32, 32), torch.rand(1, 1, SIDE, SIDE, SIDE)
    torch.testing.assert_close(known.network(image), network(image), rtol=0, atol=0)
    assert known.judge(block).shape == build_judge()(block).shape
    assert known.facts["config"] == "of the network"
    assert known.facts["judge_config"] == config.read_text()
    rows = json.loads(out.with_suffix(".log.json").read_text())
    assert rows[-1]["loss_judged"] < rows[0]["loss_judged"]


@pytest.mark.parametrize("shape", [NetworkShape((4, 8), 2.0, 3), NetworkShape((4, 8), 1.5)])
def test_a_network_that_sees_otherwise_than_the_stacks_are_made_is_refused(tmp_path, shape, capsys, monkeypatch):
    save_network(tmp_path / "w.safetensors", MaskNetwork(build_network(shape), shape))
    config = str(Path(judge.__file__).with_name("config_judge.toml"))
    files = [str(tmp_path / name) for name in ("w.safetensors", "o.safetensors")]
    monkeypatch.setattr(sys, "argv", ["judge", config, *files])
    with pytest.raises(SystemExit, match="2"):
        judge.main()
    assert "w.safetensors: a judge is trained for a network that sees one slice in" in capsys.readouterr().err
    assert not (tmp_path / "o.safetensors").exists()
