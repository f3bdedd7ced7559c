# SPDX-License-Identifier: Apache-2.0
"""The result of super-resolution, and its file (npz without pickle)."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from gsbids.atomic import replacing
from gsbids.recon.field import GaussianField


@dataclass(frozen=True)
class SrResult:
    """A volume on a finer grid, and the fields of Gaussians it was made from.

    Attributes
    ----------
    volume : ndarray, (X, Y, Z), float32
        Volume in the units of the input.
    affine : ndarray, (4, 4), float64
        Voxel indices to world RAS+ mm.
    fields : tuple of GaussianField
        Members of the ensemble, in world RAS+ mm; their mean is the Gaussians' share of the volume. Empty without a
        fit.
    intensity_offset, intensity_scale : float
        Input intensity = offset + scale * field intensity.
    history : dict of str to list
        ``member``, ``iteration``, ``loss`` (mean squared residual, in the field's intensities); no times, so that
        the same input gives the same file.
    settings : dict
        Options, what was chosen by the hidden voxels, and their errors.
    share : float
        Weight of the mean of the fields in the volume; the rest comes from the linear solutions, the projection on the
        data and non-local means.
    coarse_affine : ndarray, (4, 4), float64
        Affine of the input volume.
    filled : ndarray, (A, B, C), bool
        Voxels of the input volume that are not background.
    background : float
        Intensity beyond the field of view (:func:`gsbids.imaging.intensity.background`).
    """

    volume: np.ndarray
    affine: np.ndarray
    fields: tuple[GaussianField, ...] = ()
    intensity_offset: float = 0.0
    intensity_scale: float = 1.0
    history: dict = field(default_factory=dict)
    settings: dict = field(default_factory=dict)
    share: float = 0.0
    coarse_affine: np.ndarray = field(default_factory=lambda: np.eye(4))
    filled: np.ndarray = field(default_factory=lambda: np.ones((1, 1, 1), bool))
    background: float = 0.0

    FORMAT = "gsbids-sr-2"
    IMAGES = ("volume", "affine", "coarse_affine", "filled")

    def save(self, path: str | Path) -> Path:
        """Write an ``.npz`` file under a temporary name, then rename it."""
        path = Path(path)
        arrays = {f"field_{n}_{k}": getattr(f, k) for n, f in enumerate(self.fields) for k in GaussianField.ARRAYS}
        arrays |= {k: getattr(self, k) for k in self.IMAGES}
        header = {
            "format": self.FORMAT,
            "members": len(self.fields),
            "share": self.share,
            "intensity_offset": self.intensity_offset,
            "intensity_scale": self.intensity_scale,
            "background": self.background,
            "history": self.history,
            "settings": self.settings,
        }
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "SrResult":
        """Read a file written by :meth:`save`; nothing is unpickled."""
        with np.load(path, allow_pickle=False) as data:
            header = json.loads(str(data["header"]))
            fields = tuple(
                GaussianField(**{k: data[f"field_{n}_{k}"] for k in GaussianField.ARRAYS})
                for n in range(header["members"])
            )
            plain = {k: header[k] for k in ("intensity_offset", "intensity_scale", "history", "settings", "share")}
            plain["background"] = header.get("background", header["intensity_offset"])
            return cls(fields=fields, **plain, **{k: data[k] for k in cls.IMAGES})
