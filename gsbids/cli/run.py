# SPDX-License-Identifier: Apache-2.0
"""Build the workflow, run it, and tell what came of it."""

import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

from gsbids.atomic import write_atomic
from gsbids.bids.description import write_description
from gsbids.bids.names import log_folder
from gsbids.cli.outcome import report_outcome
from gsbids.cli.plan import PLUGINS, Plan
from gsbids.cli.progress import Progress, is_step
from gsbids.config import Config
from gsbids.errors import GsbidsError, InputError, WorkflowError
from gsbids.workflows.names import task_folder, volume_path, workflow_name
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
    """A command that the plugin needs is not there (exit code 127)."""

    exit_code = 127


def run_plan(plan: Plan) -> int:
    """Carry out a plan.

    Returns
    -------
    int
        0, or 1 when a task failed or was refused.

    Raises
    ------
    gsbids.errors.GsbidsError
        The workflow cannot be built (70), or a command is missing (127).
    """
    config = plan.config
    command = PLUGINS.get(config.nipype.plugin)
    if command and shutil.which(command) is None:
        raise MissingCommandError(f"--use-plugin {config.nipype.plugin}: the command {command} is not there; "
                                  "run where it is, or without --use-plugin")
    output = sys.stdout
    # Libraries print, nipype's messages among them; the standard output is for what was asked for.
    with environment(config), redirect_stdout(sys.stderr):
        if config.execution.dry_run:
            output.write(describe_plan(plan, build(plan)))
            return int(bool(plan.refused))
        prepare_folders(plan)
        workflow = build(plan)
        if config.execution.write_graph:
            write_graph(workflow)
        finished = execute(workflow, plan)
        failed = report_outcome(config, plan.tasks, finished, len(plan.refused))
    return int(bool(plan.refused) or failed)


def build(plan: Plan):
    """The workflow of all tasks.

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
        raise WorkflowError(f"the workflow could not be built ({type(error).__name__}: {error}); "
                            "-v shows where, please report it") from error


def execute(workflow, plan: Plan) -> bool:
    """Run all nodes; whether nipype says that all went well.

    What failed is found out from crash files and outputs, task by task: see
    :func:`gsbids.cli.outcome.report_outcome`.
    """
    options = plan.config.nipype
    steps = [node for node in workflow._get_all_nodes() if is_step(node)]
    names = {workflow_name(task): task.name for task in plan.tasks}
    arguments = {"status_callback": Progress(names, len(steps)), **options.plugin_args}
    plugin = options.plugin
    if plugin == "auto":
        plugin = "MultiProc" if options.nprocs > 1 else "Linear"
    executor = None
    if plugin == "MultiProc":
        from gsbids.cli.executor import make_executor

        executor = make_executor({"n_procs": options.nprocs, "memory_gb": options.memory_gb,
                                  "raise_insufficient": False, **arguments})
    elif plugin not in ("Linear",):
        # Nipype's batch plugins read it, and it is not set in containers and cron jobs.
        os.environ.setdefault("LOGNAME", "user")
    try:
        workflow.run(plugin=executor or plugin, plugin_args=arguments)
    except Exception as error:
        # Nipype raises anew, at the end, the first error of any node.
        LOGGER.debug("nipype ended with %s: %s", type(error).__name__, error)
        return False
    finally:
        if executor is not None:
            executor.stop()
    return True


def write_graph(workflow) -> Path:
    """Draw the workflow; without graphviz only its source is written."""
    folder = Path(workflow.base_dir) / workflow.name
    dot = folder / "graph.dot"
    if shutil.which("dot") is None:
        workflow.write_graph(dotfilename="graph.dot", graph2use="colored", format="dot", simple_form=True)
        LOGGER.warning("--write-graph: the command dot (graphviz) is not there; only %s is written", dot)
        return dot
    workflow.write_graph(dotfilename="graph.dot", graph2use="colored", format="svg", simple_form=True)
    drawn = dot.with_suffix(".svg")
    LOGGER.info("graph of the workflow: %s", drawn)
    return drawn


def describe_plan(plan: Plan, workflow) -> str:
    """What would be done: tasks with their images, and the nodes of the workflow."""
    config = plan.config
    lines = []
    for task in plan.tasks:
        target = config.execution.output_dir / volume_path(config, task)
        what = "super-resolution" if task.method == "sr" else f"{len(task.stacks)} stacks"
        lines.append(f"{task.name}: {what} -> {target}")
        made = "none" if task.method == "sr" and config.workflow.mask_mode == "auto" else (
            f"made ({config.workflow.mask_mode})")
        for stack in task.stacks:
            thickness = f"thickness {stack.thickness:g} mm, " if stack.thickness > 0 else ""
            lines.append(f"  {stack.path.name}: {thickness}mask {stack.mask or made}")
    names = workflow.list_node_names()
    lines.append(f"{len(names)} nodes:")
    return "\n".join([*lines, *(f"  {name}" for name in names)]) + "\n"


@contextmanager
def environment(config: Config) -> Iterator[None]:
    """Environment of the run: threads of a step, nothing sent anywhere, nipype's own folder."""
    threads = str(config.nipype.omp_nthreads)
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS",
             "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS")
    wanted = dict.fromkeys(names, threads) | {
        "NO_ET": "1", "NIPYPE_NO_ET": "1", "NIPYPE_CONFIG_DIR": str(config.execution.work_dir / ".nipype")}
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


def _numba_as_it_is() -> dict[str, str]:
    """The number of threads that numba has, where it is loaded: it reads the variable again, and refuses another."""
    numba = sys.modules.get("numba")
    return {"NUMBA_NUM_THREADS": str(numba.config.NUMBA_NUM_THREADS)} if numba else {}


def prepare_folders(plan: Plan) -> None:
    """Folders and settings of the run, written before anything is computed."""
    config = plan.config
    execution = config.execution
    try:
        if execution.clean_workdir:
            _clean(plan)
        cfg = execution.work_dir / ".nipype" / "nipype.cfg"
        cfg.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cfg, _nipype_cfg(config).encode())
        write_description(execution.output_dir, execution.datasets)
        write_boilerplate(config, plan.tasks)
        for task in plan.tasks:
            folder = execution.output_dir / log_folder(task.entities, execution.run_uuid)
            config.to_toml(folder / "gsbids.toml")
    except OSError as error:
        raise InputError(f"{error.filename}: cannot be written ({error.strerror}); give another "
                         "output_dir or --work-dir") from error


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
    """The same settings here as workers read from nipype.cfg, also when nipype is loaded already."""
    import configparser

    from nipype import config as nipype_config
    from nipype import logging as nipype_logging

    settings = configparser.ConfigParser()
    settings.read_string(_nipype_cfg(config))
    nipype_config.update_config({name: dict(settings[name]) for name in settings.sections()})
    nipype_logging.update_logging(nipype_config)
