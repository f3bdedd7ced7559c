# SPDX-License-Identifier: Apache-2.0
"""Which device a run gets, and that steps on a GPU take turns."""

import dataclasses
import time
from pathlib import Path

import pytest
import torch

from gsbids.cli.devices import device_words, resolve_device
from gsbids.cli.plan import Plan
from gsbids.cli.running.run import execute, one_gpu
from gsbids.config import Config, Execution, NipypeOptions, WorkflowOptions
from gsbids.errors import InputError
from gsbids.kernels import backend

NO_GPU = torch.version.cuda is None
needs_cpu_build = pytest.mark.skipif(not NO_GPU, reason="torch is a build with CUDA here")


@pytest.fixture
def simulator(monkeypatch):
    """numba's simulator counts as one GPU."""
    monkeypatch.setenv("GSBIDS_BACKEND", "sim")


def test_the_cpu_is_always_there():
    assert resolve_device("cpu") == "cpu"


@needs_cpu_build
@pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:3"])
def test_without_a_gpu_one_line_says_what_was_found_and_what_to_do(device, monkeypatch):
    monkeypatch.delenv("GSBIDS_BACKEND", raising=False)
    with pytest.raises(InputError) as caught:
        resolve_device(device)
    line = str(caught.value)
    assert line.startswith(f"--device {device}: torch {torch.__version__} is a build without CUDA")
    assert "gsbids[gpu]" in line
    assert line.endswith("or give --device cpu")
    assert "\n" not in line
    assert caught.value.exit_code == 2


@needs_cpu_build
def test_a_build_with_cuda_and_no_driver(monkeypatch):
    monkeypatch.delenv("GSBIDS_BACKEND", raising=False)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    names, problem = backend.find_gpus()
    assert names == ()
    assert "nvidia-smi" in problem


@needs_cpu_build
def test_auto_takes_the_cpu_and_says_why(monkeypatch, caplog):
    monkeypatch.delenv("GSBIDS_BACKEND", raising=False)
    caplog.set_level("DEBUG", "gsbids.cli")
    assert resolve_device("auto") == "cpu"
    assert "--device auto: the CPU, as torch" in caplog.text
    assert caplog.records[0].levelname == "DEBUG"  # nobody who has a build for the CPU expects a GPU
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert resolve_device("auto") == "cpu"
    assert caplog.records[1].levelname == "WARNING"


def test_auto_takes_a_gpu(simulator):
    assert resolve_device("auto") == "cuda"
    assert resolve_device("cuda:0") == "cuda:0"
    assert device_words("cuda") == "cuda (simulator)"
    assert device_words("cuda:3", "SLURM") == "cuda:3"
    assert device_words("cpu") == "cpu"


def test_a_number_that_no_gpu_has(simulator):
    with pytest.raises(InputError, match=r"^--device cuda:1: there is no such GPU but one GPU, cuda:0; "):
        resolve_device("cuda:1")


def test_the_method_of_the_paper_has_no_gpu(simulator):
    assert resolve_device("auto", method="paper") == "cpu"
    with pytest.raises(InputError, match=r"^--device cuda: --svr-method paper computes on the CPU only; "):
        resolve_device("cuda", method="paper")


def test_jobs_of_a_batch_system_run_elsewhere(monkeypatch):
    monkeypatch.delenv("GSBIDS_BACKEND", raising=False)
    assert resolve_device("cuda:1", plugin="SLURM") == "cuda:1"


def note_times(file, use_gpu):
    """Write down when this began and ended."""
    import time

    start = time.time()
    time.sleep(0.7)
    with open(file, "w") as out:
        out.write(f"{start} {time.time()}")
    return use_gpu


def run_two(folder: Path, device: str) -> list[list[float]]:
    """Begin and end of two steps that could run at one time, with four processes to run them."""
    from nipype import Function, Node, Workflow

    folder.mkdir()
    config = Config(Execution(folder, folder / "out", folder), WorkflowOptions(device=device), NipypeOptions(nprocs=4))
    workflow = Workflow("both", base_dir=str(folder))
    files = [folder / f"{n}.txt" for n in range(2)]
    for n, file in enumerate(files):
        node = Node(Function(function=note_times, input_names=["file", "use_gpu"], output_names=["out"]), f"fit_{n}")
        node.inputs.file, node.inputs.use_gpu = str(file), device != "cpu"
        workflow.add_nodes([node])
    assert execute(workflow, Plan(config, ()))
    return sorted([float(word) for word in file.read_text().split()] for file in files)


def test_two_fits_are_never_on_one_gpu_at_once(tmp_path, simulator, caplog):
    caplog.set_level("INFO", "gsbids.cli")
    assert one_gpu(Config(Execution(tmp_path, tmp_path, tmp_path))) == {}
    first, second = run_two(tmp_path / "gpu", "cuda")
    assert second[0] >= first[1]
    assert "device: cuda (simulator)" in caplog.text


def test_on_the_cpu_two_fits_go_at_once(tmp_path):
    for attempt in range(3):  # on a machine with much else to do, one may be late
        first, second = run_two(tmp_path / str(attempt), "cpu")
        if second[0] < first[1]:
            return
        time.sleep(1)
    pytest.fail("they waited for each other")


def test_steps_on_a_gpu_are_known_as_such_and_keep_their_hashes(tiny_bids, tmp_path):
    from gsbids.bids.query import Selection, find_tasks
    from gsbids.workflows.base import init_gsbids_wf

    tiny = tiny_bids()
    task = find_tasks(tiny.root, Selection(mask_datasets={"masks": tiny.masks}))[0]
    single = dataclasses.replace(task, stacks=task.stacks[:1], method="sr", resolution=(0.5,) * 3)
    found = {}
    for device in ("cpu", "cuda", "cuda:1"):
        config = Config(
            Execution(tiny.root, tmp_path / "out", tmp_path / "work", preview=True, derivatives={"masks": tiny.masks}),
            WorkflowOptions(device=device),
        )
        nodes = [
            node for each in (task, single) for node in init_gsbids_wf(config=config, tasks=[each])._get_all_nodes()
        ]
        on_gpu = {node.name for node in nodes if node.is_gpu_node()}
        assert on_gpu == (set() if device == "cpu" else {"fit", "sample", "simulate", "early_preview", "super_resolve"})
        steps = [node for node in nodes if hasattr(node.inputs, "use_gpu")]
        assert {node.inputs.device for node in steps} == {device}
        found[device] = {node.fullname: node.inputs.get_hashval(hash_method="content")[1] for node in steps}
    assert found["cpu"] == found["cuda"] == found["cuda:1"]
    assert len(found["cpu"]) > 5
