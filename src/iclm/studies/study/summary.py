"""What a study found: rows of reports summed up by groups of test questions, and methods compared on them.

Of each group (`iclm.studies.study.groups`) there are

    figures        accuracy of every method and module, mean over seeds with interval; of one kind of question also how often each
                   choice was taken, where all rows say
    inference      of ACRE, what is told apart of questions that need exclusion (`iclm.studies.study.inference`)
    comparisons    paired differences with interval and p-value: every method against the reference, an ablation against what it
                   is an ablation of, a method against others that the recipe names, a module (or oracle routing) against the
                   mixture that it is part of; none of a kind in one format

p-values are corrected (Holm) over the comparisons of one data set, way of asking, group and question.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from iclm.errors import ConfigurationError
from iclm.studies.study.groups import DataResults, Group, by_data
from iclm.studies.study.inference import told_apart
from iclm.studies.study.results import Collected, questions_of
from iclm.studies.study.statistics import holm, paired_bootstrap
from iclm.studies.study.trainings import chosen, costs, mean_record, rounded, setup, tried

AGAINST_REFERENCE, AGAINST_WHOLE, AGAINST_FURTHER, AGAINST_MIXTURE = "reference", "ablation", "further", "module"


def summarise(found: Collected, *, reference: str | None = None, resamples: int = 10_000) -> dict[str, Any]:
    """All figures and comparisons of some studies.

    Args:
        reference: the method that others are compared with; None means that of the study.
        resamples: of the bootstrap.

    Returns:
        `groups` (a record for each with `n`, `problems` and `majority`, the accuracy of the most frequent answer of each source),
        `figures`, `inference`, `comparisons`, `cost`, `chosen` (hyper-parameters), `setup` (what all was run with), `references` (by data
        set), `resamples`, and the names of jobs that `diverged`, were `not_run` (with the reason) or `left_out`.

    Raises:
        ConfigurationError: no job is done, or there is no such method.
        DataError: rows that contradict each other.
    """
    if not found.jobs and found.left_out:
        raise ConfigurationError(
            f"none of the finished jobs, such as {found.left_out[0]}, is one of the study's as its study.yaml has it: they were done with other "
            "settings, or by a version with other defaults; say in the recipe what they were done with, or run it with `iclm study`"
        )
    if not found.jobs:
        raise ConfigurationError(
            "no job of the study is done yet, so there is nothing to report; run it with `iclm study`"
        )
    methods = list(dict.fromkeys(job.line["method"] for job in found.reports))
    if reference is not None and reference not in methods:
        raise ConfigurationError(f"reference is {reference!r}; methods with a finished job are {', '.join(methods)}")
    summary: dict[str, Any] = {
        "groups": [],
        "figures": [],
        "inference": [],
        "comparisons": [],
        "cost": [],
        "chosen": [],
        "tried": [],
    }
    summary["references"] = {}
    questions_of(found.reports)
    for results in by_data(found):
        against = reference or next((job.line["reference"] for job in results.jobs if job.line["reference"]), None)
        head = {"data": results.data, "strict": results.strict, "score": results.score}
        summary["references"][results.data] = against
        for group in results.groups:
            summary["groups"].append({**head, **group.label, **_about(results, group)})
            summary["figures"] += [{**head, **group.label, **figure} for figure in _figures(results, group)]
            family = [{**head, **group.label, **one} for one in _comparisons(results, group, against, resamples)]
            for question in (AGAINST_REFERENCE, AGAINST_WHOLE, AGAINST_FURTHER, AGAINST_MIXTURE):
                same = [one for one in family if one["question"] == question]
                for one, p in zip(same, holm([one["p"] for one in same]), strict=True):
                    one["p_holm"] = rounded(p)
            summary["comparisons"] += family
        summary["inference"] += [{**head, **one} for one in told_apart(results)]
    for job in found.tries:  # on data of which nothing is reported
        summary["references"].setdefault(job.line["data"], None)
    for data, against in summary["references"].items():
        jobs = [job for job in found.reports if job.line["data"] == data]
        summary["cost"] += [{"data": data, **cost} for cost in costs(jobs, against)]
        summary["chosen"] += chosen(found, data)
        summary["tried"] += tried(found, data)
    summary["setup"] = setup(found)
    summary |= {"resamples": resamples, "not_run": found.not_run, "left_out": found.left_out}
    return {**summary, "diverged": [job.name for job in found.jobs if job.line.get("diverged")]}


def _about(results: DataResults, group: Group) -> dict[str, Any]:
    """Size of a group, and what the most frequent answer of each source reaches (None for one kind of question)."""
    rows = [results.sources[source] for source in group.sources]
    n = int(sum(results.asked(group, source).sum() for source in group.sources))
    majority = sum(row["majority"] * row["n"] for row in rows) / n if group.kind is None else None
    test_sets = list(dict.fromkeys(row["test_set"] for row in rows))
    shifted = sorted({row["shifted"] for row in rows})
    return {
        "test_sets": test_sets,
        "shifted": shifted[0] if len(shifted) == 1 else None,
        "n": n,
        "problems": len(results.problems(group)[1]),
        "majority": rounded(majority),
    }


def _figures(results: DataResults, group: Group) -> Iterator[dict[str, Any]]:
    """Accuracy of every method and module on a group."""
    n = int(results.problems(group)[1].sum())
    for method in results.methods:
        for module in results.answering(method, group):
            seeds = results.seeds(method, module, group.sources)
            if not seeds:
                continue
            values = (results.right(group, method, module, seeds).sum(axis=1) / n).tolist()
            figure = {
                "method": method,
                "module": module,
                "seeds": seeds,
                "n": n,
                **mean_record(values, bounds=(0.0, 1.0)),
            }
            taken = None if group.kind is None else results.taken(group, method, module, seeds)
            if taken is not None:
                figure["taken"] = [[rounded(share) for share in row] for row in (taken / n).tolist()]
            yield figure


def _pairs(results: DataResults, group: Group, reference: str | None) -> Iterator[tuple[str, str, str, str, str]]:
    """What is compared on a group: question, method and module, against which method and module."""
    tuned_as = {job.line["method"]: job.line["tuned_as"] for job in results.jobs}
    compared_with = {job.line["method"]: job.line.get("compared_with", ()) for job in results.jobs}
    for method in results.methods:
        main = results.main(method)
        further = [(AGAINST_FURTHER, other) for other in compared_with[method]]
        for question, other in ((AGAINST_REFERENCE, reference), (AGAINST_WHOLE, tuned_as[method]), *further):
            if other is not None and other != method and other in results.methods:
                yield question, method, main, other, results.main(other)
        for module in results.answering(method, group)[1:] if group.kind is None else ():
            yield AGAINST_MIXTURE, method, module, method, main


def _comparisons(results: DataResults, group: Group, reference: str | None, resamples: int) -> Iterator[dict[str, Any]]:
    """All comparisons on a group that have a seed in common."""
    if group.kind is not None and group.format is not None:
        return
    sizes = results.problems(group)[1]
    n = int(sizes.sum())
    for question, method, module, other, other_module in _pairs(results, group, reference):
        ours = results.seeds(method, module, group.sources)
        theirs = results.seeds(other, other_module, group.sources)
        if None in ours or None in theirs:  # what depends on no seed is compared on all of the other's
            ours = theirs = theirs if None in ours else ours
        seeds = [seed for seed in ours if seed in theirs]
        if not seeds:
            continue
        right = results.right(group, method, module, seeds)
        other_right = results.right(group, other, other_module, seeds)
        found = paired_bootstrap(right, other_right, sizes, resamples=resamples)
        yield {
            "question": question,
            "method": method,
            "module": module,
            "against": other,
            "against_module": other_module,
            "seeds": seeds,
            "only_one_side": {"method": _without(ours, seeds), "against": _without(theirs, seeds)},
            "n": n,
            "problems": found.problems,
            "resampled": found.resampled,
            "by_seed": [rounded(value) for value in ((right - other_right).sum(axis=1) / n).tolist()],
            "difference": rounded(found.value),
            "low": rounded(found.low),
            "high": rounded(found.high),
            "p": rounded(found.p),
        }


def _without(seeds: Iterable[int | None], common: Sequence[int | None]) -> list[int | None]:
    return [seed for seed in seeds if seed not in common]
