# SPDX-License-Identifier: Apache-2.0
"""The plan of a run from its arguments: settings, tasks, and what cannot be run. Nothing is written."""

import argparse
import json
import logging
import os
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gsbids.cli.devices import resolve_device
from gsbids.config import AUTO, NONE, TEMPLATE, Config, Execution, NipypeOptions, WorkflowOptions
from gsbids.errors import InputError

LOGGER = logging.getLogger("gsbids.cli")

QUERIES = ("stacks", "masks")

#: The one folder of the input that may be the output; nothing in it is ever read as input.
OWN_PLACE = Path("derivatives", "gsbids")

#: Plugins of nipype that wait for their jobs, or are made to, and the command that each needs.
PLUGINS = {
    "Linear": None,
    "MultiProc": None,
    "SLURM": "sbatch",
    "SLURMGraph": "sbatch",
    "PBS": "qsub",
    "SGE": "qsub",
    "LSF": "bsub",
    "OAR": "oarsub",
    "Condor": "condor_submit",
}


@dataclass(frozen=True)
class Plan:
    """Settings and tasks of a run.

    Attributes
    ----------
    config : Config
    tasks : tuple of ReconstructionTask
        Tasks whose data can be used.
    refused : tuple of str
        One line about each task or participant that cannot be run.
    """

    config: Config
    tasks: tuple
    refused: tuple[str, ...] = ()


def make_plan(args: argparse.Namespace, config: Config | None = None) -> Plan:
    """Check the options, find the tasks and look at their data.

    Parameters
    ----------
    args : argparse.Namespace
        Arguments from :func:`gsbids.cli.parser.parse_args`.
    config : Config, optional
        Settings from :func:`make_config`; made here by default.

    Raises
    ------
    gsbids.errors.InputError
        Invalid options, or nothing to run. Tasks with bad data beside good ones are in
        ``Plan.refused``.
    """
    config = config or make_config(args)
    from gsbids.bids.description import check_folders
    from gsbids.bids.query import Selection, find_tasks
    from gsbids.cli.tasks import check_tasks

    execution, workflow = config.execution, config.workflow
    check_folders(execution.bids_dir, execution.output_dir)
    selection = Selection(
        suffix=workflow.modality,
        participants=execution.participant_label,
        sessions=execution.session_label,
        filters=execution.bids_filters,
        filter_file=f"--bids-filter-file {args.bids_filter_file or args.config_file}",
        mask_datasets=execution.derivatives if workflow.takes_masks else {},
        output_dir=execution.output_dir,
        slice_thickness=workflow.slice_thickness,
        database_dir=execution.bids_database_dir,
        database_wipe=execution.bids_database_wipe,
    )
    settings = None
    if args.reports_only:
        from gsbids.workflows.rebuild import settings_of_last_run

        settings = partial(settings_of_last_run, config)
    tasks, refused = check_tasks(find_tasks(execution.bids_dir, selection), config, settings)
    found = {task.subject for task in tasks} | {line.subject for line in refused}
    lines = list(dict.fromkeys(str(line) for line in refused))
    lines += [
        f"--participant-label {label}: no {workflow.modality} image of this participant is selected; "
        "check its files, or leave the label out"
        for label in execution.participant_label
        if label not in found
    ]
    if not tasks:
        # The last line is raised, so that exactly one line is printed for each.
        for line in lines[:-1]:
            LOGGER.error("%s", line)
        raise InputError(lines[-1])
    for line in lines:
        LOGGER.error("%s", line)
    return Plan(config, tuple(tasks), tuple(lines))


def make_config(args: argparse.Namespace) -> Config:
    """Make the settings of the run, with paths absolute and defaults filled in.

    Raises
    ------
    gsbids.errors.InputError
        A folder inside the input, a file that cannot be read, or a device that is not there.
    """
    execution = Execution(
        bids_dir=args.bids_dir.resolve(),
        output_dir=args.output_dir.resolve(),
        work_dir=args.work_dir.resolve(),
        run_uuid=f"{time.strftime('%Y%m%d-%H%M%S')}_{uuid.uuid4()}",
        command=getattr(args, "command", ""),
        participant_label=tuple(dict.fromkeys(args.participant_label)),
        session_label=tuple(dict.fromkeys(args.session_label)),
        bids_filters=_read_filters(args.bids_filter_file) if args.bids_filter_file else args.bids_filters,
        bids_database_dir=args.bids_database_dir and args.bids_database_dir.resolve(),
        bids_database_wipe=args.bids_database_wipe,
        derivatives=parse_derivatives(args.derivatives),
        preview=args.preview,
        clean_workdir=args.clean_workdir,
        stop_on_first_crash=args.stop_on_first_crash,
        write_graph=args.write_graph,
        dry_run=args.dry_run,
        verbosity=args.verbosity,
    )
    _check_folders(execution)
    names = (
        "mode",
        "svr_method",
        "modality",
        "output_resolution",
        "sr_factor",
        "sr_quality",
        "sr_profile",
        "slice_thickness",
        "mask_mode",
        "denoise",
        "n4",
        "motion_correction",
        "random_seed",
        "sloppy",
        "orientation",
    )
    files: dict[str, Any] = {
        name: absolute(getattr(args, name)) for name in ("like", "template", "template_mask", "mask_weights")
    }
    nipype = nipype_options(args)
    device = resolve_device(args.device, nipype.plugin, args.svr_method)
    workflow = WorkflowOptions(device=device, **files, **{name: getattr(args, name) for name in names})
    _check_sizes(workflow)
    check_weights(workflow)
    if workflow.mask_mode == "derivatives" and not execution.derivatives:
        raise InputError("--mask-mode derivatives: needs data sets with masks; give --derivatives PATH")
    if execution.derivatives and not workflow.takes_masks:
        LOGGER.warning("--derivatives: not used with --mask-mode %s", workflow.mask_mode)
    return Config(execution, workflow, nipype)


def check_weights(workflow: WorkflowOptions) -> None:
    """Raise InputError where a network is asked for, or its weights are given, and they are not there."""
    if workflow.mask_mode == "network" or workflow.mask_weights:
        from gsbids.masking.networks import load_network, weights_file

        load_network(weights_file(workflow.mask_weights))


def _check_sizes(workflow: WorkflowOptions) -> None:
    """Refuse options of super-resolution for SVR, and the other way round."""
    if workflow.mode == "sr" and (workflow.template_file or workflow.orientation != "scanner"):
        option = "--template" if workflow.template_file else "--orientation"
        raise InputError(
            f"{option}: is for slice-to-volume reconstruction, and the mode is sr, which keeps the axes "
            "of the image; leave it out"
        )
    if workflow.template_mask and not workflow.template_file:
        raise InputError(
            f"--template-mask {workflow.template_mask}: there is no --template that it could belong to; "
            "give --template NII"
        )
    if workflow.mode != "svr":
        return
    given = {"--sr-factor": workflow.sr_factor, "--like": workflow.like}
    for option in (option for option, value in given.items() if value):
        raise InputError(
            f"{option}: is for super-resolution, and the mode is svr; give --output-resolution MM, or another --mode"
        )
    if len(set(workflow.output_resolution)) > 1:
        raise InputError(
            f"--output-resolution {' '.join(f'{v:g}' for v in workflow.output_resolution)}: voxels of SVR "
            "have equal sides; give one number"
        )


def parse_derivatives(values: Sequence[str]) -> dict[str, Path]:
    """Parse ``[NAME=]PATH`` to data sets by name; a path that exists is a path, and its last folder gives the name.

    >>> parse_derivatives(["masks=/"])
    {'masks': PosixPath('/')}
    """
    datasets: dict[str, Path] = {}
    for value in values:
        found = None if Path(value).is_dir() else re.fullmatch(r"([A-Za-z0-9]+)=(.+)", value)
        path = Path(found[2] if found else value).resolve()
        name = found[1] if found else re.sub(r"[^A-Za-z0-9]", "", path.name) or "masks"
        if name in ("raw", TEMPLATE) or name in datasets:
            raise InputError(f"--derivatives {value}: the name {name!r} is taken; give another as NAME=PATH")
        if not path.is_dir():
            _, equals, rest = value.partition("=")
            why = (
                "a NAME holds letters and digits only; give another"
                if equals and Path(rest).is_dir()
                else ("there is no such folder; give the root of a data set")
            )
            raise InputError(f"--derivatives {value}: {why}")
        datasets[name] = path
    return datasets


def _check_folders(execution: Execution) -> None:
    bids_dir = execution.bids_dir
    if not bids_dir.is_dir():
        raise InputError(f"{bids_dir}: there is no such folder; give the root folder of a BIDS data set")
    beside = bids_dir.with_name(f"{bids_dir.name}-gsbids")
    ways = {
        "output_dir": (execution.output_dir, f"give another, for example {beside}"),
        "--work-dir": (execution.work_dir, "give another with -w"),
        "--bids-database-dir": (execution.bids_database_dir, "give another"),
    }
    for option, (folder, way) in ways.items():
        if folder is None:
            continue
        _check_encoding(option, folder)
        check_place(option, folder, bids_dir, way)
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not existing.is_dir():
            raise InputError(f"{option} {folder}: {existing} is a file, not a folder; give another")
        if not os.access(existing, os.W_OK):
            raise InputError(f"{option} {folder}: {existing} cannot be written to; give another")
    if execution.work_dir == execution.output_dir:
        raise InputError(f"--work-dir {execution.work_dir}: is the same as output_dir; give another with -w")


def check_place(option: str, folder: Path, bids_dir: Path, way: str) -> None:
    """Raise InputError where a folder to write to lies in the input, but for the place that BIDS has for the output."""
    own = option == "output_dir" and folder == bids_dir / OWN_PLACE
    if folder.is_relative_to(bids_dir) and not own:
        where = "the same as" if folder == bids_dir else "inside"
        raise InputError(
            f"{option} {folder}: is {where} bids_dir {bids_dir}, where nothing may be written but "
            f"output_dir {bids_dir / OWN_PLACE}; {way}"
        )


def _check_encoding(option: str, folder: Path) -> None:
    """Refuse folder names that are not UTF-8, as settings and sidecars name them."""
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise InputError(f"{option} {folder}: the name is not UTF-8; give another") from error


def _read_filters(path: Path) -> dict[str, dict]:
    """Read the queries of a filter file; null becomes a word that TOML can store."""
    from gsbids.bids.layout import ABSENT

    found = _read_text(path, "--bids-filter-file")
    try:
        filters = json.loads(found)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--bids-filter-file {path}: not a JSON file ({error}); correct it") from error
    if not isinstance(filters, dict) or not all(isinstance(value, dict) for value in filters.values()):
        raise InputError(f'--bids-filter-file {path}: expected {{"stacks": {{"entity": value}}}}')
    unknown = [name for name in filters if name not in QUERIES]
    if unknown:
        raise InputError(
            f"--bids-filter-file {path}: unknown query {unknown[0]!r}; queries are {' and '.join(QUERIES)}"
        )

    def kept(value: Any) -> Any:
        return [kept(item) for item in value] if isinstance(value, list) else (ABSENT if value is None else value)

    return {name: {key: kept(value) for key, value in query.items()} for name, query in filters.items()}


def nipype_options(args: argparse.Namespace) -> NipypeOptions:
    """Return threads, memory and plugin from the arguments."""
    nprocs = args.nprocs or len(os.sched_getaffinity(0))
    if args.memory_gb is not None and args.memory_gb < 0.1:
        LOGGER.warning(
            "--mem: %g MB is very little; a bare number is MB, write %gG for GB",
            args.memory_gb * 1e3,
            args.memory_gb * 1e3,
        )
    plugin, plugin_args = args.plugin, args.plugin_args
    if args.use_plugin is not None:
        plugin, plugin_args = _read_plugin(args.use_plugin)
    return NipypeOptions(
        nprocs=nprocs,
        omp_nthreads=min(args.omp_nthreads or 8, nprocs),
        memory_gb=args.memory_gb or round(0.9 * _total_memory_gb(), 2),
        plugin=plugin,
        plugin_args=plugin_args,
    )


def _read_plugin(path: Path) -> tuple[str, dict]:
    import yaml

    try:
        found = yaml.safe_load(_read_text(path, "--use-plugin"))
    except (yaml.YAMLError, RecursionError) as error:
        raise InputError(f"--use-plugin {path}: not a YAML file ({' '.join(str(error).split())})") from error
    if not isinstance(found, Mapping) or not isinstance(found.get("plugin"), str):
        raise InputError(f"--use-plugin {path}: expected the keys plugin (a name) and plugin_args")
    plugin = found["plugin"]
    if plugin.endswith("Graph") and plugin not in PLUGINS:
        raise InputError(
            f"--use-plugin {path}: {plugin} submits jobs and does not wait for them, so that no "
            f"report could follow; use {plugin.removesuffix('Graph')}"
        )
    if plugin not in PLUGINS:
        raise InputError(f"--use-plugin {path}: unknown plugin {plugin!r}; use {', '.join(PLUGINS)}")
    arguments = found.get("plugin_args") or {}
    if not isinstance(arguments, Mapping):
        raise InputError(f"--use-plugin {path}: plugin_args must be keys and values")
    if plugin.startswith("SLURM"):
        from gsbids.cli.slurm import check_arguments

        check_arguments(path, arguments)
    return plugin, dict(arguments)


def _read_text(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        why = getattr(error, "strerror", None) or "not a text file"
        raise InputError(f"{option} {path}: cannot be read ({why})") from error


def _total_memory_gb() -> float:
    """Return the memory of this machine, or of the control group where that is less, in GB."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii").strip()
    except OSError:
        limit = "max"
    return min(total, int(limit) if limit.isdigit() else total) / 1e9


def absolute(path: Path | None) -> Path | None:
    """Make a path independent of where the command runs; ``auto``, ``none`` and None stay as they are."""
    return path if path in (None, AUTO, NONE) else path.resolve()
