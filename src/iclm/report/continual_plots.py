"""Plots of continual learning as PNG files; colours and marks are those of `iclm.report.plots`.

matrix-SEQUENCE-ORDER-METHOD.png    the accuracy matrix of the mixture as a heat map
tasks-SEQUENCE-ORDER.png            accuracy on each task over time, a panel a method
thresholds-SEQUENCE.png             share of new and of known prompts that are called new, by margin
opened-SEQUENCE.png                 modules opened by margin, beside the number of tasks
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from iclm.report.plots import COLOURS, DOTS_PER_INCH, MARKS, empty_figure, heat_map, short, ticks


def write_plots(summary: dict[str, Any], folder: Path) -> list[Path]:
    """Draw every plot for which there are figures.

    Args:
        summary: what `iclm.studies.continual.results.summarise` found.
        folder: an existing folder.

    Returns:
        The files written.
    """
    figures: dict[str, Any] = {}
    mixtures = [m for m in summary["matrices"] if m["module"] == "mixture" and m["kind"] == "sequence"]
    for entry in mixtures:
        name = f"{entry['sequence']}-{entry['order']}-{entry['method']}"
        figures[f"matrix-{name}" + ("-unknown" if entry["boundaries"] == "unknown" else "")] = plot_matrix(entry)
    for sequence, order in dict.fromkeys((m["sequence"], m["order"]) for m in mixtures):
        here = [m for m in mixtures if (m["sequence"], m["order"]) == (sequence, order)]
        figures[f"tasks-{sequence}-{order}"] = plot_tasks(here)
    for sequence in dict.fromkeys(entry["sequence"] for entry in summary["boundaries"]):
        here = [entry for entry in summary["boundaries"] if entry["sequence"] == sequence]
        figures[f"thresholds-{sequence}"] = plot_thresholds(here)
        figures[f"opened-{sequence}"] = plot_opened(here)
    written = []
    for name, figure in figures.items():
        path = folder / (re.sub(r"[^\w.-]", "_", name) + ".png")
        figure.savefig(path, dpi=DOTS_PER_INCH)
        written.append(path)
    return written


def _title(entry: dict[str, Any]) -> str:
    return entry["method"] + (", boundaries unknown" if entry["boundaries"] == "unknown" else "")


def plot_matrix(entry: dict[str, Any]) -> Any:
    """Heat map of an accuracy matrix: tasks across, what was learned down."""
    values = [[math.nan if value is None else value for value in row] for row in entry["values"]]
    count = len(entry["tasks"])
    figure = empty_figure(max(0.75 * count, 3.2) + 2.6, max(0.45 * count, 2.0) + 2.0)
    axes = figure.subplots()
    image = heat_map(axes, values, [["" if math.isnan(v) else f"{v:.2f}" for v in row] for row in values], 1.0)
    ticks(axes, entry["tasks"], ["before the first", *entry["tasks"]], max(0.75 * count, 3.2))
    axes.set_xlabel("task asked")
    axes.set_ylabel("last task learned")
    seeds = "one seed" if entry["seeds"] == 1 else f"mean of {entry['seeds']} seeds"
    axes.set_title(f"{_title(entry)}: accuracy of the mixture\n({seeds})", fontsize=11)
    figure.colorbar(image, ax=axes, label="accuracy (share of right answers)")
    return figure


def plot_tasks(entries: list[dict[str, Any]]) -> Any:
    """Accuracy on each task over the course of the sequence, a panel a method; a ring where the task was learned."""
    tasks = entries[0]["tasks"]
    columns = min(len(entries), 3)
    rows = math.ceil(len(entries) / columns)
    width = 1.2 + 3.2 * columns
    names = [short(task) for task in tasks]
    across = max(1, min(len(tasks), int(width / (0.5 + 0.075 * max(map(len, names))))))
    figure = empty_figure(width, 1.6 + 2.4 * rows + 0.18 * math.ceil(len(tasks) / across))
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for axes in panels.flat[len(entries) :]:
        axes.set_visible(False)
    for axes, entry in zip(panels.flat, entries, strict=False):
        for number in range(len(tasks)):
            values = [math.nan if row[number] is None else row[number] for row in entry["values"]]
            style = {"color": COLOURS[number % len(COLOURS)], "marker": MARKS[number // len(COLOURS) % len(MARKS)]}
            axes.plot(range(len(values)), values, markersize=4, label=names[number], **style)
            axes.scatter([number + 1], [values[number + 1]], s=90, facecolors="none", edgecolors=style["color"])
        axes.set_title(_title(entry), fontsize=10)
        axes.set_ylim(-0.02, 1.02)
        axes.set_xticks(range(len(tasks) + 1))
        axes.grid(alpha=0.3)
    for axes in panels[-1]:
        axes.set_xlabel("tasks learned (ring: this one was)")
    figure.supylabel("accuracy of the mixture", fontsize=10)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=across, fontsize=8, frameon=False)
    return figure


def _margins(axes: Any, entries: list[dict[str, Any]]) -> None:
    """The margins along the horizontal axis."""
    axes.set_xscale("log")
    axes.minorticks_off()
    axes.set_xticks([entry["margin"] for entry in entries], [f"{entry['margin']:g}" for entry in entries])


def plot_thresholds(entries: list[dict[str, Any]]) -> Any:
    """The calibration curve of the threshold: what is called new by margin."""
    figure = empty_figure(6.4, 4.2)
    axes = figure.subplots()
    for number, (name, label) in enumerate(
        {
            "new_before": "a task that was not learned yet (1 is right)",
            "new_after": "a task that was learned (0 is right)",
        }.items()
    ):
        found = [(entry["margin"], entry[name]) for entry in entries if entry[name] is not None]
        axes.plot(*zip(*found, strict=True), color=COLOURS[number], marker=MARKS[number], label=label)
    _margins(axes, entries)
    axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel("margin (threshold over the 95% quantile of a module's own errors)")
    axes.set_ylabel("share of prompts called new")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    axes.set_title("What the quantisation error calls new", fontsize=11)
    return figure


def plot_opened(entries: list[dict[str, Any]]) -> Any:
    """Modules that a stream of unknown boundaries opens, beyond the number of its tasks, by margin."""
    figure = empty_figure(6.4, 4.2)
    axes = figure.subplots()
    axes.axhline(0, color="grey", linestyle=":", linewidth=1)
    axes.plot([e["margin"] for e in entries], [e["extra"] for e in entries], color=COLOURS[0], marker=MARKS[0])
    for entry in entries:
        axes.annotate(
            f"{entry['right']}/{entry['streams']}",
            (entry["margin"], entry["extra"]),
            textcoords="offset points",
            xytext=(4, 6),
            fontsize=8,
        )
    _margins(axes, entries)
    axes.set_xlabel("margin")
    axes.set_ylabel("modules opened − tasks (mean)")
    axes.grid(alpha=0.3)
    axes.set_title(
        "Modules opened where boundaries are unknown\n(beside each point: streams with the right number)", fontsize=11
    )
    return figure
