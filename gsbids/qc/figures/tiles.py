# SPDX-License-Identifier: Apache-2.0
"""Grey pictures of planes through images, in radiological convention, with outlines as vector paths.

A tile is the plain pixels as an 8-bit PNG; scale, letters and outline are left to the page, so that
text stays sharp at every size and the outline can be switched off.
"""

import base64
import io
from dataclasses import dataclass

import nibabel as nib
import numpy as np

from gsbids.imaging.masks import bounding_box

#: Letters at the two ends of the three world axes: (towards +, towards -).
LETTERS = (("R", "L"), ("A", "P"), ("S", "I"))
PLANES = ("sagittal", "coronal", "axial")
IN_EARNEST = 0.1  # of white: negative intensities beyond are no ringing


@dataclass(frozen=True)
class Tile:
    """One picture.

    Attributes
    ----------
    png : bytes
        8-bit grey (or palette) PNG.
    width, height : float
        Size in mm.
    label : str
        Short caption.
    alt : str
        Text alternative for readers who cannot see the picture.
    edges : tuple of str
        Letters at the left, right, top and bottom edge.
    outline : str
        SVG path data in mm from the top left corner; empty without an outline.
    """

    png: bytes
    width: float
    height: float
    label: str
    alt: str
    edges: tuple[str, str, str, str]
    outline: str = ""

    @property
    def uri(self) -> str:
        """Picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class RasImage:
    """Image whose array axes run to R, A and S, as closely as a permutation and flips allow.

    Attributes
    ----------
    data : ndarray, (X, Y, Z)
    affine : ndarray, (4, 4)
    order : tuple of int
        Array axis of the source that became each of the three axes.
    flipped : tuple of bool
        Whether each of them was flipped.
    """

    data: np.ndarray
    affine: np.ndarray
    order: tuple[int, ...]
    flipped: tuple[bool, ...]

    @property
    def spacing(self) -> np.ndarray:
        """Voxel size, (3,), mm."""
        return np.linalg.norm(self.affine[:3, :3], axis=0)

    def axis_of(self, source_axis: int) -> int:
        """Return the axis of this array that an array axis of the source became."""
        return self.order.index(source_axis)

    def index_of(self, axis: int, source_index: int) -> int:
        """Return the index along ``axis`` of this array that an index in the source became."""
        return self.data.shape[axis] - 1 - source_index if self.flipped[axis] else source_index


def to_ras(data: np.ndarray, affine: np.ndarray) -> RasImage:
    """Permute and flip an image so that its axes run closest to R, A, S; voxels are not interpolated.

    Parameters
    ----------
    data : ndarray, (X, Y, Z)
    affine : ndarray, (4, 4)
        Voxel indices to world RAS+ mm.

    Returns
    -------
    RasImage
    """
    orientation = nib.orientations.io_orientation(affine)
    turned = nib.orientations.apply_orientation(data, orientation)
    affine = affine @ nib.orientations.inv_ornt_aff(orientation, data.shape)
    order = tuple(int(np.flatnonzero(orientation[:, 0] == axis)[0]) for axis in range(3))
    return RasImage(turned, affine, order, tuple(bool(orientation[axis, 1] < 0) for axis in order))


def cut(data: np.ndarray, axis: int, index: int) -> np.ndarray:
    """Return one plane of a RAS array as a picture: rows from the top, columns from the left.

    The patient's right (axial, coronal) or front (sagittal) is on the left, front or head on top.

    Examples
    --------
    >>> cut(np.arange(8).reshape(2, 2, 2), axis=2, index=0)
    array([[6, 2],
           [4, 0]])
    """
    return np.take(data, index, axis=axis).T[::-1, ::-1]


def plane_edges(axis: int) -> tuple[str, str, str, str]:
    """Return the direction letters at the left, right, top and bottom of a plane with this normal axis.

    Examples
    --------
    >>> plane_edges(2)
    ('R', 'L', 'A', 'P')
    """
    across, up = (a for a in range(3) if a != axis)
    return (*LETTERS[across], *LETTERS[up])


def window(image: np.ndarray, mask: np.ndarray | None) -> tuple[float, float]:
    """Return the grey window: 0 to the 99.5th percentile of the intensities inside the mask.

    Without a mask, the percentile is that of the positive intensities. Where intensities are clearly negative (those
    of an image of mean 0, say), the window begins at their 0.5th percentile.
    """
    chosen = image[mask] if mask is not None and mask.any() else image
    values = chosen if chosen is not image else image[image > 0]
    high = float(np.percentile(values, 99.5)) if values.size else 0.0
    low = float(np.percentile(chosen, 0.5)) if chosen.size else 0.0
    return low if low < -IN_EARNEST * high else 0.0, high if high > 0 else 1.0


def crop_box(
    mask: np.ndarray | None, shape: tuple[int, ...], spacing: np.ndarray, margin: float = 6.0
) -> tuple[slice, ...]:
    """Return the box of a mask with ``margin`` mm around it, inside the array; the whole array without a mask.

    Parameters
    ----------
    mask : ndarray, (X, Y, Z), bool, optional
    shape : tuple of int
        Shape of the array.
    spacing : ndarray, (3,)
        Voxel size, mm.
    margin : float
        Distance, mm.
    """
    if mask is None or not mask.any():
        return tuple(slice(0, n) for n in shape)
    return bounding_box(mask, np.ceil(margin / np.asarray(spacing)).astype(int))


def grey_png(picture: np.ndarray, limits: tuple[float, float], pixels: tuple[int, int] | None = None) -> bytes:
    """Encode a picture as an 8-bit grey PNG.

    Parameters
    ----------
    picture : ndarray, (rows, columns)
    limits : tuple of float
        Values that become black and white.
    pixels : tuple of int, optional
        (rows, columns) to resample to; by default those of the picture.
    """
    low, high = limits
    scaled = np.clip((np.nan_to_num(picture) - low) / (high - low), 0, 1)
    return _encode(np.rint(255 * scaled).astype(np.uint8), pixels)


def difference_png(picture: np.ndarray, limit: float, pixels: tuple[int, int] | None = None) -> bytes:
    """Encode a signed picture as a PNG: blue below zero, black at zero, orange above (safe for the colour-blind).

    Parameters
    ----------
    picture : ndarray, (rows, columns)
    limit : float
        Magnitude of the values drawn in full colour.
    pixels : tuple of int, optional
        (rows, columns) to resample to.
    """
    level = np.clip(np.nan_to_num(picture) / limit, -1, 1)
    below, above = np.array([88.0, 180.0, 255.0]), np.array([255.0, 150.0, 50.0])
    colour = np.where(level[..., None] < 0, below, above) * np.abs(level)[..., None]
    return _encode(np.rint(colour).astype(np.uint8), pixels)


#: Colour map of matplotlib for weights and maps, from dark (low) to bright (high).
HEAT = "cividis"


def heat_colours() -> np.ndarray:
    """Return the 32 colours of ``HEAT``, (32, 3), 0 to 255, from low to high values."""
    from matplotlib import colormaps

    return np.rint(255 * colormaps[HEAT](np.linspace(0, 1, 32))[:, :3]).astype(int)


def palette_png(picture: np.ndarray, limits: tuple[float, float], pixels: tuple[int, int] | None = None) -> bytes:
    """Encode a picture as a PNG in the colours of ``HEAT``; black where it is NaN.

    Pixels are repeated, not interpolated.

    Parameters
    ----------
    picture : ndarray, (rows, columns)
    limits : tuple of float
        Values that get the first and the last colour.
    pixels : tuple of int, optional
        (rows, columns) to resample to.
    """
    from PIL import Image

    low, high = limits
    known = np.isfinite(picture)
    level = np.clip((np.where(known, picture, low) - low) / (high - low), 0, 1)
    image = Image.fromarray(np.where(known, 1 + np.rint(31 * level), 0).astype(np.uint8))
    image.putpalette([0, 0, 0, *heat_colours().ravel().tolist()])
    if pixels is not None and pixels != picture.shape:
        image = image.resize(pixels[::-1], Image.Resampling.NEAREST)
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def _encode(pixels8: np.ndarray, pixels: tuple[int, int] | None) -> bytes:
    """Encode 8-bit grey values or colours as a PNG, resampled to ``pixels`` (rows, columns) where that is given."""
    from PIL import Image

    image = Image.fromarray(np.ascontiguousarray(pixels8))
    if pixels is not None and pixels != pixels8.shape[:2]:
        smaller = pixels[0] < pixels8.shape[0]
        image = image.resize(pixels[::-1], Image.Resampling.BOX if smaller else Image.Resampling.BICUBIC)
    if pixels8.ndim == 3:
        # 64 colours are more than an eye tells apart here, at a third of the size.
        image = image.quantize(64, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    file = io.BytesIO()
    image.save(file, format="PNG", optimize=True)
    return file.getvalue()


def outline_path(picture: np.ndarray, spacing: tuple[float, float]) -> str:
    """Return the outline of a mask as SVG path data in mm.

    Parameters
    ----------
    picture : ndarray, (rows, columns)
        Mask of one plane.
    spacing : tuple of float
        Size of a row and of a column in mm.

    Returns
    -------
    str
        Path half-way between the centres of pixels inside and outside; empty for an empty mask.
    """
    import contourpy

    padded = np.pad(np.asarray(picture, float), 1)
    lines = contourpy.contour_generator(z=padded).lines(0.5)
    parts = []
    for line in lines:
        # Pixel i reaches from i to i + 1, its middle is at i + 1/2; the padding shifts by one.
        points = (line - 0.5) * (spacing[1], spacing[0])  # type: ignore[operator]
        parts.append("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points[:-1]) + "Z")
    return "".join(parts)
