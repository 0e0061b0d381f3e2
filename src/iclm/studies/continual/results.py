"""The finished sequences of experiments: collected from their folders, or from the files that a report leaves.

OUT/rows.jsonl         the rows of all sequences: one a method, module, task trained through and task tested on
OUT/sequences.jsonl    a line a sequence: its recipe, units, seconds, versions, device
OUT/boundaries.jsonl   what `iclm continual boundaries` found, where it was given

A report that is made from these files again is the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from iclm.errors import CheckpointError, ConfigurationError
from iclm.model.checkpoint import read_json
from iclm.studies.continual.metrics import matrix_of
from iclm.studies.continual.recipe import ContinualRecipe, load_continual, told_boundaries, with_boundaries
from iclm.studies.continual.runner import JOBS, RECIPE, sequence_jobs
from iclm.studies.study.grid import digest
from iclm.studies.study.job import DONE, ROWS, SPEC, STUDY, kind_of
from iclm.studies.study.statistics import mean_over_seeds

ROWS_FILE, SEQUENCES, BOUNDARIES = "rows.jsonl", "sequences.jsonl", "boundaries.jsonl"
SPEC_FIELDS = ("name", "sequence", "order", "method", "seed")
_LINE = ("job", *SPEC_FIELDS, "boundaries", "tasks", "kind", "units", "homes", "total_seconds", "device", "recipe")
_ROW = (*("job", "method", "module", "sequence", "order", "seed", "trained_through", "tested_on", "n", "correct"),)
_THRESHOLD = ("sequence", "order", "seed", "margin", "kind")
OWN = "own module"  # the domain module that was opened for a task, alone
SERIES = ("mixture", "oracle", "invariant", OWN)
SIGNED = ("backward", "forward", "forgetting")

Key = tuple[str, str, str, str]
"""Sequence, boundaries, order and method."""


@dataclass
class Found:
    """What was collected.

    Attributes:
        rows: of all sequences.
        sequences: a line each.
        boundaries: of thresholds.
        left_out: names of finished sequences whose settings are not those of their experiment any more.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    sequences: list[dict[str, Any]] = field(default_factory=list)
    boundaries: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def files(self) -> dict[str, str]:
        """The text of each file that says all of it."""
        parts = {ROWS_FILE: self.rows, SEQUENCES: self.sequences, BOUNDARIES: self.boundaries}
        return {name: "".join(json.dumps(row) + "\n" for row in rows) for name, rows in parts.items() if rows}


def collect(folders: Iterable[str | Path]) -> Found:
    """Collect experiments (folders of `iclm continual`), reports and files of `iclm continual boundaries`.

    Sequences of an experiment come in the order of its recipe; of those that it does not hold, or holds with other settings,
    only the names are kept.

    Raises:
        ConfigurationError: one is none of these, nothing is finished, a sequence occurs twice with other results, or sequences of one
            name and order have other tasks or another base.
    """
    found, seen = Found(), dict[str, list[dict[str, Any]]]()
    for folder in map(Path, folders):
        if folder.is_file():
            _add_boundaries(found, _read_thresholds(folder))
            continue
        if (folder / SEQUENCES).is_file() or (folder / BOUNDARIES).is_file():
            rows, lines = (
                _read_lines(folder / name, keys) if (folder / SEQUENCES).is_file() else []
                for name, keys in ((ROWS_FILE, _ROW), (SEQUENCES, _LINE))
            )
            for line in lines:
                _add(found, seen, line, [row for row in rows if row["job"] == line["job"]], folder)
            if (folder / BOUNDARIES).is_file():
                _add_boundaries(found, _read_lines(folder / BOUNDARIES, _THRESHOLD))
            continue
        if not (folder / JOBS).is_dir():
            raise ConfigurationError(f"{folder} is neither an experiment of iclm continual nor a report of one")
        if kind_of(folder) == STUDY:
            raise ConfigurationError(f"{folder} holds a study, not sequences; use iclm study report")
        done_jobs = [job for job in sorted((folder / JOBS).iterdir()) if (job / DONE).is_file()]
        specs = {job.name: read_json(job / SPEC) for job in done_jobs}
        places = _places(folder / RECIPE, sorted({spec["sequence"] for spec in specs.values()}), specs)
        found.left_out += [specs[job.name]["name"] for job in done_jobs if job.name not in places]
        for job in sorted((job for job in done_jobs if job.name in places), key=lambda job: places[job.name]):
            spec, done = specs[job.name], read_json(job / DONE)
            head = {name: spec[name] for name in SPEC_FIELDS}
            recipe = spec["recipe"]
            method = recipe["methods"][spec["method"]]
            tasks = recipe["orders"][spec["order"]]
            rows = [{"job": job.name, **row} for row in _read_lines(job / ROWS)]
            told = told_boundaries(ContinualRecipe.model_validate(recipe), spec["method"])
            line = {"job": job.name, **head, "boundaries": told, "tasks": tasks, "kind": method["kind"], **done}
            _add(found, seen, {**line, "recipe": recipe}, rows, folder)
    if not found.sequences and not found.boundaries:
        raise ConfigurationError("no sequence is finished; run iclm continual first")
    return found


def _places(recipe: Path, sequences: Iterable[str], names: Iterable[str]) -> dict[str, int]:
    """Where each job stands by the name of its folder, in the order of the experiment's recipe; one that is not of it has no place."""
    if not recipe.is_file():
        return {name: place for place, name in enumerate(names)}
    loaded = load_continual(recipe)
    every = [with_boundaries(loaded, told) for told in ("known", "unknown")]
    jobs = [job.folder for sequence in sequences for each in every for job in sequence_jobs(each, sequence)]
    return {folder: place for place, folder in enumerate(dict.fromkeys(jobs))}


def _add(
    found: Found,
    seen: dict[str, list[dict[str, Any]]],
    line: dict[str, Any],
    rows: list[dict[str, Any]],
    folder: Path,
) -> None:
    if line["job"] in seen:
        if seen[line["job"]] != rows:
            raise ConfigurationError(f"{folder}: {line['name']} was done twice with other results; give one of them")
        return
    seen[line["job"]] = rows
    for other in found.sequences:
        same = key_of(other) == key_of(line)
        if same and (other["seed"] == line["seed"] or _settings(other) != _settings(line)):
            raise ConfigurationError(
                f"{folder}: {line['name']} was done with other settings than {other['name']} of the other results; "
                "report them apart, or give the method another name"
            )
    beside = (one for one in found.sequences if (one["sequence"], one["order"]) == (line["sequence"], line["order"]))
    first = next(beside, None)  # as which all the others are
    differs = None if first is None else _difference(first, line)
    if first is not None and differs is not None:
        raise ConfigurationError(
            f"{folder}: {line['name']} and {first['name']} of sequence {line['sequence']} differ in {differs}, so that no "
            "figures of theirs can be compared; report them apart"
        )
    found.sequences.append(line)
    found.rows += rows


def _add_boundaries(found: Found, rows: list[dict[str, Any]]) -> None:
    """Add lines of thresholds; one that was given twice counts once."""
    known = {json.dumps(row, sort_keys=True) for row in found.boundaries}
    fresh = {json.dumps(row, sort_keys=True): row for row in rows}
    found.boundaries += [row for key, row in fresh.items() if key not in known]


def _settings(line: dict[str, Any]) -> str:
    """What a sequence was learned with, but for its seed."""
    return digest({name: value for name, value in line.get("recipe", {}).items() if name != "seeds"})


def _difference(one: dict[str, Any], two: dict[str, Any]) -> str | None:
    """What two sequences of one order must share, whatever their methods, and do not; None where they share it all."""
    if one["tasks"] != two["tasks"]:
        return "their tasks"
    first, second = _shared(one), _shared(two)
    return next((name for name in first if first[name] != second[name]), None)


def _shared(line: dict[str, Any]) -> dict[str, str]:
    """Digests of the base, and of what each task is learned from and tested on."""
    recipe = line["recipe"]
    found: dict[str, Any] = {name: recipe.get(name) for name in ("base", "dtype")}
    for task in line["tasks"]:
        sources = recipe.get("tasks", {}).get(task, {})
        for part, name in (("train", "training data"), ("test", "test questions")):
            found[f"the {name} of task {task}"] = [_content(source) for source in sources.get(part, ())]
    return {name: digest({name: value}) for name, value in found.items()}


def _content(source: dict[str, Any]) -> dict[str, Any]:
    """A source without what its content does not depend on: where a file lies whose SHA-256 is noted."""
    return {name: value for name, value in source.items() if name != "file" or source.get("sha256") is None}


def _read_thresholds(file: Path) -> list[dict[str, Any]]:
    """The lines of a file of thresholds; raises `CheckpointError` if it is none."""
    try:
        return _read_lines(file, _THRESHOLD)
    except CheckpointError as error:
        raise CheckpointError(f"{file} is no file of iclm continual boundaries: {error}") from error


def _no_number(text: str) -> float:
    """Refuse NaN and Infinity, which are no JSON; raises ValueError."""
    raise ValueError(f"it holds {text}, which is no finite number")


def _read_lines(path: Path, keys: Iterable[str] = ()) -> list[dict[str, Any]]:
    """The objects of a file of JSON lines, each of which has some keys."""
    try:
        text = path.read_text(encoding="utf-8")
        lines = [json.loads(line, parse_constant=_no_number) for line in text.splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        missing = [key for key in keys if not isinstance(line, dict) or key not in line]
        if missing:
            raise CheckpointError(
                f"{path}:{number}: {missing[0]} is missing; it is none of the files that it stands for"
            )
    return lines


def key_of(line: dict[str, Any]) -> Key:
    """What a line is about, its seed left out."""
    return line["sequence"], line["boundaries"], line["order"], line["method"]


def summarise(found: Found) -> dict[str, Any]:
    """Metrics and matrices of every method.

    Returns:
        `metrics`: one entry a method and series of modules, each metric with `mean`, `low`, `high` (Student's 95% interval over
        seeds) and `n`; that of own modules has `counted`, of how many tasks they are in each seed; `differences`: those of the
        mixture's metrics from another method's, of the same seeds (`_against`); `matrices`: the mean accuracy matrix of each;
        `costs`: parameters and seconds a task, and modules opened; `boundaries`: figures of each margin, means over orders and seeds.
    """
    groups: dict[Key, list[dict[str, Any]]] = {}
    for line in found.sequences:
        groups.setdefault(key_of(line), []).append(line)
    rows = {line["job"]: [row for row in found.rows if row["job"] == line["job"]] for line in found.sequences}
    metrics, matrices, costs = [], [], []
    by_seed: dict[Key, dict[Any, dict[str, float | None]]] = {}  # metrics of the mixture
    for key, lines in groups.items():
        head = dict(zip(("sequence", "boundaries", "order", "method"), key, strict=True))
        head |= {"kind": lines[0]["kind"], "tasks": lines[0]["tasks"]}
        before = _before(key, groups, rows)
        for series in SERIES:
            values = [_matrix(line, rows[line["job"]], series, before) for line in lines]
            known = [matrix for matrix in values if matrix is not None]
            if not known:
                continue
            found_metrics = [(matrix.asked() if series == OWN else matrix).metrics() for matrix in known]
            if head["kind"] == "base":  # it learns nothing: what it knows before is all it knows
                found_metrics = [
                    {**one, "average": float(m.values[0].mean())} for one, m in zip(found_metrics, known, strict=True)
                ]
            if series == "mixture" and len(known) == len(lines):
                by_seed[key] = {line["seed"]: one for line, one in zip(lines, found_metrics, strict=True)}
            entry = {**head, "module": series, "seeds": len(known)}
            counted = {"counted": [matrix.asked().tasks for matrix in known]} if series == OWN else {}
            metrics.append({**entry, **counted, **{name: _mean(name, found_metrics) for name in found_metrics[0]}})
            mean = np.mean([matrix.values for matrix in known], axis=0)
            cells = [[None if np.isnan(value) else round(float(value), 6) for value in row] for row in mean]
            matrices.append({**entry, "values": cells})
        costs.append({**head, **_cost(lines)})
    summary = {"metrics": metrics, "differences": list(_differences(groups, by_seed)), "matrices": matrices}
    return {**summary, "costs": costs, "boundaries": _thresholds(found.boundaries)}


def _differences(
    groups: dict[Key, list[dict[str, Any]]], by_seed: dict[Key, dict[Any, dict[str, float | None]]]
) -> Iterator[dict[str, Any]]:
    """What each method has more of each metric than the one that it is set against, seed by seed."""
    for key, lines in groups.items():
        other = _against(key, lines[0], groups)
        seeds = [] if other is None else sorted(set(by_seed.get(key, {})) & set(by_seed.get(other, {})), key=str)
        if other is None or not seeds:
            continue
        head = dict(zip(("sequence", "boundaries", "order", "method"), key, strict=True))
        found: dict[str, Any] = {}
        for name in by_seed[key][seeds[0]]:
            pairs = [(by_seed[key][seed][name], by_seed[other][seed][name]) for seed in seeds]
            values = [one - two for one, two in pairs if one is not None and two is not None]
            found[name] = _figure(values) if len(values) == len(seeds) else None
        yield {**head, "against": other[3], "seeds": len(seeds), **found}


def _against(key: Key, line: dict[str, Any], groups: dict[Key, list[dict[str, Any]]]) -> Key | None:
    """What a method is set against: an ICLM against LoRA that goes on learning under the same guard of the same settings, anything
    else, or an ICLM without such a counterpart, against LoRA that goes on learning without one; None of the untouched base and of
    that LoRA itself."""
    learning = [
        other
        for other, lines in groups.items()
        if (other[0], other[2]) == (key[0], key[2]) and _said(lines[0]) == ("sequence", "lora")
    ]
    same = [other for other in learning if _guard(groups[other][0]) == _guard(line)]
    plain = [other for other in learning if _guard(groups[other][0])[0] == "none"]
    if line["kind"] == "base":
        return None
    chosen = (same or plain) if _said(line) == ("sequence", "iclm") else plain
    return next((other for other in chosen if other != key), None)


def _said(line: dict[str, Any]) -> tuple[str, str]:
    """The kind of a sequence, and of its model."""
    return line["kind"], line["recipe"]["methods"][line["method"]].get("method", "iclm")


def _guard(line: dict[str, Any]) -> tuple[str, Any]:
    """The guard of a sequence, and its settings: the method's own, else the recipe's."""
    recipe = line["recipe"]
    method = recipe["methods"][line["method"]]
    guard = str(method.get("guard", "none"))
    return guard, (method.get(guard) or recipe.get(guard)) if guard in ("ewc", "replay") else None


def _before(
    key: Key, groups: dict[Key, list[dict[str, Any]]], rows: dict[str, list[dict[str, Any]]]
) -> dict[str, float] | None:
    """Accuracy of the untouched base on each task of an order, where it was asked."""
    for other, lines in groups.items():
        if (other[0], other[2]) == (key[0], key[2]) and lines[0]["kind"] == "base":
            return {row["tested_on"]: row["correct"] / row["n"] for row in rows[lines[0]["job"]]}
    return None


def _matrix(line: dict[str, Any], rows: Sequence[dict[str, Any]], series: str, before: dict[str, float] | None) -> Any:
    """The accuracy matrix of a series of modules in one sequence; None where it has none."""
    if line["kind"] != "sequence" and series != "mixture":
        return None
    if series == OWN:
        homes = {task: f"domain_{line['homes'][task]}" for task in _with_own(line)}
        chosen = [row for row in rows if row["module"] == homes.get(row["tested_on"])]
    else:
        chosen = [row for row in rows if row["module"] == series]
    return matrix_of(chosen, line["tasks"], before) if chosen else None


def _with_own(line: dict[str, Any]) -> list[str]:
    """The tasks whose module learned from them: one that went to a module which was open already left it as it was."""
    opened = {(task, unit["module"]) for unit in line["units"] if unit["opened"] for task in unit["tasks"]}
    return [task for task, number in line.get("homes", {}).items() if (task, number) in opened]


def _mean(name: str, values: Sequence[dict[str, float | None]]) -> dict[str, Any] | None:
    known = [value for found in values if (value := found[name]) is not None]
    if len(known) < len(values):
        return None
    return _figure(known, None if name in SIGNED else (0.0, 1.0))


def _figure(values: Sequence[float], bounds: tuple[float, float] | None = None) -> dict[str, Any]:
    """A mean over seeds with its interval."""
    found = mean_over_seeds(values, bounds=bounds)
    return {"mean": found.value, "low": found.low, "high": found.high, "n": found.n}


def _cost(lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a task costs: means over tasks and seeds."""
    count = len(lines) * len(lines[0]["tasks"])
    units = [unit for line in lines for unit in line["units"] if line["kind"] == "sequence"]
    opened = [sum(unit["opened"] for unit in line["units"]) for line in lines if line["kind"] == "sequence"]
    seconds = sum(u["train_seconds"] + u["guard_seconds"] for line in lines for u in line["units"])
    return {
        "seeds": len(lines),
        "opened": opened,
        "trainable": [unit["trainable"] for unit in units],
        "parameters": _learned_in_all(lines),
        "steps_a_task": _steps(lines, count),
        "added_a_task": round(sum(unit["added"] for unit in units) / count),
        "seconds_a_task": round(seconds / count, 1),
        "device": sorted({line["device"] for line in lines}),
    }


def _learned_in_all(lines: Sequence[dict[str, Any]]) -> int | None:
    """Trained parameters of the model at the end, a mean over the seeds whose records say; None where none does."""
    if lines[0]["kind"] == "base":
        return 0
    each = [line["units"] for line in lines if line["units"] and "trainable" in line["units"][0]]
    found = [units[0]["trainable"] + sum(unit["added"] for unit in units[1:]) for units in each]
    return round(sum(found) / len(found)) if found else None


def _steps(lines: Sequence[dict[str, Any]], count: int) -> int | None:
    """Optimizer steps a task, which no other work on the machine changes; None where the records do not say."""
    steps = [unit.get("steps") for line in lines for unit in line["units"]]
    return None if None in steps else round(sum(steps) / count)


def _thresholds(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each sequence and margin: how often new and known prompts are called new, and what a stream opens."""
    found = []
    for sequence, margin in sorted({(row["sequence"], row["margin"]) for row in rows}):
        here = [row for row in rows if (row["sequence"], row["margin"]) == (sequence, margin)]
        curve, stream = ([row for row in here if row["kind"] == kind] for kind in ("curve", "stream"))
        before = [row["new_before"] for row in curve if row["new_before"] is not None]
        after = [row["new_after"] for row in curve if row["new_after"] is not None]
        opened = [row["opened"] - row["tasks"] for row in stream]
        found.append(
            {
                "sequence": sequence,
                "margin": margin,
                "new_before": _average(before),
                "new_after": _average(after),
                "streams": len(stream),
                "right": sum(extra == 0 for extra in opened),
                "extra": _average(opened),
                "rand": _average([row["rand"] for row in stream]),
            }
        )
    return found


def _average(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def lines_of(summary: dict[str, Any], name: str, sequence: str) -> Iterator[dict[str, Any]]:
    """The entries of one part of a summary that are of a sequence."""
    return (entry for entry in summary[name] if entry["sequence"] == sequence)
