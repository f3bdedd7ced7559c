# SPDX-License-Identifier: Apache-2.0
"""Workflows: graphs, a whole run on tiny data, resuming, crashes."""

import json
import re

import pytest
from trees import checksums

from gsbids.bids.query import Selection, find_tasks
from gsbids.config import Config, Execution, NipypeOptions, WorkflowOptions
from gsbids.errors import WorkflowError
from gsbids.qc.report.usage import read_usage
from gsbids.workflows.base import init_gsbids_wf
from gsbids.workflows.names import task_folder, workflow_name
from gsbids.workflows.outputs import common_fields, slice_times
from gsbids.workflows.report import write_crash_report


@pytest.fixture
def setting(tiny_bids, tmp_path):
    """Settings and the one task of a tiny data set of three stacks."""
    tiny = tiny_bids()
    masks = {"masks": tiny.masks}
    config = Config(
        Execution(tiny.root, tmp_path / "out", tmp_path / "work", run_uuid="r1", derivatives=masks),
        WorkflowOptions(output_resolution=(2.0,), sloppy=True),
        NipypeOptions(omp_nthreads=1),
    )
    return config, find_tasks(tiny.root, Selection(mask_datasets=masks))[0], tiny


def execute(config, task):
    workflow = init_gsbids_wf(config=config, tasks=[task])
    workflow.config["execution"] |= {
        "crashfile_format": "txt",
        "hash_method": "content",
        "create_report": False,
        "remove_unnecessary_outputs": False,
    }
    for node in workflow._get_all_nodes():
        node.config["execution"] = workflow.config["execution"] | node.config["execution"]
    return workflow.run(plugin="Linear")


def test_graph(setting):
    config, task, _ = setting
    workflow = init_gsbids_wf(config=config, tasks=[task])
    names = workflow.list_node_names()
    assert workflow.name == "gsbids_wf"
    assert workflow_name(task) == "sub_01_T2w_wf"
    for step in ("run_1_wf.conform", "run_3_wf.n4", "svr_wf.fit", "run_2_outputs_wf.motion", "report"):
        assert f"sub_01_T2w_wf.{step}" in names
    for node in workflow._get_all_nodes():
        assert node.config["execution"]["crashdump_dir"] == str(config.execution.output_dir / "sub-01/log/r1")
    # Every mandatory input is either set or connected once the graph is flat.
    flat = workflow._create_flat_graph()
    for node in flat.nodes():
        fed = {pair[1] for _, _, data in flat.in_edges(node, data=True) for pair in data["connect"]}
        for name in node.inputs.traits(mandatory=True):
            assert name in fed or getattr(node.inputs, name) not in (None, ""), f"{node}: {name}"


def test_steps_can_be_left_out(setting):
    config, task, _ = setting
    config = config.replace("workflow", denoise=False, n4=False)
    names = init_gsbids_wf(config=config, tasks=[task]).list_node_names()
    assert not [name for name in names if re.search(r"denoise|\.n4|save_stack$", name)]
    names = init_gsbids_wf(config=config.replace("workflow", denoise=True), tasks=[task]).list_node_names()
    assert [name for name in names if name.endswith("save_stack")], "the report is made again from what was fitted"


def test_method_reaches_the_fit(setting):
    config, task, _ = setting
    for method, option in (("default", "pose_every"), ("paper", "neighbours")):
        changed = config.replace("workflow", svr_method=method, motion_correction=False, random_seed=7)
        fit = init_gsbids_wf(config=changed, tasks=[task]).get_node(f"{workflow_name(task)}.svr_wf.fit").inputs
        assert fit.method == method
        assert {"iterations": 40, "seed": 7, "motion_correction": False}.items() <= fit.options.items()
        assert option in fit.options
        assert "threads" not in fit.options


def test_two_tasks_of_one_name(setting):
    config, task, _ = setting
    with pytest.raises(WorkflowError, match="two reconstructions"):
        init_gsbids_wf(config=config, tasks=[task, task])


def test_fields_of_sidecars(setting):
    from dataclasses import replace

    fields = {"EchoTime": 0.1, "StationName": "x", "SliceTiming": []}
    stacks = [replace(stack, metadata=fields | {"FlipAngle": k}) for k, stack in enumerate(setting[1].stacks)]
    assert common_fields(stacks) == {"EchoTime": 0.1}
    assert slice_times(stacks[0]) == []
    assert slice_times(replace(stacks[0], metadata={"SliceTiming": [0, 1.5]})) == [0.0, 1.5]
    assert slice_times(replace(stacks[0], metadata={"SliceTiming": "late"})) == []
    backwards = {"SliceTiming": [0, 1.5], "SliceEncodingDirection": "k-"}
    assert slice_times(replace(stacks[0], metadata=backwards)) == [1.5, 0.0]


def test_run_resume_and_repeat(setting):
    config, task, tiny = setting
    raw = checksums(tiny.root)
    execute(config, task)
    made = checksums(config.execution.output_dir)
    assert checksums(tiny.root) == raw
    assert "sub-01/anat/sub-01_rec-gsvr_res-2_desc-preproc_T2w.nii.gz" in made
    assert "sub-01.html" in made
    steps = read_usage(config.execution.output_dir / "sub-01/log/r1/sub-01_T2w_usage.tsv")
    assert [step.name for step in steps if step.name.startswith("svr")] == ["svr register", "svr fit", "svr sample"]
    assert {f"run_{k} n4" for k in (1, 2, 3)} < {step.name for step in steps}
    assert "volume_outputs qc" in [step.name for step in steps]
    assert all(step.seconds > 0 and step.peak_gb > 0.05 for step in steps)
    sidecar = json.loads(
        (config.execution.output_dir / ("sub-01/anat/sub-01_rec-gsvr_res-2_desc-uncertainty_T2w.json")).read_text()
    )
    assert sidecar["Units"] == "arbitrary"
    assert "sigma^2" in sidecar["Formula"]
    assert "bids::sub-01/anat/sub-01_rec-gsvr_desc-gaussians_model.npz" in sidecar["Sources"]
    assert len([name for name in made if "slices_xfm.txt" in name]) == 3
    # The output is gone, and so is a step in the middle: only what is missing is done, with the same bits.
    for name in made:
        (config.execution.output_dir / name).unlink()
    folder = task_folder(config, task)
    fitted = folder / "svr_wf/fit/result.npz"
    before = fitted.stat().st_mtime_ns
    for left in (folder / "run_2_outputs_wf/simulate").iterdir():
        left.unlink()
    execute(config.replace("execution", run_uuid="r2"), task)
    assert fitted.stat().st_mtime_ns == before
    assert checksums(config.execution.output_dir) == made
    # Previews, the early one and that of the fit, change nothing and do not stay.
    shown = config.replace("execution", work_dir=config.execution.work_dir / "shown", preview=True)
    execute(shown, task)
    assert checksums(config.execution.output_dir) == made
    folder = task_folder(shown, task)
    assert (folder / "early_preview/preview.nii.gz").is_file()
    assert (folder / "svr_wf/fit/preview.nii.gz").is_file()
    # From nothing, in another folder, with other threads.
    again = config.replace("execution", work_dir=config.execution.work_dir / "again").replace("nipype", omp_nthreads=2)
    execute(again, task)
    assert checksums(config.execution.output_dir) == made


def test_crash_leaves_a_report(setting):
    config, task, tiny = setting
    path = tiny.stack("01", 2)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(Exception, match="truncated"):
        execute(config, task)
    crashes = sorted((config.execution.output_dir / "sub-01/log/r1").glob("crash-*.txt"))
    assert len(crashes) == 1
    report = write_crash_report(config, task, crashes)
    page = report.read_text()
    assert report == config.execution.output_dir / "sub-01.html"
    assert "truncated or corrupt" in page
    assert "run-1" in page
    # What it took until then, also the step that failed.
    (table,) = (config.execution.output_dir / "sub-01/log/r1").glob("*_usage.tsv")
    assert table.name == "sub-01_T2w_usage.tsv"
    assert "run_2 conform" in [step.name for step in read_usage(table)]
    assert "Time and memory of all" in page


def test_sloppy_with_motion_correction_is_better_than_without():
    """Slices find their places in the coarse field, too."""
    from test_recon import STILL, error_of, gauge, moving_stacks

    from gsbids.recon.svr.fit import fit_svr
    from gsbids.workflows.svr import fit_options

    field, stacks, motions = moving_stacks()
    errors = []
    for corrected in (True, False):
        result = fit_svr(stacks, STILL, fit_options(WorkflowOptions(sloppy=True, motion_correction=corrected)))
        errors.append(error_of(field, result, gauge(stacks, motions, result)))
    assert errors[0] < 0.8 * errors[1]
