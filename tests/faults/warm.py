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
    import matplotlib.figure  # noqa: F401
    import torch

    import gsbids.cli.group
    import gsbids.cli.run
    import gsbids.workflows.base
    import gsbids.workflows.svr
    from gsbids.bids.layout import open_raw  # noqa: F401
    from gsbids.qc.report import write_report  # noqa: F401
    from gsbids.recon.models import load_model  # noqa: F401

    torch.set_num_threads(1)
    gsbids.workflows.svr.SLOPPY = {name: TINY_FIT for name in gsbids.workflows.svr.SLOPPY}


def run_forked(words: list[str], folder: Path, seconds: float = 120.0) -> Ended:
    """``gsbids WORDS`` in a child of this process.

    Parameters
    ----------
    words : list of str
    folder : Path
        Exists; what the run says goes to ``stdout.txt`` and ``stderr.txt`` in it.
    seconds : float
        After so long it counts as hanging, and is killed.
    """
    began = time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(words, folder)
    status = None
    while status is None and time.monotonic() - began < seconds:
        done, found = os.waitpid(pid, os.WNOHANG)
        status = found if done else None
        if status is None:
            time.sleep(0.02)
    if status is None:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    texts = [(folder / name).read_text(encoding="utf-8", errors="replace") for name in ("stdout.txt", "stderr.txt")]
    code = None if status is None else os.waitstatus_to_exitcode(status)
    return Ended(code, *texts, round(time.monotonic() - began, 2))


def _child(words: list[str], folder: Path) -> None:
    code = 99
    try:
        os.setsid()
        for number, name in ((1, "stdout.txt"), (2, "stderr.txt")):
            os.dup2(os.open(folder / name, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_APPEND), number)
        sys.stdout, sys.stderr = (open(number, "w", encoding="utf-8", closefd=False) for number in (1, 2))
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
