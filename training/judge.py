#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train a judge for a mask network: whether what it finds in a stack is a brain.

    python training/judge.py training/config_judge.toml WEIGHTS.safetensors OUT.safetensors

OUT holds the mask network of WEIGHTS as it is, and the judge.
"""

import argparse
import tomllib
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from generator import PIXEL, Mixture, scenes
from head import real_scenes
from sources import TOP, brains
from stacks import Stack, drawn_stack
from student import Schedule, Student, add_arguments, batches, train
from torch.utils.data import DataLoader, Dataset

from gsbids.errors import InputError
from gsbids.masking.found import MaskNetwork
from gsbids.masking.judge import SIDE, VOXEL, block_about, build_judge
from gsbids.masking.network import NetworkShape
from gsbids.masking.networks import load_network, save_network

SHARES = {"brain": 0.5, "mistaken": 0.3, "other": 0.2}  # of the blocks, by what is in the middle
UNSURE = 0.02  # what is true is at most so near to 0 and 1


def sorted_places(stacks: list[Stack]) -> dict[str, list[tuple[Stack, np.ndarray]]]:
    """Places of all stacks by what is there: "brain", "mistaken" for one, "other"; where nothing was mistaken, others.

    Raises
    ------
    gsbids.errors.InputError
        There are none with or none without a brain.
    """
    places = {
        kind: [(stack, place) for stack in stacks for place in getattr(stack, kind)]
        for kind in ("brain", "mistaken", "other")
    }
    if not (places["brain"] and places["other"]):
        raise InputError(
            f"{len(stacks)} stacks show {len(places['brain'])} places in a brain and "
            f"{len(places['other'])} others; let the configuration make more"
        )
    return places | {"mistaken": places["mistaken"] or places["other"]}


def example(rng, places: dict[str, list[tuple[Stack, np.ndarray]]]) -> tuple[np.ndarray, np.ndarray]:
    """A block of a stack about a place, mirrored, turned, larger or smaller, darker or brighter, cut, with noise.

    Returns
    -------
    block : ndarray, (1, SIDE, SIDE, SIDE), float32
    brain : ndarray, (1,), float32
        1 where its middle lies in a brain, 0 where it does not.
    """
    kind = rng.choice(list(SHARES), p=list(SHARES.values()))
    stack, place = places[kind][rng.integers(len(places[kind]))]
    place = place + rng.normal(0, 3, 3) / stack.spacing
    block = block_about(stack.image, stack.spacing, place, VOXEL * np.exp(rng.uniform(-0.2, 0.2))) * (TOP / 255)
    block = np.flip(block, [axis for axis in range(3) if rng.random() < 0.5])
    if rng.random() < 0.5:
        block = block.swapaxes(0, 1)
    for chance, axes, most in ((0.3, (0, 1), 14), (0.2, (2,), 16)):  # a narrower field of view; fewer slices
        if rng.random() < chance:
            block = cropped(rng, block, axes, most)
    block = np.power(np.clip(block, 0, TOP), np.exp(rng.normal(0, 0.3))) * np.exp(rng.normal(0, 0.15))
    noise = rng.choice((0, 0, 0.03, 0.06)) * rng.standard_normal(block.shape, np.float32)
    return (block + noise * (block > 0)).astype(np.float32)[None], np.float32([kind == "brain"])


def cropped(rng, block: np.ndarray, axes, most: int) -> np.ndarray:
    """A block without up to so many voxels at ends of some axes."""
    left = np.ones((SIDE,) * 3, bool)
    for axis in axes:
        low, high = rng.integers(0, most, 2) * (rng.random(2) < 0.5)
        along = np.moveaxis(left, axis, 0)
        along[:low], along[SIDE - high :] = False, False
    return block * left


class Drawn(Dataset):
    """So many stacks; stack k of a seed is always the same."""

    def __init__(self, seed: int, count: int, pool, mixture: Mixture, known: MaskNetwork):
        self.seed, self.count, self.told = seed, count, (pool, mixture, known)

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> Stack:
        return drawn_stack(np.random.default_rng((self.seed, 5, k)), *self.told)


def made_stacks(drawn: Drawn, workers: int) -> list[Stack]:
    """All of them, made in so many processes."""
    return list(DataLoader(drawn, batch_size=None, num_workers=workers, collate_fn=lambda stack: stack))


def to_be_judged(path: Path) -> MaskNetwork:
    """The mask network of a file of weights.

    Raises
    ------
    gsbids.errors.InputError
        It sees other than what stacks are made of.
    """
    known = load_network(path)
    if not isinstance(known.shape, NetworkShape) or (known.shape.slices, known.shape.pixel) != (1, PIXEL):
        raise InputError(
            f"{path}: a judge is trained for a network that sees one slice in pixels of {PIXEL:g} mm, not "
            f"for {known.shape}; give weights of train.py"
        )
    return known


def loss_of(judge, block: torch.Tensor, brain: torch.Tensor) -> torch.Tensor:
    """Cross entropy."""
    device = next(judge.parameters()).device
    wanted = UNSURE + (1 - 2 * UNSURE) * brain.to(device)
    return torch.nn.functional.binary_cross_entropy_with_logits(judge(block.to(device)), wanted)


def main() -> None:
    """Train by a configuration."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("weights", type=Path, help="of the mask network")
    parser.add_argument("output", type=Path, help="file for the mask network with its judge")
    add_arguments(parser)
    args = parser.parse_args()
    told = tomllib.loads(args.config.read_text())
    schedule, mixture = Schedule(**told["schedule"]), Mixture(**told["mixture"])
    try:
        known = to_be_judged(args.weights)
        real = real_scenes(args.data / "fetal-stacks-mialsrtk", told["train"], args.head)
        atlas = brains(args.data / "fetal-atlas-spinabifida", told["train"]["weeks"])
    except InputError as error:
        parser.error(str(error))
    torch.manual_seed(told["seed"])
    torch.set_num_threads(args.threads)
    processes = args.workers + 1
    pool = scenes(told["seed"], real, atlas, mixture, processes)
    stacks = made_stacks(Drawn(told["seed"], told["stacks"], pool, mixture, known), processes)
    try:
        places = sorted_places(stacks)
    except InputError as error:
        parser.error(f"{args.config}: {error}")
    print({kind: len(there) for kind, there in places.items()}, flush=True)

    def write(path, judge, facts):
        own = {f"judge_{name}": text for name, text in facts.items()}
        save_network(path, replace(known, judge=judge, facts=known.facts | own))

    args.output.parent.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    student = Student(build_judge().to(device), loss_of, write, schedule)
    loader = batches(partial(example, places=places), told["seed"] * 10**9, schedule.batch, args.workers)
    train({args.output: student}, loader, schedule, {"config": args.config.read_text()}, args.log_every)


if __name__ == "__main__":
    main()
