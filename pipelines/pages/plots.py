"""Checks for plots that are written to files."""

from __future__ import annotations

from pathlib import Path


def check_plot(path: Path) -> None:
    """Reject a file type that matplotlib cannot write, before the work is done.

    Raises:
        ValueError: matplotlib does not know the file's type.
    """
    from matplotlib.backend_bases import FigureCanvasBase

    known = sorted(FigureCanvasBase.get_supported_filetypes())
    if path.suffix.removeprefix(".").lower() not in known:
        raise ValueError(f"plot {str(path)!r}: give a file of one of the types {', '.join(known)}")
