# SPDX-License-Identifier: Apache-2.0
"""Pictures of super-resolution: before, after and difference, the power spectra, and the losses of the fields."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from scipy import ndimage

from gsbids.qc.figures.panels import Frame, TileRow, middle_of, plane_tile, tile_pixels
from gsbids.qc.figures.style import PALETTE, house_style, new_figure, svg_bytes
from gsbids.qc.figures.tiles import PLANES, RasImage, Tile, crop_box, cut, difference_png, to_ras, window
from gsbids.qc.metrics_sr import foreground
from gsbids.qc.spectrum import axis_spectrum

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLUMNS = ("Input", "B-spline", "Super-resolved", "Difference")
FULL_COLOUR = 0.15  # of white: differences drawn in full colour
CLOSE = 45.0  # mm: side of the parts of planes
FINER = 1.02  # times the voxels along an axis, from which on it has a spectrum of its own


@dataclass(frozen=True)
class SrImages:
    """A volume before and after super-resolution.

    Attributes
    ----------
    after : ndarray, (X, Y, Z)
        Super-resolved volume.
    affine : ndarray, (4, 4)
    before : ndarray, (A, B, C)
        Input on its own grid.
    own_affine : ndarray, (4, 4)
        Affine of the input.
    interpolated : ndarray, (X, Y, Z)
        Input interpolated by cubic B-splines.
    mask : ndarray, (X, Y, Z), bool, optional
        Brain mask.
    """

    after: np.ndarray
    affine: np.ndarray
    before: np.ndarray
    own_affine: np.ndarray
    interpolated: np.ndarray
    mask: np.ndarray | None = None

    @cached_property
    def shown(self) -> tuple[RasImage, ...]:
        """Input (nearest voxel), interpolated input and super-resolved volume on one grid, turned to RAS."""
        index = np.linalg.inv(self.own_affine) @ self.affine
        blocks = ndimage.affine_transform(
            self.before, index[:3, :3], index[:3, 3], self.after.shape, order=0, mode="nearest"
        )
        return tuple(to_ras(image, self.affine) for image in (blocks, self.interpolated, self.after))

    @cached_property
    def inside(self) -> np.ndarray:
        """Brain mask, or the foreground where there is none, turned to RAS."""
        mask = foreground(self.interpolated) if self.mask is None or not self.mask.any() else self.mask
        return to_ras(mask, self.affine).data

    @cached_property
    def limits(self) -> tuple[float, float]:
        """Grey window of all pictures."""
        return window(self.shown[1].data, self.inside)


def comparison_rows(images: SrImages) -> tuple[TileRow, ...]:
    """Draw the axial, coronal and sagittal middle planes of the images of a super-resolution.

    Returns
    -------
    tuple of TileRow
        Every row: input, interpolated input, super-resolved volume, and the difference of the last two.
    """
    image = images.shown[2]
    frame = Frame(crop_box(images.inside, image.data.shape, image.spacing), images.limits, 300, 2.0)
    return tuple(_row(images, axis, frame, PLANES[axis].capitalize()) for axis in (2, 1, 0))


def detail_rows(images: SrImages) -> tuple[TileRow, ...]:
    """Draw the pictures of :func:`comparison_rows` closer, in the part of each plane where the image varies most."""
    rows = []
    for axis in (2, 1, 0):
        frame = Frame(_busiest(images, axis), images.limits, 300, 8.0)
        rows.append(_row(images, axis, frame, f"{PLANES[axis].capitalize()}, closer ({CLOSE:g} mm)"))
    return tuple(rows)


def spectrum_curves(images: SrImages) -> bytes:
    """Draw the power spectra of the input, the interpolated and the super-resolved volume, as SVG.

    There is one plot for every axis that became finer, or for all three where none did.
    """
    own, fine = (np.linalg.norm(a[:3, :3], axis=0) for a in (images.own_affine, images.affine))
    # Axes of the fine grid, and those of the input that run along them.
    along = np.abs(np.linalg.inv(images.own_affine[:3, :3] / own) @ (images.affine[:3, :3] / fine)).argmax(0)
    axes = [k for k in range(3) if own[along[k]] > FINER * fine[k] and images.after.shape[k] > 3] or [0, 1, 2]
    with house_style("spectrum"):
        figure = new_figure(10.2, 2.9)
        drawn = figure.subplots(1, len(axes), squeeze=False, sharey=True)[0]
        for axis, k in zip(drawn, axes, strict=True):
            curves = (
                (images.before, own[along[k]], along[k], "input", PALETTE.muted, "-"),
                (images.interpolated, fine[k], k, "B-spline", PALETTE.second, (0, (4, 1.5))),
                (images.after, fine[k], k, "super-resolved", PALETTE.first, "-"),
            )
            for volume, spacing, own_axis, label, colour, dashes in curves:
                frequency, power = axis_spectrum(volume, spacing, own_axis)
                axis.plot(frequency, np.maximum(power, 1e-30), color=colour, linestyle=dashes, label=label)
            marks = {"Nyquist of the input": 0.5 / own[along[k]], "half Nyquist": 0.25 / fine[k]}
            if np.ptp(list(marks.values())) < 0.02 * marks["half Nyquist"]:
                marks = {"half Nyquist, and that of the input": marks["half Nyquist"]}
            for row, (words, frequency) in enumerate(sorted(marks.items(), key=lambda mark: mark[1])):
                _mark(axis, frequency, words, row)
            axis.set(xlabel="cycles/mm", yscale="log")
            axis.set_title(f"array axis {'ijk'[k]}, {fine[k]:.3g} mm", pad=8 + 8 * len(marks))
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter("")
        top = max(line.get_ydata().max() for axis in drawn for line in axis.lines[:3])
        drawn[0].set(ylabel="power", ylim=(1e-8 * top, 3 * top))
        drawn[0].legend(frameon=False, fontsize=7, loc="lower left")
        return svg_bytes(figure)


def member_losses(history: dict) -> bytes:
    """Draw the mean squared residual of every field of the ensemble against the iteration, as SVG.

    Parameters
    ----------
    history : dict of str to list
        Columns ``member``, ``iteration`` and ``loss``.
    """
    member, iteration, loss = (np.asarray(history[name], float) for name in ("member", "iteration", "loss"))
    with house_style("members"):
        figure = new_figure(6.6, 2.5)
        axis = figure.subplots()
        for number in np.unique(member):
            mine = member == number
            axis.plot(iteration[mine], loss[mine], color=PALETTE.first, alpha=0.6)
        if (loss > 0).all():
            axis.set_yscale("log")
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        axis.set(xlabel="iteration", ylabel="mean squared residual")
        return svg_bytes(figure)


def _mark(axis: "Axes", frequency: float, words: str, row: int) -> None:
    """Draw a line at a frequency, with its name above the axes, where no curve passes; ``row`` counts from the axes."""
    axis.axvline(frequency, color=PALETTE.third, linewidth=0.8, linestyle=(0, (1.2, 1.2)))
    axis.annotate(
        words,
        (frequency, 1.0),
        xycoords=axis.get_xaxis_transform(),
        xytext=(0, 2 + 8 * row),
        textcoords="offset points",
        color=PALETTE.third,
        fontsize=6.5,
        ha="center",
        va="bottom",
    )


def _row(images: SrImages, axis: int, frame: Frame, label: str) -> TileRow:
    """Draw the row of pictures of the middle plane of an axis."""
    plane = (axis, middle_of(images.inside, axis, images.inside.shape))
    what = f"{PLANES[axis]} plane"
    tiles = [
        plane_tile(image, plane, frame, name, f"{what}, {name.lower()}")
        for image, name in zip(images.shown, COLUMNS, strict=False)
    ]
    return TileRow(label, (*tiles, _difference(images, plane, frame, what)))


def _difference(images: SrImages, plane: tuple[int, int], frame: Frame, what: str) -> Tile:
    """Draw super-resolved minus interpolated intensities, in colours."""
    image = images.shown[2]
    difference = image.data - images.shown[1].data
    base = plane_tile(image, plane, frame, COLUMNS[3], f"{what}, super-resolved minus B-spline")
    box = list(frame.box)
    box[plane[0]] = slice(None)
    picture = cut(difference[tuple(box)], *plane)
    step = (base.height / picture.shape[0], base.width / picture.shape[1])
    full = FULL_COLOUR * (images.limits[1] - images.limits[0])
    png = difference_png(picture, full, tile_pixels((base.height, base.width), step, frame))
    return Tile(png, base.width, base.height, base.label, base.alt, base.edges)


def _busiest(images: SrImages, axis: int) -> tuple[slice, ...]:
    """Return the square box in the middle plane of an axis where the interpolated input varies most.

    The super-resolved volume does not influence the choice.
    """
    image = images.shown[1]
    index = middle_of(images.inside, axis, image.data.shape)
    plane, inside = np.take(image.data, index, axis), np.take(images.inside, index, axis)
    steps = [image.spacing[a] for a in range(3) if a != axis]
    size = [min(max(round(CLOSE / step), 1), n) for step, n in zip(steps, plane.shape, strict=True)]
    slope = np.hypot(*(np.diff(plane, axis=a, append=np.take(plane, [-1], a)) for a in (0, 1)))
    # Edges of the head are not what is asked for: the part lies well inside.
    slope = np.minimum(slope, np.percentile(slope, 99)) * inside
    score = ndimage.uniform_filter(slope.astype(np.float32), size, mode="constant")
    centre = np.unravel_index(int(score.argmax()), score.shape)
    cuts = []
    for at, count, n in zip(centre, size, plane.shape, strict=True):
        start = int(np.clip(at - count // 2, 0, n - count))
        cuts.append(slice(start, start + count))
    cuts.insert(axis, slice(None))
    return tuple(cuts)
