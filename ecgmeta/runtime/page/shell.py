"""One page, one file: the template filled, its pictures inside, written whole or not at all."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ecgmeta.runtime.errors import InputError
from ecgmeta.runtime.files import PART
from ecgmeta.runtime.page.charts import Curve, Histogram, histogram_figure, line_figure
from ecgmeta.runtime.page.figures import MM_PER_INCH, data_uri


@dataclass(frozen=True)
class Picture:
    """An image of the page: `alt` for who cannot see it, `width` in mm at 100 %."""

    address: str
    alt: str
    width: float
    title: str = ""
    caption: str = ""


def fill(package: str, template: str, **values: Any) -> str:
    """A template of a package, or one beside this file, filled. Every text is escaped."""
    from jinja2 import Environment, FunctionLoader, StrictUndefined

    def load(name: str) -> str:
        files = (resources.files(home).joinpath(name) for home in (package, __package__))
        return next(file for file in files if file.is_file()).read_text("utf-8")

    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=FunctionLoader(load),
    )
    environment.filters.update(number=_number, thousands=thousands)
    text = environment.get_template(template).render(**values)
    # File names may hold bytes that are not text; a page must still be UTF-8.
    return text.encode("utf-8", "replace").decode("utf-8")


def write_page(text: str, path: str | Path) -> Path:
    """A page into a file, all or nothing: an earlier report stays until the new one is complete.

    Raises:
        InputError: the folder does not exist or cannot be written.
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(path, "report", "no such folder", "an existing folder")
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=PART)
    except OSError as error:
        raise InputError(path, "report", error.strerror, "a folder that can be written") from error
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(name, 0o666 & ~umask)  # mkstemp makes files for the owner's eyes only; reports are shared
        os.replace(name, path)
    except BaseException as error:
        Path(name).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise InputError(path, "report", error.strerror, "a file that can be written") from error
        raise
    return path


def as_curve(curve: Curve) -> Picture:
    """Lines as an image of the page; what is not drawn is said."""
    ends = []
    for name, (_, y) in curve.series.items():
        finite = [value for value in y if math.isfinite(value)]
        ends.append(
            f"{name} from {finite[0]:.3g} to {finite[-1]:.3g}" if finite else f"{name} without values"
        )
    shown = [
        f"{name}: {_lost(y, curve.log_y)}" for name, (_, y) in curve.series.items() if _lost(y, curve.log_y)
    ]
    caption = " ".join(filter(None, [curve.caption, "Not drawn: " + "; ".join(shown) + "." if shown else ""]))
    alt = f"{curve.title}: {curve.y_label} over {curve.x_label}; " + ", ".join(ends) + "."
    return as_picture(line_figure(curve), alt, curve.title, caption)


def _lost(y: Sequence[float], log_y: bool) -> str:
    broken = sum(not math.isfinite(value) for value in y)
    flat = sum(math.isfinite(value) and value <= 0 for value in y) if log_y else 0
    parts = [f"{broken} of {len(y)} points not finite"] if broken else []
    return ", ".join(
        parts + ([f"{flat} of {len(y)} points not above 0 on a logarithmic scale"] if flat else [])
    )


def as_histogram(histogram: Histogram) -> Picture:
    """A distribution as an image of the page."""
    said = f"{histogram.title}: distribution of {histogram.x_label} for {', '.join(histogram.series)}."
    return as_picture(histogram_figure(histogram), said, histogram.title, histogram.caption)


def as_picture(figure: Any, alt: str, title: str = "", caption: str = "") -> Picture:
    """A figure as an image of the page."""
    width = round(figure.get_figwidth() * MM_PER_INCH, 2)
    return Picture(data_uri(figure), " ".join(alt.split()), width, title, caption)


def _number(value: float | str | None) -> str:
    """Text as it is, numbers to four digits, a dash for none."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "—"
    return value if isinstance(value, str) else f"{value:.4g}".replace("-", "−")


def thousands(value: float) -> str:
    return f"{value:,}"
