# SPDX-License-Identifier: Apache-2.0
"""Data for tests: real data where it is found, small BIDS data sets made on the spot elsewhere."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
SLOW = Path(__file__).with_name("slow_tests.txt")


def pytest_addoption(parser):
    """Add the option that times tests, for ``slow_tests.py``."""
    parser.addoption("--times", metavar="FOLDER", type=Path, help="write how long every test takes into files here")


def pytest_collection_modifyitems(items):
    """Mark the slow tests."""
    slow = set(SLOW.read_text(encoding="utf-8").split())
    for item in items:
        if f"{item.path.stem}::{item.originalname}" in slow:
            item.add_marker(pytest.mark.slow)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Escape names that are not in UTF-8 in what a test has logged, as pytest-xdist cannot send them; note its time."""
    report = yield
    report.sections = [(title, text.encode(errors="backslashreplace").decode()) for title, text in report.sections]
    if folder := item.config.getoption("--times"):
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{os.getpid()}.jsonl", "a", encoding="utf-8") as file:
            fixtures = sorted(set(item.fixturenames) - {"request"})
            print(json.dumps([f"{item.path.stem}::{item.originalname}", call.when, call.duration, fixtures]), file=file)
    return report


@pytest.fixture(scope="session")
def test_data() -> Path:
    """Folder with the real data; the test is skipped where there is none."""
    folder = Path(os.environ.get("GSBIDS_TEST_DATA", CHECKOUT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no test data: {folder} is not there (set GSBIDS_TEST_DATA)")
    return folder


@pytest.fixture(scope="session")
def official_errors():
    """Errors that the official validator finds in a tree, as a function; the test is skipped where it is not there."""
    beside = Path(sys.executable).with_name("bids-validator-deno")
    validator = beside if beside.exists() else shutil.which("bids-validator-deno")
    if validator is None:
        pytest.skip("bids-validator-deno is not installed (it is one of the test requirements)")

    def errors(tree) -> list[dict]:
        done = subprocess.run([validator, tree, "--format", "json"], capture_output=True, text=True, check=False)
        return [i for i in json.loads(done.stdout)["issues"]["issues"] if i["severity"] == "error"]

    return errors


@pytest.fixture(scope="session")
def moving_brain():
    """A field, three stacks of it whose slices moved, their reconstruction, and the true motion: fitted once."""
    from test_recon import QUICK, STILL, moving_stacks

    from gsbids.recon.svr.fit import fit_svr

    field, stacks, motions = moving_stacks()
    return field, stacks, fit_svr(stacks, STILL, QUICK), motions


@dataclass(frozen=True)
class TinyBids:
    """A small BIDS data set: ``root`` (raw) and ``masks`` (a derivative data set beside it)."""

    root: Path
    masks: Path

    def stack(self, subject: str = "01", run: int = 1, suffix: str = "T2w") -> Path:
        """Path of a stack."""
        return self.root / f"sub-{subject}" / "anat" / f"sub-{subject}_run-{run}_{suffix}.nii.gz"

    def mask(self, subject: str = "01", run: int = 1) -> Path:
        """Path of a mask."""
        return self.masks / f"sub-{subject}" / "anat" / f"sub-{subject}_run-{run}_desc-brain_mask.nii.gz"

    def sidecar(self, subject: str = "01", run: int = 1) -> Path:
        """Path of a stack's sidecar."""
        return self.root / f"sub-{subject}" / "anat" / f"sub-{subject}_run-{run}_T2w.json"


@pytest.fixture
def tiny_bids(tmp_path):
    """Factory: ``tiny_bids(subjects=("01",), stacks=3)`` writes stacks of a ball with texture, in
    three orientations, 2 x 2 x 4 mm, thickness 3.5 mm, with masks as derivatives."""

    def make(subjects=("01",), stacks: int = 3, thickness: float | None = 3.5, name="bids") -> TinyBids:
        tiny = TinyBids(tmp_path / name, tmp_path / f"{name}-masks")
        for root, kind in ((tiny.root, "raw"), (tiny.masks, "derivative")):
            root.mkdir(parents=True)
            fields = {"Name": "tiny", "BIDSVersion": "1.10.1", "DatasetType": kind}
            if kind == "derivative":
                fields["GeneratedBy"] = [{"Name": "hand"}]
            (root / "dataset_description.json").write_text(json.dumps(fields))
        for subject in subjects:
            for run in range(1, stacks + 1):
                image, mask, affine = ball_stack(run)
                write_nifti(tiny.stack(subject, run), image, affine)
                write_nifti(tiny.mask(subject, run), mask, affine)
                fields = {"SliceTiming": []} if thickness is None else {"SliceThickness": thickness}
                tiny.sidecar(subject, run).write_text(json.dumps(fields))
        return tiny

    return make


def ball_stack(run: int):
    """Image, mask and affine of one stack: slices across the z, y or x axis in turn."""
    import numpy as np

    axes = [(0, 1, 2), (0, 2, 1), (1, 2, 0)][(run - 1) % 3]
    shape, steps = (28, 28, 14), (2.0, 2.0, 4.0)
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    for array_axis, world_axis in enumerate(axes):
        affine[world_axis, array_axis] = steps[array_axis]
        affine[world_axis, 3] = -steps[array_axis] * (shape[array_axis] - 1) / 2
    index = np.indices(shape).reshape(3, -1)
    x, y, z = affine[:3, :3] @ index + affine[:3, 3:]
    inside = (x / 20) ** 2 + (y / 23) ** 2 + (z / 18) ** 2 < 1
    texture = 600 + 200 * np.cos(x / 4) * np.cos(y / 5) + 150 * np.sin(z / 4 + x / 9)
    noise = np.random.default_rng(run).normal(0, 5, x.shape)
    image = np.where(inside, texture, 100) + noise
    return (image.reshape(shape).round().astype("int16"), inside.reshape(shape).astype("uint8"), affine)


def write_nifti(path: Path, data, affine) -> Path:
    """Write a NIfTI file as it is, for data that may be wrong on purpose."""
    import nibabel as nib

    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(data, affine)
    nib.save(image, path)
    return path
