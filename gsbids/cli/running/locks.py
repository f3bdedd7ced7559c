# SPDX-License-Identifier: Apache-2.0
"""One run at a time works on a reconstruction: locks that end with the process that holds them."""

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from gsbids.atomic import sweep
from gsbids.bids.names import subject_folder
from gsbids.cli.plan import Plan
from gsbids.errors import InputError
from gsbids.workflows.names import workflow_name

if TYPE_CHECKING:
    from gsbids.bids.task import ReconstructionTask

LOGGER = logging.getLogger("gsbids.cli")


@contextmanager
def locked(plan: Plan) -> Iterator[Plan]:
    """Lock the reconstructions of a plan against other runs, and remove files that killed runs have half written.

    Runs of other subjects into the same folder go on beside this one. Where the file system has no locks, other runs
    are not locked out.

    Yields
    ------
    Plan
        Plan without the tasks that another run works on; those are refused, each with a line that is logged.

    Raises
    ------
    gsbids.errors.InputError
        Another run works on every one of the tasks, or the output cannot be written to.
    """
    output_dir = plan.config.execution.output_dir
    with ExitStack() as stack:
        free, lines = [], []
        for task in plan.tasks:
            path = output_dir / subject_folder(task.entities) / "log" / f"{workflow_name(task)}.lock"
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(_lock(path))
                free.append(task)
            except BlockingIOError:
                lines.append(
                    f"{task.name}: another run works on it in {output_dir} ({_holder(path)}); wait for it to "
                    "end, or give another output_dir"
                )
            except OSError as error:
                raise InputError(
                    f"{error.filename or path}: cannot be written ({error.strerror}); give another output_dir"
                ) from error
        if not free:
            for line in lines[:-1]:
                LOGGER.error("%s", line)
            raise InputError(lines[-1])
        for line in lines:
            LOGGER.error("%s", line)
        _sweep(output_dir, free)
        yield replace(plan, tasks=tuple(free), refused=(*plan.refused, *lines))


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """Hold a lock file, which is removed when the block has ended.

    Raises
    ------
    BlockingIOError
        Another process holds it.
    """
    while True:
        file = open(path, "a+", encoding="utf-8")  # noqa: SIM115 - closed below: the lock ends with it
        if _acquire(file) and not _is(file, path):
            file.close()  # its holder has just ended and removed it
            continue
        break
    try:
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}, since {time.strftime('%Y-%m-%d %H:%M:%S')}\n")
        file.flush()
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        file.close()


def _acquire(file: TextIO) -> bool:
    """Lock an open file; return False where the file system has no locks."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    except OSError as error:
        LOGGER.debug("%s: no lock (%s)", file.name, error)
        return False
    return True


def _is(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip() or "it has just begun"
    except OSError:
        return "it has just ended"


def _sweep(output_dir: Path, tasks: "Sequence[ReconstructionTask]") -> None:
    subjects = {output_dir / subject_folder(task.entities) for task in tasks}
    below = [folder for subject in sorted(subjects) for folder in subject.rglob("*/")]
    for path in sweep([output_dir, output_dir / "logs", *below]):
        LOGGER.debug("%s: half written by a run that was killed; removed", path)
