#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train mask networks on slices that are made as it goes.

    python training/train.py training/config.toml OUT_DIR

One network for each number of slices of the configuration, all on the same slices: OUT_DIR/slices-N.safetensors.
"""

import argparse
import json
import math
import time
import tomllib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from generator import PIXEL, SIZE, Mixture, draw, scenes
from head import filled_up, head_scene, head_volume
from sources import Scene, brains, read_stack, real_stacks, stack_files, surrounded
from torch.utils.data import DataLoader, IterableDataset

from gsbids.errors import InputError
from gsbids.masking.network import NetworkShape, build_network, load_network, save_network


class Blocks(IterableDataset):
    """Endless blocks of slices; worker w of W draws the seeds ``start + w, start + w + W, ...``."""

    def __init__(self, pool, mixture: Mixture, slices: int, start: int):
        super().__init__()
        self.pool, self.mixture, self.slices, self.start = pool, mixture, slices, start

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        number, step = (self.start + worker.id, worker.num_workers) if worker else (self.start, 1)
        if worker:
            torch.set_num_threads(1)
        while True:
            image, mask = draw(np.random.default_rng(number), self.pool, self.mixture, self.slices)
            yield image, mask[None]
            number += step


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Attributes
    ----------
    minutes : float
        At most so long; the rate has fallen to nothing then.
    batches : int
        At most so many.
    batch : int
        Slices of one.
    rate : float
        Of Adam at the start.
    average : float
        Of the weights, from step to step: what is saved is their moving mean.
    """

    minutes: float
    batches: int
    batch: int
    rate: float
    average: float


def loss_of(logit: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Cross entropy and 1 - Dice of the batch, half each."""
    probability = torch.sigmoid(logit)
    overlap = 2 * (probability * mask).sum() + 1
    dice = overlap / (probability.sum() + mask.sum() + 1)
    return torch.nn.functional.binary_cross_entropy_with_logits(logit, mask) + (1 - dice)


class Student:
    """A network in training: its optimiser, and the moving mean of its weights."""

    def __init__(self, shape: NetworkShape, schedule: Schedule, device: str, start: Path | None = None):
        self.shape, self.schedule, self.device = shape, schedule, device
        network = load_network(start)[0] if start else build_network(shape)
        self.network = network.to(device, memory_format=torch.channels_last).train()
        self.mean = torch.optim.swa_utils.AveragedModel(
            self.network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(schedule.average))
        self.optimiser = torch.optim.AdamW(self.network.parameters(), lr=schedule.rate, weight_decay=1e-4)
        self.losses = []

    def step(self, blocks: torch.Tensor, mask: torch.Tensor, rate: float) -> None:
        """One step on the middle slices of blocks."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        spare = (blocks.shape[1] - self.shape.slices) // 2
        with torch.autocast(self.device.split(":")[0], torch.bfloat16):
            seen = blocks[:, spare:spare + self.shape.slices].to(self.device)
            logit = self.network(seen.contiguous(memory_format=torch.channels_last))
        loss = loss_of(logit.float(), mask.to(self.device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.mean.update_parameters(self.network)
        self.losses.append(loss.item())

    def save(self, path: Path, facts: dict[str, str]) -> None:
        """Write the mean weights under their name when they are whole."""
        new = path.with_suffix(".new")
        save_network(new, self.mean.module, self.shape, facts)
        new.replace(path)


def train(students: dict[Path, Student], loader, schedule: Schedule, facts: dict[str, str], every: int) -> None:
    """Adam with a rate that falls as a cosine of the time, for all networks on the same slices."""
    start, rows = time.monotonic(), []
    for step, (blocks, mask) in enumerate(loader):
        done = max((time.monotonic() - start) / (60 * schedule.minutes), step / schedule.batches)
        if done >= 1:
            break
        rate = schedule.rate * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done))
        for student in students.values():
            student.step(blocks, mask, rate)
        if (step + 1) % every == 0:
            rows.append({"slices": (step + 1) * schedule.batch, "minutes": (time.monotonic() - start) / 60}
                        | {f"loss_{path.stem}": float(np.mean(s.losses[-every:])) for path, s in students.items()})
            print(json.dumps(rows[-1]), flush=True)
            for path, student in students.items():
                student.save(path, facts | {"slices": str(rows[-1]["slices"])})
    for path, student in students.items():
        student.save(path, facts | {"slices": str(step * schedule.batch)})
        path.with_suffix(".log.json").write_text(json.dumps(rows))


def networks_of(told: dict, start: Path | None) -> list[NetworkShape]:
    """The networks of a configuration, which the weights to start from have to fit.

    Raises
    ------
    gsbids.errors.InputError
        They do not.
    """
    shapes = [NetworkShape(tuple(told["channels"]), PIXEL, count, SIZE) for count in told["slices"]]
    if start and shapes != [known := load_network(start)[1]]:
        raise InputError(f"{start}: holds {known}, not {shapes}; give a configuration of that network alone")
    return shapes


def real_scenes(folder: Path, told: dict, head: Path) -> list[Scene]:
    """The stacks of the real subject; and, where the configuration says so, its head as a sharp volume, surrounded by
    each kind of stack that there is."""
    stacks, masks = stack_files(folder, told["runs"])
    read = [read_stack(*pair) for pair in zip(stacks, masks, strict=True)]
    out = real_stacks(read)
    if told.get("heads"):
        own = head / f"runs-{'-'.join(map(str, told['runs']))}"
        volume = head_scene(*head_volume(stacks, masks, own))
        out += [filled_up(surrounded(*volume, *read[told["runs"].index(run)])) for run in told["heads"]]
    return out


def main() -> None:
    """Train by a configuration."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("output", type=Path, help="folder for the weights, a file for each network")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--head", type=Path, default=Path("work/head"),
                        help="folder where sharp volumes of the real head are made, and taken from the next time")
    parser.add_argument("--start", type=Path, help="weights to go on from, of the one network of the configuration")
    parser.add_argument("--rate", type=float, help="in the place of the configuration's")
    parser.add_argument("--minutes", type=float, help="in the place of the configuration's")
    parser.add_argument("--batches", type=int, help="in the place of the configuration's")
    parser.add_argument("--log-every", type=int, default=100, help="batches")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    told = tomllib.loads(args.config.read_text())
    schedule = Schedule(**told["schedule"] | {k: v for k in ("minutes", "batches", "rate") if (v := getattr(args, k))})
    try:
        shapes = networks_of(told["network"], args.start)
        real = real_scenes(args.data / "fetal-stacks-mialsrtk", told["train"], args.head)
        atlas = brains(args.data / "fetal-atlas-spinabifida", told["train"]["weeks"])
    except InputError as error:
        parser.error(str(error))
    torch.manual_seed(told["seed"])
    torch.set_num_threads(args.threads)
    mixture = Mixture(**told["mixture"])
    pool = scenes(told["seed"], real, atlas, mixture, args.workers + 1)
    args.output.mkdir(parents=True, exist_ok=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    students = {args.output / f"slices-{shape.slices}.safetensors": Student(shape, schedule, device, args.start)
                for shape in shapes}
    blocks = Blocks(pool, mixture, max(shape.slices for shape in shapes), told["seed"] * 10**9)
    loader = DataLoader(blocks, schedule.batch, num_workers=args.workers, prefetch_factor=4 if args.workers else None)
    train(students, loader, schedule, {"config": args.config.read_text()}, args.log_every)


if __name__ == "__main__":
    main()
