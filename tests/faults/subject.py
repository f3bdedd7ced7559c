# SPDX-License-Identifier: Apache-2.0
"""The small data set of the campaign, its command, and what must be true of every tree afterwards."""

import gzip
import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from conftest import ball_stack, write_nifti
from trees import checksums

#: Where a run may stand in the way of its own leftovers.
TEMPORARY = re.compile(r"\.tmp(\.|$)")
OPTIONS = ("--output-resolution", "2.5", "--sloppy", "--nprocs", "1")


@dataclass(frozen=True)
class Subject:
    """A data set of a ball in three stacks with masks, as a user has it."""

    root: Path
    masks: Path

    def stack(self, run: int = 1, label: str = "01") -> Path:
        """Path of a stack."""
        return self.root / f"sub-{label}" / "anat" / f"sub-{label}_run-{run}_T2w.nii.gz"

    def mask(self, run: int = 1, label: str = "01") -> Path:
        """Path of its mask."""
        return self.masks / f"sub-{label}" / "anat" / f"sub-{label}_run-{run}_desc-brain_mask.nii.gz"

    def arguments(self, folder: Path, *options) -> list[str]:
        """Words of the command line; output and working folder are below ``folder``."""
        return [
            str(self.root),
            str(folder / "out"),
            "participant",
            "-d",
            f"masks={self.masks}",
            "-w",
            str(folder / "work"),
            *OPTIONS,
            *map(str, options),
        ]

    def checksums(self) -> dict[str, str]:
        """Of everything that is input."""
        return checksums(self.root) | {f"masks/{name}": value for name, value in checksums(self.masks).items()}


def make_subject(folder: Path, labels=("01",), stacks: int = 3) -> Subject:
    """Write the data set below a folder."""
    subject = Subject(folder / "bids", folder / "bids-masks")
    for root, kind in ((subject.root, "raw"), (subject.masks, "derivative")):
        root.mkdir(parents=True)
        fields = {"Name": "faults", "BIDSVersion": "1.10.1", "DatasetType": kind}
        if kind == "derivative":
            fields["GeneratedBy"] = [{"Name": "hand"}]
        (root / "dataset_description.json").write_text(json.dumps(fields))
    (subject.root / "participants.tsv").write_text(
        "participant_id\tage\n" + "".join(f"sub-{label}\t30\n" for label in labels)
    )
    for label in labels:
        for run in range(1, stacks + 1):
            image, mask, affine = ball_stack(run)
            write_nifti(subject.stack(run, label), image, affine)
            write_nifti(subject.mask(run, label), mask, affine)
            fields = {
                "SliceThickness": 4.0,
                "SliceTiming": [0.5 * k for k in range(14)],
                "EchoTime": 0.09,
                "Manufacturer": "none",
                "RepetitionTime": 7.0,
            }
            name = subject.stack(run, label).name.replace(".nii.gz", ".json")
            subject.stack(run, label).with_name(name).write_text(json.dumps(fields))
    return subject


def gsbids(*words) -> list[str]:
    """The real command."""
    return [sys.executable, "-m", "gsbids", *map(str, words)]


def flaws(folder: Path, leftovers: bool = True) -> list[str]:
    """Files below a folder that are half written, and temporary ones."""
    found = []
    for path in sorted(folder.rglob("*")) if folder.is_dir() else ():
        if not path.is_file():
            continue
        if path.name.startswith("crash-"):  # of nipype: where the disk is full it may be empty
            continue
        if TEMPORARY.search(path.name):
            found += [f"{path.relative_to(folder)}: left over"] if leftovers else []
            continue
        try:
            _read_whole(path)
        except Exception as error:
            found.append(f"{path.relative_to(folder)}: {type(error).__name__} {error}")
    return found


def _read_whole(path: Path) -> None:
    name = path.name
    if name.endswith((".nii.gz", ".nii")):
        np.asarray(nib.load(path).dataobj)
        if name.endswith(".gz"):
            gzip.decompress(path.read_bytes())
    elif name.endswith(".json"):
        json.loads(path.read_text(encoding="utf-8"))
    elif name.endswith(".npz"):
        with np.load(path, allow_pickle=False) as data:
            for key in data:
                data[key]
    elif name.endswith(".html"):
        if not path.read_text(encoding="utf-8").rstrip().endswith("</html>"):
            raise ValueError("does not end")
    elif name.endswith(".tsv"):
        lines = path.read_text(encoding="utf-8").splitlines()
        if not lines or len({line.count("\t") for line in lines}) != 1:
            raise ValueError("is no table")
    elif name.endswith((".txt", ".md", ".toml")) and not path.stat().st_size:
        raise ValueError("is empty")
