# SPDX-License-Identifier: Apache-2.0
"""Saved models of SVR and SR: reading one of either kind, its field of view, and sampling it."""

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from scipy import ndimage

from gsbids.errors import InputError
from gsbids.imaging.masks import resample_mask
from gsbids.recon.sr.grid import MOST_VOXELS
from gsbids.recon.sr.result import SrResult
from gsbids.recon.sr.sample import sample_sr
from gsbids.recon.svr.result import SvrResult
from gsbids.recon.volume.sample import sample_result

KINDS: dict[str, Any] = {"gsbids-svr-2": SvrResult, SrResult.FORMAT: SrResult}
ROOM = 1.5  # mm around the Gaussians of an SVR model, whose centres reach beyond the masks already


def load_model(path: str | Path) -> SvrResult | SrResult:
    """Read the model of a slice-to-volume reconstruction or of a super-resolution; nothing is unpickled.

    Raises
    ------
    gsbids.errors.InputError
        The file is missing or damaged, no model, or one of another version.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; give a *_desc-gaussians_model.npz that gsbids wrote")
    try:
        with np.load(path, allow_pickle=False) as data:
            found = json.loads(str(data["header"]))["format"]
        if found in KINDS:
            model = KINDS[found].load(path)
            _check(model)
            return model
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        EOFError,
        AttributeError,
        zipfile.BadZipFile,
        zlib.error,
        RecursionError,
        OverflowError,
        MemoryError,
    ) as error:
        why = str(error) if type(error) is _DamageError else type(error).__name__
        raise InputError(
            f"{path}: this is no model of gsbids, or a damaged one ({why}); give a "
            "*_desc-gaussians_model.npz that gsbids wrote"
        ) from error
    raise InputError(
        f"{path}: the model has the format {found!r}, and this version reads {', '.join(KINDS)}: make "
        "it again with this version"
    )


class _DamageError(ValueError):
    """Description of what is wrong with a model."""


def _check(model: SvrResult | SrResult) -> None:
    """Refuse arrays and settings of other shapes or kinds than the samplers take, and numbers that are not finite."""
    fields = model.fields if isinstance(model, SrResult) else (model.field,)
    arrays = {
        f"{name} of a field": (getattr(field, name), shape)
        for field in fields
        for name, shape in (
            ("mean", (len(field), 3)),
            ("log_scale", (len(field), 3)),
            ("quaternion", (len(field), 4)),
            ("intensity", (len(field),)),
            ("log_weight", (len(field),)),
            ("origin", (3,)),
        )
    }
    numbers = {"intensity_scale": model.intensity_scale, "intensity_offset": model.intensity_offset}
    if isinstance(model, SrResult):
        arrays |= {
            "volume": (model.volume, model.volume.shape[:3] if model.volume.ndim == 3 else (1, 1, 1)),
            "affine": (model.affine, (4, 4)),
            "coarse_affine": (model.coarse_affine, (4, 4)),
        }
        numbers |= {"share": model.share, "background": model.background}
        if model.filled.ndim != 3 or model.filled.dtype != bool:
            raise _DamageError("filled is no array of three axes")
    for name, (array, shape) in arrays.items():
        if array.shape != shape or array.dtype.kind != "f" or not np.isfinite(array).all():
            raise _DamageError(
                f"{name}: {' x '.join(map(str, array.shape))} numbers of type {array.dtype}, expected "
                f"{' x '.join(map(str, shape))} finite ones"
            )
        if name.endswith("affine") and not abs(np.linalg.det(array)) > 0:
            raise _DamageError(f"{name} is singular")
    if not isinstance(model.settings, dict):
        raise _DamageError("settings are no object")
    numbers |= {name: model.settings[name] for name in ("cut", "eps", "rim", "neighbours") if name in model.settings}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
            raise _DamageError(f"{name} is no number")


def model_grid(
    model: SvrResult | SrResult, transform: np.ndarray | None = None
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Return affine and shape of the field of view of a model.

    For SR that is the grid of the volume; for SVR, which has no voxels, one of 1 mm along the world's axes around the
    Gaussians; along those of another world, where a rigid ``transform`` (4, 4) to it is given (SVR only).
    """
    if isinstance(model, SrResult):
        return model.affine, model.volume.shape
    if not len(model.field):
        raise InputError("the model holds no Gaussians: there is nothing to sample")
    mean, origin = model.field.mean, model.field.origin
    if transform is not None:
        mean, origin = mean @ transform[:3, :3].T, transform[:3, :3] @ origin + transform[:3, 3]
    low, high = mean.min(0) - ROOM, mean.max(0) + ROOM
    shape = tuple(int(n) for n in np.ceil(high - low) + 1)
    affine = np.eye(4)
    affine[:3, 3] = (low + high) / 2 + origin - (np.array(shape) - 1) / 2
    return affine, shape  # type: ignore[return-value]


def grid_of_spacing(
    affine: np.ndarray, shape: Sequence[int], spacing: float | Sequence[float]
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Return a grid of the same field of view with voxels of exactly this size (mm, one number or three), centred."""
    own = np.linalg.norm(affine[:3, :3], axis=0)
    step = np.broadcast_to(np.asarray(spacing, float), 3) / own
    count = np.maximum(np.floor(np.array(shape) / step + 1e-3), 1)
    return _within(affine, shape, step, count)


def grid_of_factor(
    affine: np.ndarray, shape: Sequence[int], factor: float | Sequence[float]
) -> tuple[np.ndarray, tuple[int, int, int]]:
    """Return a grid that fills the same field of view with ``factor`` times as many voxels (one number or three)."""
    count = np.maximum(np.rint(np.array(shape) * np.broadcast_to(np.asarray(factor, float), 3)), 1)
    return _within(affine, shape, np.array(shape) / count, count)


def sample_model(
    model: SvrResult | SrResult,
    affine: np.ndarray,
    shape: Sequence[int],
    mask: tuple | None = None,
    device: str = "cpu",
) -> np.ndarray:
    """Sample the image of a model at the voxel centres of a grid.

    Parameters
    ----------
    model : SvrResult or SrResult
    affine, shape
        Affine (4, 4) and shape (X, Y, Z) of the grid.
    mask : tuple of (ndarray, affine), optional
        Voxels farther out than the rim of the fit (SVR; none for SR) become 0.
    device : str
        Device on which fields are rendered.

    Returns
    -------
    ndarray, (X, Y, Z), float32
        Image in input intensities.

    Raises
    ------
    gsbids.errors.InputError
        The mask and the grid have nothing in common, or the Gaussians are beyond all bounds.
    """
    is_sr = isinstance(model, SrResult)
    try:
        image = (sample_sr if is_sr else sample_result)(model, affine, shape, device)  # type: ignore[arg-type]
    except FloatingPointError as error:
        raise InputError(f"the model cannot be sampled ({error}): make it again") from error
    if mask is None:
        return image
    inside = resample_mask(*mask, affine, shape)  # type: ignore[call-arg]
    if not inside.any():
        raise InputError("--mask: no voxel of the grid is inside the mask; check that both are of one space")
    rim = 0.0 if is_sr else float(model.settings.get("rim", 0.0))
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return image * (ndimage.distance_transform_edt(~inside, sampling=spacing) <= rim)


def _within(
    affine: np.ndarray, shape: Sequence[int], step: np.ndarray, count: np.ndarray
) -> tuple[np.ndarray, tuple[int, int, int]]:
    if np.prod(count) > MOST_VOXELS:
        raise InputError(
            f"the grid would have {' x '.join(f'{n:.0f}' for n in count)} voxels; at most "
            f"{MOST_VOXELS:.0e} are supported: ask for larger voxels"
        )
    inner = np.diag([*step, 1.0])
    inner[:3, 3] = (np.array(shape) - 1) / 2 - step * (count - 1) / 2
    return affine @ inner, tuple(int(n) for n in count)  # type: ignore[return-value]
