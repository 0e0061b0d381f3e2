"""The groups of test questions that a study is summed up by, and the answers that its reports hold to each.

A group holds the test questions of

    one test set, in all formats and in each format on its own
    all test sets in distribution, all out of distribution
    each of these (in all formats; the second also in each format) of one kind of question, such as indirect

always either as published or strictly rendered, and with choices scored in one way (by the sum or the mean of their tokens), never
both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from iclm.errors import DataError
from iclm.studies.study.results import Collected, FinishedJob, questions_of
from iclm.studies.study.rows import ROUTED, from_bits, from_given, problems_of, routed_module
from iclm.studies.study.strategy import MODULE as STRATEGY

IN, OUT = "in distribution", "out of distribution"
MAIN = ("mixture", STRATEGY)  # modules that answer for their method


@dataclass(frozen=True)
class Group:
    """A group of test questions.

    Attributes:
        name: the test set, "in distribution" or "out of distribution".
        format: of the questions; None means all.
        kind: of the questions; None means all.
        sources: numbers of the test sources.
    """

    name: str
    format: str | None
    kind: str | None
    sources: tuple[int, ...]

    @property
    def label(self) -> dict[str, Any]:
        """What names it in a record."""
        return {"group": self.name, "format": self.format, "kind": self.kind}


@dataclass
class DataResults:
    """The reports on one data set, either as published or strictly rendered, with choices scored in one way.

    Attributes:
        data: its name.
        strict: whether its questions are strictly rendered.
        score: how their choices are scored, sum or mean.
        jobs: the reports.
        sources: a row of each test source, by its number.
        answers: right answers, bool [questions], by method, module, seed (None where a method depends on none) and source.
        given: the choice that was taken, int [questions], by the same, where the row says.
        routed: the domain module that all questions of a source were routed to, by method, seed and source.
    """

    data: str
    strict: bool
    score: str
    jobs: list[FinishedJob]
    sources: dict[int, dict[str, Any]] = field(default_factory=dict)
    answers: dict[tuple[str, str, int | None, int], np.ndarray] = field(default_factory=dict)
    given: dict[tuple[str, str, int | None, int], np.ndarray] = field(default_factory=dict)
    routed: dict[tuple[str, int | None, int], str] = field(default_factory=dict)
    _layouts: dict[Group, tuple[list[np.ndarray], np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for job in self.jobs:
            for row in job.rows:
                if variant_of(row) != (self.strict, self.score):
                    continue
                first = self.sources.setdefault(row["source"], row)
                for name in ("test_set", "format", "shifted", "n", "problems"):
                    if first[name] != row[name]:
                        raise DataError(f"{job.name}: its source {row['source']} has another {name} than in other jobs")
                right = from_bits(row["answers"], row["n"])
                if right.sum() != row["correct"]:
                    raise DataError(f"{job.name}: a row with {row['correct']} right answers marks {right.sum()}")
                self.answers[row["method"], row["module"], row["seed"], row["source"]] = right
                if "given" in row:
                    self.given[row["method"], row["module"], row["seed"], row["source"]] = from_given(row["given"])
                if row["module"] == routed_module(row):
                    self.answers[row["method"], ROUTED, row["seed"], row["source"]] = right
                    self.routed[row["method"], row["seed"], row["source"]] = row["module"]
        self.sources = dict(sorted(self.sources.items()))

    @cached_property
    def methods(self) -> list[str]:
        """Names of the methods, in their order."""
        answered = {method for method, _, _, _ in self.answers}
        return [m for m in dict.fromkeys(job.line["method"] for job in self.jobs) if m in answered]

    @cached_property
    def modules(self) -> dict[str, list[str]]:
        """Modules of each method: what answers for it, the invariant module, the routed one, domain modules, oracle routing."""
        order = {name: place for place, name in enumerate((*MAIN, "invariant", ROUTED))}
        found: dict[str, set[str]] = {method: set() for method in self.methods}
        for method, module, _, _ in self.answers:
            found[method].add(module)

        def place(name: str) -> tuple[int, int, str]:
            return order.get(name, 9 if name == "oracle" else 8), len(name), name

        return {method: sorted(names, key=place) for method, names in found.items()}

    def main(self, method: str) -> str:
        """The module that answers for a method."""
        return self.modules[method][0]

    def seeds(self, method: str, module: str, sources: Sequence[int]) -> list[int | None]:
        """Seeds for which a module has answered all questions of some sources; [None] where its answers depend on none."""
        every: list[int | None] = [job.line["seed"] for job in self.jobs if job.line["method"] == method]
        every = [None] if None in every else sorted(set(every), key=lambda seed: seed or 0)
        return [seed for seed in every if all((method, module, seed, source) in self.answers for source in sources)]

    def answering(self, method: str, group: Group) -> list[str]:
        """Modules of a method that have answered a group, the one that answers for it first.

        The routed module is among them where it has answered in every seed, and is not one domain module throughout.
        """
        seeds = self.seeds(method, self.main(method), group.sources)
        homes = [{self.routed.get((method, seed, source)) for source in group.sources} for seed in seeds]
        distinct = all(None not in home for home in homes) and any(len(home) > 1 for home in homes)
        return [module for module in self.modules[method] if module != ROUTED or distinct]

    # -- groups --------------------------------------------------------------------------------------------------------

    @cached_property
    def groups(self) -> list[Group]:
        """All groups: in and out of distribution first, then each test set; of each its formats, then its kinds."""
        several = len({row["format"] for row in self.sources.values()}) > 1
        pools: dict[str, list[int]] = {}
        for shifted, name in ((False, IN), (True, OUT)):
            pools[name] = [number for number, row in self.sources.items() if row["shifted"] == shifted]
        for number, row in self.sources.items():
            pools.setdefault(row["test_set"], []).append(number)
        found = []
        for name, numbers in pools.items():
            if not numbers:
                continue
            found.append(Group(name, None, None, tuple(numbers)))
            formats = list(dict.fromkeys(self.sources[number]["format"] for number in numbers))
            if len(formats) > 1 and name not in (IN, OUT):
                found += [Group(name, form, None, self._of_format(numbers, form)) for form in formats]
            kinds = sorted({kind for number in numbers for kind in self._kinds[number]})
            found += [Group(name, None, kind, tuple(numbers)) for kind in kinds if len(kinds) > 1]
            if several and len(kinds) > 1 and name in (IN, OUT):
                found += [
                    Group(name, form, kind, self._of_format(numbers, form))
                    for form in formats
                    if form is not None
                    for kind in kinds
                ]
        return [group for group in found if any(self.asked(group, source).any() for source in group.sources)]

    def _of_format(self, numbers: Iterable[int], form: str) -> tuple[int, ...]:
        return tuple(number for number in numbers if self.sources[number]["format"] == form)

    @cached_property
    def _kinds(self) -> dict[int, dict[str, np.ndarray]]:
        """For each source and kind of question which questions are of it, bool [questions]."""
        questions = questions_of(self.jobs)[self.data]
        return {
            number: {kind: from_bits(marks, row["n"]) for kind, marks in questions[number].items()}
            for number, row in self.sources.items()
        }

    def asked(self, group: Group, source: int) -> np.ndarray:
        """Which questions of a source belong to a group, bool [questions]."""
        n = self.sources[source]["n"]
        return np.ones(n, bool) if group.kind is None else self._kinds[source].get(group.kind, np.zeros(n, bool))

    @cached_property
    def problem_of(self) -> dict[int, np.ndarray]:
        """For each source the number of the problem of each question, int [questions].

        The same problem rendered in another format or wording, with other wrong answers, or asked for in another way, has the
        same number: its answers are not independent either.
        """
        first: dict[tuple[str, int], int] = {}
        found, total = {}, 0
        for number, row in self.sources.items():
            try:
                own = problems_of(row["problems"], row["n"])
            except ValueError as error:
                raise DataError(f"source {number} of {self.data}: its {error}") from error
            count = int(own.max()) + 1
            origin = {
                key: value
                for key, value in self.jobs[0].line["evaluate"][number].items()
                if key not in ("format", "domain", "ask", "score", "corr2cause", "answers")
            }
            key = (json.dumps(origin, sort_keys=True), count)
            start = first.setdefault(key, total)
            total = max(total, start + count)
            found[number] = start + own
        return found

    @property
    def problem_count(self) -> int:
        """Number of problems that all sources ask of."""
        return 1 + max(int(numbers.max(initial=-1)) for numbers in self.problem_of.values())

    def problems(self, group: Group) -> tuple[list[np.ndarray], np.ndarray]:
        """For each source of a group the problem of each of its questions, counted from 0, and the questions of each problem."""
        if group not in self._layouts:
            every = [self.problem_of[source][self.asked(group, source)] for source in group.sources]
            numbers, places = np.unique(np.concatenate(every), return_inverse=True)
            cuts = np.cumsum([len(part) for part in every])[:-1]
            self._layouts[group] = np.split(places, cuts), np.bincount(places, minlength=len(numbers))
        return self._layouts[group]

    def right(self, group: Group, method: str, module: str, seeds: Sequence[int | None]) -> np.ndarray:
        """Right answers to each problem of a group by seed, int [seeds, problems]; the same for all where they depend on none."""
        places, sizes = self.problems(group)
        counts = np.zeros((len(seeds), len(sizes)), dtype=np.int64)
        for row, seed in enumerate(seeds):
            for source, place in zip(group.sources, places, strict=True):
                found = self.answers.get((method, module, None, source))
                found = self.answers[method, module, seed, source] if found is None else found
                answers = found[self.asked(group, source)]
                counts[row] += np.bincount(place, weights=answers, minlength=len(sizes)).astype(np.int64)
        return counts

    def taken(self, group: Group, method: str, module: str, seeds: Sequence[int | None]) -> np.ndarray | None:
        """How often each choice was taken of a group's questions by seed, int [seeds, choices]; None where a row does not say."""
        found = []
        for seed in seeds:
            parts = [self.given.get((method, module, seed, source)) for source in group.sources]
            if any(part is None for part in parts):
                return None
            asked = [
                part[self.asked(group, source)]
                for part, source in zip(parts, group.sources, strict=True)
                if part is not None
            ]
            found.append(np.concatenate(asked))
        most = max((int(choices.max(initial=0)) for choices in found), default=0)
        return np.stack([np.bincount(choices[choices >= 0], minlength=most + 1) for choices in found])


def variant_of(row: dict[str, Any]) -> tuple[bool, str]:
    """Whether the questions of a row are strictly rendered, and how their choices are scored."""
    return row["strict"], row.get("score", "sum")  # rows had no score when there was one


def by_data(found: Collected) -> list[DataResults]:
    """The reports of each data set: those as published before those strictly rendered, sums of tokens before means."""
    results = []
    for data in dict.fromkeys(job.line["data"] for job in found.reports):
        jobs = [job for job in found.reports if job.line["data"] == data]
        variants = {variant_of(row) for job in jobs for row in job.rows}
        for strict, score in sorted(variants, key=lambda variant: (variant[0], variant[1] != "sum")):
            results.append(DataResults(data, strict, score, jobs))
    return results
