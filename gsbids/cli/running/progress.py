# SPDX-License-Identifier: Apache-2.0
"""Progress of a run: a line for every finished step, and on a terminal one that is kept up to date."""

import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

LOGGER = logging.getLogger("gsbids.cli")

_TRIVIAL = ("IdentityInterface", "Merge", "Select")

#: A step may write here, in its folder, how far it is: ``done total``.
NOTE = "progress.txt"

REDRAW = 0.5  # s


def is_step(node: Any) -> bool:
    """Return whether a node does something that people want to read about."""
    return type(node.interface).__name__ not in _TRIVIAL and not node.run_without_submitting


class Progress:
    """Callback for nipype's plugins that counts steps.

    Parameters
    ----------
    names : mapping of str to str
        Names of tasks by the names of their workflows.
    total : int
        Number of steps.
    all_start : bool
        The plugin reports the start of every step, also of one that is kept from before: a step that ends without a
        start was not run, because a step before it had failed.

    Attributes
    ----------
    interrupted : bool
        Set when the run was interrupted: a step in this process reports an interrupt as its failure, and the
        next call stops the run.
    """

    def __init__(self, names: Mapping[str, str], total: int, all_start: bool = False) -> None:
        self._names = names
        self._total = total
        self._all_start = all_start
        self._began = time.monotonic()
        self._started: dict[str, float] = {}
        self._running: dict[str, object] = {}
        self._done: set[str] = set()
        self.interrupted = False

    def __call__(self, node: Any, status: str) -> None:
        """Count and log a step whose status has changed."""
        if self.interrupted:
            raise KeyboardInterrupt
        if not is_step(node):
            return
        if status == "start":
            self._started[node.fullname] = time.monotonic()
            self._running[node.fullname] = node
            return
        self._running.pop(node.fullname, None)
        if status != "end" or node.fullname in self._done:
            return
        began = self._started.get(node.fullname)
        if began is None and self._all_start:
            return
        took = "kept from before" if began is None else f"{time.monotonic() - began:.1f} s"
        LOGGER.info("%s: %s (%d of %d)", step_name(node.fullname, self._names), took, len(self._done) + 1, self._total)
        # Only now: whoever sees the line count it, and interrupts, finds it in the log as well.
        self._done.add(node.fullname)

    def line(self, width: int) -> str:
        """Describe the state in one line: how many steps are done, and which are running for how long."""
        now, steps = time.monotonic(), []
        for name, node in list(self._running.items()):
            share = fraction_done(Path(node.output_dir()))  # type: ignore[attr-defined]
            done = "" if share is None else f" {share:.0%}"
            steps.append(f"{step_name(name, self._names)}{done} {clock(now - self._started[name])}")
        head = f"{len(self._done)} of {self._total} steps, {clock(now - self._began)}"
        text = head
        for count, step in enumerate(steps):
            more = f" | +{len(steps) - count}"
            if len(text) + len(step) + 3 > width - (len(more) if count + 1 < len(steps) else 0):
                return (text + more)[:width]
            text += f" | {step}"
        return text[:width]


def fraction_done(folder: Path) -> float | None:
    """Return the share of a step that is done, by the note in its folder; None where there is none that can be read."""
    try:
        done, total = map(int, (folder / NOTE).read_text(encoding="ascii").split())
    except (OSError, ValueError):
        return None
    return min(done / total, 1.0) if total > 0 else None


def clock(seconds: float) -> str:
    """Format minutes and seconds, with hours where there are any.

    >>> clock(75), clock(3675)
    ('1:15', '1:01:15')
    """
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def step_name(fullname: str, names: Mapping[str, str]) -> str:
    """Return a readable name of a node.

    >>> step_name("gsbids_wf.sub_01_T2w_wf.run_1_wf.conform", {"sub_01_T2w_wf": "sub-01_T2w"})
    'sub-01_T2w run_1 conform'
    """
    parts = fullname.split(".")[1:] or [fullname]
    return " ".join(names.get(part, part.removesuffix("_wf")) for part in parts)


class TerminalHandler(logging.StreamHandler):
    """Handler of messages to a stream; on a terminal with a last line that is drawn again below them.

    Use :meth:`watching` around a run. Where the stream is no terminal, or one that knows no escape codes, there is
    no such line, and nothing but the messages is written.
    """

    def __init__(self, stream: Any) -> None:
        super().__init__(stream)
        self._progress: Progress | None = None
        self._drawn = False
        self._ended = threading.Event()

    @property
    def is_terminal(self) -> bool:
        """Whether lines can be drawn again."""
        with suppress(OSError, ValueError, AttributeError):
            return self.stream.isatty() and os.environ.get("TERM", "dumb") != "dumb"
        return False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a message, above the line."""
        self._clear()
        super().emit(record)
        self._draw()

    def watch(self, progress: Progress) -> None:
        """Show the progress of a run until :meth:`rest`."""
        if not self.is_terminal:
            return
        self._progress = progress
        self._ended.clear()
        threading.Thread(target=self._loop, daemon=True).start()

    def rest(self) -> None:
        """Remove the line."""
        self._ended.set()
        with self.lock:  # type: ignore[union-attr]
            self._progress = None
            self._clear()

    def _loop(self) -> None:
        while not self._ended.wait(REDRAW):
            with self.lock:  # type: ignore[union-attr]
                self._draw()

    def _draw(self) -> None:
        if self._progress is None:
            return
        with suppress(OSError, ValueError):
            # One column is left free: a full line would wrap.
            self.stream.write(f"\r{self._progress.line(self._width() - 1)}\x1b[K")
            self.stream.flush()
            self._drawn = True

    def _clear(self) -> None:
        if self._drawn:
            with suppress(OSError, ValueError):
                self.stream.write("\r\x1b[K")
                self.stream.flush()
            self._drawn = False

    def _width(self) -> int:
        try:
            return os.get_terminal_size(self.stream.fileno()).columns or 80  # 0: nobody has said
        except (OSError, ValueError):
            return 80


class RunLog(logging.Handler):
    """Handler of messages to ``gsbids.log`` of every subject of a run: plain lines with the time.

    Messages before the files are known are kept until then. Messages that begin with the name of a task go to its
    subject alone, all others to every subject.
    """

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
        self._waiting: list[logging.LogRecord] = []
        self._files: dict[str, Path] | None = None

    def open(self, files: Mapping[str, Path]) -> None:
        """Write earlier and later messages to files.

        Parameters
        ----------
        files : mapping of str to Path
            Files by the names of tasks.
        """
        self._files = dict(files)
        for record in self._waiting:
            self.emit(record)
        self._waiting.clear()

    def emit(self, record: logging.LogRecord) -> None:
        """Append a message; a log that cannot be written (a full disk) ends nothing."""
        if self._files is None:
            self._waiting.append(record)
            return
        message = record.getMessage()
        own = {path for name, path in self._files.items() if message.startswith((f"{name}:", f"{name} "))}
        line = " ".join(self.format(record).split("\n")) + "\n"
        for path in own or set(self._files.values()):
            with suppress(OSError), open(path, "a", encoding="utf-8", errors="backslashreplace") as file:
                file.write(line)


def handlers(kind: type) -> list:
    """Return the handlers of a kind that the logger of gsbids has."""
    return [handler for handler in logging.getLogger("gsbids").handlers if isinstance(handler, kind)]
