# SPDX-License-Identifier: Apache-2.0
"""Simulated cases of the SVR benchmark: how they are made, and what is known about them.

A case is a folder that ``tools/simulate_stacks.py`` wrote; it is kept and used again as long as its
settings are the same. The tool shares no code with gsbids.
"""

import csv
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from common import run_tool, say, shared_folder
from scipy.spatial.transform import Rotation

from gsbids.imaging.nifti import load_image
from gsbids.imaging.stack import Stack

MNI = ("--phantom", "mni")
SMALL = (*MNI, "--voxel", "0.4", "--inplane", "1.0", "--surround", "none")
TILTED = (
    "--surround",
    "fluid",
    "--inplane",
    "1.1",
    "--thickness",
    "3",
    "--spacing",
    "3.3",
    "--stacks",
    "axial",
    "coronal",
    "sagittal",
    "axial",
    "--angle",
    "6",
    "--shift",
    "4",
    "--noise",
    "0.04",
    "--tilt",
    "5",
)
ATLAS = {"F22": "GA22_notoperated", "F25": "GA25_operated", "F28": "GA28_operated", "T28": "GA28_operated"}
OPTIONS = {
    "A": (*MNI, "--surround", "fluid"),
    "B2": SMALL,
    "B0": (*SMALL, "--motion", "none", "--noise", "0"),
    "F22": ("--surround", "fluid"),
    "F25": ("--surround", "fluid"),
    "F28": ("--surround", "fluid"),
    "T28": TILTED,
}
POSE_COLUMNS = ("qw", "qx", "qy", "qz", "tx_mm", "ty_mm", "tz_mm", "cx_mm", "cy_mm", "cz_mm")


@dataclass(frozen=True)
class Case:
    """Stacks with a known answer.

    Attributes
    ----------
    name : str
        For tables and folders.
    folder : Path
        Data set of ``simulate_stacks.py``, or one derived from it.
    seed : int
    """

    name: str
    folder: Path
    seed: int

    @property
    def images(self) -> list[Path]:
        """Stacks, by run."""
        return sorted((self.folder / "sub-01" / "anat").glob("*_T2w.nii.gz"))

    @property
    def masks(self) -> list[Path]:
        """Brain masks that the reconstruction is given, by run."""
        return sorted((self.folder / "derivatives" / "masks").rglob("*_mask.nii.gz"))

    @property
    def truth(self) -> tuple[Path, Path]:
        """True volume and mask, band-limited to 0.8 mm."""
        folder = self.folder / "derivatives" / "truth" / "sub-01" / "anat"
        return tuple(folder / f"sub-01_res-iso_desc-truth_{kind}.nii.gz" for kind in ("T2w", "mask"))

    @property
    def true_motion(self) -> list[Path]:
        """Tables of the true motion, by run."""
        return sorted((self.folder / "derivatives" / "truth").rglob("*_desc-motion_transforms.tsv"))

    @property
    def true_masks(self) -> list[Path]:
        """Masks over which slice errors are counted: those of the simulator, whatever the fit was given."""
        kept = sorted((self.folder / "derivatives" / "truemasks").rglob("*_mask.nii.gz"))
        return kept or self.masks

    def stacks(self) -> list[Stack]:
        """The stacks in memory, as simulated: neither denoised nor bias corrected."""
        out = []
        for image, mask in zip(self.images, self.masks, strict=True):
            data, affine = load_image(image)
            sidecar = json.loads(image.with_name(image.name.replace(".nii.gz", ".json")).read_text())
            out.append(
                Stack(image.name.split("_")[1], data, load_image(mask)[0] > 0, affine, float(sidecar["SliceThickness"]))
            )
        return out

    def true_transforms(self) -> np.ndarray:
        """True transforms scanner -> anatomy of every slice, (N, Z, 4, 4), padded to the longest stack."""
        tables = [read_motion(path) for path in self.true_motion]
        out = np.tile(np.eye(4), (len(tables), max(map(len, tables)), 1, 1))
        for n, table in enumerate(tables):
            out[n, : len(table)] = table
        return out


def simulated(name: str, seed: int, work: Path, more: tuple[str, ...] = (), label: str = "") -> Case:
    """A case by the simulator, from the shelf if it is there.

    Parameters
    ----------
    name : str
        Key of ``OPTIONS``.
    seed : int
    work : Path
        Folder for all cases.
    more : tuple of str
        Further options of ``simulate_stacks.py``.
    label : str
        Added to the name of the case where ``more`` is given.
    """
    options = [*OPTIONS[name], *more]
    if name in ATLAS:
        atlas = shared_folder() / "data" / "fetal-atlas-spinabifida"
        options += [
            "--input",
            atlas / f"{ATLAS[name]}_srr.nii.gz",
            "--input-mask",
            atlas / f"{ATLAS[name]}_mask.nii.gz",
        ]
    name = f"{name}-{label}" if label else name
    folder = work / "cases" / f"{name}_seed-{seed}"
    words = [*map(str, options), "--seed", str(seed)]
    note = folder / "options.json"
    if not note.exists() or json.loads(note.read_text()) != words:
        shutil.rmtree(folder, ignore_errors=True)
        say(f"simulating {name}, seed {seed}")
        run_tool("simulate_stacks.py", *words, "--out", folder)
        masks = folder / "derivatives" / "masks" / "dataset_description.json"
        masks.write_text(
            json.dumps(
                {
                    "Name": "Masks of simulated stacks",
                    "BIDSVersion": "1.10.1",
                    "DatasetType": "derivative",
                    "GeneratedBy": [{"Name": "simulate_stacks.py"}],
                }
            )
        )
        note.write_text(json.dumps(words))  # last: a folder without it was not finished
    return Case(name, folder, seed)


def read_motion(path: Path) -> np.ndarray:
    """World transforms scanner -> anatomy of a stack's slices, (Z, 4, 4), from a table of the simulator.

    The table says ``x_anatomy = R (x_scanner - c) + c + t``, world RAS+ mm.
    """
    with open(path, newline="", encoding="utf-8") as file:
        rows = np.array([[float(row[key]) for key in POSE_COLUMNS] for row in csv.DictReader(file, delimiter="\t")])
    out = np.tile(np.eye(4), (len(rows), 1, 1))
    out[:, :3, :3] = Rotation.from_quat(rows[:, :4], scalar_first=True).as_matrix()
    shift, centre = rows[:, 4:7], rows[:, 7:]
    out[:, :3, 3] = centre + shift - np.einsum("sij,sj->si", out[:, :3, :3], centre)
    return out


def write_motion(path: Path, transforms: np.ndarray) -> Path:
    """The inverse of :func:`read_motion`, with the world's origin as the centre of every rotation."""
    quaternion = Rotation.from_matrix(transforms[:, :3, :3]).as_quat(scalar_first=True)
    table = np.concatenate([quaternion, transforms[:, :3, 3], np.zeros((len(transforms), 3))], 1)
    rows = ["\t".join(POSE_COLUMNS), *("\t".join(f"{value:.12g}" for value in row) for row in table)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path
