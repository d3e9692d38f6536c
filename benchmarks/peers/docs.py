"""docs/peers.md: the part between two marks is written anew from the results, and its picture beside it."""

from __future__ import annotations

import pathlib
import re

from benchmarks.peers.pictures import write_picture
from benchmarks.peers.results import FOLDER, read_results, rendered
from hyperflax.files import atomic_file

PAGE = pathlib.Path(__file__).resolve().parents[2] / "docs" / "peers.md"
BEGIN, END = "<!-- written by python -m benchmarks.peers -->\n", "<!-- end -->\n"
NOTHING = "There are no results yet.\n"


def section(folder: pathlib.Path = FOLDER) -> str:
    """Returns what stands between the marks."""
    results = read_results(folder)
    return f"![Ratios and curves](peers.svg)\n\n{rendered(results)}\n" if results else NOTHING


def write_docs(folder: pathlib.Path = FOLDER, page: pathlib.Path = PAGE) -> None:
    """Writes the part of the page, and the picture."""
    if results := read_results(folder):
        write_picture(page.with_name("peers.svg"), results)
    before, rest = page.read_text("utf-8").split(BEGIN)
    _, after = rest.split(END)
    with atomic_file(page) as temporary:
        temporary.write_text(before + BEGIN + section(folder) + END + after, encoding="utf-8")


def shown(page: pathlib.Path = PAGE) -> str:
    """Returns what stands between the marks now."""
    found = re.search(f"{re.escape(BEGIN)}(.*?){re.escape(END)}", page.read_text("utf-8"), re.DOTALL)
    return found.group(1) if found else ""
