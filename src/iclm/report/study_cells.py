"""A table of a study, what its cells say, and how the ways of asking are named."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from iclm.studies.study.rows import ROUTED

NONE = "–"


@dataclass(frozen=True)
class Grid:
    """A table.

    Attributes:
        name: that it is asked for by.
        title: of what it is, in a few words.
        header: of its columns.
        rows: its cells.
        left: how many columns are aligned to the left.
    """

    name: str
    title: str
    header: list[str]
    rows: list[list[str]]
    left: int = 1

    def markdown(self) -> str:
        """It as Markdown, each line with its end."""
        marks = [":--" if column < self.left else "--:" for column in range(len(self.header))]
        lines = (self.header, marks, *self.rows)
        return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n" for cells in lines)

    def terminal(self) -> Table:
        """It for the terminal."""
        table = Table(title=f"{self.name}: {self.title}", title_justify="left")
        for column, name in enumerate(self.header):
            table.add_column(name, justify="left" if column < self.left else "right")
        for cells in self.rows:
            table.add_row(*cells)
        return table


def share(figure: dict[str, Any] | None) -> str:
    """A mean with its interval, for instance "0.812 [0.790 0.834]"."""
    if figure is None:
        return NONE
    ends = "" if figure["low"] is None else f" [{figure['low']:.3f} {figure['high']:.3f}]"
    return f"{figure['mean']:.3f}{ends}"


def signed(value: float) -> str:
    """A difference with its sign; without one where it rounds to zero."""
    return f"{value:+.3f}" if round(value, 3) else "0.000"


def difference(one: dict[str, Any] | None) -> str:
    """A difference with its interval, for instance "+0.016 [-0.024 +0.058]"."""
    return NONE if one is None else f"{signed(one['difference'])} [{signed(one['low'])} {signed(one['high'])}]"


def probability(p: float) -> str:
    """A p-value with three decimals."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def module_label(module: str) -> str:
    """What a module's row says."""
    if module.startswith("domain_"):
        return f"domain module {module.removeprefix('domain_')} alone"
    labels = {
        "invariant": "invariant module alone",
        "oracle": "mixture, oracle routing",
        ROUTED: "routed domain module alone",
    }
    return labels.get(module, module)


def numbers(values: Iterable[int]) -> str:
    """Counts one after the other, for instance "2,442,240, 3,744,768"."""
    return ", ".join(f"{value:,}" for value in values)


def way_of(entry: dict[str, Any]) -> tuple[str, bool, str]:
    """Of which data set an entry of a summary is, whether strictly rendered, and how choices are scored."""
    return entry["data"], entry["strict"], entry["score"]


def ways_of_asking(summary: dict[str, Any]) -> list[tuple[str, bool, str]]:
    """Every data set in each way in which its questions are asked; figures of two of them are never pooled."""
    return list(dict.fromkeys(map(way_of, summary["groups"])))


def names_of(way: tuple[str, bool, str]) -> tuple[str, str]:
    """How names of tables begin, for instance "acre/strict", and what titles say."""
    data, strict, score = way
    name, title = data, data
    if strict:
        name, title = f"{name}/strict", f"{title}, strictly rendered"
    if score == "mean":
        name, title = f"{name}/mean", f"{title}, choices by the mean of their tokens"
    return name, title
