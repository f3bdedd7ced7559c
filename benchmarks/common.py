# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks share: where things are, commands with their cost, scores, figures."""

import json
import os
import platform
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import numpy as np

CHECKOUT = Path(__file__).resolve().parents[1]
SAMPLE_EVERY = 1.0  # s, how often the processes of a command are looked at


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes
    ----------
    wall_s, cpu_s : float
        Seconds on the clock, and of all its processes on the CPU.
    peak_gb : float
        Largest memory of all its processes together (shared pages counted once), sampled, GB.
    load_before : float
        Load of the machine in the minute before: above about 0.5 the times are not to be trusted.
    """

    wall_s: float
    cpu_s: float
    peak_gb: float
    load_before: float


def shared_folder() -> Path:
    """Folder with ``data/`` and the independent ``tools/``: ``GSBIDS_SHARED``, else ``../shared``."""
    folder = Path(os.environ.get("GSBIDS_SHARED", CHECKOUT.parent / "shared"))
    if not (folder / "tools").is_dir():
        raise SystemExit(f"{folder}: no tools/ and data/ in it; set GSBIDS_SHARED to the folder with them")
    return folder


def gsbids_command(bids_dir: Path, out_dir: Path, work_dir: Path, *options: str) -> list[str]:
    """The command that a user would type, with this Python; volumes lie as in the scanner, where the truth lies."""
    return [
        sys.executable,
        "-m",
        "gsbids",
        str(bids_dir),
        str(out_dir),
        "participant",
        "-w",
        str(work_dir),
        "--template",
        "none",
        *map(str, options),
    ]


def run_measured(command: list[str], log: Path) -> Cost:
    """Run a command, its words into ``log``, and say what it cost.

    Raises
    ------
    SystemExit
        The command failed; the message ends with the last lines of its log.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    load, start = os.getloadavg()[0], time.perf_counter()
    with open(log, "w", encoding="utf-8") as file:
        child = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        watch = _Watch(child.pid)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - start
    cpu, peak = watch.stop()
    if child.returncode:
        tail = "\n".join(log.read_text(encoding="utf-8").splitlines()[-15:])
        raise SystemExit(f"{' '.join(command)}\nended with code {child.returncode}:\n{tail}")
    # wait4 misses processes that nobody waited for, the samples miss the last moments of each.
    cpu = max(cpu, usage.ru_utime + usage.ru_stime)
    return Cost(round(wall, 1), round(cpu, 1), round(max(peak, usage.ru_maxrss * 1024 / 1e9), 3), load)


def forget_peak() -> None:
    """Let the peak memory of this process count from now on (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def peak_gb() -> float:
    """Peak memory of this process since :func:`forget_peak`, GB; libraries and what it holds otherwise included."""
    line = next(row for row in Path("/proc/self/status").read_text().splitlines() if row.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024 / 1e9


class _Watch:
    """Samples CPU time and memory of a process and all its descendants, from a thread."""

    def __init__(self, pid: int):
        self._pid, self._cpu, self._peak = pid, {}, 0.0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()

    def stop(self) -> tuple[float, float]:
        """CPU seconds and peak memory in GB."""
        self._ended.set()
        self._thread.join()
        return sum(self._cpu.values()), self._peak

    def _loop(self):
        tick = os.sysconf("SC_CLK_TCK")
        while not self._ended.wait(SAMPLE_EVERY):
            memory = 0
            for pid, fields in _descendants(self._pid):
                self._cpu[pid] = (int(fields[11]) + int(fields[12])) / tick
                memory += _proportional_memory(pid)
            self._peak = max(self._peak, memory / 1e9)


def _descendants(root: int) -> list[tuple[int, list[str]]]:
    """Process ids below and with ``root``, each with the fields of /proc/PID/stat after its name."""
    stats = {}
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                stats[int(entry.name)] = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
            except OSError:  # it ended between the listing and the reading
                continue
    family, grown = {root}, True
    while grown:
        more = {pid for pid, fields in stats.items() if int(fields[1]) in family} - family
        family, grown = family | more, bool(more)
    return [(pid, stats[pid]) for pid in family if pid in stats]


def _proportional_memory(pid: int) -> int:
    """Memory in bytes, pages shared with others divided among them."""
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return 1024 * int(line.split()[1])
    except OSError:
        pass
    return 0


def run_tool(script: str, *arguments: str | Path) -> dict:
    """Run one of the independent tools, which prints JSON."""
    command = [sys.executable, str(shared_folder() / "tools" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\n{done.stderr.strip()}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def heldout_medians(volume: Path, stack: Path, mask: Path) -> dict:
    """Medians over slices of the score of a volume by a stack that it has not seen."""
    score = run_tool("score_heldout_stack.py", volume, "--stack", stack, "--mask", mask)
    keys = ("ncc", "ncc_shading", "psnr", "grad_ncc", "hp_ncc", "grad_ncc_covered", "hp_ncc_covered")
    return {key: score[key]["median"] for key in keys} | {
        key: score[key] for key in ("coverage", "hp_energy", "hp_ncc_at_blur", "slices_scored", "at_limit")
    }


def slice_ncc(out_dir: Path) -> dict:
    """Similarity of acquired and simulated slices of the only reconstruction in an output folder."""
    from gsbids.recon.svr.result import SvrResult

    result = SvrResult.load(only(out_dir, "*_desc-gaussians_model.npz"))
    return {
        "slice_ncc_median": round(float(np.median(result.ncc)), 4),
        "slice_ncc_p10": round(float(np.percentile(result.ncc, 10)), 4),
        "slices": len(result.ncc),
        "slices_rejected": int(result.rejected.sum()),
        "gaussians": len(result.field),
    }


def only(folder: Path, pattern: str) -> Path:
    """The one file below ``folder`` that fits."""
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise SystemExit(f"{folder}: {len(found)} files like {pattern}, one was expected")
    return found[0]


def machine() -> dict:
    """What the numbers were measured on."""
    import numba
    import scipy
    import torch

    import gsbids

    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    commit = subprocess.run(
        ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty"], capture_output=True, text=True, check=False
    ).stdout.strip()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return {
        "date": date.today().isoformat(),
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gb": round(memory),
        "python": platform.python_version(),
        "gsbids": gsbids.__version__,
        "commit": commit,
        "torch": torch.__version__,
        "numba": numba.__version__,
        "numpy": np.__version__,
        "scipy": scipy.__version__,
    }


def write_json(path: Path | None, content: dict) -> None:
    """Results to a file, or to the screen."""
    text = json.dumps(content, indent=2, default=lambda value: asdict(value))
    if path is None:
        print(text)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text + "\n", encoding="utf-8")


def say(text: str) -> None:
    """Progress, on stderr: stdout is for results."""
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)
