# SPDX-License-Identifier: Apache-2.0
"""Figures of a report, drawn from its files; a figure that cannot be drawn is replaced by a note."""

import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup
from scipy import ndimage

from gsbids.errors import GsbidsError
from gsbids.imaging.itk import read_itk_transforms
from gsbids.imaging.masks import same_grid
from gsbids.imaging.nifti import load_image
from gsbids.qc.average import plain_average
from gsbids.qc.displacement import SliceDisplacement, slice_displacement
from gsbids.qc.exclusions import Exclusion, empty_slices, excluded_stacks, rejected_slices
from gsbids.qc.figures import curves
from gsbids.qc.figures.panels import TilePair, TileRow, map_row, mid_planes, mosaic, plane_pairs
from gsbids.qc.figures.sr import SrImages, comparison_rows, detail_rows, member_losses, spectrum_curves
from gsbids.qc.figures.style import inline_svg
from gsbids.qc.figures.tiles import Tile
from gsbids.qc.figures.viewer import ViewerData
from gsbids.qc.report.draw_stacks import draw_stacks, mask_on
from gsbids.qc.report.draw_viewer import draw_viewer, drawn_size
from gsbids.qc.stack_verdict import stack_numbers
from gsbids.recon.svr.result import SvrResult

if TYPE_CHECKING:
    from gsbids.qc.report.content import ReportContent, SrPanel, StackPanel

_FILE_ERRORS = (GsbidsError, OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile)


@dataclass
class Figures:
    """Figures of one report, ready for the page.

    Attributes
    ----------
    planes : tuple of Tile
        Three large planes of the volume.
    pairs : tuple of TilePair
        The same planes of the average of the stacks, or of the interpolated input, and of the volume.
    mosaic, surroundings : tuple of TileRow
        Planes of the masked volume; of the unmasked one with the outline of the mask.
    maps : tuple of TileRow
        Coverage and uncertainty in the three planes of the volume, each with a colour bar.
    masks : dict
        Slices with the outline of the mask, by stack name.
    numbers : dict
        Numbers of every stack by its name (:func:`gsbids.qc.stack_verdict.stack_numbers`).
    stacks : dict
        Rows of pictures by stack name.
    corrections : dict
        One slice before and after the bias correction (TilePair) by stack name.
    worst : dict
        Rows of pictures of the slices that fit worst, by their rank.
    excluded_stacks, excluded_slices, brainless : list of Exclusion
        Stacks and slices that do not contribute to the volume: whole stacks, slices that were rejected or hold no
        information, slices without brain.
    motion : list of (name, SVG, SVG or None, str)
        Stack name, motion in the order of position, motion in the order of acquisition, and origin of that order.
    moves : list of (name, shift (3,), turn (3,))
        Translation (mm) and rotation (degrees) of each stack as a whole.
    heat : list of SVG
        Weights, then similarity.
    similarity, convergence : SVG
        Similarity of the slices, and losses of the fit.
    comparison, details : tuple of TileRow
        Images before and after super-resolution, in whole planes and parts of them.
    spectrum : SVG
        Power before and after super-resolution.
    viewer : ViewerData, optional
        Images of the viewer.
    slices : list of dict
        Table of the slices, one row each.
    notes : list of str
        Sentences on what could not be drawn, and why.
    """

    planes: tuple[Tile, ...] = ()
    pairs: tuple[TilePair, ...] = ()
    mosaic: tuple[TileRow, ...] = ()
    surroundings: tuple[TileRow, ...] = ()
    maps: tuple[TileRow, ...] = ()
    masks: dict = field(default_factory=dict)
    numbers: dict = field(default_factory=dict)
    stacks: dict = field(default_factory=dict)
    corrections: dict = field(default_factory=dict)
    worst: dict = field(default_factory=dict)
    excluded_stacks: list[Exclusion] = field(default_factory=list)
    excluded_slices: list[Exclusion] = field(default_factory=list)
    brainless: list[Exclusion] = field(default_factory=list)
    motion: list = field(default_factory=list)
    moves: list = field(default_factory=list)
    heat: list = field(default_factory=list)
    similarity: Markup | None = None
    convergence: Markup | None = None
    comparison: tuple[TileRow, ...] = ()
    details: tuple[TileRow, ...] = ()
    spectrum: Markup | None = None
    viewer: ViewerData | None = None
    slices: list = field(default_factory=list)
    notes: list = field(default_factory=list)

    @contextmanager
    def guarded(self, what: str) -> Iterator[None]:
        """Turn an error in reading a file into a note that begins with ``what``."""
        try:
            yield
        except _FILE_ERRORS as error:
            self.notes.append(f"{what}: {_words(error)}")


def draw_figures(content: "ReportContent") -> Figures:
    """Draw all figures for which the content of a report has the files."""
    figures, result, average = Figures(), None, None
    if content.result is not None:
        with figures.guarded("Motion and weights could not be drawn"):
            result = SvrResult.load(content.result)
            _draw_result(figures, result, content.stacks)
    if content.volume is not None or content.unmasked is not None:
        before = len(figures.notes)
        with figures.guarded("The volume could not be drawn"):
            _draw_volume(figures, content)
        if len(figures.notes) == before:
            average = _draw_average(figures, content)
    with figures.guarded("Coverage and uncertainty could not be drawn"):
        figures.maps = tuple(_draw_maps(content))
    if content.super_resolution is not None:
        with figures.guarded("Before and after could not be drawn"):
            average = _draw_super_resolution(figures, content)
    draw_stacks(figures, content.stacks, result, figures.guarded)
    if figures.planes:
        with figures.guarded("The viewer could not be made"):
            # Last: it takes the room that the pictures leave.
            figures.viewer = draw_viewer(content, average, drawn_size(figures))
    return figures


def _draw_average(figures: Figures, content: "ReportContent") -> np.ndarray | None:
    """Draw the plain average of the stacks beside the volume, in the same planes, and return it."""
    panels = [(panel.n4 or panel.image, panel.mask) for panel in content.stacks if panel.n4 or panel.image]
    if not panels:
        return None

    def stacks() -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        for path, mask in panels:
            data, own = load_image(path)  # type: ignore[arg-type]
            yield data, own, mask_on(mask, own, data.shape)

    with figures.guarded("The average of the stacks could not be drawn"):
        volume, affine = load_image(content.volume or content.unmasked)  # type: ignore[arg-type]
        scanner = affine
        if content.template_xfm is not None:
            scanner = np.linalg.inv(read_itk_transforms(content.template_xfm)[0]) @ affine
        average = plain_average(stacks(), scanner, volume.shape) * _shown(volume)
        figures.pairs = plane_pairs(average, volume, affine, mask_on(content.mask, affine, volume.shape))
        return average
    return None


def _words(error: BaseException) -> str:
    """Return the message of an error in one line, or the name of its class."""
    return " ".join(str(error).split()) or type(error).__name__


def _svg(data: bytes, key: str, label: str) -> Markup:
    """Return an SVG as an element of the page (see :func:`gsbids.qc.figures.style.inline_svg`)."""
    # inline_svg escapes what it is given; matplotlib escapes the text it draws.
    return Markup(inline_svg(data, key, label))


def _draw_volume(figures: Figures, content: "ReportContent") -> None:
    """Draw the planes of the volume, and those of the unmasked one where there are both."""
    data, affine = load_image(content.volume or content.unmasked)  # type: ignore[arg-type]
    mask = mask_on(content.mask, affine, data.shape)
    figures.planes = mid_planes(data, affine, mask)
    figures.mosaic = mosaic(data, affine, mask)
    if content.unmasked is not None and content.volume is not None:
        data, affine = load_image(content.unmasked)
        mask = mask_on(content.mask, affine, data.shape)
        figures.surroundings = mosaic(data, affine, mask, outlined=True)


def _draw_super_resolution(figures: Figures, content: "ReportContent") -> np.ndarray | None:
    """Draw the images before and after super-resolution and its curves, and return the interpolated input."""
    panel: SrPanel = content.super_resolution  # type: ignore[assignment]
    if panel.history.get("loss"):
        figures.convergence = _svg(
            member_losses(panel.history), "convergence", "Loss of every field of Gaussians against the iteration."
        )
    if content.volume is None or panel.before is None or panel.interpolated is None:
        return None
    (after, affine), (before, own), (between, _) = map(load_image, (content.volume, panel.before, panel.interpolated))
    images = SrImages(after, affine, before, own, between, mask_on(content.mask, affine, after.shape))
    figures.comparison, figures.details = comparison_rows(images), detail_rows(images)
    figures.pairs = plane_pairs(between, after, affine, images.mask, images.limits)
    label = "Power of the image before and after super-resolution against the frequency, along each axis."
    figures.spectrum = _svg(spectrum_curves(images), "spectrum", label)
    return between


def _draw_maps(content: "ReportContent") -> Iterator[TileRow]:
    """Draw coverage and uncertainty, as far as there are files of them."""
    for name, path, form in (
        ("Coverage", content.coverage, "{:.3g} slices"),
        ("Uncertainty", content.uncertainty, "{:.3g}"),
    ):
        if path is not None:
            data, affine = load_image(path)
            if name == "Uncertainty" and content.volume is not None:
                volume, other = load_image(content.volume)
                # Where the volume is not shown, nothing is known, and the map would be white.
                data = data * _shown(volume) if same_grid(data.shape, affine, volume.shape, other) else data
            yield map_row(name, form, data, affine, mask_on(content.mask, affine, data.shape))


def _shown(volume: np.ndarray) -> np.ndarray:
    """Return the voxels in which a masked volume is shown, also those inside that happen to be 0."""
    return ndimage.binary_fill_holes(volume != 0)


def _draw_result(figures: Figures, result: SvrResult, panels: "Sequence[StackPanel]") -> None:
    """Draw motion, weights, similarity and convergence, and list the slices and those that were excluded."""
    moved = slice_displacement(result)
    figures.numbers = stack_numbers(result, moved)
    times = {panel.name: panel.slice_times for panel in panels}
    stacks = [
        curves.stack_motion(result, moved, i, times.get(result.stack_names[i])) for i in np.unique(result.stack_index)
    ]
    limits = curves.motion_limits(stacks)
    for i, stack in enumerate(stacks):
        label = f"Shift and rotation of the slices of {stack.name} against their position in the stack."
        drawn, in_time = _svg(curves.motion_curves(stack, limits), f"motion{i}", label), None
        if stack.order.interleaved or stack.order.known:
            label = f"Shift and rotation of the slices of {stack.name} in the order of their acquisition."
            in_time = _svg(curves.motion_curves(stack, limits, True), f"order{i}", label)
        figures.motion.append((stack.name, drawn, in_time, stack.order.words))
    figures.excluded_stacks = excluded_stacks(result)
    figures.excluded_slices = empty_slices(result) + rejected_slices(result)
    figures.moves = [
        (name, moved.stack_shift[i].tolist(), moved.stack_turn[i].tolist())
        for i, name in enumerate(result.stack_names)
        if np.isfinite(moved.stack_shift[i]).all()
    ]
    strips = (("weight", result.weight, (0.0, 1.0)), ("similarity", result.ncc, (0.5, 1.0)))
    for name, values, scale in strips:
        label = f"{name.capitalize()} of every slice, one row a stack; the numbers are in the table."
        figures.heat.append(_svg(curves.slice_heat(result, values, name, scale), f"heat-{name}", label))
    label = "Similarity of every slice by stack."
    figures.similarity = _svg(curves.similarity_dots(result), "similarity", label)
    if result.history.get("loss") or result.history.get("held_out"):
        figures.convergence = _svg(
            curves.convergence(result.history), "convergence", "Loss of the fit against the iteration."
        )
    figures.slices = _slice_rows(result, moved)


def _slice_rows(result: SvrResult, moved: SliceDisplacement) -> list[dict]:
    """Return the table of the slices, one row each, in the order of the stacks."""
    order = np.lexsort((result.slice_index, result.stack_index))
    return [
        {
            "stack": result.stack_names[result.stack_index[s]],
            "slice": int(result.slice_index[s]),
            "rejected": bool(result.rejected[s]),
            "weight": float(result.weight[s]),
            "ncc": float(result.ncc[s]),
            "residual": float(result.residual[s]),
            "gain": float(result.gain[s]),
            "shift": moved.shift[s].tolist(),
            "turn": moved.turn[s].tolist(),
        }
        for s in order
    ]
