# SPDX-License-Identifier: Apache-2.0
"""A reconstruction task: the stacks of one subject, session and contrast."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from gsbids.bids.names import build_name, task_name


@dataclass(frozen=True)
class StackFile:
    """One acquired stack on disk.

    Attributes
    ----------
    path : Path
        NIfTI file.
    entities : dict
        Short BIDS keys and ``suffix``: ``{"sub": "01", "run": "1", "suffix": "T2w"}``.
    metadata : dict
        JSON sidecar, with what it inherits.
    thickness : float
        Slice thickness in mm; NaN where neither sidecar nor option says it.
    mask : Path or None
        Brain mask from a derivative data set.
    sources : tuple of Path
        Files that image and mask were assembled from, where they are not data themselves.
    """

    path: Path
    entities: dict[str, str]
    metadata: dict = field(default_factory=dict)
    thickness: float = float("nan")
    mask: Path | None = None
    sources: tuple[Path, ...] = ()

    @property
    def name(self) -> str:
        """Whole source name without extension, for example ``sub-01_run-1_T2w``."""
        named = {key: value for key, value in self.entities.items() if key != "suffix"}
        return build_name(named, self.entities["suffix"])

    @property
    def label(self) -> str:
        """Short name within the task, for example ``run-1``."""
        parts = [f"{key}-{value}" for key, value in self.entities.items() if key in ("dir", "run", "chunk")]
        return "_".join(parts) or self.name


@dataclass(frozen=True)
class ReconstructionTask:
    """The stacks that are reconstructed to one volume, or the one volume that is super-resolved.

    Attributes
    ----------
    subject : str
        Label without ``sub-``.
    session : str or None
        Label without ``ses-``.
    suffix : str
        Suffix, for example ``T2w``.
    entities : dict
        Entities that the stacks have in common: short BIDS keys and ``suffix``; no ``run``. For a super-resolved
        volume: all.
    stacks : tuple of StackFile
        Stacks in the order of their names.
    warnings : tuple of str
        Remarks on the data that people should know, for the log and the report.
    errors : tuple of str
        Reasons why the task cannot be run, as far as the names alone tell.
    method : {"svr", "sr"}
        Slice-to-volume reconstruction, or super-resolution of the one volume in ``stacks``.
    reason : str
        Reason for that method, as text.
    resolution : tuple of float
        Voxel size of a super-resolved volume along its array axes, mm.
    voxels : int
        Number of these voxels.
    plain : bool
        Whether the stacks are plain files, not those of a BIDS data set.
    poses : Path or None
        JSON with the pose of every slice (``transforms``, N x Z x 4 x 4), where these are known.
    """

    subject: str
    session: str | None
    suffix: str
    entities: dict[str, str]
    stacks: tuple[StackFile, ...]
    warnings: tuple[str, ...] = ()
    errors: tuple[str, ...] = ()
    method: str = "svr"
    reason: str = ""
    resolution: tuple[float, ...] = ()
    voxels: int = 0
    plain: bool = False
    poses: Path | None = None

    @property
    def name(self) -> str:
        """Name of the task, for example ``sub-01_ses-01_acq-haste_T2w``."""
        return task_name(self.entities)

    def volumes(self, reason: str) -> tuple["ReconstructionTask", ...]:
        """Return each stack as a volume to be super-resolved by itself, under its own name."""
        return tuple(
            replace(self, entities=stack.entities, stacks=(stack,), method="sr", reason=reason) for stack in self.stacks
        )

    def with_warnings(self, *lines: str) -> "ReconstructionTask":
        """Return a copy with more warnings."""
        return replace(self, warnings=(*self.warnings, *lines))
