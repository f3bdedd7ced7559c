# SPDX-License-Identifier: Apache-2.0
"""Curves and colour strips of motion, weights, similarity and convergence; each function returns an SVG as bytes."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from gsbids.qc.acquisition import SliceOrder, slice_order
from gsbids.qc.displacement import SliceDisplacement
from gsbids.qc.figures.style import PALETTE, house_style, new_figure, svg_bytes
from gsbids.recon.svr.result import SvrResult

#: Colour, dashes and marker of the three components (along R, A and S).
COMPONENTS = ((PALETTE.first, "-", "o"), (PALETTE.second, (0, (4, 1.5)), "s"), (PALETTE.third, (0, (1.2, 1.2)), "^"))


@dataclass(frozen=True)
class StackMotion:
    """Motion of the slices of one stack about its mean pose, ready to draw.

    Attributes
    ----------
    name : str
        Name of the stack.
    index : ndarray, (K,), int
        Slice index, ascending.
    used : ndarray, (K,), bool
        Slices that were not rejected.
    shift, turn : ndarray, (K, 3)
        Translation (mm) and rotation (degrees); see :class:`gsbids.qc.displacement.SliceDisplacement`.
    order : SliceOrder
        Order of acquisition.
    """

    name: str
    index: np.ndarray
    used: np.ndarray
    shift: np.ndarray
    turn: np.ndarray
    order: SliceOrder


def stack_motion(
    result: SvrResult, moved: SliceDisplacement, stack: int, times: tuple[float, ...] | None = None
) -> StackMotion:
    """Return the motion of the slices of one stack.

    Parameters
    ----------
    result : SvrResult
    moved : SliceDisplacement
        Motion of all slices of the result.
    stack : int
        Number of the stack, from 0.
    times : tuple of float, optional
        Acquisition time (s) of every slice by its index, where it is known.

    Returns
    -------
    StackMotion
    """
    mine = np.flatnonzero(result.stack_index == stack)
    mine = mine[np.argsort(result.slice_index[mine], kind="stable")]
    index, used = result.slice_index[mine], ~result.rejected[mine]
    order = slice_order(index, used, np.hstack([moved.shift[mine], moved.turn[mine]]), times)
    return StackMotion(result.stack_names[stack], index, used, moved.shift[mine], moved.turn[mine], order)


def motion_limits(stacks: list[StackMotion]) -> tuple[float, float]:
    """Return the limits of the motion axes that hold the used slices of every stack: one scale for all.

    Parameters
    ----------
    stacks : list of StackMotion

    Returns
    -------
    tuple of float
        Half-heights of the axes of translations (mm) and of rotations (degrees).
    """
    limits = []
    for name, least in (("shift", 1.0), ("turn", 1.0)):
        sizes = [np.abs(getattr(stack, name)[stack.used]).max() for stack in stacks if stack.used.any()]
        limits.append(1.08 * max([least, *sizes]))
    return tuple(limits)


def motion_curves(stack: StackMotion, limits: tuple[float, float], in_time: bool = False) -> bytes:
    """Draw the translations and rotations of the slices of one stack.

    Parameters
    ----------
    stack : StackMotion
    limits : tuple of float
        Half-heights of the two axes, from :func:`motion_limits`.
    in_time : bool
        Slices stand in the order of their acquisition, with every other pass of the interleaving shaded; else in the
        order of their position, with a line for every pass.

    Returns
    -------
    bytes
        SVG.
    """
    passes = stack.order.passes
    x, label = stack.index, "slice (position in the stack)"
    lines = [np.flatnonzero(passes == number) for number in np.unique(passes)]
    if in_time:
        x, label, lines = stack.order.moment, stack.order.label, [stack.order.sequence]
    used = stack.used
    with house_style(f"motion-{stack.name}-{in_time}"):
        figure = new_figure(4.5, 3.1)
        axes = figure.subplots(2, 1, sharex=True)
        parts = (("shift (mm)", stack.shift, limits[0]), ("rotation (°)", stack.turn, limits[1]))
        for axis, (name, values, limit) in zip(axes, parts, strict=True):
            axis.axhline(0, color=PALETTE.muted, linewidth=0.6)
            for first, last in _shaded(stack.order) if in_time else ():
                axis.axvspan(first, last, color=PALETTE.grid, linewidth=0, zorder=0)
            for component, (colour, dashes, marker) in enumerate(COMPONENTS):
                y = values[:, component]
                for line in lines:
                    line = line[used[line]]
                    axis.plot(x[line], y[line], color=colour, linestyle=dashes, marker=marker, markersize=2.4)
                axis.plot(
                    x[~used],
                    np.clip(y[~used], -limit, limit),
                    linestyle="none",
                    marker=marker,
                    markersize=3.6,
                    markerfacecolor="none",
                    markeredgecolor=colour,
                    markeredgewidth=0.8,
                )
            axis.set(ylabel=name, ylim=(-limit, limit))
        axes[1].set_xlabel(label)
        axes[1].xaxis.get_major_locator().set_params(integer=True)
        figure.align_ylabels(axes)
        return svg_bytes(figure)


def _shaded(order: SliceOrder) -> Iterator[tuple[float, float]]:
    """Yield the first and the last moment of every other pass, half a step wider at either end."""
    for number in range(1, order.passes.max(initial=0) + 1, 2):
        moments = order.moment[order.passes == number]
        step = np.median(np.diff(np.sort(moments))) if len(moments) > 1 else 1.0
        yield moments.min() - step / 2, moments.max() + step / 2


def slice_heat(result: SvrResult, values: np.ndarray, title: str, limits: tuple[float, float]) -> bytes:
    """Draw a strip of coloured cells per stack, one cell per slice; crosses mark rejected slices.

    Parameters
    ----------
    result : SvrResult
    values : ndarray, (S,)
        Values of the slices; cells of NaN stay empty.
    title : str
        Name of the values.
    limits : tuple of float
        Values of the two ends of the colour scale; values beyond take the end's colour.

    Returns
    -------
    bytes
        SVG.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize
    from matplotlib.patches import Rectangle

    titles = {}
    count = len(result.stack_names)
    with house_style(f"heat-{title}"):
        figure = new_figure(4.9, 0.85 + 0.26 * count)
        axis = figure.subplots()
        axis.grid(visible=False)
        colours = ScalarMappable(Normalize(*limits), "cividis")
        for s in range(len(values)):
            if not np.isfinite(values[s]):
                continue
            stack, k = int(result.stack_index[s]), int(result.slice_index[s])
            gid = f"cell-{s}"
            verdict = ", rejected" if result.rejected[s] else ""
            titles[gid] = f"{result.stack_names[stack]}, slice {k}: {title} {values[s]:.3f}{verdict}"
            axis.add_patch(
                Rectangle((k - 0.5, stack - 0.4), 0.94, 0.8, linewidth=0, gid=gid, facecolor=colours.to_rgba(values[s]))
            )
        bad = result.rejected
        axis.plot(
            result.slice_index[bad],
            result.stack_index[bad],
            linestyle="none",
            marker="x",
            markersize=3.4,
            color="#ff5c4d",
            markeredgewidth=1.1,
        )
        axis.set(
            xlim=(-1, max([*result.slice_index, 1]) + 1),
            ylim=(count - 0.4, -0.6),
            xlabel="slice",
            yticks=range(count),
            yticklabels=result.stack_names,
        )
        axis.xaxis.get_major_locator().set_params(integer=True)  # type: ignore[call-arg]
        axis.spines[["left", "bottom"]].set_visible(False)
        axis.tick_params(length=0)
        bar = figure.colorbar(colours, ax=axis, aspect=14, pad=0.02)
        bar.outline.set_visible(False)
        bar.set_label(title)
        return svg_bytes(figure, titles)


def similarity_dots(result: SvrResult) -> bytes:
    """Draw the similarity of every slice, one row per stack, with the medians; dots of rejected slices are hollow."""
    count = len(result.stack_names)
    titles = {}
    with house_style("similarity"):
        figure = new_figure(4.9, 0.75 + 0.26 * count)
        axis = figure.subplots()
        finite = np.isfinite(result.ncc)
        for s in np.flatnonzero(finite):
            stack, k = int(result.stack_index[s]), int(result.slice_index[s])
            # A fixed scatter by slice index keeps equal values apart.
            y = stack + 0.26 * np.sin(2.4 * k)
            gid = f"dot-{s}"
            titles[gid] = f"{result.stack_names[stack]}, slice {k}: {result.ncc[s]:.3f}"
            axis.plot(
                result.ncc[s],
                y,
                marker="o",
                markersize=3.2,
                color=PALETTE.first,
                linestyle="none",
                markerfacecolor="none" if result.rejected[s] else PALETTE.first,
                markeredgewidth=0.8,
                alpha=1.0 if result.rejected[s] else 0.6,
                gid=gid,
            )
        for stack in range(count):
            mine = finite & (result.stack_index == stack)
            if mine.any():
                axis.vlines(np.median(result.ncc[mine]), stack - 0.38, stack + 0.38, color=PALETTE.second, linewidth=2)
        low = min([0.5, *result.ncc[finite]])
        axis.set(
            xlim=(low - 0.02, 1.0),
            ylim=(count - 0.45, -0.55),
            yticks=range(count),
            yticklabels=result.stack_names,
            xlabel="similarity (NCC)",
        )
        axis.grid(visible=False, axis="y")
        axis.spines["left"].set_visible(False)
        axis.tick_params(axis="y", length=0)
        return svg_bytes(figure, titles)


def convergence(history: dict) -> bytes:
    """Draw the losses of the fitted and of the held-out pixels against the iteration.

    Parameters
    ----------
    history : dict of str to list
        Columns ``iteration`` (optional), ``loss`` and ``held_out`` (optional; entries may be None).

    Returns
    -------
    bytes
        SVG.
    """
    columns = {
        name: np.array([np.nan if v is None else v for v in history[name]], float)
        for name in ("iteration", "loss", "held_out")
        if history.get(name)
    }
    curves = [("fitted pixels", "loss", PALETTE.first, "-"), ("held-out pixels", "held_out", PALETTE.second, "--")]
    with house_style("convergence"):
        figure = new_figure(6.6, 2.5)
        axis = figure.subplots()
        for label, name, colour, dashes in curves:
            if name not in columns:
                continue
            y = columns[name]
            x = columns.get("iteration", np.arange(len(y)))[: len(y)]
            shown = np.isfinite(y)
            axis.plot(x[shown], y[: len(x)][shown], color=colour, linestyle=dashes, label=label)
        values = np.concatenate([np.ones(1), *(columns.get(name, []) for _, name, _, _ in curves)])
        if (values[np.isfinite(values)] > 0).all():
            axis.set_yscale("log")
            # Plain numbers: the default formatter of logarithmic axes writes mathtext.
            axis.yaxis.set_major_formatter("{x:g}")
            axis.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
        axis.set(xlabel="iteration", ylabel="loss")
        axis.legend(frameon=False, fontsize=8)
        return svg_bytes(figure)
