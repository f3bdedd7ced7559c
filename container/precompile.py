# SPDX-License-Identifier: Apache-2.0
"""Fill the caches of the image, by small runs of what is run most: ``python precompile.py FOLDER``.

Numba's kernels are compiled for every level of x86-64 that this processor has, so that the image starts at once on all
processors of these levels; on others they are compiled when they are first used.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from gsbids.cli.places import FOLDERS, PREPARED, processor_levels


def main(folder: Path) -> None:
    """Reconstruct, super-resolve and sample, once for every level."""
    levels = processor_levels(Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    if not levels:
        print("this processor has no level of x86-64 that the image knows; kernels are compiled at the first use")
    with tempfile.TemporaryDirectory() as scratch:
        simulate(Path(scratch))
        for level in levels:
            begin = time.perf_counter()
            run_all(
                Path(scratch),
                {variable: str(folder / name) for name, variable in FOLDERS.items()}
                | {"NUMBA_CPU_NAME": level, "NUMBA_CPU_FEATURES": ""},
                level,
            )
            print(f"{level}: {time.perf_counter() - begin:.0f} s")
    count = len(list(folder.glob("numba/*/*.nbc")))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    print(f"{count} compiled kernels; {size / 2**20:.1f} MiB of caches")
    if levels and not count:
        sys.exit("no kernel was kept")


def simulate(scratch: Path) -> None:
    subprocess.run(
        [
            sys.executable,
            "-m",
            "gsbids.simulate",
            scratch / "bids",
            "--brain-ml",
            "20",
            "--stacks",
            "axial",
            "coronal",
            "sagittal",
        ],
        check=True,
        cwd=scratch,
    )


# Always in another folder than the sources, which Python would find first.
def run_all(scratch: Path, caches: dict[str, str], name: str) -> None:
    bids, out = scratch / "bids", scratch / name
    environ = {key: value for key, value in os.environ.items() if key != PREPARED} | caches
    truth = bids / "derivatives/truth/sub-01/anat/sub-01_desc-truth_T2w.nii.gz"
    for arguments in (
        [
            bids,
            out,
            "participant",
            "-d",
            bids / "derivatives" / "masks",
            "-w",
            scratch / f"{name}-work",
            "--sloppy",
            "--nprocs",
            "1",
        ],
        ["super-resolve", truth, out / "fine.nii.gz", "--factor", "1", "1", "2", "--sr-quality", "fast"],
    ):
        subprocess.run([sys.executable, "-m", "gsbids", *arguments], check=True, env=environ, cwd=scratch)
    model = next(out.rglob("*_model.npz"))
    subprocess.run(
        [sys.executable, "-m", "gsbids", "sample", model, out / "sample.nii.gz", "--spacing", "2"],
        check=True,
        env=environ,
        cwd=scratch,
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]).resolve())
