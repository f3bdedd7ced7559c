# SPDX-License-Identifier: Apache-2.0
"""Cases that run in numba's CUDA simulator, in processes of their own: it has to be chosen before numba is loaded."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def errors_of(script: Path, together: tuple[tuple[str, ...], ...]) -> dict:
    """What the cases of a script print, by case; one process for each group, at the same time."""
    if importlib.util.find_spec("numba_cuda") is None:
        pytest.skip("numba-cuda is not installed: there are no wheels for this platform")
    environment = {**os.environ, "GSBIDS_BACKEND": "sim", "NUMBA_ENABLE_CUDASIM": "1", "NUMBA_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(
            [sys.executable, str(script), *names],
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for names in together
    ]
    found = {}
    for process in running:
        out, err = process.communicate(timeout=600)
        assert process.returncode == 0, err[-3000:]
        found |= json.loads(out.splitlines()[-1])
    return found
