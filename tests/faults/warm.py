# SPDX-License-Identifier: Apache-2.0
"""Many runs of the command line from one process that has loaded everything: each in a child of its own."""

import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

#: A fit that is over in a moment; everything else is as in any run with ``--sloppy``.
TINY_FIT = {"iterations": 6, "n_gaussians": 200, "members": 1}


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code (None: it hung and was killed), and what it said."""

    code: int | None
    out: str
    err: str
    seconds: float


def load_everything() -> None:
    """Import what runs import, once, and shorten the fit of ``--sloppy``."""
    import ants  # noqa: F401
    import bids  # noqa: F401
    import matplotlib.backends.backend_svg
    import matplotlib.figure  # noqa: F401
    import torch
    import torch._dynamo  # optimizers load it when the first one is made
    from numba.core.registry import cpu_target

    import gsbids.cli.commands.group
    import gsbids.cli.running.run
    import gsbids.workflows.base
    import gsbids.workflows.svr
    from gsbids.bids.layout import open_raw  # noqa: F401
    from gsbids.qc.report.page import write_report  # noqa: F401
    from gsbids.recon.models import load_model  # noqa: F401

    torch.set_num_threads(1)
    # What numba does before it takes a kernel from its cache; threads are started by nobody but the children.
    cpu_target.target_context.refresh()
    gsbids.workflows.svr.SLOPPY = dict.fromkeys(gsbids.workflows.svr.SLOPPY, TINY_FIT)


@dataclass(frozen=True)
class Running:
    """A run in a child of this process."""

    pid: int
    folder: Path
    began: float

    def wait(self, seconds: float) -> Ended:
        """Its end; after so many seconds it counts as hanging, and is killed."""
        limit = self.began + seconds
        while time.monotonic() < limit:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                return self._ended(os.waitstatus_to_exitcode(status))
            time.sleep(0.02)
        return self.kill()

    def kill(self) -> Ended:
        """End it and all that it has started by SIGKILL; the exit code is None, also if it had ended by itself."""
        try:
            os.killpg(self.pid, signal.SIGKILL)
        except ProcessLookupError:  # before it had a group of its own
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        return self._ended(None)

    def _ended(self, code: int | None) -> Ended:
        texts = [
            path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
            for path in (self.folder / "stdout.txt", self.folder / "stderr.txt")
        ]
        return Ended(code, *texts, round(time.monotonic() - self.began, 2))


def start_forked(words: list[str], folder: Path) -> Running:
    """``gsbids WORDS`` in a child of this process.

    Parameters
    ----------
    words : list of str
    folder : Path
        Exists; what the run says goes to ``stdout.txt`` and ``stderr.txt`` in it.
    """
    pid = os.fork()
    if pid == 0:
        _child(words, folder)
    return Running(pid, folder, time.monotonic())


def run_forked(words: list[str], folder: Path, seconds: float = 180.0) -> Ended:
    """The same, to its end."""
    return start_forked(words, folder).wait(seconds)


def _child(words: list[str], folder: Path) -> None:
    code = 99
    try:
        os.setsid()
        for number, name in ((1, "stdout.txt"), (2, "stderr.txt")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND), number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
        from gsbids.cli.main import main

        code = main([str(word) for word in words])
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code or 0)
