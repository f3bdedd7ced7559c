# SPDX-License-Identifier: Apache-2.0
"""Faults of the machine: runs that are killed, disks that are full, folders that go, pipes that break."""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from trees import checksums

from faults.fuzz import run_real
from faults.subject import Subject, flaws, gsbids
from faults.warm import Ended, run_forked, start_forked


@dataclass(frozen=True)
class Scene:
    """Where faults are tried: valid input, an undisturbed run of it, and room for more.

    Attributes
    ----------
    folder : Path
    subject : Subject
    reference : dict
        Checksums of the output of an undisturbed run by :func:`faults.warm.run_forked`.
    seconds : float
        That it took.
    """

    folder: Path
    subject: Subject
    reference: dict
    seconds: float

    def new(self, name: str) -> Path:
        """A new folder for a run."""
        folder = self.folder / name
        folder.mkdir()
        return folder


@dataclass
class Found:
    """What was tried, and what was seen; ``faults`` must be empty."""

    name: str
    tried: int = 0
    facts: dict = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    def expect(self, true: bool, what: str) -> None:
        """Note a fault where something is not so."""
        if not true:
            self.faults.append(what)


def prepare(subject: Subject, folder: Path) -> Scene:
    """Run undisturbed once."""
    run = folder / "undisturbed"
    run.mkdir()
    ended = run_forked(subject.arguments(run), run)
    assert ended.code == 0, ended.err
    return Scene(folder, subject, checksums(run / "out"), ended.seconds)


def killed(scene: Scene, seed: int, times: int = 20) -> Found:
    """SIGKILL at random moments of a run; the same command again ends with the same bits."""
    rng, found = random.Random(seed), Found("SIGKILL at a random moment, then the same command again")
    stages: dict[str, int] = {}
    for k in range(times):
        folder = scene.new(f"killed-{k}")
        process = start_forked(scene.subject.arguments(folder), folder)
        moment = rng.uniform(0.02, 1.0) * scene.seconds
        time.sleep(moment)
        ended = process.kill()
        steps = re.findall(r"^\S+ (.+): .+ \(\d+ of \d+\)$", ended.err, re.MULTILINE)
        stage = f"after {steps[-1]}" if steps else "before the first step"
        stages[stage] = stages.get(stage, 0) + 1
        # Hidden temporary files may be there now; nothing that is half written bears its final name.
        found.faults += [f"killed at {moment:.1f} s: {flaw}" for flaw in flaws(folder / "out", leftovers=False)]
        again = run_forked(scene.subject.arguments(folder), folder)
        found.expect(again.code == 0, f"killed at {moment:.1f} s: then exit code {again.code}: {again.err[-300:]}")
        _same(found, scene.reference, folder / "out", f"killed at {moment:.1f} s")
        found.tried += 1
        shutil.rmtree(folder, ignore_errors=bool(found.faults))
    found.facts["last step before the kill"] = stages
    return found


def killed_really(scene: Scene, seed: int, times: int = 3) -> Found:
    """The same with the real command and two workers."""
    rng, found = random.Random(seed), Found("SIGKILL of the real command with two workers, then again")
    words = ("--nprocs", "2")
    calm = scene.new("calm")
    ended = run_real(scene.subject.arguments(calm, *words), calm)
    found.expect(ended.code == 0, f"undisturbed: {ended.err[-300:]}")
    for k in range(times):
        folder = scene.new(f"really-{k}")
        command = gsbids(*scene.subject.arguments(folder, *words))
        process = subprocess.Popen(command, cwd=folder, stderr=subprocess.DEVNULL)
        time.sleep(rng.uniform(0.3, 1.0) * ended.seconds)
        process.kill()  # the parent alone: its workers have to notice
        process.wait()
        found.faults += flaws(folder / "out", leftovers=False)
        again = run_real(scene.subject.arguments(folder, *words), folder)
        found.expect(again.code == 0, f"then exit code {again.code}: {again.err[-300:]}")
        _same(found, checksums(calm / "out"), folder / "out", f"killed {k}")
        found.tried += 1
    return found


def disk_full(scene: Scene, sizes=(0.05, 0.3, 0.6, 0.9)) -> Found:
    """Output or working folder on a small disk; with more room the same command ends with the same bits."""
    found, lines = Found("disk full, at the output and at the working folder, then more room"), []
    need = {"out": _size(scene.folder / "undisturbed" / "out"), "work": _size(scene.folder / "undisturbed" / "work")}
    for place in ("out", "work"):
        for share in sizes:
            folder = scene.new(f"full-{place}-{share}")
            name = f"{place}, {share:.0%} of what is needed"
            with small_disk(folder / place, int(share * need[place])) as enlarge:
                ended = run_forked(scene.subject.arguments(folder), folder)
                lines.append(f"{name}: exit code {ended.code}: {first_error(ended)}")
                _fails_well(found, ended, name)
                found.expect("No space left" in ended.err, f"{name}: the disk is not named: {ended.err[-500:]}")
                found.faults += [f"{name}: {flaw}" for flaw in flaws(folder / "out")]
                enlarge()
                again = run_forked(scene.subject.arguments(folder), folder)
                found.expect(again.code == 0, f"{name}: then exit code {again.code}: {again.err[-500:]}")
                _same(found, scene.reference, folder / "out", name)
            found.tried += 1
            print(lines[-1], *found.faults[-3:], sep="\n   ", flush=True)
    found.facts["messages"] = lines
    return found


def read_only(scene: Scene) -> Found:
    """Input on a read-only mount: as ever. Output or working folder there: refused."""
    found = Found("read-only input; read-only output and working folder")
    folder = scene.new("readonly")
    with frozen(scene.subject.root), frozen(scene.subject.masks):
        ended = run_forked(scene.subject.arguments(folder), folder)
    found.expect(ended.code == 0, f"input: exit code {ended.code}: {ended.err[-300:]}")
    _same(found, scene.reference, folder / "out", "input")
    for place in ("out", "work"):
        folder = scene.new(f"readonly-{place}")
        (folder / place).mkdir()
        with frozen(folder / place):
            ended = run_forked(scene.subject.arguments(folder), folder)
        found.facts[place] = f"exit code {ended.code}: {first_error(ended)}"
        found.expect(ended.code == 2, f"{place}: exit code {ended.code}: {ended.err[-300:]}")
        _fails_well(found, ended, place)
    found.tried = 3
    return found


def removed(scene: Scene, seed: int, times: int = 5) -> Found:
    """The output tree is removed while a run goes on; the same command again makes all of it."""
    rng, found = random.Random(seed), Found("output tree removed at a random moment, then the same command again")
    codes: dict[str, int] = {}
    for k in range(times):
        folder = scene.new(f"removed-{k}")
        process = start_forked(scene.subject.arguments(folder), folder)
        time.sleep(0.7 * (k + rng.uniform(0.2, 0.8)) / times * scene.seconds)
        over = "results in" in (folder / "stderr.txt").read_text(encoding="utf-8")
        shutil.rmtree(folder / "out", ignore_errors=True)
        ended = process.wait(180)
        whole = ended.code == 0 and checksums(folder / "out") == scene.reference
        said = f"exit code {ended.code}: {first_error(ended).replace(str(folder), '')}"
        line = "removed after its end" if over else "all is there" if whole else said
        codes[line] = codes.get(line, 0) + 1
        if not (whole or over):
            _fails_well(found, ended, f"removed {k}")
        found.faults += flaws(folder / "out")
        again = run_forked(scene.subject.arguments(folder), folder)
        found.expect(again.code == 0, f"removed {k}: then exit code {again.code}: {again.err[-300:]}")
        _same(found, scene.reference, folder / "out", f"removed {k}")
        found.tried += 1
    found.facts["ended"] = codes
    return found


def twice(scene: Scene, times: int = 3) -> Found:
    """Two runs of the same subject into one folder at once: one works, the other is refused."""
    found = Found("two runs of one subject into one output at once")
    for k in range(times):
        folder = scene.new(f"twice-{k}")
        others = [scene.new(f"twice-{k}-{n}") for n in "ab"]
        running = [start_forked(scene.subject.arguments(folder), other) for other in others]
        ended = sorted((process.wait(240) for process in running), key=lambda end: 9 if end.code is None else end.code)
        found.expect([end.code for end in ended] == [0, 2], f"exit codes {[end.code for end in ended]}")
        found.expect("another run works on it" in ended[1].err, f"the message is {ended[1].err[-300:]}")
        _fails_well(found, ended[1], "second")
        _same(found, scene.reference, folder / "out", f"twice {k}")
        found.tried += 1
    found.facts["message"] = first_error(ended[1])
    return found


def neighbours(scene: Scene, subjects: Subject, times: int = 2) -> Found:
    """Runs of two subjects into one output and one working folder at once: both work."""
    found = Found("runs of two subjects into one output and one working folder at once")
    for k in range(times):
        folder = scene.new(f"neighbours-{k}")
        running = [
            start_forked(subjects.arguments(folder, "--participant-label", label), scene.new(f"neighbours-{k}-{label}"))
            for label in ("01", "02")
        ]
        ended = [process.wait(240) for process in running]
        found.expect([end.code for end in ended] == [0, 0], f"{[end.err[-300:] for end in ended if end.code]}")
        found.faults += flaws(folder / "out")
        both = {name.split("/")[0] for name in checksums(folder / "out")}
        found.expect({"sub-01", "sub-02", "sub-01.html", "sub-02.html"} <= both, f"in the output: {sorted(both)}")
        found.tried += 1
    return found


def worker_killed(scene: Scene) -> Found:
    """A worker is ended by SIGKILL, as the kernel does for want of memory: once, and whenever it is there."""
    found = Found("worker ended by SIGKILL: once, and again and again")
    for always in (False, True):
        folder = scene.new(f"worker-{always}")
        words = scene.subject.arguments(folder, "--nprocs", "2")
        with open(folder / "err.txt", "w", encoding="utf-8") as err:
            process = subprocess.Popen(gsbids(*words), cwd=folder, stderr=err)
        deaths = _kill_workers(process, folder / "work", always)
        try:
            process.wait(400)
        except subprocess.TimeoutExpired:
            process.kill()
            found.faults.append("it hung")
        text = (folder / "err.txt").read_text(encoding="utf-8")
        ended = Ended(process.returncode, "", text, 0.0)
        name = f"killed {deaths} times"
        found.facts[name] = f"exit code {ended.code}: {first_error(ended)}"
        if always:
            _fails_well(found, ended, name)
            found.expect(ended.code == 1 and "ended from outside" in text, f"{name}: {text[-400:]}")
            page = folder / "out" / "sub-01.html"
            found.expect(
                page.is_file() and "ended from outside" in page.read_text(encoding="utf-8"),
                "the report does not say it",
            )
        else:
            found.expect(ended.code == 0, f"{name}: {text[-400:]}")
        found.faults += flaws(folder / "out")
        found.tried += 1
    return found


def broken_pipe(scene: Scene) -> Found:
    """Nobody reads what the command says: it is quiet about that, and the run goes on to its end."""
    found, python = Found("broken pipe on the terminal"), " ".join(gsbids())
    folder = scene.new("pipe")
    line = " ".join(f"'{word}'" for word in scene.subject.arguments(folder))
    for what in (
        f"{python} --help | true",
        f"{python} --version | true",
        f"{python} {line} --dry-run | head -1",
        f"{python} {line} 2>&1 | head -1",
        f"{python} {line} 2>&1 | true",
    ):
        done = subprocess.run(
            ["bash", "-c", f"set -o pipefail; {what}"],
            capture_output=True,
            text=True,
            check=False,
            cwd=folder,
            timeout=400,
        )
        short = what.replace(python, "gsbids").replace(line, "...")
        found.facts[short] = f"exit code {done.returncode}"
        found.expect(not done.stderr.strip() or "Error" not in done.stderr, f"{short}: {done.stderr[-300:]}")
        found.expect(done.returncode in (0, 141), f"{short}: exit code {done.returncode}")
        found.tried += 1
    found.expect((folder / "out" / "sub-01.html").is_file(), "the run did not go on")
    found.faults += flaws(folder / "out")
    return found


def strange_paths(scene: Scene) -> Found:
    """Spaces, quotes, letters of other scripts and shell characters in all paths."""
    found = Found("spaces and other characters in paths")
    for name in ("with space", "dé jà 脳 мозг \U0001f9e0", "a'b\"c;d&e$(f)#g%20", "tab\there", "-dash=x,y", "<script>"):
        folder = scene.folder / name
        folder.mkdir()
        shutil.copytree(scene.subject.root, folder / "bids")
        shutil.copytree(scene.subject.masks, folder / "bids-masks")
        subject = Subject(folder / "bids", folder / "bids-masks")
        before = subject.checksums()
        (folder / "run").mkdir()
        ended = run_forked(subject.arguments(folder / "run"), folder)
        found.expect(ended.code == 0, f"{name!r}: exit code {ended.code}: {ended.err[-400:]}")
        images = {key: value for key, value in scene.reference.items() if key.endswith((".nii.gz", ".npz", ".tsv"))}
        now = checksums(folder / "run" / "out")
        found.expect(images == {key: now.get(key) for key in images}, f"{name!r}: other images")
        found.faults += flaws(folder / "run" / "out")
        found.expect(subject.checksums() == before, f"{name!r}: the input has changed")
        found.tried += 1
    return found


@contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Callable[[], None]]:
    """A disk of so many bytes at a folder; what is yielded makes it large. OSError where mounting is not allowed."""
    folder.mkdir(exist_ok=True)
    _mount("-t", "tmpfs", "-o", f"size={max(4096, size)}", "tmpfs", folder)
    try:
        yield lambda: _mount("-o", "remount,size=256m", folder)
    finally:
        _umount(folder)


@contextmanager
def frozen(folder: Path) -> Iterator[None]:
    """A folder that is mounted read-only meanwhile; OSError where mounting is not allowed."""
    _mount("--bind", folder, folder)
    try:
        _mount("-o", "remount,bind,ro", folder)
        yield
    finally:
        _umount(folder)


def _mount(*words) -> None:
    done = subprocess.run(["mount", *map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise OSError(f"mount: {done.stderr.strip()}")


def _umount(folder: Path) -> None:
    if subprocess.run(["umount", str(folder)], capture_output=True, check=False).returncode:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def _kill_workers(process: subprocess.Popen, work: Path, always: bool) -> int:
    """SIGKILL the grandchildren of a run that work on the fit, once or whenever there are any; how many died."""
    deaths, limit = 0, time.monotonic() + 300
    while process.poll() is None and time.monotonic() < limit:
        if any(work.glob("**/svr_wf/fit/_inputs.pklz")) and not any(work.glob("**/svr_wf/fit/result_fit.pklz")):
            for server in _children(process.pid):
                for worker in _children(server):
                    os.kill(worker, signal.SIGKILL)
                    deaths += 1
            if deaths and not always:
                break
        time.sleep(0.1)
    return deaths


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def _size(folder: Path) -> int:
    return sum(-(-path.stat().st_size // 4096) * 4096 for path in folder.rglob("*") if path.is_file())


def _same(found: Found, reference: dict, out: Path, when: str) -> None:
    now = checksums(out)
    other = sorted(name for name in reference.keys() | now.keys() if reference.get(name) != now.get(name))
    found.expect(not other, f"{when}: other bits in {', '.join(other[:5])}")


def first_error(ended: Ended) -> str:
    """The first error line of a run, without its prefix."""
    lines = [line for line in ended.err.splitlines() if line.startswith("gsbids: error: ")]
    return lines[0].removeprefix("gsbids: error: ") if lines else ""


def _fails_well(found: Found, ended: Ended, when: str) -> None:
    found.expect(ended.code in (1, 2), f"{when}: exit code {ended.code}: {ended.err[-500:]}")
    found.expect("Traceback" not in ended.err, f"{when}: a traceback: {ended.err[-1500:]}")
    found.expect(bool(first_error(ended)), f"{when}: no message")
