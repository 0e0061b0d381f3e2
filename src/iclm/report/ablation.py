"""Arms of an ablation side by side: what `iclm evaluate RUN --independence --json` said of each arm's runs, as one table.

A figure is the mean over the domains of a run, then the mean over the runs, with the smallest and the largest run in brackets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

Report = dict[str, Any]


def _domains(report: Report) -> list[dict[str, Any]]:
    """The measures within each domain that has enough examples."""
    return [found for name, found in report["independence"].items() if name != "leakage" and "ksg" in found]


def _mean(path: Sequence[str]) -> Callable[[Report], float]:
    """The mean over the domains of the figure at a path."""

    def figure(report: Report) -> float:
        found: list[Any] = _domains(report)
        for name in path:
            found = [value[name] for value in found]
        return fmean(found)

    return figure


def _leakage(name: str) -> Callable[[Report], float]:
    return lambda report: report["independence"]["leakage"][name]


# label, figure, what it is for shuffled pairs (or by chance), what it is for a state with itself
MEASURES: tuple[tuple[str, Callable[[Report], float], Callable[[Report], float] | None, Any], ...] = (
    (
        "KSG mutual information, nats",
        _mean(("ksg", "estimate")),
        _mean(("ksg", "permuted_mean")),
        _mean(("identical", "estimate")),
    ),
    ("linear CKA", _mean(("cka",)), _mean(("cka_permuted_mean",)), 1.0),
    ("HSIC", _mean(("hsic", "statistic")), _mean(("hsic", "permuted_mean")), 1.0),
    (
        "correlation of equal dimensions, mean \\|r\\|",
        _mean(("correlation", "mean")),
        _mean(("correlation", "permuted_mean")),
        1.0,
    ),
    ("domain leakage, accuracy of a probe", _leakage("accuracy"), _leakage("chance"), None),
)


def _row(report: Report, file: str) -> dict[str, Any]:
    """The figures of the file of that name."""
    return next(row for row in report["data"] if row["file"].rpartition("/")[2] == file)


def accuracy_of(report: Report, file: str) -> float:
    """Accuracy of the mixture on the file of that name."""
    return next(found["value"] for found in _row(report, file)["modules"] if found["module"] == "mixture")


def number(value: float) -> str:
    """Two decimals, without the sign of a zero."""
    return f"{round(value, 2) + 0.0:.2f}"


def cell(values: Iterable[float]) -> str:
    """The mean of the runs with their smallest and largest."""
    found = list(values)
    return f"{number(fmean(found))} [{number(min(found))} {number(max(found))}]"


def ablation_markdown(arms: Mapping[str, Sequence[Report]]) -> str:
    """The arms as a Markdown table: independence measures, routing, and accuracy of the mixture by file.

    Args:
        arms: for each arm the reports of its runs, all on the same files.
    """
    everything = [report for reports in arms.values() for report in reports]
    lines = [
        f"| figure | {' | '.join(arms)} | shuffled, by chance, or majority | total dependence |",
        f"|---|{'---|' * (len(arms) + 2)}",
    ]

    def add(label: str, figure: Callable[[Report], float], chance: Any = None, total: Any = None) -> None:
        ends = []
        for end in (chance, total):
            value = fmean(end(report) for report in everything) if callable(end) else end
            ends.append("–" if value is None else number(value))
        cells = [cell(figure(report) for report in reports) for reports in arms.values()]
        lines.append(f"| {label} | {' | '.join(cells)} | {' | '.join(ends)} |")

    for label, figure, chance, total in MEASURES:
        add(label, figure, chance, total)
    add("routing accuracy", lambda report: report["routing"]["accuracy"], lambda report: report["routing"]["chance"])
    for row in everything[0]["data"]:
        name = row["file"].rpartition("/")[2]

        def majority(report: Report, name: str = name) -> float:
            return _row(report, name)["majority"]["value"]

        def accuracy(report: Report, name: str = name) -> float:
            return accuracy_of(report, name)

        add(f"accuracy, {name.removesuffix('.jsonl')}", accuracy, majority)
    return "\n".join(lines) + "\n"


def routers_markdown(reports: Mapping[str, Report]) -> str:
    """Routing of several routers as a Markdown table.

    Args:
        reports: for each router what `iclm evaluate --json` said.
    """
    lines = [
        "| router | questions | routing accuracy | by chance | normalised mutual information |",
        "|---|---|---|---|---|",
    ]
    for name, report in reports.items():
        found = report["routing"]
        cells = [found["accuracy"], found["chance"], found["normalized_mutual_information"]]
        lines.append(f"| `{name}` | {found['n']} | {' | '.join(number(value) for value in cells)} |")
    return "\n".join(lines) + "\n"
