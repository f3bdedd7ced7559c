# SPDX-License-Identifier: Apache-2.0
"""``gsbids`` from Python: reconstruct, super-resolve and mask images in memory, by the commands of the same names.

Each call runs the command in a process of its own, so that a script, a notebook and the command line give the same
numbers, the same messages and the same errors.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gsbids.errors import NOT_TO_BE_USED, DeviceError, GsbidsError, InputError, WorkflowError

if TYPE_CHECKING:
    import nibabel as nib
    import pandas as pd

FILES = {"volume": "volume.nii.gz", "mask": "brain_mask.nii.gz", "model": "model.npz", "report": "report.html"}
ERRORS = {error.exit_code: error for error in (InputError, WorkflowError, DeviceError)}


def reconstruct(
    stacks: Sequence,
    masks: Sequence | None = None,
    thickness: float | Sequence[float] | None = None,
    resolution: float = 0.8,
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> "Reconstruction":
    """Reconstruct one volume from stacks of slices of one brain (``gsbids reconstruct``).

    Parameters
    ----------
    stacks : sequence of nibabel image or path-like
        Two stacks or more.
    masks : sequence of nibabel image or path-like, optional
        A brain mask for each stack, on any grid; without them masks are made.
    thickness : float or sequence of float, optional
        Slice thickness in mm, one for all stacks or one for each; without it ``SliceThickness`` in the JSON file beside
        each stack.
    resolution : float
        Voxel size of the volume, mm.
    device : str
        ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
    progress : bool
        Show the messages of the command on the standard error.
    **options
        Other options of the command by their names: ``template="auto"``, ``random_seed=1``, ``n4=False``.

    Returns
    -------
    Reconstruction

    Raises
    ------
    gsbids.errors.GsbidsError
        As the command: the images or options cannot be used, or a step failed.

    Warns
    -----
    UserWarning
        The volume is marked "do not use".

    Examples
    --------
    >>> import gsbids
    >>> brain = gsbids.reconstruct(["ax.nii.gz", "cor.nii.gz", "sag.nii.gz"], thickness=3.0)  # doctest: +SKIP
    >>> brain.verdict, brain.volume.shape, brain.motion.rot_x.std()  # doctest: +SKIP
    """
    folder = tempfile.TemporaryDirectory(prefix="gsbids-")
    place = Path(folder.name)
    found = Reconstruction(folder)
    words = ["reconstruct", "--input-stacks", *_files(stacks, place, "stack")]
    if masks is not None:
        words += ["--input-masks", *_files(masks, place, "mask")]
    if thickness is not None:
        each = [thickness] if isinstance(thickness, int | float) else thickness
        words += ["--slice-thickness", *map(str, each)]
    words += [
        "--output-volume",
        found._path("volume"),
        "--output-mask",
        found._path("mask"),
        "--output-model",
        found._path("model"),
        "--output-report",
        found._path("report"),
        "--output-folder",
        str(place / "derivatives"),
        "--output-resolution",
        str(resolution),
        "--device",
        device,
    ]
    if _run([*words, *_as_words(options)], progress) == NOT_TO_BE_USED:
        warnings.warn(f"do not use this volume: {' '.join(found.reasons)}", stacklevel=2)
    return found


def super_resolve(
    image: "nib.Nifti1Image | str | os.PathLike",
    factor: float | Sequence[float] | None = None,
    resolution: float | Sequence[float] | None = None,
    device: str = "auto",
    progress: bool = True,
    **options: Any,
) -> "nib.Nifti1Image":
    """Super-resolve one volume (``gsbids super-resolve``).

    Parameters
    ----------
    image : nibabel image or path-like
        3D volume.
    factor : float or sequence of float, optional
        Factor by which voxels become finer, one number or one for each array axis; 2 where no resolution is given.
    resolution : float or sequence of float, optional
        Voxel size in mm, instead.
    device, progress, **options
        As for :func:`reconstruct`, with the options of that command: ``sr_quality="fast"``.

    Returns
    -------
    nibabel.Nifti1Image
    """
    if factor is not None and resolution is not None:
        raise InputError("factor and resolution say the same thing: give one of them")
    name, value = ("--output-resolution", resolution) if resolution is not None else ("--factor", factor or 2)
    value = [value] if isinstance(value, int | float) else value
    with tempfile.TemporaryDirectory(prefix="gsbids-") as place:
        out = str(Path(place, "fine.nii.gz"))
        # The files go first, as options with several values would take them.
        _run(
            [
                "super-resolve",
                *_files([image], Path(place), "image"),
                out,
                name,
                *map(str, value),
                "--device",
                device,
                *_as_words(options),
            ],
            progress,
        )
        return _image(out)


def brain_mask(
    image: "nib.Nifti1Image | str | os.PathLike", progress: bool = True, **options: Any
) -> "nib.Nifti1Image":
    """Segment the fetal brain in a stack (``gsbids mask``).

    Parameters
    ----------
    image : nibabel image or path-like
        Stack of slices.
    progress, **options
        As for :func:`reconstruct`, with the options of that command: ``mask_weights="my.safetensors"``.

    Returns
    -------
    nibabel.Nifti1Image
        1 in the brain; inspect it before use.

    Raises
    ------
    gsbids.errors.GsbidsError
        No brain was found.
    """
    with tempfile.TemporaryDirectory(prefix="gsbids-") as place:
        out = str(Path(place, "mask.nii.gz"))
        _run(["mask", *_files([image], Path(place), "image"), out, *_as_words(options)], progress)
        return _image(out)


@dataclass(frozen=True)
class Reconstruction:
    """A reconstruction and all outputs about it; its files exist as long as the object does.

    Attributes
    ----------
    folder : tempfile.TemporaryDirectory
    """

    folder: tempfile.TemporaryDirectory

    def _path(self, kind: str) -> str:
        return str(Path(self.folder.name, FILES[kind]))

    def _written(self, pattern: str) -> list[Path]:
        """List the files among the BIDS derivatives that match a pattern."""
        return sorted(Path(self.folder.name, "derivatives").rglob(pattern))

    @cached_property
    def volume(self) -> "nib.Nifti1Image":
        """Reconstructed volume, nibabel.Nifti1Image."""
        return _image(self._path("volume"))

    @cached_property
    def mask(self) -> "nib.Nifti1Image":
        """Brain mask of the volume, nibabel.Nifti1Image."""
        return _image(self._path("mask"))

    @cached_property
    def uncertainty(self) -> "nib.Nifti1Image":
        """Predicted standard deviation of the error at each voxel, nibabel.Nifti1Image."""
        return _image(self._written("*_desc-uncertainty_*.nii.gz")[0])

    @cached_property
    def motion(self) -> "pd.DataFrame":
        """Motion of all slices, pandas.DataFrame: a row a slice.

        ``stack`` (from 1), and the columns of ``*_desc-motion_timeseries.tsv``.
        """
        import pandas as pd

        tables = [
            pd.read_csv(path, sep="\t", na_values="n/a") for path in self._written("*_desc-motion_timeseries.tsv")
        ]
        return pd.concat(tables, keys=range(1, len(tables) + 1), names=["stack", None]).reset_index(level=0)

    @cached_property
    def metrics(self) -> "pd.Series":
        """Quality metrics, pandas.Series: the row of ``*_desc-qc_metrics.tsv``."""
        import pandas as pd

        return pd.read_csv(self._written("*_desc-qc_metrics.tsv")[0], sep="\t", na_values="n/a").iloc[0]

    @cached_property
    def sidecar(self) -> dict:
        """Sidecar of the volume."""
        return json.loads(self._written("*_desc-preproc_*.json")[0].read_text(encoding="utf-8"))

    @property
    def verdict(self) -> str:
        """``usable``, ``look at it`` or ``do not use``."""
        return self.sidecar["Verdict"]

    @property
    def reasons(self) -> list[str]:
        """Reasons why it is not ``usable``, in sentences."""
        return self.sidecar["VerdictReasons"]

    def sample(
        self,
        spacing: float | None = None,
        like: "nib.Nifti1Image | str | os.PathLike | None" = None,
        progress: bool = True,
        **options: Any,
    ) -> "nib.Nifti1Image":
        """Sample the model on another grid, without another fit (``gsbids sample``).

        Parameters
        ----------
        spacing : float, optional
            Voxel size, mm.
        like : nibabel image or path-like, optional
            Image whose grid is used, instead.
        progress, **options
            As for :func:`reconstruct`, with the options of that command.

        Returns
        -------
        nibabel.Nifti1Image
        """
        if (spacing is None) == (like is None):
            raise InputError("give a spacing in mm, or an image whose grid is wanted")
        with tempfile.TemporaryDirectory(prefix="gsbids-") as place:
            grid = ["--spacing", str(spacing)] if like is None else ["--like", *_files([like], Path(place), "grid")]
            out = str(Path(place, "sampled.nii.gz"))
            _run(["sample", self._path("model"), out, *grid, *_as_words(options)], progress)
            return _image(out)

    def save(self, path: str | os.PathLike) -> Path:
        """Copy the model to a file: Gaussians and poses (``.npz``, for :meth:`sample` and ``gsbids sample``)."""
        return Path(shutil.copyfile(self._path("model"), path))

    def report(self, path: str | os.PathLike) -> Path:
        """Copy the report to a file, one HTML file."""
        return Path(shutil.copyfile(self._path("report"), path))


def _files(images: Sequence, place: Path, name: str) -> list[str]:
    """Return paths of images: those that are given as paths, and new files for those in memory."""
    import nibabel as nib

    if isinstance(images, str | os.PathLike) or hasattr(images, "affine"):
        raise InputError(f"one image was given where a list of images is wanted: write [{name}]")
    out = []
    for number, image in enumerate(images, start=1):
        if isinstance(image, str | os.PathLike):
            out.append(os.path.abspath(image))
        elif hasattr(image, "affine"):
            out.append(str(place / f"{name}-{number}.nii.gz"))
            nib.save(
                image if isinstance(image, nib.Nifti1Image) else nib.Nifti1Image(image.dataobj, image.affine), out[-1]
            )
        else:
            raise InputError(f"{name} {number} is a {type(image).__name__}; give a nibabel image or a path")
    return out


def _image(path: str | Path) -> "nib.Nifti1Image":
    """Load an image to memory, so that it does not need its file any more."""
    import nibabel as nib
    import numpy as np

    image: Any = nib.load(path)
    return nib.Nifti1Image(np.asanyarray(image.dataobj).copy(), image.affine, image.header)


def _as_words(options: dict) -> list[str]:
    """Convert options by their names in Python to words of the command line."""
    words = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            words.append(option if value else f"--no-{option[2:]}")
        elif isinstance(value, list | tuple):
            words += [option, *map(str, value)]
        elif value is not None:
            words += [option, str(value)]
    return words


def _run(words: list[str], progress: bool) -> int:
    """Run a command.

    Returns
    -------
    int
        Exit code: 0, or 3 where the volume is marked "do not use".

    Raises
    ------
    gsbids.errors.GsbidsError
        The command failed; with the last error that it printed.
    """
    command = [sys.executable, "-m", "gsbids", *words]
    said, environment = [], os.environ | {"NO_ET": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace", env=environment
    ) as process:
        for line in process.stderr:  # type: ignore[union-attr]
            said.append(line.strip())
            if progress:
                sys.stderr.write(line)
    if process.returncode in (0, NOT_TO_BE_USED):
        return process.returncode
    errors = [line.partition("error: ")[2] for line in said if "error: " in line]
    raise ERRORS.get(process.returncode, GsbidsError)(errors[-1] if errors else " ".join(said[-3:]) or "it was stopped")
