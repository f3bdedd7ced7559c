# SPDX-License-Identifier: Apache-2.0
"""Images of the interactive viewer of a report: whole volumes in 8 bits, small enough to be embedded in the page."""

import base64
import zlib
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

from gsbids.qc.figures.tiles import crop_box, to_ras

LARGEST = 6_000_000  # characters of all images on the page; the report stays under 15 MB
COARSER = 1.2  # factor of the voxel size, by which images become coarser until they fit
AROUND = 6.0  # mm shown around the mask
TOP = 99.95  # percentile of the intensities that byte 255 stands for


@dataclass(frozen=True)
class ViewerLayer:
    """One image of the viewer.

    Attributes
    ----------
    key : str
        ``volume``, ``before``, ``mask``, ``coverage`` or ``uncertainty``.
    label : str
        Name on the page.
    low, high : float
        Values of the bytes 0 and 255.
    data : str
        Bytes of the voxels, first axis fastest, compressed by zlib, in base64.
    unit : str
        Unit of the values, with a space before it; empty without one.
    """

    key: str
    label: str
    low: float
    high: float
    data: str
    unit: str = ""


@dataclass(frozen=True)
class ViewerData:
    """Images of the viewer, and the grid that they share.

    Attributes
    ----------
    layers : tuple of ViewerLayer
        The volume first.
    shape : tuple of int
    affine : tuple of float
        Voxel indices to world RAS+ mm, 12 numbers by rows.
    spacing : tuple of float
        Voxel size, mm.
    window : tuple of float
        Grey window: values that become black and white.
    coarser : bool
        Whether the voxels are larger than those of the files.
    """

    layers: tuple[ViewerLayer, ...]
    shape: tuple[int, int, int]
    affine: tuple[float, ...]
    spacing: tuple[float, ...]
    window: tuple[float, float]
    coarser: bool = False


@dataclass(frozen=True)
class ViewerImage:
    """One image on the grid of the volume, before it is cropped and encoded as a :class:`ViewerLayer`."""

    key: str
    label: str
    data: np.ndarray
    unit: str = ""


def viewer_data(
    images: list[ViewerImage],
    affine: np.ndarray,
    mask: np.ndarray | None,
    window: tuple[float, float],
    largest: int = LARGEST,
) -> ViewerData:
    """Turn images on one grid to RAS, crop them to the mask and encode them in 8 bits.

    Parameters
    ----------
    images : list of ViewerImage
        The volume first.
    affine : ndarray, (4, 4)
    mask : ndarray, (X, Y, Z), bool, optional
        Brain mask to which all are cropped.
    window : tuple of float
        Grey window of the volume.
    largest : int
        Characters that all images may take together; they become coarser until they fit.

    Returns
    -------
    ViewerData
    """
    turned = [to_ras(np.asarray(image.data, np.float32), affine) for image in images]
    inside = None if mask is None else to_ras(np.asarray(mask, bool), affine).data
    first = turned[0]
    box = crop_box(inside, first.data.shape, first.spacing, AROUND)
    own = first.affine.copy()
    own[:3, 3] += own[:3, :3] @ [part.start for part in box]
    arrays, factor = [image.data[box] for image in turned], 1.0
    while True:
        made = [_coarse(array, factor, image.key == "mask") for array, image in zip(arrays, images, strict=True)]
        layers = tuple(_layer(image, array) for image, array in zip(images, made, strict=True))
        if sum(len(layer.data) for layer in layers) <= largest:
            break
        factor *= COARSER
    step = np.array(arrays[0].shape) / made[0].shape
    grid = own.copy()
    grid[:3, :3] *= step
    # The outer edges of both grids are the same: centres of larger voxels lie further inside.
    grid[:3, 3] += own[:3, :3] @ ((step - 1) / 2)
    spacing = np.linalg.norm(grid[:3, :3], axis=0)
    return ViewerData(
        layers,
        tuple(made[0].shape),
        tuple(float(f"{value:.6g}") for value in grid[:3].ravel()),
        tuple(float(f"{value:.5g}") for value in spacing),
        (float(window[0]), float(window[1])),
        factor > 1,
    )


def _coarse(array: np.ndarray, factor: float, binary: bool) -> np.ndarray:
    """Resample an array to voxels that are ``factor`` times larger, each the mean of those it covers."""
    if factor == 1:
        return array
    shape = np.maximum(1, np.rint(np.array(array.shape) / factor)).astype(int)
    step = np.array(array.shape) / shape
    smooth = ndimage.uniform_filter(array.astype(np.float32), np.maximum(1, np.rint(step)).astype(int).tolist())
    coarse = ndimage.affine_transform(
        smooth, np.diag(step), (step - 1) / 2, tuple(shape.tolist()), order=1, mode="nearest"
    )
    return coarse > 0.5 if binary else coarse


def _layer(image: ViewerImage, array: np.ndarray) -> ViewerLayer:
    """Encode the cropped and resampled array of an image in 8 bits."""
    values = np.nan_to_num(np.asarray(array, np.float32))
    low, high = min(0.0, float(values.min())), float(np.percentile(values, TOP))
    if image.key == "mask":
        low, high = 0.0, 1.0
    if image.key not in ("mask", "coverage", "uncertainty") and low < 0:
        low = float(np.percentile(values, 100 - TOP))
    high = high if high > low else low + 1.0
    bytes8 = np.rint(255 * np.clip((values - low) / (high - low), 0, 1)).astype(np.uint8)
    packed = base64.b64encode(zlib.compress(bytes8.tobytes(order="F"), 9)).decode()
    return ViewerLayer(image.key, image.label, float(f"{low:.5g}"), float(f"{high:.5g}"), packed, image.unit)
