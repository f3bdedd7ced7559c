# SPDX-License-Identifier: Apache-2.0
"""Building the workflow, running it, and reporting the outcome."""

import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any

from gsbids.atomic import write_atomic
from gsbids.bids.description import write_description
from gsbids.bids.names import log_folder
from gsbids.cli.devices import device_words
from gsbids.cli.plan import PLUGINS, Plan
from gsbids.cli.running.graph import describe_plan, write_graphs
from gsbids.cli.running.locks import locked
from gsbids.cli.running.outcome import report_outcome
from gsbids.cli.running.progress import Progress, RunLog, TerminalHandler, handlers, is_step
from gsbids.cli.running.resources import Budget, plan_budget
from gsbids.cli.running.signals import handled
from gsbids.config import Config, NipypeOptions
from gsbids.errors import GsbidsError, InputError, WorkflowError
from gsbids.workflows.names import task_folder, workflow_name
from gsbids.workflows.rebuild import write_boilerplate

LOGGER = logging.getLogger("gsbids.cli")

# Of nipype's own messages; crashes are told by us in one line, and in full in their files.
_NIPYPE_LEVELS = ("CRITICAL", "WARNING", "INFO", "DEBUG")

_NIPYPE_CFG = """\
[logging]
workflow_level = {level}
utils_level = {level}
interface_level = {level}

[execution]
check_version = false
crashfile_format = txt
create_report = false
hash_method = content
poll_sleep_duration = 0.2
remove_unnecessary_outputs = false
stop_on_first_crash = {stop}
"""


class MissingCommandError(GsbidsError):
    """Error of a command that the plugin needs and that is not there (exit code 127)."""

    exit_code = 127


def run_plan(plan: Plan) -> int:
    """Run a plan.

    Returns
    -------
    int
        0; 1 when a task failed or was refused; 3 when all was computed, but a volume is not to be used.

    Raises
    ------
    gsbids.errors.GsbidsError
        The workflow cannot be built (70), a command is missing (127), or the memory is too little for a step (2):
        nothing has been written then.
    """
    config = plan.config
    command = PLUGINS.get(config.nipype.plugin)
    if command and shutil.which(command) is None:
        raise MissingCommandError(
            f"--use-plugin {config.nipype.plugin}: the command {command} is not there; "
            "run where it is, or without --use-plugin"
        )
    output = sys.stdout
    # Libraries print, nipype's messages among them; the standard output is for what was asked for.
    with environment(config), redirect_stdout(sys.stderr):
        if config.execution.dry_run:
            workflow = build(plan)
            if config.execution.write_graph:
                write_graphs(workflow, plan)
            output.write(describe_plan(plan, workflow))
            return int(bool(plan.refused))
        workflow = build(plan)
        _budget(config, workflow)  # before anything is written
        with locked(plan) as free:
            prepare_folders(free)
            if free.tasks != plan.tasks:
                workflow = build(free)
            if config.execution.write_graph:
                write_graphs(workflow, free)
            finished = execute(workflow, free)
            return report_outcome(config, free.tasks, finished, len(free.refused))


def build(plan: Plan) -> Any:
    """Build the workflow of all tasks.

    Raises
    ------
    gsbids.errors.WorkflowError
        Whatever goes wrong in building.
    """
    config = plan.config
    _configure_nipype(config)
    try:
        from gsbids.workflows.base import init_gsbids_wf

        return init_gsbids_wf(config=config, tasks=plan.tasks)
    except GsbidsError:
        raise
    except Exception as error:
        LOGGER.debug("the workflow could not be built", exc_info=True)
        raise WorkflowError(
            f"the workflow could not be built ({type(error).__name__}: {error}); -v shows where, please report it"
        ) from error


def execute(workflow: Any, plan: Plan) -> bool:
    """Run all nodes; return whether nipype reports no error.

    Failures are determined from crash files and outputs, task by task: see
    :func:`gsbids.cli.running.outcome.report_outcome`.
    """
    options = plan.config.nipype
    LOGGER.info("device: %s", device_words(plan.config.workflow.device, options.plugin))
    steps = [node for node in workflow._get_all_nodes() if is_step(node)]
    names = {workflow_name(task): task.name for task in plan.tasks}
    plugin, executor = _local_plugin(options), None
    progress = Progress(names, len(steps), all_start=plugin == "Linear")
    arguments = {"status_callback": progress, **options.plugin_args}
    if plugin == "MultiProc":
        from gsbids.cli.running.executor import make_executor

        budget = _budget(plan.config, workflow)
        executor = make_executor(
            {
                "n_procs": options.nprocs,
                "raise_insufficient": False,
                "workers": budget.workers,  # type: ignore[union-attr]
                "memory_gb": budget.memory_gb,  # type: ignore[union-attr]
                **one_gpu(plan.config),
                **arguments,
            }
        )
    elif plugin.startswith("SLURM"):
        from gsbids.cli.slurm import make_slurm_executor

        executor = make_slurm_executor(
            plugin, arguments, {name: os.environ[name] for name in wanted_environment(plan.config)}
        )
    elif plugin not in ("Linear",):
        # Nipype's batch plugins read it, and it is not set in containers and cron jobs.
        os.environ.setdefault("LOGNAME", "user")
    for terminal in handlers(TerminalHandler):
        terminal.watch(progress)
    try:
        with _noted_interrupts(progress):
            workflow.run(plugin=executor or plugin, plugin_args=arguments)
    except Exception as error:
        if progress.interrupted:
            raise KeyboardInterrupt from error
        # Nipype raises again, at the end, the first error of any node.
        LOGGER.debug("nipype ended with %s: %s", type(error).__name__, error)
        return False
    finally:
        for terminal in handlers(TerminalHandler):
            terminal.rest()
        if executor is not None:
            executor.stop()
    return True


def _local_plugin(options: NipypeOptions) -> str:
    """Return the plugin that "auto" means."""
    if options.plugin == "auto":
        return "MultiProc" if options.nprocs > 1 else "Linear"
    return options.plugin


def _budget(config: Config, workflow: Any) -> Budget | None:
    """Return the budget of steps on this machine; None where the batch system of other machines plans it."""
    if _local_plugin(config.nipype) in ("Linear", "MultiProc"):
        return plan_budget(config.nipype, workflow._get_all_nodes())
    return None


def one_gpu(config: Config) -> dict[str, int]:
    """Return arguments of MultiProc: steps on a GPU go one after the other, as all go to the same one."""
    return {} if config.workflow.device == "cpu" else {"n_gpu_procs": 1}


@contextmanager
def _noted_interrupts(progress: Progress) -> Iterator[None]:
    """Record interrupts as well as raise them: nipype takes one during a step in this process for its failure."""

    def interrupt(number: int, frame: Any) -> None:
        progress.interrupted = True
        raise KeyboardInterrupt

    with handled(
        [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) != signal.SIG_IGN], interrupt
    ):
        yield


@contextmanager
def environment(config: Config) -> Iterator[None]:
    """Set the environment of the run, as :func:`wanted_environment` returns it; restore it afterwards."""
    wanted = wanted_environment(config)
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted | _numba_as_it_is())
    try:
        yield
    finally:
        for name, value in (before | _numba_as_it_is()).items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def wanted_environment(config: Config) -> dict[str, str]:
    """Return the environment of a run: threads of a step, no telemetry, nipype's own folder.

    Only numba has its threads set here. Those of torch and scikit-learn are set in the step; BLAS, OpenMP and ITK,
    whose sums change with the number of threads, have one in all steps.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    return dict.fromkeys(names, "1") | {
        "NUMBA_NUM_THREADS": str(config.nipype.omp_nthreads),
        "NO_ET": "1",
        "NIPYPE_NO_ET": "1",
        "NIPYPE_CONFIG_DIR": str(config.execution.work_dir / ".nipype"),
    }


def _numba_as_it_is() -> dict[str, str]:
    """Return the number of threads that numba has, where it is loaded.

    It reads the variable again, and refuses another value.
    """
    numba = sys.modules.get("numba")
    return {"NUMBA_NUM_THREADS": str(numba.config.NUMBA_NUM_THREADS)} if numba else {}


def prepare_folders(plan: Plan) -> None:
    """Write folders and settings of the run, before anything is computed."""
    config = plan.config
    execution = config.execution
    try:
        if execution.clean_workdir:
            _clean(plan)
        cfg = execution.work_dir / ".nipype" / "nipype.cfg"
        cfg.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cfg, _nipype_cfg(config).encode())
        write_description(execution.output_dir, config.datasets)
        write_boilerplate(config, plan.tasks)
        folders = {
            task.name: execution.output_dir / log_folder(task.entities, execution.run_uuid) for task in plan.tasks
        }
        for folder in folders.values():
            config.to_toml(folder / "gsbids.toml")
        for log in handlers(RunLog):
            log.open({name: folder / "gsbids.log" for name, folder in folders.items()})
    except OSError as error:
        raise InputError(
            f"{error.filename or execution.work_dir}: cannot be written ({error.strerror}); give another "
            "output_dir or --work-dir"
        ) from error


def _clean(plan: Plan) -> None:
    """Remove the working files of the selected tasks, and of nothing else."""
    for task in plan.tasks:
        folder = task_folder(plan.config, task)
        if folder.is_dir():
            shutil.rmtree(folder)


def _nipype_cfg(config: Config) -> str:
    level = _NIPYPE_LEVELS[min(config.execution.verbosity, len(_NIPYPE_LEVELS) - 1)]
    return _NIPYPE_CFG.format(level=level, stop=str(config.execution.stop_on_first_crash).lower())


def _configure_nipype(config: Config) -> None:
    """Apply the settings here that workers read from nipype.cfg, also when nipype is loaded already."""
    import configparser

    from nipype import config as nipype_config
    from nipype import logging as nipype_logging

    settings = configparser.ConfigParser()
    settings.read_string(_nipype_cfg(config))
    nipype_config.update_config({name: dict(settings[name]) for name in settings.sections()})
    nipype_logging.update_logging(nipype_config)
