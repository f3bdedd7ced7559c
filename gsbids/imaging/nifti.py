# SPDX-License-Identifier: Apache-2.0
"""NIfTI files in and out: one line in words for every file that cannot be used."""

import gzip
import logging
import zlib
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError

from gsbids.atomic import replacing
from gsbids.errors import InputError

LOGGER = logging.getLogger("gsbids.imaging")

_READ_ERRORS = (OSError, EOFError, ValueError, zlib.error, gzip.BadGzipFile, ImageFileError, HeaderDataError)


def read_header(path: str | Path) -> tuple[tuple[int, int, int], np.ndarray]:
    """Shape and affine of a 3D image, checked, without reading its voxels.

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

    Voxels that are NaN or infinite become 0, and a warning is logged that counts them.

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
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            data = np.asarray(image.dataobj).astype(np.float32).reshape(shape)
    except _READ_ERRORS as error:
        raise InputError(f"{path}: the file is truncated or corrupt ({_first_line(error)}); "
                         "copy it again or leave it out with --bids-filter-file") from error
    except (MemoryError, OverflowError) as error:
        raise InputError(f"{path}: the header says {' x '.join(map(str, shape))} voxels, which do not fit into memory; "
                         "convert it anew or leave it out with --bids-filter-file") from error
    bad = ~np.isfinite(data)
    if bad.any():
        count = int(bad.sum())
        what = "voxel was" if count == 1 else "voxels were"
        LOGGER.warning("%s: %d %s NaN or infinite and %s set to 0", path, count, what,
                       "is" if count == 1 else "are")
        data[bad] = 0.0
    return data, affine


def save_image(path: str | Path, data: np.ndarray, affine: np.ndarray, dtype: str = "float32") -> Path:
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


def _open(path):
    if not Path(path).is_file():
        raise InputError(f"{path}: there is no such file; check the path")
    try:
        image = nib.load(path)
    except _READ_ERRORS as error:
        raise InputError(f"{path}: this is not a readable NIfTI file ({_first_line(error)}); "
                         "copy it again or convert it anew") from error
    if not isinstance(image, nib.Nifti1Pair):
        raise InputError(f"{path}: this is {type(image).__name__}, not NIfTI; convert it to .nii.gz")
    return image


def _shape(image, path) -> tuple[int, int, int]:
    dtype = image.get_data_dtype()
    if dtype.fields or dtype.kind not in "iufb":
        raise InputError(f"{path}: voxels are of type {dtype} (colour or complex); "
                         "give an image with one real number a voxel")
    shape = tuple(int(n) for n in image.shape)
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) > 3:
        raise InputError(f"{path}: the image has {int(np.prod(shape[3:]))} volumes (shape "
                         f"{' x '.join(map(str, shape))}), one is expected; split it into one file each")
    if len(shape) < 2 or 0 in shape:
        raise InputError(f"{path}: the image has shape {shape}; two or three axes are expected")
    return (*shape, 1) if len(shape) == 2 else shape


def _affine(image, path) -> np.ndarray:
    header = image.header
    form = "sform" if header["sform_code"] > 0 else "qform"
    if header["sform_code"] == 0 and header["qform_code"] == 0:
        LOGGER.warning("%s: neither sform nor qform is set, so its place in the scanner is unknown", path)
    affine = np.array(image.affine, dtype=np.float64)
    axes = affine[:3, :3]
    lengths = np.linalg.norm(axes, axis=0)
    usable = np.isfinite(affine).all() and (lengths > 1e-6).all()
    if not usable or abs(np.linalg.det(axes / lengths)) < 1e-3:
        raise InputError(f"{path}: the affine ({form}) is zero or singular, so voxels have no place in "
                         "space; correct the header or convert the file anew")
    return affine


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines()
    return text[0] if text else type(error).__name__
