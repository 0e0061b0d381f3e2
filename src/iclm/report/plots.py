"""Plots of a diagnosis as PNG files: one function a plot, each from one section of the report.

    routing.png         route x true domain, counts
    features.png        the router's features in two dimensions, with its codes
    training.png        loss terms and router figures by step
    swap.png            accuracy with module j in the place of the router's choice i
    accuracy.png        accuracy of every module inside and outside the training distribution

matplotlib is imported when a plot is drawn, and only its Agg renderer: no window, no global state. Colours are those of
Okabe and Ito (2008), which people with any colour vision can tell apart; beyond eight, marks differ too. Heat maps are in
cividis (Nuñez et al. 2018).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
MARKS = "osD^vP*X"
DOTS_PER_INCH = 130
LONGEST = 24  # characters of a name on an axis
CHARACTER = 0.095  # inches, about

LANGUAGE = {"loss_lm": "mixture", "loss_invariant": "invariant module", "loss_domain": "domain modules"}
UNITS = {"plugin": "nats", "club": "nats", "infonce": "nats", "hsic": "0 to 1", "cross_correlation": "mean r²"}


def write_plots(report: dict[str, Any], folder: Path) -> list[Path]:
    """Draw every plot for which the report holds figures.

    Args:
        report: what `iclm.evaluation.diagnose.diagnose` measured.
        folder: an existing folder.

    Returns:
        The files written.
    """
    written = []
    for name in PLOTS:
        figure = drawn(name, report)
        if figure is not None:
            figure.savefig(folder / name, dpi=DOTS_PER_INCH)
            written.append(folder / name)
    return written


def drawn(name: str, report: dict[str, Any]) -> Any:
    """The figure of one of `PLOTS`; None where the report holds nothing to show in it."""
    section, draw = PLOTS[name]
    return draw(report[section]) if report.get(section, {}).get("measured") else None


def empty_figure(width: float, height: float) -> Any:
    """An empty figure of so many inches that the Agg renderer draws."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def short(name: str) -> str:
    """A name that fits on an axis: the middle of a long one is left out."""
    half = (LONGEST - 1) // 2
    return name if len(name) <= LONGEST else f"{name[:half]}…{name[-half:]}"


def heat_map(axes: Any, values: list[list[float]], texts: list[list[str]], top: float) -> Any:
    """Cells from 0 to `top` with a text each, light on dark and dark on light; NaN is left blank."""
    import numpy as np

    cells = np.ma.masked_invalid(np.array(values, dtype=float))
    image = axes.imshow(cells, cmap="cividis", vmin=0, vmax=top, aspect="auto")
    size = 9 if max(cells.shape) <= 8 else 7
    for i, row in enumerate(texts):
        for j, text in enumerate(row):
            light = cells.mask is not np.ma.nomask and np.ma.getmaskarray(cells)[i, j]
            dark = not light and cells[i, j] < 0.55 * top
            axes.text(j, i, text, ha="center", va="center", fontsize=size, color="white" if dark else "black")
    return image


def ticks(axes: Any, columns: list[str], rows: list[str], width: float) -> None:
    """Names of the columns and rows of a heat map of so many inches; column names are slanted where they would touch."""
    names = [short(name) for name in columns]
    slanted = max(map(len, names)) * CHARACTER > width / len(names)
    axes.set_xticks(range(len(columns)), names, rotation=45 if slanted else 0)
    if slanted:
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(rows)), [short(name) for name in rows])


def _extent(cells: int, cell: float, least: float) -> float:
    """Inches of so many cells; a little less each where there are many."""
    return max(cells * (cell if cells <= 8 else 0.7 * cell), least)


def plot_routing(section: dict[str, Any]) -> Any:
    """Heat map of examples by route and true domain, one panel for each side; colours are shares of a domain."""
    sides = [side for side in ("iid", "ood") if side in section]
    codes = len(section[sides[0]]["usage"])
    least = 3.6 / len(sides)
    widths = [_extent(len(section[side]["table"]["domains"]), 0.72, least) for side in sides]
    figure = empty_figure(sum(widths) + 2.6 + len(sides) - 1, _extent(codes, 0.45, 0.9) + 2.2)
    panels = figure.subplots(1, len(sides), squeeze=False, width_ratios=widths)[0]
    for axes, side, width in zip(panels, sides, widths, strict=True):
        found = section[side]
        counts = found["table"]["counts"]
        totals = [max(sum(column), 1) for column in zip(*counts, strict=True)]
        shares = [[n / total for n, total in zip(row, totals, strict=True)] for row in counts]
        image = heat_map(axes, shares, [[str(n) for n in row] for row in counts], 1.0)
        ticks(axes, found["table"]["domains"], [f"domain_{code}" for code in range(codes)], width)
        axes.set_title(f"{_place(side)} (n = {found['n']})", fontsize=10)
        axes.set_xlabel("true domain")
    panels[0].set_ylabel("module routed to")
    figure.colorbar(image, ax=list(panels), fraction=0.05, pad=0.02, label="share of the domain's examples")
    figure.suptitle(f"Where the router ({section['router']}) sends each domain")
    return figure


def _place(side: str) -> str:
    return "training distribution" if side == "iid" else "out of distribution"


def plot_features(section: dict[str, Any]) -> Any:
    """Scatter of the router's features by true domain; filled in the training distribution, hollow outside it."""
    from matplotlib.patheffects import withStroke

    names = list(dict.fromkeys(section["domain"]))
    figure = empty_figure(7.8, max(5.2, 1.2 + 0.22 * len(names)))
    axes = figure.subplots()
    for number, name in enumerate(names):
        colour, mark = COLOURS[number % len(COLOURS)], MARKS[number // len(COLOURS) % len(MARKS)]
        for side in ("iid", "ood"):
            both = zip(section["domain"], section["data"], strict=True)
            chosen = [i for i, pair in enumerate(both) if pair == (name, side)]
            axes.scatter(
                [section["x"][i] for i in chosen],
                [section["y"][i] for i in chosen],
                s=30,
                marker=mark,
                facecolors=colour if side == "iid" else "none",
                edgecolors=colour,
                alpha=0.75,
                label=short(name) if side == "iid" else None,
            )
    if "ood" in section["data"]:
        axes.scatter([], [], s=30, facecolors="none", edgecolors="black", label="hollow: out of distribution")
    codes = section["codes"]
    axes.scatter(codes["x"], codes["y"], s=130, marker="X", c="white", edgecolors="black", linewidths=1.5, label="code")
    halo = [withStroke(linewidth=3, foreground="white")]
    for label, place in _apart(list(zip(codes["x"], codes["y"], strict=True)), axes).items():
        axes.annotate(label, place, xytext=(7, 7), textcoords="offset points", fontweight="bold", path_effects=halo)
    axes.set_title("What the router sees: prompts and codes in two dimensions")
    axes.set_xlabel(f"first {section['axes']} of the router's features (standardised)")
    axes.set_ylabel(f"second {section['axes']} (standardised)")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=8, frameon=False)
    return figure


def _apart(points: list[tuple[float, float]], axes: Any) -> dict[str, tuple[float, float]]:
    """Labels of codes; those of codes that lie on one another are joined, as in "0, 3"."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    places: dict[str, tuple[float, float]] = {}
    for number, point in enumerate(points):
        for label, place in places.items():
            if math.hypot((point[0] - place[0]) / (right - left), (point[1] - place[1]) / (high - low)) < 0.04:
                places[f"{label}, {number}"] = places.pop(label)
                break
        else:
            places[str(number)] = point
    return places


def plot_training(section: dict[str, Any]) -> Any:
    """Loss terms and router figures by step: one panel for each unit."""
    curves = section["curves"]
    language = {key: label for key, label in LANGUAGE.items() if key in curves} or {"loss": "all terms"}
    panels: list[tuple[str, dict[str, str]]] = [("language modelling\n(nats a token)", language)]
    singles = {
        "loss_mi": f"independence: {section['mi_loss']}\n({UNITS.get(section['mi_loss'], 'loss')})",
        "router_perplexity": "codes in use\n(perplexity)",
        "router_error": "quantisation error\n(squared distance)",
        "router_agreement": "best match with the\ndomains (share)",
    }
    if "router_error" not in curves and "loss_router" in curves:
        singles["loss_router"] = "router's own loss"
    panels += [(label, {key: ""}) for key, label in singles.items() if key in curves]
    figure = empty_figure(7.6, 1.2 + 1.5 * len(panels))
    for number, (axes, (label, keys)) in enumerate(
        zip(figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0], panels, strict=True)
    ):
        for place, (key, name) in enumerate(keys.items()):
            curve = curves.get(key, {"step": [], "value": []})
            mark = "." if len(curve["step"]) < 60 else ""
            colour = COLOURS[place if number == 0 else 0]
            axes.plot(curve["step"], curve["value"], color=colour, marker=mark, linewidth=1.4, label=name)
        for step in section["stages"]:
            axes.axvline(step, color="grey", linestyle=":", linewidth=1)
        axes.set_ylabel(label, fontsize=8)
        axes.grid(alpha=0.3)
        axes.margins(y=0.12)
        if number == 0 and len(keys) > 1:
            axes.legend(fontsize=8, frameon=False, ncols=3)
    figure.axes[-1].set_xlabel("optimizer step")
    weight = f" (weight of the independence loss: {section['mi_weight']:g})" if "loss_mi" in curves else ""
    figure.suptitle(f"Training: loss terms and router{weight}", fontsize=11)
    figure.align_ylabels()
    return figure


def plot_swap(section: dict[str, Any]) -> Any:
    """Heat map of the accuracy with each domain module in the place of the router's choice."""
    from matplotlib.patches import Rectangle

    names, rows = section["swap"]["modules"], section["swap"]["routed"]
    values = [[_value(cell) for cell in row["accuracy"]] for row in rows]
    texts = [["–" if math.isnan(value) else f"{value:.2f}" for value in line] for line in values]
    width = _extent(len(names), 0.75, 2.2)
    figure = empty_figure(width + 3.4, _extent(len(names), 0.6, 1.4) + 1.8)
    axes = figure.subplots()
    image = heat_map(axes, values, texts, 1.0)
    ticks(axes, names, [f"{row['source']} (n = {row['n']})" for row in rows], width)
    for i in range(len(names)):  # the router's own choice
        axes.add_patch(Rectangle((i - 0.5, i - 0.5), 1, 1, fill=False, edgecolor="#D55E00", linewidth=2))
    axes.set_xlabel("module that answers")
    axes.set_ylabel("module routed to")
    axes.set_title("Accuracy with another module in place\n(framed: the router's choice)", fontsize=11)
    figure.colorbar(image, ax=axes, label="accuracy (share of right answers)")
    return figure


def _value(cell: dict[str, Any]) -> float:
    return math.nan if cell["value"] is None else cell["value"]


def plot_accuracy(section: dict[str, Any]) -> Any:
    """Accuracy of every module, and of the base, on both sides with 95% intervals."""
    rows = section["modules"]
    figure = empty_figure(7.6, 1.9 + 0.42 * len(rows))
    axes = figure.subplots()
    for side, colour, mark, shift in (("iid", COLOURS[0], "o", -0.14), ("ood", COLOURS[5], "s", 0.14)):
        found = [(place + shift, row[side]["overall"]) for place, row in enumerate(rows) if row[side] is not None]
        if not found:
            continue
        values = [cell["value"] for _, cell in found]
        below = [cell["value"] - cell["low"] for _, cell in found]
        above = [cell["high"] - cell["value"] for _, cell in found]
        axes.errorbar(
            values,
            [place for place, _ in found],
            xerr=[below, above],
            fmt=mark,
            color=colour,
            capsize=3,
            markersize=6,
            label=f"modules, {_place(side)} (n = {found[0][1]['n']})",
        )
        majority = section["majority"][side]["overall"]["value"]
        axes.axvline(
            majority,
            color=colour,
            linestyle="--" if side == "iid" else ":",
            linewidth=1.3,
            label=f"most frequent answer, {_place(side)}",
        )
    axes.set_yticks(range(len(rows)), ["untouched base" if row["module"] == "base" else row["module"] for row in rows])
    axes.invert_yaxis()
    axes.set_xlim(-0.02, 1.02)
    axes.set_xlabel("accuracy (share of right answers), 95% interval")
    axes.set_ylabel("module")
    axes.grid(axis="x", alpha=0.3)
    axes.set_title("Accuracy of each module inside and outside the training distribution", fontsize=11)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return figure


PLOTS = {
    "routing.png": ("routing", plot_routing),
    "features.png": ("features", plot_features),
    "training.png": ("training", plot_training),
    "swap.png": ("interventions", plot_swap),
    "accuracy.png": ("overfitting", plot_accuracy),
}
"""The section of a diagnosis that each file shows, and what draws it."""
