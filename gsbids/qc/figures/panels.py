# SPDX-License-Identifier: Apache-2.0
"""Pictures of the report: planes through the volume, and the stacks before and after."""

from dataclasses import dataclass, replace

import numpy as np

from gsbids.qc.figures.tiles import (
    LETTERS,
    PLANES,
    RasImage,
    Tile,
    crop_box,
    cut,
    difference_png,
    grey_png,
    outline_path,
    palette_png,
    plane_edges,
    to_ras,
    window,
)


@dataclass(frozen=True)
class TileRow:
    """Pictures that stand side by side, with a common label.

    Attributes
    ----------
    label : str
    tiles : tuple of Tile
    bar : tuple of str, optional
        Texts of the colour bar: name, lowest and highest value.
    """

    label: str
    tiles: tuple[Tile, ...]
    bar: tuple[str, str, str] | None = None


@dataclass(frozen=True)
class TilePair:
    """Two pictures of the same plane, before and after a processing step."""

    label: str
    before: Tile
    after: Tile


@dataclass(frozen=True)
class Frame:
    """Crop (box in the RAS array), grey window and resolution of tiles.

    A tile has at most ``pixels`` pixels along its longer side, and ``zoom`` along the shorter side of a voxel.
    """

    box: tuple[slice, ...]
    limits: tuple[float, float]
    pixels: int
    zoom: float = 2.0


def mid_planes(
    data: np.ndarray, affine: np.ndarray, mask: np.ndarray | None, outlined: bool = False
) -> tuple[Tile, ...]:
    """Draw the axial, coronal and sagittal planes through the middle of the mask.

    Parameters
    ----------
    data : ndarray, (X, Y, Z)
    affine : ndarray, (4, 4)
    mask : ndarray, (X, Y, Z), bool, optional
        Brain mask, which sets the middle, the crop and the grey window; without one, the whole image does.
    outlined : bool
        Draw the outline of the mask.
    """
    image, inside, frame = _volume_frame(data, affine, mask, 460, 4.0)
    middle = [middle_of(inside, axis, image.data.shape) for axis in range(3)]
    drawn = inside if outlined else None
    return tuple(_volume_tile(image, drawn, axis, middle[axis], frame) for axis in (2, 1, 0))


def plane_pairs(
    before: np.ndarray,
    after: np.ndarray,
    affine: np.ndarray,
    mask: np.ndarray | None,
    limits: tuple[float, float] | None = None,
) -> tuple[TilePair, ...]:
    """Draw two images on one grid in the planes of :func:`mid_planes`.

    Parameters
    ----------
    before, after : ndarray, (X, Y, Z)
    affine, mask
        As for :func:`mid_planes`.
    limits : tuple of float, optional
        Grey window of both; by default each has its own.
    """
    image, inside, frame = _volume_frame(after, affine, mask, 460, 4.0)
    first = RasImage(to_ras(before, affine).data, image.affine, image.order, image.flipped)
    frames = [replace(frame, limits=limits or window(one.data, inside)) for one in (first, image)]
    pairs = []
    for axis in (2, 1, 0):
        index = middle_of(inside, axis, image.data.shape)
        tiles = [_volume_tile(one, None, axis, index, own) for one, own in zip((first, image), frames, strict=True)]
        pairs.append(TilePair(f"{PLANES[axis].capitalize()}, {tiles[1].label}", *tiles))
    return tuple(pairs)


def map_row(name: str, form: str, data: np.ndarray, affine: np.ndarray, mask: np.ndarray | None) -> TileRow:
    """Draw a map in colours in the three planes of :func:`mid_planes`, with the outline of the mask and a colour bar.

    Parameters
    ----------
    name : str
    form : str
        Format of the numbers at the colour bar: 0 has the first colour, the 99th percentile inside the mask the last.
    data, affine, mask
        As for :func:`mid_planes`.
    """
    image, inside, frame = _volume_frame(data, affine, mask, 260, 2.0)
    top = float(np.percentile(image.data if inside is None or not inside.any() else image.data[inside], 99))
    frame = Frame(frame.box, (0.0, max(top, 1e-6)), frame.pixels, frame.zoom)
    tiles = []
    for axis in (2, 1, 0):
        tile = _volume_tile(image, inside, axis, middle_of(inside, axis, image.data.shape), frame)
        box = list(frame.box)
        box[axis] = slice(None)
        at = middle_of(inside, axis, image.data.shape)
        picture = cut(image.data[tuple(box)], axis, at)
        shown = picture if inside is None else np.where(cut(inside[tuple(box)], axis, at), picture, np.nan)
        pixels = tile_pixels((tile.height, tile.width), _steps(image, axis), frame)
        tiles.append(replace(tile, png=palette_png(shown, frame.limits, pixels)))
    return TileRow(name, tuple(tiles), (name, form.format(0), form.format(top)))


def _steps(image: RasImage, axis: int) -> tuple[float, float]:
    """Return the size (mm) of a row and of a column of a plane."""
    across, up = (a for a in range(3) if a != axis)
    return image.spacing[up], image.spacing[across]


def mosaic(
    data: np.ndarray, affine: np.ndarray, mask: np.ndarray | None, count: int = 7, outlined: bool = False
) -> tuple[TileRow, ...]:
    """Draw rows of ``count`` axial, coronal and sagittal planes spread over the mask.

    The other parameters are those of :func:`mid_planes`.
    """
    image, inside, frame = _volume_frame(data, affine, mask, 260, 2.0)
    rows = []
    for axis in (2, 1, 0):
        box = crop_box(inside, image.data.shape, image.spacing, 0.0)[axis]
        places = box.start + np.linspace(0.12, 0.88, count) * (box.stop - box.start - 1)
        drawn = inside if outlined else None
        tiles = (_volume_tile(image, drawn, axis, int(k), frame) for k in np.rint(places))
        rows.append(TileRow(PLANES[axis].capitalize(), tuple(tiles)))
    return tuple(rows)


def _volume_frame(
    data: np.ndarray, affine: np.ndarray, mask: np.ndarray | None, pixels: int, zoom: float
) -> tuple[RasImage, np.ndarray | None, Frame]:
    """Return image and mask turned to RAS, and the frame of their tiles."""
    image = to_ras(data, affine)
    inside = None if mask is None else to_ras(np.asarray(mask) > 0, affine).data
    box = crop_box(inside, image.data.shape, image.spacing)
    return image, inside, Frame(box, window(image.data, inside), pixels, zoom)


def middle_of(mask: np.ndarray | None, axis: int, shape: tuple[int, ...]) -> int:
    """Return the index along an axis that halves the volume of a mask; the middle of the array without a mask."""
    if mask is None or not mask.any():
        return shape[axis] // 2
    share = mask.sum(axis=tuple(a for a in range(3) if a != axis)).cumsum()
    return int(np.searchsorted(share, share[-1] / 2))


def _volume_tile(image: RasImage, mask: np.ndarray | None, axis: int, index: int, frame: Frame) -> Tile:
    """Draw one plane of a volume, labelled with its position in mm."""
    centre = [(b.start + b.stop - 1) / 2 for b in frame.box]
    centre[axis] = index
    position = (image.affine @ [*centre, 1.0])[axis]
    letter = LETTERS[axis][0 if position >= 0 else 1]
    label = f"{letter} {abs(position):.0f} mm"
    edges = plane_edges(axis)
    alt = f"{PLANES[axis].capitalize()} plane at {label}; {edges[0]} is on the left, {edges[2]} at the top."
    return plane_tile(image, (axis, index), frame, label, alt, mask)


def plane_tile(
    image: RasImage, plane: tuple[int, int], frame: Frame, label: str, alt: str, mask: np.ndarray | None = None
) -> Tile:
    """Draw one plane of an image, cropped to the box of the frame, with the outline of a mask on the same grid.

    ``plane`` is the axis normal to it and the index along that axis; ``alt`` is the text alternative.
    """
    axis, index = plane
    across, up = (a for a in range(3) if a != axis)
    box = list(frame.box)
    box[axis] = slice(None)
    step = (image.spacing[up], image.spacing[across])
    picture = cut(image.data[tuple(box)], axis, index)
    size = (picture.shape[0] * step[0], picture.shape[1] * step[1])
    outline = "" if mask is None else outline_path(cut(mask[tuple(box)], axis, index), step)
    png = grey_png(picture, frame.limits, tile_pixels(size, step, frame))
    return Tile(png, size[1], size[0], label, alt, plane_edges(axis), outline)


def tile_pixels(size: tuple[float, float], step: tuple[float, float], frame: Frame) -> tuple[int, int]:
    """Return the (rows, columns) of square pixels of a picture from its size and that of a voxel in it, mm."""
    scale = min(frame.pixels / max(size), frame.zoom / min(step))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


@dataclass(frozen=True)
class StackImages:
    """Images of one stack on one grid (slices along the third axis); missing ones are None.

    Attributes
    ----------
    acquired : ndarray, (X, Y, Z)
    affine : ndarray, (4, 4)
    mask, corrected, simulated : ndarray, (X, Y, Z), optional
        Brain mask, N4-corrected image, and the slices simulated from the reconstruction.
    """

    acquired: np.ndarray
    affine: np.ndarray
    mask: np.ndarray | None = None
    corrected: np.ndarray | None = None
    simulated: np.ndarray | None = None


FULL_COLOUR = 0.25  # of white: differences of acquired and simulated slices drawn in full colour
COLUMNS = ("Acquired", "N4-corrected", "Simulated", "Difference")


def stack_rows(images: StackImages, marks: dict[int, str], detail: float = 1.0) -> tuple[TileRow, ...]:
    """Draw the rows of pictures of one stack: chosen slices, then two cuts across the slices.

    Parameters
    ----------
    images : StackImages
    marks : dict of int to str
        Slice indices to show, with the caption of each.
    detail : float
        Factor of the number of pixels along a side; below 1 for a report with many stacks.

    Returns
    -------
    tuple of TileRow
        Every row, cropped to the brain: acquired (outlined), N4-corrected, simulated, difference.
    """
    view = StackView(images, detail)
    across = (view.across_row(axis) for axis in range(3) if axis != view.axis)
    return (*(view.slice_row(k, label) for k, label in marks.items()), *across)


def middle_slices(mask: np.ndarray | None, depth: int, shares: tuple[float, ...] = (0.3, 0.5, 0.7)) -> list[int]:
    """Return the slice indices at shares of the extent of a mask along the third axis; of ``depth`` without one."""
    filled = np.arange(depth)
    if mask is not None and np.any(mask):
        filled = np.flatnonzero(np.asarray(mask).any(axis=(0, 1)))
    first, last = filled[0], filled[-1]
    return sorted({round(first + share * (last - first)) for share in shares})


def square_box(mask: np.ndarray | None, image: RasImage, axis: int, margin: float) -> tuple[slice, ...]:
    """Return a box ``margin`` mm around a mask, as square in the plane normal to ``axis`` as the image allows."""
    shape, spacing = image.data.shape, image.spacing
    box = list(crop_box(mask, shape, spacing, margin))
    plane = [a for a in range(3) if a != axis]
    side = max((box[a].stop - box[a].start) * spacing[a] for a in plane)
    for a in plane:
        count = min(round(side / spacing[a]), shape[a])
        start = int(np.clip((box[a].start + box[a].stop - count) // 2, 0, shape[a] - count))
        box[a] = slice(start, start + count)
    box[axis] = slice(None)
    return tuple(box)


class StackView:
    """Images of a stack turned to RAS, with one crop and one grey window for all pictures."""

    def __init__(self, images: StackImages, detail: float = 1.0) -> None:
        self.detail, self.affine = detail, images.affine
        self.image = to_ras(images.acquired, images.affine)
        self.mask = self.turned(None if images.mask is None else np.asarray(images.mask) > 0)
        self.corrected, self.simulated = self.turned(images.corrected), self.turned(images.simulated)
        self.axis = self.image.axis_of(2)
        self.box = square_box(self.mask, self.image, self.axis, 8.0)
        self.reference = self.image.data if self.corrected is None else self.corrected
        self.limits = window(self.reference, self.mask)
        self.own_limits = window(self.image.data, self.mask)

    def turned(self, data: np.ndarray | None) -> np.ndarray | None:
        """Turn an image on the grid of the stack to RAS; None stays None."""
        return None if data is None else to_ras(data, self.affine).data

    def plane_of(self, source_index: int) -> tuple[int, int]:
        """Return the axis of the RAS array and the index along it at which a slice of the stack lies."""
        return self.axis, self.image.index_of(self.axis, source_index)

    def slice_row(self, source_index: int, label: str) -> TileRow:
        """Draw a slice as acquired with the mask outlined, N4-corrected, simulated, and the difference."""
        what, plane = f"slice {source_index}", self.plane_of(source_index)
        words = (COLUMNS[0], f"{what} as acquired, mask outlined")
        first = self.close_tile(plane, self.image.data, words, True, self.own_limits)
        return TileRow(label, (first, *self._cropped(plane, what)))

    def across_row(self, axis: int) -> TileRow:
        """Draw a cut across the slices, in the same pictures as :meth:`slice_row`."""
        plane = (axis, middle_of(self.mask, axis, self.image.data.shape))
        what = "cut across the slices"
        first = self.close_tile(
            plane, self.image.data, (COLUMNS[0], f"{what} as acquired, mask outlined"), True, self.own_limits
        )
        return TileRow(f"Across the slices ({PLANES[axis]} cut)", (first, *self._cropped(plane, what)))

    def correction_pair(self, source_index: int) -> TilePair | None:
        """Draw a slice before and after the bias correction, with the mask outlined; None without correction."""
        if self.corrected is None:
            return None
        plane, what = self.plane_of(source_index), f"slice {source_index}"
        before = self.close_tile(
            plane, self.image.data, ("Acquired", f"{what} as acquired, mask outlined"), True, self.own_limits
        )
        after = self.close_tile(plane, self.corrected, ("Corrected", f"{what}, corrected, mask outlined"), True)
        return TilePair(f"Slice {source_index}", before, after)

    def close_tile(
        self,
        plane: tuple[int, int],
        data: np.ndarray,
        words: tuple[str, str],
        outlined: bool = False,
        limits: tuple[float, float] | None = None,
    ) -> Tile:
        """Draw a plane (axis, index) of an image turned to RAS, cropped to the brain; ``words`` are label and alt."""
        mask = self.mask if outlined else None
        across = plane[0] != self.axis
        image = self._blocks(data) if across else self._with(data)
        mask = self._blocks(mask).data if across and mask is not None else mask
        return plane_tile(image, plane, self._close_frame(limits or self.limits), *words, mask)

    def difference(self, plane: tuple[int, int], words: tuple[str, str]) -> Tile:
        """Draw acquired minus simulated intensities inside the mask, in colours."""
        data = self.reference - self.simulated
        data = data if self.mask is None else data * self.mask
        tile = self.close_tile(plane, data, words)
        picture, pixels = self.picture(plane, data, tile)
        return Tile(
            difference_png(picture, FULL_COLOUR * self.limits[1], pixels),
            tile.width,
            tile.height,
            tile.label,
            tile.alt,
            tile.edges,
        )

    def picture(self, plane: tuple[int, int], data: np.ndarray, tile: Tile) -> tuple[np.ndarray, tuple[int, int]]:
        """Return the part of other data that a tile of :meth:`close_tile` shows, and its (rows, columns) in pixels."""
        image = self._blocks(data) if plane[0] != self.axis else self._with(data)
        box = list(self.box)
        box[plane[0]] = slice(None)
        picture = cut(image.data[tuple(box)], *plane)
        step = (tile.height / picture.shape[0], tile.width / picture.shape[1])
        return picture, tile_pixels((tile.height, tile.width), step, self._close_frame(self.limits))

    def _cropped(self, plane: tuple[int, int], what: str) -> list[Tile]:
        """Draw a plane of the corrected and the simulated image and of the difference, as far as they exist."""
        shown = []
        if self.corrected is not None:
            words = (COLUMNS[1], f"{what}, {COLUMNS[1].lower()}, mask outlined")
            shown.append(self.close_tile(plane, self.corrected, words, True))
        if self.simulated is not None:
            shown.append(self.close_tile(plane, self.simulated, (COLUMNS[2], f"{what}, {COLUMNS[2].lower()}")))
            shown.append(self.difference(plane, (COLUMNS[3], f"{what}, acquired minus simulated")))
        return shown

    def _with(self, data: np.ndarray) -> RasImage:
        """Return other data, turned to RAS already, as an image on the grid of the stack."""
        return RasImage(data, self.image.affine, self.image.order, self.image.flipped)

    def _blocks(self, data: np.ndarray) -> RasImage:
        """Repeat every slice to the thickness of its spacing, so that nothing is interpolated across slices."""
        spacing = self.image.spacing
        repeats = max(1, round(spacing[self.axis] / min(spacing)))
        affine = self.image.affine.copy()
        affine[:3, self.axis] /= repeats
        return RasImage(np.repeat(data, repeats, axis=self.axis), affine, self.image.order, self.image.flipped)

    def _close_frame(self, limits: tuple[float, float]) -> Frame:
        """Return the frame of tiles that are cropped to the brain."""
        return Frame(self.box, limits, round(260 * self.detail))
