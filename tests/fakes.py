# SPDX-License-Identifier: Apache-2.0
"""A workflow that computes nothing, for tests of the command line alone.

``python -m fakes ARGS`` runs the command line with it. The variable ``GSBIDS_FAKE`` says, by subject, what
its only step does: ``{"02": "raise"}``. A verdict (``"do not use"``) is written beside the volume.
"""

import json
import os
import sys
import types


def step(paths, behaviour, note):
    """Write empty outputs, or go wrong in one of several ways."""
    import json
    import os
    import time

    paths, note = json.loads(paths), json.loads(note)
    with open(note, "a") as file:
        file.write(f"{os.getpid()}\n")
    if behaviour == "raise":
        raise ValueError("the reconstruction\nwent wrong")
    if behaviour == "die":
        os._exit(9)
    if behaviour == "die once":
        with open(note) as file:
            if len(file.readlines()) == 1:
                os._exit(9)
    if behaviour == "sleep":
        time.sleep(60)
    if behaviour != "write nothing":
        for path in paths:
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "w") as file:
                file.write("x")
        if behaviour in ("do not use", "look at it"):
            with open(paths[0].replace(".nii.gz", ".json"), "w") as file:
                json.dump({"Verdict": behaviour, "VerdictReasons": ["It is blurred.", "It is upside down."]}, file)
    return len(paths)


def init_gsbids_wf(*, config, tasks):
    """One step a task."""
    from nipype import Function, Node, Workflow

    from gsbids.bids.names import derivative_path, log_folder
    from gsbids.workflows.names import TOP, volume_path, workflow_name, working_folder

    behaviours = json.loads(os.environ.get("GSBIDS_FAKE", "{}"))
    if behaviours.get("build"):
        raise RuntimeError("two wires\ncrossed")
    workflow = Workflow(TOP, base_dir=str(working_folder(config)))
    for task in tasks:
        function = Function(function=step, input_names=["paths", "behaviour", "note"], output_names=["count"])
        node = Node(function, "reconstruct")
        volume = volume_path(config, task)
        report = derivative_path(task.entities, "report")
        # As JSON: nipype looks into text that is the path of a file, and calls the step outdated.
        node.inputs.paths = json.dumps([str(config.execution.output_dir / path) for path in (volume, report)])
        node.inputs.behaviour = behaviours.get(task.subject, "")
        node.inputs.note = json.dumps(str(config.execution.output_dir.parent / f"note-{task.name}"))
        folder = config.execution.output_dir / log_folder(task.entities, config.execution.run_uuid)
        node.config = {"execution": {"crashdump_dir": str(folder)}}
        part = Workflow(workflow_name(task))
        part.add_nodes([node])
        workflow.add_nodes([part])
    return workflow


def write_crash_report(config, task, crash_files):
    """A report that holds the crash texts."""
    from gsbids.bids.names import derivative_path

    path = config.execution.output_dir / derivative_path(task.entities, "report")
    path.write_text("\n".join(file.read_text() for file in crash_files))
    return path


def modules() -> dict[str, types.ModuleType]:
    """The modules that stand in for those of the real workflow."""
    from gsbids.workflows import report as real

    base, report = types.ModuleType("gsbids.workflows.base"), types.ModuleType("gsbids.workflows.report")
    for name in ("report_inputs", "left_files", "sr_report_inputs", "left_sr_files"):
        setattr(report, name, getattr(real, name))
    base.init_gsbids_wf, report.write_crash_report = init_gsbids_wf, write_crash_report
    return {module.__name__: module for module in (base, report)}


if __name__ == "__main__":
    from gsbids.cli.main import main

    sys.modules.update(modules())
    raise SystemExit(main())
