# SPDX-License-Identifier: Apache-2.0
"""Gather the images of the viewer of a report: the volume, what was there before, its mask and its maps."""

from dataclasses import is_dataclass

import numpy as np

from gsbids.imaging.masks import same_grid
from gsbids.imaging.nifti import load_image
from gsbids.qc.figures.tiles import Tile, window
from gsbids.qc.figures.viewer import LARGEST, ViewerData, ViewerImage, viewer_data
from gsbids.qc.report.draw_stacks import mask_on

REPORT = 14_000_000  # characters of pictures and viewer: a report stays under 15 MB
LEAST = 1_000_000  # of which the viewer has these at least


def drawn_size(value) -> int:
    """Characters that pictures take on the page, of whatever holds them."""
    if isinstance(value, Tile):
        return len(value.png) * 4 // 3 + len(value.outline)
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(drawn_size, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(drawn_size, value))
    return sum(map(drawn_size, vars(value).values())) if is_dataclass(value) else 0


def draw_viewer(content, before: np.ndarray | None, drawn: int = 0) -> ViewerData:
    """Prepare the viewer of a report.

    Parameters
    ----------
    content : gsbids.qc.report.content.ReportContent
        With a volume.
    before : ndarray, (X, Y, Z), optional
        The average of the stacks, or the interpolated input, on the grid of the volume.
    drawn : int
        Characters that the other pictures of the report take.
    """
    volume, affine = load_image(content.volume or content.unmasked)
    mask = mask_on(content.mask, affine, volume.shape)
    images = [ViewerImage("volume", "volume", volume)]
    if before is not None:
        images.append(_before(content, before, volume, mask))
    if mask is not None:
        images.append(ViewerImage("mask", "mask", mask))
    for key, path, unit in (("coverage", content.coverage, " slices"), ("uncertainty", content.uncertainty, "")):
        if path is not None:
            data, own = load_image(path)
            if same_grid(data.shape, own, volume.shape, affine):
                images.append(ViewerImage(key, key, data if mask is None else data * mask, unit))
    return viewer_data(images, affine, mask, window(volume, mask), max(LEAST, min(LARGEST, REPORT - drawn)))


def _before(content, before: np.ndarray, volume: np.ndarray, mask: np.ndarray | None) -> ViewerImage:
    if content.super_resolution is not None:
        return ViewerImage("before", "B-spline", before)
    # An average of stacks has no unit; it is brought to the brightness of the volume, to be compared with it.
    inside = (before > 0) & (volume > 0) & (True if mask is None else mask)
    level = float(np.median(before[inside])) if inside.any() else 0.0
    factor = float(np.median(volume[inside])) / level if level > 0 else 1.0
    return ViewerImage("before", "average", before * factor)
