# SPDX-License-Identifier: Apache-2.0
"""Nipype's process pool, made safe against workers that die and against parents that are killed."""

import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context, parent_process
from typing import Any

LAST_WORDS = 10.0  # s; workers that were terminated are gone long before


def start_worker(cwd: str) -> None:
    """Prepare a worker: it ignores Ctrl-C, ends with its parent, and prints nothing but errors.

    The standard output belongs to the command line; what libraries print goes to the standard error.
    """
    os.chdir(cwd)
    os.environ["NIPYPE_NO_ET"] = "1"
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """End this worker when its parent ends; else it would go on writing into the working folder of the next run."""
    parent_process().join()  # type: ignore[union-attr]
    os._exit(1)


def make_executor(plugin_args: dict) -> Any:
    """Make nipype's MultiProc plugin with two repairs.

    A worker that dies (out of memory, say) breaks the whole pool, and the plugin would wait for ever
    for the running steps. Here the pool is made again, each step that was running is tried once more in
    a process of its own, and the one whose process dies again has crashed like any other step.

    Parameters
    ----------
    plugin_args : dict
        Arguments of nipype's ``MultiProc``; ``workers`` is the number of processes, ``n_procs`` if left out. They are
        started by a fork server.

    Returns
    -------
    nipype.pipeline.plugins.MultiProcPlugin
        Plugin with a method ``stop`` that ends the workers at once.
    """
    from nipype.pipeline.plugins import multiproc

    # Nipype takes the name of the plugin from the name of its class.
    class MultiProcPlugin(multiproc.MultiProcPlugin):
        def __init__(self) -> None:
            super().__init__(plugin_args)
            self._workers = plugin_args.get("workers", self.processors)
            self.pool = make_pool(self._workers, self._cwd)  # type: ignore[arg-type]
            self._own_pools: dict[int, ProcessPoolExecutor] = {}
            self._jobs: dict[int, tuple] = {}

        def _submit_job(self, node: Any, updatehash: bool = False) -> int:
            self._taskid += 1
            self._jobs[self._taskid] = (multiproc.run_node, node, updatehash, self._taskid)
            try:
                future = self.pool.submit(*self._jobs[self._taskid])
            except BrokenProcessPool:
                self.pool = make_pool(self._workers, self._cwd)  # type: ignore[arg-type]
                future = self.pool.submit(*self._jobs[self._taskid])
            self._task_obj[self._taskid] = future
            return self._taskid

        def _get_result(self, taskid: int) -> dict | None:
            future = self._task_obj[taskid]
            if not future.done():
                return None
            error = future.exception()
            if error is None:
                return future.result()
            if not isinstance(error, BrokenProcessPool):
                return _failure(taskid, f"{type(error).__name__}: {error}")
            if taskid in self._own_pools:
                return _failure(
                    taskid,
                    "WorkerError: the process of this step was ended from outside, "
                    "twice; too little memory is the usual reason",
                )
            self._own_pools[taskid] = make_pool(1, self._cwd)
            self._task_obj[taskid] = self._own_pools[taskid].submit(*self._jobs[taskid])
            return None

        def _clear_task(self, taskid: int) -> None:
            super()._clear_task(taskid)
            del self._jobs[taskid]
            if taskid in self._own_pools:
                self._own_pools.pop(taskid).shutdown(wait=False)

        def stop(self) -> None:
            for pool in (self.pool, *self._own_pools.values()):
                # The processes are known to the pool alone, and are forgotten by its shutdown.
                manager = pool._executor_manager_thread
                for process in list((pool._processes or {}).values()):
                    process.terminate()
                pool.shutdown(wait=False, cancel_futures=True)
                # Python's exit writes to the pool's pipe, without a lock, while this thread may be closing it.
                if manager is not None:
                    manager.join(LAST_WORDS)  # type: ignore[attr-defined]

    return MultiProcPlugin()


def make_pool(workers: int, cwd: str) -> ProcessPoolExecutor:
    """Make a pool of processes from a fork server."""
    return ProcessPoolExecutor(
        max_workers=workers, initializer=start_worker, initargs=(cwd,), mp_context=get_context("forkserver")
    )


def _failure(taskid: int, text: str) -> dict:
    """Return what nipype expects of a step that failed."""
    return {"result": None, "traceback": [f"{text}\n"], "taskid": taskid}
