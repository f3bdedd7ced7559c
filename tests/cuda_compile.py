# SPDX-License-Identifier: Apache-2.0
"""Compile every CUDA kernel for one architecture without a GPU, and print what ptxas says as JSON.

``python cuda_compile.py 90``. One architecture a process: numba keeps compiled device functions.
"""

import json
import re
import sys
from types import SimpleNamespace

import numba.cuda.dispatcher
from cuda.bindings import nvjitlink
from numba import cuda, float32, int32, types

# Device functions ask the GPU at hand what it can do.
ARCHITECTURE = (int(sys.argv[1]) // 10, int(sys.argv[1]) % 10)
numba.cuda.dispatcher.get_current_device = lambda: SimpleNamespace(compute_capability=ARCHITECTURE)

from gsbids.kernels.cuda import adjoint as adjoint_cuda  # noqa: E402
from gsbids.kernels.cuda import grid as grid_cuda  # noqa: E402
from gsbids.kernels.cuda import kept_lists as verlet_cuda  # noqa: E402
from gsbids.kernels.cuda import splat as splat_cuda  # noqa: E402

F, I = float32, int32
F1, F2, F3, F4 = F[::1], F[:, ::1], F[:, :, ::1], F[:, :, :, ::1]
I1, I2, I3 = I[::1], I[:, ::1], I[:, :, ::1]

SIGNATURES = {
    splat_cuda.pack_field: (F2, F2, F2, F1, F1, I, F2),
    splat_cuda.cull: (F2, F2, I2, F, I, I, I2, I2, I),
    splat_cuda.project_pairs: (F2, F2, I2, F, I, I, I, F2, I2),
    splat_cuda.bin_tiles: (F2, I2, I2, I3, I, I1, I1, I1, I),
    splat_cuda.render_tiles: (F2, I1, I1, I3, F, F3, F3),
    splat_cuda.step_tiles: (F2, I1, I1, I3, F, F, F1, F3, F3, F3, F3, F3, F2),
    adjoint_cuda.moments: (F2, I2, I2, I, I, F1, F1, F2),
    adjoint_cuda.chain_pairs: (F2, F2, I2, F2, I, F2),
    adjoint_cuda.reduce_gaussians: (F2, I1, I1, F2, I),
    adjoint_cuda.reduce_poses: (F2, I1, F2),
    adjoint_cuda.unpack_gradient: (F2, F2, F2, I, F2, F2),
    adjoint_cuda.project_depth: (F2, F2, I2, F2),
    adjoint_cuda.image_gradient_tiles: (F2, F2, F2, I1, I1, I3, F3, F3, F4),
    adjoint_cuda.normal_equations: (F2, F4, F3, F3, F1, I2, F2),
    verlet_cuda.margin_used: (F2, F2, F1, F1, F, F, F, F1),
    grid_cuda.project_grid: (F2, F1, F, I, I, I, I, F2, I2),
    grid_cuda.bin_bricks: (F2, I2, I, I, I, I, I1, I1, I1, I),
    grid_cuda.render_bricks: (F2, I1, I1, I, F, F3, F3),
    grid_cuda.moments_grid: (F2, I2, I, I, F1, F1, F2),
    grid_cuda.chain_grid: (F2, F1, F2, I, F2),
}


def link(ptx: str) -> str:
    """What ptxas reports of the PTX."""
    handle = nvjitlink.create(2, [f"-arch=sm_{sys.argv[1]}", "-verbose"])
    code = ptx.encode()
    nvjitlink.add_data(handle, nvjitlink.InputType.PTX, code, len(code), "kernel")
    nvjitlink.complete(handle)
    log = bytearray(nvjitlink.get_info_log_size(handle))
    nvjitlink.get_info_log(handle, log)
    return log.decode()


def report(kernel, signature) -> dict:
    """Registers, bytes spilled, double precision and exponentials of a kernel."""
    ptx, _ = cuda.compile_ptx(
        kernel.py_func,
        types.void(*signature),
        cc=ARCHITECTURE,
        fastmath=True,
        launch_bounds=kernel.targetoptions.get("launch_bounds"),
    )
    log = link(ptx)
    return {
        "registers": int(re.search(r"Used (\d+) registers", log)[1]),
        "spilled": sum(int(n) for n in re.findall(r"(\d+) bytes spill", log)),
        "stack": int(re.search(r"(\d+) bytes stack frame", log)[1]),
        "f64": len(re.findall(r"\.f64", ptx)),
        "ex2": len(re.findall(r"ex2\.approx", ptx)),
        "shared_v4": len(re.findall(r"ld\.shared\.v4", ptx)),
        "ex2_slow": len(re.findall(r"ex2\.approx(?!\.ftz)", ptx)),
    }


if __name__ == "__main__":
    wanted = sys.argv[2:]
    print(
        json.dumps(
            {
                kernel.py_func.__name__: report(kernel, signature)
                for kernel, signature in SIGNATURES.items()
                if not wanted or kernel.py_func.__name__ in wanted
            }
        )
    )
