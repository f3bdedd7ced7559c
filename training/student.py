# SPDX-License-Identifier: Apache-2.0
"""A network in training: Adam with a rate that falls as a cosine, and the moving mean of the weights, which is kept."""

import argparse
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset


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
        Examples of one.
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


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every training is told."""
    parser.add_argument("--data", type=Path, default=Path(__file__).resolve().parents[2] / "shared" / "data")
    parser.add_argument(
        "--head",
        type=Path,
        default=Path("work/head"),
        help="folder where sharp volumes of the real head are made, and taken from the next time",
    )
    parser.add_argument(
        "--labels",
        type=Path,
        default=Path("work/labels"),
        help="folder of intracranial masks, made by labels.py, for configurations that ask for them",
    )
    parser.add_argument("--log-every", type=int, default=100, help="batches")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)


class Endless(IterableDataset):
    """Examples by their seeds; worker w of W draws ``start + w, start + w + W, ...``."""

    def __init__(self, draw: Callable, start: int):
        super().__init__()
        self.draw, self.start = draw, start

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        number, step = (self.start + worker.id, worker.num_workers) if worker else (self.start, 1)
        if worker:
            torch.set_num_threads(1)
        while True:
            yield self.draw(np.random.default_rng(number))
            number += step


def batches(draw: Callable, start: int, size: int, workers: int) -> DataLoader:
    """Endless batches of what a function of a generator of random numbers draws: tuples of arrays."""
    return DataLoader(Endless(draw, start), size, num_workers=workers, prefetch_factor=4 if workers else None)


class Student:
    """A network in training.

    Parameters
    ----------
    network : torch.nn.Module
    loss : callable
        Of the network, what it sees and what is true (both as drawn), to a number.
    write : callable
        Of a path, a network and facts (dict of text): how it is saved.
    schedule : Schedule
    """

    def __init__(self, network: torch.nn.Module, loss: Callable, write: Callable, schedule: Schedule):
        self.network, self.loss, self.write = network.train(), loss, write
        self.mean = torch.optim.swa_utils.AveragedModel(
            network, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(schedule.average)
        )
        self.optimiser = torch.optim.AdamW(network.parameters(), lr=schedule.rate, weight_decay=1e-4)
        self.losses = []

    def step(self, seen: torch.Tensor, true: torch.Tensor, rate: float) -> None:
        """One step on a batch."""
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss = self.loss(self.network, seen, true)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimiser.step()
        self.mean.update_parameters(self.network)
        self.losses.append(loss.item())

    def save(self, path: Path, facts: dict[str, str]) -> None:
        """Write the mean weights under their name when they are whole."""
        new = path.with_suffix(".new")
        self.write(new, self.mean.module, facts)
        new.replace(path)


def train(students: dict[Path, Student], loader, schedule: Schedule, facts: dict[str, str], every: int) -> None:
    """All students learn from the same batches; weights and a log are written now and then, and at the end."""
    start, rows, step = time.monotonic(), [], 0
    for step, (seen, true) in enumerate(loader):
        done = max((time.monotonic() - start) / (60 * schedule.minutes), step / schedule.batches)
        if done >= 1:
            break
        rate = schedule.rate * min(1, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * done))
        for student in students.values():
            student.step(seen, true, rate)
        if (step + 1) % every == 0:
            rows.append(
                {"examples": (step + 1) * schedule.batch, "minutes": (time.monotonic() - start) / 60}
                | {f"loss_{path.stem}": float(np.mean(s.losses[-every:])) for path, s in students.items()}
            )
            print(json.dumps(rows[-1]), flush=True)
            for path, student in students.items():
                student.save(path, facts | {"examples": str(rows[-1]["examples"])})
    for path, student in students.items():
        student.save(path, facts | {"examples": str(step * schedule.batch)})
        path.with_suffix(".log.json").write_text(json.dumps(rows))
