# SPDX-License-Identifier: Apache-2.0
"""Read the files of a report and draw its figures; one that fails becomes a note, not the end."""

import math
import zipfile
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup
from scipy import ndimage

from gsbids.errors import GsbidsError
from gsbids.imaging.itk import read_itk_transforms
from gsbids.imaging.masks import resample_mask, same_grid
from gsbids.imaging.nifti import load_image
from gsbids.qc.average import plain_average
from gsbids.qc.displacement import SliceDisplacement, slice_displacement
from gsbids.qc.exclusions import Exclusion, empty_slices, excluded_stacks, rejected_slices, without_brain
from gsbids.qc.figures import curves
from gsbids.qc.figures.panels import (
    StackImages,
    StackView,
    TilePair,
    TileRow,
    map_row,
    mid_planes,
    middle_slices,
    mosaic,
    plane_pairs,
    stack_rows,
)
from gsbids.qc.figures.slices import stack_pixel_weights, worst_row, worst_slices
from gsbids.qc.figures.sr import SrImages, comparison_rows, detail_rows, member_losses, spectrum_curves
from gsbids.qc.figures.style import inline_svg
from gsbids.qc.figures.tiles import Tile
from gsbids.recon.svr.result import SvrResult

FULL_DETAIL = 4  # stacks that are shown in full detail, more of them in less each
_FILE_ERRORS = (GsbidsError, OSError, ValueError, KeyError, IndexError, EOFError, zipfile.BadZipFile)


@dataclass
class Figures:
    """Figures of one report, ready for the page.

    Attributes
    ----------
    planes : tuple of Tile
        Three large planes of the volume.
    pairs : tuple of TilePair
        The same planes before and after: of the average of the stacks, or of the interpolated input, and of the volume.
    mosaic, surroundings : tuple of TileRow
        Planes of the masked volume; of the unmasked one with the mask's outline.
    maps : tuple of TileRow
        Coverage and uncertainty in the three planes of the volume, each with what its greys mean.
    stacks : dict
        Rows of pictures by stack name.
    corrections : dict
        A slice before and after the bias correction (TilePair) by stack name.
    worst : dict
        Rows of pictures of the slices that fit worst, by their rank.
    excluded_stacks, excluded_slices, brainless : list of Exclusion
        What has no say in the volume: whole stacks, slices that were rejected, slices without brain.
    motion : list of (name, SVG, SVG in the order of acquisition or None, where the order comes from)
    moves : list of (name, shift (3,), turn (3,))
        Where each stack went as a whole.
    heat : list of SVG
        Weights, then similarity.
    similarity, convergence : SVG
    comparison, details : tuple of TileRow
        Before and after super-resolution, whole planes and parts of them.
    spectrum : SVG
        Power before and after.
    slices : list of dict
        One row a slice, for the table.
    notes : list of str
        What could not be drawn, and why.
    """

    planes: tuple[Tile, ...] = ()
    pairs: tuple[TilePair, ...] = ()
    mosaic: tuple[TileRow, ...] = ()
    surroundings: tuple[TileRow, ...] = ()
    maps: tuple[TileRow, ...] = ()
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
    slices: list = field(default_factory=list)
    notes: list = field(default_factory=list)


def draw_figures(content) -> Figures:
    """Draw all that the content of a report (``ReportContent``) allows."""
    figures = Figures()
    result = None
    if content.result is not None:
        try:
            result = SvrResult.load(content.result)
            _draw_result(figures, result, content.stacks)
        except _FILE_ERRORS as error:
            figures.notes.append(f"Motion and weights could not be drawn: {_words(error)}")
    if content.volume is not None or content.unmasked is not None:
        try:
            _draw_volume(figures, content)
        except _FILE_ERRORS as error:
            figures.notes.append(f"The volume could not be drawn: {_words(error)}")
        else:
            _draw_average(figures, content)
    try:
        figures.maps = tuple(_draw_maps(content))
    except _FILE_ERRORS as error:
        figures.notes.append(f"Coverage and uncertainty could not be drawn: {_words(error)}")
    if content.super_resolution is not None:
        try:
            _draw_super_resolution(figures, content)
        except _FILE_ERRORS as error:
            figures.notes.append(f"Before and after could not be drawn: {_words(error)}")
    _draw_stacks(figures, content.stacks, result)
    return figures


def _draw_stacks(figures: Figures, panels, result: SvrResult | None) -> None:
    # The page stays under 15 MB however many stacks there are.
    detail = min(1.0, math.sqrt(FULL_DETAIL / max(len(panels), 1)))
    worst = [] if result is None else worst_slices(result)
    for panel in panels:
        try:
            images = _stack_images(figures, panel)
            if images is None:
                continue
            fitted = np.zeros(0, int)
            if result is not None and panel.name in result.stack_names:
                fitted = np.flatnonzero(result.stack_index == result.stack_names.index(panel.name))
                known = [*result.slice_index[fitted], *result.mask_choice["empty"].get(panel.name, [])]
                left = without_brain(panel.name, known, images.acquired.shape[2])
                figures.brainless += [left] if left else []
            figures.stacks[panel.name] = stack_rows(images, _marks(images, result, fitted), detail)
            pair = StackView(images, detail).correction_pair(middle_slices(images.mask, images.acquired.shape[2])[0])
            figures.corrections |= {panel.name: pair} if pair else {}
            _draw_worst(figures, images, result, {s: worst.index(s) for s in fitted.tolist() if s in worst})
        except _FILE_ERRORS as error:
            figures.notes.append(f"Stack {panel.name} could not be drawn: {_words(error)}")
    figures.worst = dict(sorted(figures.worst.items()))


def _draw_worst(figures: Figures, images: StackImages, result: SvrResult | None, ranks: dict[int, int]) -> None:
    """Rows of one stack's slices that are among the worst, ``ranks`` by their rows in the result."""
    if not ranks or images.mask is None or images.simulated is None:
        return
    view = StackView(images)
    weights = stack_pixel_weights(images, result.slice_index[result.stack_index == result.stack_index[min(ranks)]])
    for s, rank in ranks.items():
        name, k = result.stack_names[result.stack_index[s]], int(result.slice_index[s])
        words = f"{name}, slice {k}: similarity {result.ncc[s]:.2f}, weight {result.weight[s]:.2f}"
        figures.worst[rank] = worst_row(view, weights, k, words + (", rejected" if result.rejected[s] else ""))


def _draw_average(figures: Figures, content) -> None:
    """The plain average of the stacks beside the volume, in the same planes."""
    panels = [(panel.n4 or panel.image, panel.mask) for panel in content.stacks if panel.n4 or panel.image]
    if not panels:
        return

    def stacks():
        for path, mask in panels:
            data, own = load_image(path)
            yield data, own, _mask_on(mask, own, data.shape)

    try:
        volume, affine = load_image(content.volume or content.unmasked)
        scanner = affine
        if content.template_xfm is not None:
            scanner = np.linalg.inv(read_itk_transforms(content.template_xfm)[0]) @ affine
        average = plain_average(stacks(), scanner, volume.shape) * _shown(volume)
        figures.pairs = plane_pairs(average, volume, affine, _mask_on(content.mask, affine, volume.shape))
    except _FILE_ERRORS as error:
        figures.notes.append(f"The average of the stacks could not be drawn: {_words(error)}")


def _words(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _svg(data: bytes, key: str, label: str) -> Markup:
    # inline_svg escapes what it is given; matplotlib escapes the text it draws.
    return Markup(inline_svg(data, key, label))


def _draw_volume(figures: Figures, content) -> None:
    data, affine = load_image(content.volume or content.unmasked)
    mask = _mask_on(content.mask, affine, data.shape)
    figures.planes = mid_planes(data, affine, mask)
    figures.mosaic = mosaic(data, affine, mask)
    if content.unmasked is not None and content.volume is not None:
        data, affine = load_image(content.unmasked)
        mask = _mask_on(content.mask, affine, data.shape)
        figures.surroundings = mosaic(data, affine, mask, outlined=True)


def _draw_super_resolution(figures: Figures, content) -> None:
    panel = content.super_resolution
    if panel.history.get("loss"):
        figures.convergence = _svg(
            member_losses(panel.history), "convergence", "Loss of every field of Gaussians against the iteration."
        )
    if content.volume is None or panel.before is None or panel.interpolated is None:
        return
    (after, affine), (before, own), (between, _) = map(load_image, (content.volume, panel.before, panel.interpolated))
    images = SrImages(after, affine, before, own, between, _mask_on(content.mask, affine, after.shape))
    figures.comparison, figures.details = comparison_rows(images), detail_rows(images)
    figures.pairs = plane_pairs(between, after, affine, images.mask, images.limits)
    label = "Power of the image before and after super-resolution against the frequency, along each axis."
    figures.spectrum = _svg(spectrum_curves(images), "spectrum", label)


def _draw_maps(content):
    """Rows of the maps that there are."""
    for name, path, form in (
        ("Coverage", content.coverage, "{:.1f} slices"),
        ("Uncertainty", content.uncertainty, "{:.3g}, in the intensities of the volume"),
    ):
        if path is not None:
            data, affine = load_image(path)
            if name == "Uncertainty" and content.volume is not None:
                volume, other = load_image(content.volume)
                # Where the volume is not shown, nothing is known, and the map would be white.
                data = data * _shown(volume) if same_grid(data.shape, affine, volume.shape, other) else data
            yield map_row(name, form, data, affine, _mask_on(content.mask, affine, data.shape))


def _shown(volume: np.ndarray) -> np.ndarray:
    """Where a masked volume is shown: also in voxels inside that happen to be 0."""
    return ndimage.binary_fill_holes(volume != 0)


def _mask_on(path, affine: np.ndarray, shape) -> np.ndarray | None:
    if path is None:
        return None
    mask, mask_affine = load_image(path)
    if same_grid(mask.shape, mask_affine, shape, affine):
        return mask > 0
    return resample_mask(mask > 0, mask_affine, affine, shape)


def _stack_images(figures: Figures, panel) -> StackImages | None:
    first = panel.image or panel.n4
    if first is None:
        return None
    data, affine = load_image(first)
    images = {"corrected": panel.n4 if panel.image else None, "simulated": panel.simulated}
    for name, path in images.items():
        if path is None:
            continue
        other, other_affine = load_image(path)
        images[name] = other
        if not same_grid(data.shape, affine, other.shape, other_affine, 0.1):
            figures.notes.append(f"Stack {panel.name}: the {name} image is on another grid and is not shown")
            images[name] = None
    return StackImages(data, affine, _mask_on(panel.mask, affine, data.shape), **images)


def _marks(images: StackImages, result: SvrResult | None, fitted: np.ndarray) -> dict[int, str]:
    """Slices to show: the one least like its simulation, and three through the brain.

    ``fitted`` are the rows of the stack's slices in the result.
    """
    depth = images.acquired.shape[2]
    marks = {k: f"Slice {k}" for k in middle_slices(images.mask, depth)}
    for s in fitted:
        k = int(result.slice_index[s])
        if k in marks and np.isfinite(result.ncc[s]):
            marks[k] = f"Slice {k}, similarity {result.ncc[s]:.2f}"
    finite = [s for s in fitted if np.isfinite(result.ncc[s])]
    if finite:
        worst = min(finite, key=lambda s: result.ncc[s])
        k = int(result.slice_index[worst])
        if 0 <= k < depth:
            rejected = ", rejected" if result.rejected[worst] else ""
            words = f"Slice {k}, lowest similarity of the stack ({result.ncc[worst]:.2f}{rejected})"
            marks = {k: words} | {other: label for other, label in marks.items() if other != k}
    return marks


def _draw_result(figures: Figures, result: SvrResult, panels) -> None:
    moved = slice_displacement(result)
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
