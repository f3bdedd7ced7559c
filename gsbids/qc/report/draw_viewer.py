# SPDX-License-Identifier: Apache-2.0
"""Images of the interactive viewer of a report: the volume, the image before it, its mask and its maps."""

from dataclasses import is_dataclass
from typing import TYPE_CHECKING

import numpy as np

from gsbids.imaging.masks import same_grid
from gsbids.imaging.nifti import load_image
from gsbids.qc.figures.tiles import Tile, window
from gsbids.qc.figures.viewer import LARGEST, ViewerData, ViewerImage, viewer_data
from gsbids.qc.report.draw_stacks import mask_on

if TYPE_CHECKING:
    from gsbids.qc.report.content import ReportContent

REPORT = 14_000_000  # characters of pictures and viewer: a report stays under 15 MB
LEAST = 1_000_000  # characters of them that the viewer has at least


def drawn_size(value: object) -> int:
    """Count the characters that pictures take on the page.

    Parameters
    ----------
    value : object
        Pictures, or dataclasses, lists, tuples and dicts that contain them.
    """
    if isinstance(value, Tile):
        return len(value.png) * 4 // 3 + len(value.outline)
    if isinstance(value, str):
        return len(value)
    if isinstance(value, dict):
        return sum(map(drawn_size, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(drawn_size, value))
    return sum(map(drawn_size, vars(value).values())) if is_dataclass(value) else 0


def draw_viewer(content: "ReportContent", before: np.ndarray | None, drawn: int = 0) -> ViewerData:
    """Prepare the viewer of a report.

    Parameters
    ----------
    content : gsbids.qc.report.content.ReportContent
        Content with a volume.
    before : ndarray, (X, Y, Z), optional
        Average of the stacks, or interpolated input, on the grid of the volume.
    drawn : int
        Number of characters that the other pictures of the report take.

    Returns
    -------
    ViewerData
    """
    volume, affine = load_image(content.volume or content.unmasked)  # type: ignore[arg-type]
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


def _before(content: "ReportContent", before: np.ndarray, volume: np.ndarray, mask: np.ndarray | None) -> ViewerImage:
    """Return the image before reconstruction or super-resolution, at the brightness of the volume."""
    if content.super_resolution is not None:
        return ViewerImage("before", "B-spline", before)
    # An average of stacks has no unit; it is brought to the brightness of the volume, to be compared with it.
    inside = (before > 0) & (volume > 0) & (True if mask is None else mask)
    level = float(np.median(before[inside])) if inside.any() else 0.0
    factor = float(np.median(volume[inside])) / level if level > 0 else 1.0
    return ViewerImage("before", "average", before * factor)
