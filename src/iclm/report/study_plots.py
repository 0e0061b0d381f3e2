"""Plots of a study as PNG files, one of each kind a data set; colours and marks are those of `iclm.report.plots`.

    accuracy-DATA.png     accuracy of every method on each test set, with intervals over seeds
    scatter-DATA.png      accuracy out of distribution by accuracy in distribution, a point a method
    ablations-DATA.png    what each ablation costs: its accuracy minus that of what it is an ablation of

DATA is the name of the data set, with -strict where the questions are strictly rendered, -mean where choices are scored by the mean
of their tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from iclm.report.plots import COLOURS, DOTS_PER_INCH, MARKS, empty_figure, short
from iclm.report.study_cells import names_of, way_of, ways_of_asking
from iclm.studies.study.groups import IN, MAIN, OUT
from iclm.studies.study.summary import AGAINST_WHOLE


def write_plots(summary: dict[str, Any], folder: Path) -> list[Path]:
    """Draw every plot for which there are figures.

    Args:
        summary: what `iclm.studies.study.groups.summarise` found.
        folder: an existing folder.

    Returns:
        The files written.
    """
    written = []
    for way in ways_of_asking(summary):
        part = {
            key: [entry for entry in summary[key] if way_of(entry) == way]
            for key in ("groups", "figures", "comparisons")
        }
        name, title = names_of(way)
        name = re.sub(r"[^\w.-]", "_", way[0]) + name.removeprefix(way[0]).replace("/", "-")
        drawn = {"accuracy": plot_accuracy, "scatter": plot_scatter, "ablations": plot_ablations}
        for kind, draw in drawn.items():
            figure = draw(part, title)
            if figure is not None:
                path = folder / f"{kind}-{name}.png"
                figure.savefig(path, dpi=DOTS_PER_INCH)
                written.append(path)
    return written


def _of(part: dict[str, Any], group: str) -> dict[str, dict[str, Any]]:
    """Figures of all methods on a group (all formats and kinds), by method."""
    return {
        f["method"]: f
        for f in part["figures"]
        if (f["group"], f["format"], f["kind"]) == (group, None, None) and f["module"] in MAIN
    }


def _bars(figures: list[dict[str, Any]]) -> list[list[float]]:
    """How far the interval of each figure reaches to either side; nothing where there is none."""
    ends = [(f["mean"], f["mean"]) if f["low"] is None else (f["low"], f["high"]) for f in figures]
    return [
        [max(f["mean"] - low, 0.0) for f, (low, _) in zip(figures, ends, strict=True)],
        [max(high - f["mean"], 0.0) for f, (_, high) in zip(figures, ends, strict=True)],
    ]


def _counted(name: str, entries: Iterable[dict[str, Any]]) -> str:
    """A method, or a difference of two, with the number of seeds that its figures are of; without where it has none."""
    seeds = {seed for entry in entries for seed in entry["seeds"] if seed is not None}
    return f"{short(name)} ({len(seeds)} seed{'' if len(seeds) == 1 else 's'})" if seeds else short(name)


def _places(axes: Any, names: list[str]) -> None:
    """Names down the vertical axis, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)


def plot_accuracy(part: dict[str, Any], title: str) -> Any:
    """Accuracy of every method on each test set with its interval; hollow where the test set is out of distribution."""
    groups = [g for g in part["groups"] if g["format"] is None and g["kind"] is None and g["group"] not in (IN, OUT)]
    methods = list(dict.fromkeys(f["method"] for f in part["figures"] if f["module"] in MAIN))
    figure = empty_figure(7.8, 2.0 + 0.3 * len(methods) + 0.12 * len(methods) * len(groups))
    axes = figure.subplots()
    for number, group in enumerate(groups):
        found = _of(part, group["group"])
        shift = 0.7 * ((number + 0.5) / len(groups) - 0.5)
        colour, mark = COLOURS[number % len(COLOURS)], MARKS[number // len(COLOURS) % len(MARKS)]
        figures = list(found.values())
        axes.errorbar(
            [f["mean"] for f in figures],
            [methods.index(method) + shift for method in found],
            xerr=_bars(figures),
            fmt=mark,
            color=colour,
            markerfacecolor="white" if group["shifted"] else colour,
            capsize=3,
            markersize=6,
            label=f"{group['group']}{', out of distribution' if group['shifted'] else ''} (n = {group['n']:,})",
        )
    shown = [f for f in part["figures"] if f["module"] in MAIN]
    _places(axes, [_counted(method, (f for f in shown if f["method"] == method)) for method in methods])
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("accuracy (share of right answers), mean over seeds with 95% interval")
    axes.set_ylabel("method")
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(f"Accuracy by test set: {title}", fontsize=11)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


def plot_scatter(part: dict[str, Any], title: str) -> Any:
    """Accuracy out of distribution by accuracy in distribution, a point a method; None where one of them is missing."""
    inside, outside = _of(part, IN), _of(part, OUT)
    methods = [method for method in inside if method in outside]
    if not methods:
        return None
    figure = empty_figure(7.8, max(5.2, 1.4 + 0.24 * len(methods)))
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="grey", linestyle=":", linewidth=1, label="as good as in distribution")
    for number, method in enumerate(methods):
        x, y = inside[method], outside[method]
        axes.errorbar(
            [x["mean"]],
            [y["mean"]],
            xerr=_bars([x]),
            yerr=_bars([y]),
            fmt=MARKS[number // len(COLOURS) % len(MARKS)],
            color=COLOURS[number % len(COLOURS)],
            capsize=3,
            markersize=6,
            label=_counted(method, [x, y]),
        )
    shown = [found[method] for found in (inside, outside) for method in methods]
    low = max(-0.02, min(f["mean"] if f["low"] is None else f["low"] for f in shown) - 0.05)
    high = min(1.02, max(f["mean"] if f["high"] is None else f["high"] for f in shown) + 0.05)
    axes.set_xlim(low, high)
    axes.set_ylim(low, high)
    axes.set_aspect("equal")
    axes.grid(alpha=0.3)
    axes.set_xlabel("accuracy in distribution")
    axes.set_ylabel("accuracy out of distribution")
    axes.set_title(f"In and out of distribution: {title}", fontsize=11)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    return figure


def plot_ablations(part: dict[str, Any], title: str) -> Any:
    """Accuracy of each ablation minus that of what it is an ablation of, in and out of distribution; None without one."""
    found = [
        one
        for one in part["comparisons"]
        if one["question"] == AGAINST_WHOLE
        and one["format"] is None
        and one["kind"] is None
        and one["group"] in (IN, OUT)
    ]
    if not found:
        return None
    names = list(dict.fromkeys((one["method"], one["against"]) for one in found))
    figure = empty_figure(7.8, 2.0 + 0.45 * len(names))
    axes = figure.subplots()
    axes.axvline(0, color="grey", linestyle=":", linewidth=1)
    for group, colour, mark, shift in ((IN, COLOURS[0], "o", -0.14), (OUT, COLOURS[5], "s", 0.14)):
        here = [one for one in found if one["group"] == group]
        if not here:
            continue
        values = [one["difference"] for one in here]
        axes.errorbar(
            values,
            [names.index((one["method"], one["against"])) + shift for one in here],
            xerr=[
                [max(value - one["low"], 0.0) for value, one in zip(values, here, strict=True)],
                [max(one["high"] - value, 0.0) for value, one in zip(values, here, strict=True)],
            ],
            fmt=mark,
            color=colour,
            capsize=3,
            markersize=6,
            label=f"{group} (n = {here[0]['n']:,})",
        )
    places = [[one for one in found if (one["method"], one["against"]) == pair] for pair in names]
    _places(axes, [_counted(" − ".join(pair), ones) for pair, ones in zip(names, places, strict=True)])
    axes.set_xlabel(
        "difference in accuracy; to the left: the ablation costs\n95% interval, with one seed over problems alone"
    )
    axes.set_ylabel("ablation")
    axes.grid(axis="x", alpha=0.3)
    axes.set_title(f"What each ablation costs: {title}", fontsize=11)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure
