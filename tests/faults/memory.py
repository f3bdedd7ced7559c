# SPDX-License-Identifier: Apache-2.0
"""Too little memory: the limit of a control group, which the kernel holds by killing, and that of an address space."""

import os
import resource
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from faults.runs import Found, Scene, first_error
from faults.subject import flaws, gsbids
from faults.warm import Ended

#: MB that a run with two workers gets: from hopeless to almost enough.
CGROUP_MB = (300, 700, 1000)
ADDRESS_MB = (1500, 3000)


def out_of_memory(scene: Scene) -> Found:
    """Runs under limits: each ends by itself, says so, or is killed as a whole; nothing is half written."""
    found = Found("too little memory: killed by the kernel (control group), refused by it (ulimit -v)")
    for megabytes in CGROUP_MB:
        folder = scene.new(f"cgroup-{megabytes}")
        with _memory_group(megabytes) as group:
            ended = _run(scene, folder, lambda group=group: (group / "cgroup.procs").write_text(str(os.getpid())))
        _judge(found, ended, folder, f"control group of {megabytes} MB")
    for megabytes in ADDRESS_MB:
        folder = scene.new(f"address-{megabytes}")
        size = megabytes << 20
        ended = _run(scene, folder, lambda size=size: resource.setrlimit(resource.RLIMIT_AS, (size, size)))
        _judge(found, ended, folder, f"address space of {megabytes} MB")
    return found


def _run(scene: Scene, folder: Path, limit) -> Ended:
    words = gsbids(*scene.subject.arguments(folder, "--nprocs", "2"))
    process = subprocess.Popen(
        words,
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=limit,
        start_new_session=True,
    )
    try:
        _, err = process.communicate(timeout=400)
        return Ended(process.returncode, "", err, 0.0)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return Ended(None, "", process.communicate()[1], 0.0)


def _judge(found: Found, ended: Ended, folder: Path, name: str) -> None:
    lines = ended.err.strip().splitlines()
    found.facts[name] = f"exit code {ended.code}: {first_error(ended) or (lines[-1] if lines else '')}"
    found.tried += 1
    found.expect(ended.code is not None, f"{name}: it hung: {ended.err[-500:]}")
    # The kernel may choose the parent: then the run is over, as killed by -9.
    found.expect(
        ended.code in (None, 0, 1, 2, -signal.SIGKILL) or "MemoryError" in ended.err,
        f"{name}: exit code {ended.code}: {ended.err[-500:]}",
    )
    found.faults += [f"{name}: {flaw}" for flaw in flaws(folder / "out", leftovers=False)]


@contextmanager
def _memory_group(megabytes: int) -> Iterator[Path]:
    """A control group (version 1 or 2) below that of this process; OSError where that is not allowed."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text(encoding="ascii").splitlines()]
    old = next((path for _, names, path in lines if names == "memory"), None)
    root = Path("/sys/fs/cgroup/memory" if old else "/sys/fs/cgroup")
    group = root / (old or lines[0][2]).lstrip("/") / f"gsbids-faults-{os.getpid()}"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(megabytes << 20))
        yield group
    finally:
        _remove(group)


def _remove(group: Path) -> None:
    """Workers end a moment after their parent, and then the group can be removed."""
    for _ in range(100):
        try:
            group.rmdir()
        except OSError:
            time.sleep(0.2)
        else:
            return
    group.rmdir()
