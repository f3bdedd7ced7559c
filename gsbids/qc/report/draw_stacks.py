# SPDX-License-Identifier: Apache-2.0
"""Pictures of the stacks of a report: masks, slices beside their simulation, and the slices that fit worst."""

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gsbids.imaging.masks import resample_mask, same_grid
from gsbids.imaging.nifti import load_image
from gsbids.qc.exclusions import weight_reason, without_brain
from gsbids.qc.figures.masks import mask_tiles
from gsbids.qc.figures.panels import StackImages, StackView, middle_slices, stack_rows
from gsbids.qc.figures.slices import bad_slices, stack_pixel_weights, worst_row, worst_slices
from gsbids.recon.svr.result import SvrResult

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from gsbids.qc.report.content import StackPanel
    from gsbids.qc.report.draw import Figures

FULL_DETAIL = 3  # stacks that are shown in full detail; of more stacks, each has fewer pixels
DETAIL_OF_WORST = 0.75


def draw_stacks(
    figures: "Figures",
    panels: "Sequence[StackPanel]",
    result: SvrResult | None,
    guarded: "Callable[[str], AbstractContextManager[None]]",
) -> None:
    """Add the pictures of all stacks to the figures of a report.

    Parameters
    ----------
    figures : gsbids.qc.report.draw.Figures
    panels : sequence of gsbids.qc.report.content.StackPanel
    result : SvrResult, optional
    guarded : callable
        Context manager that turns an error into a note; its argument is the beginning of the note.
    """
    # The page stays under 15 MB however many stacks there are.
    detail = min(1.0, math.sqrt(FULL_DETAIL / max(len(panels), 1)))
    worst: list[int] = []
    if result is not None:
        with guarded("Bad slices could not be found"):
            worst = worst_slices(result, among=bad_slices(result, mask_pixels(result, panels)))
    for panel in panels:
        with guarded(f"Stack {panel.name} could not be drawn"):
            images = stack_images(figures, panel)
            if images is not None:
                _draw_stack(figures, panel, images, result, (worst, detail))
    figures.worst = dict(sorted(figures.worst.items()))


def _draw_stack(
    figures: "Figures",
    panel: "StackPanel",
    images: StackImages,
    result: SvrResult | None,
    settings: tuple[list[int], float],
) -> None:
    """Draw one stack; ``settings`` are the slices of the result that fit worst, and the factor of pixels."""
    (worst, detail), depth = settings, images.acquired.shape[2]
    fitted = np.zeros(0, int)
    if result is not None and panel.name in result.stack_names:
        fitted = np.flatnonzero(result.stack_index == result.stack_names.index(panel.name))
        known = [*result.slice_index[fitted], *result.mask_choice["empty"].get(panel.name, [])]
        left = without_brain(panel.name, known, depth)
        figures.brainless += [left] if left else []
    view = StackView(images, detail)
    figures.masks[panel.name] = mask_tiles(view, depth)
    # Without a result, no slices are fitted.
    figures.stacks[panel.name] = stack_rows(images, _marks(images, result, fitted), detail)  # type: ignore[arg-type]
    pair = view.correction_pair(middle_slices(images.mask, depth)[0])
    figures.corrections |= {panel.name: pair} if pair else {}
    _draw_worst(figures, images, result, {s: worst.index(s) for s in fitted.tolist() if s in worst})  # type: ignore[arg-type]


def _draw_worst(figures: "Figures", images: StackImages, result: SvrResult, ranks: dict[int, int]) -> None:
    """Draw those slices of a stack that are among the worst; ``ranks`` by their indices in the result."""
    if not ranks or images.mask is None or images.simulated is None:
        return
    view = StackView(images, DETAIL_OF_WORST)
    weights = stack_pixel_weights(images, result.slice_index[result.stack_index == result.stack_index[min(ranks)]])
    for s, rank in ranks.items():
        name, k = result.stack_names[result.stack_index[s]], int(result.slice_index[s])
        figures.worst[rank] = worst_row(view, weights, k, f"{name}, slice {k}: {weight_reason(result, s)}")


def mask_pixels(result: SvrResult, panels: "Sequence[StackPanel]") -> np.ndarray:
    """Count the pixels in the mask of every slice of a result, (S,); 0 in stacks without a mask."""
    pixels = np.zeros(len(result.weight))
    for panel in panels:
        if panel.mask is None or panel.name not in result.stack_names:
            continue
        counts = (load_image(panel.mask)[0] > 0).sum(axis=(0, 1))
        mine = result.stack_index == result.stack_names.index(panel.name)
        inside = mine & (result.slice_index < len(counts))
        pixels[inside] = counts[result.slice_index[inside]]
    return pixels


def mask_on(path: "Path | None", affine: np.ndarray, shape: Sequence[int]) -> np.ndarray | None:
    """Read a mask and resample it to a grid where it is on another one; None without a path."""
    if path is None:
        return None
    mask, mask_affine = load_image(path)
    if same_grid(mask.shape, mask_affine, shape, affine):
        return mask > 0
    return resample_mask(mask > 0, mask_affine, affine, shape)


def stack_images(figures: "Figures", panel: "StackPanel") -> StackImages | None:
    """Read the images of a stack; those on another grid are left out, with a note."""
    first = panel.image or panel.n4
    if first is None:
        return None
    data, affine = load_image(first)
    images: dict[str, Any] = {"corrected": panel.n4 if panel.image else None, "simulated": panel.simulated}
    for name, path in images.items():
        if path is None:
            continue
        other, other_affine = load_image(path)
        images[name] = other
        if not same_grid(data.shape, affine, other.shape, other_affine, 0.1):
            figures.notes.append(f"Stack {panel.name}: the {name} image is on another grid and is not shown")
            images[name] = None
    return StackImages(data, affine, mask_on(panel.mask, affine, data.shape), **images)


def _marks(images: StackImages, result: SvrResult, fitted: np.ndarray) -> dict[int, str]:
    """Choose the slices to show, with captions: the one least like its simulation, and three through the brain.

    ``fitted`` are the indices of the slices of the stack in the result.
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
