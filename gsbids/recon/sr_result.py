# SPDX-License-Identifier: Apache-2.0
"""What super-resolution returns, and its file (npz without pickle)."""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gsbids.recon.field import GaussianField


@dataclass(frozen=True)
class SrResult:
    """A volume on a finer grid, and the fields of Gaussians behind it.

    Attributes
    ----------
    volume : ndarray, (X, Y, Z), float32
        In the units of the input.
    affine : ndarray, (4, 4), float64
        Voxel indices to world RAS+ mm.
    fields : tuple of GaussianField
        The members, in world RAS+ mm; their mean is the Gaussians' share of the volume. Empty without a fit.
    intensity_offset, intensity_scale : float
        Input intensity = offset + scale * field intensity.
    history : dict of str to list
        ``member``, ``iteration``, ``loss`` (mean squared residual, in the field's intensities); no times, so that
        the same input gives the same file.
    settings : dict
        Options, what was chosen by the hidden voxels, and their errors.
    """

    volume: np.ndarray
    affine: np.ndarray
    fields: tuple[GaussianField, ...] = ()
    intensity_offset: float = 0.0
    intensity_scale: float = 1.0
    history: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)

    def save(self, path: str | Path) -> Path:
        """Write all but the volume as ``.npz`` under a temporary name, then rename."""
        path = Path(path)
        arrays = {f"field_{n}_{k}": getattr(f, k) for n, f in enumerate(self.fields) for k in GaussianField.ARRAYS}
        header = {"format": "gsbids-sr-1", "members": len(self.fields), "shape": list(self.volume.shape),
                  "intensity_offset": self.intensity_offset, "intensity_scale": self.intensity_scale,
                  "history": self.history, "settings": self.settings}
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with open(temporary, "wb") as file:
                np.savez_compressed(file, header=np.array(json.dumps(header)), affine=self.affine, **arrays)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        return path

    @classmethod
    def load(cls, path: str | Path, volume: np.ndarray) -> "SrResult":
        """Read a file written by :meth:`save`, beside its volume; nothing is unpickled."""
        with np.load(path, allow_pickle=False) as data:
            header = json.loads(str(data["header"]))
            fields = tuple(GaussianField(**{k: data[f"field_{n}_{k}"] for k in GaussianField.ARRAYS})
                           for n in range(header["members"]))
            return cls(volume, data["affine"], fields, header["intensity_offset"], header["intensity_scale"],
                       header["history"], header["settings"])
