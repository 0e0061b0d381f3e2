"""The validation of the independence estimators as tables, for the terminal and for docs/independence.md.

Three tables of the same rows: measures, losses, and the probe of leakage. A line is a distribution and a number of pairs,
a column an estimator; a cell is mean ± deviation of the estimates and, of a test, the share of rejections at 5%.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table

PAIRS = ("pairs", "d", "ρ", "MI", "n")
SHIFTS = ("domains", "d", "best", "n")
LABELS = {"ksg": "KSG", "ksg_pca": "KSG, 4 components", "hsic": "HSIC", "cka": "linear CKA"}


@dataclass(frozen=True)
class _Section:
    title: str
    header: list[str]
    lines: list[list[str]]


def estimators_table(rows: list[dict[str, Any]]) -> Table:
    """The rows of `iclm.studies.estimators.run` as tables for the terminal, one below the other."""
    grid = Table.grid()
    for section in _sections(rows):
        table = Table(title=section.title, title_justify="left")
        for name in section.header:
            table.add_column(name, justify="left" if name in ("pairs", "domains") else "right")
        for line in section.lines:
            table.add_row(*line)
        grid.add_row(table)
    return grid


def estimators_markdown(rows: list[dict[str, Any]]) -> str:
    """The rows of `iclm.studies.estimators.run` as Markdown: three tables, each below its title."""
    parts = []
    for section in _sections(rows):
        marks = [":--" if name in ("pairs", "domains") else "--:" for name in section.header]
        lines = [" | ".join(cells) for cells in (section.header, marks, *section.lines)]
        parts.append("\n".join([f"{section.title}:", "", *(f"| {line} |" for line in lines)]))
    return "\n\n".join(parts) + "\n"


def _sections(rows: list[dict[str, Any]]) -> list[_Section]:
    probe = [row for row in rows if row["estimator"] == "leakage"]
    measures = [row for row in rows if row["kind"] == "measure" and row["estimator"] != "leakage"]
    losses = [row for row in rows if row["kind"] == "loss"]
    found = (("Measures", PAIRS, measures), ("Losses", PAIRS, losses), ("Leakage", SHIFTS, probe))
    return [_pivot(title, head, chosen) for title, head, chosen in found if chosen]


def _pivot(title: str, head: tuple[str, ...], rows: list[dict[str, Any]]) -> _Section:
    """One line for each distribution and n, one column for each estimator, both in the order of the rows."""
    names = list(dict.fromkeys(row["estimator"] for row in rows))
    lines: dict[tuple[str, ...], dict[str, str]] = {}
    for row in rows:
        truth = "∞" if row["truth"] is None else _number(row["truth"], 2)
        known = [row["distribution"], str(row["dims"]), truth, str(row["n"])]
        if head is PAIRS:
            known.insert(2, _number(row["rho"], 2))
        lines.setdefault(tuple(known), {})[row["estimator"]] = _cell(row)
    header = [*head, *(LABELS.get(name, name.replace("_", "-")) for name in names)]
    return _Section(title, header, [[*key, *(cells.get(name, "–") for name in names)] for key, cells in lines.items()])


def _cell(row: dict[str, Any]) -> str:
    """For instance "0.251 ± 0.030, 100%"."""
    spread = "" if row["sd"] is None else f" ± {_number(row['sd'], 3)}"
    rejected = "" if row["rejected"] is None else f", {100 * row['rejected']:.0f}%"
    return f"{_number(row['mean'], 3)}{spread}{rejected}"


def _number(value: float, places: int) -> str:
    """A number without the sign of a zero that is only rounded."""
    shown = f"{value:.{places}f}"
    return shown.removeprefix("-") if float(shown) == 0 else shown
