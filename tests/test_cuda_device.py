# SPDX-License-Identifier: Apache-2.0
"""What the CUDA kernels need around them: the dispatch, the device's memory, graphs; nothing here runs a kernel."""

import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from gsbids.errors import DeviceError
from gsbids.kernels import ops
from gsbids.kernels.cuda import graph as graph_cuda
from gsbids.kernels.cuda import runtime


def test_without_numba_cuda_the_message_says_what_to_install():
    code = (
        "import sys; sys.modules['numba.cuda'] = None\n"
        "from gsbids.kernels.cuda import runtime\n"
        "try:\n    runtime.numba_cuda()\nexcept runtime.DeviceError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "gsbids[gpu]" in done.stdout, done.stderr


def test_chunks_are_consecutive_and_fit():
    assert runtime.chunks([3, 3, 3, 9, 0, 1], 10, 90) == [(0, 3), (3, 5), (5, 6)]
    assert runtime.chunks([], 10, 90) == []
    with pytest.raises(DeviceError, match="slice 1 needs"):
        runtime.chunks([1, 10], 10, 90)


def test_less_memory_is_tried_when_it_runs_out(monkeypatch):
    monkeypatch.setenv("GSBIDS_DEVICE_BYTES", "800")
    tried = []

    def work(available, enough=200):
        tried.append(available)
        if available > enough:
            raise torch.cuda.OutOfMemoryError
        return "done"

    assert runtime.with_smaller_chunks(work, torch.device("cpu")) == "done"
    assert tried == [800, 400, 200]
    with pytest.raises(DeviceError, match="ran out of memory 4 times"):
        runtime.with_smaller_chunks(lambda available: work(available, 0), torch.device("cpu"))


def test_an_unknown_backend_is_refused(monkeypatch):
    monkeypatch.setenv("GSBIDS_BACKEND", "tpu")
    with pytest.raises(DeviceError, match="cpu, cuda, sim"):
        runtime.backend()


def run_python(code, **environment):
    """Standard output of a program in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


SMALL = """
import sys
for name in {absent}:
    sys.modules[name] = None
import numpy as np, torch
from gsbids.errors import DeviceError
from gsbids.kernels import ops
field = [np.zeros((1, 3)), np.zeros((1, 3)), np.array([[1.0, 0, 0, 0]]), np.ones(1), np.zeros(1)]
field = [a.astype(np.float32) for a in field]
one, shape = np.ones((1, 2)), (3, 3)
geometry = ops.SliceGeometry(np.eye(3)[None], np.zeros((1, 3)), np.ones((1, 3)), one, one, ops.full_extent(1, shape),
                             shape)
"""


def test_without_numba_cuda_and_scipy_the_cpu_renders_and_the_gpu_says_what_is_missing():
    code = (
        SMALL.format(absent=["numba.cuda", "scipy"])
        + """
print(type(ops.render(*field, geometry)[0]).__name__)
try:
    ops.render(*map(torch.tensor, field), geometry)
except DeviceError as error:
    print(error)
"""
    )
    kind, message = run_python(code, GSBIDS_BACKEND="sim").splitlines()
    assert kind == "ndarray"
    assert "gsbids[gpu]" in message


def test_the_cuda_modules_need_no_scipy():
    pytest.importorskip("numba_cuda")
    code = (
        SMALL.format(absent=["scipy"])
        + """
from gsbids.kernels.cuda import graph, grid_ops, kept_lists, ops as twins
image, weight = ops.render(*map(torch.tensor, field), geometry)
print(type(image).__name__, bool(np.allclose(image, ops.render(*field, geometry)[0], atol=1e-6)))
"""
    )
    assert run_python(code, GSBIDS_BACKEND="sim", NUMBA_ENABLE_CUDASIM="1").split() == ["Tensor", "True"]


def test_arrays_and_tensors_of_the_cpu_stay_there(monkeypatch):
    monkeypatch.delenv("GSBIDS_BACKEND", raising=False)
    assert not runtime.takes(np.zeros(3))
    assert not runtime.takes(torch.zeros(3))
    assert ops.plan([torch.zeros(1, 3)], None) is None
    field = [torch.zeros(1, 3), torch.zeros(1, 3), torch.ones(1, 4), torch.ones(1, requires_grad=True), torch.zeros(1)]
    geometry = ops.GridGeometry((2, 2, 2), np.ones(3), np.zeros(3))
    for lists in ((), (None,)):
        ops.GridRender.apply(*field, geometry, ops.RenderOptions(), *lists).sum().backward()
    assert field[3].grad > 0
    monkeypatch.setenv("GSBIDS_BACKEND", "sim")
    assert runtime.takes(torch.zeros(3))
    assert not runtime.takes(np.zeros(3))


def test_without_a_gpu_captured_work_is_done_plainly():
    total = torch.zeros(())
    work = graph_cuda.CapturedWork(lambda: total.add_(1), torch.device("cpu"))
    for _ in range(5):
        work()
    assert float(total) == 5
    assert work.replays == 0
    assert "no GPU" in work.failure


def recorder(log):
    """A capture that does what CUDA's does: takes the work down without its effects, and repeats them later."""

    def capture(work):
        before = list(log)
        work()
        steps = log[len(before) :]
        log[:] = before
        return lambda: log.extend(steps)

    return capture


def test_every_call_does_the_work_once():
    log = []
    work = graph_cuda.CapturedWork(lambda: log.append("done"), torch.device("cpu"), 2, recorder(log))
    for count in range(1, 7):
        work()
        assert len(log) == count
    assert work.replays == 4
    work.renew()
    work()
    assert len(log) == 7
    assert work.replays == 5


def test_a_capture_that_fails_is_not_tried_again():
    log, tries = [], []

    def capture(work):
        tries.append(1)
        raise RuntimeError("operation not permitted when stream is capturing")

    work = graph_cuda.CapturedWork(lambda: log.append("done"), torch.device("cpu"), 1, capture)
    for _ in range(4):
        work()
    assert len(log) == 4
    assert len(tries) == 1
    assert "stream is capturing" in work.failure


def test_an_error_of_the_work_itself_is_not_hidden():
    def broken():
        raise ValueError("wrong shape")

    work = graph_cuda.CapturedWork(broken, torch.device("cpu"), 0, lambda work: work())
    with pytest.raises(ValueError, match="wrong shape"):
        work()
