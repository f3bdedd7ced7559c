# SPDX-License-Identifier: Apache-2.0
"""Reading and writing of NIfTI files, with one line of error for every file that cannot be used."""

import gzip
import logging
import zlib
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from gsbids.atomic import replacing
from gsbids.errors import InputError, not_fetched
from gsbids.imaging.intensity import RARE

LOGGER = logging.getLogger("gsbids.imaging")

FORMS_APART = 1.0  # mm between the places that sform and qform give to a corner: more is no rounding
SIZES_DIFFER = 0.05  # of the voxel sizes of sform and pixdim, which say the same in sound headers
VOXEL_SIZES = (0.05, 50.0)  # mm: plausible voxel sizes, by which a header in other units is checked
UNITS = {1: ("m", 1e3), 3: ("micrometres", 1e-3)}  # codes of xyzt_units other than mm, and their mm
WRAPPED, UNLIKELY = 32000, 0.001  # bright voxels beyond 2^15 are negative ones; few are between these and 0 then

# Headers whose quaternion is longer than 1 by rounding are sound: nibabel's own limit is three roundings of float32.
nib.Nifti1Header.quaternion_threshold = -1e-5  # type: ignore[assignment]

_READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, gzip.BadGzipFile, ImageFileError, HeaderDataError)


def read_header(path: str | Path) -> tuple[tuple[int, int, int], np.ndarray]:
    """Read shape and affine of a 3D image, checked, without reading its voxels.

    Parameters
    ----------
    path : path-like
        NIfTI file.

    Returns
    -------
    shape : tuple of int
        (X, Y, Z); a 2D image counts as one slice.
    affine : ndarray, (4, 4), float64
        Voxel indices to world RAS+ mm, from the sform, else from the qform.

    Raises
    ------
    gsbids.errors.InputError
        The file is missing, not NIfTI, of more than one volume, not scalar, or has no usable affine.
    """
    image = _open(path)
    return _shape(image, path), _affine(image, path)


def load_image(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a 3D image.

    Voxels that are NaN or infinite, or have the extreme value that stands for none, become background, and a warning is
    logged that counts them; others where the header contradicts itself, or bright voxels were stored as negative ones.

    Parameters
    ----------
    path : path-like
        NIfTI file of one volume (trailing axes of length one are dropped).

    Returns
    -------
    data : ndarray, (X, Y, Z), float32
    affine : ndarray, (4, 4), float64
        Voxel indices to world RAS+ mm.

    Raises
    ------
    gsbids.errors.InputError
        As :func:`read_header`, and when the voxels cannot be read.
    """
    image = _open(path)
    shape, affine = _shape(image, path), _affine(image, path)
    if (apart := _forms_apart(image.header, shape)) > FORMS_APART:
        LOGGER.warning(
            "%s: sform and qform put it %.0f mm apart; the sform is taken: correct the header if the stacks "
            "do not lie on one another",
            path,
            apart,
        )
    if words := _unit(image.header, image.affine)[1]:
        LOGGER.warning("%s: %s", path, words)
    if words := _sizes_differ(image.header):  # type: ignore[assignment]
        LOGGER.warning(
            "%s: voxels are %s mm by the sform and %s mm by pixdim; the sform is taken: correct the header "
            "if the stacks have the wrong size",
            path,
            *words,
        )
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            data = _unwrapped(np.asarray(image.dataobj), path).astype(np.float32).reshape(shape)
    except _READ_ERRORS as error:
        raise InputError(
            f"{path}: the file is truncated or corrupt ({_first_line(error)}); "
            "copy it again or leave it out with --bids-filter-file"
        ) from error
    except (MemoryError, OverflowError) as error:
        raise InputError(
            f"{path}: the header says {' x '.join(map(str, shape))} voxels, which do not fit into memory; "
            "convert it again or leave it out with --bids-filter-file"
        ) from error
    bad = ~np.isfinite(data)
    if bad.any():
        count = int(bad.sum())
        what = "voxel was" if count == 1 else "voxels were"
        LOGGER.warning("%s: %d %s NaN or infinite and %s set to 0", path, count, what, "is" if count == 1 else "are")
        data[bad] = 0.0
    _fill(data, image.get_data_dtype(), path)
    return data, affine


def save_image(path: str | Path, data: np.ndarray, affine: np.ndarray, dtype: Any = "float32") -> Path:
    """Write a NIfTI-1 file under a temporary name, then rename it.

    qform and sform both carry ``affine`` with code 1 (scanner) and units of mm; the qform of a
    sheared affine, which it cannot express, has code 0. The same data give the same bytes.

    Parameters
    ----------
    path : path-like
        Ends with ``.nii`` or ``.nii.gz``; its folder exists.
    data : ndarray, (X, Y, Z)
    affine : ndarray, (4, 4)
    dtype : str
        Type on disk; values are rounded for integer types.

    Returns
    -------
    pathlib.Path
        ``path``.
    """
    path = Path(path)
    dtype = np.dtype(dtype)
    data = np.asarray(data)
    if dtype.kind in "iu" and data.dtype.kind == "f":
        limits = np.iinfo(dtype)
        data = np.clip(np.rint(data), limits.min, limits.max)
    image = nib.Nifti1Image(data.astype(dtype), affine)
    image.set_sform(affine, code=1)
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    sheared = np.abs(axes.T @ axes - np.eye(3)).max() > 1e-4
    image.set_qform(affine, code=0 if sheared else 1)
    image.header.set_xyzt_units("mm")
    suffix = ".nii.gz" if path.name.endswith(".gz") else ".nii"
    with replacing(path, suffix) as temporary:
        nib.save(image, temporary)
    return path


def _open(path: str | Path) -> nib.Nifti1Pair:
    if not Path(path).is_file():
        raise InputError(not_fetched(path) or f"{path}: there is no such file; check the path")
    try:
        image = nib.load(path)
    except _READ_ERRORS as error:
        raise InputError(
            not_fetched(path)
            or f"{path}: this is not a readable NIfTI file ({_first_line(error)}); copy it again or convert it again"
        ) from error
    if not isinstance(image, nib.Nifti1Pair):
        raise InputError(f"{path}: this is {type(image).__name__}, not NIfTI; convert it to .nii.gz")
    return image


def _shape(image: nib.Nifti1Pair, path: str | Path) -> tuple[int, int, int]:
    dtype = image.get_data_dtype()
    if dtype.fields or dtype.kind not in "iufb":
        raise InputError(
            f"{path}: voxels are of type {dtype} (colour or complex); give an image with one real number a voxel"
        )
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        raise InputError(
            f"{path}: the image has {int(np.prod(shape[3:]))} volumes (shape "
            f"{' x '.join(map(str, shape))}), one is expected; split it into one file each"
        )
    if len(shape) < 2 or 0 in shape:
        raise InputError(f"{path}: the image has shape {shape}; two or three axes are expected")
    return (*shape, 1) if len(shape) == 2 else shape  # type: ignore[return-value]


def _forms_apart(header: nib.Nifti1Header, shape: Sequence[int]) -> float:
    """Return the largest distance (mm) between the positions of a corner by sform and qform; 0 where one is not set."""
    if not (header["sform_code"] > 0 and header["qform_code"] > 0):
        return 0.0
    try:
        change = header.get_sform() - header.get_qform()
    except (ValueError, HeaderDataError):  # a qform that is none, beside a sound sform
        return 0.0
    corners = np.array([(*c, 1.0) for c in product(*((0.0, n - 1.0) for n in shape))])
    apart = float(np.linalg.norm((corners @ change.T)[:, :3], axis=1).max())
    return apart if np.isfinite(apart) else 0.0


def _sizes_differ(header: nib.Nifti1Header) -> tuple[str, str] | None:
    """Return the voxel sizes by sform and by pixdim, as text, where they differ and no qform agrees with the sform."""
    pixdim = np.abs(np.array(header["pixdim"][1:4], float))
    sound = np.isfinite(pixdim).all() and (pixdim > 0).all()
    if not sound or header["sform_code"] == 0 or header["qform_code"] > 0:
        return None
    size = np.linalg.norm(header.get_sform()[:3, :3], axis=0)
    if not (np.abs(size / pixdim - 1) > SIZES_DIFFER).any():
        return None
    return tuple(" x ".join(f"{side:.3g}" for side in sides) for sides in (size, pixdim))  # type: ignore[return-value]


def _unwrapped(voxels: np.ndarray, path: str | Path) -> np.ndarray:
    """Restore unsigned numbers of 16 bits that were stored as signed ones."""
    short = voxels.dtype.kind == "i" and voxels.dtype.itemsize == 2
    if not short or voxels.max() < WRAPPED or voxels.min() > -WRAPPED:
        return voxels
    below = voxels[voxels < 0]
    if (below == below[0]).all() or np.mean((voxels < 0) & (voxels > -WRAPPED / 4)) > UNLIKELY:
        return voxels
    LOGGER.warning(
        "%s: %d voxels are negative, as those brighter than 32767 become where unsigned numbers are stored "
        "as signed ones; they are taken as unsigned: convert the file again",
        path,
        below.size,
    )
    return voxels.astype(np.uint16)


def _fill(data: np.ndarray, dtype: np.dtype, path: str | Path) -> None:
    """Set voxels with the most extreme number of their type, as outside the field of view, to the background."""
    if dtype.kind not in "if" or dtype.itemsize == 1:
        return
    limits = np.iinfo(dtype) if dtype.kind == "i" else np.finfo(np.float32)
    # 32767 may be a bright voxel; wider types may hold what had 16 bits before.
    ends = [-32768] if dtype.itemsize == 2 else [limits.min, limits.max, -32768]
    filled = np.isin(data, np.array(ends, np.float32))
    if not filled.any() or filled.all():
        return
    values, rest = data[filled], data[~filled]
    data[filled] = 0.0 if np.mean(rest < 0) <= RARE else rest.min()
    LOGGER.warning(
        "%s: %d voxels have the value %g, which stands for no value, and are set to %g",
        path,
        filled.sum(),
        values[0],
        data[filled][0],
    )


def _affine(image: nib.Nifti1Pair, path: str | Path) -> np.ndarray:
    header = image.header
    form = "sform" if header["sform_code"] > 0 else "qform"
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        LOGGER.warning("%s: neither sform nor qform is set, so its place in the scanner is unknown", path)
    affine = np.array(image.affine, dtype=np.float64)
    axes = affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    usable = np.isfinite(affine).all() and (lengths > 1e-6).all()
    if not usable or abs(np.linalg.det(axes / lengths)) < 1e-3:
        raise InputError(
            f"{path}: the affine ({form}) is zero or singular, so voxels have no place in "
            "space; correct the header or convert the file again"
        )
    return np.diag([*[_unit(header, affine)[0]] * 3, 1.0]) @ affine


def _unit(header: nib.Nifti1Header, affine: np.ndarray) -> tuple[float, str]:
    """Return the factor from the unit of the header to mm, and a warning about it (empty if there is none).

    Millimetres are taken, whatever the header says, where only they make voxels of a plausible size.
    """
    name, factor = UNITS.get(int(header["xyzt_units"]) & 7, ("mm", 1.0))
    if factor == 1:
        return 1.0, ""
    lengths = np.linalg.norm(affine[:3, :3], axis=0)

    def possible(sides: np.ndarray) -> bool:
        return ((sides > VOXEL_SIZES[0]) & (sides < VOXEL_SIZES[1])).all()  # type: ignore[return-value]

    if possible(lengths) or not possible(lengths * factor):
        return 1.0, (
            f"the header says that its lengths are in {name}, which makes no voxels of an MRI; they are "
            "taken as mm: correct xyzt_units"
        )
    return factor, f"the header says that its lengths are in {name}; they are converted to mm"


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
