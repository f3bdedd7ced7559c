#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Train the mask network on slices that are made as it goes.

    python training/train.py training/config.toml OUT.safetensors
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
from generator import Mixture, draw
from sources import brains, real_stacks
from torch.utils.data import DataLoader, IterableDataset

from gsbids.masking.network import NetworkShape, build_network, save_network


class Slices(IterableDataset):
    """Endless slices; worker w of W draws the seeds ``start + w, start + w + W, ...``."""

    def __init__(self, stacks, atlas, mixture: Mixture, start: int):
        super().__init__()
        self.stacks, self.atlas, self.mixture, self.start = stacks, atlas, mixture, start

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        number, step = (self.start + worker.id, worker.num_workers) if worker else (self.start, 1)
        while True:
            image, mask = draw(np.random.default_rng(number), self.stacks, self.atlas, self.mixture)
            yield image[None], mask[None]
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


def train(network, loader, schedule: Schedule, device: str, log: Path) -> torch.nn.Module:
    """Adam with a rate that falls as a cosine of the time; returns the network with averaged weights."""
    network.to(device).train()
    mean = torch.optim.swa_utils.AveragedModel(
        network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(schedule.average))
    optimiser = torch.optim.AdamW(network.parameters(), lr=schedule.rate, weight_decay=1e-4)
    start, losses, rows = time.monotonic(), [], []
    for step, (image, mask) in enumerate(loader):
        done = max((time.monotonic() - start) / (60 * schedule.minutes), step / schedule.batches)
        if done >= 1:
            break
        for group in optimiser.param_groups:
            group["lr"] = schedule.rate * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done))
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device.split(":")[0], torch.bfloat16):
            logit = network(image.to(device))
        loss = loss_of(logit.float(), mask.to(device))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
        mean.update_parameters(network)
        losses.append(loss.item())
        if (step + 1) % 50 == 0:
            rows.append({"batch": step + 1, "slices": (step + 1) * schedule.batch, "loss": float(np.mean(losses[-50:])),
                         "minutes": (time.monotonic() - start) / 60})
            log.write_text(json.dumps(rows))
            print(rows[-1], flush=True)
            torch.save(mean.module.state_dict(), log.with_suffix(".pt"))
    return mean.module.cpu().eval()


def main() -> None:
    """Train by a configuration."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("config", type=Path)
    parser.add_argument("output", type=Path, help=".safetensors")
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument("--minutes", type=float, help="in the place of the configuration's")
    parser.add_argument("--batches", type=int, help="in the place of the configuration's")
    parser.add_argument("--start", type=Path, help="weights (.pt, a state dictionary) to go on from")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args()
    with open(args.config, "rb") as file:
        told = tomllib.load(file)
    schedule = Schedule(**told["schedule"] | {k: v for k in ("minutes", "batches") if (v := getattr(args, k))})
    torch.manual_seed(told["seed"])
    torch.set_num_threads(args.threads)
    stacks = real_stacks(args.data / "fetal-stacks-mialsrtk", told["train"]["runs"])
    atlas = brains(args.data / "fetal-atlas-spinabifida", told["train"]["weeks"])
    slices = Slices(stacks, atlas, Mixture(**{k: tuple(v) if isinstance(v, list) else v
                                              for k, v in told["mixture"].items()}), told["seed"] * 10**9)
    shape = NetworkShape(tuple(told["network"]["channels"]), told["network"]["pixel"])
    network = build_network(shape)
    if args.start:
        network.load_state_dict(torch.load(args.start, weights_only=True))
    loader = DataLoader(slices, schedule.batch, num_workers=args.workers)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    network = train(network, loader, schedule, device, args.output.with_suffix(".log.json"))
    save_network(args.output, network, shape, {"config": args.config.read_text()})


if __name__ == "__main__":
    main()
