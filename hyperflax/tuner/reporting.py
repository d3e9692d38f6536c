"""The three files of every report: report.json for programs, report.md for people, report.png beside it.

>>> write_report("reports/table", told, markdown(told), draw)
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hyperflax.files import atomic_file
from hyperflax.json_files import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

REPORT = "report.json"


def write_report(
    folder: pathlib.Path | str,
    told: Mapping[str, Any],
    text: str,
    draw: Callable[[Mapping[str, Any], pathlib.Path], None],
) -> None:
    """Writes report.json, report.md and report.png; `draw` makes a picture of what is told at the path it is given."""
    folder = pathlib.Path(folder)
    write_json(folder / REPORT, told)
    with atomic_file(folder / "report.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    draw(told, folder / "report.png")


def save_png(figure: Figure, path: pathlib.Path) -> None:
    """Writes a figure; whoever looks sees the old picture or the new one."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with atomic_file(path) as temporary:
        FigureCanvasAgg(figure).print_png(temporary)
