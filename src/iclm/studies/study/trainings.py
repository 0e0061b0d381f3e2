"""What a study found of its trainings: what they cost, which hyper-parameters were chosen and among which, what all was run with."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from iclm.studies.study.results import Collected, FinishedJob
from iclm.studies.study.rows import ROUTED, routed_module
from iclm.studies.study.statistics import mean_over_seeds

DIGITS = 6
ARCHITECTURES = ("x86_64", "amd64", "AMD64", "aarch64", "arm64")  # of processors of which jobs noted no more


def rounded(value: float | None) -> float | None:
    """A figure as a report has it."""
    return None if value is None else round(value, DIGITS)


def mean_record(values: Sequence[float], bounds: tuple[float, float] | None = None) -> dict[str, Any]:
    """Values by seed with their mean and its interval, as a report has them."""
    found = mean_over_seeds(values, bounds=bounds)
    return {
        "values": [rounded(value) for value in values],
        "mean": rounded(found.value),
        "low": rounded(found.low),
        "high": rounded(found.high),
    }


def costs(jobs: Sequence[FinishedJob], reference: str | None) -> Iterator[dict[str, Any]]:
    """Seconds of training, trained parameters and seen examples of each method, and the seconds beside the reference's.

    The ratio is that of the means over the seeds that both trained on the same device with as many threads; None where there
    is none, or where either does not train. Of a CPU of which only the architecture is known it is not known to be the same.
    """
    by_method: dict[str, dict[int | None, FinishedJob]] = {}
    for job in jobs:
        by_method.setdefault(job.line["method"], {})[job.line["seed"]] = job

    def machine(job: FinishedJob) -> tuple[Any, ...]:
        if job.line["device"] == "cpu" and job.line["processor"] in ARCHITECTURES:
            return ()
        return tuple(job.line[key] for key in ("device", "processor", "threads", "dtype"))

    known = by_method.get(reference or "", {})
    for method, found in by_method.items():
        seconds = [job.line["train_seconds"] for job in found.values()]
        same = [seed for seed, job in found.items() if seed in known and machine(job) == machine(known[seed]) != ()]
        ours, theirs = (sum(side[seed].line["train_seconds"] for seed in same) for side in (found, known))
        rows = [job.rows[0] for job in found.values()]
        yield {
            "method": method,
            "seeds": [*found],
            **mean_record(seconds, bounds=(0.0, float("inf"))),
            "ratio": round(ours / theirs, DIGITS) if ours and theirs else None,
            "ratio_seeds": same if ours and theirs else [],
            "trainable": sorted({row["trainable"] for row in rows}),
            "examples": sorted({row["examples"] for row in rows}),
            "devices": sorted({job.line["device"] for job in found.values()}),
        }


def chosen(found: Collected, data: str) -> Iterator[dict[str, Any]]:
    """The hyper-parameters that were chosen for each method, and by how many tries."""
    for method in dict.fromkeys(job.line["method"] for job in found.reports if job.line["data"] == data):
        job = next(job for job in found.reports if (job.line["data"], job.line["method"]) == (data, method))
        if job.line["chosen"]:
            tuned, on = job.line["tuned_as"] or method, job.line["tuned_on"] or data
            tries = sum((one.line["data"], one.line["method"]) == (on, tuned) for one in found.tries)
            head = {"data": data, "method": method, "tries_of": tuned, "tries_on": on}
            yield {**head, "tries": tries, "values": job.line["chosen"]}


def tried(found: Collected, data: str) -> Iterator[dict[str, Any]]:
    """Every try on a data set: its hyper-parameters, and how many validation questions each module answered right."""
    for job in found.tries:
        if job.line["data"] != data or not job.rows:
            continue
        correct: dict[str, int] = {}
        for row in job.rows:
            names = [row["module"], ROUTED] if row["module"] == routed_module(row) else [row["module"]]
            for name in names:
                correct[name] = correct.get(name, 0) + row["correct"]
        if any("routes" in row and routed_module(row) is None for row in job.rows):
            correct.pop(ROUTED, None)
        asked = sum(row["n"] for row in job.rows if row["module"] == job.rows[0]["module"])
        head = {"data": data, "method": job.line["method"], "trial": job.line["trial"]}
        yield {**head, "values": job.line["chosen"], "n": asked, "correct": correct}


def setup(found: Collected) -> dict[str, Any]:
    """What all was run with; more than one entry where jobs differ, and of number types the commonest first.

    `exceptions` are the names of the jobs in each other number type: what they found has been rounded otherwise.
    """
    lines = [job.line for job in found.jobs]
    models = [line for line in lines if line["kind"] != "strategy"]
    dtypes: dict[str, list[str]] = {}
    for line in models:
        dtypes.setdefault(line["dtype"], []).append(line["name"])
    order = sorted(dtypes, key=lambda dtype: -len(dtypes[dtype]))

    def different(values: Iterable[Any]) -> list[Any]:
        return list(dict.fromkeys(values))

    return {
        "bases": different(line["recipe"]["base"] for line in models),
        "dtypes": order,
        "exceptions": {dtype: dtypes[dtype] for dtype in order[1:]},
        "devices": different(line["device"] for line in models),
        "processors": different(line["processor"] for line in lines),
        "threads": different(line["threads"] for line in lines),
        "versions": {
            name: different(line["versions"][name] for line in lines if name in line["versions"])
            for name in dict.fromkeys(name for line in lines for name in line["versions"])
        },
        "reports": len(found.reports),
        "tries": len(found.tries),
    }
