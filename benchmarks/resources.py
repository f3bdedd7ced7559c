# SPDX-License-Identifier: Apache-2.0
"""Whether runs keep to ``--nprocs``, ``--omp-nthreads`` and ``--mem``: threads and memory of all processes, sampled.

    python benchmarks/resources.py [WORK] [--full] [--cases N N ...]

simulates a subject of three stacks, reconstructs it under several limits, and writes ``docs/results/resources.json``.
A thread counts where the kernel says that it runs or wants to (state R): also for the moment in which one hands over to
another, so that the processor time of a second is what tells how many computed. Memory is PSS, in which pages that
processes share count once.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from common import CHECKOUT, gsbids_command, machine, write_json

EVERY = 0.05  # s between samples of the threads
MEMORY_EVERY = 0.2  # s between samples of the memory, which are dearer
WINDOW = 1.0  # s over which processor time is added up
TICK = 1 / os.sysconf("SC_CLK_TCK")  # s, the unit of processor time in /proc

#: nprocs, omp_nthreads and mem (GB) of each case.
CASES = ((1, 1, 2.5), (1, 1, 6.0), (2, 1, 3.0), (2, 1, 6.0), (2, 2, 3.0), (2, 2, 6.0))


@dataclass
class Sampler:
    """Threads and memory of a process and of all that it starts.

    Attributes
    ----------
    counts : dict of int to int
        How often so many threads of the workers wanted to run; with one process, of that.
    with_main : dict of int to int
        The same with the main process, which looks five times a second for what has ended.
    memory : float
        Largest PSS of all together, GB.
    by_step : dict of str to list
        Largest PSS (GB) and most running threads of the process that worked on a step.
    idle : float
        Largest PSS of a worker between two steps.
    cores : float
        Most processor time in a window, as a share of it: of all threads together.
    ticks : dict of (int, int) to int
        Processor time of every thread of every process.
    """

    root: int

    def __post_init__(self):
        self.counts, self.with_main = defaultdict(int), defaultdict(int)
        self.by_step = defaultdict(lambda: [0.0, 0])
        self.memory, self.idle, self.driver, self.processes = 0.0, 0.0, 0.0, 0
        self.cores, self.ticks = 0.0, {}
        self._next, self._window = 0.0, (time.monotonic(), 0)

    def sample(self) -> None:
        """Look once."""
        pids = descendants(self.root)
        threads = {pid: threads_of(pid) for pid in pids}
        running = {pid: sum(state == "R" for state, _ in found.values()) for pid, found in threads.items()}
        self._add_up(threads)
        steps = {pid: step_of(pid) for pid in pids}
        self.with_main[sum(running.values())] += 1
        self.counts[sum(count for pid, count in running.items() if pid != self.root or steps[pid])] += 1
        for pid, count in running.items():
            if steps[pid]:
                entry = self.by_step[steps[pid]]
                entry[1] = max(entry[1], count)
        if time.monotonic() < self._next:
            return
        memory = {pid: pss_gb(pid) for pid in pids}
        self._next = time.monotonic() + MEMORY_EVERY
        self.memory, self.processes = max(self.memory, sum(memory.values())), max(self.processes, len(pids))
        self.driver = max(self.driver, memory.get(self.root, 0.0))
        for pid, size in memory.items():
            if steps[pid]:
                entry = self.by_step[steps[pid]]
                entry[0] = max(entry[0], size)
            elif pid != self.root:
                self.idle = max(self.idle, size)

    def _add_up(self, threads: dict[int, dict[int, tuple[str, int]]]) -> None:
        """Processor time of all threads, and the most of it in a window."""
        self.ticks |= {(pid, thread): ticks for pid, found in threads.items() for thread, (_, ticks) in found.items()}
        now, total = time.monotonic(), sum(self.ticks.values())
        if now - self._window[0] >= WINDOW:
            self.cores = max(self.cores, (total - self._window[1]) * TICK / (now - self._window[0]))
            self._window = now, total


def descendants(root: int) -> list[int]:
    """A process and all that it started, directly or not."""
    children = defaultdict(list)
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := stat_fields(f"/proc/{entry}/stat")):
            children[int(fields[1])].append(int(entry))
    found, queue = [], [root]
    while queue:
        found.append(pid := queue.pop())
        queue += children[pid]
    return found


def stat_fields(path: str) -> list[str]:
    """Fields of a stat file after the name of the program; empty where the process is gone."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def threads_of(pid: int) -> dict[int, tuple[str, int]]:
    """State and processor time (ticks) of the threads of a process."""
    try:
        tasks = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return {}
    fields = {int(task): stat_fields(f"/proc/{pid}/task/{task}/stat") for task in tasks}
    return {task: (found[0], int(found[11]) + int(found[12])) for task, found in fields.items() if found}


def pss_gb(pid: int) -> float:
    """Memory of a process, its share of what it shares, GB."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return next((int(line.split()[1]) * 1024 / 1e9 for line in lines if line.startswith("Pss:")), 0.0)


def step_of(pid: int) -> str:
    """The step on which a process works: nipype works in the folder of the node."""
    try:
        parts = Path(os.readlink(f"/proc/{pid}/cwd")).parts
    except OSError:
        return ""
    return parts[-1] if "gsbids_wf" in parts else ""


def simulate(folder: Path, full: bool) -> Path:
    """One subject of three stacks: small ones, or of the size of real ones."""
    from gsbids.simulate.acquire import Acquisition
    from gsbids.simulate.dataset import SimulationSettings, simulate_dataset

    small = (
        {}
        if full
        else {
            "phantom_voxel": 1.2,
            "brain_ml": 15.0,
            "truth_resolution": 1.5,
            "acquisition": Acquisition(in_plane=2.0, thickness=5.0, spacing=5.0, noise=0.01),
        }
    )
    if not folder.exists():
        simulate_dataset(folder, SimulationSettings(orientations=("axial", "coronal", "sagittal"), **small))
    return folder


def run_case(data: Path, work: Path, case: tuple, options: list[str]) -> dict:
    """One run under limits, with what it used."""
    nprocs, threads, memory = case
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    command = gsbids_command(
        data,
        work / "out",
        work / "work",
        "-d",
        f"masks={data}/derivatives/masks",
        "--nprocs",
        nprocs,
        "--omp-nthreads",
        threads,
        "--mem",
        f"{memory}G",
        *options,
    )
    # As a user has it: what limits the threads must come from the command itself.
    environment = {key: value for key, value in os.environ.items() if not key.endswith("NUM_THREADS")}
    start = time.monotonic()
    with open(work / "log.txt", "w", encoding="utf-8") as log:
        child = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        sampler = Sampler(child.pid)
        while child.poll() is None:
            began = time.monotonic()
            sampler.sample()
            time.sleep(max(0.0, EVERY - (time.monotonic() - began)))
    counts, total = dict(sorted(sampler.counts.items())), sum(sampler.counts.values())
    more = sum(n for seen, n in counts.items() if seen > nprocs)
    return {
        "nprocs": nprocs,
        "omp_nthreads": threads,
        "mem_gb": memory,
        "exit_code": child.returncode,
        "wall_s": round(time.monotonic() - start, 1),
        "samples": total,
        "samples_by_running_threads": {str(key): n for key, n in counts.items()},
        "samples_with_main_process": {str(key): n for key, n in sorted(sampler.with_main.items())},
        "most_cores": round(sampler.cores, 2),
        "cpu_s": round(sum(sampler.ticks.values()) * TICK, 1),
        "cpu_s_of_other_than_main_threads": round(
            TICK * sum(ticks for (pid, thread), ticks in sampler.ticks.items() if pid != thread), 1
        ),
        "share_above_nprocs": round(more / max(total, 1), 4),
        "most_threads": max(counts, default=0),
        "peak_pss_gb": round(sampler.memory, 3),
        "driver_gb": round(sampler.driver, 3),
        "idle_worker_gb": round(sampler.idle, 3),
        "processes": sampler.processes,
        "steps": {
            name: {"peak_gb": round(size, 3), "most_threads": count}
            for name, (size, count) in sorted(sampler.by_step.items())
        },
    }


def main() -> None:
    """Run the cases, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", nargs="?", type=Path, default=CHECKOUT / "benchmarks" / "work" / "resources")
    parser.add_argument("--full", action="store_true", help="stacks of the size of real ones")
    parser.add_argument("--cases", type=int, nargs="+", default=range(len(CASES)), help="numbers of the cases to run")
    parser.add_argument("--out", type=Path, default=CHECKOUT / "docs" / "results" / "resources.json")
    parser.add_argument(
        "--options",
        nargs=argparse.REMAINDER,
        default=["--sloppy", "--output-resolution", "2"],
        help="options of gsbids",
    )
    args = parser.parse_args()
    data = simulate(args.work / ("full" if args.full else "small"), args.full)
    rows = []
    for number in args.cases:
        row = run_case(data, args.work / f"case{number}", CASES[number], args.options)
        rows.append(row)
        write_json(
            args.out,
            {"machine": machine(), "data": "full" if args.full else "small", "options": args.options, "cases": rows},
        )
        print(
            f"nprocs {row['nprocs']} omp {row['omp_nthreads']} mem {row['mem_gb']:g}: exit {row['exit_code']}, most "
            f"threads {row['most_threads']} ({row['share_above_nprocs']:.1%} of samples above), most cores "
            f"{row['most_cores']:.2f}, peak {row['peak_pss_gb']:.2f} GB",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
