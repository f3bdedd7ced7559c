#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train mask networks on slices that are made as it goes.

    python training/train.py training/config.toml OUT_DIR

One network for each number of slices of the configuration, all on the same slices: OUT_DIR/slices-N.safetensors.
"""

import argparse
import tomllib
from functools import partial
from pathlib import Path

import torch
from generator import PIXEL, SIZE, Mixture, draw, scenes
from head import real_scenes
from sources import brains
from student import Schedule, Student, add_arguments, batches, train

from gsbids.errors import InputError
from gsbids.masking.found import MaskNetwork
from gsbids.masking.network import NetworkShape, build_network
from gsbids.masking.networks import load_network, save_network


def loss_of(logit: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Cross entropy and 1 - Dice of the batch, half each."""
    probability = torch.sigmoid(logit)
    overlap = 2 * (probability * mask).sum() + 1
    dice = overlap / (probability.sum() + mask.sum() + 1)
    return torch.nn.functional.binary_cross_entropy_with_logits(logit, mask) + (1 - dice)


def mask_student(shape: NetworkShape, schedule: Schedule, device: str, start: Path | None = None) -> Student:
    """A mask network to be trained on the middle slices of blocks, from its own weights or from a file of them, whose
    judge is kept."""
    known = load_network(start) if start else MaskNetwork(build_network(shape), shape)
    network = known.network

    def loss(network, blocks, mask):
        spare = (blocks.shape[1] - shape.slices) // 2
        with torch.autocast(device, torch.bfloat16, enabled=device != "cpu" or has_bfloat16()):
            seen = blocks[:, spare : spare + shape.slices].to(device)
            logit = network(seen.contiguous(memory_format=torch.channels_last))
        return loss_of(logit.float(), mask.to(device))

    def write(path, network, facts):
        save_network(path, MaskNetwork(network, shape, known.judge, known.facts | facts))

    return Student(network.to(device, memory_format=torch.channels_last), loss, write, schedule)


def has_bfloat16() -> bool:
    """Whether this processor multiplies numbers of 16 bits; one that has to imitate it takes seven times as long."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def networks_of(told: dict, start: Path | None) -> list[NetworkShape]:
    """The networks of a configuration, which the weights to start from have to fit.

    Raises
    ------
    gsbids.errors.InputError
        They do not.
    """
    shapes = [NetworkShape(tuple(told["channels"]), PIXEL, count, SIZE) for count in told["slices"]]
    if start and shapes != [known := load_network(start).shape]:
        raise InputError(f"{start}: holds {known}, not {shapes}; give a configuration of that network alone")
    return shapes


def main() -> None:
    """Train by a configuration."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("output", type=Path, help="folder for the weights, a file for each network")
    parser.add_argument("--start", type=Path, help="weights to go on from, of the one network of the configuration")
    parser.add_argument("--rate", type=float, help="in the place of the configuration's")
    parser.add_argument("--minutes", type=float, help="in the place of the configuration's")
    parser.add_argument("--batches", type=int, help="in the place of the configuration's")
    add_arguments(parser)
    args = parser.parse_args()
    told = tomllib.loads(args.config.read_text())
    schedule = Schedule(**told["schedule"] | {k: v for k in ("minutes", "batches", "rate") if (v := getattr(args, k))})
    try:
        shapes = networks_of(told["network"], args.start)
        real = real_scenes(args.data / "fetal-stacks-mialsrtk", told["train"], args.head, args.labels)
        atlas = brains(args.data / "fetal-atlas-spinabifida", told["train"]["weeks"])
    except InputError as error:
        parser.error(str(error))
    torch.manual_seed(told["seed"])
    torch.set_num_threads(args.threads)
    mixture = Mixture(**told["mixture"])
    pool = scenes(told["seed"], real, atlas, mixture, args.workers + 1)
    args.output.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    students = {
        args.output / f"slices-{shape.slices}.safetensors": mask_student(shape, schedule, device, args.start)
        for shape in shapes
    }
    slices = max(shape.slices for shape in shapes)
    loader = batches(
        partial(draw, pool=pool, mixture=mixture, slices=slices), told["seed"] * 10**9, schedule.batch, args.workers
    )
    train(students, loader, schedule, {"config": args.config.read_text()}, args.log_every)


if __name__ == "__main__":
    main()
