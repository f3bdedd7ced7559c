# SPDX-License-Identifier: Apache-2.0
"""``gsbids --help`` is quick because it loads next to nothing."""

import json
import subprocess
import sys

import pytest

HEAVY = {
    "ants",
    "bids",
    "jinja2",
    "matplotlib",
    "monai",
    "nibabel",
    "nilearn",
    "nipype",
    "numba",
    "numpy",
    "pandas",
    "safetensors",
    "scipy",
    "torch",
    "yaml",
}

SCRIPT = """\
import json, sys
from gsbids.cli.main import main
try:
    code = main({argv!r})
except SystemExit as left:
    code = left.code
sys.stdout.write("\\n" + json.dumps([code, sorted(name.partition(".")[0] for name in sys.modules)]))
"""


@pytest.mark.parametrize(
    ("argv", "expected"),
    [(["--version"], 0), (["--help"], 0), ([], 2), (["in", "out", "participant", "--mem", "x"], 2)],
)
def test_nothing_heavy_is_loaded(argv, expected):
    run = subprocess.run([sys.executable, "-c", SCRIPT.format(argv=argv)], capture_output=True, text=True, check=True)
    code, loaded = json.loads(run.stdout.splitlines()[-1])
    assert code == expected
    assert HEAVY & set(loaded) == set()


def test_the_package_is_light():
    script = "import json, sys, gsbids; print(json.dumps(sorted(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert HEAVY & {name.partition(".")[0] for name in json.loads(run.stdout)} == set()


def test_the_fits_need_a_bare_gpu_machine_only():
    absent = sorted(HEAVY - {"numba", "numpy", "scipy", "torch"} | {"sklearn"})
    script = (
        f"import sys\nfor name in {absent}: sys.modules[name] = None\n"
        "import gsbids.recon.sr.fit, gsbids.recon.sr.sample, gsbids.recon.svr.fit\n"
        "import gsbids.recon.volume.sample, gsbids.recon.volume.uncertainty"
    )
    subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)


def test_run_as_module():
    run = subprocess.run([sys.executable, "-m", "gsbids", "--version"], capture_output=True, text=True, check=True)
    assert run.stdout.startswith("gsbids ")
