# SPDX-License-Identifier: Apache-2.0
"""Style of the curves: colours for light and dark pages, and SVG that can be embedded in a page."""

import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class Palette:
    """Colours of the figures on a light page; :func:`inline_svg` replaces them by the CSS variables of the page.

    ``first``, ``second`` and ``third`` can be distinguished with any of the usual colour deficiencies,
    and are drawn with different dashes or markers as well.
    """

    ink: str = "#1d2733"
    muted: str = "#5c6875"
    grid: str = "#dde2e8"
    first: str = "#0b63b0"
    second: str = "#c04d00"
    third: str = "#0a7d63"


PALETTE = Palette()

_SETTINGS = {
    "svg.fonttype": "none",
    "font.size": 8,
    "font.family": "sans-serif",
    "text.parse_math": False,
    "text.color": PALETTE.ink,
    "axes.labelcolor": PALETTE.ink,
    "axes.edgecolor": PALETTE.muted,
    "xtick.color": PALETTE.muted,
    "ytick.color": PALETTE.muted,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "grid.color": PALETTE.grid,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "lines.linewidth": 1.3,
    "axes.unicode_minus": True,
    "axes.formatter.useoffset": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


@contextmanager
def house_style(key: str) -> Iterator[None]:
    """Set the options of matplotlib while one figure is made; ``key`` makes its ids the same in every run."""
    import matplotlib

    with matplotlib.rc_context({**_SETTINGS, "svg.hashsalt": key}):  # type: ignore[dict-item]
        yield


def new_figure(width: float, height: float) -> "Figure":
    """Make a figure without a window or global state, its size in inches (72 units of the SVG each)."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def svg_bytes(figure: "Figure", titles: dict[str, str] | None = None) -> bytes:
    """Return a figure as SVG, the same bytes for the same figure.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    titles : dict of str to str, optional
        Tooltip of an element by its gid.
    """
    file = io.BytesIO()
    figure.savefig(file, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = file.getvalue().decode()

    def add_title(match: re.Match[str]) -> str:
        title = (titles or {}).get(html.unescape(match[1]))
        return match[0] if title is None else f"{match[0]}<title>{html.escape(title)}</title>"

    return re.sub(r'<g id="([^"]*)">', add_title, text).encode()


def inline_svg(svg: bytes, key: str, label: str) -> str:
    """Return an SVG as an element of a page: with unique ids, the colours of the page and a text alternative.

    Parameters
    ----------
    svg : bytes
        From :func:`svg_bytes`.
    key : str
        Prefix that distinguishes the ids of this figure from those of the others on the page.
    label : str
        Text alternative.
    """
    text = svg.decode()
    text = text[text.index("<svg") :]
    # A style element would hold for the whole page; report.css says the same for these figures alone.
    text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{key}-", text)
    text = text.replace("xlink:href", "href")
    text = re.sub(r"\n\s*", "\n", text)
    for name, colour in vars(PALETTE).items():
        text = re.sub(rf"(stroke|fill): {colour}", rf"\1: var(--{name})", text)
    size = re.search(r'viewBox="[^"]*"', text)[0]  # type: ignore[index]
    opening = f'<svg {size} role="img" aria-label="{html.escape(label)}">'
    return opening + text[text.index(">") + 1 :]
