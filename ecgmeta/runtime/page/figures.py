"""What every picture shares: the palette, the matplotlib settings and the way into a page.

Pictures become SVG inside a ``data:`` address: crisp at any zoom and in print, self-contained, and each in its
own document, so that the ids of one cannot meet those of another.
"""

from __future__ import annotations

import base64
import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe & Ito, "Color Universal Design" (2008), without yellow, which is too faint on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
DASHES = ("-", "--", "-.", ":")  # a second cue beside colour
INK, FAINT = "#1f2933", "#8a949e"
FONTS = "system-ui,-apple-system,'Segoe UI',Roboto,'Helvetica Neue',Arial,sans-serif"
MM_PER_INCH = 25.4

_RC: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "ecgmeta",  # ids from content, so that the same content gives the same bytes
    "text.parse_math": False,  # a name such as "$x" is text, not mathematics
    "axes.unicode_minus": True,
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "grid.color": "#e4e8ec",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "lines.linewidth": 1.5,
    "path.simplify": True,
}


@contextmanager
def style() -> Iterator[None]:
    """The house's matplotlib settings, for making *and* saving a figure; the user's own come back afterwards."""
    from matplotlib import rc_context, rcdefaults, rcParams

    with rc_context(), warnings.catch_warnings():
        rcdefaults()
        # Names in any script: the browser has the glyphs that matplotlib's own font lacks.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        rcParams.update(_RC)
        yield


def clean(text: str) -> str:
    """Text that XML can carry: control characters become spaces."""
    return re.sub(r"[\x00-\x08\x0b-\x1f\x7f\ufffe\uffff\ud800-\udfff]", " ", text)


def legend_name(text: str) -> str:
    """Text for a legend: matplotlib hides names that begin with an underscore, a space of no width shows them."""
    return "\u200b" + clean(text) if text.startswith("_") else clean(text)


def svg(figure: Figure) -> str:
    """The figure as an SVG document, the same bytes for the same figure.

    Coordinates keep two decimals (0.01 pt = 3.5 µm on paper), which halves the size of a 12-lead picture.
    """
    buffer = io.StringIO()
    with style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = re.sub(r' d="([^"]*)"', lambda m: f' d="{_shorten(m[1])}"', text)
    return re.sub(r"(font: [^'\";]*?)'DejaVu Sans'[^;\"]*", rf"\1{FONTS}", text)


def _shorten(path: str) -> str:
    short = re.sub(r"\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}".rstrip("0").rstrip("."), path)
    return short.replace("\n", "")


def data_uri(figure: Figure) -> str:
    """The figure as the address of an ``<img>``."""
    return "data:image/svg+xml;base64," + base64.b64encode(svg(figure).encode()).decode()
