# SPDX-License-Identifier: Apache-2.0
"""Nipype's process pool, made safe against workers that die and against parents that are killed."""

import os
import signal
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context


def start_worker(cwd: str) -> None:
    """First thing in a worker: it leaves Ctrl-C to its parent, and dies with it."""
    import ctypes

    os.chdir(cwd)
    os.environ["NIPYPE_NO_ET"] = "1"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Workers of a killed run would go on writing into the working folder of the next one.
    pr_set_pdeathsig = 1
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)


def make_executor(plugin_args: dict):
    """Nipype's MultiProc plugin with two repairs.

    A worker that dies (out of memory, say) breaks the whole pool, and the plugin would wait for ever
    for what was running. Here the pool is made anew, what was running is tried once more, and a step
    that takes its worker along again has crashed like any other.

    Parameters
    ----------
    plugin_args : dict
        As for nipype's ``MultiProc``; workers are started by a fork server.

    Returns
    -------
    nipype.pipeline.plugins.MultiProcPlugin
        With a method ``stop`` that ends the workers at once.
    """
    from nipype.pipeline.plugins import multiproc

    # Nipype takes the name of the plugin from the name of its class.
    class MultiProcPlugin(multiproc.MultiProcPlugin):
        def __init__(self):
            super().__init__(plugin_args)
            self._jobs = {}
            self._tried_again = set()
            self._make_pool()

        def _make_pool(self):
            self.pool = ProcessPoolExecutor(
                max_workers=self.processors, initializer=start_worker, initargs=(self._cwd,),
                mp_context=get_context("forkserver"))

        def _submit_job(self, node, updatehash=False):
            self._taskid += 1
            self._jobs[self._taskid] = (node, updatehash)
            self._send(self._taskid)
            return self._taskid

        def _send(self, taskid):
            try:
                future = self.pool.submit(multiproc.run_node, *self._jobs[taskid], taskid)
            except BrokenProcessPool:
                self._make_pool()
                future = self.pool.submit(multiproc.run_node, *self._jobs[taskid], taskid)
            self._task_obj[taskid] = future

        def _get_result(self, taskid):
            future = self._task_obj[taskid]
            if not future.done():
                return None
            error = future.exception()
            if error is None:
                return future.result()
            if isinstance(error, BrokenProcessPool) and taskid not in self._tried_again:
                self._tried_again.add(taskid)
                self._send(taskid)
                return None
            hint = "the process of this step was ended from outside, twice; often memory was too little"
            text = hint if isinstance(error, BrokenProcessPool) else f"{type(error).__name__}: {error}"
            return {"result": None, "traceback": [f"WorkerError: {text}\n"], "taskid": taskid}

        def _clear_task(self, taskid):
            super()._clear_task(taskid)
            del self._jobs[taskid]

        def stop(self):
            for process in list((self.pool._processes or {}).values()):
                process.terminate()
            self.pool.shutdown(wait=False, cancel_futures=True)

    return MultiProcPlugin()
