"""The report of continual learning as a folder, and its tables by name.

OUT/rows.jsonl, sequences.jsonl, boundaries.jsonl     what was found (`iclm.studies.continual.results`)
OUT/summary.json                                      all metrics and matrices
OUT/tables.md                                         all tables, each under its name
OUT/*.png                                             plots (`iclm.report.continual_plots`)

    SEQUENCE/metrics               methods × metrics of their mixture (of plain LoRA: of its one module)
    SEQUENCE/modules               the same of mixture, oracle, invariant and own modules (of tasks that opened one)
    SEQUENCE/matrix/ORDER/METHOD   the accuracy matrix of a mixture
    SEQUENCE/thresholds            what each margin calls new, and what it opens

Where boundaries are unknown a method's name says so. A figure is the mean over seeds, that of a metric with Student's 95%
interval; of one seed there is no interval.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from iclm.data.files import atomic_write
from iclm.errors import ConfigurationError
from iclm.report.blocks import CONTINUAL, check_files, put_plots, read_markdown, with_blocks
from iclm.report.continual_plots import write_plots
from iclm.report.study_cells import NONE, Grid
from iclm.studies.continual.results import SIGNED, Found, lines_of

SUMMARY, TABLES = "summary.json", "tables.md"
METRICS = {
    "average": "average accuracy",
    "learned": "when learned",
    "backward": "backward transfer",
    "forward": "forward transfer",
    "forgetting": "forgetting",
    "area": "learning curve area",
}


def name_of(entry: dict[str, Any]) -> str:
    """A method as it stands in a table."""
    return entry["method"] + (", boundaries unknown" if entry["boundaries"] == "unknown" else "")


def grids(summary: dict[str, Any]) -> list[Grid]:
    """All tables of a summary."""
    found = []
    for sequence in dict.fromkeys(entry["sequence"] for part in ("metrics", "boundaries") for entry in summary[part]):
        metrics = list(lines_of(summary, "metrics", sequence))
        if metrics:
            found += [_metrics(sequence, metrics, summary), _modules(sequence, metrics)]
            differences = list(lines_of(summary, "differences", sequence))
            found += [_differences(sequence, differences)] if differences else []
        for entry in lines_of(summary, "matrices", sequence):
            if entry["module"] == "mixture" and entry["kind"] == "sequence":
                found.append(_matrix(sequence, entry))
        thresholds = list(lines_of(summary, "boundaries", sequence))
        if thresholds:
            found.append(_thresholds(sequence, thresholds))
    return found


def _cell(name: str, figure: dict[str, Any] | None) -> str:
    """A figure with its interval; differences have a sign."""
    if figure is None:
        return NONE
    sign = "+" if name in SIGNED else ""
    ends = "" if figure["low"] is None else f" [{figure['low']:{sign}.2f} {figure['high']:{sign}.2f}]"
    return f"{figure['mean']:{sign}.3f}{ends}"


def _rows(entries: Iterable[dict[str, Any]], first: list[str], series: bool) -> list[list[str]]:
    rows = []
    for entry in entries:
        head = [entry["order"], name_of(entry), *([_module(entry)] if series else [])]
        rows.append([*head[: len(first)], *(_cell(name, entry[name]) for name in METRICS), str(entry["seeds"])])
    return rows


def _module(entry: dict[str, Any]) -> str:
    """A series of modules, with how many tasks it is of where that is not all of them."""
    count, counted = len(entry["tasks"]), sorted(set(entry.get("counted", ())))
    some = counted not in ([], [count])
    return entry["module"] + (f" ({' or '.join(map(str, counted))} of {count} tasks)" if some else "")


def _metrics(sequence: str, entries: list[dict[str, Any]], summary: dict[str, Any]) -> Grid:
    costs = {(c["order"], c["boundaries"], c["method"]): c for c in lines_of(summary, "costs", sequence)}
    main = [entry for entry in entries if entry["module"] == "mixture"]
    rows = _rows(main, ["order", "method"], False)
    for row, entry in zip(rows, main, strict=True):
        cost = costs[entry["order"], entry["boundaries"], entry["method"]]
        opened = sorted(set(cost["opened"]))
        count = NONE if not opened or opened == [0] else " or ".join(map(str, opened))
        whole, steps = (NONE if cost[name] is None else f"{cost[name]:,}" for name in ("parameters", "steps_a_task"))
        row += [count, f"{cost['added_a_task']:,}", whole, steps, f"{cost['seconds_a_task']:.0f}"]
    columns = ["seeds", "modules opened", "parameters added a task", "trained parameters in all", "steps a task"]
    columns.append("seconds a task")
    header = ["order", "method", *METRICS.values(), *columns]
    return Grid(f"{sequence}/metrics", f"{len(main[0]['tasks'])} tasks, metrics of the mixture", header, rows, 2)


def _modules(sequence: str, entries: list[dict[str, Any]]) -> Grid:
    chosen = [entry for entry in entries if entry["kind"] == "sequence"]
    header = ["order", "method", "module", *METRICS.values(), "seeds"]
    return Grid(f"{sequence}/modules", "metrics by module", header, _rows(chosen, ["", "", ""], True), 3)


def _differences(sequence: str, entries: list[dict[str, Any]]) -> Grid:
    header = ["order", "method", "against", *METRICS.values(), "seeds"]
    rows = []
    for entry in entries:
        figures = [_cell(SIGNED[0], entry[name]) for name in METRICS]
        rows.append([entry["order"], name_of(entry), entry["against"], *figures, str(entry["seeds"])])
    return Grid(
        f"{sequence}/differences", "metrics of the mixture less those of another method, by seed", header, rows, 3
    )


def _matrix(sequence: str, entry: dict[str, Any]) -> Grid:
    name = f"{sequence}/matrix/{entry['order']}/{entry['method']}" + (
        "/unknown" if entry["boundaries"] == "unknown" else ""
    )
    rows = [
        [through, *(NONE if value is None else f"{value:.2f}" for value in values)]
        for through, values in zip(["before the first", *entry["tasks"]], entry["values"], strict=True)
    ]
    title = "accuracy of the mixture on each task (columns) after each task (rows)"
    return Grid(name, title, ["after", *entry["tasks"]], rows)


def _thresholds(sequence: str, entries: list[dict[str, Any]]) -> Grid:
    rows = [
        [
            f"{entry['margin']:g}",
            *(NONE if entry[name] is None else f"{entry[name]:.3f}" for name in ("new_before", "new_after")),
            f"{entry['right']} of {entry['streams']}",
            *(NONE if entry["extra"] is None else [f"{entry['extra']:+.1f}"]),
            *(NONE if entry["rand"] is None else [f"{entry['rand']:.2f}"]),
        ]
        for entry in entries
    ]
    header = [
        "margin",
        "new before it was learned",
        "new after",
        "right number opened",
        "modules too many",
        "Rand index",
    ]
    return Grid(
        f"{sequence}/thresholds", "share of prompts called new, and streams of unknown boundaries", header, rows
    )


def texts(summary: dict[str, Any]) -> dict[str, str]:
    """All tables as Markdown by name."""
    return {grid.name: grid.markdown() for grid in grids(summary)}


def check_out(found: Found, out: Path, *, overwrite: bool) -> None:
    """Raise `ConfigurationError` if a report cannot be written to a folder; changes nothing."""
    check_files((*found.files(), SUMMARY, TABLES), out, overwrite=overwrite)


def write_report(found: Found, summary: dict[str, Any], out: Path, *, overwrite: bool = False) -> None:
    """Write a report to a folder, made if need be; each file appears whole.

    Raises:
        ConfigurationError: a file exists and is not to be replaced, or cannot be written.
    """
    check_out(found, out, overwrite=overwrite)
    tables = "\n".join(
        [
            "# Tables of continual learning\n",
            *(f"## {g.name}\n\n{g.title[:1].upper()}{g.title[1:]}\n\n{g.markdown()}" for g in grids(summary)),
        ]
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        folder = tempfile.TemporaryDirectory(prefix=".iclm-", dir=out)
    except OSError as error:
        raise ConfigurationError(f"cannot write {out}: {error.strerror}") from error
    with folder as made:
        write_plots(summary, Path(made))
        plots = sorted(path.name for path in Path(made).glob("*.png"))
        whole = json.dumps({**summary, "plots": plots}, indent=1, allow_nan=False) + "\n"
        put_plots(Path(made), out, out / SUMMARY, overwrite=overwrite)
    for name, text in {**found.files(), SUMMARY: whole, TABLES: tables}.items():
        with atomic_write(out / name, overwrite=overwrite) as stream:
            stream.write(text)


def check_blocks(summary: dict[str, Any], files: Iterable[Path]) -> dict[Path, str]:
    """The text that each Markdown file is to have: its blocks replaced by the tables of their names.

    Raises:
        ConfigurationError: a file that cannot be read or has no block, a block of an unknown name or one that is not closed.
    """
    known = texts(summary)
    return {path: with_blocks(read_markdown(path, CONTINUAL), known, path, CONTINUAL) for path in files}


def write_blocks(summary: dict[str, Any], files: Iterable[Path]) -> None:
    """Replace the blocks of Markdown files by the tables of their names: in all files, or on a fault in none."""
    for path, text in check_blocks(summary, files).items():
        with atomic_write(path, overwrite=True) as stream:
            stream.write(text)
