"""Benchmarks as tables: ratios beside their goals, and validation accuracy by split."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from rich.table import Table

from iclm.studies.bench.timing import GOALS, is_met

HEADER = ("figure", "K", "ratio", "lowest to highest", "ours", "theirs", "goal")
MEANING = {
    "step_half": "training step, adapters on the upper half : our plain LoRA",
    "step_full": "training step, adapters on all layers : our plain LoRA",
    "step_k16": "training step, K = 16 : K = 2, upper half",
    "step_half_vs_peft": "training step, adapters on the upper half : PEFT LoRA",
    "step_half_vs_xlora": "training step, adapters on the upper half : PEFT X-LoRA",
    "step_lora_vs_peft": "training step, our plain LoRA : PEFT LoRA",
    "compile_half": "training step, upper half : uncompiled",
    "compile_lora": "training step, our plain LoRA : uncompiled",
    "memory_half": "peak memory of training, upper half : our plain LoRA",
    "memory_half_vs_peft": "peak memory of training, upper half : PEFT LoRA",
    "prefill_half": "reading a prompt, upper half : our plain LoRA",
    "decode_half": "a new token with cache, upper half : our plain LoRA",
    "score_speedup": "examples a second of choice scoring, packed : each pair on its own",
}


def _cells(found: dict[str, Any]) -> Iterator[list[str]]:
    for row in found["rows"]:
        name, unit = row["name"], row["unit"]
        goal = "–"
        if name in GOALS:
            sign = "≤" if GOALS[name][0] == "at most" else "≥"
            goal = f"{sign} {GOALS[name][1]:g}, {'met' if is_met(name, row['ratio']) else 'missed'}"
        yield [
            MEANING.get(name, name),
            str(row["k"]),
            f"{row['ratio']:.2f}",
            f"{row['low']:.2f} to {row['high']:.2f}" if found["rounds"] > 1 else "–",
            f"{row['ours']:.3g} {unit}",
            f"{row['theirs']:.3g} {unit}",
            goal,
        ]


def bench_table(found: dict[str, Any]) -> Table:
    """The figures of a benchmark's record for the terminal."""
    table = Table()
    for name in HEADER:
        table.add_column(name, justify="left" if name in ("figure", "goal") else "right")
    for cells in _cells(found):
        table.add_row(*cells)
    return table


def bench_markdown(records: Iterable[dict[str, Any]]) -> str:
    """The figures of benchmarks' records as a Markdown table."""
    marks = [":--" if name in ("figure", "goal") else "--:" for name in HEADER]
    lines = [list(HEADER), marks, *(cells for found in records for cells in _cells(found))]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def bench_caption(found: dict[str, Any]) -> str:
    """What a benchmark was measured on, in one line."""
    load, machine, rounds = found["workload"], found["machine"], found["rounds"]
    versions = ", ".join(f"{name} {value}" for name, value in found["versions"].items())
    if "problems" in load:
        given = (
            f"{load['questions']} questions of {load['problems']} ACRE problems a format ({', '.join(load['formats'])}) "
            f"in batches of {load['tokens_per_batch']} tokens"
        )
    else:
        given = f"{load['batch']} examples of {load['tokens']} tokens"
    return (
        f"{load['base']}, {given}, LoRA of rank {load['rank']} on {load['targets']}, {load['dtype']}; "
        f"{f'medians of {rounds} rounds' if rounds > 1 else 'one round'}; {machine['processor']}, "
        f"{machine['threads']} threads, {machine['device']}; {versions}, Python {machine['python']}"
    )


# -- learning ----------------------------------------------------------------------------------------------------------


def learning_cells(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and lines: a line a contestant, a column a number of examples, then one at equal seconds of training.

    A cell is the validation accuracy over all sources and seeds. Equal seconds are those that plain LoRA needs for all its
    examples, by the median step of either; accuracy between two evaluations is drawn as a line, and a contestant that
    has not come so far has none.
    """
    examples = sorted({row["examples"] for row in rows})
    names = sorted({(row["method"], row["split"]) for row in rows}, key=lambda name: (name[0] != "lora", name[1]))
    lora = [row for row in rows if row["method"] == "lora"]
    limit = _seconds(lora)[-1][0] if lora else None
    header = ["contestant", *(f"after {count:,} examples" for count in examples), "step", "after equal seconds"]
    plain = _step(lora) if lora else None
    lines = []
    for method, split in names:
        found = [row for row in rows if (row["method"], row["split"]) == (method, split)]
        cells = ["plain LoRA, all layers" if method == "lora" else f"ICLM, split {split:g}"]
        cells += [_accuracy([row for row in found if row["examples"] == count]) for count in examples]
        cells.append("–" if plain is None else f"{_step(found) / plain:.2f}")
        cells.append("–" if limit is None else _at(limit, _seconds(found)))
        lines.append(cells)
    return header, lines


def _step(rows: list[dict[str, Any]]) -> float:
    """Seconds of a step, of all seeds."""
    last = [row["step_seconds"] for row in rows if row["examples"] == max(r["examples"] for r in rows)]
    return sum(last) / len(last)


def _accuracy(rows: list[dict[str, Any]]) -> str:
    total = sum(row["n"] for row in rows)
    return f"{sum(row['correct'] for row in rows) / total:.2f}" if total else "–"


def _seconds(rows: list[dict[str, Any]]) -> list[tuple[float, float]]:
    """(seconds of training, accuracy) at each evaluation, seconds being steps times the median step."""
    step = _step(rows)
    points = []
    for steps in sorted({row["steps"] for row in rows}):
        here = [row for row in rows if row["steps"] == steps]
        points.append((steps * step, sum(row["correct"] for row in here) / sum(row["n"] for row in here)))
    return points


def _at(seconds: float, points: list[tuple[float, float]]) -> str:
    import numpy as np

    if seconds > points[-1][0] * 1.0001:
        return "–"
    x, y = zip(*points, strict=True)
    return "–" if seconds < x[0] else f"{np.interp(seconds, x, y):.2f}"


def learning_table(rows: list[dict[str, Any]]) -> Table:
    """Validation accuracy by split for the terminal."""
    header, lines = learning_cells(rows)
    table = Table()
    for name in header:
        table.add_column(name, justify="left" if name == "contestant" else "right")
    for cells in lines:
        table.add_row(*cells)
    return table


def learning_markdown(rows: list[dict[str, Any]]) -> str:
    """Validation accuracy by split as a Markdown table."""
    header, lines = learning_cells(rows)
    marks = [":--" if name == "contestant" else "--:" for name in header]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (header, marks, *lines))
