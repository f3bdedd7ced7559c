# SPDX-License-Identifier: Apache-2.0
"""Jobs of one run in Slurm's queue: submitted, polled all at once, cancelled."""

import logging
import math
import shlex
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LOGGER = logging.getLogger("gsbids.cli")

#: States that a job does not leave; ``GONE``: Slurm has forgotten the job.
ENDED = (
    "BOOT_FAIL",
    "CANCELLED",
    "COMPLETED",
    "DEADLINE",
    "FAILED",
    "GONE",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "PREEMPTED",
    "TIMEOUT",
)

#: Reasons of pending jobs that nothing but a person can take away.
STUCK = ("DependencyNeverSatisfied", "launch_failed_requeued_held", "JobHoldMaxRequeue")

MARGIN_GB = 0.5  # over what a step is planned with, where a job that needs more is ended
SILENT = 300.0  # seconds without an answer of squeue after which people are told


class SlurmError(Exception):
    """Error of a job that Slurm did not take."""


class Queue:
    """The jobs of one run.

    Parameters
    ----------
    sbatch_args : sequence of str
        Options of the user; they go before those that follow from a step.
    interval : float
        Seconds between two calls of ``squeue``.
    tries, pause : int, float
        Number of further tries of a submission, and seconds before each.
    """

    def __init__(
        self, sbatch_args: Sequence[str] = (), interval: float = 3.0, tries: int = 2, pause: float = 2.0
    ) -> None:
        self.interval = float(interval)
        self.scripts: dict[int, str] = {}
        self._arguments = list(sbatch_args)
        self._tries, self._pause = tries, pause
        self._states: dict[int, tuple[str, str]] = {}
        self._asked, self._answered = -math.inf, time.monotonic()

    def submit(self, script: str, node: Any, after: Sequence[int] = ()) -> int:
        """Submit the script of a step.

        Parameters
        ----------
        script : str
            Path of the script; what the job prints goes beside it.
        node : nipype.pipeline.engine.Node
            Node whose threads and memory the job requests.
        after : sequence of int
            Jobs that must have ended well before.

        Returns
        -------
        int
            Number of the job.

        Raises
        ------
        SlurmError
            ``sbatch`` refuses, with its words.
        """
        folder = Path(script).parent
        command = [
            "sbatch",
            "--parsable",
            f"--chdir={folder}",
            f"--job-name={node.fullname}",
            f"--output={Path(script).with_suffix('.out')}",
            f"--cpus-per-task={node.n_procs}",
            f"--mem={math.ceil((node.mem_gb + MARGIN_GB) * 1000)}M",
            *self._arguments,
        ]
        if after:
            command += [f"--dependency=afterok:{':'.join(map(str, after))}", "--kill-on-invalid-dep=yes"]
        for left in range(self._tries, -1, -1):
            done = _run([*command, str(script)])
            found = done.stdout.strip().partition(";")[0]  # number;cluster
            if done.returncode == 0 and found.isdigit():
                break
            if left == 0:
                words = " ".join((done.stderr or done.stdout).split()) or f"exit code {done.returncode}"
                raise SlurmError(f"sbatch did not take the step {node.fullname}: {words}")
            time.sleep(self._pause)
        job = int(found)
        self.scripts[job] = str(script)
        self._states[job] = ("PENDING", "")
        return job

    def state(self, job: int) -> str:
        """Return the state of a job as Slurm names it, not older than the interval."""
        if self._states[job][0] not in ENDED and time.monotonic() - self._asked >= self.interval:
            self._ask()
        return self._states[job][0]

    def is_active(self, job: int) -> bool:
        """Return whether a job is waiting or running, and may still come to an end by itself."""
        return self.state(job) not in ENDED

    def was_not_reached(self, job: int) -> bool:
        """Return whether a job was never begun because one that goes before it failed."""
        return self._states[job] == ("CANCELLED", "DependencyNeverSatisfied")

    def printed(self, job: int, most: int = 600) -> str:
        """Return the end of what a job has printed, in one line."""
        log = Path(self.scripts[job]).with_suffix(".out")
        try:
            text = log.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""
        return " ".join(text[-4 * most :].split())[-most:]

    def cancel(self) -> None:
        """Cancel all jobs that have not ended."""
        left = [str(job) for job, (state, _) in self._states.items() if state not in ENDED]
        if left:
            _run(["scancel", *left])

    def _ask(self) -> None:
        self._asked = time.monotonic()
        open_jobs = [job for job, (state, _) in self._states.items() if state not in ENDED]
        done = _run(
            ["squeue", "--noheader", "--states=all", "--format=%i|%T|%r", f"--jobs={','.join(map(str, open_jobs))}"]
        )
        forgotten = "Invalid job id" in done.stderr
        if done.returncode and not forgotten:
            # Slurm may be down for a while; jobs run on, and are asked for again.
            if self._asked - self._answered > SILENT:
                LOGGER.warning("squeue does not answer (%s); waiting for it", " ".join(done.stderr.split()))
                self._answered = self._asked
            return
        self._answered = self._asked
        found = {}
        for line in done.stdout.splitlines():
            number, state, reason = [*line.split("|"), "", ""][:3]
            if number.isdigit():
                found[int(number)] = (state, reason.strip("()"))
        for job in open_jobs:
            state, reason = found.get(job, ("GONE", ""))
            if state == "PENDING" and reason.replace(" ", "_") in STUCK:
                _run(["scancel", str(job)])
                state = "CANCELLED"
            self._states[job] = (state, reason)


def write_script(pyfile: str, template: str) -> str:
    """Write the batch script of a step beside its Python file; return its path."""
    path = Path(pyfile).with_name(f"batchscript_{Path(pyfile).stem}.sh")
    path.write_text(f"{template.rstrip()}\n{shlex.join([sys.executable, str(pyfile)])}\n", encoding="utf-8")
    return str(path)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    except (OSError, subprocess.TimeoutExpired) as error:
        return subprocess.CompletedProcess(command, 1, "", str(error))
