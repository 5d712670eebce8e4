"""What pictures have in common: the sheet, its colours and titles, and the file. Called by `picture` and `spread_picture`.

Needs matplotlib, the extra `pictures`, which is loaded when a picture is asked for. The same figure gives the same SVG bytes.
"""

from __future__ import annotations

import io
import os
from html import escape
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from reconciler.ports import TerminalError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette: told apart by colour-blind eyes too. Releases also differ by hatch, so that print in grey will do.
RELEASES = ("#0072B2", "#E69F00", "#CC79A7", "#56B4E9", "#F0E442")
HATCHES = ("", "//", "..", "xx", "--")
BEFORE, OPEN, INK, FAINT = "#dfe4e9", "#cfe3f1", "#22303c", "#6b7885"
SOAKS, WAITS, FAILED, UNRESOLVED, ROLLS = "#009E73", "#9aa5b1", "#D55E00", "#E69F00", "#a9cbe4"
WIDTH = 12.0
"""Inches of a picture."""
_STYLE = "@media (prefers-color-scheme: dark) { svg { filter: invert(0.9) hue-rotate(180deg) } }"


def canvas(height: float, columns: int = 1) -> tuple[Figure, Any]:
    """An empty sheet with so many axes beside each other; `height` in inches. TerminalError: matplotlib is not installed."""
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise TerminalError(
            "matplotlib is not installed",
            needed_for="pictures",
            remedy="install reconciler[pictures], or ask for text or JSON",
        ) from None
    mpl.rcParams["svg.hashsalt"] = "reconciler"
    mpl.rcParams["svg.fonttype"] = "none"
    figure = Figure(figsize=(WIDTH, min(height, 40)), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def titles(figure: Figure, axes: Axes, title: str, subtitle: str, pad: int) -> None:
    """The title of the sheet, and what stands beneath it; `pad` is the room above the axes, in points."""
    wide = 165 if pad > 6 else 75
    figure.suptitle(
        fill(title, 105), x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK, parse_math=False
    )  # fmt: skip
    axes.set_title(fill(subtitle, wide), loc="left", fontsize=9, color=FAINT, pad=pad, parse_math=False)


def save(figure: Figure, path: Path, title: str, description: str) -> None:
    """Write an SVG or a PNG, by the file's ending. TerminalError: another ending, or it cannot be written.

    An SVG says in words what it shows, and follows a reader's dark colours.
    """
    kind = path.suffix.lower().lstrip(".")
    if kind not in ("svg", "png"):
        raise TerminalError(f"{path} is neither .svg nor .png", needed_for="the picture", remedy="name it so")
    # No date, no version and fixed identifiers: the same run is the same file.
    nothing = ("Date", "Creator", "Format", "Type") if kind == "svg" else ("Software",)
    metadata: dict[str, Any] = dict.fromkeys(nothing)
    made = io.BytesIO()
    figure.savefig(made, format=kind, metadata=metadata, dpi=144)
    data = made.getvalue() if kind == "png" else _in_words(made.getvalue().decode(), title, description).encode()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TerminalError(f"{path} cannot be written ({error.strerror})", needed_for="the picture") from None


def _in_words(svg: str, title: str, description: str) -> str:
    """The SVG alone, without a document type, with a title, a description and a style for dark screens."""
    svg = svg[svg.index("<svg ") :]
    at = svg.index(">") + 1
    words = f"\n <title>{escape(title)}</title>\n <desc>{escape(description)}</desc>\n <style>{_STYLE}</style>"
    return "\n".join(line.rstrip() for line in (svg[:at] + words + svg[at:]).splitlines()) + "\n"
