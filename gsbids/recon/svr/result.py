# SPDX-License-Identifier: Apache-2.0
"""The result of a slice-to-volume fit, and its file (npz without pickle)."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from gsbids.atomic import replacing
from gsbids.imaging.stack import Stack
from gsbids.kernels import ops
from gsbids.recon.field import GaussianField
from gsbids.recon.fitting.stack_bias import StackBias
from gsbids.recon.motion import RigidMotion


@dataclass(frozen=True)
class SvrResult:
    """A fitted field with the poses, gains and weights of its S slices.

    Only slices with brain in their mask are slices of the fit; all positions are world RAS+ mm.

    Attributes
    ----------
    field : GaussianField
    stack_names : tuple of str
        Names of the N stacks.
    stack_index, slice_index : ndarray, (S,), int
        Stack of each slice (0..N-1), and its index along the third axis of that stack.
    nominal, motion : RigidMotion
        Poses in the scanner and as estimated.
    stack_affine : ndarray, (N, 4, 4)
        World transforms scanner -> anatomy from the co-registration of stacks (start of the fit).
    gain : ndarray, (S,)
        Intensity factor of each slice: acquired ~ gain * simulated.
    weight : ndarray, (S,)
        Robust weight of each slice, 0 (rejected) to 1.
    ncc : ndarray, (S,)
        Normalised cross-correlation of acquired and simulated slice inside the mask.
    residual : ndarray, (S,)
        Mean absolute residual inside the mask over the 99th percentile of the intensities.
    psf : ndarray, (S, 3)
        Variances (mm2) of the slice PSF along row, column and normal.
    intensity_scale : float
        Input intensity = ``intensity_scale`` * field intensity + ``intensity_offset``.
    intensity_offset : float
        0 unless the brain has negative intensities (:func:`gsbids.imaging.intensity.darkest`).
    bias : StackBias or None
        Smooth factor of each stack besides its slices' gains.
    masks : tuple of ndarray, (X, Y, Z), bool, or None
        Masks of the N stacks as they were fitted, None for stacks left out; empty where all were fitted as given.
    history : dict of str to list
        Columns ``iteration, loss, held_out`` and others, one entry a record; no times, so that the
        file is the same to the bit whenever the fit is repeated.
    settings : dict
        Options of the fit, versions, seed, device.
    """

    field: GaussianField
    stack_names: tuple[str, ...]
    stack_index: np.ndarray
    slice_index: np.ndarray
    nominal: RigidMotion
    motion: RigidMotion
    stack_affine: np.ndarray
    gain: np.ndarray
    weight: np.ndarray
    ncc: np.ndarray
    residual: np.ndarray
    psf: np.ndarray
    intensity_scale: float
    bias: StackBias | None = None
    masks: tuple[np.ndarray | None, ...] = ()
    intensity_offset: float = 0.0
    history: dict = field(default_factory=dict)  # type: ignore[operator]
    settings: dict = field(default_factory=dict)  # type: ignore[operator]

    ARRAYS = ("stack_index", "slice_index", "stack_affine", "gain", "weight", "ncc", "residual", "psf")

    @property
    def rejected(self) -> np.ndarray:
        """Slices with (almost) no weight in the volume, (S,), bool."""
        return self.weight < 0.1

    @property
    def mask_choice(self) -> dict:
        """Outcome of the comparison of masks.

        Sentences about stacks with doubtful masks by name (``doubts``), names of those left out (``left_out``), and
        slices without information by stack (``empty``).
        """
        return {"doubts": {}, "left_out": [], "empty": {}} | self.settings.get("mask_choice", {})

    def render_options(self, device: str = "cpu") -> ops.RenderOptions:
        """Return the options with which the field was rendered in the fit, on a device; not for the paper's method."""
        known = {name: self.settings[name] for name in ("cut", "eps", "mass_factor") if name in self.settings}
        return ops.RenderOptions(**known, device=device)

    def as_fitted(self, stacks: list[Stack]) -> list[Stack]:
        """Return stacks, in the order of ``stack_names``, with the masks that were fitted."""
        if not self.masks:
            return stacks
        return [
            stack if mask is None else replace(stack, mask=mask) for stack, mask in zip(stacks, self.masks, strict=True)
        ]

    def save(self, path: str | Path) -> Path:
        """Write an ``.npz`` file under a temporary name, then rename it."""
        path = Path(path)
        arrays = {f"field_{k}": getattr(self.field, k) for k in GaussianField.ARRAYS}
        arrays |= {k: getattr(self, k) for k in self.ARRAYS}
        for name, poses in (("nominal", self.nominal), ("motion", self.motion)):
            arrays |= {f"{name}_rotation": poses.rotation, f"{name}_translation": poses.translation}
        if self.bias:
            arrays |= {"bias_nodes": self.bias.nodes, "bias_log_factor": self.bias.log_factor}
        arrays |= {f"mask_{n}": np.packbits(mask) for n, mask in enumerate(self.masks) if mask is not None}
        header = {
            "format": "gsbids-svr-2",
            "stack_names": list(self.stack_names),
            "masks": [mask if mask is None else list(mask.shape) for mask in self.masks],
            "intensity_scale": float(self.intensity_scale),
            "intensity_offset": float(self.intensity_offset),
            "history": self.history,
            "settings": self.settings,
        }
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, header=np.array(json.dumps(header)), **arrays)
        return path

    @classmethod
    def load(cls, path: str | Path) -> "SvrResult":
        """Read a file written by :meth:`save`; nothing is unpickled."""
        with np.load(path, allow_pickle=False) as data:
            header = json.loads(str(data["header"]))
            return cls(
                field=GaussianField(**{k: data[f"field_{k}"] for k in GaussianField.ARRAYS}),
                stack_names=tuple(header["stack_names"]),
                nominal=RigidMotion(data["nominal_rotation"], data["nominal_translation"]),
                motion=RigidMotion(data["motion_rotation"], data["motion_translation"]),
                intensity_scale=header["intensity_scale"],
                intensity_offset=header.get("intensity_offset", 0.0),
                masks=tuple(
                    shape and _unpacked(data[f"mask_{n}"], shape) for n, shape in enumerate(header.get("masks", []))
                ),
                bias=StackBias(data["bias_nodes"], data["bias_log_factor"]) if "bias_nodes" in data else None,
                history=header["history"],
                settings=header["settings"],
                **{k: data[k] for k in cls.ARRAYS},
            )


def _unpacked(bits: np.ndarray, shape: list[int]) -> np.ndarray:
    """Unpack a mask from its bits."""
    return np.unpackbits(bits, count=int(np.prod(shape))).reshape(shape).astype(bool)
