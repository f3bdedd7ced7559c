# SPDX-License-Identifier: Apache-2.0
"""Description and drawing of what a run would do: ``--dry-run`` and ``--write-graph``."""

import logging
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gsbids.cli.plan import Plan
from gsbids.workflows.names import volume_path, workflow_name

LOGGER = logging.getLogger("gsbids.cli")

#: Names of the graphs, and nipype's names of the same.
GRAPHS = {"orig": "orig", "flat": "flat", "hierarchical": "colored"}

LAYOUT_SECONDS = 120  # a graph that takes graphviz longer is too large to look at


def write_graphs(workflow: Any, plan: Plan) -> list[Path]:
    """Write the graphs of the workflow, one set for all tasks of one method and one number of stacks.

    Parameters
    ----------
    workflow : nipype.pipeline.engine.Workflow
        Workflow of all tasks.
    plan : Plan

    Returns
    -------
    list of Path
        In the folder ``graphs`` of the workflow: ``<task>_orig``, ``_flat`` and ``_hierarchical``, ``.dot`` always and
        ``.svg`` with graphviz.
    """
    folder = Path(workflow.base_dir) / workflow.name / "graphs"
    folder.mkdir(parents=True, exist_ok=True)
    seen, made = set(), []
    for task in plan.tasks:
        shape = task.method, len(task.stacks)
        if shape in seen:
            continue
        seen.add(shape)
        part = workflow.get_node(workflow_name(task))
        made += [_write_dot(part, kind, folder / f"{task.name}_{name}.dot") for name, kind in GRAPHS.items()]
    if shutil.which("dot") is None:
        LOGGER.warning(
            "--write-graph: the command dot (graphviz) is not there; only .dot files are written, in %s", folder
        )
        return made
    drawn = [path for path in map(_draw, made) if path is not None]
    LOGGER.info("graphs of the workflow (orig, flat, hierarchical) are in %s", folder)
    return made + drawn


def _write_dot(workflow: Any, kind: str, path: Path) -> Path:
    """Write the source of one graph by nipype."""
    # The simple names of nipype get brackets wrong below the top.
    workflow.write_graph(dotfilename=str(path), graph2use=kind, format="dot", simple_form=kind != "flat")
    # Nipype writes a second one that names every input of every node.
    path.with_name(f"{path.stem}_detailed.dot").unlink(missing_ok=True)
    return path


def _draw(dot: Path) -> Path | None:
    """Draw a graph; None where graphviz fails or takes too long."""
    drawn, temporary = dot.with_suffix(".svg"), dot.with_name(f".{dot.stem}.{os.getpid()}.svg")
    try:
        subprocess.run(
            ["dot", "-Tsvg", "-o", str(temporary), str(dot)],
            check=True,
            capture_output=True,
            text=True,
            timeout=LAYOUT_SECONDS,
        )
        os.replace(temporary, drawn)
    except subprocess.TimeoutExpired:
        LOGGER.warning("--write-graph: %s was not drawn within %d s; it stays as it is", dot, LAYOUT_SECONDS)
        return None
    except subprocess.CalledProcessError as error:
        LOGGER.warning("--write-graph: %s could not be drawn: %s", dot, " ".join(error.stderr.split()))
        return None
    finally:
        temporary.unlink(missing_ok=True)
    return drawn


def describe_plan(plan: Plan, workflow: Any) -> str:
    """Describe what would be done: tasks with their images, and the nodes with their threads and memory."""
    nodes = {name: workflow.get_node(name) for name in workflow.list_node_names()}
    # Those that only pass things on are taken out before anything runs.
    nodes = {name: node for name, node in nodes.items() if type(node.interface).__name__ != "IdentityInterface"}
    width = max(map(len, nodes), default=0)
    lines = [*_tasks(plan), f"{len(nodes)} nodes, each with its threads and the memory it is planned with:"]
    lines += [
        f"  {name:<{width}}  {node.n_procs:>3}  {node.mem_gb:>5.1f} GB"
        f"{'  in the main process' if node.run_without_submitting else ''}"
        for name, node in nodes.items()
    ]
    options = plan.config.nipype
    lines.append(f"At any time at most {options.nprocs} threads and {options.memory_gb:g} GB.")
    return "\n".join(lines) + "\n"


def _tasks(plan: Plan) -> Iterator[str]:
    config = plan.config
    for task in plan.tasks:
        target = config.execution.output_dir / volume_path(config, task)
        what = "super-resolution" if task.method == "sr" else f"{len(task.stacks)} stacks"
        yield f"{task.name}: {what} -> {target}"
        made = (
            "none"
            if task.method == "sr" and config.workflow.mask_mode == "auto"
            else (f"made ({config.workflow.mask_mode})")
        )
        for stack in task.stacks:
            thickness = f"thickness {stack.thickness:g} mm, " if stack.thickness > 0 else ""
            yield f"  {stack.path.name}: {thickness}mask {stack.mask or made}"
