# SPDX-License-Identifier: Apache-2.0
"""The CUDA kernels compile for sm_80 and sm_90 without a GPU: no float64, no spills, registers within a budget."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("cuda_compile.py")
PACKAGES = ("numba-cuda", "nvidia-cuda-nvrtc", "nvidia-nvvm", "nvidia-nvjitlink")

# Registers a thread. A multiprocessor has 65536: at 128 threads a block, 64 leave 32 warps of at most 64. Blocks of
# one warp (render_tiles, step_tiles) are 32 at most, whatever they take below 64.
REGISTERS = {
    "pack_field": 40,
    "cull": 48,
    "project_pairs": 48,
    "bin_tiles": 48,
    "render_tiles": 32,
    "step_tiles": 56,
    "moments": 40,
    "chain_pairs": 64,
    "reduce_gaussians": 32,
    "reduce_poses": 32,
    "unpack_gradient": 48,
    "project_depth": 40,
    "image_gradient_tiles": 64,
    "normal_equations": 64,
    "margin_used": 40,
    "project_grid": 48,
    "bin_bricks": 56,
    "render_bricks": 64,
    "moments_grid": 56,
    "chain_grid": 48,
}
EXPONENTIALS = {
    "pack_field",
    "unpack_gradient",
    "render_tiles",
    "step_tiles",
    "moments",
    "image_gradient_tiles",
    "render_bricks",
    "moments_grid",
}
STAGED = {"render_tiles", "step_tiles", "image_gradient_tiles", "render_bricks"}


@pytest.fixture(scope="module")
def reports():
    """What ptxas says, by architecture and kernel; both compiled at the same time."""
    absent = []
    for package in PACKAGES:
        try:
            metadata.version(package)
        except metadata.PackageNotFoundError:
            absent.append(package)
    if absent:
        pytest.skip(f"not installed, for want of wheels for this platform: {', '.join(absent)}")
    running = {
        cc: subprocess.Popen(
            [sys.executable, str(SCRIPT), str(cc)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for cc in (80, 90)
    }
    found = {}
    for cc, process in running.items():
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err[-3000:]
        found[cc] = json.loads(out.splitlines()[-1])
    return found


@pytest.mark.parametrize("cc", [80, 90])
def test_every_kernel_has_a_budget(reports, cc):
    assert set(reports[cc]) == set(REGISTERS)


@pytest.mark.parametrize("cc", [80, 90])
@pytest.mark.parametrize("kernel", REGISTERS)
def test_kernel_is_what_a_gpu_wants(reports, cc, kernel):
    report = reports[cc][kernel]
    assert report["f64"] == 0, "double precision: a constant or an index that is not a float32"
    assert report["spilled"] == 0
    assert report["stack"] == 0
    assert report["registers"] <= REGISTERS[kernel]
    if kernel in EXPONENTIALS:
        assert report["ex2"] > 0
        assert report["ex2_slow"] == 0, "an exponential without fastmath"
    else:
        assert report["ex2"] == 0
    if kernel in STAGED:
        assert report["shared_v4"] > 0, "staged records are not read four numbers at a time"
