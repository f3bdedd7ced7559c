# SPDX-License-Identifier: Apache-2.0
"""Pictures of the slices that fit worst, with the weights of their pixels."""

import numpy as np

from gsbids.qc.exclusions import UNLIKE
from gsbids.qc.figures.panels import StackImages, StackView, TileRow
from gsbids.qc.figures.tiles import Tile, palette_png
from gsbids.recon.fitting import outliers
from gsbids.recon.svr.result import SvrResult

COLUMNS = ("Acquired", "Simulated", "Residual", "Pixel weights")


#: Share of the pixels that the typical slice of a stack has in the mask, below which a slice is a sliver at the end of
#: the brain, whose similarity says little. Weights of slices ignore slivers as well (recon/fitting/outliers.py).
SLIVER = 0.25


def worst_slices(result: SvrResult, count: int = 8, among: np.ndarray | None = None) -> list[int]:
    """List the ``count`` slices with the lowest similarity to their simulation, the worst first.

    Parameters
    ----------
    result : SvrResult
    count : int
    among : ndarray, (S,), bool, optional
        Slices that may be chosen; all by default.

    Returns
    -------
    list of int
        Indices of the slices in the result.
    """
    chosen = np.isfinite(result.ncc) & (True if among is None else among)
    known = np.flatnonzero(chosen)
    return known[np.argsort(result.ncc[known], kind="stable")][:count].tolist()


def bad_slices(result: SvrResult, pixels: np.ndarray) -> np.ndarray:
    """Find the slices to look at: those that were rejected or are unlike their simulation, except slivers.

    Parameters
    ----------
    result : SvrResult
    pixels : ndarray, (S,)
        Number of pixels in the mask of each slice; 0 where it is not known.

    Returns
    -------
    ndarray, (S,), bool
    """
    sliver = np.zeros(len(result.ncc), bool)
    for stack in np.unique(result.stack_index):
        mine = result.stack_index == stack
        sliver[mine] = pixels[mine] < SLIVER * np.median(pixels[mine])
    return (result.rejected | (result.ncc < UNLIKE)) & ~sliver


def stack_pixel_weights(images: StackImages, fitted: np.ndarray) -> np.ndarray:
    """Compute the robust weight of every pixel of a stack from acquired minus simulated slices, as the fit does.

    Parameters
    ----------
    images : StackImages
        With mask and simulated slices.
    fitted : ndarray, (K,), int
        Indices of the slices of the fit.

    Returns
    -------
    ndarray, (X, Y, Z), float32
        0 to 1; NaN outside the mask, and in slices that had no part in the fit.
    """
    acquired = images.acquired if images.corrected is None else images.corrected
    weights = np.full(acquired.shape, np.nan, np.float32)
    mask = np.moveaxis(np.asarray(images.mask) > 0, 2, 0)[fitted]
    residual = np.moveaxis(acquired - images.simulated, 2, 0)[fitted]
    found = outliers.pixel_weights(residual, mask)
    weights[:, :, fitted] = np.moveaxis(np.where(mask, found, np.nan), 0, 2)
    return weights


def worst_row(view: StackView, weights: np.ndarray, source_index: int, label: str) -> TileRow:
    """Draw one slice: acquired (corrected) with the mask outlined, simulated, their difference, and pixel weights.

    Parameters
    ----------
    view : StackView
        Of a stack with mask and simulated slices.
    weights : ndarray, (X, Y, Z)
        From :func:`stack_pixel_weights`.
    source_index : int
        Slice index in the stack.
    label : str

    Returns
    -------
    TileRow
    """
    what = f"slice {source_index}"
    plane = view.plane_of(source_index)
    acquired = view.close_tile(plane, view.reference, (COLUMNS[0], f"{what} as acquired, mask outlined"), outlined=True)
    simulated = view.close_tile(plane, view.simulated, (COLUMNS[1], f"{what}, simulated"))  # type: ignore[arg-type]
    residual = view.difference(plane, (COLUMNS[2], f"{what}, acquired minus simulated"))
    picture, pixels = view.picture(plane, view.turned(weights), residual)  # type: ignore[arg-type]
    png = palette_png(picture, (0.0, 1.0), pixels)
    heat = Tile(png, residual.width, residual.height, COLUMNS[3], f"{what}, weights of its pixels", residual.edges)
    return TileRow(label, (acquired, simulated, residual, heat))
