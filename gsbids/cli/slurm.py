# SPDX-License-Identifier: Apache-2.0
"""Nipype's two Slurm plugins, which here wait for their jobs, request the resources of a step, and report failures."""

import re
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gsbids.cli.slurm_queue import Queue, SlurmError, write_script
from gsbids.errors import InputError

#: Keys of ``plugin_args``; any other is a slip of the pen, and would be ignored without a word.
ARGUMENTS = {
    "template": str,
    "sbatch_args": str,
    "max_jobs": int,
    "max_tries": int,
    "retry_timeout": int | float,
    "poll_interval": int | float,
    "dont_resubmit_completed_jobs": bool,
}


def check_arguments(path: Path, arguments: Mapping) -> None:
    """Raise an InputError for keys and values of ``plugin_args`` that the Slurm plugins do not know."""
    for key, value in arguments.items():
        if key not in ARGUMENTS:
            raise InputError(f"--use-plugin {path}: unknown key {key!r} in plugin_args; use {', '.join(ARGUMENTS)}")
        if not isinstance(value, ARGUMENTS[key]):
            raise InputError(
                f"--use-plugin {path}: {key} in plugin_args is {value!r}; give "
                f"{'a number' if ARGUMENTS[key] is not str else 'text'}"
            )
    try:
        shlex.split(arguments.get("sbatch_args", ""))
    except ValueError as error:
        raise InputError(f"--use-plugin {path}: sbatch_args in plugin_args: {error}") from error


def make_slurm_executor(plugin: str, plugin_args: dict, variables: Mapping[str, str]) -> Any:
    """Make nipype's plugin for Slurm, extended.

    Every job requests the threads and the memory of its step (``sbatch_args`` of the user go first), one ``squeue``
    every few seconds asks for all of them, what they print is kept in the working folder, and a job that ends
    without a result, for lack of memory or time, is a step that has crashed like any other.

    Parameters
    ----------
    plugin : {"SLURM", "SLURMGraph"}
        Jobs as their turn comes, or all at once with dependencies; either waits until all of them have ended.
    plugin_args : dict
        See ``ARGUMENTS``; ``status_callback`` is called with nodes.
    variables : mapping of str to str
        Environment of the jobs, also where Slurm is told not to pass that of the submitting process on.

    Returns
    -------
    nipype.pipeline.plugins.base.PluginBase
        Plugin with a method ``stop`` that cancels what is still queued or running.
    """
    exports = "\n".join(f"export {name}={shlex.quote(value)}" for name, value in sorted(variables.items()))
    template = plugin_args.get("template", "#!/bin/bash")
    if Path(template).is_file():
        template = Path(template).read_text(encoding="utf-8")
    queue = Queue(
        shlex.split(plugin_args.get("sbatch_args", "")),
        plugin_args.get("poll_interval", 3.0),
        plugin_args.get("max_tries", 2),
        plugin_args.get("retry_timeout", 2),
    )
    build = _graph_plugin if plugin == "SLURMGraph" else _step_plugin
    return build(queue, plugin_args | {"template": f"{template.rstrip()}\n{exports}\n"})


def _step_plugin(queue: Queue, plugin_args: dict) -> Any:
    """Make the plugin that submits a step when those before it have ended."""
    from nipype.pipeline.plugins import slurm

    # Nipype takes the name of the plugin from the name of its class.
    class SLURMPlugin(slurm.SLURMPlugin):
        def __init__(self) -> None:
            super().__init__(plugin_args=plugin_args)
            self._refused: dict[int, str] = {}
            self._ended: dict[int, float] = {}
            self._scripts: dict[int, str] = {}

        def _submit_batchtask(self, scriptfile: str, node: Any) -> int:
            for left in Path(node.output_dir()).glob("result_*.pklz"):
                left.unlink()  # of an earlier run: a job that dies before it begins must not seem to have made it
            try:
                taskid = queue.submit(scriptfile, node)
            except SlurmError as error:
                taskid = -1 - len(self._refused)
                self._refused[taskid] = str(error)
            self._pending[taskid], self._scripts[taskid] = node.output_dir(), scriptfile
            return taskid

        def _get_result(self, taskid: int) -> dict | None:
            if taskid in self._refused:
                return _failure(f"SlurmError: {self._refused[taskid]}")
            if queue.is_active(taskid):
                return None
            if list(Path(self._pending[taskid]).glob("result_*.pklz")):
                return super()._get_result(taskid)
            # A shared disk shows files of other machines late.
            ended = self._ended.setdefault(taskid, time.monotonic())
            if time.monotonic() - ended < float(self._config["execution"]["job_finished_timeout"]):
                return None
            return _failure(_why(queue, taskid, self._scripts[taskid]))

        def _is_pending(self, taskid: int) -> bool:
            return taskid not in self._refused and queue.is_active(taskid)

        def stop(self) -> None:
            queue.cancel()

    return SLURMPlugin()


def _graph_plugin(queue: Queue, plugin_args: dict) -> Any:
    """Make the plugin that submits all steps at once; it waits for them."""
    from nipype.pipeline.plugins import slurmgraph

    class SLURMGraphPlugin(slurmgraph.SLURMGraphPlugin):
        def __init__(self) -> None:
            super().__init__(plugin_args={key: value for key, value in plugin_args.items() if key != "status_callback"})
            self._status_callback = plugin_args.get("status_callback", lambda node, status: None)

        def _submit_graph(
            self, pyfiles: Sequence[str], dependencies: Mapping[int, Sequence[int]], nodes: Sequence[Any]
        ) -> None:
            jobs: dict[int, int] = {}
            failed: set[int] = set()
            kept: set[int] = set()
            # One reconstruction after the other, so that jobs are not forgotten before those that depend on them come.
            for index in sorted(range(len(nodes)), key=lambda n: (_task(nodes[n]), n)):
                before, node = dependencies[index], nodes[index]
                if failed.intersection(before):
                    failed.add(index)
                elif kept.issuperset(before) and slurmgraph.node_completed_status(node):
                    kept.add(index)
                    self._status_callback(node, "end")
                else:
                    script = write_script(pyfiles[index], self._template)
                    try:
                        jobs[index] = queue.submit(script, node, [jobs[n] for n in before if n in jobs])
                    except SlurmError as error:
                        failed.add(index)
                        self._crashed(node, f"SlurmError: {error}")
            failed |= self._wait(jobs, nodes)
            if failed:
                raise RuntimeError(f"{len(failed)} steps failed or were not reached")

        def _wait(self, jobs: dict[int, int], nodes: Sequence[Any]) -> set[int]:
            waiting, begun, failed = dict(jobs), set(), set()
            while waiting:
                time.sleep(min(1.0, queue.interval))
                for index, job in list(waiting.items()):
                    state = queue.state(job)
                    if state == "RUNNING" and job not in begun:
                        begun.add(job)
                        self._status_callback(nodes[index], "start")
                    if queue.is_active(job):
                        continue
                    del waiting[index]
                    if state == "COMPLETED" or slurmgraph.node_completed_status(nodes[index]):
                        self._status_callback(nodes[index], "end")
                        continue
                    failed.add(index)
                    if not queue.was_not_reached(job):
                        self._crashed(nodes[index], _why(queue, job, queue.scripts[job]))
            return failed

        def _crashed(self, node: Any, text: str) -> None:
            from nipype.pipeline.plugins.tools import report_crash

            self._status_callback(node, "exception")
            if not _has_crash_file(node):
                report_crash(node, traceback=[f"{text}\n"])
            if self._config["execution"]["stop_on_first_crash"] in (True, "true"):
                raise RuntimeError(text)

        def stop(self) -> None:
            queue.cancel()

    return SLURMGraphPlugin()


def _task(node: Any) -> str:
    """Return the name of the workflow of the task that a node belongs to."""
    return [*node.fullname.split("."), ""][1]


def _has_crash_file(node: Any) -> bool:
    """Return whether the job of a step has written a crash file itself."""
    folder = Path(node.config["execution"]["crashdump_dir"])
    line = re.compile(rf"^Node: {re.escape(node.fullname)}$", re.MULTILINE)
    return any(line.search(path.read_text(encoding="utf-8", errors="replace")) for path in folder.glob("crash-*.txt"))


def _why(queue: Queue, job: int, script: str) -> str:
    """Describe why a job ended without a result."""
    from nipype.utils.filemanip import loadpkl

    # Nipype leaves this where a job could not even load its step.
    name = Path(script).name.removeprefix("batchscript_pyscript_").removesuffix(".sh")
    dump = Path(script).with_name(f"crashdump_{name}.pklz")
    if dump.is_file():
        return "".join(loadpkl(dump)["traceback"])
    printed = queue.printed(job)
    tail = f"; it printed: {printed}" if printed else ", and it printed nothing"
    hint = {
        "OUT_OF_MEMORY": "; give it more with --mem in sbatch_args",
        "TIMEOUT": "; give it more with --time in sbatch_args",
    }.get(queue.state(job), "")
    return f"SlurmError: job {job} ended as {queue.state(job)} without a result{hint}{tail}"


def _failure(text: str) -> dict:
    """Return what nipype expects of a step that failed."""
    return {"result": None, "traceback": [f"{text}\n"], "hostname": "unknown"}
