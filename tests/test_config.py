# SPDX-License-Identifier: Apache-2.0
"""Settings survive their file."""

from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from gsbids.config import Config, Execution, NipypeOptions, WorkflowOptions
from gsbids.errors import InputError


def example() -> Config:
    return Config(
        Execution(
            Path("/in"),
            Path("/out"),
            Path("/work"),
            "20260101-000000_ab",
            participant_label=("01",),
            bids_filters={"stacks": {"run": [1, 2], "acquisition": "<none>"}},
            derivatives={"masks": Path("/m")},
        ),
        WorkflowOptions(svr_method="paper", slice_thickness=3.0, n4=False),
        NipypeOptions(nprocs=4, plugin="SLURM", plugin_args={"sbatch_args": "--mem=8G", "max_jobs": 3}),
    )


def test_round_trip(tmp_path):
    path = example().to_toml(tmp_path / "a" / "gsbids.toml")
    assert Config.from_toml(path) == example()
    assert [file.name for file in path.parent.iterdir()] == ["gsbids.toml"]


def test_settings_do_not_change_in_place():
    config = example()
    with pytest.raises(FrozenInstanceError):
        config.workflow.n4 = True
    changed = config.replace("workflow", n4=True)
    assert changed.workflow.n4
    assert not config.workflow.n4


def test_data_sets_by_name():
    assert example().datasets == {"": Path("/out"), "raw": Path("/in"), "masks": Path("/m")}


def test_file_without_folders(tmp_path):
    (tmp_path / "c.toml").write_text("[workflow]\nn4 = false\n")
    with pytest.raises(InputError, match="bids_dir, output_dir or work_dir is missing"):
        Config.from_toml(tmp_path / "c.toml")
